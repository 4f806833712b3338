"""Attention to the keys in the buckets of a query, where keys have a projection of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..checks import bucket_factors
from ..ops.attention import AttentionSaved, AttentionSpec
from ..ops.hash_decoding import HashCache
from .cross_attention import CrossAttention
from .lsh_attention import LSHAttention
from .parameters import Weights
from .parts import Part
from .probabilities import hash_probabilities

__all__ = ["HashAttention", "HashCrossAttention"]

# the options of `lsh_attention` that are the same in all layers with keys of their own; keys are
# hashed less their mean, which is its default
HASHED: dict[str, Any] = {"scope": "bucket", "allow_duplicate_attention": False}


class HashAttention(LSHAttention):
    """softmax(q k' / sqrt(d)) v over the keys in the buckets of a query, and those near it.

    q, k and v are (b, h, t, d); see `reformer_c.lsh_attention` with keys of their own. Buckets are
    whole, and each key counts once. Keys are hashed less their mean; under the causal mask, less
    the mean of the keys up to each, so that later tokens change nothing.

    The buckets of queries and keys are kept for the backward pass, as `LSHAttention` keeps its own.

    Parameters
    ----------
    weights, **rest
        As in `LSHAttention`.
    """

    shared_qk = False
    projections: tuple[str, ...] = ("query", "key", "value")
    own_projections: tuple[str, ...] = projections
    sides: ClassVar[tuple[str, ...]] = ("buckets", "key_buckets")

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        b, n = self.shape
        return b, self.num_heads, n, n

    def _operate(self, heads: list[np.ndarray], **rules: Any) -> AttentionSaved:
        q, k, v = heads
        return ops.lsh_attention_forward(q, v, k=k, **HASHED, **rules)[1]

    def key_buckets(self, saved: AttentionSaved) -> np.ndarray | None:
        return saved.key_buckets

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        q, k, _ = heads
        return hash_probabilities(q, k, saved.buckets, saved.key_buckets, **self._rules(part))

    def open_cache(self, b: int, longest: int, **options: Any) -> HashCache:
        buckets = self.rules["num_buckets"]
        return HashCache(
            b, self.num_heads, self._depth, num_key_value_heads=self.num_key_value_heads,
            rotations=np.ascontiguousarray(self._rotations(buckets)),
            num_buckets=bucket_factors(buckets), local_window=self.rules["local_window"],
            longest=longest, softcap=self.rules["softcap"], eps=self.norm.eps,
            rope_theta=self._rope_theta, dtype=self.weights.dtype.type, **options,
        )  # fmt: skip

    def _scratch_spec(self) -> AttentionSpec:
        names = ("num_hashes", "num_buckets", "local_window", "is_causal")
        return AttentionSpec("lsh", **HASHED, **{name: self.rules[name] for name in names})


class HashCrossAttention(CrossAttention):
    """The same for queries of the stream, and keys and values of an encoder: to the keys in the
    buckets of a query.

    Parameters
    ----------
    num_hashes : int
    num_buckets : int, sequence of int, or None
        None: as `choose_num_buckets` says for the length of each text, without the padding at its
        end.
    choose_num_buckets : callable
    rotations_key : int
        Draws the rotations.
    weights, **rest
        As in `CrossAttention`.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        num_hashes: int,
        num_buckets: Any,
        choose_num_buckets: Callable[[int], Any],
        rotations_key: int,
        **rest: Any,
    ) -> None:
        super().__init__(weights, **rest)
        self._num_hashes, self._fixed = num_hashes, num_buckets
        self._choose, self._rotations_key = choose_num_buckets, rotations_key
        self._drawn: dict[tuple[int, ...], np.ndarray] = {}
        # of each part, by its first row: the buckets of queries and keys, after a pass
        self._buckets: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}

    # ---- texts and their numbers of buckets ----

    @cached_property
    def _numbers(self) -> list[tuple[int, ...]]:
        """The factors of the number of buckets of each text."""
        b, s = self.encoder.states.shape[:2]
        if self._fixed is not None:
            return [bucket_factors(self._fixed)] * b
        lengths = np.full(b, s)
        if self.encoder.mask is not None:
            real = self.encoder.mask != 0
            lengths = np.where(real.any(axis=1), s - real[:, ::-1].argmax(axis=1), s)
        return [bucket_factors(self._choose(int(length))) for length in lengths]

    def _alike(self, texts: Sequence[int]) -> Iterator[slice]:
        """Cut texts into runs that have one number of buckets."""
        start = 0
        for _, run in groupby(self._numbers[text] for text in texts):
            stop = start + len(list(run))
            yield slice(start, stop)
            start = stop

    def _split(self, x: np.ndarray) -> list[Part]:
        t, parts = x.shape[1], []
        for part in super()._split(x):
            for some in self._alike(self._texts(part)):
                own = slice(part.own.start + some.start * t, part.own.start + some.stop * t)
                parts.append(Part(some.stop - some.start, own, (own,), part.heads))
        return parts

    def _texts(self, part: Part) -> Sequence[int]:
        """The text that each sequence of a part attends to."""
        texts: list[int] = np.arange(len(self.encoder.states))[self._rows_of_states(part)].tolist()
        return texts

    def _groups(self, prompts: np.ndarray) -> Iterator[tuple[slice, slice]]:
        for rows, texts in super()._groups(prompts):
            each = (rows.stop - rows.start) // (texts.stop - texts.start)
            for some in self._alike(range(texts.start, texts.stop)):
                first = rows.start + some.start * each
                to = slice(texts.start + some.start, texts.start + some.stop)
                yield slice(first, first + (some.stop - some.start) * each), to

    # ---- hashing ----

    def _hashing(self, num_buckets: tuple[int, ...]) -> dict[str, Any]:
        if num_buckets not in self._drawn:
            self._drawn[num_buckets] = ops.lsh_rotations(
                self.num_heads, self._depth, num_hashes=self._num_hashes, num_buckets=num_buckets,
                rng=self._rotations_key, dtype=self.weights.dtype,
            )  # fmt: skip
        return {"num_hashes": self._num_hashes, "num_buckets": num_buckets,
                "rotations": self._drawn[num_buckets]}  # fmt: skip

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        q, k, v = heads
        hashing = self._hashing(self._numbers[self._texts(part)[0]])
        known = self._buckets.get(part.own.start)
        if known is not None:
            del hashing["rotations"]
            hashing |= {"buckets": known[0], "key_buckets": known[1]}
        options = HASHED | self._rules(part) | hashing
        _, saved = ops.lsh_attention_forward(q, v, k=k, **options)
        self._buckets[part.own.start] = saved.buckets, saved.key_buckets
        return saved

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        q, k, _ = heads
        return hash_probabilities(q, k, saved.buckets, saved.key_buckets, **self._rules(part))

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        gradients: tuple[np.ndarray, ...] = ops.lsh_attention_backward(dout, saved)
        return gradients

    # ---- decoding ----

    def _hashed(self, k: np.ndarray) -> list[np.ndarray]:
        b, _, s, _ = k.shape
        ids = np.empty((b, self.num_heads, self._num_hashes, s), np.int32)
        for some in self._alike(range(b)):
            mask = None if self.encoder.mask is None else self.encoder.mask[some]
            # no queries: only the keys are hashed
            none = np.empty((some.stop - some.start, self.num_heads, 0, self._depth), k.dtype)
            _, saved = ops.lsh_attention_forward(
                none, k[some], k=k[some], attention_mask=mask, **HASHED,
                **self._hashing(self._numbers[some.start]),
            )  # fmt: skip
            assert saved.key_buckets is not None
            ids[some] = saved.key_buckets
        return [ids]

    def _attend_cached(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        of_keys: list[np.ndarray],
        texts: slice,
        **options: Any,
    ) -> None:
        hashing = self._hashing(self._numbers[texts.start])
        buckets = ops.lsh_hash(q, **hashing)
        del hashing["rotations"]
        ops.lsh_attention(
            q, v, k=k, buckets=buckets, key_buckets=of_keys[0], **HASHED, **hashing, **options
        )

    # ---- memory ----

    def _scratch_spec(self) -> AttentionSpec:
        return AttentionSpec(
            "lsh",
            num_hashes=self._num_hashes,
            num_buckets=max(self._numbers, key=math.prod),
            **HASHED,
        )

    def bucket_bytes(self) -> int:
        (b, t), s = self.shape, int(self.encoder.states.shape[1])
        return 4 * b * self.num_heads * self._num_hashes * (t + s)
