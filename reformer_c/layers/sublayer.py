"""The branches of a reversible layer: what attention and feed-forward have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import ops
from .layer_norm import LayerNorm
from .parameters import StepWeights, Weights
from .randomness import Dropout, Key
from .streams import add_to, numbers, stream_bytes

__all__ = ["Kept", "Step", "Sublayer", "blocks", "peaks"]

Method = TypeVar("Method", bound=Callable[..., Any])


class Step(NamedTuple):
    """A decoding step: n texts, each continued by one token.

    Attributes
    ----------
    rows : ndarray of int, (n,)
        Indices of the texts in the caches.
    positions : ndarray of int, (n,)
        Positions of the new tokens.
    prompts : ndarray of int, (n,)
        Indices of the prompts that the texts continue.
    weights : StepWeights
    """

    rows: np.ndarray
    positions: np.ndarray
    prompts: np.ndarray
    weights: StepWeights


def peaks(*arrays: str) -> Callable[[Method], Method]:
    """List the arrays that are alive at each peak of a method's memory.

    The names are keys of `Sublayer._sizes`. The memory of a step is predicted from these lists.
    """

    def mark(method: Method) -> Method:
        method.peaks = arrays  # type: ignore[attr-defined]
        return method

    return mark


class Sublayer(ABC):
    """A branch of a reversible layer: out += drop(f(layer_norm(x))), for streams (b, t, c).

    See Kitaev et al. 2020, section 3, "Reversible Transformer". A subclass cuts the work into parts
    and computes one part at a time. Layer norm and dropout run on a block of rows at a time, so no
    further array of the streams' size is allocated.

    Weights are looked up when they are used, gradients are accumulated, and every random choice has
    a key, so `backward_add` repeats `forward_add` exactly.

    Parameters
    ----------
    weights : Weights
        With the prefix of the branch.
    eps : float
        Of layer norm.
    dropout : float
        Probability of dropout of the output.
    key : callable
        From the purpose of a random choice to its key.
    """

    # whether the branch hashes, and the bucket ids of its last forward pass
    hashes = False
    buckets: np.ndarray | None = None

    def __init__(self, weights: Weights, *, eps: float, dropout: float, key: Key) -> None:
        self.weights, self.key = weights, key
        self.norm = LayerNorm(weights.below("layer_norm."), eps=eps)
        self.drop = Dropout(dropout, key)

    def forward_add(self, out: np.ndarray, x: np.ndarray) -> None:
        """Add the branch's value at x (b, t, c) to `out`."""
        for part in self._parts(x):
            self._add(part, rows_of(out), rows_of(x), 1.0)

    def backward_add(
        self, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        """Subtract the branch's value from `out`, and add its gradient to dx; all (b, t, c)."""
        parts = self._parts(x)
        dx, dout, out, x = map(rows_of, (dx, dout, out, x))
        for part in parts:
            self._rebuild(part, dx, dout, out, x)

    def add_and_save(
        self, out: np.ndarray, x: np.ndarray, kept_dtype: str | None = None
    ) -> list[Any]:
        """`forward_add`. Returns what its parts saved, for `backward_saved`; with `kept_dtype`
        "bfloat16" their activations are rounded."""
        saved = []
        for part in self._parts(x):
            of_part = self._add(part, rows_of(out), rows_of(x), 1.0)
            saved.append(self._activations(ops.to_bfloat16, of_part) if kept_dtype else of_part)
        return saved

    def backward_saved(
        self,
        dx: np.ndarray,
        dout: np.ndarray,
        x: np.ndarray,
        saved: list[Any],
        kept_dtype: str | None = None,
    ) -> None:
        """Add the branch's gradient to dx (b, t, c), from what `add_and_save` returned, which is
        freed part by part."""
        parts = self._parts(x)
        dx, dout, x = map(rows_of, (dx, dout, x))
        widen = partial(ops.from_bfloat16, dtype=self.weights.dtype)
        for i, part in enumerate(parts):
            of_part = self._activations(widen, saved[i]) if kept_dtype else saved[i]
            saved[i] = None
            self._backward(part, dx, dout, x, of_part)

    # ---- decoding ----

    def open_cache(self, b: int, longest: int, **options: Any) -> Any:
        """The cache that decoding steps need for b texts of at most `longest` tokens, with the
        options `drop` and `cache_dtype` of `ops.AttentionCache`."""
        return None

    def step_add(self, cache: Any, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        """Add the value at one new token of each text to `out`; x and `out` are (n, c)."""
        self.forward_add(out, x)

    def step_stream(self, cache: Any, step: Step, out: np.ndarray, x: np.ndarray) -> None:
        """`step_add` for streams (n, c) of any storage."""
        if out.dtype.kind == "f":
            self.step_add(cache, step, out, x)
            return
        y = np.zeros(x.shape, self.weights.dtype)
        self.step_add(cache, step, y, numbers(x, y.dtype))
        add_to(out, y, 1.0, self.weights.prefix[:-1])

    # ---- memory ----

    def kept_bytes(self, x: np.ndarray, kept_dtype: str | None = None) -> int:
        """Bytes of what `add_and_save` returns for a stream like x."""
        sizes = (self._saved_sizes(part, x) for part in self._parts(x))
        return sum(rounded_bytes(size, x, kept_dtype) + rest for size, rest in sizes)

    def backward_bytes(self, x: np.ndarray, *, kept: bool, kept_dtype: str | None = None) -> int:
        """Peak bytes of `backward_add` for a stream like x, not counting what is already kept."""
        return max(self._working_bytes(part, x, kept, kept_dtype) for part in self._parts(x))

    def _working_bytes(self, part: Any, x: np.ndarray, kept: bool, kept_dtype: str | None) -> int:
        sizes = self._sizes(part, x)
        methods: list[Any] = [self._backward]
        if not kept:
            methods = [self._rebuild] if hasattr(self._rebuild, "peaks") else [self._add, *methods]
        peak = max(
            sum(sizes[name] for name in arrays.split())
            for method in methods
            for arrays in method.peaks
        )
        # what was rounded is widened, part by part
        return peak - sizes["saved"] if kept and kept_dtype is None else peak

    def bucket_bytes(self) -> int:
        """Bytes of the bucket ids, which are kept from forward to backward."""
        return 0

    # ---- parts ----

    @staticmethod
    def rows_at_a_time(c: int) -> int:
        """Rows (n, c) per block: 8 MB of float32, or enough to amortise the packing of wide
        weights."""
        return max(8192, 2**21 // c)

    def _add_dropped(self, out: np.ndarray, rows: slice, y: np.ndarray, sign: float) -> None:
        """out[rows] += sign drop(y), for y (rows, c), which is overwritten."""
        dropped = self.drop(y, "output", rows.start, in_place=True)
        add_to(out[rows], dropped, sign, self.weights.prefix[:-1])

    def _undropped(self, dout: np.ndarray, rows: slice) -> np.ndarray:
        """The gradient of y in `_add_dropped`."""
        dy = numbers(dout[rows], self.weights.dtype)
        return self.drop(dy, "output", rows.start, in_place=dy.dtype != dout.dtype)

    def _rebuild(
        self, part: Any, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        """Subtract the part's value from `out`, and add its gradient to dx."""
        self._backward(part, dx, dout, x, self._add(part, out, x, -1.0))

    @abstractmethod
    def _parts(self, x: np.ndarray) -> list[Any]:
        """The units of work for x (b, t, c); they depend on sizes only."""

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
    def _activations(self, function: Callable[[np.ndarray], np.ndarray], saved: Any) -> Any:
        """What `_add` returned, with a function of every number of its activations."""

    @abstractmethod
    def _saved_sizes(self, part: Any, x: np.ndarray) -> tuple[int, int]:
        """Bytes of what `_add` returns: of activations, and of the rest."""

    def _saved_bytes(self, part: Any, x: np.ndarray) -> int:
        """Bytes of what `_add` returns."""
        return sum(self._saved_sizes(part, x))

    @abstractmethod
    def _sizes(self, part: Any, x: np.ndarray) -> dict[str, int]:
        """Bytes of the arrays that `peaks` lists; "saved" is what `_add` returns."""


class Kept:
    """A sublayer that keeps its activations: the stream (b, t, c) that it adds to, and what its
    parts saved.

    The backward pass restores the stream and recomputes nothing.

    Parameters
    ----------
    sublayer : Sublayer
    kept_dtype : {"bfloat16"}, optional
        What activations are rounded to.
    exact : bool
        Keep the stream as it is: it has few bits already, or the layers before recompute their
        activations from it.
    """

    def __init__(
        self, sublayer: Sublayer, kept_dtype: str | None = None, *, exact: bool = False
    ) -> None:
        self._sublayer, self._kept_dtype = sublayer, kept_dtype
        self._rounds = kept_dtype is not None and not exact

    def forward_add(self, out: np.ndarray, x: np.ndarray) -> None:
        self._before = ops.to_bfloat16(out) if self._rounds else out.copy()
        self._saved = self._sublayer.add_and_save(out, x, self._kept_dtype)

    def backward_add(
        self, dx: np.ndarray, dout: np.ndarray, out: np.ndarray, x: np.ndarray
    ) -> None:
        if self._rounds:
            ops.from_bfloat16(self._before, out=out)
        else:
            out[...] = self._before
        del self._before
        self._sublayer.backward_saved(dx, dout, x, self._saved, self._kept_dtype)
        del self._saved


def blocks(rows: slice, size: int) -> Iterator[slice]:
    """Cut a slice of rows into slices of at most `size`.

    Examples
    --------
    >>> list(blocks(slice(2, 7), 3))
    [slice(2, 5, None), slice(5, 7, None)]
    """
    starts = range(rows.start, rows.stop, size)
    return (slice(start, min(start + size, rows.stop)) for start in starts)


def rounded_bytes(size: int, x: np.ndarray, kept_dtype: str | None) -> int:
    """Bytes of an array that takes `size` bytes in x's dtype, as it is kept."""
    return size if kept_dtype is None else size // x.itemsize * 2


def kept_stream_bytes(x: np.ndarray, kept_dtype: str | None, residual_dtype: str | None) -> int:
    """Bytes of a stream of the numbers x that is kept before a branch: streams in fixed point are
    not rounded."""
    own, _ = stream_bytes(x, residual_dtype)
    return own if residual_dtype is not None else rounded_bytes(own, x, kept_dtype)


def in_memory_order(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """function(x) of each number, with the memory layout of x.

    Examples
    --------
    >>> in_memory_order(np.negative, np.ones((2, 3)).T).flags.f_contiguous
    True
    """
    order = np.argsort([-stride for stride in x.strides], kind="stable")
    found: np.ndarray = function(x.transpose(order)).transpose(np.argsort(order))
    return found


def rows_of(x: np.ndarray) -> np.ndarray:
    """(b, t, c) -> (b t, c), a view."""
    return x.reshape(-1, x.shape[-1])
