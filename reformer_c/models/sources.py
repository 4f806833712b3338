"""Where generation gets its logits from: `LogitsSource`, and sources that need no cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

__all__ = ["Grouped", "LogitsSource", "UncachedSource"]


class LogitsSource(Protocol):
    """Holds n texts and gives the logits of each one's next token."""

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Set the texts; returns logits (n, v) of the next tokens."""
        ...

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Append a token to each of the texts `rows` (n,); returns logits (n, v) of the next."""
        ...

    def reorder(self, parents: np.ndarray) -> None:
        """Replace text i by a copy of text parents[i]; the number of texts may change."""


class UncachedSource:
    """A `LogitsSource` that computes logits (n, v) by a function of ids (n, t) of whole texts and
    of the indices (n,) of their prompts.

    Texts of equal length are computed in one call.
    """

    def __init__(self, next_logits: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._next_logits = next_logits
        self._texts: list[np.ndarray] = []
        self._prompt_index = np.zeros(0, np.int64)

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        self._texts, self._prompt_index = list(texts), np.arange(len(texts))
        return self._logits(np.arange(len(texts)))

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        for row, token in zip(rows, tokens, strict=True):
            self._texts[row] = np.append(self._texts[row], token)
        return self._logits(rows)

    def reorder(self, parents: np.ndarray) -> None:
        self._texts = [self._texts[parent] for parent in parents]
        self._prompt_index = self._prompt_index[parents]

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        def of_length(_: int, at: np.ndarray) -> np.ndarray:
            ids = np.stack([self._texts[row] for row in rows[at]])
            return self._next_logits(ids, self._prompt_index[rows[at]])

        return _by_group(np.array([len(self._texts[row]) for row in rows]), of_length)


class Grouped:
    """A `LogitsSource` composed of several, one per group of texts.

    Parameters
    ----------
    groups : ndarray of int, (n,)
        The group of each initial text.
    sources : dict of int to LogitsSource
        By group.
    """

    def __init__(self, groups: np.ndarray, sources: dict[int, LogitsSource]) -> None:
        self._groups, self._sources = groups, sources

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        return _by_group(
            self._groups, lambda group, at: self._sources[group].start([texts[i] for i in at])
        )

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        numbers = self._numbers[rows]
        return _by_group(
            self._groups[rows],
            lambda group, at: self._sources[group].step(numbers[at], tokens[at]),
        )

    def reorder(self, parents: np.ndarray) -> None:
        numbers, self._groups = self._numbers[parents], self._groups[parents]
        for group, source in self._sources.items():
            source.reorder(numbers[self._groups == group])

    @property
    def _numbers(self) -> np.ndarray:
        """The index of each text in the source of its group."""
        numbers = np.empty(len(self._groups), np.int64)
        for group in self._sources:
            own = self._groups == group
            numbers[own] = np.arange(own.sum())
        return numbers


def _by_group(groups: np.ndarray, logits_of: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Logits (n, v), from logits_of(group, indices of its texts) for each of the `groups` (n,)."""
    kinds = np.unique(groups).tolist()
    places = [np.flatnonzero(groups == group) for group in kinds]
    logits = [logits_of(group, at) for group, at in zip(kinds, places, strict=True)]
    return np.concatenate(logits)[np.argsort(np.concatenate(places))]
