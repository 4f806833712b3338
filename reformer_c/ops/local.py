"""Softmax attention to chunks of the sequence."""

from __future__ import annotations

import numpy as np

from ..checks import as_array, heads_of, names_keywords
from ..precision import resolve_precision
from ._derive import value_of
from .attention import (
    AttentionSaved,
    attention_backward,
    attention_forward,
    keys_of,
    spec_of,
)

__all__ = ["local_attention", "local_attention_backward", "local_attention_forward"]


@names_keywords
def local_attention_forward(
    q: np.ndarray,
    k: np.ndarray | None,
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
    shared_qk: bool = False,
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
    k = keys_of(k, shared_qk)
    spec = spec_of(
        "local", chunk_length=chunk_length, num_chunks_before=num_chunks_before,
        num_chunks_after=num_chunks_after, is_causal=is_causal, scale=scale, softcap=softcap,
        wrap=wrap, shared_qk=shared_qk, dropout=dropout, dropout_key=dropout_key,
        matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    return attention_forward(spec, q, k, as_array("v", v), attention_mask, out, workers)


@value_of(local_attention_forward)
def local_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Softmax attention to the own chunk of the sequence and its neighbours.

    Parameters
    ----------
    q : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Queries, of any length: the last chunk may be short. Any strides whose last axis is
        contiguous are used without a copy.
    k, v : (b, hk, t, d) same dtype
        Keys and values. hk divides h, and each of their heads serves h / hk successive ones of q,
        as in grouped-query attention (Ainslie et al. 2023).
    chunk_length : int
        Length of a chunk. A sequence of at most one chunk gets `full_attention`.
    num_chunks_before, num_chunks_after : int
        How many neighbouring chunks a query sees.
    is_causal : bool
        A query sees keys at its own position and before.
    attention_mask : (b, t) bool, int or float, optional
        Nonzero for a real token; (t,) without a batch axis.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)`` before anything is masked (Gemma Team 2024,
        "Gemma 2", section 2).
    wrap : bool
        The first chunk sees the last one, as in Hugging Face's models: the chunks lie on a circle.
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
    Reformer (Kitaev et al. 2020), section 2, of which "Shared-QK Transformer" is shared_qk; the
    local layers of Hugging Face's Reformer, which follow trax.

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
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
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
    dq : (b, h, t, d)
    dk : (b, hk, t, d), or None with shared_qk
    dv : (b, hk, t, d)
        Each with the memory layout of its input.

    Examples
    --------
    >>> q = np.zeros((4, 1))
    >>> out, saved = local_attention_forward(q, q, q, chunk_length=2, num_chunks_before=0)
    >>> dq, dk, dv = local_attention_backward(np.array([[1.0], [0.0], [0.0], [0.0]]), saved)
    >>> dv[:, 0]
    array([0.5, 0.5, 0. , 0. ])
    """
    return attention_backward(dout, saved, workers)
