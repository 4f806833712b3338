"""What full attention weighs, and the pairs of queries and keys that hashing and a window find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import as_array, real_tokens
from ..runtime import underflow_to_zero

__all__ = [
    "Pattern",
    "attention_weights",
    "four_axes",
    "keys_and_mask",
    "sampled_rows",
    "visible_keys",
    "window",
]


def four_axes(name: str, x: Any) -> np.ndarray:
    """An array of attention heads as (b, h, t, d), none of whose axes is empty."""
    if isinstance(x, np.ma.MaskedArray) or not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a float32 or float64 array, got {type(x).__name__}")
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be a float32 or float64 array, got {x.dtype}")
    if not 2 <= x.ndim <= 4 or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape (b, h, t, d), (h, t, d) or (t, d), not empty, got {x.shape}"
        )
    return x[(None,) * (4 - x.ndim)]


def keys_and_mask(
    q: np.ndarray, k: Any, attention_mask: Any
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Keys of their own for queries (b, h, t, d), if any, and which keys are real, (b, tk)."""
    b, h, _, d = q.shape
    if k is not None:
        k = four_axes("k", k)
        if k.dtype != q.dtype:
            raise TypeError(f"k must be {q.dtype} as q, got {k.dtype}")
        if k.shape[0] != b or k.shape[3] != d or h % k.shape[1]:
            raise ValueError(
                f"k must have shape (b, hk, tk, d) with b = {b}, d = {d} and a divisor hk of "
                f"{h}, got {k.shape}"
            )
    if attention_mask is None:
        return k, None
    tk = (q if k is None else k).shape[2]
    mask = as_array("attention_mask", attention_mask)
    return k, real_tokens("attention_mask", mask[None] if mask.ndim == 1 else mask, (b, tk))


def sampled_rows(t: int, queries: int | None) -> np.ndarray:
    """Evenly spaced positions, all of them for None."""
    return np.arange(t) if queries is None else np.unique(np.linspace(0, t - 1, queries, dtype=int))


def visible_keys(
    rows: np.ndarray,
    t: int,
    tk: int,
    *,
    is_causal: bool,
    real: np.ndarray | None = None,
    shared: bool = False,
) -> np.ndarray:
    """Which keys full attention lets the queries in `rows` see: (rows, tk) bool.

    The t queries are the last positions of the tk keys. A shared query does not see itself.

    Examples
    --------
    >>> visible_keys(np.arange(2), 2, 3, is_causal=True).astype(int)
    array([[1, 1, 0],
           [1, 1, 1]])
    """
    keys, positions = np.arange(tk), rows[:, None] + (tk - t)
    seen = keys <= positions if is_causal else np.ones((len(rows), tk), bool)
    if shared:
        seen &= keys != positions
    return seen if real is None else seen & real


def window(rows: np.ndarray, t: int, tk: int, width: int | None) -> np.ndarray:
    """The keys at most `width` positions away, (rows, tk) bool; none for None."""
    if width is None:
        return np.zeros((len(rows), tk), bool)
    near: np.ndarray = np.abs(np.arange(tk) - (rows[:, None] + (tk - t))) <= width
    return near


@underflow_to_zero()
def attention_weights(
    q: np.ndarray,
    rows: np.ndarray,
    is_causal: bool,
    *,
    k: np.ndarray | None = None,
    real: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Rows of the softmax of full attention of q (t, d) to k (tk, d): (rows, tk).

    Without k, queries and keys are shared, by the Reformer's rules.
    """
    t, d = q.shape
    keys = q / np.sqrt(np.mean(q * q, axis=-1, keepdims=True) + 1e-6) if k is None else k
    scores = (q[rows] * q.dtype.type(1 / np.sqrt(d) if scale is None else scale)) @ keys.T
    scores[~visible_keys(rows, t, len(keys), is_causal=is_causal, real=real)] = -1e9
    if k is None:
        scores[np.arange(len(rows)), rows] = -1e5  # self-mask: only if nothing else is visible
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    shares: np.ndarray = scores / scores.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Pattern:
    """Which keys a query attends to: neighbouring chunks of the sorted order, or whole buckets."""

    scope: str = "chunk"
    chunk_length: int = 64
    before: int = 1
    after: int = 0

    def __post_init__(self) -> None:
        if self.scope not in ("chunk", "bucket"):
            raise ValueError(f"scope must be 'chunk' or 'bucket', got {self.scope!r}")

    def groups(
        self, buckets: np.ndarray, key_buckets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The chunk or bucket of each query in each round, (r, t), and that of each key, (r, tk).

        Keys of their own are cut into as many chunks as queries.
        """
        if self.scope == "bucket":
            return buckets, buckets if key_buckets is None else key_buckets
        own = _chunks(buckets, self.chunk_length)
        if key_buckets is None:
            return own, own
        chunks = -(-buckets.shape[-1] // self.chunk_length)
        return own, _chunks(key_buckets, max(1, -(-key_buckets.shape[-1] // chunks)))

    def count_pairs(self, groups: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """How often each query in `rows` attends to each key, over all rounds: (rows, tk).

        The chunks of all rounds form one circle: the chunk before a round's first chunk is the last
        chunk of the previous round.
        """
        of_queries, of_keys = groups
        r, t = of_queries.shape
        counts = np.zeros((len(rows), of_keys.shape[1]), np.uint16)
        if self.scope == "bucket":
            for own in range(r):
                counts += of_queries[own, rows, None] == of_keys[own]
            return counts
        per_round = -(-t // self.chunk_length)
        if per_round <= 1:
            all_pairs: np.ndarray = counts + np.uint16(1)
            return all_pairs
        for offset in range(-self.before, self.after + 1):
            if abs(offset) > r * per_round:
                offset = 0  # as in Hugging Face's model, which concatenates slices
            for own in range(r):
                target = (own * per_round + of_queries[own, rows] + offset) % (r * per_round)
                target_round, target_chunk = np.divmod(target, per_round)
                for other in np.unique(target_round):
                    here = target_round == other
                    counts[here] += of_keys[other] == target_chunk[here, None]
        return counts


def _chunks(buckets: np.ndarray, chunk_length: int) -> np.ndarray:
    """The chunk of each position in each round's stable order by bucket, (r, t)."""
    order = np.argsort(buckets, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[-1])[None], axis=-1)
    return (rank // chunk_length).astype(np.int32)
