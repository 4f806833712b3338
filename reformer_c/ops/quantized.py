"""Weights in 8 or 16 bits, for decoding: a token reads every weight once, and fewer bytes of them.

Weight-only quantization: activations, sums and results keep the dtype of the input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..checks import as_array, did_you_mean, real_type
from ..runtime import resolve_workers
from .bfloat16 import from_bfloat16, to_bfloat16

__all__ = [
    "QuantizedWeight",
    "dequantize",
    "quantize",
    "quantized_feed_forward",
    "quantized_linear",
]

STORAGES = ("int8", "bfloat16")
# weights converted at a time: their temporaries stay in the cache
BLOCK = 2**18


class QuantizedWeight(NamedTuple):
    """A weight matrix in fewer bits: see `quantize`.

    Parameters
    ----------
    data : ndarray, (co, ci)
        int8; or the upper halves of float32 numbers, bfloat16, as uint16.
    scale : ndarray, (co,), or None
        What each row of int8 is multiplied by, in the dtype of the weight.

    Examples
    --------
    >>> quantize(np.ones((3, 8), np.float32), "int8").nbytes
    36
    """

    data: np.ndarray
    scale: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(co, ci)."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def quantize(weight: np.ndarray, storage: str) -> QuantizedWeight:
    """Round a weight matrix to 8-bit integers with a scale for each row, or to bfloat16.

    Parameters
    ----------
    weight : ndarray, (co, ci)
        float32 or float64, finite.
    storage : {"int8", "bfloat16"}
        "int8": a row's scale is its largest absolute value / 127, and the error of an element at
        most half a scale. "bfloat16": 8 significant bits, rounded to nearest even.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    TypeError
        The weight is not float32 or float64.
    ValueError
        The weight is not a matrix or not finite, or there is no such storage.

    Notes
    -----
    The scheme of int8 is that of llama.cpp's Q8_0, with a row in place of a block of 32.

    Examples
    --------
    >>> quantize(np.array([[1.0, -0.5, 0.25]], np.float32), "int8").data
    array([[127, -64,  32]], dtype=int8)
    """
    if storage not in STORAGES:
        near = did_you_mean(storage, STORAGES) if isinstance(storage, str) else ""
        raise ValueError(f"storage must be 'int8' or 'bfloat16', got {storage!r}{near}")
    weight = as_array("weight", weight)
    real = real_type("weight", weight)
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (co, ci), got {weight.shape}")
    data = np.empty(weight.shape, np.int8 if storage == "int8" else np.uint16)
    scale = np.empty(len(weight), real) if storage == "int8" else None
    rows = max(1, BLOCK // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        block = slice(start, start + rows)
        if not np.isfinite(weight[block]).all():
            raise ValueError("weight must be finite to be quantized, got a NaN or an infinity")
        if scale is None:
            to_bfloat16(weight[block], out=data[block])
            continue
        scale[block] = np.abs(weight[block]).max(axis=1, initial=0) / real(127)
        # a row of zeros, or of numbers so small that their scale is 0
        divisor = np.where(scale[block] > 0, scale[block], real(1))
        data[block] = np.clip(np.rint(weight[block] / divisor[:, None]), -127, 127)
    return QuantizedWeight(data, scale)


def dequantize(weight: QuantizedWeight, dtype: Any = np.float32) -> np.ndarray:
    """The matrix that a `QuantizedWeight` stands for.

    Parameters
    ----------
    weight : QuantizedWeight
    dtype : float32 or float64

    Returns
    -------
    ndarray, (co, ci)

    Examples
    --------
    >>> w = np.array([[1.0, -0.5, 0.25]], np.float32)
    >>> dequantize(quantize(w, "int8"))
    array([[ 1.       , -0.503937 ,  0.2519685]], dtype=float32)
    >>> dequantize(quantize(w, "bfloat16"))
    array([[ 1.  , -0.5 ,  0.25]], dtype=float32)
    """
    if weight.scale is None:
        return from_bfloat16(weight.data, dtype=dtype)
    matrix: np.ndarray = weight.data.astype(dtype) * weight.scale[:, None].astype(dtype)
    return matrix


def quantized_linear(
    x: np.ndarray,
    weight: np.ndarray | QuantizedWeight,
    bias: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """``x @ weight.T + bias`` for a few rows, with a quantized weight. Inference only.

    Every row of x reads the weight again: from some ten rows on, `linear` of the dequantized weight
    is faster.

    Parameters
    ----------
    x : ndarray, (..., ci)
        float32 or float64.
    weight : QuantizedWeight, or ndarray of x's dtype, (co, ci)
    bias : ndarray, (co,), optional
    out : ndarray, (..., co), optional
        Where the result is written.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray, (..., co)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.

    Examples
    --------
    >>> w = quantize(np.array([[1.0, -0.5], [0.0, 2.0]], np.float32), "bfloat16")
    >>> quantized_linear(np.ones((1, 2), np.float32), w)
    array([[0.5, 2. ]], dtype=float32)
    """
    return _core.quantized_linear(x, weight, bias, out, resolve_workers(workers))


def quantized_feed_forward(
    x: np.ndarray,
    w1: np.ndarray | QuantizedWeight,
    b1: np.ndarray,
    w2: np.ndarray | QuantizedWeight,
    b2: np.ndarray,
    w3: np.ndarray | QuantizedWeight | None = None,
    b3: np.ndarray | None = None,
    *,
    activation: str = "relu",
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """`feed_forward` for a few rows, with quantized weights. Inference only.

    Parameters
    ----------
    x : ndarray, (..., c)
        float32 or float64.
    w1 : QuantizedWeight, or ndarray of x's dtype, (f, c)
    b1 : ndarray, (f,)
    w2 : QuantizedWeight, or ndarray of x's dtype, (c, f)
    b2 : ndarray, (c,)
    w3 : QuantizedWeight, or ndarray of x's dtype, (f, c), optional
        Of a gated layer.
    b3 : ndarray, (f,), with w3
    activation : str
        As in `feed_forward`.
    out : ndarray, (..., c), optional
        Where the result is written.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    ndarray, (..., c)

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or activation, naming the argument.

    Examples
    --------
    >>> w = quantize(np.eye(2, dtype=np.float32), "int8")
    >>> zeros = np.zeros(2, np.float32)
    >>> quantized_feed_forward(np.array([[1, -1]], np.float32), w, zeros, w, zeros)
    array([[1., 0.]], dtype=float32)
    """
    return _core.quantized_feed_forward(
        x, w1, b1, w2, b2, w3, b3, activation, out, resolve_workers(workers)
    )
