"""Building blocks of a model: named weights, random keys, and the layers around attention.

A layer object lives for one pass. It looks up its weights when it runs, accumulates gradients, and
draws its random bits from keys, so a pass can be replayed exactly and no state is kept between
calls.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import ops
from ..checks import did_you_mean
from ..ops.layers import FeedForwardSaved
from ..ops.machine import layer_scratch
from .activations import WEIGHTED

__all__ = [
    "Embeddings",
    "FeedForward",
    "FinalNorm",
    "Joined",
    "Kept",
    "Parameters",
    "Step",
    "Sublayer",
    "WeightedFeedForward",
    "Weights",
    "blocks",
    "draw_seed",
    "peaks",
    "random_key",
]

Key = Callable[..., int]
Method = TypeVar("Method", bound=Callable[..., Any])

# hidden units computed at a time, if the layer chooses and not the kernel
HIDDEN_BLOCK = 2**18


# ---- randomness ----


def random_key(*fields: int | str) -> int:
    """Hash a seed and its purpose into a 64-bit key.

    Every random choice of a model has its own key, made of (seed, layer, purpose), so choices are
    independent of each other and of the order in which they are made. The hash is BLAKE2b of the
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
    """A 64-bit seed from anything ``numpy.random.default_rng`` accepts; None gives a fresh one.

    Examples
    --------
    >>> draw_seed(7) == draw_seed(7) != draw_seed((7, 1))
    True
    >>> draw_seed("seven")
    Traceback (most recent call last):
    TypeError: rng must be an integer >= 0, a numpy Generator or None, got 'seven'
    """
    try:
        return int(np.random.default_rng(rng).integers(2**64, dtype=np.uint64))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"rng must be an integer >= 0, a numpy Generator or None, got {rng!r}"
        ) from error


# ---- weights and their gradients ----


class Parameters(MutableMapping):
    """Arrays by name, with fixed names, shapes and dtypes.

    Assignment copies into the existing array, so references to it see the new values.

    Examples
    --------
    >>> parameters = Parameters({"weight": np.zeros((2, 3), np.float32)})
    >>> weight = parameters["weight"]
    >>> parameters["weight"] = np.ones((2, 3), np.float32)
    >>> weight[0]
    array([1., 1., 1.], dtype=float32)
    >>> parameters["weight"] = np.ones(3, np.float32)
    Traceback (most recent call last):
    ValueError: parameters['weight'] must have shape (2, 3), got (3,)
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise self._unknown(name) from None

    def _unknown(self, name: str) -> KeyError:
        known = did_you_mean(name, self) if isinstance(name, str) else ""
        return KeyError(f"parameters: this model has no {name!r}{known}")

    def replace(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace arrays, possibly by other shapes; references to the old ones are not updated."""
        self._arrays = {**self._arrays, **arrays}

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if name not in self._arrays:
            raise self._unknown(name)
        own = self._arrays[name]
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"parameters[{name!r}] must be an array, got {type(array).__name__}")
        if array.dtype != own.dtype:
            raise TypeError(f"parameters[{name!r}] must be {own.dtype}, got {array.dtype}")
        if array.shape != own.shape:
            raise ValueError(f"parameters[{name!r}] must have shape {own.shape}, got {array.shape}")
        own[...] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError("parameters cannot be removed from a model")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        count = sum(array.size for array in self._arrays.values())
        return f"<Parameters: {len(self)} arrays, {count:,} numbers>"


class Joined(Mapping):
    """Several mappings as one, each under a prefix.

    Examples
    --------
    >>> dict(Joined({"a.": {"x": 1}, "b.": {"x": 2}}))
    {'a.x': 1, 'b.x': 2}
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Any:
        for prefix, part in self._parts.items():
            if name.startswith(prefix):
                return part[name.removeprefix(prefix)]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (prefix + name for prefix, part in self._parts.items() for name in part)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))


class Weights:
    """The parameters whose names begin with a prefix, and a place for their gradients."""

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        gradients: dict[str, np.ndarray],
        prefix: str = "",
    ) -> None:
        self._parameters, self._gradients, self.prefix = parameters, gradients, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self._parameters[self.prefix + name]

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self._parameters.values())).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of these parameters, and therefore of their gradients."""
        arrays = self._parameters.items()
        return sum(array.nbytes for name, array in arrays if name.startswith(self.prefix))

    def below(self, prefix: str) -> Weights:
        return Weights(self._parameters, self._gradients, self.prefix + prefix)

    def add_gradient(self, name: str, gradient: np.ndarray | None, at: Any = None) -> None:
        """Accumulate a gradient. The first is stored without a copy, so the caller must not reuse
        it; None is ignored.

        `at` is an index: the gradient covers these elements only.
        """
        name = self.prefix + name
        if gradient is None:
            return
        if at is not None:
            if name not in self._gradients:
                self._gradients[name] = np.zeros_like(self._parameters[name])
            self._gradients[name][at] += gradient
        elif name in self._gradients:
            ops.add_scaled(self._gradients[name], gradient, 1.0)
        else:
            self._gradients[name] = gradient


class StepWeights:
    """The weight matrices of decoding steps: the model's, or these quantized at their first use.

    Parameters
    ----------
    storage : {"int8", "bfloat16"} or None
        As in `ops.quantize`.
    """

    def __init__(self, storage: str | None = None) -> None:
        self._storage = storage
        self._quantized: dict[str, ops.QuantizedWeight] = {}

    def matrix(self, weights: Weights, name: str) -> np.ndarray | ops.QuantizedWeight:
        if self._storage is None:
            return weights[name]
        full_name = weights.prefix + name
        if full_name not in self._quantized:
            try:
                self._quantized[full_name] = ops.quantize(weights[name], self._storage)
            except ValueError as error:
                message = f"weights must be finite numbers, got others in {full_name}"
                raise ValueError(message) from error
        return self._quantized[full_name]

    def linear(
        self, x: np.ndarray, weights: Weights, name: str, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """`ops.linear` of the tokens x (n, ci) with the matrix `name`."""
        matrix = self.matrix(weights, name)
        if isinstance(matrix, np.ndarray):
            return ops.linear(x, matrix, bias)
        return ops.quantized_linear(x, matrix, bias)


# ---- sublayers ----


class Step(NamedTuple):
    """The texts that a decoding step continues, by one token each."""

    # indices (n,) of the texts in the caches
    rows: np.ndarray
    # (n,): the new tokens' positions
    positions: np.ndarray
    # (n,): which prompts the texts continue
    prompts: np.ndarray
    weights: StepWeights


def peaks(*arrays: str) -> Callable[[Method], Method]:
    """Name the arrays that are alive at each peak of a method's memory.

    The names are keys of `Sublayer._sizes`. What is predicted for a step is read from these lists.
    """

    def mark(method: Method) -> Method:
        method.peaks = arrays  # type: ignore[attr-defined]
        return method

    return mark


class Sublayer(ABC):
    """A branch of a reversible layer: y = drop(function(layer_norm(x))), added to a stream.

    It works on one part of the streams at a time and normalises rows when it needs them, so no
    further array of the streams' size is allocated.
    """

    # bucket ids of the last forward pass, if the sublayer hashes
    hashes = False
    buckets: np.ndarray | None = None

    def __init__(self, weights: Weights, *, eps: float, dropout: float, key: Key) -> None:
        self.weights, self.eps, self.dropout, self.key = weights, eps, dropout, key

    def forward_add(self, out: np.ndarray, x: np.ndarray) -> None:
        for part in self._parts(x):
            self._add(part, rows_of(out), rows_of(x), 1.0)

    def backward_add(
        self, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        parts = self._parts(x)
        dx, dout, out, x = map(rows_of, (dx, dout, out, x))
        for part in parts:
            self._rebuild(part, dx, dout, out, x)

    # ---- decoding ----

    def open_cache(self, b: int, longest: int) -> Any:
        """What decoding steps need of the past tokens of b texts, of at most `longest` tokens."""
        return None

    def step_add(self, cache: Any, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        """Add the value of one new token (n, c) of each text to `out`."""
        self.forward_add(out, x)

    # ---- memory ----

    def kept_bytes(self, x: np.ndarray) -> int:
        """Bytes that `Kept` adds for a stream like x."""
        return x.nbytes + sum(self._saved_bytes(part, x) for part in self._parts(x))

    def backward_bytes(self, x: np.ndarray, *, kept: bool) -> int:
        """Peak bytes of `backward_add` for a stream like x, not counting what is already kept."""
        return max(self._working_bytes(part, x, kept) for part in self._parts(x))

    def _working_bytes(self, part: Any, x: np.ndarray, kept: bool) -> int:
        sizes = self._sizes(part, x)
        methods: list[Any] = [self._backward]
        if not kept:
            methods = [self._rebuild] if hasattr(self._rebuild, "peaks") else [self._add, *methods]
        peak = max(
            sum(sizes[name] for name in arrays.split())
            for method in methods
            for arrays in method.peaks
        )
        return peak - sizes["saved"] if kept else peak

    def bucket_bytes(self) -> int:
        """Bytes of the bucket ids, which are kept from forward to backward."""
        return 0

    # ---- parts ----

    @staticmethod
    def rows_at_a_time(c: int) -> int:
        """Rows (n, c) per block: 8 MB of float32, or enough to amortise the packing of wide
        weights."""
        return max(8192, 2**21 // c)

    def _normed(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        weight, bias = self.weights["layer_norm.weight"], self.weights["layer_norm.bias"]
        return ops.layer_norm_forward(x, weight, bias, eps=self.eps)

    def _add_normed_gradient(self, dx: np.ndarray, dn: np.ndarray, normed: Any) -> None:
        change, dweight, dbias = ops.layer_norm_backward(dn, normed)
        self.weights.add_gradient("layer_norm.weight", dweight)
        self.weights.add_gradient("layer_norm.bias", dbias)
        ops.add_scaled(dx, change, 1.0)

    def _add_dropped(self, out: np.ndarray, rows: slice, y: np.ndarray, sign: float) -> None:
        if self.dropout:
            ops.dropout(y, self.dropout, key=self.key("output", rows.start), out=y)
        ops.add_scaled(out[rows], y, sign)

    def _undropped(self, dout: np.ndarray, rows: slice) -> np.ndarray:
        """The gradient of the input of `_add_dropped`."""
        if self.dropout:
            return ops.dropout(dout[rows], self.dropout, key=self.key("output", rows.start))
        return dout[rows]

    def _rebuild(
        self, part: Any, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        """Subtract the part's value from `out`, and add its gradient to dx."""
        self._backward(part, dx, dout, x, self._add(part, out, x, -1.0))

    @abstractmethod
    def _parts(self, x: np.ndarray) -> list:
        """The units of work; they depend on sizes only."""

    @abstractmethod
    def _add(self, part: Any, out: np.ndarray, x: np.ndarray, sign: float) -> Any:
        """Add the part's value, times `sign`, to the rows of `out` (n, c). Returns what `_backward`
        needs."""

    @abstractmethod
    def _backward(
        self, part: Any, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, saved: Any
    ) -> None:
        """Add the part's gradient to the rows of dx. Deletes attributes of `saved` after their last
        use, to free memory early."""

    @abstractmethod
    def _saved_bytes(self, part: Any, x: np.ndarray) -> int:
        """Bytes of what `_add` returns."""

    @abstractmethod
    def _sizes(self, part: Any, x: np.ndarray) -> dict[str, int]:
        """Bytes of the arrays that `peaks` name; "saved" is what `_add` returns."""


class Kept:
    """A sublayer that keeps its activations: the stream before it, and what its parts saved.

    The backward pass restores the stream and recomputes nothing.
    """

    def __init__(self, sublayer: Sublayer) -> None:
        self._sublayer = sublayer

    def forward_add(self, out: np.ndarray, x: np.ndarray) -> None:
        layer = self._sublayer
        self._before = out.copy()
        self._saved = [layer._add(p, rows_of(out), rows_of(x), 1.0) for p in layer._parts(x)]

    def backward_add(
        self, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        out[...] = self._before
        del self._before
        parts = self._sublayer._parts(x)
        dx, dout, x = map(rows_of, (dx, dout, x))
        for part, saved in zip(parts, self._saved, strict=True):
            self._sublayer._backward(part, dx, dout, x, saved)
        del self._saved


def blocks(rows: slice, size: int) -> Iterator[slice]:
    """Rows, at most `size` at a time."""
    starts = range(rows.start, rows.stop, size)
    return (slice(start, min(start + size, rows.stop)) for start in starts)


def rows_of(x: np.ndarray) -> np.ndarray:
    """(b, t, c) -> (b t, c), a view."""
    return x.reshape(-1, x.shape[-1])


@dataclass
class Normed:
    """Normalised rows, and what the gradient of layer norm needs."""

    n: np.ndarray
    normed: Any


class FeedForward(Sublayer):
    """drop(act(drop(n w1' + b1)) w2' + b2), in chunks of rows (Kitaev et al. 2020, section 3)."""

    def __init__(
        self, weights: Weights, *, activation: str, chunk_length: int, eps: float, dropout: float,
        key: Key,
    ) -> None:  # fmt: skip
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.activation, self.chunk_length = activation, chunk_length

    names = ("dense.dense.weight", "dense.dense.bias", "output.dense.weight", "output.dense.bias")

    def _parts(self, x: np.ndarray) -> list[slice]:
        c = x.shape[-1]
        return list(blocks(slice(0, x.size // c), self.rows_at_a_time(c)))

    def _add(self, part: slice, out: np.ndarray, x: np.ndarray, sign: float) -> Normed:
        n, normed = self._normed(x[part])
        self._add_dropped(out, part, self._value(n, part.start), sign)
        return Normed(n, normed)

    # the gradient of the normalised rows, then scratch or the gradient of the rows
    @peaks("saved dropped block scratch", "saved dropped block block")
    def _backward(
        self, part: slice, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, saved: Normed
    ) -> None:
        dn = self._value_backward(self._undropped(dout, part), saved.n, part.start)
        del saved.n
        self._add_normed_gradient(dx[part], dn, saved.normed)
        del saved.normed

    # and the recomputed output
    @peaks("saved block dropped block scratch", "saved block dropped block block")
    def _rebuild(
        self, part: slice, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        n, normed = self._normed(x[part])
        y = np.empty_like(n)
        dn = self._value_backward(self._undropped(dout, part), n, part.start, y)
        self._add_dropped(out, part, y, -1.0)
        del y, n
        self._add_normed_gradient(dx[part], dn, normed)

    def step_add(self, cache: None, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        n, _ = self._normed(x)
        ops.add_scaled(out, self._step_value(step, n), 1.0)

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        """The output for the normalised new tokens."""
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
            n, w1, b1, w2, b2, self.activation, self.chunk_length, self.dropout, key
        )

    def _value_backward(
        self, dy: np.ndarray, n: np.ndarray, first: int, y: np.ndarray | None = None
    ) -> np.ndarray:
        """The gradient of the normalised rows; their recomputed output is written to y."""
        dn, *gradients = ops.feed_forward_backward(dy, self._saved(n, first), value_out=y)
        for name, gradient in zip(self.names, gradients, strict=True):
            self.weights.add_gradient(name, gradient)
        return dn

    def _saved_bytes(self, part: slice, x: np.ndarray) -> int:
        # the normalised rows, their mean and standard deviation
        return (part.stop - part.start) * (x.shape[-1] + 2) * x.itemsize

    def _sizes(self, part: slice, x: np.ndarray) -> dict[str, int]:
        c, rows = x.shape[-1], part.stop - part.start
        block = rows * c * x.itemsize
        return {
            "saved": self._saved_bytes(part, x),
            "block": block,
            "dropped": block if self.dropout else 0,
            "scratch": self._scratch_bytes(rows, c, x.dtype),
        }

    def _scratch_bytes(self, rows: int, c: int, dtype: np.dtype) -> int:
        _, backward = layer_scratch(
            "feed_forward", rows, c, len(self.weights[self.names[0]]),
            chunk_length=self.chunk_length, dtype=dtype,
        )  # fmt: skip
        return backward


class WeightedFeedForward(FeedForward):
    """A feed-forward layer whose activation has weights of its own; the activation is in NumPy."""

    def _step_value(self, step: Step, n: np.ndarray) -> np.ndarray:
        b1, b2 = self.weights[self.names[1]], self.weights[self.names[3]]
        h = step.weights.linear(n, self.weights, self.names[0], b1)
        h = WEIGHTED[self.activation].forward(h, **self._values())
        return step.weights.linear(h, self.weights, self.names[2], b2)

    def _value(self, n: np.ndarray, first: int) -> np.ndarray:
        w2, b2 = (self.weights[name] for name in self.names[2:])
        y = np.empty_like(n)
        for rows, h, _ in self._hidden(n, first):
            a = WEIGHTED[self.activation].forward(h, **self._values())
            ops.linear(a, w2, b2, out=y[rows])
        return y

    def _value_backward(
        self, dy: np.ndarray, n: np.ndarray, first: int, y: np.ndarray | None = None
    ) -> np.ndarray:
        dn = np.empty_like(n)
        w2, b2 = (self.weights[name] for name in self.names[2:])
        activation, values = WEIGHTED[self.activation], self._values()
        for rows, h, dense in self._hidden(n, first):
            _, projected = ops.linear_forward(
                activation.forward(h, **values), w2, b2, out=None if y is None else y[rows]
            )
            da, dw2, db2 = ops.linear_backward(dy[rows], projected)
            dh, slopes = activation.backward(da, h, **values)
            dh = self._drop_hidden(dh, first + rows.start)
            dn[rows], dw1, db1 = ops.linear_backward(dh, dense)
            for name, gradient in zip(self.names, (dw1, db1, dw2, db2), strict=True):
                self.weights.add_gradient(name, gradient)
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
        """Dropout, in place; it is linear, so the backward pass applies it too."""
        if self.dropout:
            ops.dropout(h, self.dropout, key=self.key("hidden", first), out=h)
        return h

    def _scratch_bytes(self, rows: int, c: int, dtype: np.dtype) -> int:
        """Arrays of a block of hidden units, and the gradient of the rows."""
        hidden = min(rows, self._hidden_rows()) * len(self.weights[self.names[0]])
        arrays = WEIGHTED[self.activation].arrays
        return (arrays * hidden + rows * c) * dtype.itemsize

    def _values(self) -> dict[str, float]:
        """Weights and constants of the activation, by name."""
        activation = WEIGHTED[self.activation]
        names = (*activation.weights, *activation.constants)
        return {name: self.weights[f"dense.act_fn.{name}"].item() for name in names}


# ---- the model's two ends ----


class Embeddings:
    """drop(word vector) + drop(position vector).

    Dropout acts on single elements of a position table, and on whole columns of the rectangle of
    axial positions, as in Hugging Face's model.
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
            x = np.array(inputs_embeds, order="C")
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
            # rows with the same positions share one lookup
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
        """Dropout as a function of (vectors (t, c), row of the batch, positions); the backward pass
        applies it too."""
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
    """drop(layer_norm(concatenated streams)), for a block of rows at a time."""

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
