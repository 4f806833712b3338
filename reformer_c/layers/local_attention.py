"""Local attention: to a token's own chunk and its neighbours."""

from __future__ import annotations

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec
from .parts import Part
from .probabilities import local_probabilities
from .self_attention import WINDOW, SelfAttention, queries_keys_values

__all__ = ["LocalAttention", "LocalSharedAttention"]


class LocalAttention(SelfAttention):
    """softmax(q k' / sqrt(d)) v over a token's own chunk and the neighbouring chunks.

    q, k and v are (b, h, t, d); see `reformer_c.local_attention`. A long sequence is computed in
    stretches of whole chunks, each extended by the chunks around it, whose output is discarded.

    With the rule `wrap`, chunks form a circle, as in Hugging Face's model; a sequence of at most
    `num_chunks_before` chunks then attends to some of them twice.
    """

    projections: tuple[str, ...] = ("query", "key", "value")
    own_projections: tuple[str, ...] = projections

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, c = x.shape
        m, before, after = self._window
        # long enough that the surrounding chunks, which are computed twice, cost little
        longest = max(self.rows_at_a_time(c), 64 * (before + after) * m)
        if t <= longest:
            return self._sequences(b, t, longest // t)
        chunks = -(-t // m)
        count = -(-chunks // (longest // m))
        bounds = [chunks * i // count for i in range(count + 1)]
        return [
            self._stretch(row * t, t, bounds[i], bounds[i + 1])
            for row in range(b)
            for i in range(count)
        ]

    def _stretch(self, start: int, t: int, first: int, last: int) -> Part:
        """Chunks [first, last) of the sequence of t tokens whose first row is `start`."""
        m, before, after = self._window
        chunks = -(-t // m)
        low, high = first - before, last + after
        seen = [(max(low, 0), min(high, chunks))]
        # wrapped chunks are listed in order of position: that keeps them neighbours on the circle
        if self.rules["wrap"] and low < 0:
            seen.append((chunks + low, chunks))
        if self.rules["wrap"] and high > chunks:
            seen.insert(0, (0, high - chunks))

        def rows(begin: int, end: int) -> slice:
            return slice(start + begin * m, start + min(end * m, t))

        pieces = tuple(rows(*piece) for piece in seen)
        return Part(1, rows(first, last), pieces, slice(0, self.num_heads))

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        return ops.local_attention_forward(
            *queries_keys_values(heads), shared_qk=self.shared_qk, **self._rules(part)
        )[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        q, k, _ = queries_keys_values(heads)
        return local_probabilities(q, k, **self._rules(part))

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        gradients = ops.local_attention_backward(dout, saved)
        return tuple(gradient for gradient in gradients if gradient is not None)

    def _scratch_spec(self) -> AttentionSpec:
        window = {name: self.rules[name] for name in WINDOW}
        return AttentionSpec("local", shared_qk=self.shared_qk, **window)


class LocalSharedAttention(LocalAttention):
    """The same with shared queries and keys, k = q / |q|, and the self-mask (Kitaev et al. 2020,
    section 2, "Shared-QK Transformer")."""

    projections = own_projections = ("query_key", "value")
    shared_qk = True
