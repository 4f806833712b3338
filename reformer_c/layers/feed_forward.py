"""The feed-forward branch of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..ops.layers import FeedForwardSaved
from ..ops.machine import layer_scratch
from .activations import WEIGHTED
from .parameters import Weights
from .randomness import Key
from .sublayer import Step, Sublayer, blocks, peaks

__all__ = ["FeedForward", "WeightedFeedForward"]

# hidden units computed at a time, if the layer chooses and not the kernel
HIDDEN_BLOCK = 2**18


@dataclass
class Normed:
    """Normalised rows n (rows, c), and what the backward pass of layer norm needs."""

    n: np.ndarray
    norm: Any


class FeedForward(Sublayer):
    """out += drop(drop(act(n w1' + b1)) w2' + b2), with n = layer_norm(x), for streams (b, t, c).

    w1 is (f, c) and w2 (c, f). The hidden units (rows, f) are computed in chunks of rows (Kitaev et
    al. 2020, section 3, "Chunking"); a part is a block of rows. See `reformer_c.feed_forward`.

    Parameters
    ----------
    weights, eps, dropout, key
        As in `Sublayer`, with the prefix ``feed_forward.``.
    activation : str
    chunk_length : int
        Rows of a chunk; 0 leaves the choice to the kernel.
    """

    names = ("dense.dense.weight", "dense.dense.bias", "output.dense.weight", "output.dense.bias")

    def __init__(
        self, weights: Weights, *, activation: str, chunk_length: int, eps: float, dropout: float,
        key: Key,
    ) -> None:  # fmt: skip
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.activation, self.chunk_length = activation, chunk_length

    def _parts(self, x: np.ndarray) -> list[slice]:
        c = x.shape[-1]
        return list(blocks(slice(0, x.size // c), self.rows_at_a_time(c)))

    def _add(self, part: slice, out: np.ndarray, x: np.ndarray, sign: float) -> Normed:
        n, norm = self.norm.forward(x[part])
        self._add_dropped(out, part, self._value(n, part.start), sign)
        return Normed(n, norm)

    # the gradient of the normalised rows, then scratch or the gradient of the rows
    @peaks("saved dropped block scratch", "saved dropped block block")
    def _backward(
        self, part: slice, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, saved: Normed
    ) -> None:
        dn = self._value_backward(self._undropped(dout, part), saved.n, part.start)
        del saved.n
        ops.add_scaled(dx[part], self.norm.backward(dn, saved.norm), 1.0)
        del saved.norm

    # and the recomputed output
    @peaks("saved block dropped block scratch", "saved block dropped block block")
    def _rebuild(
        self, part: slice, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        n, norm = self.norm.forward(x[part])
        y = np.empty_like(n)
        dn = self._value_backward(self._undropped(dout, part), n, part.start, y)
        self._add_dropped(out, part, y, -1.0)
        del y, n
        ops.add_scaled(dx[part], self.norm.backward(dn, norm), 1.0)

    def step_add(self, cache: None, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        n, _ = self.norm.forward(x)
        ops.add_scaled(out, self._step_value(step, n), 1.0)

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        """The output (n, c) for the normalised new tokens."""
        w1, w2 = (step.weights.matrix(self.weights, name) for name in self.names[::2])
        if isinstance(w1, np.ndarray):
            return self._value(n, 0)
        b1, b2 = (self.weights[name] for name in self.names[1::2])
        return ops.quantized_feed_forward(n, w1, b1, w2, b2, activation=self.activation)

    def _value(self, n: np.ndarray, first: int) -> np.ndarray:
        """The output for normalised rows that start at row `first` of the stream."""
        *arrays, activation, chunk_length, dropout, key, _ = self._saved(n, first)
        return ops.feed_forward(
            *arrays, activation=activation, chunk_length=chunk_length, dropout=dropout,
            dropout_key=key,
        )  # fmt: skip

    def _saved(self, n: np.ndarray, first: int) -> FeedForwardSaved:
        w1, b1, w2, b2 = (self.weights[name] for name in self.names)
        key = self.key("hidden", first)
        return FeedForwardSaved(
            n, w1, b1, w2, b2, self.activation, self.chunk_length, self.drop.p, key
        )

    def _value_backward(
        self, dy: np.ndarray, n: np.ndarray, first: int, y: np.ndarray | None = None
    ) -> np.ndarray:
        """The gradient of the normalised rows; their recomputed output is written to y."""
        dn, *gradients = ops.feed_forward_backward(dy, self._saved(n, first), value_out=y)
        self.weights.add_gradients(self.names, gradients)
        return dn

    def _activations(self, function: Callable[[np.ndarray], np.ndarray], saved: Normed) -> Normed:
        return Normed(function(saved.n), saved.norm)

    def _saved_sizes(self, part: slice, x: np.ndarray) -> tuple[int, int]:
        # the normalised rows; their mean and standard deviation
        rows = part.stop - part.start
        return rows * x.shape[-1] * x.itemsize, 2 * rows * x.itemsize

    def _sizes(self, part: slice, x: np.ndarray) -> dict[str, int]:
        c, rows = x.shape[-1], part.stop - part.start
        block = rows * c * x.itemsize
        return {
            "saved": self._saved_bytes(part, x),
            "block": block,
            "dropped": block if self.drop.p else 0,
            "scratch": self._scratch_bytes(rows, c, x.dtype),
        }

    def _scratch_bytes(self, rows: int, c: int, dtype: np.dtype) -> int:
        _, backward = layer_scratch(
            "feed_forward", rows, c, len(self.weights[self.names[0]]),
            chunk_length=self.chunk_length, dtype=dtype,
        )  # fmt: skip
        return backward


class WeightedFeedForward(FeedForward):
    """out += drop(act(drop(n w1' + b1)) w2' + b2), for an activation with weights of its own.

    Shapes are those of `FeedForward`. The activation is computed in NumPy: see `activations`.
    """

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        b1, b2 = (self.weights[name] for name in self.names[1::2])
        h = step.weights.linear(n, self.weights, self.names[0], b1)
        return step.weights.linear(self._activate(h), self.weights, self.names[2], b2)

    def _value(self, n: np.ndarray, first: int) -> np.ndarray:
        w2, b2 = (self.weights[name] for name in self.names[2:])
        y = np.empty_like(n)
        for rows, h, _ in self._hidden(n, first):
            ops.linear(self._activate(h), w2, b2, out=y[rows])
        return y

    def _value_backward(
        self, dy: np.ndarray, n: np.ndarray, first: int, y: np.ndarray | None = None
    ) -> np.ndarray:
        dn = np.empty_like(n)
        w2, b2 = (self.weights[name] for name in self.names[2:])
        for rows, h, dense in self._hidden(n, first):
            _, projected = ops.linear_forward(
                self._activate(h), w2, b2, out=None if y is None else y[rows]
            )
            da, dw2, db2 = ops.linear_backward(dy[rows], projected)
            dh, slopes = WEIGHTED[self.activation].backward(da, h, **self._values())
            dh = self._drop_hidden(dh, first + rows.start)
            dn[rows], dw1, db1 = ops.linear_backward(dh, dense)
            self.weights.add_gradients(self.names, (dw1, db1, dw2, db2))
            for name, slope in slopes.items():
                self.weights.add_gradient(f"dense.act_fn.{name}", np.array([slope], n.dtype))
        return dn

    def _hidden(self, n: np.ndarray, first: int) -> Iterator[tuple[slice, np.ndarray, Any]]:
        """Blocks of rows, their hidden units before the activation, and what the product saved."""
        w1, b1 = (self.weights[name] for name in self.names[:2])
        for rows in blocks(slice(0, len(n)), self._hidden_rows()):
            h, dense = ops.linear_forward(n[rows], w1, b1)
            yield rows, self._drop_hidden(h, first + rows.start), dense

    def _hidden_rows(self) -> int:
        return self.chunk_length or max(1, HIDDEN_BLOCK // len(self.weights[self.names[0]]))

    def _drop_hidden(self, h: np.ndarray, first: int) -> np.ndarray:
        return self.drop(h, "hidden", first, in_place=True)

    def _scratch_bytes(self, rows: int, c: int, dtype: np.dtype) -> int:
        """Arrays of a block of hidden units, and the gradient of the rows."""
        hidden = min(rows, self._hidden_rows()) * len(self.weights[self.names[0]])
        arrays = WEIGHTED[self.activation].arrays
        return (arrays * hidden + rows * c) * dtype.itemsize

    def _activate(self, h: np.ndarray) -> np.ndarray:
        return WEIGHTED[self.activation].forward(h, **self._values())

    def _values(self) -> dict[str, float]:
        """Weights and constants of the activation, by name."""
        activation = WEIGHTED[self.activation]
        names = (*activation.weights, *activation.constants)
        return {name: self.weights[f"dense.act_fn.{name}"].item() for name in names}
