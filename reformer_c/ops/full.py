"""Softmax attention to all keys."""

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

__all__ = ["full_attention", "full_attention_backward", "full_attention_forward"]


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
    k = keys_of(k, shared_qk)
    spec = spec_of(
        "full", is_causal=is_causal, scale=scale, softcap=softcap, shared_qk=shared_qk,
        dropout=dropout, dropout_key=dropout_key,
        matmul_precision=resolve_precision(matmul_precision),
    )  # fmt: skip
    return attention_forward(spec, q, k, as_array("v", v), attention_mask, out, workers)


@value_of(full_attention_forward)
def full_attention() -> np.ndarray:  # type: ignore[empty-body]
    """Exact softmax attention to all keys, in blocks: ``softmax(scale q k') v``.

    Parameters
    ----------
    q : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Queries. Any strides whose last axis is contiguous are used without a copy.
    k, v : (b, hk, tk, d) same dtype
        Keys and values; their length may differ from the queries'. hk divides h, and each of their
        heads serves h / hk successive ones of q, as in grouped-query attention (Ainslie et al.
        2023).
    is_causal : bool
        A query sees keys at its own position and before. Positions of both count from their first:
        of lengths that differ, query 0 is at key 0, as in PyTorch's attention.
    attention_mask : (b, tk) bool, int or float, optional
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
    dk : (b, hk, tk, d), or None with shared_qk
    dv : (b, hk, tk, d)
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
    return attention_backward(dout, saved, workers)
