"""The layers around attention: rows in, rows out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from ..checks import number, saved_by
from ..precision import resolve_precision
from ..runtime import resolve_workers
from ._derive import parameters_of, zeros_for

__all__ = [
    "dropout",
    "dropout_backward",
    "dropout_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear",
    "linear_backward",
    "linear_forward",
]


# ---- linear ----


class LinearSaved(NamedTuple):
    """What the backward pass of `linear` needs: its inputs, not copied."""

    x: np.ndarray
    weight: np.ndarray
    has_bias: bool
    matmul_precision: str | None = None


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """``x weight' + bias``.

    Parameters
    ----------
    x : (..., ci) float32 or float64
    weight : (co, ci) same dtype
    bias : (co,) same dtype, optional
    out : (..., co) same dtype, optional
        Where to write the result. It may overlap an input.
    matmul_precision : {"highest", "high", "medium"}, optional
        How products are computed, see `reformer_c.set_matmul_precision`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., co)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]))
    array([[1., 3., 6.]])
    """
    precision = resolve_precision(matmul_precision)
    return _core.linear_forward(x, weight, bias, out, precision, resolve_workers(workers))


@parameters_of(linear)
def linear_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, LinearSaved]:
    """`linear`, and what its backward pass needs.

    Returns
    -------
    out : (..., co)
    saved : LinearSaved
        References, no copies: do not write into the inputs before the backward pass.

    Examples
    --------
    >>> out, saved = linear_forward(np.ones((4, 2)), np.ones((3, 2)))
    >>> out.shape
    (4, 3)
    """
    precision = resolve_precision(matmul_precision)
    y = linear(x, weight, bias, out=out, matmul_precision=precision, workers=workers)
    return y, LinearSaved(np.asarray(x), np.asarray(weight), bias is not None, precision)


def linear_backward(
    dout: np.ndarray,
    saved: LinearSaved,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of `linear`.

    Parameters
    ----------
    dout : (..., co)
        Gradient of its output.
    saved : LinearSaved
        Of `linear_forward`.
    out : (..., ci) same dtype, optional
        Where to write dx. It may overlap an input.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dx : (..., ci)
    dweight : (co, ci)
    dbias : (co,) or None

    Examples
    --------
    >>> out, saved = linear_forward(np.ones((4, 2)), np.ones((3, 2)))
    >>> dx, dweight, dbias = linear_backward(np.ones((4, 3)), saved)
    >>> dx[0], dweight[0], dbias
    (array([3., 3.]), array([4., 4.]), None)
    """
    x, weight, has_bias, precision = saved_by(LinearSaved, saved)
    dweight = zeros_for(weight)
    dbias = np.zeros(len(weight), dweight.dtype) if has_bias else None
    dx = _core.linear_backward(
        x, weight, dout, out, dweight, dbias, resolve_precision(precision),
        resolve_workers(workers),
    )  # fmt: skip
    return dx, dweight, dbias


# ---- layer norm ----


class LayerNormSaved(NamedTuple):
    """What the backward pass of `layer_norm` needs: inputs, and two numbers a row."""

    x: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray


def layer_norm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    eps: float = 1e-12,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Normalise each row to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    x : (..., c) float32 or float64
    weight, bias : (c,) same dtype
    eps : float
        Added to the variance.
    out : (..., c) same dtype, optional
        Where to write the result. It may overlap an input.
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
    Ba, Kiros and Hinton 2016, "Layer Normalization".

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 2.0, 3.0]]), np.ones(3), np.zeros(3)).round(4)
    array([[-1.2247,  0.    ,  1.2247]])
    """
    eps = number("eps", eps, 0.0)
    return _core.layer_norm_forward(x, weight, bias, eps, out, resolve_workers(workers))[0]


@parameters_of(layer_norm)
def layer_norm_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    eps: float = 1e-12,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, LayerNormSaved]:
    """`layer_norm`, and what its backward pass needs.

    Returns
    -------
    out : (..., c)
    saved : LayerNormSaved
        References to x and weight, no copies, and the mean and deviation of each row: do not write
        into them before the backward pass, by an `out` that overlaps x either.

    Examples
    --------
    >>> out, saved = layer_norm_forward(np.array([[1.0, 2.0, 3.0]]), np.ones(3), np.zeros(3))
    >>> saved.mean
    array([2.])
    """
    eps = number("eps", eps, 0.0)
    y, mean, rstd = _core.layer_norm_forward(x, weight, bias, eps, out, resolve_workers(workers))
    return y, LayerNormSaved(np.asarray(x), np.asarray(weight), mean, rstd)


def layer_norm_backward(
    dout: np.ndarray, saved: LayerNormSaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `layer_norm`.

    Parameters
    ----------
    dout : (..., c)
        Gradient of its output.
    saved : LayerNormSaved
        Of `layer_norm_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dx : (..., c)
    dweight, dbias : (c,)

    Examples
    --------
    >>> out, saved = layer_norm_forward(np.array([[1.0, 2.0, 3.0]]), np.ones(3), np.zeros(3))
    >>> dx, dweight, dbias = layer_norm_backward(np.array([[1.0, 0.0, 0.0]]), saved)
    >>> dx.round(4)
    array([[ 0.2041, -0.4082,  0.2041]])
    """
    x, weight, mean, rstd = saved_by(LayerNormSaved, saved)
    dweight, dbias = zeros_for(weight), zeros_for(weight)
    dx = _core.layer_norm_backward(
        x, weight, mean, rstd, dout, dweight, dbias, resolve_workers(workers)
    )
    return dx, dweight, dbias


# ---- dropout ----


class DropoutSaved(NamedTuple):
    """What the backward pass of `dropout` needs: the mask's key."""

    p: float
    key: int


def dropout(
    x: np.ndarray,
    p: float,
    key: int,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Set a share `p` of the elements to 0, and divide the others by ``1 - p``.

    Parameters
    ----------
    x : (...) float32 or float64
    p : float
        At least 0 and below 1.
    key : int
        In [0, 2**64). The same key drops the same elements: the mask depends on it and on an
        element's place alone.
    out : (...) same dtype, optional
        Where to write the result; x itself is fine.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (...)

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.

    References
    ----------
    Srivastava et al. 2014, "Dropout". Random bits by counter: Salmon et al. 2011, "Parallel Random
    Numbers: As Easy as 1, 2, 3".

    Examples
    --------
    >>> y = dropout(np.ones(1000), 0.5, key=7)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    >>> bool((dropout(np.ones(1000), 0.5, key=7) == y).all())
    True
    """
    return _core.dropout(x, p, key, out, resolve_workers(workers))


@parameters_of(dropout)
def dropout_forward(
    x: np.ndarray,
    p: float,
    key: int,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, DropoutSaved]:
    """`dropout`, and what its backward pass needs.

    Returns
    -------
    out : (...)
    saved : DropoutSaved

    Examples
    --------
    >>> dropout_forward(np.ones(3), 0.0, key=7)
    (array([1., 1., 1.]), DropoutSaved(p=0.0, key=7))
    """
    return dropout(x, p, key, out=out, workers=workers), DropoutSaved(p, key)


def dropout_backward(
    dout: np.ndarray, saved: DropoutSaved, *, workers: int | None = None
) -> np.ndarray:
    """Gradient of `dropout`: the same elements dropped.

    Parameters
    ----------
    dout : (...)
        Gradient of its output.
    saved : DropoutSaved
        Of `dropout_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dx : (...)

    Examples
    --------
    >>> y, saved = dropout_forward(np.ones(1000), 0.5, key=7)
    >>> bool((dropout_backward(np.ones(1000), saved) == y).all())
    True
    """
    saved = saved_by(DropoutSaved, saved)
    return dropout(dout, saved.p, saved.key, workers=workers)
