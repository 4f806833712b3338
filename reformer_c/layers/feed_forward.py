"""The feed-forward branch of a layer, plain or gated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops.machine import layer_scratch
from ..ops.mlp import FeedForwardSaved
from .activations import WEIGHTED
from .parameters import Weights
from .randomness import Key
from .streams import add_to
from .sublayer import Step, Sublayer, blocks, peaks

__all__ = ["FeedForward", "WeightedFeedForward"]

# hidden units computed at a time, if the layer chooses and not the kernel
HIDDEN_BLOCK = 2**18


@dataclass
class Normed:
    """Normalised rows n (rows, c), and what the backward pass of layer norm needs."""

    n: np.ndarray
    norm: Any


class Hidden(NamedTuple):
    """A block of hidden units (rows, f) before the activation, what the product saved and, in a
    gated layer, what they are multiplied by."""

    rows: slice
    # the first row in the stream
    first: int
    h: np.ndarray
    dense: Any
    g: np.ndarray | None = None
    up_proj: Any = None


class FeedForward(Sublayer):
    """out += drop(act(drop(n w1' + b1)) w2' + b2), with n = layer_norm(x), for streams (b, t, c).

    A gated layer is drop(drop(act(n w1' + b1) * (n w3' + b3)) w2' + b2). w1 and w3 are (f, c), w2
    is (c, f). The hidden units (rows, f) are computed in chunks of rows (Kitaev et al. 2020,
    section 3, "Chunking"); a part is a block of rows. See `reformer_c.feed_forward`.

    Parameters
    ----------
    weights, eps, dropout, key
        As in `Sublayer`, with the prefix ``feed_forward.``.
    activation : str
    chunk_length : int
        Rows of a chunk; 0 leaves the choice to the kernel.
    gated : bool
    """

    # the names of w1, b1, w2, b2 and, in a gated layer, of w3 and b3
    names: tuple[str, ...]

    def __init__(
        self, weights: Weights, *, activation: str, chunk_length: int, gated: bool = False,
        eps: float, dropout: float, key: Key,
    ) -> None:  # fmt: skip
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.activation, self.chunk_length, self.gated = activation, chunk_length, gated
        layers = ("dense.dense", "output.dense", "dense.up_proj")[: 3 if gated else 2]
        self.names = tuple(f"{name}.{part}" for name in layers for part in ("weight", "bias"))

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
        add_to(dx[part], self.norm.backward(dn, saved.norm), 1.0)
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
        add_to(dx[part], self.norm.backward(dn, norm), 1.0)

    def step_add(self, cache: None, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        n, _ = self.norm.forward(x)
        ops.add_scaled(out, self._step_value(step, n), 1.0)

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        """The output (n, c) for the normalised new tokens."""
        w1, w2, *w3 = (step.weights.matrix(self.weights, name) for name in self.names[::2])
        if isinstance(w1, np.ndarray):
            return self._value(n, 0)
        b1, b2, *b3 = (self.weights[name] for name in self.names[1::2])
        gate = (w3[0], b3[0]) if self.gated else (None, None)
        return ops.quantized_feed_forward(n, w1, b1, w2, b2, *gate, activation=self.activation)

    def _value(self, n: np.ndarray, first: int) -> np.ndarray:
        """The output for normalised rows that start at row `first` of the stream."""
        saved = self._saved(n, first)
        return ops.feed_forward(
            *saved[:7], activation=saved.activation, chunk_length=saved.chunk_length,
            dropout=saved.dropout, dropout_key=saved.dropout_key,
        )  # fmt: skip

    def _saved(self, n: np.ndarray, first: int) -> FeedForwardSaved:
        w1, b1, w2, b2, *gate = (self.weights[name] for name in self.names)
        w3, b3 = gate if gate else (None, None)
        key = self.key("hidden", first)
        return FeedForwardSaved(
            n, w1, b1, w2, b2, w3, b3, self.activation, self.chunk_length, self.drop.p, key
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
            "gated_feed_forward" if self.gated else "feed_forward", rows, c,
            len(self.weights.stored(self.names[0])),
            chunk_length=self.chunk_length, dtype=dtype,
        )  # fmt: skip
        return backward


class WeightedFeedForward(FeedForward):
    """out += drop(act(drop(n w1' + b1)) w2' + b2), for an activation with weights of its own.

    Shapes, and the gated layer, are those of `FeedForward`. The activation is computed in NumPy:
    see `activations`.
    """

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        def linear(x: np.ndarray, i: int) -> np.ndarray:
            bias = self.weights[self.names[i + 1]]
            return step.weights.linear(x, self.weights, self.names[i], bias)

        a = self._activate(linear(n, 0))
        return linear(a * linear(n, 4) if self.gated else a, 2)

    def _value(self, n: np.ndarray, first: int) -> np.ndarray:
        w2, b2 = (self.weights[name] for name in self.names[2:4])
        y = np.empty_like(n)
        for hidden in self._hidden(n, first):
            ops.linear(self._activated(hidden), w2, b2, out=y[hidden.rows])
        return y

    def _value_backward(
        self, dy: np.ndarray, n: np.ndarray, first: int, y: np.ndarray | None = None
    ) -> np.ndarray:
        dn = np.empty_like(n)
        w2, b2 = (self.weights[name] for name in self.names[2:4])
        for hidden in self._hidden(n, first):
            rows, h, g = hidden.rows, hidden.h, hidden.g
            _, projected = ops.linear_forward(
                self._activated(hidden), w2, b2, out=None if y is None else y[rows]
            )
            da, dw2, db2 = ops.linear_backward(dy[rows], projected)
            if g is not None:
                da = self._drop_hidden(da, hidden.first)
                dg = self._activate(h)
                dg *= da
                da *= g
            dh, slopes = WEIGHTED[self.activation].backward(da, h, **self._values())
            if g is None:
                dh = self._drop_hidden(dh, hidden.first)
            dn[rows], dw1, db1 = ops.linear_backward(dh, hidden.dense)
            gradients = [dw1, db1, dw2, db2]
            if g is not None:
                more, dw3, db3 = ops.linear_backward(dg, hidden.up_proj)
                ops.add_scaled(dn[rows], more, 1.0)
                gradients += [dw3, db3]
            self.weights.add_gradients(self.names, gradients)
            for name, slope in slopes.items():
                self.weights.add_gradient(f"dense.act_fn.{name}", np.array([slope], n.dtype))
        return dn

    def _hidden(self, n: np.ndarray, first: int) -> Iterator[Hidden]:
        """Blocks of rows."""
        w1, b1, _, _, *gate = (self.weights[name] for name in self.names)
        for rows in blocks(slice(0, len(n)), self._hidden_rows()):
            h, dense = ops.linear_forward(n[rows], w1, b1)
            at = first + rows.start
            if gate:
                yield Hidden(rows, at, h, dense, *ops.linear_forward(n[rows], *gate))
            else:
                yield Hidden(rows, at, self._drop_hidden(h, at), dense)

    def _activated(self, hidden: Hidden) -> np.ndarray:
        """The hidden units that the output layer reads."""
        a = self._activate(hidden.h)
        if hidden.g is None:
            return a
        a *= hidden.g
        return self._drop_hidden(a, hidden.first)

    def _hidden_rows(self) -> int:
        return self.chunk_length or max(1, HIDDEN_BLOCK // len(self.weights.stored(self.names[0])))

    def _drop_hidden(self, h: np.ndarray, first: int) -> np.ndarray:
        return self.drop(h, "hidden", first, in_place=True)

    def _scratch_bytes(self, rows: int, c: int, dtype: np.dtype) -> int:
        """Arrays of a block of hidden units, and the gradient of the rows."""
        hidden = min(rows, self._hidden_rows()) * len(self.weights.stored(self.names[0]))
        # in a gated layer also g and its gradient
        arrays = WEIGHTED[self.activation].arrays + 2 * self.gated
        return (arrays * hidden + rows * c) * dtype.itemsize

    def _activate(self, h: np.ndarray) -> np.ndarray:
        return WEIGHTED[self.activation].forward(h, **self._values())

    def _values(self) -> dict[str, float]:
        """Weights and constants of the activation, by name."""
        activation = WEIGHTED[self.activation]
        names = (*activation.weights, *activation.constants)
        return {name: self.weights[f"dense.act_fn.{name}"].item() for name in names}
