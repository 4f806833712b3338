"""Files to token ids, and token ids to the batches that a model trains on: ``reformer_c.data``.

The data of a training step is a function of (seed, step) alone: a run resumed at step n sees
exactly the windows that it would have seen without interruption.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..checks import NamedAttributes, integer, names_keywords, positive
from .pictures import read_pictures
from .texts import read_split, read_text, read_texts, read_tokens, texts_of

__all__ = ["Sequences", "Windows", "read_pictures", "read_split", "read_text", "read_texts",
           "read_tokens"]  # fmt: skip


class Data(NamedAttributes):
    """Data as a function of (seed, step): common base of `Windows` and `Sequences`."""

    # tokens of the longest row, and rows of a batch
    length: int
    batch_size: int
    tokens: list[np.ndarray]
    order: str
    seed: int
    offset: int
    bytes_per_token: float

    def __init__(
        self,
        tokens: np.ndarray | Sequence[np.ndarray],
        *,
        order: str,
        seed: int,
        offset: int,
        bytes_per_token: float,
    ) -> None:
        self.tokens = texts_of("tokens", tokens)
        if order not in ("random", "sequential"):
            raise ValueError(f"order must be 'random' or 'sequential', got {order!r}")
        self.order = order
        self.seed = integer("seed", seed, 0)
        self.offset = integer("offset", offset, 0)
        self.bytes_per_token = positive("bytes_per_token", bytes_per_token)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({sum(map(len, self.tokens))} tokens, length={self.length}, "
            f"batch={self.batch_size}, order={self.order!r}, seed={self.seed})"
        )

    def describe(self) -> dict[str, int | str]:
        """What identifies the stream of windows, which must be the same when a run is resumed."""
        return {
            "kind": type(self).__name__,
            "tokens": sum(map(len, self.tokens)),
            "checksum": self._checksum,
            "dtype": ", ".join(sorted({str(part.dtype) for part in self.tokens})),
            "length": self.length,
            "batch": self.batch_size,
            "order": self.order,
            "seed": self.seed,
            "offset": self.offset,
        }

    def _at_random_positions(self, ids: np.ndarray, step: int) -> np.ndarray | dict[str, Any]:
        """ids (b, t) of a step; with an offset, the arguments of a model whose rows begin there."""
        if not self.offset:
            return ids
        # four words of entropy: the streams that choose the rows have fewer
        rng = np.random.default_rng((self.seed, step, 0, 1))
        first = rng.integers(0, self.offset, (len(ids), 1), endpoint=True)
        return {"input_ids": ids, "labels": ids, "position_ids": first + np.arange(ids.shape[1])}

    @cached_property
    def _checksum(self) -> int:
        checksum = 0
        for part in self.tokens:
            # in blocks: a mapped file may exceed the memory
            for start in range(0, len(part), 2**24):
                piece = np.ascontiguousarray(part[start : start + 2**24])
                checksum = zlib.crc32(piece.view(np.uint8).data, checksum)
            checksum = zlib.crc32(f"{len(part)};".encode(), checksum)
        return checksum


class Windows(Data):
    """Batches of fixed-length windows of a text, as a function of (seed, step) alone.

    Parameters
    ----------
    tokens : ndarray (n,), or a list of them
        Token ids of any integer dtype; memory maps are accepted. Windows do not cross from one
        array into the next, and at least one array must have `length` tokens.
    length : int
        Tokens per window.
    batch : int
        Windows per step.
    order : {"random", "sequential"}
        Random windows begin anywhere; sequential ones follow each other, and wrap around after the
        last full window.
    seed : int
        Seed of the random order and positions.
    offset : int
        Each window's first position is drawn from [0, offset], so that a model sees all its
        positions and learns none by heart; it needs ``length + offset`` of them. 0: positions start
        at 0.
    bytes_per_token : float
        Bytes of text per token, for losses in bits per byte; 1 for bytes.

    Attributes
    ----------
    left_out : int
        The number of arrays of fewer than `length` tokens, which no window can have.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or no text has `length` tokens.

    See Also
    --------
    Sequences : whole texts of their own lengths.

    Examples
    --------
    >>> windows = Windows(np.arange(10), length=4, batch=2, order="sequential")
    >>> windows.batch(0)
    array([[0, 1, 2, 3],
           [4, 5, 6, 7]])
    >>> len(windows)
    2
    >>> Windows(np.arange(10), length=4, offset=100).batch(0)["position_ids"]
    array([[39, 40, 41, 42]])
    """

    left_out: int
    # valid starts of windows, and non-overlapping windows, within each array
    _starts: np.ndarray
    _full: np.ndarray

    @names_keywords
    def __init__(
        self,
        tokens: np.ndarray | Sequence[np.ndarray],
        length: int,
        *,
        batch: int = 1,
        order: str = "random",
        seed: int = 0,
        offset: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        super().__init__(
            tokens, order=order, seed=seed, offset=offset, bytes_per_token=bytes_per_token
        )
        self.length = integer("length", length, 1)
        self.batch_size = integer("batch", batch, 1)
        longest = max(map(len, self.tokens))
        if longest < self.length:
            raise ValueError(
                f"length must be at most {longest}, the tokens of the longest text, "
                f"got {self.length}"
            )
        self.left_out = sum(len(part) < self.length for part in self.tokens)
        self._starts = np.cumsum([max(0, len(part) - self.length + 1) for part in self.tokens])
        self._full = np.cumsum([len(part) // self.length for part in self.tokens])

    def __len__(self) -> int:
        """The number of full, non-overlapping windows."""
        return int(self._full[-1])

    def batch(self, step: int) -> np.ndarray | dict[str, Any]:
        """The windows of one step, int64 (batch, length).

        With an offset, a dictionary of them and their "position_ids": see `Trainer`.

        Parameters
        ----------
        step : int
            Steps count from 0.
        """
        if self.order == "sequential":
            first = step * self.batch_size
            places = (first + np.arange(self.batch_size)) % len(self)
            ends, stride = self._full, self.length
        else:
            rng = np.random.default_rng((self.seed, step))
            places = rng.integers(0, int(self._starts[-1]), self.batch_size)
            ends, stride = self._starts, 1
        rows = []
        for place in places:
            part = int(np.searchsorted(ends, place, side="right"))
            start = int(place - (ends[part - 1] if part else 0)) * stride
            rows.append(self.tokens[part][start : start + self.length])
        return self._at_random_positions(np.stack(rows).astype(np.int64), step)


class Sequences(Data):
    """Whole texts, one per step, each of its own length, such as a book as one sequence.

    Parameters
    ----------
    tokens : list of ndarray (n,)
        Token ids of any integer dtype, at least 2 per text.
    length : int, optional
        Longer texts are cut to a window of that length: at a random position, or at the start with
        the sequential order. By default texts are not cut.
    order : {"random", "sequential"}
        Random: a new permutation of all texts in each pass.
    seed : int
        Seed of the random order, windows and positions.
    offset : int
        As in `Windows`.
    bytes_per_token : float
        Bytes of text per token.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or a text has fewer than 2 tokens.

    Examples
    --------
    >>> texts = Sequences([np.arange(3), np.arange(5)], order="sequential")
    >>> [texts.batch(step).shape for step in range(3)]
    [(1, 3), (1, 5), (1, 3)]
    """

    batch_size = 1

    @names_keywords
    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        length: int | None = None,
        *,
        order: str = "random",
        seed: int = 0,
        offset: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        super().__init__(
            tokens, order=order, seed=seed, offset=offset, bytes_per_token=bytes_per_token
        )
        for i, part in enumerate(self.tokens):
            if len(part) < 2:
                raise ValueError(f"tokens[{i}] must have at least 2 tokens, got {len(part)}")
        longest = max(map(len, self.tokens))
        self.length = longest if length is None else min(longest, integer("length", length, 1))
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {length}")

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.tokens)

    def batch(self, step: int) -> np.ndarray | dict[str, Any]:
        """The text of one step, int64 (1, n), as of `Windows`.

        Parameters
        ----------
        step : int
            Steps count from 0.
        """
        epoch, place = divmod(step, len(self))
        start = 0
        if self.order == "random":
            place = np.random.default_rng((self.seed, epoch)).permutation(len(self))[place]
        part = self.tokens[place]
        if self.order == "random" and len(part) > self.length:
            rng = np.random.default_rng((self.seed, epoch, int(place)))
            start = int(rng.integers(0, len(part) - self.length + 1))
        ids = part[start : start + self.length].astype(np.int64)[None]
        return self._at_random_positions(ids, step)
