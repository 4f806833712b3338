"""The first layer of a model: word and position embeddings."""

from __future__ import annotations

import numpy as np

from .. import ops
from .parameters import Weights
from .positions import PositionTable
from .randomness import Dropout

__all__ = ["Embeddings"]


class Embeddings:
    """x = drop(words[ids]) + drop(position vectors): ids (b, t) to the first stream (b, t, c).

    Parameters
    ----------
    words : Weights
        With the prefix ``embeddings.word_embeddings.``.
    dropout : Dropout
    positions : PositionTable
    """

    def __init__(self, words: Weights, dropout: Dropout, positions: PositionTable) -> None:
        self.words, self._drop, self.positions = words, dropout, positions
        self._saved: tuple = ()

    def forward(
        self, input_ids: np.ndarray | None, inputs_embeds: np.ndarray | None, positions: np.ndarray
    ) -> np.ndarray:
        """ids (b, t) or vectors (b, t, c), positions (1 or b, t) -> (b, t, c)."""
        words = None
        if input_ids is not None:
            x, words = ops.embedding_forward(input_ids, self.words["weight"])
        else:
            x = np.array(inputs_embeds, order="C")
        self._drop(x, "words", in_place=True)
        drop = self.positions.dropout(len(x))
        tables = []
        for row, stream in enumerate(x):
            at = positions[min(row, len(positions) - 1)]
            if row < len(positions):
                vectors, table = self.positions.forward(at)
                tables.append(table)
            ops.add_scaled(stream, drop(vectors, row, at), 1.0)
        self._saved = words, positions, tables
        return x

    def backward(self, dx: np.ndarray) -> None:
        """Accumulate the gradients of the tables from dx (b, t, c)."""
        words, positions, tables = self._saved
        drop = self.positions.dropout(len(dx))
        total = None
        for row, gradient in enumerate(dx):
            at = min(row, len(positions) - 1)
            part = drop(gradient, row, positions[at])
            if total is None:
                total = part.copy()
            else:
                ops.add_scaled(total, part, 1.0)
            # rows with the same positions share one lookup
            if len(positions) > 1 or row == len(dx) - 1:
                self.positions.backward(total, tables[at])
                total = None
        if words is not None:
            dwords = ops.embedding_backward(self._drop(dx, "words"), words)
            self.words.add_gradient("weight", dwords)
