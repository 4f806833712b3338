"""What an optimizer is made of: whole arrays, updated in place by all threads."""

from __future__ import annotations

import numpy as np

from .. import _core
from ..checks import as_array, count, number, positive
from ..runtime import resolve_workers

__all__ = ["adafactor_step", "adamw_step", "add_scaled", "sum_of_squares"]


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
    beta1, beta2 = number("beta1", beta1, 0.0, below=1.0), number("beta2", beta2, 0.0, below=1.0)
    eps = number("eps", eps, 0.0)
    step = count("step", step, 1)
    _core.adamw_step(
        w, m, s, g, lr, beta1, beta2, eps, weight_decay, step, grad_scale, resolve_workers(workers)
    )


def adafactor_step(
    w: np.ndarray,
    g: np.ndarray,
    *,
    row: np.ndarray | None = None,
    column: np.ndarray | None = None,
    s: np.ndarray | None = None,
    m: np.ndarray | None = None,
    lr: float,
    beta1: float = 0.0,
    beta2: float,
    eps: float,
    clip_threshold: float,
    weight_decay: float,
    workers: int | None = None,
) -> None:
    """One step of Adafactor, in place: w and the moments that are given are updated.

    The second moment of a matrix is kept as the running means of its rows and of its columns,
    ``row = beta2 row + (1 - beta2) mean(g**2 + eps, -1)`` and `column` alike; its estimate is
    ``s = row column / mean(row)``. Without them ``s = beta2 s + (1 - beta2) (g**2 + eps)``. Then
    ``u = g / sqrt(s)``, divided by ``max(1, rms(u) / clip_threshold)``, and
    ``w -= lr (u + weight_decay w)``, with the running mean of ``lr u`` in place of it where there
    is a first moment.

    Parameters
    ----------
    w : (...) float32 or float64, writeable
        Weights.
    g : (...) same dtype
        The gradient.
    row, column : same dtype, writeable, optional
        Of the shape of w without its last axis, and without its last but one. For w of two axes or
        more; all axes before them are a batch of matrices.
    s : (...) same dtype, writeable
        Where `row` and `column` are not given.
    m : (...) same dtype, writeable, optional
        First moment.
    lr, beta1, beta2, eps, clip_threshold, weight_decay : float
        The betas at least 0 and below 1; eps and clip_threshold above 0. All moments start at 0,
        and are not corrected for it: beta2 of the first step is 0.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range; naming the argument.

    References
    ----------
    Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    algorithms 4 and 5; with a first moment as transformers' class of that name has it.

    Examples
    --------
    >>> w, row, column = np.zeros((2, 2)), np.zeros(2), np.zeros(2)
    >>> adafactor_step(w, np.array([[1.0, -2.0], [2.0, 4.0]]), row=row, column=column, lr=0.1,
    ...                beta2=0.0, eps=1e-30, clip_threshold=1.0, weight_decay=0.0)
    >>> w
    array([[-0.1,  0.1],
           [-0.1, -0.1]])
    >>> row, column
    (array([ 2.5, 10. ]), array([ 2.5, 10. ]))
    """
    if (row is None) != (column is None):
        raise TypeError("row and column must be given together")
    if (row is None) == (s is None):
        raise TypeError("s must be given where row and column are not, and only there")
    for name, array in (("w", w), ("s", s), ("m", m)):  # a copy would step in vain
        if not isinstance(array, np.ndarray) and (array is not None or name == "w"):
            raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    g = as_array("g", g)
    if row is not None and w.ndim < 2:
        raise ValueError(f"w must have two axes at least to have rows and columns, got {w.shape}")
    beta1, beta2 = number("beta1", beta1, 0.0, below=1.0), number("beta2", beta2, 0.0, below=1.0)
    eps, clip_threshold = positive("eps", eps), positive("clip_threshold", clip_threshold)
    if s is not None:
        # the core knows matrices: a vector is one row
        axes = (None,) * (2 - w.ndim)
        w, g, s = w[axes], g[axes], s[axes]
        m = None if m is None else m[axes]
    _core.adafactor_step(
        w, g, row, column, s, m, lr, beta1, beta2, eps, clip_threshold, weight_decay,
        resolve_workers(workers),
    )  # fmt: skip


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
    _core.add_scaled(y, x, alpha, resolve_workers(workers))
