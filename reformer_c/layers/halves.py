"""Weights of half precision: bfloat16 (of the ml_dtypes library) and float16."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..checks import requires_extra

__all__ = ["computed", "is_half", "is_bfloat16", "weights_dtype", "widened"]

DTYPES = ("float32", "float64", "bfloat16", "float16")


def weights_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of a model's weights.

    Examples
    --------
    >>> weights_dtype("float16")
    dtype('float16')
    >>> weights_dtype("int8")
    Traceback (most recent call last):
    TypeError: dtype must be float32 or float64, bfloat16 or float16, got int8
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise requires_extra("dtype='bfloat16'", "ml_dtypes", "bfloat16") from error
        dtype = ml_dtypes.bfloat16
    message = f"dtype must be float32 or float64, bfloat16 or float16, got {dtype!r}"
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(message) from error
    if dtype is None or found.name not in DTYPES or not found.isnative:
        raise TypeError(message if dtype is None else message.replace(repr(dtype), str(found)))
    return found


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return bool(dtype.name == "bfloat16")


def is_half(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 2


def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that weights of this one are multiplied in."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def widened(weight: np.ndarray) -> np.ndarray:
    """A weight as it is computed with: the array itself, or a new one of float32."""
    if is_bfloat16(weight.dtype):
        return ops.from_bfloat16(weight.view(np.uint16))
    return weight.astype(np.float32) if is_half(weight.dtype) else weight
