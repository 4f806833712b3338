"""How residual streams and their gradients are stored: as they are computed, or in fewer bits.

In fixed point a reversible layer adds whole steps, so that the backward pass rebuilds its inputs
bit for bit at any depth (MacKay et al. 2018, "Reversible Recurrent Neural Networks").
Streams of 16 bits have gradients of 16 bits, too: bfloat16 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops.fixed_point import fixed_point_limit

__all__ = [
    "RESIDUAL_DTYPES",
    "add_to",
    "new_gradient",
    "numbers",
    "numbers_bytes",
    "stored",
    "stream_bytes",
]

RESIDUAL_DTYPES = ("int16", "int32")


def numbers(x: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers of a stream or of a gradient, of dtype `dtype`: the array itself, or a new one.

    Examples
    --------
    >>> numbers(np.array([256, -128], np.int16), np.float32)
    array([ 1. , -0.5], dtype=float32)
    """
    if x.dtype == np.uint16:
        return ops.from_bfloat16(x, dtype=dtype)
    return x if x.dtype.kind == "f" else ops.from_fixed_point(x, dtype=dtype)


def stored(x: np.ndarray, residual_dtype: str | None) -> np.ndarray:
    """The stream of these numbers: the array itself, or a new one."""
    if residual_dtype is None:
        return x
    stream = np.zeros(x.shape, residual_dtype)
    add_to(stream, x, 1.0, "embeddings")
    return stream


def add_to(stream: np.ndarray, y: np.ndarray, sign: float, layer: str = "") -> None:
    """``stream += sign * y``, in place; a gradient is a stream, too. The layer is named in errors.

    Examples
    --------
    >>> add_to(np.zeros(1, np.int16), np.array([-200.0]), 1.0, "embeddings")
    Traceback (most recent call last):
    OverflowError: the residual stream after embeddings: y must stay below 128 in int16, got 200; \
residual_dtype='int32' holds numbers below 2048, None holds all
    """
    if stream.dtype.kind == "f":
        ops.add_scaled(stream, y, sign)
        return
    try:
        ops.add_rounded(stream, y, sign)
    except OverflowError as error:
        advice = ""
        if np.isfinite(y).all():  # no dtype helps if not
            wider = f"'int32' holds numbers below {fixed_point_limit('int32')}, "
            advice = f"; residual_dtype={wider if stream.itemsize == 2 else ''}None holds all"
        raise OverflowError(f"the residual stream after {layer}: {error}{advice}") from error


def new_gradient(stream: np.ndarray, dtype: Any) -> np.ndarray:
    """A gradient of 0, for streams of numbers of this dtype."""
    return np.zeros(stream.shape, np.uint16 if stream.dtype == np.int16 else dtype)


def stream_bytes(x: np.ndarray, residual_dtype: str | None) -> tuple[int, int]:
    """Bytes of the stream of the numbers x, and of its gradient."""
    if residual_dtype is None:
        return x.nbytes, x.nbytes
    width = np.dtype(residual_dtype).itemsize
    return x.size * width, x.size * 2 if width == 2 else x.nbytes


def numbers_bytes(x: np.ndarray, residual_dtype: str | None, rows: int) -> int:
    """Bytes of what `numbers` returns for some rows of a stream, and of its gradient."""
    return 0 if residual_dtype is None else 2 * min(x.nbytes, rows * x.shape[-1] * x.itemsize)
