"""Softmax attention among vectors that hash alike: chunks of the hash order, or whole buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import INT32_MAX, as_array, bucket_factors, heads_of, names_keywords
from ..precision import resolve_precision
from ._derive import value_of
from .attention import (
    AttentionSaved,
    AttentionSpec,
    attention_backward,
    attention_forward,
    spec_of,
)
from .hashing import buckets_of, choose_num_buckets, generator_of

__all__ = ["cut_share", "lsh_attention", "lsh_attention_backward", "lsh_attention_forward"]


@names_keywords
def lsh_attention_forward(
    qk: np.ndarray,
    v: np.ndarray,
    *,
    num_hashes: int = 1,
    num_buckets: int | Sequence[int] | None = None,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    scope: str = "chunk",
    bucket_cap: int | None = None,
    rotations: np.ndarray | None = None,
    buckets: np.ndarray | None = None,
    rng: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
    wrap: bool = True,
    dropout: float = 0.0,
    dropout_key: int = 0,
    matmul_precision: str | None = None,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, AttentionSaved]:
    """`lsh_attention`, and what its backward pass needs.

    Returns
    -------
    out : (b, h, t, d)
    saved : AttentionSaved
        References to the inputs and to `out`, no copies, one number a query, and ``saved.buckets``,
        with which this call can be repeated exactly. They are None for at most one chunk. Do not
        write into the arrays before the backward pass, by an `out` that overlaps an input either.

    Examples
    --------
    >>> qk, v = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> out, saved = lsh_attention_forward(qk, v, chunk_length=16, rng=1)
    >>> again = lsh_attention(qk, v, chunk_length=16, buckets=saved.buckets)
    >>> bool((again == out).all())
    True
    """
    qk, _, t, _ = heads_of("qk", qk)
    if (rotations is not None) + (buckets is not None) + (rng is not None) > 1:
        raise ValueError("rotations, buckets and rng each decide the buckets: pass one of them")
    spec = spec_of(
        "lsh", num_hashes=num_hashes, num_buckets=num_buckets, chunk_length=chunk_length,
        num_chunks_before=num_chunks_before, num_chunks_after=num_chunks_after,
        is_causal=is_causal, scope=scope, bucket_cap=bucket_cap, scale=scale, softcap=softcap,
        shared_qk=True, attend_across_buckets=attend_across_buckets,
        allow_duplicate_attention=allow_duplicate_attention, wrap=wrap, dropout=dropout,
        dropout_key=dropout_key, matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    v = as_array("v", v)
    factors: Any = spec.num_buckets
    if not spec.hashes(t):
        _check_unused(spec, qk, rotations, buckets, rng, attention_mask)
        return attention_forward(spec, qk, None, v, attention_mask, out, workers)
    if buckets is None:
        factors = factors or bucket_factors(choose_num_buckets(t, spec.chunk_length))
        buckets = buckets_of(
            qk, "qk", spec.num_hashes, factors, rotations, rng, attention_mask, None, workers
        )
    else:
        buckets = _given_buckets(buckets, spec.num_hashes)
    ids = bucket_ids(buckets, factors, attention_mask)
    return attention_forward(spec, qk, None, v, attention_mask, out, workers, buckets, ids)


@value_of(lsh_attention_forward)
def lsh_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Softmax attention among vectors that hash alike, with shared queries and keys.

    In each round the tokens are sorted by `lsh_hash` of qk and cut into chunks; a query sees its
    own chunk and its neighbours. All rounds together are one softmax. A key is qk divided by its
    root mean square, and a query sees itself only if there is nothing else to see.

    The defaults do what Hugging Face's Reformer does, at any length.

    Parameters
    ----------
    qk : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Any strides whose last axis is contiguous are used without a copy.
    v : (b, hk, t, d) same dtype
        hk divides h, and each head of v serves h / hk successive ones of qk.
    num_hashes : int
        Rounds.
    num_buckets : int or sequence of int, optional
        Even, or even factors; `choose_num_buckets` of t and `chunk_length` by default.
    chunk_length : int
        Length of a chunk; the last one may be short. A sequence of at most one chunk gets
        `full_attention`, whatever num_hashes (with ``scope="chunk"``).
    num_chunks_before, num_chunks_after : int
        How many neighbouring chunks a query sees.
    is_causal : bool
        A query sees keys at its own position and before.
    attention_mask : (b, t) bool, int or float, optional
        Nonzero for a real token; (t,) without a batch axis. The others share a bucket of their own.
    scope : {"chunk", "bucket"}
        "bucket": a query sees all of its bucket, of any size, and nothing else; chunks, neighbours,
        wrap and attend_across_buckets do not matter. With is_causal this attention is strictly
        causal, which chunks are not: their edges depend on later tokens.
    bucket_cap : int, optional
        With ``scope="bucket"``, a multiple of 64 that bounds the work of large buckets: they are
        cut into segments of that many tokens, in order, and a query sees its own segment and the
        adjacent ones. So it sees its nearest `bucket_cap` predecessors at least, and is_causal
        stays strict. `cut_share` says how much that leaves out.
    rotations : (h, d, num_hashes, sum(factors) // 2) same dtype, optional
        Directions of the hash, as `lsh_rotations` draws them.
    buckets : (b, h, num_hashes, t) integers, optional
        Instead of hashing, as `lsh_hash` gives them. Without num_buckets any ids will do.
    rng : int, numpy Generator, or None
        Draws the rotations where neither rotations nor buckets are given.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)`` before anything is masked (Gemma Team 2024,
        "Gemma 2", section 2).
    attend_across_buckets : bool
        False hides the keys of a chunk that are in another bucket than the query.
    allow_duplicate_attention : bool
        False: a query's keys are the union over rounds, as in the paper. A key that is met several
        times counts once, where it is met first.
    wrap : bool
        The chunks of all rounds lie on a circle: the first chunk of a round sees the last of the
        round before. False ends windows at the ends of the round.
    dropout : float
        Share of the probabilities to drop; the others are divided by ``1 - dropout``.
    dropout_key : int
        In [0, 2**64). The same key drops the same probabilities.
    matmul_precision : {"highest", "high", "medium"}, optional
        How products are computed, see `reformer_c.set_matmul_precision`.
    out : (b, h, t, d) same dtype, optional
        Where to write the result. It may overlap an input.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (b, h, t, d)
        With the rank and the memory layout of qk.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.
    IndexError
        For a bucket out of range.

    See Also
    --------
    lsh_attention_forward, lsh_attention_backward, lsh_hash, full_attention

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2, "LSH attention".

    Examples
    --------
    >>> qk = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    >>> v = np.arange(4.0)[:, None] * [1.0, 10.0]
    >>> lsh_attention(qk, v, buckets=[[0, 1, 0, 1]], scope="bucket").round(4)
    array([[ 2., 20.],
           [ 3., 30.],
           [ 0.,  0.],
           [ 1., 10.]])
    """


@names_keywords
def lsh_attention_backward(
    dout: np.ndarray, saved: AttentionSaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `lsh_attention`, with the buckets of the forward pass.

    Parameters
    ----------
    dout : (b, h, t, d)
        Gradient of its output.
    saved : AttentionSaved
        Of `lsh_attention_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dqk : (b, h, t, d)
    dv : (b, hk, t, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> qk, v = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> out, saved = lsh_attention_forward(qk, v, chunk_length=16, rng=1)
    >>> dqk, dv = lsh_attention_backward(np.ones_like(out), saved)
    >>> float(dv.sum().round(6))
    800.0
    """
    dqk, _, dv = attention_backward(dout, saved, workers, "qk")
    return dqk, dv


def cut_share(
    buckets: np.ndarray, bucket_cap: int, *, attention_mask: np.ndarray | None = None
) -> float:
    """The share of pairs of tokens in one bucket that `bucket_cap` of `lsh_attention` leaves out.

    Parameters
    ----------
    buckets : (..., t) integers
        As `lsh_hash` gives them.
    bucket_cap : int
    attention_mask : (b, t), optional
        Nonzero for a real token: pairs of real ones are counted.

    Returns
    -------
    float
        In [0, 1): 0 where no bucket has more than ``2 * bucket_cap`` tokens.

    Examples
    --------
    >>> cut_share(np.zeros((1, 1, 1, 128), int), 64)
    0.0
    >>> round(cut_share(np.zeros((1, 1, 1, 256), int), 64), 3)
    0.376
    """
    buckets = as_array("buckets", buckets)
    lists = buckets.reshape(-1, buckets.shape[-1])
    real = None if attention_mask is None else as_array("attention_mask", attention_mask) != 0
    pairs = cut = 0
    for i, ids in enumerate(lists):
        if real is not None:
            ids = ids[real[i * len(real) // len(lists)]]
        n = np.bincount(ids).astype(np.int64)
        pairs += int((n * (n - 1) // 2).sum())
        cut += cut_of_sizes(n, bucket_cap)
    return cut / pairs if pairs else 0.0


def cut_of_sizes(n: np.ndarray, cap: int) -> int:
    """How many pairs a cap leaves out of buckets with n tokens."""
    beyond = np.maximum(n // cap - 1, 0)  # segments that a token of the last one misses
    return int((cap * (cap * (beyond * (beyond - 1) // 2) + n % cap * beyond)).sum())


def _given_buckets(given: Any, rounds: int) -> np.ndarray:
    buckets = as_array("buckets", given)
    if buckets.ndim >= 2 and buckets.shape[-2] != rounds:
        raise ValueError(
            f"buckets must have shape (b, h, num_hashes, t) with num_hashes = {rounds}, "
            f"got {buckets.shape}"
        )
    return buckets


def _check_unused(
    spec: AttentionSpec, qk: np.ndarray, rotations: Any, buckets: Any, rng: Any, attention_mask: Any
) -> None:
    """What decides the buckets is checked where one chunk needs none, too."""
    t, factors, rounds = qk.shape[-2], spec.num_buckets, spec.num_hashes
    if rng is not None:
        generator_of(rng)
    if rotations is not None:
        chosen: Any = factors or bucket_factors(choose_num_buckets(t, spec.chunk_length))
        buckets_of(qk[..., :0, :], "qk", rounds, chosen, rotations, None, None, None, 1)
    if buckets is None:
        return
    buckets, shape = _given_buckets(buckets, rounds), (*qk.shape[:-2], rounds, t)
    if buckets.dtype.kind not in "iu":
        raise TypeError(f"buckets must be of an integer type, got {buckets.dtype}")
    if buckets.shape != shape:
        raise ValueError(
            f"buckets must have shape (b, h, r, t) with t = {t} as in qk, {shape}, "
            f"got {buckets.shape}"
        )
    ids = bucket_ids(buckets, factors, attention_mask)  # type: ignore[arg-type]
    for at in np.argwhere((buckets < 0) | (buckets >= ids))[:1]:
        raise IndexError(
            f"buckets{at.tolist()} = {buckets[tuple(at)]} is out of range, must be at least 0 "
            f"and below {ids}"
        )


def bucket_ids(
    buckets: np.ndarray, factors: tuple[int, ...] | None, attention_mask: np.ndarray | None
) -> int:
    """How many ids there are: with a mask one more than buckets, for tokens that are not real."""
    if factors is not None:
        return math.prod(factors) + (attention_mask is not None)
    if buckets.dtype.kind not in "iu":
        return 0  # the extension says what is wrong
    most = int(buckets.max(initial=0))
    if most >= INT32_MAX:
        raise IndexError(f"buckets must be below 2**31 - 1, got {most}")
    return most + 1
