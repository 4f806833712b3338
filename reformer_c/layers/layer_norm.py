"""Layer norm with named weights, and the final norm of both streams."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .. import ops
from .parameters import Weights
from .randomness import Dropout, Key
from .streams import numbers

__all__ = ["FinalNorm", "LayerNorm"]


class LayerNorm:
    """n = (x - mean) / sqrt(variance + eps) weight + bias, over the last axis of a stream x (n, c).

    See `reformer_c.layer_norm`.
    """

    def __init__(self, weights: Weights, *, eps: float) -> None:
        self.weights, self.eps = weights, eps

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """The normalised rows (n, c), and what `backward` needs."""
        weight, bias = self.weights["weight"], self.weights["bias"]
        n, saved = ops.layer_norm_forward(numbers(x, weight.dtype), weight, bias, eps=self.eps)
        return n, saved._replace(x=x)  # the stream, which exists anyway, not its numbers

    def backward(self, dn: np.ndarray, saved: Any) -> np.ndarray:
        """dx (n, c); the gradients of the weights are accumulated."""
        saved = saved._replace(x=numbers(saved.x, dn.dtype))
        dx, *gradients = ops.layer_norm_backward(dn, saved)
        self.weights.add_gradients(("weight", "bias"), gradients)
        return dx


class FinalNorm:
    """drop(layer_norm(concatenate(y1, y2))): streams (n, c) to final states (n, 2 c).

    It is computed for a block of rows at a time.
    """

    def __init__(self, weights: Weights, *, eps: float, dropout: float, key: Key) -> None:
        self._norm = LayerNorm(weights, eps=eps)
        self._drop = Dropout(dropout, partial(key, "final"))

    def forward(self, y1: np.ndarray, y2: np.ndarray, rows: slice) -> tuple[np.ndarray, Any]:
        """The final states of some rows, and what `backward` needs."""
        h, saved = self._norm.forward(np.concatenate([y1[rows], y2[rows]], axis=-1))
        return self._drop(h, rows.start, in_place=True), saved

    def backward(
        self, dy1: np.ndarray, dy2: np.ndarray, rows: slice, dh: np.ndarray, saved: Any
    ) -> None:
        """Fill rows of dy1 and dy2 (n, c) from dh (rows, 2 c)."""
        dy = self._norm.backward(self._drop(dh, rows.start), saved)
        if dy1.dtype == np.uint16:
            dy = ops.to_bfloat16(dy)
        dy1[rows], dy2[rows] = np.split(dy, 2, axis=-1)
