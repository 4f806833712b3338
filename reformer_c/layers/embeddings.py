"""The first layer of a model: word and position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from .parameters import Weights
from .randomness import Dropout, Key

__all__ = ["Embeddings"]


class Embeddings:
    """x = drop(words[ids]) + drop(position vectors): ids (b, t) to the first stream (b, t, c).

    A position's vector is a row of a table (positions, c), or with `axial` that of
    `reformer_c.axial_positions`: a concatenation of rows of two tables, by quotient and remainder
    of the position (Kitaev et al. 2020, section 5). Dropout acts on single elements of a table's
    rows, and on whole columns of the rectangle of axial positions, as in Hugging Face's model.

    Parameters
    ----------
    weights : Weights
        With the prefix ``embeddings.``.
    axial : bool
    dropout : float
    key : callable
        From the purpose of a random choice to its key.
    """

    def __init__(self, weights: Weights, *, axial: bool, dropout: float, key: Key) -> None:
        self.words = weights.below("word_embeddings.")
        self.positions = weights.below("position_embeddings.")
        self.axial, self._drop = axial, Dropout(dropout, key)
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
        drop = self._position_dropout(len(x))
        tables = []
        for row, stream in enumerate(x):
            if row < len(positions):
                vectors, table = self._position_vectors(positions[row])
                tables.append(table)
            ops.add_scaled(stream, drop(vectors, row, positions), 1.0)
        self._saved = words, positions, tables
        return x

    def backward(self, dx: np.ndarray) -> None:
        """Accumulate the gradients of the tables from dx (b, t, c)."""
        words, positions, tables = self._saved
        drop = self._position_dropout(len(dx))
        total = None
        for row, gradient in enumerate(dx):
            part = drop(gradient, row, positions)
            if total is None:
                total = part.copy()
            else:
                ops.add_scaled(total, part, 1.0)
            # rows with the same positions share one lookup
            if len(positions) > 1 or row == len(dx) - 1:
                self._position_gradients(total, tables[min(row, len(positions) - 1)])
                total = None
        if words is not None:
            dwords = ops.embedding_backward(self._drop(dx, "words"), words)
            self.words.add_gradient("weight", dwords)

    def _position_vectors(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        """positions (t,) -> (t, c), and what the lookup saved."""
        if self.axial:
            w0, w1 = self.positions["weights.0"], self.positions["weights.1"]
            return ops.axial_positions_forward(positions, w0, w1)
        return ops.embedding_forward(positions, self.positions["embedding.weight"])

    def _position_gradients(self, gradient: np.ndarray, table: Any) -> None:
        if self.axial:
            gradients = ops.axial_positions_backward(gradient, table)
            self.positions.add_gradients(("weights.0", "weights.1"), gradients)
        else:
            self.positions.add_gradient("embedding.weight", ops.embedding_backward(gradient, table))

    def _position_dropout(self, b: int) -> Callable[[np.ndarray, int, np.ndarray], np.ndarray]:
        """Dropout as a function of (vectors (t, c), row of the batch, positions); the backward pass
        applies it too."""
        if not self.axial or self._drop.p == 0.0:
            return lambda vectors, row, positions: self._drop(vectors, "positions", row)
        w1 = self.positions["weights.1"]
        n2 = w1.shape[-2]
        keep = self._drop(np.ones((b, n2), w1.dtype), "positions")
        return lambda vectors, row, positions: (
            vectors * keep[row, positions[min(row, len(positions) - 1)] % n2][:, None]
        )
