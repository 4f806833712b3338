"""Cross-attention: of a decoder's tokens to the final states of an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec
from ..ops.machine import layer_scratch
from .attention import Attention
from .parameters import Weights
from .parts import Part
from .probabilities import cross_probabilities
from .sublayer import Step, in_memory_order

__all__ = ["CrossAttention", "EncoderStates"]


@dataclass
class EncoderStates:
    """What a decoder attends to: the final states of an encoder.

    Attributes
    ----------
    states : ndarray, (b, s, c)
    mask : ndarray, (b, s), or None
        Nonzero for a real token.
    gradient : ndarray, (b, s, c), or None
        In training, the gradient of the states, which all layers accumulate.
    heads : dict of str to list of ndarray, (b, h, s, d)
        The keys and values of each layer, computed at the first decoding step; of dtype uint16 if
        they are kept as bfloat16.
    row_keys : sequence of str
        A digest of each row of the encoder's input.
    """

    states: np.ndarray
    mask: np.ndarray | None = None
    gradient: np.ndarray | None = None
    heads: dict[str, list[np.ndarray]] = field(default_factory=dict)
    row_keys: Sequence[str] = ()

    def take_gradient(self) -> np.ndarray:
        """The gradient; states and gradient are freed with it."""
        assert self.gradient is not None
        gradient = self.gradient
        del self.states, self.gradient
        return gradient


def runs(texts: np.ndarray) -> list[tuple[slice, slice]]:
    """Cut text indices (n,) into runs of successive indices that repeat equally often: for each
    run, its slice of `texts` and the slice of indices that it covers.

    Examples
    --------
    >>> runs(np.array([0, 0, 1, 1, 4, 4, 5]))
    [(slice(0, 4, None), slice(0, 2, None)), (slice(4, 6, None), slice(4, 5, None)), \
(slice(6, 7, None), slice(5, 6, None))]
    """
    starts = np.flatnonzero(np.diff(texts, prepend=-1))
    counts, firsts = np.diff(starts, append=len(texts)), texts[starts]
    begins = np.flatnonzero((np.diff(counts, prepend=0) != 0) | (np.diff(firsts, prepend=-2) != 1))
    edges = np.append(starts, len(texts))
    return [
        (slice(int(edges[i]), int(edges[j])), slice(int(firsts[i]), int(firsts[i]) + int(j - i)))
        for i, j in zip(begins, [*begins[1:], len(starts)], strict=True)
    ]


class CrossAttention(Attention):
    """softmax(q k' / sqrt(d)) v, for queries of the stream and keys and values of an encoder.

    q is (b, h, t, d); k and v are (b, h, s, d) and projected from the encoder's states (Vaswani et
    al. 2017, section 3.2.3). See `reformer_c.full_attention`.

    Parameters
    ----------
    encoder : EncoderStates
    prompt_index : ndarray of int, (b,), optional
        Sequence i attends to the states of row ``prompt_index[i]``; by default to those of row i.
    weights, **rest
        As in `Attention`.
    """

    projections = ("query", "key", "value")
    own_projections = ("query",)
    inner = "attention"

    def __init__(
        self,
        weights: Weights,
        *,
        encoder: EncoderStates,
        prompt_index: np.ndarray | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(weights, attention_mask=None, **rest)
        self.encoder, self.prompt_index = encoder, prompt_index

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, c = x.shape
        longest = max(t, self.encoder.states.shape[1])
        return self._sequences(b, t, max(1, self.rows_at_a_time(c) // longest))

    def _rows_of_states(self, part: Part) -> Any:
        """Index of the encoder states that a part's sequences attend to."""
        first = part.own.start * part.sequences // part.rows
        rows = slice(first, first + part.sequences)
        return rows if self.prompt_index is None else self.prompt_index[rows]

    def _states(self, index: Any) -> np.ndarray:
        rows: np.ndarray = self.encoder.states[index].reshape(-1, self.encoder.states.shape[-1])
        return rows

    def _mask(self, part: Part) -> np.ndarray | None:
        mask = self.encoder.mask
        return None if mask is None else mask[self._rows_of_states(part)]

    def _project(self, part: Part, x: np.ndarray) -> list[np.ndarray]:
        return super()._project(part, x) + self._encoder_heads(part, self._rows_of_states(part))

    def _encoder_heads(self, part: Part, index: Any) -> list[np.ndarray]:
        """Keys and values of the encoder states at `index`."""
        states = self._states(index)
        heads = (
            ops.linear(states, self._projection_weight(name, part)) for name in ("key", "value")
        )
        return [self._split_heads(part, head) for head in heads]

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        return ops.full_attention_forward(*heads, **self._rules(part))[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        q, k, _ = heads
        return cross_probabilities(q, k, self._mask(part), self.rules["softcap"])

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        b, n = self.shape
        return b, self.num_heads, n, self.encoder.states.shape[1]

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        dq, dk, dv = ops.full_attention_backward(dout, saved)
        assert dk is not None
        return dq, dk, dv

    def _heads_backward(
        self, part: Part, dx: np.ndarray, x: np.ndarray, dheads: list[np.ndarray]
    ) -> None:
        super()._heads_backward(part, dx, x, dheads[:1])
        index = self._rows_of_states(part)
        states, gradient = self._states(index), self.encoder.gradient
        assert gradient is not None
        for name, dhead in zip(("key", "value"), dheads[1:], strict=True):
            dstates = self._project_backward(part, name, states, dhead)
            ops.add_scaled(gradient[index], dstates.reshape(gradient[index].shape), 1.0)
            del dstates  # free it before the next is allocated

    def open_cache(self, b: int, longest: int, **options: Any) -> list[np.ndarray]:
        """Keys and values (b, h, s, d) of all encoder states; all texts of a call share them."""
        layer, cached = self.weights.prefix, self.encoder.heads
        if layer not in cached:
            every = slice(0, len(self.encoder.states))
            part = Part(every.stop, every, (every,), slice(0, self.num_heads))
            heads = self._encoder_heads(part, every)
            of_keys = self._hashed(heads[0])
            if options.get("cache_dtype") is not None:
                heads = [in_memory_order(ops.to_bfloat16, head) for head in heads]
            cached[layer] = heads + of_keys
        return cached[layer]

    def _hashed(self, k: np.ndarray) -> list[np.ndarray]:
        """What else a cache holds of the keys (b, h, s, d)."""
        return []

    def step_add(self, cache: list[np.ndarray], step: Step, out: np.ndarray, x: np.ndarray) -> None:
        heads = slice(0, self.num_heads)
        n, _ = self.norm.forward(x)
        q = step.weights.linear(n, self._projections, "query.weight")
        attended = np.empty_like(q)
        for rows, some in self._groups(step.prompts):
            # tokens that attend to the same text become the queries of one sequence: the cached
            # keys and values need no copy
            group = Part(some.stop - some.start, rows, (rows,), heads)
            k, v, *of_keys = (array[some] for array in cache)
            if k.dtype == np.uint16:
                widen = partial(ops.from_bfloat16, dtype=x.dtype)
                k, v = in_memory_order(widen, k), in_memory_order(widen, v)
            mask = None if self.encoder.mask is None else self.encoder.mask[some]
            self._attend_cached(
                self._split_heads(group, q[rows]), k, v, of_keys, some, attention_mask=mask,
                softcap=self.rules["softcap"],
                out=self._split_heads(group, attended[rows]),
            )  # fmt: skip
        y = step.weights.linear(attended, self.weights, "output.dense.weight")
        ops.add_scaled(out, y, 1.0)

    def _groups(self, prompts: np.ndarray) -> Iterable[tuple[slice, slice]]:
        """Tokens of a step that attend together, and the texts that they attend to: see `runs`."""
        return runs(prompts)

    def _attend_cached(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        of_keys: list[np.ndarray],
        texts: slice,
        **options: Any,
    ) -> None:
        ops.full_attention(q, k, v, **options)

    # ---- memory ----

    def _heads_bytes(self, part: Part, x: np.ndarray) -> int:
        keys = part.sequences * self.encoder.states.shape[1] * self._width(part, "key")
        size: int = self._head_bytes(part, x) + 2 * keys * x.itemsize
        return size

    def _sizes(self, part: Part, x: np.ndarray) -> dict[str, int]:
        s, c = self.encoder.states.shape[1:]
        rows, width = part.sequences * s, self._width(part, "key")
        linear = max(layer_scratch("linear", rows, c, width, dtype=x.dtype))
        own = {"states": rows * c * x.itemsize, "encoder_linear": linear}
        return super()._sizes(part, x) | own

    def _longest(self, part: Part) -> int:
        longest: int = max(self.encoder.states.shape[1], part.length)
        return longest

    def _scratch_spec(self) -> AttentionSpec:
        return AttentionSpec("full")
