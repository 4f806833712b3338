"""LSH attention: among tokens that hash to the same bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec
from .parameters import Weights
from .parts import Part
from .probabilities import lsh_probabilities
from .self_attention import WINDOW, WholeSequences

__all__ = ["LSHAttention"]

# the options that decide which keys of a window are attended to, and how often they count
ATTENDED = ("attend_across_buckets", "allow_duplicate_attention")


class LSHAttention(WholeSequences):
    """softmax(q k') v over the tokens that share a bucket (Kitaev et al. 2020, section 2).

    q and v are (b, h, t, d), and k = q / |q|: queries and keys share a projection. See
    `reformer_c.lsh_attention`.

    The buckets of the forward pass are kept for the backward pass: the recomputed input differs by
    rounding, and hashing it again could give other buckets.

    Parameters
    ----------
    rotations : ndarray, (h, d, r, s), or None
        None draws them from the key `rotations_key`.
    rotations_key : int
    choose_num_buckets : callable, optional
        From the length of a sequence to its number of buckets, if that is not the same for all.
    weights, **rest
        As in `Attention`.
    """

    hashes = shared_qk = True
    projections: tuple[str, ...] = ("query_key", "value")
    own_projections: tuple[str, ...] = projections
    # the buckets of what was hashed, in `AttentionSaved` and as arguments of the operation
    sides: ClassVar[tuple[str, ...]] = ("buckets",)

    def __init__(
        self,
        weights: Weights,
        *,
        rotations: np.ndarray | None,
        rotations_key: int,
        choose_num_buckets: Callable[[int], int | Sequence[int]] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(weights, **rest)
        self._drawn, self._rotations_key = rotations, rotations_key
        self._choose_num_buckets = choose_num_buckets
        # parts by their first row and head, and after a pass the buckets (b, h, r, t) of their
        # `sides`, or None if the sequence is a single chunk
        self._buckets: dict[tuple[int, int], tuple[Part, list[np.ndarray | None]]] = {}

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        key = part.own.start, part.heads.start
        _, known = self._buckets.get(key, (part, [None]))
        rules = self._rules(part)
        if known[0] is None:
            rules["rotations"] = self._rotations(rules["num_buckets"])[part.heads]
        else:
            rules |= dict(zip(self.sides, known, strict=True))
        saved = self._operate(heads, **rules)
        self._buckets[key] = part, [getattr(saved, side) for side in self.sides]
        return saved

    def _operate(self, heads: list[np.ndarray], **rules: Any) -> AttentionSaved:
        """Run the operation, with rotations or the buckets of an earlier run."""
        return ops.lsh_attention_forward(*heads, **rules)[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        return lsh_probabilities(heads[0], saved.buckets, **self._rules(part))

    def _rules(self, part: Part) -> dict[str, Any]:
        return super()._rules(part) | {"num_buckets": self._num_buckets(part.length)}

    def _num_buckets(self, length: int) -> Any:
        choose = self._choose_num_buckets
        return self.rules["num_buckets"] if choose is None else choose(length)

    def _rotations(self, num_buckets: Any) -> np.ndarray:
        """The rotations of all heads."""
        if self._drawn is not None:
            return self._drawn
        drawn = ops.lsh_rotations(
            self.num_heads, self._depth, num_hashes=self.rules["num_hashes"],
            num_buckets=num_buckets, rng=self._rotations_key, dtype=self.weights.dtype,
        )  # fmt: skip
        if self._choose_num_buckets is None:
            self._drawn = drawn
        return drawn

    def _cache_hashing(self) -> dict[str, Any]:
        buckets = self.rules["num_buckets"]
        return {
            **{name: self.rules[name] for name in ("scope", "bucket_cap", *ATTENDED)},
            "rotations": np.ascontiguousarray(self._rotations(buckets)),
            "num_buckets": (buckets,) if isinstance(buckets, int) else tuple(buckets),
        }  # fmt: skip

    @property
    def buckets(self) -> np.ndarray | None:  # type: ignore[override]
        """(b, h, r, n) after a pass, or (2, b, h, r, n), of queries and of keys of their own; None
        if all sequences are single chunks.

        With `lengths`, rows of a single chunk have bucket 0, and padding has the bucket of masked
        tokens.
        """
        (b, n), parts = self.shape, self._buckets.values()
        if all(known[0] is None for _, known in parts):
            return None
        shape = len(self.sides), b, self.num_heads, self.rules["num_hashes"], n
        found = np.zeros(shape, np.int32)
        for part, known in parts:
            for whole, ids in zip(found, known, strict=True):
                if ids is not None:
                    part.place(whole.swapaxes(2, 3), ids.swapaxes(2, 3))
        for row, k in enumerate(() if self.lengths is None else self.lengths.tolist()):
            found[:, row, ..., k:] = np.prod(self._num_buckets(k))
        return found if len(self.sides) > 1 else found[0]

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        gradients: tuple[np.ndarray, ...] = ops.lsh_attention_backward(dout, saved)
        return gradients

    def _scratch_spec(self) -> AttentionSpec:
        names = (*WINDOW, *ATTENDED, "scope", "num_hashes", "num_buckets")
        return AttentionSpec("lsh", shared_qk=True, **{name: self.rules[name] for name in names})

    def bucket_bytes(self) -> int:
        b, n = self.shape
        one_chunk = self.rules.get("scope") == "chunk" and n <= self.rules["chunk_length"]
        ids = 4 * b * self.num_heads * self.rules["num_hashes"] * n
        return 0 if one_chunk else ids * len(self.sides)
