"""What an optimizer is made of: whole arrays, updated in place by all threads."""

from __future__ import annotations

import numpy as np

from .. import _core
from ..runtime import resolve_workers
from ._arguments import finite, probability, whole

__all__ = ["adamw_step", "add_scaled", "sum_of_squares"]


def adamw_step(
    w: np.ndarray,
    m: np.ndarray,
    s: np.ndarray,
    g: np.ndarray,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
    workers: int | None = None,
) -> None:
    """One step of AdamW, in place: w, m and s are updated.

    With ``g`` scaled by `grad_scale`: ``m = beta1 m + (1 - beta1) g``,
    ``s = beta2 s + (1 - beta2) g**2``, and, each corrected for its start at 0,
    ``w -= lr (m / (sqrt(s) + eps) + weight_decay w)``.

    Parameters
    ----------
    w, m, s : (...) float32 or float64, writeable
        Weights, first and second moment; the moments start at 0.
    g : (...) same dtype
        The gradient.
    lr, beta1, beta2, eps, weight_decay : float
        The betas at least 0 and below 1.
    step : int
        Counts from 1.
    grad_scale : float
        Multiplies the gradient: gradient clipping without another pass.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range; naming the argument.

    References
    ----------
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.

    Examples
    --------
    >>> w, m, s = np.array([1.0, -1.0]), np.zeros(2), np.zeros(2)
    >>> adamw_step(w, m, s, np.array([0.5, -3.0]), lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8,
    ...            weight_decay=0.0, step=1)
    >>> w.round(4)
    array([ 0.9, -0.9])
    """
    beta1, beta2 = probability(beta1, "beta1"), probability(beta2, "beta2")
    if finite(eps, "eps") < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    step = whole(step, "step", 1)
    _core.adamw(
        g, w, m, s, lr, beta1, beta2, eps, weight_decay, step, grad_scale, resolve_workers(workers)
    )


def sum_of_squares(x: np.ndarray, *, workers: int | None = None) -> float:
    """The sum of the squares of all elements, in double precision.

    Parameters
    ----------
    x : (...) float32 or float64
    workers : int, optional
        Threads; the sum does not depend on them, bit for bit.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        For another dtype.

    Examples
    --------
    >>> sum_of_squares(np.array([3.0, 4.0]))
    25.0
    """
    return _core.sum_of_squares(x, resolve_workers(workers))


def add_scaled(y: np.ndarray, x: np.ndarray, alpha: float, *, workers: int | None = None) -> None:
    """``y += alpha * x``, in place: how a sublayer joins the residual stream and leaves it again.

    Parameters
    ----------
    y : (...) float32 or float64, writeable
    x : (...) same dtype and shape
    alpha : float
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, or if y is read-only.

    Examples
    --------
    >>> y = np.array([1.0, 2.0])
    >>> add_scaled(y, np.array([10.0, 20.0]), 0.5)
    >>> y
    array([ 6., 12.])
    """
    _core.add_scaled(x, y, alpha, resolve_workers(workers))
