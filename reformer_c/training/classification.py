"""Classification and regression of texts: records to examples, logits to predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..checks import did_you_mean
from ..models.heads import LOSSES
from ..models.sampling import softmax
from .examples import Example, Progress, batches_of, no_progress
from .metrics import accuracy, macro_f1, mean_absolute_error, micro_f1, pearson
from .records import Record, read_records

__all__ = ["PROBLEMS", "Classification", "find_labels"]

# the words of the command line, and those of a configuration
PROBLEMS = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
SINGLE, MULTI, REGRESSION = PROBLEMS.values()


def find_labels(records: Sequence[Record], column: str, problem: str) -> list[str]:
    """The names of the classes in records, sorted; as numbers if all of them are integers.

    Examples
    --------
    >>> records = [Record("a.csv:2", {"label": "10"}), Record("a.csv:3", {"label": "9"})]
    >>> find_labels(records, "label", "single_label_classification")
    ['9', '10']
    """
    names = {name for record in records for name in _names(record, column, problem)}
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _names(record: Record, column: str, problem: str) -> list[str]:
    """The names of a record's classes: texts, or integers of JSON."""
    value = record[column]
    if problem == SINGLE:
        if not _is_name(value):
            raise ValueError(
                f"{record.where}: {column} must be a text or an integer, got {value!r}"
            )
        return [str(value)]
    if isinstance(value, str):  # a cell of CSV
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, list) or not all(map(_is_name, value)):
        raise ValueError(
            f"{record.where}: {column} must be a list of texts or integers, got {value!r}"
        )
    return [str(name) for name in value]


def _is_name(value: Any) -> bool:
    return (isinstance(value, str) and value != "") or (
        isinstance(value, int) and not isinstance(value, bool)
    )


@dataclass(frozen=True)
class Classification:
    """A task: texts of records, and their labels.

    Parameters
    ----------
    tokenizer : Tokenizer
    problem : str
        A value of `PROBLEMS`.
    labels : list of str
        Names of the classes by number; for regression, of the only output.
    length : int
        Longer texts are truncated to this number of tokens.
    text_column, label_column : str
    """

    tokenizer: Any
    problem: str
    labels: list[str]
    length: int
    text_column: str = "text"
    label_column: str = "label"
    # what `read` returns, in the plural
    unit: ClassVar[str] = "examples"

    def read(self, files: Sequence[str]) -> list[Example]:
        """The examples of files, with their labels."""
        return self.examples(read_records(files))

    def encode(self, record: Record) -> np.ndarray:
        """The token ids (t,) of a record's text, at most `length`."""
        text = record.text(self.text_column)
        ids: np.ndarray = self.tokenizer.encode(text, truncation=True, max_length=self.length)
        if not len(ids):
            raise ValueError(
                f"{record.where}: {self.text_column} must have at least one token, got {text!r}"
            )
        return ids

    def is_cut(self, record: Record, ids: np.ndarray) -> bool:
        """Whether a record's text has more tokens than `ids`, what `encode` made of it."""
        if len(ids) < self.length:
            return False
        return len(self.tokenizer.encode(record.text(self.text_column))) > len(ids)

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Encode texts and labels."""
        return [
            Example(ids, {"labels": self._label(one)}, self.is_cut(one, ids))
            for one, ids in zip(records, map(self.encode, records), strict=True)
        ]

    def _label(self, record: Record) -> Any:
        """A class, zeros and ones (k,), or a number."""
        if self.problem == REGRESSION:
            return _number(record, self.label_column)
        names = _names(record, self.label_column, self.problem)
        for name in names:
            if name not in self.labels:
                known = ", ".join(self.labels[:20]) + ", ..." * (len(self.labels) > 20)
                raise ValueError(
                    f"{record.where}: {self.label_column} must be one of {known}, got {name!r}"
                    f"{did_you_mean(name, self.labels)}"
                )
        if self.problem == SINGLE:
            return self.labels.index(names[0])
        return np.isin(self.labels, names).astype(np.float32)

    def note(self, are_cut: Iterable[bool]) -> str:
        """A warning about texts that were truncated; empty if there are none."""
        cut = sum(are_cut)
        return f"{cut:,} texts of more than {self.length:,} tokens, truncated" if cut else ""

    def logits(
        self,
        model: Any,
        rows: Sequence[np.ndarray],
        *,
        seed: int,
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """The model's logits (n, k) for rows of token ids."""
        logits = np.empty((len(rows), model.config.num_labels), model.dtype)
        for index, ids in batches_of(rows, progress=progress):
            logits[index] = model(ids, rng=seed).logits
        return logits

    def evaluate(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> dict[str, float]:
        """Metrics by name.

        Returns
        -------
        dict
            "accuracy" and "f1", the mean over classes, of a single label; "accuracy", the share of
            texts whose labels are all right, and "f1", over all labels of all texts, of several;
            "mean absolute error" and "pearson" of regression; and "loss".
        """
        rows = [example.ids for example in examples]
        logits = self.logits(model, rows, seed=seed, progress=progress)
        labels = np.array([example.targets["labels"] for example in examples])
        if self.problem == REGRESSION:
            labels = labels.reshape(logits.shape)
            metrics = {
                "mean absolute error": mean_absolute_error(logits, labels),
                "pearson": pearson(logits, labels),
            }
        elif self.problem == SINGLE:
            predicted = logits.argmax(axis=1)
            metrics = {"accuracy": accuracy(predicted, labels), "f1": macro_f1(predicted, labels)}
        else:
            predicted, truth = logits > 0, labels > 0
            metrics = {"accuracy": accuracy(predicted, truth), "f1": micro_f1(predicted, truth)}
        return metrics | {"loss": LOSSES[self.problem](logits, labels)[0]}

    def predict(
        self, model: Any, records: Sequence[Record], *, seed: int = 0
    ) -> list[dict[str, Any]]:
        """For each record: "prediction", a label, a list of labels or a number; and "scores", the
        probability of each label."""
        logits = self.logits(model, [self.encode(record) for record in records], seed=seed)
        if self.problem == REGRESSION:
            return [{"prediction": float(row[0])} for row in logits]
        logits = logits.astype(np.float64)
        if self.problem == SINGLE:
            p = softmax(logits)
            found: list[Any] = [self.labels[i] for i in p.argmax(axis=1)]
        else:
            p = np.exp(-np.logaddexp(0, -logits))
            found = [[self.labels[i] for i in np.flatnonzero(row > 0)] for row in logits]
        scores = [self._scores(row) for row in p]
        return [
            {"prediction": one, "scores": score} for one, score in zip(found, scores, strict=True)
        ]

    def _scores(self, row: np.ndarray) -> Mapping[str, float]:
        return {name: round(float(p), 6) for name, p in zip(self.labels, row, strict=True)}


def _number(record: Record, column: str) -> np.float32:
    value = record[column]
    try:
        found: float = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{record.where}: {column} must be a finite number, got {value!r}")
    rounded: np.float32 = np.float32(found)
    return rounded
