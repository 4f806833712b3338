"""What a model is built of: named weights, keys of random bits, and the layers around attention.

A layer object lives for one pass. It looks its weights up when it runs, adds to its gradients, and
draws its random bits from keys, so that a pass can be repeated exactly and nothing is remembered
between calls.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import numpy as np

from . import ops
from .activations import WEIGHTED
from .ops.machine import layer_scratch

__all__ = [
    "Embeddings",
    "FeedForward",
    "FinalNorm",
    "Parameters",
    "Sublayer",
    "WeightedFeedForward",
    "Weights",
    "draw_seed",
    "random_key",
]

Key = Callable[..., int]

# hidden numbers in memory at a time, where the layer and not the kernel chooses
HIDDEN_BLOCK = 2**18


# ---- randomness ----


def random_key(*fields: int | str) -> int:
    """Mix a seed and what it is for into a key of 64 bits.

    Every random choice of a model has its own key, made of (seed, layer, purpose): choices do not
    depend on each other, nor on the order in which they are made. The mix is BLAKE2b of the
    fields' text.

    Examples
    --------
    >>> random_key(0, 3, "rotations") == random_key(0, 3, "rotations")
    True
    >>> random_key(0, 3, "rotations") == random_key(0, 4, "rotations")
    False
    >>> random_key(1, 23) == random_key(12, 3)
    False
    """
    digest = hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_seed(rng: Any = None) -> int:
    """A seed of 64 bits from whatever ``numpy.random.default_rng`` takes; None gives a fresh one.

    Examples
    --------
    >>> draw_seed(7) == draw_seed(7) != draw_seed((7, 1))
    True
    >>> draw_seed("seven")
    Traceback (most recent call last):
    TypeError: rng: expected an integer >= 0, a numpy Generator or None, got 'seven'
    """
    try:
        return int(np.random.default_rng(rng).integers(2**64, dtype=np.uint64))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"rng: expected an integer >= 0, a numpy Generator or None, got {rng!r}"
        ) from error


# ---- weights and their gradients ----


class Parameters(MutableMapping):
    """Arrays by name, whose names, shapes and dtypes are fixed.

    Assignment copies: whoever holds an array of the mapping sees the new values.

    Examples
    --------
    >>> parameters = Parameters({"weight": np.zeros((2, 3), np.float32)})
    >>> weight = parameters["weight"]
    >>> parameters["weight"] = np.ones((2, 3), np.float32)
    >>> weight[0]
    array([1., 1., 1.], dtype=float32)
    >>> parameters["weight"] = np.ones(3, np.float32)
    Traceback (most recent call last):
    ValueError: parameters['weight']: expected shape (2, 3), got (3,)
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if name not in self._arrays:
            raise KeyError(f"parameters: this model has no {name!r}")
        own = self._arrays[name]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"parameters[{name!r}]: expected an array, got {type(array).__name__}")
        if array.dtype != own.dtype:
            raise TypeError(f"parameters[{name!r}]: expected {own.dtype}, got {array.dtype}")
        if array.shape != own.shape:
            raise ValueError(f"parameters[{name!r}]: expected shape {own.shape}, got {array.shape}")
        own[...] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError("parameters: a model's parameters cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        count = sum(array.size for array in self._arrays.values())
        return f"<Parameters: {len(self)} arrays, {count:,} numbers>"


class Weights:
    """The parameters whose names begin with a prefix, and a place for their gradients."""

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        gradients: dict[str, np.ndarray],
        prefix: str = "",
    ) -> None:
        self._parameters, self._gradients, self._prefix = parameters, gradients, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self._parameters[self._prefix + name]

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self._parameters.values())).dtype

    @property
    def nbytes(self) -> int:
        """Of these parameters, and so of their gradients."""
        arrays = self._parameters.items()
        return sum(array.nbytes for name, array in arrays if name.startswith(self._prefix))

    def below(self, prefix: str) -> Weights:
        return Weights(self._parameters, self._gradients, self._prefix + prefix)

    def add_gradient(self, name: str, gradient: np.ndarray | None) -> None:
        """Keep a gradient that is nobody else's, or add to the one that is there; None is none."""
        name = self._prefix + name
        if gradient is None:
            return
        if name in self._gradients:
            ops.add_scaled(self._gradients[name], gradient, 1.0)
        else:
            self._gradients[name] = gradient


# ---- sublayers ----


class Sublayer(ABC):
    """A branch of a reversible layer: y = drop(function(layer_norm(x))), added to a stream.

    With `keep`, forward_add keeps `saved` and the stream as it was, and backward_add rebuilds
    nothing.
    """

    keep = False

    def __init__(self, weights: Weights, *, eps: float, dropout: float, key: Key) -> None:
        self.weights, self.eps, self.dropout, self.key = weights, eps, dropout, key
        self._kept: tuple[np.ndarray, list] | None = None

    def forward_add(self, out: np.ndarray, x: np.ndarray) -> None:
        y, saved = self._run(x)
        if self.keep:
            self._kept = out.copy(), saved
        ops.add_scaled(out, y, 1.0)

    def backward_add(
        self, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        if self._kept is None:
            y, saved = self._run(x)
            ops.add_scaled(out, y, -1.0)
            del y
        else:
            # `saved` may hold the stream x itself: it has its old contents again by now
            before, saved = self._kept
            self._kept = None
            out[...] = before
            del before
        dn = self._backward(self._undrop(dout), saved)
        change, dweight, dbias = ops.layer_norm_backward(dn, saved.pop())
        self.weights.add_gradient("layer_norm.weight", dweight)
        self.weights.add_gradient("layer_norm.bias", dbias)
        ops.add_scaled(dx, change, 1.0)

    def kept_bytes(self, x: np.ndarray) -> int:
        """What `keep` costs for a stream like x."""
        c = x.shape[-1]
        # the stream, its norm, the norm's mean and deviation
        return x.size // c * (2 * c + 2 + self._kept_row(c)) * x.itemsize

    def backward_bytes(self, x: np.ndarray) -> int:
        """The most that `backward_add` takes for a stream like x, beside what is kept already."""
        rebuilt = 0 if self.keep else self.kept_bytes(x) - x.nbytes
        forward, backward = self._working_bytes(x)
        # with the function's value
        return rebuilt + (backward if self.keep else max(forward + x.nbytes, backward))

    def _dropped_bytes(self, x: np.ndarray) -> int:
        """Of the gradient of the function's value, which without dropout is the stream's."""
        return x.nbytes if self.dropout else 0

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, list]:
        n, normed = ops.layer_norm_forward(
            x, self.weights["layer_norm.weight"], self.weights["layer_norm.bias"], eps=self.eps
        )
        y, saved = self._forward(n)
        if self.dropout:
            ops.dropout(y, self.dropout, key=self.key("output"), out=y)
        return y, [normed, *saved]

    def _undrop(self, dout: np.ndarray) -> np.ndarray:
        if self.dropout:
            return ops.dropout(dout, self.dropout, key=self.key("output"))
        return dout

    @abstractmethod
    def _forward(self, n: np.ndarray) -> tuple[np.ndarray, list]:
        """function(n), and what the ops saved, in their order."""

    @abstractmethod
    def _backward(self, dy: np.ndarray, saved: list) -> np.ndarray:
        """dn; takes what `_forward` saved off the end of `saved`."""

    @abstractmethod
    def _kept_row(self, c: int) -> int:
        """How many numbers of `saved` there are for each row of width c."""

    @abstractmethod
    def _working_bytes(self, x: np.ndarray) -> tuple[int, int]:
        """The most that `_forward` takes beside `saved` and its value, and `_backward` beside
        `saved`."""


class FeedForward(Sublayer):
    """drop(act(drop(n w1' + b1)) w2' + b2), in chunks of rows (Kitaev et al. 2020, section 3)."""

    def __init__(
        self, weights: Weights, *, activation: str, chunk_length: int, eps: float, dropout: float,
        key: Key,
    ) -> None:  # fmt: skip
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.activation, self.chunk_length = activation, chunk_length

    names = ("dense.dense.weight", "dense.dense.bias", "output.dense.weight", "output.dense.bias")

    def _forward(self, n: np.ndarray) -> tuple[np.ndarray, list]:
        y, saved = ops.feed_forward_forward(
            n,
            *(self.weights[name] for name in self.names),
            activation=self.activation,
            chunk_length=self.chunk_length,
            dropout=self.dropout,
            dropout_key=self.key("hidden"),
        )
        return y, [saved]

    def _backward(self, dy: np.ndarray, saved: list) -> np.ndarray:
        dn, *gradients = ops.feed_forward_backward(dy, saved.pop())
        for name, gradient in zip(self.names, gradients, strict=True):
            self.weights.add_gradient(name, gradient)
        return dn

    def _kept_row(self, c: int) -> int:
        return 0

    def _working_bytes(self, x: np.ndarray) -> tuple[int, int]:
        c = x.shape[-1]
        forward, backward = layer_scratch(
            "feed_forward", x.size // c, c, len(self.weights[self.names[0]]),
            chunk_length=self.chunk_length, dtype=x.dtype,
        )  # fmt: skip
        # dn, and in its layer norm's backward the change of the stream instead of scratch
        return forward, self._dropped_bytes(x) + x.nbytes + max(backward, x.nbytes)


class WeightedFeedForward(FeedForward):
    """A feed-forward layer whose activation has weights of its own: in NumPy, between products."""

    def _forward(self, n: np.ndarray) -> tuple[np.ndarray, list]:
        w2, b2 = (self.weights[name] for name in self.names[2:])
        y = np.empty_like(n)
        for rows, h, _ in self._hidden(n):
            a = WEIGHTED[self.activation].forward(h, **self._values())
            ops.linear(a, w2, b2, out=_rows_of(y)[rows])
        return y, [n]

    def _backward(self, dy: np.ndarray, saved: list) -> np.ndarray:
        n = saved.pop()
        dn = np.empty_like(n)
        w2, b2 = (self.weights[name] for name in self.names[2:])
        activation, values = WEIGHTED[self.activation], self._values()
        for rows, h, dense in self._hidden(n):
            _, projected = ops.linear_forward(activation.forward(h, **values), w2, b2)
            da, dw2, db2 = ops.linear_backward(_rows_of(dy)[rows], projected)
            dh, slopes = activation.backward(da, h, **values)
            dn_rows, dw1, db1 = ops.linear_backward(self._drop_hidden(dh, rows), dense)
            _rows_of(dn)[rows] = dn_rows
            for name, gradient in zip(self.names, (dw1, db1, dw2, db2), strict=True):
                self.weights.add_gradient(name, gradient)
            for name, slope in slopes.items():
                self.weights.add_gradient(f"dense.act_fn.{name}", np.array([slope], n.dtype))
        return dn

    def _hidden(self, n: np.ndarray) -> Iterator[tuple[slice, np.ndarray, Any]]:
        """Some rows, their hidden units before the activation, and what the product saved."""
        w1, b1 = (self.weights[name] for name in self.names[:2])
        size = self.chunk_length or max(1, HIDDEN_BLOCK // len(w1))
        for start in range(0, len(_rows_of(n)), size):
            rows = slice(start, start + size)
            h, dense = ops.linear_forward(_rows_of(n)[rows], w1, b1)
            yield rows, self._drop_hidden(h, rows), dense

    def _drop_hidden(self, h: np.ndarray, rows: slice) -> np.ndarray:
        """Dropout, in place; also its own derivative."""
        if self.dropout:
            ops.dropout(h, self.dropout, key=self.key("hidden", rows.start), out=h)
        return h

    def _values(self) -> dict[str, float]:
        """Weights and constants of the activation, by name."""
        activation = WEIGHTED[self.activation]
        names = (*activation.weights, *activation.constants)
        return {name: self.weights[f"dense.act_fn.{name}"].item() for name in names}


def _rows_of(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


# ---- the model's two ends ----


class Embeddings:
    """drop(word vector) + drop(position vector).

    In training, a table of positions drops single numbers; axial positions drop whole columns of
    their rectangle, as Hugging Face does.
    """

    def __init__(self, weights: Weights, *, axial: bool, dropout: float, key: Key) -> None:
        self.words = weights.below("word_embeddings.")
        self.positions = weights.below("position_embeddings.")
        self.axial, self.dropout, self.key = axial, dropout, key
        self._saved: tuple = ()

    def forward(
        self, input_ids: np.ndarray | None, inputs_embeds: np.ndarray | None, positions: np.ndarray
    ) -> np.ndarray:
        """ids (b, t) or vectors (b, t, c), positions (1 or b, t) -> (b, t, c)."""
        words = None
        if input_ids is not None:
            x, words = ops.embedding_forward(input_ids, self.words["weight"])
        else:
            x = np.array(inputs_embeds)
        if self.dropout:
            ops.dropout(x, self.dropout, key=self.key("words"), out=x)
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
        words, positions, tables = self._saved
        drop = self._position_dropout(len(dx))
        total = None
        for row, gradient in enumerate(dx):
            part = drop(gradient, row, positions)
            if total is None:
                total = part.copy()
            else:
                ops.add_scaled(total, part, 1.0)
            # rows that share their positions share the lookup
            if len(positions) > 1 or row == len(dx) - 1:
                self._position_gradients(total, tables[min(row, len(positions) - 1)])
                total = None
        if words is not None:
            if self.dropout:
                dx = ops.dropout(dx, self.dropout, key=self.key("words"))
            self.words.add_gradient("weight", ops.embedding_backward(dx, words))

    def _position_vectors(self, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        if self.axial:
            w0, w1 = self.positions["weights.0"], self.positions["weights.1"]
            return ops.axial_positions_forward(positions, w0, w1)
        return ops.embedding_forward(positions, self.positions["embedding.weight"])

    def _position_gradients(self, gradient: np.ndarray, table: Any) -> None:
        if self.axial:
            dw0, dw1 = ops.axial_positions_backward(gradient, table)
            self.positions.add_gradient("weights.0", dw0)
            self.positions.add_gradient("weights.1", dw1)
        else:
            self.positions.add_gradient("embedding.weight", ops.embedding_backward(gradient, table))

    def _position_dropout(self, b: int) -> Callable[[np.ndarray, int, np.ndarray], np.ndarray]:
        """A function of (vectors (t, c), row of the batch, positions) that drops; also its own
        derivative."""
        if not self.dropout:
            return lambda vectors, row, positions: vectors
        if not self.axial:
            return lambda vectors, row, positions: ops.dropout(
                vectors, self.dropout, key=self.key("positions", row)
            )
        w1 = self.positions["weights.1"]
        n2 = w1.shape[-2]
        keep = ops.dropout(np.ones((b, n2), w1.dtype), self.dropout, key=self.key("positions"))
        return lambda vectors, row, positions: (
            vectors * keep[row, positions[min(row, len(positions) - 1)] % n2][:, None]
        )


class FinalNorm:
    """drop(layer_norm of the two streams side by side), for some rows at a time."""

    def __init__(self, weights: Weights, *, eps: float, dropout: float, key: Key) -> None:
        self.weights, self.eps, self.dropout = weights, eps, dropout
        self.key = partial(key, "final")

    def forward(self, y1: np.ndarray, y2: np.ndarray, rows: slice) -> tuple[np.ndarray, Any]:
        """Rows of y1 (n, c) and y2 (n, c) -> (rows, 2c)."""
        both = np.concatenate([y1[rows], y2[rows]], axis=-1)
        h, normed = ops.layer_norm_forward(
            both, self.weights["weight"], self.weights["bias"], eps=self.eps
        )
        if self.dropout:
            ops.dropout(h, self.dropout, key=self.key(rows.start), out=h)
        return h, normed

    def backward(
        self, dy1: np.ndarray, dy2: np.ndarray, rows: slice, dh: np.ndarray, normed: Any
    ) -> None:
        """Fill rows of dy1 and dy2 from dh."""
        if self.dropout:
            dh = ops.dropout(dh, self.dropout, key=self.key(rows.start))
        both, dweight, dbias = ops.layer_norm_backward(dh, normed)
        self.weights.add_gradient("weight", dweight)
        self.weights.add_gradient("bias", dbias)
        dy1[rows], dy2[rows] = np.split(both, 2, axis=-1)
