"""Hashing of keys that are not made from the queries: less their mean, so that what is compared is
what differs between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import as_array, real_tokens, real_type
from .hashing import buckets_of

__all__: list[str] = []

BLOCK = 1024  # keys of a block of running means


def check_center(center: Any, k: np.ndarray | None) -> None:
    """What is subtracted from keys before they are hashed: "keys", None or an array.

    Raises
    ------
    TypeError, ValueError
        It is something else, has another shape, or is given where there are no separate keys.
    """
    if isinstance(center, str) and center == "keys":
        return
    if k is None:
        raise ValueError("center must be left out without k: shared queries and keys hash alike")
    if isinstance(center, str):
        raise ValueError(f"center must be 'keys', None or an array, got {center!r}")
    if center is not None:
        broadcast_center(center, k)


def check_keys(q: np.ndarray, k: np.ndarray, attention_mask: Any) -> None:
    """Keys fit to queries, and the mask to keys: hashing needs it before the attention checks it.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    if real_type("k", k) != real_type("q", q):
        raise TypeError(f"k must be {q.dtype}, as q is, got {k.dtype}")
    if k.ndim != q.ndim or k.shape[-1] != q.shape[-1] or k.shape[:-3] != q.shape[:-3]:
        raise ValueError(
            f"k must have the axes of q, {q.shape}, but for the numbers of heads and of keys, "
            f"got {k.shape}"
        )
    if k.ndim > 2:
        h, hk = q.shape[-3], k.shape[-3]
        if h != hk and (not hk or h % hk):
            raise ValueError(f"k must have hk that divides h = {h} of q, got {hk}")
    if attention_mask is not None:
        real_tokens("attention_mask", attention_mask, (*k.shape[:-3], k.shape[-2]))


def key_buckets_of(
    k: np.ndarray,
    num_hashes: int,
    factors: tuple[int, ...],
    rotations: np.ndarray,
    center: Any,
    attention_mask: Any,
    is_causal: bool,
    workers: int | None,
) -> np.ndarray:
    """The buckets (b, h, r, tk) of keys (b, hk, tk, d): each head of keys is hashed once with the
    rotations of each head of queries that it serves."""
    mask = None if attention_mask is None else as_array("attention_mask", attention_mask)
    hashed = centered(k, center, mask, is_causal)
    if k.ndim == 2:
        return buckets_of(
            hashed, "k", num_hashes, factors, rotations, None, attention_mask, None, workers
        )
    h, hk = len(rotations), k.shape[-3]
    sharers = h // hk if hk else 0
    found = np.empty((*k.shape[:-3], h, num_hashes, k.shape[-2]), np.int32)
    for i in range(sharers):
        found[..., i::sharers, :, :] = buckets_of(
            hashed, "k", num_hashes, factors, np.ascontiguousarray(rotations[i::sharers]), None,
            attention_mask, None, workers,
        )  # fmt: skip
    return found


def centered(k: np.ndarray, center: Any, mask: np.ndarray | None, is_causal: bool) -> np.ndarray:
    """Keys less what is subtracted from them before they are hashed."""
    if center is None:
        return k
    real = None if mask is None else (mask != 0)[..., None, :, None]
    if k.ndim == 2 and real is not None:
        real = real[..., 0, :, :]
    if isinstance(center, str) and is_causal:
        return _less_running_mean(k, real)
    less = mean_of(k, real) if isinstance(center, str) else broadcast_center(center, k)
    found: np.ndarray = k - less
    return found


def broadcast_center(center: Any, k: np.ndarray) -> np.ndarray:
    given = as_array("center", center)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"center must be of real numbers, got {given.dtype}")
    if not np.isfinite(given).all():
        raise ValueError("center must be finite numbers, got inf or nan")
    # (hk, d): one for each head
    placed = given[:, None] if given.ndim == 2 and k.ndim > 2 else given
    try:
        return np.broadcast_to(placed.astype(k.dtype, copy=False), k.shape)
    except ValueError:
        raise ValueError(
            f"center must have shape (d,), (hk, d) or one that k, {k.shape}, has with axes of "
            f"size 1, got {given.shape}"
        ) from None


def mean_of(k: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    n: Any = k.shape[-2] if real is None else real.sum(axis=-2, keepdims=True)
    total = np.sum(
        k, axis=-2, dtype=np.float64, keepdims=True, where=True if real is None else real
    )
    mean: np.ndarray = (total / np.maximum(n, 1)).astype(k.dtype)
    return mean


def _less_running_mean(k: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """Each key less the mean of those up to it, in blocks: later keys do not change it by a bit."""
    found = np.empty(k.shape, k.dtype)
    total, n = np.zeros_like(k[..., :1, :], np.float64), np.zeros((1, 1))
    for start in range(0, k.shape[-2], BLOCK):
        block = k[..., start : start + BLOCK, :]
        counted = (
            np.ones((block.shape[-2], 1)) if real is None else real[..., start : start + BLOCK, :]
        )
        sums = np.cumsum(np.where(counted != 0, block, 0), axis=-2, dtype=np.float64) + total
        counts = np.cumsum(counted, axis=-2, dtype=np.float64) + n
        means = (sums / np.maximum(counts, 1)).astype(k.dtype)
        found[..., start : start + BLOCK, :] = block - means
        total, n = sums[..., -1:, :], counts[..., -1:, :]
    return found
