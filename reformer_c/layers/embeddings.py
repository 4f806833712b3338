"""The first layer of a model: word and position embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .parameters import Weights
from .positions import Positions
from .randomness import Dropout
from .streams import stored

__all__ = ["Embeddings"]


class Embeddings:
    """x = drop(words[ids]) + drop(position vectors): ids (b, t) to the first stream (b, t, c).

    Without `positions` nothing is added to the words.

    Parameters
    ----------
    words : Weights
        With the prefix ``embeddings.word_embeddings.``.
    dropout : Dropout
    positions : Positions, optional
    residual_dtype : {"int16", "int32"}, optional
        Of the stream, see `streams`.
    """

    def __init__(
        self,
        words: Weights,
        dropout: Dropout,
        positions: Positions | None,
        residual_dtype: str | None,
    ) -> None:
        self.words, self._drop, self.positions = words, dropout, positions
        self._residual_dtype = residual_dtype
        self._saved: tuple[Any, ...] = ()

    def forward(
        self, input_ids: np.ndarray | None, inputs_embeds: np.ndarray | None, positions: np.ndarray
    ) -> np.ndarray:
        """ids (b, t) or vectors (b, t, c), positions (1 or b, t) -> (b, t, c)."""
        words = None
        if input_ids is not None:
            x, words = self.words.rows("weight", input_ids)
        else:
            x = np.array(inputs_embeds, order="C")
        self._drop(x, "words", in_place=True)
        tables = [] if self.positions is None else self._add(self.positions, x, positions)
        self._saved = words, positions, tables
        return stored(x, self._residual_dtype)

    def backward(self, dx: np.ndarray) -> np.ndarray | None:
        """Accumulate the gradients of the tables from dx (b, t, c), which is overwritten. Returns
        the gradient of the vectors, if `forward` was called with vectors, in the memory of dx."""
        words, positions, tables = self._saved
        if self.positions is not None and self.positions.learned:
            self._positions_backward(self.positions, dx, positions, tables)
        dx = self._drop(dx, "words", in_place=True)
        if words is None:
            return dx
        self.words.add_gradient("weight", ops.embedding_backward(dx, words))
        return None

    @staticmethod
    def _add(kind: Positions, x: np.ndarray, positions: np.ndarray) -> list[Any]:
        """Add the vectors of positions to x (b, t, c); what each lookup saved."""
        drop = kind.dropout(len(x))
        tables = []
        for row, stream in enumerate(x):
            at = positions[min(row, len(positions) - 1)]
            if row < len(positions):
                vectors, table = kind.forward(at)
                tables.append(table)
            again = len(positions) - 1 <= row < len(x) - 1  # for the next row
            ops.add_scaled(stream, drop(vectors, row, at, in_place=not again), 1.0)
        return tables

    @staticmethod
    def _positions_backward(
        kind: Positions, dx: np.ndarray, positions: np.ndarray, tables: list[Any]
    ) -> None:
        drop = kind.dropout(len(dx))
        total = None
        for row, gradient in enumerate(dx):
            at = min(row, len(positions) - 1)
            part = drop(gradient, row, positions[at])
            if total is None:  # a copy if others are added to it
                total = part if len(positions) > 1 or len(dx) == 1 else part.copy()
            else:
                ops.add_scaled(total, part, 1.0)
            # rows with the same positions share one lookup
            if len(positions) > 1 or row == len(dx) - 1:
                kind.backward(total, tables[at])
                total = None
