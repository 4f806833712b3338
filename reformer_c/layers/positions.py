"""The vectors of positions that a model adds to its word embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from .parameters import Weights
from .randomness import Dropout

__all__ = ["AxialPositions", "PositionTable"]

# dropout of the vectors (t, c) at a row of the batch and its positions (t,); the backward pass
# applies it to their gradients
Drop = Callable[[np.ndarray, int, np.ndarray], np.ndarray]


class PositionTable:
    """A learned table with a row for each position.

    Parameters
    ----------
    weights : Weights
        With the prefix ``embeddings.position_embeddings.``.
    dropout : Dropout
    """

    def __init__(self, weights: Weights, dropout: Dropout) -> None:
        self._weights, self._dropout = weights, dropout

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        """positions (t,) -> (t, c), and what the backward pass needs."""
        return ops.embedding_forward(positions, self._weights["embedding.weight"])

    def backward(self, gradient: np.ndarray, saved: Any) -> None:
        """Accumulate the gradient of the weights from that of the vectors (t, c)."""
        dweight = ops.embedding_backward(gradient, saved)
        self._weights.add_gradient("embedding.weight", dweight)

    def dropout(self, b: int) -> Drop:
        """Dropout of single elements, for a batch of b rows."""
        return lambda vectors, row, positions: self._dropout(vectors, "positions", row)


class AxialPositions(PositionTable):
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
        super().__init__(weights, dropout)
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
        return lambda vectors, row, positions: (
            vectors * keep[row, np.unravel_index(positions, shape)[1]][:, None]
        )

    def _tables(self) -> list[np.ndarray]:
        return [self._weights[name] for name in self._names]
