"""The vectors of positions that a model adds to its word embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..ops.rotary import RotaryPositionsSaved
from .parameters import Weights
from .randomness import Dropout
from .sublayer import blocks

__all__ = ["AxialPositions", "PositionTable", "Positions", "Rotary", "SinusoidalPositions"]

# dropout of the vectors (t, c) at a row of the batch and its positions (t,), in their memory if
# `in_place` is True; the backward pass applies it to their gradients
Drop = Callable[..., np.ndarray]


class Positions:
    """A kind of positions: their vectors, the gradients of its weights, if any, and dropout."""

    learned: ClassVar[bool] = True

    def __init__(self, dropout: Dropout) -> None:
        self._dropout = dropout

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        """positions (t,) -> (t, c), and what the backward pass needs."""
        raise NotImplementedError

    def backward(self, gradient: np.ndarray, saved: Any) -> None:
        """Accumulate the gradients of the weights from that of the vectors (t, c)."""
        raise NotImplementedError

    def dropout(self, b: int) -> Drop:
        """Dropout of single elements, for a batch of b rows."""
        return lambda vectors, row, positions, in_place=False: self._dropout(
            vectors, "positions", row, in_place=in_place
        )


class SinusoidalPositions(Positions):
    """Sines and cosines of the position, with wavelengths from 2 pi to 20,000 pi.

    Element 2i of a vector is ``scale * sin(j / 10000**(2i / c))`` and element 2i + 1 the cosine
    (Vaswani et al. 2017, section 3.5). They have no weights, and any position has a vector.

    Parameters
    ----------
    dropout : Dropout
    c : int
    dtype : dtype
    scale : float

    Examples
    --------
    >>> positions = SinusoidalPositions(Dropout(0.0, lambda purpose: 0), 2, np.float64, 1.0)
    >>> positions.forward(np.array([0, 1]))[0].round(3)
    array([[0.   , 1.   ],
           [0.841, 0.54 ]])
    """

    learned = False

    def __init__(self, dropout: Dropout, c: int, dtype: np.dtype, scale: float) -> None:
        super().__init__(dropout)
        self._c, self._dtype, self._scale = c, dtype, scale

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        frequencies = 10000.0 ** (-np.arange(0, self._c, 2) / self._c)
        out = np.empty((len(positions), self._c), self._dtype)
        # angles are float64: float32 has too few digits for large positions
        for rows in blocks(slice(0, len(positions)), 256):
            angles = positions[rows, None] * frequencies
            out[rows, 0::2] = self._scale * np.sin(angles)
            out[rows, 1::2] = self._scale * np.cos(angles[:, : self._c // 2])
        return out, None


class PositionTable(Positions):
    """A learned table with a row for each position.

    Parameters
    ----------
    weights : Weights
        With the prefix ``embeddings.position_embeddings.``.
    dropout : Dropout
    """

    def __init__(self, weights: Weights, dropout: Dropout) -> None:
        super().__init__(dropout)
        self._weights = weights

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        return self._weights.rows("embedding.weight", positions)

    def backward(self, gradient: np.ndarray, saved: Any) -> None:
        dweight = ops.embedding_backward(gradient, saved)
        self._weights.add_gradient("embedding.weight", dweight)


class AxialPositions(Positions):
    """A small learned table for each axis of a grid, see `reformer_c.axial_positions`.

    Dropout acts on all positions that have the same index along the second axis, as in Hugging
    Face's model; with one axis, on single elements.

    Parameters
    ----------
    weights : Weights
        With the prefix ``embeddings.position_embeddings.``.
    dropout : Dropout
    axes : int
        Number of tables.
    """

    def __init__(self, weights: Weights, dropout: Dropout, axes: int) -> None:
        super().__init__(dropout)
        self._weights = weights
        self._names = [f"weights.{a}" for a in range(axes)]

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        return ops.axial_positions_forward(positions, *self._tables())

    def backward(self, gradient: np.ndarray, saved: Any) -> None:
        self._weights.add_gradients(self._names, ops.axial_positions_backward(gradient, saved))

    def dropout(self, b: int) -> Drop:
        tables = self._tables()
        if len(tables) == 1 or self._dropout.p == 0.0:
            return super().dropout(b)
        shape = [w.shape[a] for a, w in enumerate(tables)]
        keep = self._dropout(np.ones((b, shape[1]), tables[0].dtype), "positions")
        return lambda vectors, row, positions, in_place=False: np.multiply(
            vectors, keep[row, np.unravel_index(positions, shape)[1]][:, None],
            out=vectors if in_place else None,
        )  # fmt: skip

    def _tables(self) -> list[np.ndarray]:
        return [self._weights[name] for name in self._names]


class Rotary:
    """Rotates the queries and keys of an attention layer in place, see
    `reformer_c.ops.rotary_positions`.

    Parameters
    ----------
    positions : ndarray of int, (1 or b, n)
        Positions of the tokens of a stream (b, n, c).
    theta : float
    """

    def __init__(self, positions: np.ndarray, theta: float) -> None:
        self._positions, self.theta = positions.reshape(-1), theta

    def forward(self, heads: np.ndarray, rows: slice, h: int) -> None:
        """heads (rows, h d), of some rows of the stream (b n, c)."""
        x = heads.reshape(len(heads), h, -1)
        ops.rotary_positions(x, self._at(rows), theta=self.theta, out=x)

    def backward(self, dheads: np.ndarray, rows: slice, h: int) -> None:
        """The gradient of what `forward` was given, from that of its result."""
        dx = dheads.reshape(len(dheads), h, -1)
        saved = RotaryPositionsSaved(self._at(rows), self.theta)
        ops.rotary_positions_backward(dx, saved, out=dx)

    def _at(self, rows: slice) -> np.ndarray:
        # sequences that share their positions repeat them
        return self._positions.take(np.arange(rows.start, rows.stop), mode="wrap")
