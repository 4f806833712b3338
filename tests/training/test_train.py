"""Training: reports, exact continuation, and checkpoints that survive whatever ends the process."""

import copy
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from small_models import random_ids, small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c.files.atomic import finish_checkpoint
from reformer_c.files.checkpoint import write_safetensors
from reformer_c.runtime import peak_memory
from reformer_c.training.data import Sequences, Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.log import read_log
from reformer_c.training.optim import Adafactor, AdamW
from reformer_c.training.progress import describe, show_progress
from reformer_c.training.schedules import schedules
from reformer_c.training.state import has_checkpoint, kept_models
from reformer_c.training.train import Trainer

# import paths for the programs that tests start
TESTS = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]

TEXT = np.random.default_rng(0).integers(0, 5, 4000).cumsum() % 23


@pytest.fixture(autouse=True)
def one_thread():
    """The models here are too small for more."""
    with rc.num_threads(1):
        yield


class Bigrams:
    """The smallest language model: a table of logits, with noise so that `rng` matters."""

    def __init__(self):
        self.parameters = {"table": np.zeros((23, 23)), "unused": np.ones(2)}

    def loss(self, input_ids, *, labels, rng):
        logits = self.parameters["table"][input_ids[:, :-1]]
        logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(logits, labels[:, 1:, None], -1).mean()

    def loss_and_gradients(self, input_ids, *, labels, rng):
        before, after = input_ids[:, :-1].ravel(), labels[:, 1:].ravel()
        logits = self.parameters["table"][before]
        d = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        d[np.arange(len(after)), after] -= 1.0
        grad = np.zeros_like(self.parameters["table"])
        np.add.at(grad, before, d / len(after))
        grad += 1e-6 * np.random.default_rng(rng).standard_normal(grad.shape)
        return self.loss(input_ids, labels=labels, rng=rng), {
            "table": grad,
            "unused": np.zeros(2),
        }

    def save_pretrained(self, folder):
        write_safetensors(folder / "model.safetensors", self.parameters)
        (folder / "config.json").write_text("{}")


OPTIMIZERS = {
    "adamw": lambda parameters: AdamW(parameters, lr=0.1),
    "adafactor": lambda parameters: Adafactor(parameters, beta1=0.5),
}


def make(model=None, *, steps=12, seed=5, optimizer="adamw", **options):
    model = Bigrams() if model is None else model
    data = Windows(TEXT, 64, batch=2, seed=seed)
    optimizer = OPTIMIZERS[optimizer](model.parameters)
    options = {"schedule": schedules.cosine(12, warmup=3), "seed": seed, "steps": steps} | options
    return Trainer(model, data, optimizer, **options)


def run(trainer):
    return [(report.step, report.loss) for report in trainer]


# ---- steps ----


def test_positions_at_random_are_those_that_a_model_is_trained_on():
    model = rc.ReformerModelWithLMHead(small_config(vocab_size=23), rng=0)
    length = model.config.num_positions - 9
    data = Windows(TEXT, length, batch=2, offset=9)
    batch = data.batch(0)
    assert batch["position_ids"][:, 0].tolist() == [3, 2]
    loss, _ = model.loss_and_gradients(**batch, rng=0)
    moved, _ = model.loss_and_gradients(batch["input_ids"], labels=batch["labels"], rng=0)
    assert loss != moved
    rows = [
        model.loss_and_gradients(**{name: ids[i : i + 1] for name, ids in batch.items()}, rng=0)
        for i in range(2)
    ]
    assert_close(loss, np.mean([loss for loss, _ in rows]), "forward", "float32")
    (report,) = Trainer(model, data, steps=1)
    assert report.targets == 2 * (length - 1)
    with pytest.raises(ValueError, match=r"data must have an offset of at most 9: .* got 10"):
        Trainer(model, Windows(TEXT, length, offset=10))
    without = rc.ReformerModelWithLMHead(
        small_config(vocab_size=23, position_embedding_type="none"), rng=0
    )
    with pytest.raises(ValueError, match=r"data must have an offset of 0 with .*'none', got 9"):
        Trainer(without, data)


def test_a_trainer_learns_and_reports():
    trainer = make(steps=50, schedule=None)
    reports = list(trainer)
    assert [report.step for report in reports] == list(range(1, 51))
    assert reports[0].loss == pytest.approx(math.log(23))
    assert reports[-1].loss < 0.8 * reports[0].loss
    last = reports[-1]
    assert last.bits_per_byte == pytest.approx(last.loss / math.log(2))
    assert last.tokens_per_second > 0
    assert last.learning_rate == 0.1
    assert last.gradient_norm > 0
    assert last.peak_memory is None or last.peak_memory > 1e6
    assert last.held_out is None


class Pairs:
    """Batches of arguments by name."""

    def batch(self, step):
        ids = np.random.default_rng(step).integers(2, 13, (4, 8))
        return {"input_ids": ids, "labels": ids[:, ::-1], "attention_mask": np.ones((4, 8), int)}


@pytest.mark.parametrize("kind", [rc.ReformerForMaskedLM, rc.ReformerEncoderDecoder])
def test_other_models_are_given_their_arguments(tmp_path, kind):
    pytest.importorskip("safetensors")
    config = small_config(is_decoder=False, hash_seed=0)

    def trainer(steps):
        model = kind(config, rng=0)
        optimizer = AdamW(model.parameters, lr=1e-2)
        return Trainer(model, Pairs(), optimizer, steps=steps, folder=tmp_path / kind.__name__)

    whole = trainer(20)
    reports = list(whole)
    assert reports[-1].loss < reports[0].loss
    assert reports[0].tokens_per_second > 0
    first, second = trainer(10), trainer(20)
    list(first)
    second.resume(tmp_path / kind.__name__)
    assert [report.loss for report in second] == [report.loss for report in reports[10:]]
    for name, array in second.model.parameters.items():
        np.testing.assert_array_equal(array, whole.model.parameters[name])


def test_two_runs_are_the_same_bits():
    assert run(make()) == run(make())
    assert run(make()) != run(make(seed=6))


# ---- every target counts once ----


class Batches:
    """Micro-batches that are given."""

    def __init__(self, *batches):
        self.batches = batches

    def batch(self, step):
        return self.batches[step % len(self.batches)]


class Seen(rc.AdamW):
    """Keeps the gradients of the last step."""

    def step(self, grads, lr=None):
        self.grads = {name: grad.copy() for name, grad in grads.items()}
        super().step(grads, lr)


def one_step(model, *batches, **options):
    """The report and the gradients of a step of these micro-batches; the weights stay."""
    optimizer = Seen(model.parameters, lr=0.0)
    trainer = Trainer(model, Batches(*batches), optimizer, accumulate=len(batches), **options)
    return next(iter(trainer)), optimizer.grads


ROWS = [np.random.default_rng(n).integers(2, 13, (1, n)) for n in (11, 33)]


def arguments(kind, ids, seed=0):
    """A row's targets, some of which do not count, by the kind of the model."""
    rng = np.random.default_rng((seed, ids.size))
    batch = {"input_ids": ids, "attention_mask": np.ones(ids.shape, int)}
    if kind is rc.ReformerForSequenceClassification:
        return batch | {"labels": np.array([ids.size % 3])}
    if kind is rc.ReformerForQuestionAnswering:
        return batch | {"start_positions": np.array([2]), "end_positions": np.array([5])}
    labels = ids[:, : rng.integers(5, 10)] if kind is rc.ReformerEncoderDecoder else ids
    hidden = rng.random(labels.shape) < 0.5
    hidden[:, 1] = True
    return batch | {"labels": np.where(hidden, labels, -100)}


def padded(batches):
    """One batch of all rows."""
    found = {}
    for name in batches[0]:
        rows = [batch[name] for batch in batches]
        if rows[0].ndim == 2:
            fill = -100 if name == "labels" else 0
            n = max(row.shape[1] for row in rows)
            ends = [((0, 0), (0, n - row.shape[1])) for row in rows]
            rows = [np.pad(row, end, constant_values=fill)
                    for row, end in zip(rows, ends, strict=True)]  # fmt: skip
        found[name] = np.concatenate(rows)
    return found


KINDS = [
    rc.ReformerModelWithLMHead,
    rc.ReformerForMaskedLM,
    rc.ReformerEncoderDecoder,
    rc.ReformerForSequenceClassification,
    rc.ReformerForQuestionAnswering,
]


def local_model(kind, **changes):
    # padding does not change a row: no chunk wraps around the circle
    fields = {"attn_layers": ["local"], "local_num_chunks_before": 0}
    fields["is_decoder"] = kind is rc.ReformerModelWithLMHead
    if kind is rc.ReformerForSequenceClassification:
        fields |= {"num_labels": 3}
    return kind(small_config(**fields | changes), rng=0, dtype=np.float64)


def questions():
    """Micro-batches with more starts than ends that count, one with an end alone. A padded place
    could be an answer, so all have one length."""
    places = [([99], [5]), ([2], [4]), ([7, 3], [33, 99])]
    parts = []
    for seed, (starts, ends) in enumerate(places):
        ids = random_ids((len(starts), 33), seed)
        found = {"start_positions": np.array(starts), "end_positions": np.array(ends)}
        parts.append({"input_ids": ids, "attention_mask": np.ones_like(ids)} | found)
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_of_several_lengths_are_one_padded_batch(kind):
    model = local_model(kind)
    parts = [arguments(kind, ids) for ids in ROWS]
    more = (ROWS[0], ROWS[0], ROWS[1])
    parts.append(padded([arguments(kind, ids, seed) for seed, ids in enumerate(more, 1)]))
    if kind is rc.ReformerForQuestionAnswering:
        parts = questions()
    report, grads = one_step(model, *parts, max_grad_norm=0.1)
    whole, expected = one_step(model, padded(parts), max_grad_norm=0.1)
    assert_close(report.loss, whole.loss, "replay")
    assert report.bits_per_byte == report.loss / math.log(2)
    assert report.targets == whole.targets
    # the norm is that of the whole step, and it is clipped once
    assert_close(report.gradient_norm, whole.gradient_norm, "model_backward")
    for name, array in expected.items():
        assert_close(grads[name], array, "replay", scale=1.0)
    if kind is rc.ReformerForQuestionAnswering:
        return
    means = [model.loss(**part, rng=0) for part in parts]
    counts = [model.count_targets(**part) for part in parts]
    assert_close(report.loss, np.average(means, weights=counts), "replay")


def test_every_start_and_every_end_of_accumulated_questions_counts_once():
    model = local_model(rc.ReformerForQuestionAnswering)
    losses = {"start": [], "end": []}
    for part in questions():
        output = model(part["input_ids"], part["attention_mask"])
        for name, found in losses.items():
            logits, places = output[f"{name}_logits"], part[f"{name}_positions"]
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found += [-row[place] for row, place in zip(log_p, places, strict=True) if place < 33]
    report, _ = one_step(model, *questions())
    assert [len(found) for found in losses.values()] == [3, 2]
    means = [np.mean(found) for found in losses.values()]
    assert_close(report.loss, np.mean(means), "replay")
    assert report.targets == 2


def test_counts_of_a_larger_batch_make_losses_and_gradients_add_up():
    model = local_model(rc.ReformerForQuestionAnswering)
    whole, expected = model.loss_and_gradients(**padded(questions()), rng=0)
    counts = np.sum([model.count_targets(**part) for part in questions()], axis=0)
    parts = [model.loss_and_gradients(**part, counts=counts, rng=0) for part in questions()]
    assert_close(sum(loss for loss, _ in parts), whole, "replay")
    for name, array in expected.items():
        total = sum(gradients[name] for _, gradients in parts)
        assert_close(total, array, "replay", scale=1.0)
    part = questions()[1]
    own = model.loss_and_gradients(**part, rng=0)
    again = model.loss_and_gradients(**part, counts=model.count_targets(**part), rng=0)
    assert own[0] == again[0]
    for name, array in own[1].items():
        np.testing.assert_array_equal(array, again[1][name])
    for wrong, error, words in (
        (3, ValueError, r"two numbers, of starts and of ends, got shape \(\)"),
        ([1, 2, 3], ValueError, r"two numbers, of starts and of ends, got shape \(3,\)"),
        ([1, -2], ValueError, r"a finite number >= 0, got -2"),
        (["a", "b"], TypeError, "a number, got 'a'"),
    ):
        with pytest.raises(error, match=f"^counts must be {words}"):
            model.loss(**part, counts=wrong)
    with pytest.raises(TypeError, match=r"counts: ReformerForMaskedLM has no such argument"):
        local_model(rc.ReformerForMaskedLM).loss(ROWS[0], labels=ROWS[0], counts=[1])


def test_every_label_of_accumulated_texts_counts_once():
    model = local_model(rc.ReformerModelWithLMHead, max_position_embeddings=110,
                        axial_pos_shape=[10, 11])  # fmt: skip
    short, long = (np.random.default_rng(n).integers(0, 13, n) for n in (11, 101))
    la, lb = (model.loss(ids[None], labels=ids[None], rng=0) for ids in (short, long))
    expected = (10 * la + 100 * lb) / 110
    assert abs(expected - (la + lb) / 2) > 0.01
    for data in (Batches(short[None], long[None]), Sequences([short, long], order="sequential")):
        report = next(iter(Trainer(model, data, AdamW(model.parameters, lr=0.0), accumulate=2)))
        assert_close(report.loss, expected, "replay")
        assert report.targets == 110
    assert_close(evaluate(model, [short, long], 101).loss, expected, "replay")


def test_micro_batches_of_one_size_are_averaged_to_the_last_bit():
    model = local_model(rc.ReformerModelWithLMHead)
    parts = [random_ids((2, 9), seed) for seed in range(3)]
    report, grads = one_step(model, *parts, max_grad_norm=math.inf)
    alone = [model.loss_and_gradients(ids, labels=ids, rng=0) for ids in parts]
    assert report.loss == math.fsum(loss for loss, _ in alone) / 3
    for name, array in grads.items():
        first, second, third = (gradients[name] for _, gradients in alone)
        np.testing.assert_array_equal(array, (first + second + third) * (1.0 / 3.0))


def test_labels_of_a_model_that_cannot_count_are_counted():
    model = Bigrams()
    model.parameters["table"][...] = np.random.default_rng(1).standard_normal((23, 23))
    short, long = TEXT[None, :11], TEXT[None, 11:112]
    losses = [model.loss(ids, labels=ids, rng=0) for ids in (short, long)]
    report, _ = one_step(model, short, long)
    assert report.loss == pytest.approx((10 * losses[0] + 100 * losses[1]) / 110)
    named = [{"input_ids": ids, "labels": ids.copy()} for ids in (short, long)]
    assert one_step(model, *named)[0] == replace(report, tokens_per_second=ANY, peak_memory=ANY)
    hidden = [{"input_ids": np.zeros_like(ids), "labels": ids} for ids in (short, long)]
    assert one_step(model, *hidden)[0].targets == 112


@pytest.mark.parametrize("labels", [np.full(4, -100), np.array([0, -100, 2, -100])])
def test_classes_that_are_ignored_do_not_count(labels):
    model = local_model(rc.ReformerForSequenceClassification)
    ids = random_ids((4, 9))
    assert model.count_targets(input_ids=ids, labels=labels) == np.count_nonzero(labels >= 0)
    for problem in ("multi_label_classification", "regression"):
        model.config.problem_type = problem
        assert model.count_targets(labels=np.ones((4, 3))) == 4
    with pytest.raises(TypeError, match="labels must be given for a loss of ReformerForSequence"):
        model.count_targets(input_ids=ids)


def test_questions_without_an_answer_in_the_text_do_not_count():
    model = local_model(rc.ReformerForQuestionAnswering)
    places = {"start_positions": [1, 9, 3], "end_positions": [4, 9, 9]}
    assert model.count_targets(input_ids=random_ids((3, 9)), **places) == (2, 1)
    vectors = np.zeros((3, 10, 16))
    assert model.count_targets(inputs_embeds=vectors, **places) == (3, 3)
    for name in ("input_ids", "inputs_embeds"):
        with pytest.raises(ValueError, match=rf"^{name} must be rows of tokens, got shape \(9,\)"):
            model.count_targets(**{name: np.zeros(9, int)}, **places)


# ---- steps in which nothing counts ----


def nothing(batch):
    """The same batch with no target that counts."""
    return {
        name: np.full_like(array, -100) if name == "labels"
        else np.full_like(array, 99) if name.endswith("positions") else array
        for name, array in batch.items()
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_which_nothing_counts_leaves_the_step_to_the_others(kind):
    model = local_model(kind)
    good = arguments(kind, ROWS[1])
    loss, grads = model.loss_and_gradients(**nothing(good), rng=0)
    assert math.isnan(loss)
    assert not any(array.any() for array in grads.values())
    expected, expected_grads = one_step(model, good)
    for parts in ((good, nothing(good)), (nothing(good), good)):
        report, grads = one_step(model, *parts)
        assert (report.loss, report.targets) == (expected.loss, expected.targets)
        for name, array in expected_grads.items():
            np.testing.assert_array_equal(grads[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_which_nothing_counts_is_skipped(kind, tmp_path):
    model, log = local_model(kind), tmp_path / "log"
    good = arguments(kind, ROWS[0])
    optimizer = AdamW(model.parameters, lr=1e-2)
    schedule = schedules.linear(10)
    data = Batches(good, nothing(good), good)
    trainer = iter(Trainer(model, data, optimizer, schedule=schedule, log=log))
    next(trainer)
    states = [model.parameters, optimizer.state_dict()]
    before = [{name: array.copy() for name, array in state.items()} for state in states]
    report = next(trainer)
    assert (report.step, report.targets) == (2, 0)
    assert math.isnan(report.loss)
    assert (report.gradient_norm, report.learning_rate) == (0.0, 0.0)
    assert "skipped: no label counts" in describe(report)
    for old, new in zip(before, [model.parameters, optimizer.state_dict()], strict=True):
        for name, array in new.items():
            np.testing.assert_array_equal(array, old[name])
    report = next(trainer)
    assert (report.step, optimizer.steps) == (3, 2)
    assert report.learning_rate == pytest.approx(1e-2 * 0.8)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in log.read_text().splitlines()]
    assert [line["targets"] for line in lines] == [report.targets, 0, report.targets]
    assert ["loss" in line for line in lines] == [True, False, True]


def test_a_real_nan_next_to_a_batch_in_which_nothing_counts_ends_the_run():
    model = local_model(rc.ReformerForMaskedLM)
    good = arguments(rc.ReformerForMaskedLM, ROWS[0])
    model.parameters["lm_head.bias"][3] = math.nan
    with pytest.raises(FloatingPointError, match=r"step 1: .*'lm_head.bias' is not finite"):
        one_step(model, nothing(good), good)


def test_the_schedule_sets_the_learning_rate():
    schedule = schedules.linear(12, warmup=3)
    trainer = make(schedule=schedule)
    rates = [report.learning_rate for report in trainer]
    np.testing.assert_allclose(rates, [0.1 * schedule(step) for step in range(12)])


def test_parameters_that_the_optimizer_does_not_hold_are_frozen():
    model = Bigrams()
    optimizer = AdamW({"unused": model.parameters["unused"]}, weight_decay=0.5)
    list(Trainer(model, Windows(TEXT, 64), optimizer, steps=3))
    assert not model.parameters["table"].any()
    assert (model.parameters["unused"] != 1.0).all()


def test_an_optimizer_of_other_arrays_is_refused():
    """It would train a model that nobody sees."""
    model, other = Bigrams(), Bigrams()
    state = AdamW(model.parameters).state_dict()
    for optimizer in (AdamW(other.parameters), copy.deepcopy(AdamW(model.parameters))):
        with pytest.raises(ValueError, match=r"^optimizer must have been made with .* is table\)"):
            Trainer(model, Windows(TEXT, 64), optimizer)
    optimizer = AdamW(model.parameters)
    optimizer.load_state_dict(state)
    Trainer(model, Windows(TEXT, 64), optimizer)


def test_ids_alone_are_no_data_of_a_masked_model():
    """Their labels would be what the model sees."""
    model = rc.ReformerForMaskedLM(small_config(is_decoder=False), rng=0)
    trainer = Trainer(model, Windows(random_ids(200), 16), AdamW(model.parameters))
    with pytest.raises(TypeError, match=r"^data must give a masked language model input_ids and"):
        next(iter(trainer))


def test_steps_may_be_taken_one_by_one():
    trainer = make()
    for expected in (1, 2, 3):
        assert next(iter(trainer)).step == expected


def test_held_out_text_is_evaluated_every_so_often_and_at_the_end():
    reports = list(make(steps=7, held_out=TEXT[:200], evaluate_every=3))
    assert [report.step for report in reports if report.held_out is not None] == [3, 6, 7]
    assert reports[-1].held_out < reports[2].held_out


def test_evaluation_weighs_a_short_last_window_by_its_tokens():
    model = Bigrams()
    model.parameters["table"][...] = np.random.default_rng(1).standard_normal((23, 23))
    pieces = [TEXT[:64], TEXT[64:128], TEXT[128:150]]
    losses = [model.loss(p[None], labels=p[None], rng=0) * (len(p) - 1) for p in pieces]
    result = evaluate(model, TEXT[:150], 64)
    assert result.tokens == 63 + 63 + 21
    assert result.loss == pytest.approx(sum(losses) / result.tokens)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2))
    with pytest.raises(ValueError, match="tokens"):
        evaluate(model, TEXT[:1], 64)


@pytest.mark.parametrize("stride", [None, 3])
def test_texts_are_evaluated_one_by_one(stride):
    model = local_model(rc.ReformerModelWithLMHead)
    ids = random_ids(51)
    texts = [ids[:30], ids[30:31], ids[31:], ids[:0]]
    found = evaluate(model, texts, 16, stride=stride)
    alone = [evaluate(model, text, 16, stride=stride) for text in (texts[0], texts[2])]
    assert found.tokens == sum(part.tokens for part in alone)
    assert found.loss == pytest.approx(sum(part.loss * part.tokens for part in alone)
                                       / found.tokens)  # fmt: skip
    trainer = make(steps=1, held_out=texts, evaluate_every=1)
    assert next(iter(trainer)).held_out == trainer.evaluate().bits_per_byte
    assert trainer.evaluate().tokens == 48
    assert evaluate(model, ids[:40].tolist(), 42) == evaluate(model, ids[:40], 42)
    for wrong in ([ids[:1], ids[:0]], ids[:1]):
        with pytest.raises(
            ValueError, match=r"^tokens and length must be at least 2, got 1 tokens"
        ):
            evaluate(model, wrong, 16)
        with pytest.raises(ValueError, match=r"^held_out must have a text of at least 2 tokens"):
            make(held_out=wrong)
    with pytest.raises(TypeError, match=r"^held_out\[1\] must be a 1-d array of integers"):
        make(held_out=[TEXT, TEXT.astype(float)])


def test_peak_memory_is_in_bytes():
    peak = peak_memory()
    assert peak is None or 10e6 < peak < 1e12


# ---- numbers that are not finite ----


class Broken(Bigrams):
    def __init__(self, at, loss=None, bad=None):
        super().__init__()
        self.at, self.bad_loss, self.bad, self.calls = at, loss, bad, 0

    def loss_and_gradients(self, input_ids, **options):
        loss, grads = super().loss_and_gradients(input_ids, **options)
        self.calls += 1
        if self.calls == self.at:
            loss = loss if self.bad_loss is None else self.bad_loss
            if self.bad:
                grads[self.bad].flat[0] = math.nan
        return loss, grads


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Broken(3, bad="table"), "step 3: the gradient of 'table'"),
        (Broken(3, loss=math.nan), "step 3: the loss is nan"),
        (Broken(3, loss=math.inf, bad="table"), "step 3: the gradient of 'table'"),
    ],
)
def test_a_nan_names_the_step_and_the_parameter_and_is_never_learned(model, words):
    trainer = make(model)
    reports = iter(trainer)
    next(reports), next(reports)
    before = model.parameters["table"].copy()
    with pytest.raises(FloatingPointError, match=words):
        next(reports)
    assert np.array_equal(model.parameters["table"], before)
    assert trainer.step == 2


def test_a_parameter_that_is_not_finite_is_named():
    model = Bigrams()
    model.parameters["table"][3, 3] = math.nan
    with pytest.raises(FloatingPointError, match=r"step 1: .* parameter 'table' is not finite"):
        list(make(model))


def test_what_ends_in_a_nan_leaves_the_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match="step 6: the gradient of 'table'"):
        run(make(Broken(6, bad="table"), folder=tmp_path, save_every=2))
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 5
    assert run(resumed) == run(make())[5:]


def test_an_update_that_overflows_is_named_and_never_saved(tmp_path):
    trainer = make(folder=tmp_path, save_every=1)
    reports = iter(trainer)
    next(reports), next(reports)
    trainer.optimizer.lr = 1e300
    trainer.model.parameters["unused"][...] = 1e308  # its decay alone overflows
    with pytest.raises(FloatingPointError, match="step 3: the parameter 'unused' is not finite"):
        next(reports)
    with pytest.raises(FloatingPointError, match=r"^save: the parameter 'unused' is not finite"):
        trainer.save(tmp_path)
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 2


def test_an_evaluation_that_fails_leaves_the_step_that_was_taken(tmp_path):
    def fails(model, *, seed):
        raise KeyError("labels")

    with pytest.raises(KeyError):
        run(make(folder=tmp_path, held_out=fails, evaluate_every=3))
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 3


def test_models_that_are_kept_are_the_last_of_the_run(tmp_path):
    model = rc.ReformerModelWithLMHead(small_config(vocab_size=258), rng=0)
    for step in (3, 50, 60):  # of an earlier run
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    data = Windows(TEXT, 32)
    list(Trainer(model, data, steps=6, folder=tmp_path, save_every=2, keep=2))
    assert [path.name for path in kept_models(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    assert (tmp_path / "checkpoint-60").is_dir()


# ---- the log ----


def test_the_log_has_numpys_numbers_and_leaves_out_what_json_has_not(tmp_path):
    def held_out(model, *, seed):
        return {"accuracy": np.float32(0.5), "right": np.int64(3), "loss": np.nan}

    run(make(steps=1, held_out=held_out, evaluate_every=1, log=tmp_path / "log"))
    assert read_log(tmp_path / "log")[0]["held_out"] == {"accuracy": 0.5, "right": 3}


def test_the_log_has_a_line_for_each_step_of_a_run_that_was_resumed(tmp_path):
    log, folder = tmp_path / "run.jsonl", tmp_path / "model"
    options = {"log": log, "held_out": TEXT[:200], "evaluate_every": 4}
    first = make(steps=7, folder=folder, save_every=5, **options)
    reports = iter(first)
    for _ in range(6):
        next(reports)
    with open(log, "a") as file:  # killed in the middle of a line
        file.write('{"step": 7, "lo')
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4, 5, 6]
    second = make(folder=folder, **options)
    second.resume(folder)
    assert second.step == 5
    run(second)
    lines = read_log(log)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [(line["step"], line["loss"]) for line in lines] == run(make())
    assert [line["step"] for line in lines if "held_out" in line] == [4, 8, 12]
    assert {"bits_per_byte", "learning_rate", "gradient_norm"} <= lines[0].keys()


def test_the_log_of_another_run_is_not_written_over(tmp_path):
    log = tmp_path / "run.jsonl"
    run(make(steps=2, log=log))
    with pytest.raises(FileExistsError, match=r"log: .*has the steps of another run"):
        run(make(log=log))
    assert len(read_log(log)) == 2
    (tmp_path / "text").write_text("no log\n")
    with pytest.raises(ValueError, match="log: "):
        read_log(tmp_path / "text")


@pytest.mark.parametrize(
    ("text", "words"), [("no log", "JSON lines"), ("[1]", "object"), ('{"a": 1}', "without a step")]
)
def test_a_run_does_not_resume_into_what_is_no_log(tmp_path, text, words):
    run(make(steps=2, folder=tmp_path))
    log = tmp_path / "text"
    log.write_text(text + "\n")
    trainer = make(log=log)
    trainer.resume(tmp_path)
    with pytest.raises(ValueError, match=f"^log: .*text' .*{words}"):
        run(trainer)
    assert log.read_text() == text + "\n"


def test_a_damaged_state_is_named(tmp_path):
    run(make(steps=1, folder=tmp_path))
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"^resume: '.*trainer_state.json' is damaged"):
        make().resume(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_ends_the_run_and_saves_it(tmp_path):
    with pytest.raises(OSError, match="No space"):
        run(make(log="/dev/full", folder=tmp_path))
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 1


def test_the_picture_of_a_log_shows_its_steps_and_held_out_points(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    log = tmp_path / "run.jsonl"
    run(make(log=log, held_out=TEXT[:200], evaluate_every=5))
    for source in (log, read_log(log)):
        ax = rc.plot.training(source)
        steps, mean, held_out = ax.get_lines()
        assert steps.get_xdata().tolist() == mean.get_xdata().tolist() == list(range(1, 13))
        assert held_out.get_xdata().tolist() == [5, 10, 12]
        assert rc.plot.training(source, ax) is ax
        pyplot.close(ax.figure)
    with pytest.raises(ValueError, match="log"):
        rc.plot.training([])


# ---- checkpoints ----


class Lengths:
    """Rows of several lengths, which alone would choose several numbers of buckets."""

    def batch(self, step):
        ids = random_ids((1, (9, 40, 20, 36)[step % 4]), step)
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", [rc.ReformerModelWithLMHead, rc.ReformerEncoderDecoder])
def test_a_resumed_run_hashes_into_as_many_buckets(tmp_path, kind):
    pytest.importorskip("safetensors")

    def trainer(steps, **changes):
        fields = {"num_buckets": None, "hidden_dropout_prob": 0.1} | changes
        model = kind(small_config(**fields), rng=0)
        return Trainer(model, Lengths(), AdamW(model.parameters, lr=1e-2), steps=steps)

    whole, first, second = trainer(7), trainer(1), trainer(7)
    losses = run(whole)
    run(first)
    first.save(tmp_path)
    second.resume(tmp_path)
    assert [side.config.num_buckets for side in second.model.sides.values()] == [4] * len(
        second.model.sides
    )
    assert run(second) == losses[1:]
    with pytest.raises(ValueError, match=r"^resume: .*num_buckets is 8 here and 4 in '"):
        trainer(7, num_buckets=8).resume(tmp_path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_continues_bit_for_bit(tmp_path, optimizer):
    straight = make(optimizer=optimizer)
    expected = run(straight)
    first = make(steps=5, optimizer=optimizer)
    begun = run(first)
    first.save(tmp_path)
    second = make(optimizer=optimizer)
    second.resume(tmp_path)
    assert begun + run(second) == expected
    for name, array in straight.model.parameters.items():
        assert array.tobytes() == second.model.parameters[name].tobytes()


def test_a_folder_is_saved_to_every_so_often_and_at_the_end(tmp_path):
    seen = []
    for _ in make(steps=7, folder=tmp_path, save_every=3):
        state = tmp_path / "trainer_state.json"
        seen.append(json.loads(state.read_text())["step"] if state.exists() else None)
    assert seen == [None, None, 3, 3, 3, 6, 7]
    assert sorted(os.listdir(tmp_path)) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
    ]


def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path):
    trainer = make(steps=2)
    list(trainer)
    trainer.save(tmp_path)
    other = make(seed=6)
    with pytest.raises(ValueError, match="seed is 6 here and 5"):
        other.resume(tmp_path)
    assert other.step == 0
    assert not other.model.parameters["table"].any()
    with pytest.raises(ValueError, match="optimizer is Adafactor here and AdamW"):
        make(optimizer="adafactor").resume(tmp_path)
    with pytest.raises(ValueError, match=r"max_grad_norm is 2\.0 here and 1\.0"):
        make(max_grad_norm=2.0).resume(tmp_path)
    faster = make()
    faster.optimizer.betas = (0.5, 0.5)
    with pytest.raises(ValueError, match=r"betas is \[0\.5, 0\.5\] here and \[0\.9, 0\.999\]"):
        faster.resume(tmp_path)
    larger = Bigrams()
    larger.parameters["table"] = np.zeros((24, 24))
    with pytest.raises(ValueError, match=r"'table' is float64 \(24, 24\) here"):
        make(larger).resume(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
        make().resume(tmp_path / "nowhere")


def test_all_that_differs_is_named_at_once(tmp_path):
    first = make(steps=2)
    list(first)
    first.save(tmp_path)
    model = Bigrams()
    data = Windows(TEXT[:-1], 32, batch=2, seed=5)
    optimizer = AdamW(model.parameters, lr=0.2, betas=(0.8, 0.999))
    other = Trainer(model, data, optimizer, seed=6, accumulate=2, max_grad_norm=math.inf)
    with pytest.raises(ValueError, match=r"^resume: ") as caught:
        other.resume(tmp_path)
    *found, last = str(caught.value).removeprefix("resume: ").split("; ")
    last, where = last.split(" in ", 1)
    assert where == repr(str(tmp_path))
    found = dict(part.split(" is ", 1) for part in [*found, last])
    assert int(found.pop("data.checksum").split(" here and ")[0]) == data.describe()["checksum"]
    assert found == {
        "seed": "6 here and 5",
        "accumulate": "2 here and 1",
        "schedule": "None here and {'kind': 'cosine', 'steps': 12, 'warmup': 3, 'floor': 0.0}",
        "lr": "0.2 here and 0.1",
        "betas": "[0.8, 0.999] here and [0.9, 0.999]",
        "max_grad_norm": "None here and 1.0",
        "data.tokens": "3999 here and 4000",
        "data.length": "32 here and 64",
    }
    assert other.step == 0
    assert not model.parameters["table"].any()
    # evaluation, saving and the last step may change
    again = make(steps=20, held_out=TEXT[:100], evaluate_every=3, save_every=1,
                 folder=tmp_path / "other", log=tmp_path / "log")  # fmt: skip
    again.resume(tmp_path)
    assert run(again)[:10] == run(make())[2:]


def own(rate):
    return lambda step: rate**step


@pytest.mark.parametrize(
    ("saved", "given", "words"),
    [
        (schedules.cosine(12), schedules.cosine(13), "schedule.steps is 13 here and 12"),
        (schedules.cosine(12), schedules.linear(12), "schedule.kind is linear here and cosine"),
        (schedules.linear(12, warmup=1, floor=0.1), schedules.linear(12, warmup=2, floor=0.2),
         "schedule.warmup is 2 here and 1; schedule.floor is 0.2 here and 0.1"),
        (schedules.rsqrt(warmup=3), schedules.rsqrt(warmup=4), "schedule.warmup is 4 here and 3"),
        (schedules.constant(), None, "schedule is None here and {'kind': 'constant', 'warmup': 0}"),
        (own(0.5), own(0.75), "schedule.factor of step 2 is 0.5625 here and 0.25; "
                              "schedule.factor of step 3 is 0.421875 here and 0.125"),
        (None, own(0.75), "schedule is {'factor of step 0': 1.0, 'factor of step 2': 0.5625, "
                         "'factor of step 3': 0.421875} here and None"),
        (schedules.constant(), own(0.75), "schedule.kind is None here and constant; "
                                         "schedule.warmup is None here and 0"),
    ],
)  # fmt: skip
def test_another_schedule_is_refused(saved, given, words, tmp_path):
    first = make(steps=4, schedule=saved)
    list(first)
    first.save(tmp_path)
    make(schedule=saved, steps=100).resume(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"resume: {words} in {str(tmp_path)!r}")):
        make(schedule=given).resume(tmp_path)


def test_what_differs_may_be_allowed_by_name(tmp_path):
    first = make(steps=4, schedule=schedules.cosine(4))
    list(first)
    first.save(tmp_path)
    longer = make(schedule=schedules.cosine(8), accumulate=2)
    with pytest.raises(ValueError, match=r"^resume: accumulate is 2 here and 1 in "):
        longer.resume(tmp_path, allow=["schedule.steps"])
    said = longer.resume(tmp_path, allow=["schedule.steps", "accumulate"])
    assert sorted(said) == ["accumulate is 2 here and 1", "schedule.steps is 8 here and 4"]
    assert longer.step == 4
    assert next(iter(longer)).learning_rate == pytest.approx(0.1 * 0.5)


def test_texts_and_windows_of_them_are_told_apart(tmp_path):
    model, parts = Bigrams(), [TEXT[:64], TEXT[64:128]]
    first = Trainer(model, Windows(parts, 64), steps=1)
    first.save(tmp_path)
    with pytest.raises(ValueError, match=r"data\.kind is Sequences here and Windows"):
        Trainer(model, Sequences(parts), steps=1).resume(tmp_path)


def test_a_checkpoint_that_knows_less_is_resumed(tmp_path):
    first = make(steps=5)
    begun = run(first)
    first.save(tmp_path)
    file = tmp_path / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["schedule"], state["data"]["kind"], state["settings"]
    file.write_text(json.dumps(state))
    second = make()
    second.resume(tmp_path)
    assert begun + run(second) == run(make())


def test_a_model_of_another_configuration_is_refused(tmp_path):
    first = make(small_reformer(), steps=2)
    list(first)
    first.save(tmp_path)
    other = small_reformer()
    other.config.num_hashes, other.config.hidden_act = 4, "gelu"
    with pytest.raises(ValueError, match=r"^resume: .*num_hashes is 4 here and 1") as caught:
        make(other).resume(tmp_path)
    assert "hidden_act is gelu here and relu" in str(caught.value)
    same = small_reformer()
    same.config.memory_budget = 10**6
    make(same).resume(tmp_path)
    # the saved model has its chosen number of buckets
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_buckets": 8}))
    later = small_reformer()
    later.config.num_buckets = None
    make(later).resume(tmp_path)
    assert later.config.num_buckets == 8
    later.config.num_buckets = 4
    with pytest.raises(ValueError, match="resume: num_buckets is 4 here and 8"):
        make(later).resume(tmp_path)


def test_both_sides_of_an_encoder_decoder_are_compared(tmp_path):
    pytest.importorskip("safetensors")
    kind = rc.ReformerEncoderDecoder
    data = Batches(arguments(kind, ROWS[0]))
    config = small_config(is_decoder=False, hash_seed=0)
    Trainer(kind(config, rng=0), data, steps=1).save(tmp_path)
    Trainer(kind(config, rng=1), data).resume(tmp_path)
    other = kind(config, decoder=small_config(hash_seed=0, num_hashes=4), rng=0)
    with pytest.raises(ValueError, match=r"resume: decoder\.num_hashes is 4 here and 2"):
        Trainer(other, data).resume(tmp_path)


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = make(steps=2)
    list(trainer)
    trainer.save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    trainer.step = 3
    for step in (
        "reformer_c.training.state.write_safetensors",
        "reformer_c.training.state.write_atomically",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(step, full_disk)
            with pytest.raises(OSError, match="No space"):
                trainer.save(tmp_path)
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_save_that_was_killed_among_its_moves_is_finished(tmp_path, monkeypatch):
    trainer = make(steps=4)
    reports = iter(trainer)
    next(reports)
    trainer.save(tmp_path)
    next(reports)
    replace, moved = os.replace, []

    def killed_after_two_moves(source, target):
        if os.path.dirname(source).endswith(".saved"):
            moved.append(source)
            if len(moved) > 2:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_after_two_moves)
        with pytest.raises(KeyboardInterrupt):
            trainer.save(tmp_path)
    assert (tmp_path / ".saved").is_dir()
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 2
    assert np.array_equal(resumed.model.parameters["table"], trainer.model.parameters["table"])
    assert not (tmp_path / ".saved").exists()


def test_a_process_that_opens_the_folder_may_finish_a_save(tmp_path, monkeypatch):
    trainer = make(steps=4)
    next(iter(trainer))
    replace = os.replace

    def twice(source, target):
        replace(source, target)
        if os.path.dirname(source).endswith(".saved"):
            replace(source, target)

    monkeypatch.setattr(os, "replace", twice)
    for _ in range(2):
        trainer.save(tmp_path)
    assert not (tmp_path / ".saved").exists()
    resumed = make()
    resumed.resume(tmp_path)
    assert resumed.step == 1


def test_a_folder_without_the_library_that_writes_it_is_refused_before_training(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"^folder: saving a model needs the safetensors library"):
        make(folder=tmp_path / "model")
    assert os.listdir(tmp_path) == []
    assert len(run(make(steps=2))) == 2


def test_an_unwritable_folder_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"folder: .*file.* cannot be saved to"):
            make(folder=folder)
    with pytest.raises(OSError, match="file"):
        make(log=tmp_path / "file" / "log")


def test_a_disk_without_room_for_a_checkpoint_is_said_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="a checkpoint takes 12,752 bytes, and the disk has 1,000"):
        make(folder=tmp_path)
    assert os.listdir(tmp_path) == []


LIMITED = """
    import resource, sys
    sys.path[:0] = {tests!r}
    from test_train import make
    {before}
    trainer = make(folder={folder!r}, save_every=2, steps=6)
    for report in trainer:
        if report.step == 3:
            {after}
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    def run_limited(before="pass", after="pass"):
        script = textwrap.dedent(LIMITED).format(
            tests=TESTS, folder=str(tmp_path), before=before, after=after
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        return result.stderr.strip().split("\n")[-1]

    assert "cannot be saved to: " in run_limited(before=LIMIT)
    assert os.listdir(tmp_path) == []
    said = run_limited(after=LIMIT)
    assert said.startswith("OSError: step 4: the checkpoint could not be written")
    assert said.endswith(f"that of step 2 is in {str(tmp_path)!r}")
    resumed = make()
    resumed.resume(tmp_path)
    assert run(resumed) == run(make())[2:]


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"data": TEXT}, TypeError, "data"),
        ({"schedule": 0.5}, TypeError, "schedule"),
        ({"steps": -1}, ValueError, "steps"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
        ({"seed": -1}, ValueError, "seed"),
        ({"evaluate_every": 5}, ValueError, "held_out"),
        ({"save_every": 5}, ValueError, "folder"),
        ({"model": 3}, TypeError, "model must .* got int"),
        ({"optimizer": 3}, TypeError, "optimizer must .* got int"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number"),
        ({"held_out_bytes_per_token": 2.0}, ValueError, "held_out must be given with"),
        ({"stpes": 3}, TypeError, "stpes: Trainer has no such argument; did you mean steps?"),
        *(
            ({"held_out": TEXT, "held_out_bytes_per_token": x}, error, "bytes_per_token must")
            for x, error in ((0, ValueError), (-3.0, ValueError), (math.nan, ValueError),
                             (math.inf, ValueError), ("3", TypeError))
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(options, error, word):
    with pytest.raises(error, match=word):
        Trainer(**({"model": Bigrams(), "data": Windows(TEXT, 64)} | options))


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"bytes_per_token": 0}, ValueError, "bytes_per_token must be a finite number > 0, got 0"),
        ({"bytes_per_token": -1.0}, ValueError, "bytes_per_token"),
        ({"bytes_per_token": math.inf}, ValueError, "bytes_per_token"),
        ({"length": 10.5}, TypeError, "length"),
        ({"stride": 2.5}, TypeError, "stride"),
        ({"strid": 2}, TypeError, "did you mean stride?"),
    ],
)
def test_bad_arguments_of_evaluate_are_named(options, error, word):
    with pytest.raises(error, match=word):
        evaluate(Bigrams(), TEXT, **({"length": 64} | options))


# ---- interruption ----


@pytest.mark.parametrize(
    ("number", "leaves_with"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signals_finish_the_step_and_save(tmp_path, number, leaves_with):
    class Interrupted(Bigrams):
        def loss_and_gradients(self, input_ids, **options):
            if trainer.step == 2:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            return super().loss_and_gradients(input_ids, **options)

    before = signal.getsignal(number)
    trainer = make(Interrupted(), folder=tmp_path)
    seen = []
    with pytest.raises(leaves_with) as leaving:
        seen.extend(report.step for report in trainer)
    assert seen == [1, 2, 3]
    if leaves_with is SystemExit:
        assert leaving.value.code == 143
    assert signal.getsignal(number) is before
    resumed = make()
    resumed.resume(tmp_path)
    assert run(resumed) == run(make())[3:]


def test_a_second_ctrl_c_does_not_wait():
    class Stuck(Bigrams):
        def loss_and_gradients(self, input_ids, **options):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            pytest.fail("the step went on")

    trainer = make(Stuck())
    with pytest.raises(KeyboardInterrupt):
        next(iter(trainer))
    assert trainer.step == 0


def test_leaving_the_loop_restores_the_handlers():
    before = signal.getsignal(signal.SIGINT)
    for _ in make():
        break
    assert signal.getsignal(signal.SIGINT) is before


KILLED_OFTEN = """
    import os, signal, sys, time
    import numpy as np
    sys.path[:0] = {tests!r}
    from test_train import has_checkpoint, make
    from reformer_c.files.checkpoint import read_safetensors
    from pathlib import Path

    folder, kills = Path({folder!r}), {kills}
    expected = make(steps=None, schedule=None, optimizer={optimizer!r})
    reports, tables = iter(expected), [expected.model.parameters["table"].copy()]
    draw, last, step_time = np.random.default_rng(0), 0, None
    for delay in draw.uniform(0.0, 4.0, kills):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            trainer = make(
                steps=None, schedule=None, folder=folder, save_every=1, optimizer={optimizer!r}
            )
            if has_checkpoint(folder):
                trainer.resume(folder)
            os.write(theirs, b".")
            for _ in trainer:
                pass
        os.read(ours, 1)
        begin = time.perf_counter()
        while step_time is None and not has_checkpoint(folder):
            time.sleep(0.001)
        step_time = step_time or time.perf_counter() - begin
        time.sleep(delay * step_time)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours), os.close(theirs)
        if not has_checkpoint(folder):
            continue
        resumed = make(steps=None, schedule=None, optimizer={optimizer!r})
        resumed.resume(folder)
        assert resumed.step >= last, (resumed.step, last)
        last = resumed.step
        while len(tables) <= last:
            next(reports)
            tables.append(expected.model.parameters["table"].copy())
        assert np.array_equal(resumed.model.parameters["table"], tables[last])
        assert int(read_safetensors(folder / "optimizer.safetensors")["steps"]) == last
    print(last)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are quick to start")
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_killed_at_any_instant_the_last_checkpoint_is_good(tmp_path, optimizer):
    script = textwrap.dedent(KILLED_OFTEN).format(
        tests=TESTS, folder=str(tmp_path), kills=30, optimizer=optimizer
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # it made progress between kills
    assert int(result.stdout) > 3


def test_a_folder_without_a_checkpoint_is_told(tmp_path):
    assert not has_checkpoint(tmp_path)
    finish_checkpoint(tmp_path)
    assert os.listdir(tmp_path) == []


# ---- progress ----


class Terminal:
    def __init__(self, tty):
        self.text, self.tty = "", tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.tty


def test_progress_is_lines_where_there_is_no_terminal():
    screen = Terminal(False)
    assert [report.step for report in show_progress(make(steps=4), screen)] == [1, 2, 3, 4]
    assert screen.text.count("\n") == 1
    assert screen.text.startswith("step 4/4: ")
    assert "bits/byte" in screen.text


def test_progress_is_a_bar_on_a_terminal():
    pytest.importorskip("tqdm")
    screen = Terminal(True)
    assert len(list(show_progress(make(steps=4), screen))) == 4
    assert "4/4" in screen.text
    assert "bits/byte" in screen.text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_bar_is_drawn_where_the_terminal_says_that_it_has_no_size():
    pytest.importorskip("tqdm")
    ours, theirs = os.openpty()
    assert tuple(os.get_terminal_size(theirs)) == (0, 0)
    with os.fdopen(theirs, "w") as screen:
        assert len(list(show_progress(make(steps=2), screen))) == 2
        screen.flush()
        shown = b""
        while b"2/2" not in shown and select.select([ours], [], [], 1.0)[0]:
            shown += os.read(ours, 100_000)
    os.close(ours)
    assert b"2/2" in shown


# ---- the real model ----


def small_reformer(dropout=0.1):
    config = rc.ReformerConfig(
        vocab_size=23,
        hidden_size=32,
        feed_forward_size=32,
        num_attention_heads=2,
        attention_head_size=16,
        attn_layers=["local", "lsh"],
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        axial_pos_shape=[8, 8],
        axial_pos_embds_dim=[8, 24],
        axial_norm_std=0.02,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        is_decoder=True,
    )
    return rc.ReformerModelWithLMHead(config, rng=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_reformer_with_dropout_continues_bit_for_bit(tmp_path, optimizer):
    straight = make(small_reformer(), optimizer=optimizer)
    expected = run(straight)
    first = make(small_reformer(), steps=7, optimizer=optimizer)
    begun = run(first)
    first.save(tmp_path)
    second = make(rc.ReformerModelWithLMHead.from_pretrained(tmp_path), optimizer=optimizer)
    second.resume(tmp_path)
    assert begun + run(second) == expected
    for name, array in straight.model.parameters.items():
        assert array.tobytes() == second.model.parameters[name].tobytes()


def test_a_reformer_learns_the_text():
    trainer = make(small_reformer(0.0), steps=60, schedule=None, seed=1)
    trainer.optimizer.lr = 1e-2
    reports = list(trainer)
    assert reports[-1].loss < 0.8 * reports[0].loss


def test_a_misspelt_attribute_is_refused_with_the_nearest():
    model = rc.ReformerModelWithLMHead(small_config(), rng=0)
    windows = Windows(np.arange(100) % 13, 8)
    trainer = Trainer(model, windows, steps=1)
    trainer.accumulate = 2
    trainer.optimizer.weight_decay = 0.0
    for owner, wrong, right in (
        (trainer, "acumulate", "accumulate"),
        (trainer, "optimiser", "optimizer"),
        (AdamW(model.parameters), "weigth_decay", "weight_decay"),
        (Adafactor(model.parameters), "clip_treshold", "clip_threshold"),
        (windows, "lenght", "length"),
        (Sequences(np.arange(9)), "sed", "seed"),
    ):
        with pytest.raises(AttributeError, match=rf"^{wrong}: .*did you mean {right}\?"):
            setattr(owner, wrong, 1)

    class Noted(AdamW):
        """A user's class may have any attributes."""

    Noted(model.parameters).notes = []


def test_a_schedule_is_named_as_it_is_called():
    with pytest.raises(TypeError, match=r"^warm_up: cosine has no .*did you mean warmup\?"):
        schedules.cosine(10, warm_up=3)
