"""Softmax attention among vectors that hash alike: chunks of the hash order, or whole buckets; with
shared queries and keys, or keys of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import (
    INT32_MAX,
    as_array,
    bucket_factors,
    heads_of,
    names_keywords,
    real_tokens,
    real_type,
)
from ..precision import resolve_precision
from ._derive import value_of
from .attention import (
    AttentionSaved,
    AttentionSpec,
    attention_backward,
    attention_forward,
    spec_of,
)
from .hashing import buckets_of, choose_num_buckets, generator_of, lsh_rotations
from .separate_keys import check_center, check_keys, key_buckets_of

__all__ = ["cut_share", "lsh_attention", "lsh_attention_backward", "lsh_attention_forward"]


@names_keywords
def lsh_attention_forward(
    qk: np.ndarray,
    v: np.ndarray,
    *,
    k: np.ndarray | None = None,
    num_hashes: int = 1,
    num_buckets: int | Sequence[int] | None = None,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    scope: str = "chunk",
    bucket_cap: int | None = None,
    local_window: int | None = None,
    center: np.ndarray | str | None = "keys",
    rotations: np.ndarray | None = None,
    buckets: np.ndarray | None = None,
    key_buckets: np.ndarray | None = None,
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
    lse: Any = False,
    workers: int | None = None,
) -> tuple[Any, AttentionSaved]:
    """`lsh_attention`, and what its backward pass needs.

    Returns
    -------
    out : (b, h, t, d)
        Or a pair with `lse`, as in `lsh_attention`.
    saved : AttentionSaved
        References to the inputs and to `out`, no copies, one number a query, and ``saved.buckets``
        and, with `k`, ``saved.key_buckets``, with which this call can be repeated exactly. They are
        None for at most one chunk. Do not write into the arrays before the backward pass, by an
        `out` that overlaps an input either.

    Examples
    --------
    >>> qk, v = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> out, saved = lsh_attention_forward(qk, v, chunk_length=16, rng=1)
    >>> again = lsh_attention(qk, v, chunk_length=16, buckets=saved.buckets)
    >>> bool((again == out).all())
    True
    """
    shared = k is None
    q, *_ = heads_of("qk" if shared else "q", qk)
    if (rotations is not None) + (buckets is not None) + (rng is not None) > 1:
        raise ValueError("rotations, buckets and rng each decide the buckets: pass one of them")
    if (key_buckets is not None) != (buckets is not None and not shared):
        raise ValueError("key_buckets must be given with k and buckets, and only then")
    spec = spec_of(
        "lsh", num_hashes=num_hashes, num_buckets=num_buckets, chunk_length=chunk_length,
        num_chunks_before=num_chunks_before, num_chunks_after=num_chunks_after,
        is_causal=is_causal, scope=scope, bucket_cap=bucket_cap, local_window=local_window,
        scale=scale, softcap=softcap, shared_qk=shared,
        attend_across_buckets=attend_across_buckets,
        allow_duplicate_attention=allow_duplicate_attention, wrap=wrap, dropout=dropout,
        dropout_key=dropout_key, matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    v = as_array("v", v)
    if k is not None:
        k = as_array("k", k)
        check_keys(q, k, attention_mask)
    check_center(center, k)
    if buckets is not None and not (center is None or isinstance(center, str)):
        raise ValueError("center must be left out with buckets: the keys are not hashed again")
    if lse is True:
        lse = np.empty(q.shape[:-1], q.dtype)
    log_sums = None if lse is False else lse

    ids, of_queries, of_keys = 0, None, None
    if not spec.hashes(q.shape[-2]):
        _check_unused(spec, q, k, rotations, buckets, key_buckets, rng, attention_mask)
    elif buckets is None:
        factors = _factors(spec, q, k)
        ids = math.prod(factors) + (attention_mask is not None)
        of_queries, of_keys = _hash(
            spec, q, k, factors, center, rotations, rng, attention_mask, workers
        )
    else:
        chosen: Any = spec.num_buckets
        of_queries = _given_buckets("buckets", buckets, spec.num_hashes)
        ids = bucket_ids(of_queries, chosen, attention_mask)
        if not shared:
            of_keys = _given_buckets("key_buckets", key_buckets, spec.num_hashes)
            ids = max(ids, bucket_ids(of_keys, chosen, attention_mask))
        if chosen is None:
            ids, of_queries, of_keys = _few_ids(ids, of_queries, of_keys)
    result, saved = attention_forward(
        spec, q, k, v, attention_mask, out, workers, ids, of_queries, of_keys, log_sums
    )
    return (result if log_sums is None else (result, log_sums)), saved


def _factors(spec: AttentionSpec, q: np.ndarray, k: np.ndarray | None) -> tuple[int, ...]:
    """The factors of the number of buckets: by default, by the longer of the sequences."""
    t = q.shape[-2] if k is None else max(q.shape[-2], k.shape[-2])
    chosen: Any = spec.num_buckets
    return chosen or bucket_factors(choose_num_buckets(t, spec.chunk_length))


def _hash(
    spec: AttentionSpec,
    q: np.ndarray,
    k: np.ndarray | None,
    factors: tuple[int, ...],
    center: Any,
    rotations: Any,
    rng: Any,
    attention_mask: Any,
    workers: int | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The buckets of queries, and of keys of their own."""
    rounds = spec.num_hashes
    if k is None:
        own = buckets_of(q, "qk", rounds, factors, rotations, rng, attention_mask, None, workers)
        return own, None
    if rotations is None:
        (h, _, d), dtype = heads_of("q", q)[1:], real_type("q", q)
        rotations = lsh_rotations(
            h, d, num_hashes=rounds, num_buckets=factors, rng=rng, dtype=dtype
        )
    of_queries = buckets_of(q, "q", rounds, factors, rotations, None, None, None, workers)
    of_keys = key_buckets_of(
        k, rounds, factors, as_array("rotations", rotations), center, attention_mask,
        spec.is_causal, workers,
    )  # fmt: skip
    return of_queries, of_keys


@value_of(lsh_attention_forward)
def lsh_attention() -> Any:
    """Softmax attention among vectors that hash alike, with shared queries and keys, or with keys
    of their own.

    In each round the tokens are sorted by `lsh_hash` of qk and cut into chunks; a query sees its
    own chunk and its neighbours. All rounds together are one softmax. A key is qk divided by its
    root mean square, and a query sees itself only if there is nothing else to see.

    The defaults do what Hugging Face's Reformer does, at any length.

    With `k`, queries and keys are sorted apart, and the first argument is only queries: those of a
    bucket attend to the keys in that bucket, or those of a chunk to the chunk of keys with the same
    number. A query that finds no key in any round or in its window attends to all keys. So a
    network that was trained with exact attention can be run, with ``scope="bucket"``, a
    `local_window` and ``allow_duplicate_attention=False``.

    Parameters
    ----------
    qk : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Any strides whose last axis is contiguous are used without a copy.
    v : (b, hk, t, d) same dtype
        (b, hk, tk, d) with `k`. hk divides h, and each head of v serves h / hk successive ones of
        qk.
    k : (b, hk, tk, d) same dtype, optional
        Keys of their own, also of another length. Query i is then at position i + tk - t: the
        sequences end together (the lower-right rule), which matters to is_causal and local_window.
    num_hashes : int
        Rounds.
    num_buckets : int or sequence of int, optional
        Even, or even factors; `choose_num_buckets` of t (the larger of t and tk) and `chunk_length`
        by default.
    chunk_length : int
        Length of a chunk; the last one may be short. A sequence of at most one chunk gets
        `full_attention`, whatever num_hashes (with ``scope="chunk"``), under a causal mask with
        the positions that `is_causal` describes. There are as many chunks of
        `k` as of queries, of ceil(tk / chunks) keys.
    num_chunks_before, num_chunks_after : int
        How many neighbouring chunks a query sees.
    is_causal : bool
        A query sees keys at its own position and before. With `k`, the last query is at the
        position of the last key.
    attention_mask : (b, t) bool, int or float, optional
        Nonzero for a real token; (t,) without a batch axis. The others share a bucket of their own.
        With `k` it is of keys, (b, tk).
    scope : {"chunk", "bucket"}
        "bucket": a query sees all of its bucket, of any size, and nothing else; chunks, neighbours,
        wrap and attend_across_buckets do not matter. With is_causal this attention is strictly
        causal, which chunks are not: their edges depend on later tokens.
    bucket_cap : int, optional
        With ``scope="bucket"``, a multiple of 64 that bounds the work of large buckets: they are
        cut into segments of that many tokens, in order, and a query sees its own segment and the
        adjacent ones. So it sees its nearest `bucket_cap` predecessors at least, and is_causal
        stays strict. `cut_share` says how much that leaves out. Not with `k`.
    local_window : int, optional
        A query also sees the keys at most this many positions before or after its own; they count
        once, in the same softmax, whatever buckets they are in.
    center : "keys", None or array
        With `k`: what is subtracted from keys before they are hashed. It does not change the
        scores' order, but the hash then compares what differs between keys. "keys" is the mean of
        the head's keys, and with is_causal of those up to each key, so that later keys change
        nothing; masked ones do not count. An array of shape (d,) or (hk, d), or one that broadcasts
        to k. Only the hash sees it. Not with `buckets`.
    rotations : (h, d, num_hashes, sum(factors) // 2) same dtype, optional
        Directions of the hash, as `lsh_rotations` draws them.
    buckets : (b, h, num_hashes, t) integers, optional
        Instead of hashing, as `lsh_hash` gives them. Without num_buckets any ids will do.
    key_buckets : (b, h, num_hashes, tk) integers, optional
        The same of `k`, for each head of queries; must be given where `buckets` are.
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
    lse : bool or (b, h, t) array of the same dtype
        True, or an array to write to: also return the natural logarithm of the sum of the
        exponentials of each query's scores. It is -inf of a query that can see no key of `k`;
        with shared queries and keys, -1e5 (plus the logarithm of the number of rounds that count)
        of one that sees only itself.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (b, h, t, d)
        With the rank and the memory layout of qk. With `lse`, a pair: this, and the log-sum-exp
        (b, h, t). A query that can see no key of `k` (all are masked or later) gets 0.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.
    IndexError
        For a bucket out of range.

    See Also
    --------
    lsh_attention_forward, lsh_attention_backward, lsh_hash, full_attention

    Notes
    -----
    Results for parts of the keys are merged by their log-sum-exps: with ``w = exp(lse_1 - lse)``,
    ``lse = np.logaddexp(lse_1, lse_2)``, the whole is ``w * out_1 + (1 - w) * out_2``.

    A query that finds no key costs tk pairs. They are rare with a window or several rounds.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2, "LSH attention"; SMYRF (Daras et al. 2020), which
    sorts queries and keys apart, and merges rounds by their log-sum-exps.

    Examples
    --------
    >>> qk = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    >>> v = np.arange(4.0)[:, None] * [1.0, 10.0]
    >>> lsh_attention(qk, v, buckets=[[0, 1, 0, 1]], scope="bucket").round(4)
    array([[ 2., 20.],
           [ 3., 30.],
           [ 0.,  0.],
           [ 1., 10.]])
    >>> q, k = qk[:1], qk
    >>> lsh_attention(q, v, k=k, buckets=[[0]], key_buckets=[[0, 1, 0, 1]], scope="bucket").round(4)
    array([[ 1., 10.]])
    """


@names_keywords
def lsh_attention_backward(
    dout: np.ndarray, saved: AttentionSaved, *, workers: int | None = None
) -> tuple[np.ndarray, ...]:
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
    dk : (b, hk, tk, d)
        Only of a call with `k`.
    dv : (b, hk, tk, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> qk, v = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> out, saved = lsh_attention_forward(qk, v, chunk_length=16, rng=1)
    >>> dqk, dv = lsh_attention_backward(np.ones_like(out), saved)
    >>> float(dv.sum().round(6))
    800.0
    """
    dq, dk, dv = attention_backward(dout, saved, workers, hashes=True)
    return (dq, dv) if dk is None else (dq, dk, dv)


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
    real = None
    if attention_mask is not None:
        mask = as_array("attention_mask", attention_mask)
        real = real_tokens("attention_mask", mask, (*mask.shape[:1], buckets.shape[-1]))
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


def _given_buckets(name: str, given: Any, rounds: int) -> np.ndarray:
    buckets = as_array(name, given)
    if buckets.ndim >= 2 and buckets.shape[-2] != rounds:
        raise ValueError(
            f"{name} must have shape (b, h, num_hashes, t) with num_hashes = {rounds}, "
            f"got {buckets.shape}"
        )
    return buckets


def _few_ids(
    ids: int, of_queries: np.ndarray, of_keys: np.ndarray | None
) -> tuple[int, np.ndarray, np.ndarray | None]:
    """Number the ids anew, in their order, if they are far more than tokens: sorting takes time
    and memory for each, used or not."""
    given = [x for x in (of_queries, of_keys) if x is not None]
    if ids <= 8 * sum(x.shape[-1] for x in given if x.ndim) + 1024:
        return ids, of_queries, of_keys
    if any(x.min(initial=0) < 0 for x in given):
        return ids, of_queries, of_keys  # the extension says what is wrong
    values, places = np.unique(np.concatenate([x.ravel() for x in given]), return_inverse=True)
    parts = np.split(places.ravel().astype(np.int32), [of_queries.size])
    anew = [part.reshape(x.shape) for part, x in zip(parts, given, strict=False)]
    return len(values), anew[0], anew[1] if of_keys is not None else None


def _check_unused(
    spec: AttentionSpec,
    q: np.ndarray,
    k: np.ndarray | None,
    rotations: Any,
    buckets: Any,
    key_buckets: Any,
    rng: Any,
    attention_mask: Any,
) -> None:
    """What decides the buckets is checked where one chunk needs none, too."""
    factors, rounds = spec.num_buckets, spec.num_hashes
    if rng is not None:
        generator_of(rng)
    if rotations is not None:
        chosen = _factors(spec, q, k)
        buckets_of(q[..., :0, :], "qk", rounds, chosen, rotations, None, None, None, 1)
    given = {"buckets": (buckets, q.shape[-2]), "key_buckets": (key_buckets, q.shape[-2])}
    if k is not None:
        given["key_buckets"] = key_buckets, k.shape[-2]
    for name, (ids, n) in given.items():
        if ids is None:
            continue
        ids, shape = _given_buckets(name, ids, rounds), (*q.shape[:-2], rounds, n)
        letter, owner = ("t", "qk" if k is None else "q") if name == "buckets" else ("tk", "k")
        if ids.dtype.kind not in "iu":
            raise TypeError(f"{name} must be of an integer type, got {ids.dtype}")
        if ids.shape != shape:
            raise ValueError(
                f"{name} must have shape (b, h, r, {letter}) with {letter} = {n} as in {owner}, "
                f"{shape}, got {ids.shape}"
            )
        most = bucket_ids(ids, factors, attention_mask)  # type: ignore[arg-type]
        for at in np.argwhere((ids < 0) | (ids >= most))[:1]:
            raise IndexError(
                f"{name}{at.tolist()} = {ids[tuple(at)]} is out of range, must be at least 0 "
                f"and below {most}"
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
