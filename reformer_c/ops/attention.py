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
    integer,
    number,
    positive,
    saved_by,
)
from ..precision import resolve_precision
from ..runtime import resolve_workers
from .hashing import choose_num_buckets

__all__ = ["AttentionSaved"]

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
    local_window: int | None = None
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
            if self.kind == "lsh" and not self.shared_qk:
                raise ValueError(f"bucket_cap must be None with k, got {cap}")
        if self.local_window is not None:
            plain["local_window"] = integer("local_window", self.local_window, 0, INT32_MAX)
        if self.scale is not None:
            plain["scale"] = number("scale", self.scale)
        if self.softcap is not None:
            plain["softcap"] = positive("softcap", self.softcap)
        if self.dropout != 0.0:
            plain["dropout"] = number("dropout", self.dropout, 0.0, below=1.0)
        if self.dropout_key != 0:
            plain["dropout_key"] = integer("dropout_key", self.dropout_key, 0, 2**64 - 1)
        plain["matmul_precision"] = resolve_precision(self.matmul_precision)

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

    Parameters
    ----------
    spec : AttentionSpec
        The options of the call.
    q, k, v, attention_mask
        The inputs; k is None if the keys are made from the queries.
    bucket_ids : int
        Bucket ids are below it.
    buckets : ndarray of int32, (b, h, num_hashes, t), or None
        Where the attention hashes.
    key_buckets : ndarray of int32, (b, h, num_hashes, tk), or None
        Where it hashes keys of their own.
    out : ndarray
        The result.
    lse : ndarray, (b, h, t)
        The logarithm of each softmax's denominator, with two marks for the backward pass: the
        lowest float32 of a row that saw itself alone in its only round, and -inf of other rows
        without a key. (The argument `lse` of `lsh_attention` gives it without marks.) If a result
        was merged with those for other keys, its gradients are those of ``saved._replace(out=...,
        lse=...)``, with the merged result and log-sum-exp.

    Examples
    --------
    >>> from reformer_c import full_attention_forward
    >>> out, saved = full_attention_forward(*np.zeros((3, 5, 2)))
    >>> saved.spec.kind, saved.lse.shape, saved.buckets
    ('full', (1, 1, 5), None)
    """

    spec: AttentionSpec
    q: np.ndarray
    k: np.ndarray | None
    v: np.ndarray
    attention_mask: np.ndarray | None
    bucket_ids: int
    buckets: np.ndarray | None
    key_buckets: np.ndarray | None
    out: np.ndarray
    lse: np.ndarray


def keys_of(k: np.ndarray | None, shared_qk: bool) -> np.ndarray | None:
    """The keys of a call, None with shared_qk."""
    if shared_qk and k is not None:
        raise ValueError("k must be None with shared_qk: the keys are made from q")
    if not shared_qk and k is None:
        raise TypeError("k must be an array unless shared_qk, got None")
    return None if k is None else as_array("k", k)


def attention_forward(
    spec: AttentionSpec,
    q: np.ndarray,
    k: np.ndarray | None,
    v: np.ndarray,
    attention_mask: np.ndarray | None,
    out: np.ndarray | None,
    workers: int | None,
    bucket_ids: int = 0,
    buckets: np.ndarray | None = None,
    key_buckets: np.ndarray | None = None,
    log_sums: np.ndarray | None = None,
) -> tuple[np.ndarray, AttentionSaved]:
    out, lse = _core.attention_forward(
        spec, q, k, v, attention_mask, bucket_ids, buckets, key_buckets, out, log_sums,
        resolve_workers(workers),
    )  # fmt: skip
    return out, AttentionSaved(
        spec, q, k, v, attention_mask, bucket_ids, buckets, key_buckets, out, lse
    )


def attention_backward(
    dout: np.ndarray, saved: AttentionSaved, workers: int | None, *, hashes: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """dq, dk and dv; dk is None if the keys are made from the queries."""
    spec, q, k, v, attention_mask, bucket_ids, buckets, key_buckets, out, lse = saved_by(
        AttentionSaved, saved
    )
    if (spec.kind == "lsh") != hashes:
        kinds = "full or local attention", "LSH attention"
        raise ValueError(f"saved must be of {kinds[hashes]}, got that of {kinds[not hashes]}")
    dq, *dk, dv = _core.attention_backward(
        spec, q, k, v, attention_mask, bucket_ids, buckets, key_buckets, out, lse, dout,
        resolve_workers(workers),
    )  # fmt: skip
    return dq, dk[0] if dk else None, dv


def attention_scratch(
    spec: AttentionSpec,
    shape: tuple[int, int, int, int],
    *,
    num_keys: int | None = None,
    num_key_value_heads: int | None = None,
    dtype: Any = np.float32,
) -> tuple[int, int]:
    """Bytes that an attention takes besides its arrays, forward and backward; nothing is computed.

    Parameters
    ----------
    spec : AttentionSpec
        Of the call.
    shape : (b, h, t, d)
        Of the queries.
    num_keys : int, optional
        As many as queries by default.
    num_key_value_heads : int, optional
        Heads of the values; as many as of the queries by default.
    dtype : float32 or float64

    Returns
    -------
    forward, backward : int

    Examples
    --------
    >>> attention_scratch(AttentionSpec("local"), (1, 2, 65536, 64))[1] < 65536 * 64 * 4
    True
    """
    b, h, t, d = shape
    tk = t if num_keys is None else num_keys
    hk = h if num_key_value_heads is None else num_key_value_heads
    ids = 0
    if spec.hashes(t):
        factors: Any = spec.num_buckets or bucket_factors(
            choose_num_buckets(max(t, tk), spec.chunk_length)
        )
        ids = math.prod(factors)
    forward, backward = _core.attention_scratch(
        np.empty(0, dtype), spec, b, h, t, tk, hk, d, spec.num_hashes, ids, resolve_workers(None),
    )  # fmt: skip
    return int(forward), int(backward)
