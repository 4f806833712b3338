"""The attention sublayers of a Reformer: layer norm, projections, attention, output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import ops
from .nn import Key, Sublayer, Weights
from .ops.attention import attention_scratch
from .ops.machine import layer_scratch
from .probabilities import local_probabilities, lsh_probabilities

__all__ = ["LocalAttention", "LSHAttention"]

# what an op's scratch depends on, but for the sizes of its arrays
WINDOW = ("chunk_length", "num_chunks_before", "num_chunks_after")


class Attention(Sublayer):
    """drop(attend(n w_q', n w_v', ...) w_o'), for heads side by side in a row.

    A subclass names its `projections`, and gives `_attend(*heads)` and `_attend_backward`.

    Parameters
    ----------
    weights : Weights
        Those below ``attention.`` of a layer.
    num_heads : int
    attention_mask : ndarray or None
        (b, t), nonzero for a real token.
    attention_dropout : float
        Of the attention's probabilities.
    rules : keyword arguments
        Passed on to the op: chunk_length, num_chunks_before, is_causal ...
    """

    projections: tuple[str, ...]
    # whether the next forward pass leaves its probabilities behind
    record = False
    # called with the heads (b, h, t, d) of a forward pass, and the buckets where there are any
    remember: Callable[[Sequence[np.ndarray], np.ndarray | None], None] | None = None
    # (b, h, r, t) after a pass of a layer that hashes; None where the sequence is one chunk
    buckets: np.ndarray | None = None

    def __init__(
        self,
        weights: Weights,
        *,
        num_heads: int,
        attention_mask: np.ndarray | None,
        attention_dropout: float,
        eps: float,
        dropout: float,
        key: Key,
        **rules: Any,
    ) -> None:
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.num_heads = num_heads
        self.probabilities: np.ndarray | None = None
        self.rules = rules | {
            "attention_mask": attention_mask,
            "dropout": attention_dropout,
            "dropout_key": key("probabilities"),
        }

    def _forward(self, n: np.ndarray) -> tuple[np.ndarray, list]:
        saved, heads = [], []
        for name in self.projections:
            y, projected = ops.linear_forward(n, self.weights[f"self_attention.{name}.weight"])
            saved.append(projected)
            heads.append(self._split(y))
        out, attended = self._attend(*heads)
        if self.remember is not None:
            self.remember(heads, self.buckets)
        if self.record:
            self.probabilities = self._probabilities(*heads)
        y, projected = ops.linear_forward(self._merge(out), self.weights["output.dense.weight"])
        return y, [*saved, attended, projected]

    def _backward(self, dy: np.ndarray, saved: list) -> np.ndarray:
        dout, dweight, _ = ops.linear_backward(dy, saved.pop())
        del dy  # as large as a stream, and not needed while attention takes its memory
        self.weights.add_gradient("output.dense.weight", dweight)
        dheads = list(self._attend_backward(self._split(dout), saved.pop()))
        *others, last = self.projections
        dn = self._project_backward(last, dheads.pop(), saved)
        for name in reversed(others):
            ops.add_scaled(dn, self._project_backward(name, dheads.pop(), saved), 1.0)
        return dn

    def _project_backward(self, name: str, dhead: np.ndarray, saved: list) -> np.ndarray:
        dn, dweight, _ = ops.linear_backward(self._merge(dhead), saved.pop())
        self.weights.add_gradient(f"self_attention.{name}.weight", dweight)
        return dn

    def _kept_row(self, c: int) -> int:
        # the heads' projections, their output, and its log-sum-exp
        return (len(self.projections) + 1) * self._width() + self.num_heads

    def _working_bytes(self, x: np.ndarray) -> tuple[int, int]:
        b, t, c = x.shape
        width, parts = self._width(), len(self.projections)
        heads = b * t * width * x.itemsize
        linear, _ = layer_scratch("linear", b * t, c, width, dtype=x.dtype)
        shape = (b, self.num_heads, t, width // self.num_heads)
        forward, backward = self._attention_scratch(shape, x.dtype)
        # while attending: the output's gradient and those of the heads
        attending = (1 + parts) * heads + backward
        # while projecting the second of them: two streams, and all that attention saved is gone
        saved = (1 + parts) * heads + b * t * self.num_heads * x.itemsize
        projecting = 2 * x.nbytes + parts * heads - saved + linear
        output = self._dropped_bytes(x) + heads + linear
        return max(linear, forward), max(output, attending, projecting)

    def _width(self) -> int:
        """Of the heads side by side."""
        return len(self.weights[f"self_attention.{self.projections[0]}.weight"])

    @abstractmethod
    def _attention_scratch(
        self, shape: tuple[int, int, int, int], dtype: np.dtype
    ) -> tuple[int, int]:
        """Bytes of the op's own, forward and backward, for heads (b, h, t, d)."""

    def _split(self, x: np.ndarray) -> np.ndarray:
        """(b, t, h d) -> (b, h, t, d), the same memory."""
        b, t, width = x.shape
        return x.reshape(b, t, self.num_heads, width // self.num_heads).transpose(0, 2, 1, 3)

    def _merge(self, x: np.ndarray) -> np.ndarray:
        """(b, h, t, d) -> (b, t, h d), the same memory where it was split."""
        b, h, t, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)

    @abstractmethod
    def _attend(self, *heads: np.ndarray) -> tuple[np.ndarray, Any]:
        """The heads' output (b, h, t, d), and what the op saved."""

    @abstractmethod
    def _probabilities(self, *heads: np.ndarray) -> np.ndarray:
        """The probabilities that `_attend` used, in the shape of Hugging Face's."""

    @abstractmethod
    def _attend_backward(self, dout: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        """The gradients of the heads, in the order of `projections`."""


class LocalAttention(Attention):
    """Attention to the own chunk of the sequence and its neighbours.

    `wrap`: on Hugging Face's circle, where a text of no more than `num_chunks_before` chunks shows
    some of them twice.
    """

    projections = ("query", "key", "value")

    def __init__(self, weights: Weights, *, wrap: bool = True, **rest: Any) -> None:
        super().__init__(weights, **rest)
        self.wrap = wrap

    def _attend(self, *heads: np.ndarray) -> tuple[np.ndarray, Any]:
        return ops.local_attention_forward(*heads, wrap=self.wrap, **self.rules)

    def _attend_backward(self, dout: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        return ops.local_attention_backward(dout, saved)

    def _attention_scratch(
        self, shape: tuple[int, int, int, int], dtype: np.dtype
    ) -> tuple[int, int]:
        windows = {name: self.rules[name] for name in WINDOW}
        return attention_scratch("local", shape, dtype=dtype, **windows)

    def _probabilities(self, *heads: np.ndarray) -> np.ndarray:
        return local_probabilities(*heads[:2], **self.rules)


class LSHAttention(Attention):
    """Attention among the tokens whose shared query and key falls into the same bucket.

    The buckets of the first pass are kept, and used again in the backward pass: there the input
    is rebuilt with other rounding, and a second hash could give other buckets.

    `rotations` (h, d, r, s) may be None: then they are drawn from the key `rotations_key`.
    """

    projections = ("query_key", "value")

    def __init__(
        self, weights: Weights, *, rotations: np.ndarray | None, rotations_key: int, **rest: Any
    ) -> None:
        super().__init__(weights, **rest)
        self.rotations, self.rotations_key = rotations, rotations_key

    def _attend(self, *heads: np.ndarray) -> tuple[np.ndarray, Any]:
        qk, v = heads
        source: dict[str, Any]
        if self.buckets is not None:
            source = {"buckets": self.buckets}
        elif self.rotations is not None:
            source = {"rotations": self.rotations}
        else:
            source = {"rng": self.rotations_key}
        out, saved = ops.lsh_attention_forward(qk, v, **source, **self.rules)
        self.buckets = saved.buckets
        return out, saved

    def _attend_backward(self, dout: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        return ops.lsh_attention_backward(dout, saved)

    def _attention_scratch(
        self, shape: tuple[int, int, int, int], dtype: np.dtype
    ) -> tuple[int, int]:
        rules = {name: self.rules[name] for name in (*WINDOW, "num_hashes", "num_buckets")}
        return attention_scratch(self.rules["scope"], shape, dtype=dtype, **rules)

    def bucket_bytes(self, shape: tuple[int, ...]) -> int:
        """Of the bucket ids (b, h, r, t), which stay from the first pass to the last."""
        b, t, _ = shape
        one_chunk = t <= self.rules["chunk_length"] and self.rules["scope"] == "chunk"
        return 0 if one_chunk else 4 * b * self.num_heads * self.rules["num_hashes"] * t

    def _probabilities(self, *heads: np.ndarray) -> np.ndarray:
        return lsh_probabilities(heads[0], self.buckets, **self.rules)
