"""Metrics of predictions: classes, sets of classes, numbers and answers.

Shares are in [0, 1].
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = ["accuracy", "answer_f1", "describe_metrics", "exact_match", "macro_f1",
           "mean_absolute_error", "micro_f1", "pearson"]  # fmt: skip


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows that are predicted; a row of several labels counts if all are right.

    Parameters
    ----------
    predicted, labels : ndarray (n,) or (n, k)

    Examples
    --------
    >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.75
    """
    right = predicted == labels
    return float(np.mean(right.reshape(len(right), -1).all(axis=1)))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of the classes that are predicted or labels.

    Parameters
    ----------
    predicted, labels : ndarray (n,)
        Integers.

    Examples
    --------
    >>> macro_f1(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
    0.7333333333333334
    """
    classes = np.union1d(predicted, labels)
    return float(np.mean([micro_f1(predicted == one, labels == one) for one in classes]))


def micro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """2 tp / (2 tp + fp + fn) over all elements; 1 if there is nothing to find, and nothing found.

    Parameters
    ----------
    predicted, labels : ndarray
        Booleans of one shape.

    Examples
    --------
    >>> micro_f1(np.array([[True, False], [True, True]]), np.array([[True, True], [False, True]]))
    0.6666666666666666
    """
    found = np.count_nonzero(predicted & labels)
    total = np.count_nonzero(predicted) + np.count_nonzero(labels)
    return float(2 * found / total) if total else 1.0


def mean_absolute_error(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of |x - y|.

    Examples
    --------
    >>> mean_absolute_error(np.array([1.0, 2.0]), np.array([1.5, 2.5]))
    0.5
    """
    return float(np.mean(np.abs(predicted - labels)))


def pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation of two arrays; 0 if one of them is constant.

    Examples
    --------
    >>> round(pearson(np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 40.0])), 6)
    1.0
    """
    x, y = (np.ravel(values).astype(np.float64) for values in (predicted, labels))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else 0.0


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers, else 0, both normalized as SQuAD does.

    An empty prediction is right if there are no answers.

    Examples
    --------
    >>> exact_match("The Nile.", ["a river", "nile"])
    1.0
    """
    return _best(lambda one, other: float(one == other), predicted, answers)


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """F1 of the words of a prediction, for the best of the answers (Rajpurkar et al. 2016).

    If there are no answers, it is 1 for an empty prediction and 0 for another.

    Examples
    --------
    >>> answer_f1("the river Nile", ["Nile"])
    0.6666666666666666
    """
    return _best(_f1_of_words, predicted, answers)


def _best(measure: Callable[[str, str], float], predicted: str, answers: Sequence[str]) -> float:
    return max(measure(_normalize(predicted), _normalize(answer)) for answer in answers or [""])


def _normalize(answer: str) -> str:
    """Lower case, without punctuation and articles, single spaces: SQuAD's evaluation script."""
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def _f1_of_words(one: str, other: str) -> float:
    words, others = one.split(), other.split()
    if not words or not others:
        return float(words == others)
    shared = sum((Counter(words) & Counter(others)).values())
    return 2 * shared / (len(words) + len(others))


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics in one line.

    Examples
    --------
    >>> describe_metrics({"accuracy": 0.75, "loss": 0.51234})
    'accuracy 0.7500, loss 0.5123'
    """
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
