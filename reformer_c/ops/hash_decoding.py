"""Attention of one new token of each text to the keys of its buckets, which are hashed apart from
the queries, and to those near it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runtime import underflow_to_zero
from .bfloat16 import from_bfloat16
from .decoding import AttentionCache, Matrix, oldest_kept
from .hashing import lsh_hash
from .layers import layer_norm, linear
from .quantized import quantized_linear
from .rotary import rotary_positions
from .training import add_scaled

__all__: list[str] = []


class HashCache(AttentionCache):
    """Keys, values and the keys' buckets of one layer's past tokens, for b texts.

    A token attends to the earlier keys in the buckets of its query, and to those at most
    `local_window` before it, as `lsh_attention` with keys of their own, ``scope="bucket"``,
    ``is_causal=True`` and ``allow_duplicate_attention=False``. A key is hashed less the mean of the
    keys up to it, so its buckets never change.

    Parameters
    ----------
    b, h, d : int
        Texts, heads, depth of a head.
    rotations : (h, d, num_hashes, sum(num_buckets) // 2)
        Directions of the hash.
    num_buckets : tuple of int
        Factors of the number of buckets.
    local_window : int
        0: a token sees its own key, and those of its buckets.
    **options
        longest, drop, softcap, num_key_value_heads, eps, rope_theta, dtype and cache_dtype, as in
        `AttentionCache`. A token that is forgotten stays in the mean of the keys after it.

    Examples
    --------
    >>> cache = HashCache(
    ...     1, 2, 4, rotations=np.zeros((2, 4, 3, 2)), num_buckets=(4,), local_window=8, longest=100
    ... )
    >>> cache.key_buckets.shape
    (1, 2, 3, 100)
    """

    _state = AttentionCache._state | {"key_buckets": 3, "key_sums": None}

    def __init__(
        self,
        b: int,
        h: int,
        d: int,
        *,
        rotations: np.ndarray,
        num_buckets: tuple[int, ...],
        local_window: int,
        **options: Any,
    ) -> None:
        super().__init__(b, h, d, scope="full", **options)
        self.rotations, self.num_buckets, self.local_window = rotations, num_buckets, local_window
        room = self.keys.shape[2]
        self.key_buckets: np.ndarray = np.zeros((b, h, rotations.shape[2], room), np.int32)
        self.key_sums: np.ndarray = np.zeros((b, self.keys.shape[1], d))

    @underflow_to_zero()
    def fill(
        self, rows: np.ndarray, k: np.ndarray, v: np.ndarray, buckets: np.ndarray | None
    ) -> None:
        assert buckets is not None
        super().fill(rows, k, v, None)
        self.key_sums[rows] = k.sum(axis=2, dtype=np.float64)
        for at, slots in self._slots(self._oldest_kept(k.shape[2]), k.shape[2]):
            self.key_buckets[rows, :, :, slots] = buckets[..., at]

    @underflow_to_zero()
    def step(
        self,
        y: np.ndarray,
        x: np.ndarray,
        norm: tuple[np.ndarray, np.ndarray],
        projections: tuple[Matrix, Matrix | None, Matrix, Matrix],
        rows: np.ndarray,
        positions: np.ndarray,
        workers: int | None = None,
    ) -> None:
        n, (*inputs, wo) = layer_norm(x, *norm, eps=self.eps), projections
        q, k, v = (_product(n, w).reshape(len(x), -1, self.keys.shape[3]) for w in inputs)
        if self.rope_theta:
            for heads in (q, k):
                rotary_positions(heads, positions, theta=self.rope_theta, out=heads)
        room = self.keys.shape[2]
        slots = positions % room
        self.key_sums[rows] += k
        means = self.key_sums[rows] / (positions + 1)[:, None, None]
        centred = k - means.astype(k.dtype)
        groups = q.shape[1] // k.shape[1]
        self.key_buckets[rows, :, :, slots] = self._hash(np.repeat(centred, groups, axis=1))
        self.keys[rows, :, slots] = self._stored(k * k.dtype.type(self.scale))
        self.values[rows, :, slots] = self._stored(v)
        seen = self._seen(rows, positions, self._hash(q))
        out = self._attend(rows, q, seen, groups).reshape(len(x), -1)
        add_scaled(y, _product(out, wo), 1.0)

    def _hash(self, x: np.ndarray) -> np.ndarray:
        """Bucket ids (n, h, num_hashes) of vectors (n, h, d)."""
        assert self.rotations is not None
        found = lsh_hash(
            x[:, :, None], num_hashes=self.rotations.shape[2], num_buckets=self.num_buckets,
            rotations=self.rotations,
        )  # fmt: skip
        return found[..., 0]

    def _seen(self, rows: np.ndarray, positions: np.ndarray, buckets: np.ndarray) -> np.ndarray:
        """Which slots hold keys that the new tokens attend to: (n, h, slots)."""
        room = self.keys.shape[2]
        used = min(room, int(positions.max()) + 1)
        now = positions[:, None]
        tokens = now - (now - np.arange(used)) % room  # the newest of each slot
        oldest = [oldest_kept(int(t) + 1, room, self._drop) for t in positions]
        kept = tokens >= np.array(oldest)[:, None]
        near = now - tokens <= self.local_window
        alike = np.zeros((len(rows), buckets.shape[1], used), bool)
        for r in range(buckets.shape[2]):
            alike |= self.key_buckets[rows, :, r, :used] == buckets[:, :, r, None]
        seen: np.ndarray = kept[:, None] & (near[:, None] | alike)
        return seen

    def _attend(self, rows: np.ndarray, q: np.ndarray, seen: np.ndarray, groups: int) -> np.ndarray:
        """softmax(q k') v (n, h, d) of the keys that are seen, at least one for each query."""
        text, head, slot = np.nonzero(seen)
        at = rows[text], head // groups, slot
        k, v = self.keys[at], self.values[at]
        if k.dtype == np.uint16:
            k, v = (from_bfloat16(x, dtype=q.dtype) for x in (k, v))
        scores = np.einsum("pd,pd->p", q[text, head], k)
        if self.spec.softcap is not None:
            scores = self.spec.softcap * np.tanh(scores / self.spec.softcap)
        counts = seen.sum(axis=2).reshape(-1)
        starts = np.cumsum(counts) - counts
        shares = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), counts))
        shares /= np.repeat(np.add.reduceat(shares, starts), counts)
        out = np.add.reduceat(shares[:, None] * v, starts).astype(q.dtype)
        return out.reshape(q.shape)


def _product(x: np.ndarray, w: Any) -> np.ndarray:
    return linear(x, w) if isinstance(w, np.ndarray) else quantized_linear(x, w)
