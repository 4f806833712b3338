"""Extractive question answering: contexts to windows, answers to positions in them, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..models.heads import cross_entropy
from ..text.byte_tokenizer import ByteTokenizer
from .examples import Example, Progress, batches_of, no_progress
from .metrics import answer_f1, exact_match
from .records import Record, read_records

__all__ = ["Question", "QuestionAnswering"]


class Tokens(NamedTuple):
    """Token ids (n,) of a text, and for each the part of the text that it belongs to: the indices
    of its first character, and of the character after its last."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def part(self, places: slice) -> Tokens:
        return Tokens(self.ids[places], self.starts[places], self.ends[places])


class Window(NamedTuple):
    """A row: the ids of the question and of a part of the context, which starts after `first`
    tokens; and the positions of the answer in the row, or 0 if it is in another window."""

    ids: np.ndarray
    first: int
    context: Tokens
    start_position: int
    end_position: int


@dataclass(frozen=True)
class Question:
    """A question: the windows of its context, and the texts that answer it; none if they are not
    known, or if the context does not have the answer."""

    context: str
    windows: list[Window]
    answers: list[str]


@dataclass(frozen=True)
class QuestionAnswering:
    """A task: the columns "question", "context" and "answers" of records.

    "answers" is in the form of SQuAD (`{"text": [...], "answer_start": [...]}`, or a list of
    `{"text": ..., "answer_start": ...}`), a text or a list of them, of which the first occurrence
    in the context counts; or there are the columns "answer" and, optionally, "answer_start". An
    empty list or `is_impossible`, as in SQuAD 2, says that the context has no answer.

    Parameters
    ----------
    tokenizer : Tokenizer
        Without a ``sep_token``, a newline separates the question from the context.
    length : int
        Tokens of a row. A context for which it is too short is divided into windows, of which each
        overlaps the next by half.
    may_abstain : bool
        Whether to predict an empty text where "no answer" is likelier than every part of the
        context: for models that have learned from questions without an answer.
    """

    tokenizer: Any
    length: int
    may_abstain: bool = False
    # what `read` returns, in the plural
    unit: ClassVar[str] = "questions"

    def read(self, files: Sequence[str]) -> list[Question]:
        """The questions of files, with their answers."""
        return self.questions(read_records(files))

    def questions(self, records: Iterable[Record], *, answered: bool = True) -> list[Question]:
        """Encode questions and contexts, and find the answers unless `answered` is False."""
        return [self._question(record, answered) for record in records]

    def _question(self, record: Record, answered: bool) -> Question:
        text, context = record.text("question"), record.text("context")
        separator = getattr(self.tokenizer, "sep_token_id", None)
        if separator is None:
            question = self._encode(f"{text}\n")
        else:
            question = np.append(self._encode(text), separator)
        room = self.length - len(question)
        if room < 1:
            raise ValueError(
                f"{record.where}: question must have fewer than {self.length} tokens, got "
                f"{len(question)}"
            )
        tokens = self._tokens(context)
        if not len(tokens.ids):
            raise ValueError(
                f"{record.where}: context must have at least one token, got {context!r}"
            )
        answers = _answers(record, context) if answered else []
        span = _positions(tokens, *answers[0]) if answers else None
        windows = [
            _window(question, tokens, start, room, span)
            for start in _window_starts(len(tokens.ids), room)
        ]
        return Question(context, windows, [text for text, _ in answers])

    def _encode(self, text: str) -> np.ndarray:
        ids: np.ndarray = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _tokens(self, text: str) -> Tokens:
        """The tokens of a text, of single characters for bytes and of words for subwords.

        Words are encoded one at a time, with the space before them, since libraries do not give
        the place of a token in the text.
        """
        if isinstance(self.tokenizer, ByteTokenizer):
            places = np.arange(len(text))
            places = np.repeat(places, [len(character.encode()) for character in text])
            return Tokens(self._encode(text), places, places + 1)
        words = list(re.finditer(r"\s*(\S+)", text))
        rows = [self._encode(word[0]) for word in words]
        counts = [len(row) for row in rows]
        starts, ends = (
            np.repeat(np.array(places, np.int64), counts)
            for places in ([word.start(1) for word in words], [word.end(1) for word in words])
        )
        return Tokens(np.concatenate([*rows, np.empty(0, np.int64)]), starts, ends)

    def examples(self, questions: Iterable[Question]) -> list[Example]:
        """Each window with the positions of the answer, for training."""
        return [
            Example(
                window.ids,
                {
                    "start_positions": window.start_position,
                    "end_positions": window.end_position,
                },
            )
            for question in questions
            for window in question.windows
        ]

    def evaluate(
        self,
        model: Any,
        questions: Sequence[Question],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> dict[str, float]:
        """ "exact match" and "f1", as SQuAD defines them, for the best of the answers; "loss", the
        mean over windows; and if there are questions without an answer, which an empty prediction
        matches, the first two of the others and the share that is right of these."""
        logits = self._logits(model, questions, seed, progress)
        exact, f1, losses = [], [], []
        for question, rows in zip(questions, logits, strict=True):
            predicted = self._best(question, rows)["prediction"]
            exact.append(exact_match(predicted, question.answers))
            f1.append(answer_f1(predicted, question.answers))
            for window, (starts, ends) in zip(question.windows, rows, strict=True):
                for row, place in (
                    (starts, window.start_position),
                    (ends, window.end_position),
                ):
                    losses.append(cross_entropy(row[None], np.array([place]))[0])
        metrics = {"exact match": exact, "f1": f1, "loss": losses}
        answered = [bool(question.answers) for question in questions]
        if not all(answered):
            metrics["unanswerable exact match"] = list(compress(exact, map(not_, answered)))
        if any(answered) and not all(answered):
            metrics["answerable exact match"] = list(compress(exact, answered))
            metrics["answerable f1"] = list(compress(f1, answered))
        return {name: float(np.mean(values)) for name, values in metrics.items()}

    def predict(
        self, model: Any, records: Sequence[Record], *, seed: int = 0
    ) -> list[dict[str, Any]]:
        """For each question: "prediction", a part of its context; "start" and "end", the indices of
        its first character and of the character after it; and "score", its probability among the
        parts of its window. With `may_abstain` the prediction may be empty; the score is then the
        probability that its window has no answer."""
        questions = self.questions(records, answered=False)
        logits = self._logits(model, questions, seed)
        return [self._best(one, rows) for one, rows in zip(questions, logits, strict=True)]

    def _logits(
        self,
        model: Any,
        questions: Sequence[Question],
        seed: int,
        progress: Progress = no_progress,
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each window of each question: logits (t,) of the start and of the end."""
        windows = [window.ids for question in questions for window in question.windows]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, ids in batches_of(windows, progress=progress):
            output = model(ids, rng=seed)
            rows = zip(output.start_logits, output.end_logits, strict=True)
            found.update(zip(index.tolist(), rows, strict=True))
        numbers = iter(range(len(windows)))
        return [[found[next(numbers)] for _ in question.windows] for question in questions]

    def _best(
        self, question: Question, logits: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, Any]:
        """The likeliest answer of all windows, compared with "not in this window"."""
        spans = [
            _span(*rows, window) for window, rows in zip(question.windows, logits, strict=True)
        ]
        place, best = max(enumerate(spans), key=lambda pair: pair[1].odds)
        if self.may_abstain and best.odds <= 0.0:
            best = _no_answer(*logits[place], question.windows[place])
        return {
            "prediction": question.context[best.start : best.end],
            "start": best.start,
            "end": best.end,
            "score": round(best.probability, 6),
        }


class Span(NamedTuple):
    """A part of a context; `odds` is the logarithm of its probability relative to no answer."""

    start: int
    end: int
    odds: float
    probability: float


def _span(starts: np.ndarray, ends: np.ndarray, window: Window) -> Span:
    """The likeliest part of a window's context that does not end before it starts."""
    start = starts[window.first :].astype(np.float64)
    end = ends[window.first :].astype(np.float64)
    # the best end at or after each place
    after = np.maximum.accumulate(end[::-1])[::-1]
    i = int(np.argmax(start + after))
    j = i + int(np.argmax(end[i:]))
    p = np.exp(start[i] - np.logaddexp.reduce(start) + end[j] - np.logaddexp.reduce(end))
    odds = start[i] + end[j] - float(starts[0]) - float(ends[0])
    return Span(int(window.context.starts[i]), int(window.context.ends[j]), odds, float(p))


def _no_answer(starts: np.ndarray, ends: np.ndarray, window: Window) -> Span:
    """An empty part, with the probability that both places are 0 and none in the context."""
    total = 0.0
    for logits in (starts.astype(np.float64), ends.astype(np.float64)):
        total += logits[0] - np.logaddexp.reduce(np.append(logits[window.first :], logits[0]))
    return Span(0, 0, 0.0, float(np.exp(total)))


def _window_starts(count: int, room: int) -> range:
    """The first tokens of the windows of `count` tokens, which overlap by half."""
    step = max(1, room - room // 2)
    return range(0, max(1, count - room + step), step)


def _window(
    question: np.ndarray, tokens: Tokens, start: int, room: int, span: tuple[int, int] | None
) -> Window:
    part = tokens.part(slice(start, start + room))
    positions = 0, 0
    if span is not None and start <= span[0] and span[1] < start + len(part.ids):
        shift = len(question) - start
        positions = span[0] + shift, span[1] + shift
    return Window(np.concatenate([question, part.ids]), len(question), part, *positions)


def _positions(tokens: Tokens, answer: str, start: int) -> tuple[int, int]:
    """The first and the last token of an answer."""
    first = int(np.searchsorted(tokens.ends, start, side="right"))
    last = int(np.searchsorted(tokens.starts, start + len(answer), side="left")) - 1
    return first, last


def _answers(record: Record, context: str) -> list[tuple[str, int]]:
    """The answers of a record and their places in the context; none if it says that there are
    none."""
    impossible = _impossible(record)
    if "answers" in record.values or (impossible is None and "answer" not in record.values):
        found = [*_listed(record, record["answers"])]
    else:
        found = [(record.values.get("answer"), record.values.get("answer_start"))]
        if impossible and not found[0][0]:
            found = []
    if impossible is not None and impossible == bool(found):
        expected = "none with is_impossible" if found else "at least one without is_impossible"
        raise ValueError(f"{record.where}: answers must be {expected}, got {len(found)}")
    return [_placed(record, context, text, start) for text, start in found]


def _impossible(record: Record) -> bool | None:
    """The value of SQuAD 2's column; None if the record has no such column."""
    value = record.values.get("is_impossible")
    if value is None or isinstance(value, bool):
        return value
    found = {"true": True, "1": True, "false": False, "0": False, "": None}
    if not isinstance(value, str) or value.lower() not in found:
        raise ValueError(f"{record.where}: is_impossible must be true or false, got {value!r}")
    return found[value.lower()]


def _listed(record: Record, answers: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return zip(texts, starts, strict=True)
    elif isinstance(answers, list):
        return [
            (one.get("text"), one.get("answer_start")) if isinstance(one, Mapping) else (one, None)
            for one in answers
        ]
    raise ValueError(
        f"{record.where}: answers must be texts, or 'text' and 'answer_start' of SQuAD, got "
        f"{answers!r}"
    )


def _placed(record: Record, context: str, text: Any, start: Any) -> tuple[str, int]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{record.where}: an answer must be a text, got {text!r}")
    if start is None or start == "":
        place = context.find(text)
        if place < 0:
            raise ValueError(
                f"{record.where}: an answer must be a part of the context, got {text!r}"
            )
        return text, place
    try:
        place = int(start)
    except (TypeError, ValueError):
        place = -1
    if place < 0 or context[place : place + len(text)] != text:
        raise ValueError(
            f"{record.where}: answer_start must be the place of {text!r} in the context, got "
            f"{start!r}"
        )
    return text, place
