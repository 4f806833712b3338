"""The feed-forward layer, plain or gated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from ..checks import saved_by
from ..precision import resolve_precision
from ..runtime import resolve_workers
from ._derive import parameters_of, zeros_for

__all__ = ["feed_forward", "feed_forward_backward", "feed_forward_forward"]


class FeedForwardSaved(NamedTuple):
    """What the backward pass of `feed_forward` needs: its inputs, not copied."""

    x: np.ndarray
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    w3: np.ndarray | None
    b3: np.ndarray | None
    activation: str
    chunk_length: int
    dropout: float
    dropout_key: int
    matmul_precision: str | None = None


def feed_forward(
    x: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    w3: np.ndarray | None = None,
    b3: np.ndarray | None = None,
    *,
    activation: str = "relu",
    chunk_length: int = 0,
    dropout: float = 0.0,
    dropout_key: int = 0,
    out: np.ndarray | None = None,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """``activation(drop(x w1' + b1)) w2' + b2``, a few rows at a time.

    With w3 and b3 the layer is gated, ``drop(activation(x w1' + b1) * (x w3' + b3)) w2' + b2``.

    Parameters
    ----------
    x : (..., c) float32 or float64
    w1 : (f, c) same dtype
    b1 : (f,) same dtype
    w2 : (c, f) same dtype
    b2 : (c,) same dtype
    w3 : (f, c) same dtype, optional
    b3 : (f,) same dtype, with w3
    activation : str
        "relu", "gelu", "gelu_new", "silu", "tanh", "gelu_10", "hardswish", "laplace",
        "leaky_relu", "linear", "mish", "quick_gelu", "relu2", "relu6", "sigmoid" or
        "sqrtsoftplus", each as transformers defines it; gelu is exact, gelu_new its approximation
        by tanh.
    chunk_length : int
        Rows whose f hidden units are in memory at a time; 0 chooses.
    dropout : float
        Share of the hidden units to drop: before the activation, as Hugging Face does, or the
        products of a gated layer.
    dropout_key : int
        Of `dropout`: the same key drops the same units, whatever the chunks.
    out : (..., c) same dtype, optional
        Where to write the result. It may overlap an input.
    matmul_precision : {"highest", "high", "medium"}, optional
        How products are computed, see `reformer_c.set_matmul_precision`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., c)

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 3, "Chunking"; of gated layers, Shazeer 2020, "GLU
    Variants Improve Transformer".

    Examples
    --------
    >>> w1, w2 = np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]])
    >>> feed_forward(np.array([[-2.0], [3.0]]), w1, np.zeros(2), w2, np.zeros(1))
    array([[2.],
           [3.]])
    """
    return _core.feed_forward_forward(
        x, w1, b1, w2, b2, w3, b3, activation, chunk_length, dropout, dropout_key, out,
        resolve_precision(matmul_precision), resolve_workers(workers),
    )  # fmt: skip


@parameters_of(feed_forward)
def feed_forward_forward(
    x: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    w3: np.ndarray | None = None,
    b3: np.ndarray | None = None,
    *,
    activation: str = "relu",
    chunk_length: int = 0,
    dropout: float = 0.0,
    dropout_key: int = 0,
    out: np.ndarray | None = None,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, FeedForwardSaved]:
    """`feed_forward`, and what its backward pass needs.

    Returns
    -------
    out : (..., c)
    saved : FeedForwardSaved
        References, no copies; the hidden units are computed again.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, w1, w2 = (rng.standard_normal(shape) for shape in [(4, 2), (8, 2), (2, 8)])
    >>> y, saved = feed_forward_forward(x, w1, np.zeros(8), w2, np.zeros(2))
    >>> y.shape
    (4, 2)
    """
    precision = resolve_precision(matmul_precision)
    y = feed_forward(
        x, w1, b1, w2, b2, w3, b3, activation=activation, chunk_length=chunk_length,
        dropout=dropout, dropout_key=dropout_key, out=out, matmul_precision=precision,
        workers=workers,
    )  # fmt: skip
    return y, FeedForwardSaved(
        np.asarray(x), np.asarray(w1), np.asarray(b1), np.asarray(w2), np.asarray(b2),
        None if w3 is None else np.asarray(w3), None if b3 is None else np.asarray(b3), activation,
        chunk_length, dropout, dropout_key, precision,
    )  # fmt: skip


def feed_forward_backward(
    dout: np.ndarray,
    saved: FeedForwardSaved,
    *,
    value_out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Gradients of `feed_forward`.

    Parameters
    ----------
    dout : (..., c)
        Gradient of its output.
    saved : FeedForwardSaved
        Of `feed_forward_forward`.
    value_out : (..., c) same dtype, optional
        Where to write the output of `feed_forward` as well. A reversible layer needs it to rebuild
        its input; this way the hidden units are computed once for both.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dx : (..., c)
    dw1 : (f, c)
    db1 : (f,)
    dw2 : (c, f)
    db2 : (c,)
    dw3 : (f, c)
    db3 : (f,)
        Of a gated layer alone.

    Examples
    --------
    >>> w1, w2 = np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]])
    >>> y, saved = feed_forward_forward(np.array([[-2.0]]), w1, np.zeros(2), w2, np.zeros(1))
    >>> [gradient.tolist() for gradient in feed_forward_backward(np.ones((1, 1)), saved)]
    [[[-1.0]], [[0.0], [-2.0]], [0.0, 1.0], [[0.0, 2.0]], [1.0]]
    """
    x, w1, b1, w2, b2, w3, b3, activation, chunk_length, p, key, precision = saved_by(
        FeedForwardSaved, saved
    )
    dw1, db1, dw2, db2 = (zeros_for(weight) for weight in (w1, b1, w2, b2))
    dw3, db3 = (None if weight is None else zeros_for(weight) for weight in (w3, b3))
    dx = _core.feed_forward_backward(
        x, w1, b1, w2, b2, w3, b3, activation, chunk_length, p, key, dout, value_out, dw1, db1, dw2,
        db2, dw3, db3, resolve_precision(precision), resolve_workers(workers),
    )  # fmt: skip
    gate = () if dw3 is None or db3 is None else (dw3, db3)
    return dx, dw1, db1, dw2, db2, *gate
