"""How the work of attention is cut: parts of the sequences and of the heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .sublayer import blocks

__all__ = ["Part", "group_rows"]


class Part(NamedTuple):
    """A unit of attention work: whole sequences or a stretch of one, and a range of heads.

    Its heads are arrays (sequences, num_heads, length, d).

    Attributes
    ----------
    sequences : int
    own : slice
        The rows of the streams (b t, c) whose output is computed.
    seen : tuple of slice
        The own rows and the neighbours they attend to, in order: one stretch, or both ends of a
        sequence.
    heads : slice
    """

    sequences: int
    own: slice
    seen: tuple[slice, ...]
    heads: slice

    @property
    def num_heads(self) -> int:
        number: int = self.heads.stop - self.heads.start
        return number

    @property
    def rows(self) -> int:
        """Rows seen."""
        return sum(piece.stop - piece.start for piece in self.seen)

    @property
    def length(self) -> int:
        """Rows seen per sequence."""
        return self.rows // self.sequences

    @property
    def own_length(self) -> int:
        """Own rows per sequence."""
        number: int = (self.own.stop - self.own.start) // self.sequences
        return number

    @property
    def lead(self) -> int:
        """Where the own rows begin among the rows seen."""
        at = lead = 0
        for piece in self.seen:
            if piece.start <= self.own.start < piece.stop:
                lead = at + self.own.start - piece.start
            at += piece.stop - piece.start
        return lead

    def place(self, whole: np.ndarray, values: np.ndarray, heads: slice | None = None) -> None:
        """Copy the own rows of `values` (b, h, t, ...), a part's, to their positions in an array
        (b, h, n, ...) of all sequences and heads; by default to the part's heads."""
        first, start = divmod(self.own.start, whole.shape[2])
        rows, stop = slice(first, first + self.sequences), start + self.own_length
        own = values[:, :, self.lead : self.lead + self.own_length]
        whole[rows, self.heads if heads is None else heads, start:stop, ...] = own

    def shifted(self, by: int) -> Part:
        """The same part, shifted by `by` rows."""
        own, *seen = (slice(s.start + by, s.stop + by) for s in (self.own, *self.seen))
        return self._replace(own=own, seen=tuple(seen))

    def blocks(self, size: int) -> Iterator[tuple[slice, slice]]:
        """All rows, at most `size` at a time: their slices within the part and in the streams."""
        at = 0
        for piece in self.seen:
            for rows in blocks(piece, size):
                yield slice(at, at + rows.stop - rows.start), rows
                at += rows.stop - rows.start

    def own_blocks(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Like `blocks`, for the own rows only."""
        shift = self.lead - self.own.start
        for rows in blocks(self.own, size):
            yield slice(rows.start + shift, rows.stop + shift), rows


def group_rows(lengths: np.ndarray, t: int) -> Iterator[tuple[slice, int]]:
    """Group consecutive rows that can be computed together: rows of length t, which leave no gap
    in the stream (b, t). Shorter rows come one at a time.

    Examples
    --------
    >>> [(rows.start, rows.stop, n) for rows, n in group_rows(np.array([5, 5, 3, 3, 5]), 5)]
    [(0, 2, 5), (2, 3, 3), (3, 4, 3), (4, 5, 5)]
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[start] < t or lengths[stop] < t:
            yield slice(start, stop), int(lengths[start])
            start = stop
