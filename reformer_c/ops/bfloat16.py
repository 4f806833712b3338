"""Arrays as bfloat16 numbers: the upper halves of float32's, as uint16, which NumPy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..checks import as_array
from ..runtime import resolve_workers

__all__ = ["from_bfloat16", "to_bfloat16"]


def to_bfloat16(
    x: np.ndarray, *, out: np.ndarray | None = None, workers: int | None = None
) -> np.ndarray:
    """Round numbers to bfloat16: 8 significant bits, to nearest, ties to even.

    Parameters
    ----------
    x : ndarray, (...)
        float32, or float64, which is rounded to float32 first. A NaN stays a NaN, and what is
        larger than bfloat16's largest number becomes infinite.
    out : ndarray of uint16, (...), optional
        Where the result is written.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray of uint16, (...)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.

    Examples
    --------
    >>> halves = to_bfloat16(np.array([1.0, 1.001, -2.5], np.float32))
    >>> from_bfloat16(halves)
    array([ 1. ,  1. , -2.5], dtype=float32)
    """
    return _core.to_bfloat16(x, out, resolve_workers(workers))


def from_bfloat16(
    x: np.ndarray,
    *,
    dtype: Any = np.float32,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """The numbers of `to_bfloat16`'s result, exactly.

    Parameters
    ----------
    x : ndarray of uint16, (...)
    dtype : float32 or float64
        Of a new result.
    out : ndarray, (...), optional
        Where the result is written, float32 or float64.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray, (...)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.

    Examples
    --------
    >>> from_bfloat16(np.array([0x3F80, 0xC000], np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    if out is None:
        out = np.empty(as_array("x", x).shape, dtype)
    _core.from_bfloat16(x, out, resolve_workers(workers))
    return out
