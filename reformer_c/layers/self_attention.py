"""What attention within a sequence has in common: windows of chunks, and the cache of decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .attention import Attention
from .parts import Part
from .sublayer import Step, blocks

__all__ = ["SelfAttention", "WholeSequences", "WINDOW", "queries_keys_values"]

# the options of the window of chunks that a token attends to
WINDOW = ("chunk_length", "num_chunks_before", "num_chunks_after")


class SelfAttention(Attention):
    """Attention within a sequence (b, h, t, d). Local and LSH attention are to the chunks around a
    token's own: with chunks of m tokens, to a window of (before + 1 + after) m keys.
    """

    # whether queries and keys have one projection, "query_key"
    shared_qk = False
    # layer norm's weights and the projections, set in the first decoding step
    _step_weights: tuple[Any, ...] = ()

    @property
    def _window(self) -> tuple[int, int, int]:
        """Chunk length, and the numbers of chunks before and after a token's own."""
        m, before, after = (self.rules[name] for name in WINDOW)
        return m, before, after

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        m, before, after = self._window
        (b, n), rounds = self.shape, self.rules.get("num_hashes", 1)
        if n <= m or self.rules.get("scope") == "bucket":
            return b, self.num_heads, n, n
        return b, self.num_heads, rounds, -(-n // m), m, (before + 1 + after) * m

    @property
    def _rope_theta(self) -> float | None:
        return None if self._rotary is None else self._rotary.theta

    def open_cache(self, b: int, longest: int, **options: Any) -> ops.AttentionCache:
        m, before, _ = self._window
        return ops.AttentionCache(
            b, self.num_heads, self._depth, num_key_value_heads=self.num_key_value_heads,
            longest=longest, chunk_length=m, num_chunks_before=before,
            softcap=self.rules["softcap"], eps=self.norm.eps,
            rope_theta=self._rope_theta, shared_qk=self.shared_qk,
            dtype=self.weights.dtype.type, **self._cache_hashing(), **options,
        )  # fmt: skip

    def _cache_hashing(self) -> dict[str, Any]:
        """The arguments of a cache that depend on the kind of attention."""
        return {"scope": "local"}

    def step_add(
        self, cache: ops.AttentionCache, step: Step, out: np.ndarray, x: np.ndarray
    ) -> None:
        if not self._step_weights:
            self._step_weights = self._weights_of_steps(step)
        norm, projections = self._step_weights
        cache.step(out, x, norm, projections, step.rows, step.positions)

    def _weights_of_steps(self, step: Step) -> tuple[Any, ...]:
        """Layer norm's weights and the projections, in the order of `AttentionCache.step`."""
        norm = self.norm.weights["weight"], self.norm.weights["bias"]
        query, *key, value = (
            step.weights.matrix(self._projections, f"{name}.weight") for name in self.projections
        )
        output = step.weights.matrix(self.weights, "output.dense.weight")
        return norm, (query, key[0] if key else None, value, output)


def queries_keys_values(
    heads: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The heads of the projections; the keys are None if queries and keys are shared."""
    q, *k, v = heads
    return q, k[0] if k else None, v


class WholeSequences(SelfAttention):
    """Attention that cannot be cut into stretches of a sequence. But heads are independent: if the
    arrays of all heads would be large, one or a few heads are computed at a time."""

    # maximum size of a part's array of heads (b, h, t, d), unless it holds a single head
    max_bytes = 2**25

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, _ = x.shape
        head = t * self._depth * self.weights.dtype.itemsize
        fitting = max(1, self.max_bytes // head)
        if fitting >= self.num_heads:
            return self._sequences(b, t, fitting // self.num_heads)
        # whole groups of heads that share values, or an equal part of one
        sharers = self.num_heads // self.num_key_value_heads
        while fitting % sharers and sharers % fitting:
            fitting -= 1
        heads = list(blocks(slice(0, self.num_heads), fitting))
        rows = blocks(slice(0, b * t), t)
        return [Part(1, own, (own,), some) for own in rows for some in heads]
