"""Numbers in fixed point: integers that count steps, whose sums are exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _core
from ..checks import as_array
from ..runtime import resolve_workers

__all__ = ["add_rounded", "from_fixed_point", "to_fixed_point"]

# binary digits after the point
FRACTION = {"int16": 8, "int32": 20}


def fixed_point_limit(dtype: Any) -> int:
    """The size that numbers in fixed point stay below.

    Examples
    --------
    >>> fixed_point_limit("int16"), fixed_point_limit("int32")
    (128, 2048)
    """
    dtype = np.dtype(dtype)
    if dtype.name not in FRACTION:
        raise ValueError(f"dtype must be int16 or int32, got {dtype}")
    bits: int = 8 * dtype.itemsize - 1 - FRACTION[dtype.name]
    return 1 << bits


def add_rounded(y: np.ndarray, x: np.ndarray, alpha: float, *, workers: int | None = None) -> None:
    """``y += alpha * x``, in place, for a y in fewer bits than x.

    In fixed point ``alpha * x`` is rounded to whole steps, half to even, and added exactly: adding
    with ``-alpha`` afterwards restores every bit of y.

    Parameters
    ----------
    y : (...), writeable
        Of uint16, bfloat16 numbers as of `to_bfloat16`, whose sum is rounded to nearest, ties to
        even; of int16 or int32, in fixed point as of `to_fixed_point`.
    x : (...) float32 or float64
    alpha : float
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Raises
    ------
    OverflowError
        A sum does not fit, or is NaN. Such elements are left as they are, others are added to.
    TypeError, ValueError
        For another dtype or shape, or if y is read-only.

    References
    ----------
    MacKay et al. 2018, "Reversible Recurrent Neural Networks".

    Examples
    --------
    >>> y = to_fixed_point(np.array([1.0, 2.0]))
    >>> add_rounded(y, np.array([0.5, 0.3]), 1.0)
    >>> from_fixed_point(y)
    array([1.5      , 2.3007812], dtype=float32)
    >>> add_rounded(y, np.array([0.5, 0.3]), -1.0)
    >>> from_fixed_point(y)
    array([1., 2.], dtype=float32)
    >>> add_rounded(y, np.array([0.5, 150.0]), 1.0)
    Traceback (most recent call last):
    OverflowError: y must stay below 128 in int16, got 152
    """
    beyond = _core.add_rounded(y, x, alpha, resolve_workers(workers))
    if beyond > 0:
        limit = fixed_point_limit(y.dtype)
        got = f"{beyond:.6g}" if math.isfinite(beyond) else "inf or nan"
        raise OverflowError(f"y must stay below {limit} in {y.dtype}, got {got}")


def to_fixed_point(
    x: np.ndarray, dtype: Any = "int16", *, workers: int | None = None
) -> np.ndarray:
    """Round numbers to steps of 2**-8 in 16 bits, or of 2**-20 in 32; half to even.

    Parameters
    ----------
    x : ndarray, (...)
        float32 or float64.
    dtype : "int16" or "int32"
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray of `dtype`, (...)

    Raises
    ------
    OverflowError
        A number is not below 128 in 16 bits, or 2048 in 32; or is NaN.
    TypeError, ValueError
        For another dtype.

    Examples
    --------
    >>> to_fixed_point(np.array([1.0, -0.5, 0.001]))
    array([ 256, -128,    0], dtype=int16)
    """
    fixed_point_limit(dtype)
    out = np.zeros(as_array("x", x).shape, dtype)
    add_rounded(out, x, 1.0, workers=workers)
    return out


def from_fixed_point(
    x: np.ndarray, *, dtype: Any = np.float32, workers: int | None = None
) -> np.ndarray:
    """The numbers of `to_fixed_point`'s result: exactly, but for those of 32 bits in float32.

    Parameters
    ----------
    x : ndarray of int16 or int32, (...)
    dtype : float32 or float64
        Of the result.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray, (...)

    Raises
    ------
    TypeError, ValueError
        For another dtype, naming the argument.

    Examples
    --------
    >>> from_fixed_point(np.array([256, -128], np.int16))
    array([ 1. , -0.5], dtype=float32)
    """
    out = np.empty(as_array("x", x).shape, dtype)
    _core.from_fixed_point(x, out, resolve_workers(workers))
    return out
