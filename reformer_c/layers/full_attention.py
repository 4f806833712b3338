"""Full attention: to every token of the sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec
from .parts import Part
from .probabilities import full_probabilities
from .self_attention import WholeSequences, queries_keys_values

__all__ = ["FullAttention", "FullSharedAttention"]


class FullAttention(WholeSequences):
    """softmax(q k' / sqrt(d)) v over all tokens, or under the causal mask over the earlier ones.

    q, k and v are (b, h, t, d); see `reformer_c.full_attention`. What LSH attention approximates.
    """

    projections: tuple[str, ...] = ("query", "key", "value")
    own_projections: tuple[str, ...] = projections

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        b, n = self.shape
        return b, self.num_heads, n, n

    def open_cache(self, b: int, longest: int, **options: Any) -> ops.AttentionCache:
        return ops.AttentionCache(
            b, self.num_heads, self._depth, num_key_value_heads=self.num_key_value_heads,
            scope="full", longest=longest,
            shared_qk=self.shared_qk, softcap=self.rules["softcap"], eps=self.norm.eps,
            rope_theta=self._rope_theta, dtype=self.weights.dtype.type,
            **options,
        )  # fmt: skip

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        return ops.full_attention_forward(
            *queries_keys_values(heads), shared_qk=self.shared_qk, **self._rules(part)
        )[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        q, k, _ = queries_keys_values(heads)
        return full_probabilities(q, k, **self._rules(part))

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        gradients = ops.full_attention_backward(dout, saved)
        return tuple(gradient for gradient in gradients if gradient is not None)

    def _scratch_spec(self) -> AttentionSpec:
        return AttentionSpec("full", shared_qk=self.shared_qk, is_causal=self.rules["is_causal"])


class FullSharedAttention(FullAttention):
    """The same with shared queries and keys, k = q / |q|, and the self-mask (Kitaev et al. 2020,
    section 2, "Shared-QK Transformer")."""

    projections = own_projections = ("query_key", "value")
    shared_qk = True
