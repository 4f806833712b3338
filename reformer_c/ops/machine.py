"""What this machine can do at most."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..runtime import resolve_workers
from ._arguments import finite, real_type

__all__ = ["fma_peak"]


def fma_peak(seconds: float = 0.1, *, dtype: Any = np.float32, workers: int | None = None) -> float:
    """Measure the machine's peak: independent fused multiply-adds, all in registers.

    Parameters
    ----------
    seconds : float
        For how long, about; above 0.
    dtype : float32 or float64
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    float
        GFLOP/s, two operations for each multiply-add, of the instruction set in use.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> fma_peak(0.001, workers=1) > 0
    True
    """
    if finite(seconds, "seconds") <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    like = np.empty(0, dtype)
    real_type(like, "dtype")
    return _core.fma_peak(like, seconds, resolve_workers(workers))
