"""What this machine can do at most, and what operations take of its memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..checks import positive, real_type
from ..precision import resolve_precision
from ..runtime import resolve_workers

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
    seconds = positive("seconds", seconds)
    like = np.empty(0, dtype)
    real_type("dtype", like)
    return _core.fma_peak(like, seconds, resolve_workers(workers))


def layer_scratch(
    op: str,
    n: int,
    columns_in: int,
    columns_out: int,
    *,
    chunk_length: int = 0,
    dtype: Any = np.float32,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> tuple[int, int]:
    """Bytes that a call takes besides its arrays, forward and backward; nothing is computed.

    Parameters
    ----------
    op : {"linear", "feed_forward", "gated_feed_forward", "cross_entropy_head"}
    n : int
        Rows, of all leading axes together.
    columns_in, columns_out : int
        Width of the rows, and of what they become: of the hidden layer, of the vocabulary.
    chunk_length : int
        Of the call.
    dtype : float32 or float64
    matmul_precision : {"highest", "high", "medium"}, optional
        How products are computed, see `reformer_c.set_matmul_precision`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    forward, backward : int

    Examples
    --------
    >>> forward, backward = layer_scratch("feed_forward", 65536, 256, 512, workers=2)
    >>> forward < backward < 65536 * 512 * 4
    True
    """
    forward, backward = _core.layer_scratch(
        np.empty(0, dtype), op, n, columns_in, columns_out, chunk_length,
        resolve_precision(matmul_precision), resolve_workers(workers),
    )  # fmt: skip
    return int(forward), int(backward)
