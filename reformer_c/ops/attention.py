"""Softmax attention in four scopes: all keys, chunks of the sequence, chunks of the hash order, and
whole buckets. One kernel serves them, and one `AttentionSpec` holds the options of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..checks import (
    INT32_MAX,
    as_array,
    bucket_factors,
    count,
    flag,
    heads_of,
    integer,
    names_keywords,
    number,
    positive,
    saved_by,
)
from ..precision import resolve_precision
from ..runtime import resolve_workers
from ._derive import value_of
from .hashing import buckets_of, choose_num_buckets, generator_of

__all__ = [
    "AttentionSaved",
    "cut_share",
    "full_attention",
    "full_attention_backward",
    "full_attention_forward",
    "local_attention",
    "local_attention_backward",
    "local_attention_forward",
    "lsh_attention",
    "lsh_attention_backward",
    "lsh_attention_forward",
]

KINDS = {"full": "q", "local": "q", "lsh": "qk"}  # and what a call names its queries
SCOPES = ("chunk", "bucket")


@dataclass(frozen=True)
class AttentionSpec:
    """What a query may attend to, and how: the options of a call, checked, in the call's words.

    The extension reads the fields by name and completes them by the sizes of the arrays: at most
    one chunk is full attention, windows end with the sequence unless they wrap, and the scale is
    1 / sqrt(d) by default. The precision of products is resolved here.

    Raises
    ------
    TypeError, ValueError
        Naming the field.
    """

    kind: str
    num_hashes: int = 1
    num_buckets: int | Sequence[int] | None = None
    chunk_length: int = 64
    num_chunks_before: int = 1
    num_chunks_after: int = 0
    is_causal: bool = False
    scope: str = "chunk"
    bucket_cap: int | None = None
    scale: float | None = None
    softcap: float | None = None
    shared_qk: bool = False
    attend_across_buckets: bool = True
    allow_duplicate_attention: bool = True
    wrap: bool = False
    dropout: float = 0.0
    dropout_key: int = 0
    matmul_precision: str | None = None

    def __post_init__(self) -> None:
        plain = vars(self)  # a frozen dataclass guards attributes; what is checked is also plain
        for name, minimum in COUNTS:
            plain[name] = count(name, plain[name], minimum)
        for name in FLAGS:
            given = plain[name]
            is_bit = isinstance(given, int) and given in (0, 1)
            plain[name] = bool(given) if is_bit else flag(name, given)
        if self.num_buckets is not None:
            plain["num_buckets"] = bucket_factors(self.num_buckets)
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be 'chunk' or 'bucket', got {self.scope!r}")
        if self.bucket_cap is not None:
            cap = plain["bucket_cap"] = count("bucket_cap", self.bucket_cap, 64)
            if cap % 64 or self.scope == "chunk":
                raise ValueError(
                    f"bucket_cap must be a multiple of 64 with scope='bucket', or None, got {cap} "
                    f"with scope={self.scope!r}"
                )
        if self.scale is not None:
            plain["scale"] = number("scale", self.scale)
        if self.softcap is not None:
            plain["softcap"] = positive("softcap", self.softcap)
        if self.dropout != 0.0:
            plain["dropout"] = number("dropout", self.dropout, 0.0, below=1.0)
        if self.dropout_key != 0:
            plain["dropout_key"] = integer("dropout_key", self.dropout_key, 0, 2**64 - 1)
        plain["matmul_precision"] = resolve_precision(self.matmul_precision)

    @property
    def query(self) -> str:
        """What the call names its queries."""
        return KINDS[self.kind]

    def hashes(self, t: int) -> bool:
        """Whether a sequence of t tokens is hashed: in chunks, more than one."""
        return self.kind == "lsh" and (self.scope == "bucket" or t > self.chunk_length)


COUNTS = (
    ("num_hashes", 1), ("chunk_length", 1), ("num_chunks_before", 0), ("num_chunks_after", 0),
)  # fmt: skip
FLAGS = (
    "is_causal", "shared_qk", "attend_across_buckets", "allow_duplicate_attention", "wrap",
)  # fmt: skip


@lru_cache(maxsize=128, typed=True)
def _known_spec(**options: Any) -> AttentionSpec:
    return AttentionSpec(**options)


def spec_of(kind: str, **options: Any) -> AttentionSpec:
    """An `AttentionSpec`, checked once for all calls with the same options."""
    try:
        return _known_spec(kind=kind, **options)
    except TypeError:  # a list cannot be looked up, and what is wrong is named below
        pass
    return AttentionSpec(kind=kind, **options)


class AttentionSaved(NamedTuple):
    """What the backward pass of an attention needs: references, and one number a query.

    `buckets` is (b, h, num_hashes, t) int32 where the attention hashes, else None. `lse` (b, h, t)
    is the logarithm of each softmax's denominator, with two marks for the backward pass: the lowest
    float32 of a row that saw itself alone in its only round, and -inf of other rows without a key.
    """

    spec: AttentionSpec
    q: np.ndarray
    k: np.ndarray | None
    v: np.ndarray
    attention_mask: np.ndarray | None
    bucket_ids: int  # bucket ids are below it
    buckets: np.ndarray | None
    out: np.ndarray
    lse: np.ndarray


def _forward(
    spec: AttentionSpec,
    q: np.ndarray,
    k: np.ndarray | None,
    v: np.ndarray,
    attention_mask: np.ndarray | None,
    out: np.ndarray | None,
    workers: int | None,
    buckets: np.ndarray | None = None,
    bucket_ids: int = 0,
) -> tuple[np.ndarray, AttentionSaved]:
    out, lse = _core.attention_forward(
        spec, q, k, v, attention_mask, bucket_ids, buckets, out, resolve_workers(workers)
    )
    return out, AttentionSaved(spec, q, k, v, attention_mask, bucket_ids, buckets, out, lse)


def _backward(
    dout: np.ndarray, saved: AttentionSaved, workers: int | None, query: str = "q"
) -> tuple[np.ndarray, ...]:
    spec, q, k, v, attention_mask, bucket_ids, buckets, out, lse = saved_by(AttentionSaved, saved)
    if spec.query != query:
        kinds = {"q": "full or local attention", "qk": "LSH attention"}
        raise ValueError(f"saved must be of {kinds[query]}, got that of {kinds[spec.query]}")
    return _core.attention_backward(
        spec, q, k, v, attention_mask, bucket_ids, buckets, out, lse, dout,
        resolve_workers(workers),
    )  # fmt: skip


def attention_scratch(
    spec: AttentionSpec, shape: tuple[int, int, int, int], *, dtype: Any = np.float32
) -> tuple[int, int]:
    """Bytes that an attention takes besides its arrays, forward and backward; nothing is computed.

    Parameters
    ----------
    spec : AttentionSpec
        Of the call.
    shape : (b, h, t, d)
        Of the queries.
    dtype : float32 or float64

    Returns
    -------
    forward, backward : int

    Examples
    --------
    >>> attention_scratch(AttentionSpec("local"), (1, 2, 65536, 64))[1] < 65536 * 64 * 4
    True
    """
    t = shape[2]
    ids = 0
    if spec.hashes(t):
        factors: Any = spec.num_buckets or bucket_factors(choose_num_buckets(t, spec.chunk_length))
        ids = math.prod(factors)
    forward, backward = _core.attention_scratch(
        np.empty(0, dtype), spec, *shape, spec.num_hashes, ids, resolve_workers(None)
    )
    return int(forward), int(backward)


# ---- full ----


@names_keywords
def full_attention_forward(
    q: np.ndarray,
    k: np.ndarray | None,
    v: np.ndarray,
    *,
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    shared_qk: bool = False,
    dropout: float = 0.0,
    dropout_key: int = 0,
    matmul_precision: str | None = None,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, AttentionSaved]:
    """`full_attention`, and what its backward pass needs.

    Returns
    -------
    out : (b, h, t, d)
    saved : AttentionSaved
        References to the inputs and to `out`, no copies, and one number a query: do not write into
        them before the backward pass, by an `out` that overlaps an input either.

    Examples
    --------
    >>> out, saved = full_attention_forward(np.zeros((3, 2)), np.zeros((5, 2)), np.ones((5, 2)))
    >>> saved.lse.round(4)
    array([[[1.6094, 1.6094, 1.6094]]])
    """
    q, *_ = heads_of("q", q)
    if shared_qk and k is not None:
        raise ValueError("k must be None with shared_qk: the keys are made from q")
    if not shared_qk and k is None:
        raise TypeError("k must be an array unless shared_qk, got None")
    spec = spec_of(
        "full", is_causal=is_causal, scale=scale, softcap=softcap, shared_qk=shared_qk,
        dropout=dropout, dropout_key=dropout_key,
        matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    k = None if k is None else as_array("k", k)
    return _forward(spec, q, k, as_array("v", v), attention_mask, out, workers)


@value_of(full_attention_forward)
def full_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Exact softmax attention to all keys, in blocks: ``softmax(scale q k') v``.

    Parameters
    ----------
    q : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Queries. Any strides whose last axis is contiguous are used without a copy.
    k, v : (b, h, tk, d) same dtype
        Keys and values, with the leading axes of q; their length may differ from the queries'.
    is_causal : bool
        A query sees keys at its own position and before.
    attention_mask : (b, tk) bool, integer or float, optional
        Nonzero for a real token; (tk,) without a batch axis.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)`` before anything is masked (Gemma Team 2024,
        "Gemma 2", section 2).
    shared_qk : bool
        The Reformer's rule, with k=None: a key is its query divided by its root mean square, and a
        query sees itself only if there is nothing else to see.
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
        With the rank and the memory layout of q. 0 where there are no keys at all.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.

    See Also
    --------
    full_attention_forward, full_attention_backward, local_attention, lsh_attention

    Notes
    -----
    No array of t * tk elements is made. A row all of whose keys are masked behaves as in Hugging
    Face's Reformer.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2, "Dot-product attention" and "Shared-QK Transformer".

    Examples
    --------
    >>> q, k, v = np.zeros((3, 2)), np.zeros((3, 2)), np.eye(3, 2)
    >>> full_attention(q, k, v, is_causal=True).round(4)
    array([[1.    , 0.    ],
           [0.5   , 0.5   ],
           [0.3333, 0.3333]])
    """


@names_keywords
def full_attention_backward(
    dout: np.ndarray, saved: AttentionSaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Gradients of `full_attention`.

    Parameters
    ----------
    dout : (b, h, t, d)
        Gradient of its output.
    saved : AttentionSaved
        Of `full_attention_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dq : (b, h, t, d)
    dk : (b, h, tk, d), or None with shared_qk
    dv : (b, h, tk, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> out, saved = full_attention_forward(np.zeros((3, 2)), np.zeros((3, 2)), np.ones((3, 2)))
    >>> dq, dk, dv = full_attention_backward(np.ones((3, 2)), saved)
    >>> dv
    array([[1., 1.],
           [1., 1.],
           [1., 1.]])
    """
    gradients = _backward(dout, saved, workers)
    dk = None if saved.k is None else gradients[1]
    return gradients[0], dk, gradients[-1]


# ---- local ----


@names_keywords
def local_attention_forward(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    wrap: bool = False,
    dropout: float = 0.0,
    dropout_key: int = 0,
    matmul_precision: str | None = None,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, AttentionSaved]:
    """`local_attention`, and what its backward pass needs.

    Returns
    -------
    out : (b, h, t, d)
    saved : AttentionSaved
        References to the inputs and to `out`, no copies, and one number a query: do not write into
        them before the backward pass, by an `out` that overlaps an input either.

    Examples
    --------
    >>> q = np.zeros((4, 1))
    >>> out, saved = local_attention_forward(q, q, q, chunk_length=2)
    >>> out.shape
    (4, 1)
    """
    q, *_ = heads_of("q", q)
    k = as_array("k", k)
    if k.shape != q.shape:
        raise ValueError(f"k must have the shape of q, {q.shape}, got {k.shape}")
    spec = spec_of(
        "local", chunk_length=chunk_length, num_chunks_before=num_chunks_before,
        num_chunks_after=num_chunks_after, is_causal=is_causal, scale=scale, softcap=softcap,
        wrap=wrap, dropout=dropout, dropout_key=dropout_key,
        matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    return _forward(spec, q, k, as_array("v", v), attention_mask, out, workers)


@value_of(local_attention_forward)
def local_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Softmax attention to the own chunk of the sequence and its neighbours.

    Parameters
    ----------
    q, k, v : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Of one length; any length will do, the last chunk may be short. Any strides whose last axis
        is contiguous are used without a copy.
    chunk_length : int
        Length of a chunk. A sequence of at most one chunk gets `full_attention`.
    num_chunks_before, num_chunks_after : int
        How many neighbouring chunks a query sees.
    is_causal : bool
        A query sees keys at its own position and before.
    attention_mask : (b, t) bool, integer or float, optional
        Nonzero for a real token; (t,) without a batch axis.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)`` before anything is masked (Gemma Team 2024,
        "Gemma 2", section 2).
    wrap : bool
        The first chunk sees the last one, as in Hugging Face's models: the chunks lie on a circle.
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
        With the rank and the memory layout of q.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.

    See Also
    --------
    local_attention_forward, local_attention_backward, full_attention, lsh_attention

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2; the local layers of Hugging Face's Reformer, which
    follow trax.

    Examples
    --------
    >>> q, k, v = np.zeros((4, 1)), np.zeros((4, 1)), np.arange(4.0)[:, None]
    >>> local_attention(q, k, v, chunk_length=2, is_causal=True)[:, 0]
    array([0. , 0.5, 1. , 1.5])
    >>> local_attention(q, k, v, chunk_length=2, num_chunks_before=0)[:, 0]
    array([0.5, 0.5, 2.5, 2.5])
    """


@names_keywords
def local_attention_backward(
    dout: np.ndarray, saved: AttentionSaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `local_attention`.

    Parameters
    ----------
    dout : (b, h, t, d)
        Gradient of its output.
    saved : AttentionSaved
        Of `local_attention_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dq, dk, dv : (b, h, t, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> q = np.zeros((4, 1))
    >>> out, saved = local_attention_forward(q, q, q, chunk_length=2, num_chunks_before=0)
    >>> dq, dk, dv = local_attention_backward(np.array([[1.0], [0.0], [0.0], [0.0]]), saved)
    >>> dv[:, 0]
    array([0.5, 0.5, 0. , 0. ])
    """
    dq, dk, dv = _backward(dout, saved, workers)
    return dq, dk, dv


# ---- LSH ----


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
        return _forward(spec, qk, None, v, attention_mask, out, workers)
    if buckets is None:
        factors = factors or bucket_factors(choose_num_buckets(t, spec.chunk_length))
        buckets = buckets_of(
            qk, "qk", spec.num_hashes, factors, rotations, rng, attention_mask, None, workers
        )
    else:
        buckets = _given_buckets(buckets, spec.num_hashes)
    ids = bucket_ids(buckets, factors, attention_mask)
    return _forward(spec, qk, None, v, attention_mask, out, workers, buckets, ids)


@value_of(lsh_attention_forward)
def lsh_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Softmax attention among vectors that hash alike, with shared queries and keys.

    In each round the tokens are sorted by `lsh_hash` of qk and cut into chunks; a query sees its
    own chunk and its neighbours. All rounds together are one softmax. A key is qk divided by its
    root mean square, and a query sees itself only if there is nothing else to see.

    The defaults do what Hugging Face's Reformer does, at any length.

    Parameters
    ----------
    qk, v : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Any strides whose last axis is contiguous are used without a copy.
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
    attention_mask : (b, t) bool, integer or float, optional
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
    dqk, dv : (b, h, t, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> qk, v = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> out, saved = lsh_attention_forward(qk, v, chunk_length=16, rng=1)
    >>> dqk, dv = lsh_attention_backward(np.ones_like(out), saved)
    >>> float(dv.sum().round(6))
    800.0
    """
    dqk, dv = _backward(dout, saved, workers, "qk")
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


def _given_buckets(buckets: Any, rounds: int) -> np.ndarray:
    buckets = as_array("buckets", buckets)
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
