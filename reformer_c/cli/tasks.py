"""Tasks other than language models: the runs that train them, and the tasks of saved models."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.encoder_decoder import ReformerEncoderDecoder
from ..models.model import (
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
)
from ..text.folders import check_vocabulary
from ..training.classification import PROBLEMS, Classification, find_labels
from ..training.examples import Examples
from ..training.masking import Masked, MaskedLanguageModel
from ..training.progress import show_count
from ..training.question_answering import QuestionAnswering
from ..training.records import Record, read_records
from .folder import check_length, open_tokenizer
from .prepared import Prepared
from .train_data import (
    default_tokenizer,
    hold_out,
    read_data,
    read_tokenizer,
    row_length,
    token_fields,
)
from .train_model import create_or_open, fix_num_buckets, make_config, make_model
from .translation import evaluate_translation, prepare_translation
from .values import given, option

__all__ = ["evaluate", "open_task", "prepare"]

# examples per micro-batch
BATCH = 16
# a task's layers see both sides of a token
FIELDS = {"is_decoder": False, "local_num_chunks_after": 1}
# a configuration's key: the model has learned from questions without an answer
ABSTAINS = "unanswerable_questions"


def prepare(folder: Path | None, options: Namespace) -> Prepared:
    """The run of --task, after a check of the options that it does not use."""
    unused = ["bytes_per_token"]
    unused += ["whole_files", "offset"] if options.task != "mlm" else []
    for name in unused:
        if getattr(options, name):
            raise ValueError(f"{option(name)} cannot be combined with --task {options.task}")
    return TASKS[options.task](folder, options)


def _prepare_classification(folder: Path | None, options: Namespace) -> Prepared:
    columns = _columns(options)
    column = columns.get("label_column", "label")
    records, held_out = _read_examples(options, columns.get("text_column", "text"), column)
    tokenizer = read_tokenizer(folder, options) or default_tokenizer(folder, options)
    problem = PROBLEMS[options.problem or "single-label"]
    if problem == "regression":
        labels = [column]
    else:
        # with the share that is held out, whose classes may be rare
        labels = find_labels(records + ([] if options.evaluate_on else held_out), column, problem)
        least = 2 if problem == PROBLEMS["single-label"] else 1
        if len(labels) < least:
            raise ValueError(f"FILE must have at least {least} labels in {column!r}, got {labels}")
    task = Classification(tokenizer, problem, labels, row_length(options), **columns)
    train, held = task.examples(records), task.examples(held_out)
    data = _examples(train, tokenizer, options)
    fields = {
        "problem_type": problem,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    model = _model(
        ReformerForSequenceClassification, folder, data.length, tokenizer, options, fields
    )
    summary = f"{len(train):,} examples to train on, {len(held):,} held out"
    if problem != "regression":
        summary += f"; {len(labels)} labels: {', '.join(labels[:8])}" + ", ..." * (len(labels) > 8)
    if note := task.note(example.is_cut for example in train):
        summary += f"\n{note}"
    return Prepared(model, data, _measure(task, held), tokenizer, summary)


def _prepare_masked(folder: Path | None, options: Namespace) -> Prepared:
    texts = read_data(folder, options)
    if texts.tokenizer is None:
        raise ValueError("--task mlm needs --tokenizer with .npy files")
    task = MaskedLanguageModel(texts.tokenizer, texts.train.length)
    data = Masked(texts.train, task)
    model = make_model(folder, texts, options, ReformerForMaskedLM, **FIELDS)
    summary = f"{texts.summary}\n{task.mask_token} is the mask"
    return Prepared(model, data, _measure(task, texts.held_out), texts.tokenizer, summary)


def _prepare_questions(folder: Path | None, options: Namespace) -> Prepared:
    records, held_out = _read_examples(options, "question", "context")
    tokenizer = read_tokenizer(folder, options) or default_tokenizer(folder, options)
    task = QuestionAnswering(tokenizer, row_length(options))
    questions, held = task.questions(records), task.questions(held_out)
    data = _examples(task.examples(questions), tokenizer, options)
    fields, extra = {"num_labels": 2}, {}
    unanswered = sum(not question.answers for question in questions)
    if unanswered:
        extra, task = {ABSTAINS: True}, replace(task, may_abstain=True)
    model = _model(
        ReformerForQuestionAnswering, folder, data.length, tokenizer, options, fields, extra
    )
    summary = f"{len(questions):,} questions to train on, {len(held):,} held out"
    if unanswered:
        summary += f"\n{unanswered:,} questions have no answer"
    if len(data) > len(questions):
        summary += f"\n{len(data):,} windows of at most {data.length:,} tokens"
    return Prepared(model, data, _measure(task, held), tokenizer, summary)


def _read_examples(options: Namespace, *columns: str) -> tuple[list[Record], list[Record]]:
    """The examples to train on, and those held out."""
    records = read_records(options.files)
    for column in columns:
        records[0][column]  # the error for a wrong column names the first line
    apart = read_records(options.evaluate_on) if options.evaluate_on else []
    return hold_out(records, apart, options)


def _examples(train: Sequence[Any], tokenizer: Any, options: Namespace) -> Examples:
    return Examples(
        train,
        batch=options.batch or BATCH,
        order=options.order,
        seed=options.seed,
        pad_token_id=tokenizer.pad_token_id or 0,
    )


def _model(
    kind: Any, folder: Path | None, length: int, tokenizer: Any, options: Namespace,
    fields: dict[str, Any], extra: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """The model of a task, for sequences of at least `length` tokens; `extra` are other keys of its
    configuration."""
    fields = FIELDS | token_fields(tokenizer) | fields
    config = make_config(length, options, fields)
    if options.length is None and options.start is None:
        # whole chunks, which transformers pads sequences to
        chunks = [config.attention(kind, "attn_chunk_length") for kind in config.windows]
        multiple = math.lcm(*chunks) if all(chunks) else 1
        length = -(-length // multiple) * multiple
        config = make_config(length, options, fields)
    check_vocabulary(tokenizer, config.vocab_size)
    config = config.changed({"extra": config.extra | (extra or {})})
    return create_or_open(kind, folder, fix_num_buckets(config, length), options)


def _measure(task: Any, examples: Sequence[Any]) -> Callable[..., dict[str, float]] | None:
    """The evaluation of held-out examples, as `Trainer` calls it."""
    if not examples:
        return None
    return lambda model, *, seed: task.evaluate(model, examples, seed=seed)


def _columns(options: Namespace) -> dict[str, str]:
    names = ("text_column", "label_column")
    return given(**{name: getattr(options, name, None) for name in names})


# ---- the task of a saved model ----


def open_task(model: Any, options: Namespace) -> Any:
    """The task of a model, with the tokenizer of its folder."""
    opened: dict[type, Callable[..., Any]] = {
        ReformerForSequenceClassification: _classification,
        ReformerForMaskedLM: _masked,
        ReformerForQuestionAnswering: _questions,
    }
    if type(model) not in opened:
        names = ", ".join(kind.__name__ for kind in opened)
        raise ValueError(
            f"DIR must have one of {names}, got {type(model).__name__} in {options.model!r}"
        )
    longest = model.config.num_positions
    check_length(options, longest)
    length = options.length or min(longest, model.config.max_position_embeddings)
    tokenizer = open_tokenizer(options.model, options.tokenizer, model.config.vocab_size)
    return opened[type(model)](model.config, tokenizer, length, options)


def _classification(config: Any, tokenizer: Any, length: int, options: Namespace) -> Any:
    names = [config.id2label[i] for i in range(config.num_labels)]
    problem = config.problem_type
    if problem is None:
        problem = PROBLEMS["regression" if config.num_labels == 1 else "single-label"]
    return Classification(tokenizer, problem, names, length, **_columns(options))


def _masked(config: Any, tokenizer: Any, length: int, options: Namespace) -> Any:
    return MaskedLanguageModel(tokenizer, length, **_columns(options))


def _questions(config: Any, tokenizer: Any, length: int, options: Namespace) -> Any:
    for name in _columns(options):
        raise ValueError(f"{option(name)} needs a model of another task")
    return QuestionAnswering(tokenizer, length, bool(config.extra.get(ABSTAINS)))


def evaluate(model: Any, options: Namespace) -> tuple[dict[str, Any], str]:
    """The metrics of a model on files: values, and a text."""
    if isinstance(model, ReformerEncoderDecoder):
        return evaluate_translation(model, options)
    if options.sliding is not None:
        raise ValueError("--sliding needs a language model that is not masked")
    task = open_task(model, options)
    examples = task.read(options.files)
    begin = time.perf_counter()
    with show_count("rows") as progress:
        metrics = task.evaluate(model, examples, seed=options.seed, progress=progress)
    seconds = time.perf_counter() - begin
    lines = [f"{name:20} {value:.4f}" for name, value in metrics.items()]
    lines.append(f"{len(examples):,} {task.unit}, {seconds:.1f} s")
    values: dict[str, Any] = {name.replace(" ", "_"): value for name, value in metrics.items()}
    values |= {task.unit: len(examples), "seconds": seconds}
    if isinstance(task, Classification) and (note := task.note(one.is_cut for one in examples)):
        lines.append(note)
        values["note"] = note
    return values, "\n".join(lines)


# ---- the runs of --task ----

TASKS = {
    "classification": _prepare_classification,
    "mlm": _prepare_masked,
    "question-answering": _prepare_questions,
    "translation": prepare_translation,
}
