"""The end of a language model: projection, softmax and loss in one, without the logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .. import _core
from ..checks import saved_by
from ..precision import resolve_precision
from ..runtime import resolve_workers
from ._derive import parameters_of, zeros_for

__all__ = ["cross_entropy_head", "cross_entropy_head_backward", "cross_entropy_head_forward"]


class CrossEntropySaved(NamedTuple):
    """What the backward pass needs: the inputs, and how many labels count."""

    h: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    labels: np.ndarray
    ignore_index: int
    label_smoothing: float
    chunk_length: int
    counted: float
    matmul_precision: str


def cross_entropy_head(
    h: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    labels: np.ndarray,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk_length: int = 0,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> float:
    """Mean cross-entropy of ``softmax(h weight' + bias)``, a few rows of logits at a time.

    Parameters
    ----------
    h : (..., c) float32 or float64
        Hidden states.
    weight : (v, c) same dtype
    bias : (v,) same dtype, or None
    labels : (...) integers
        At least 0 and below v, or `ignore_index`.
    ignore_index : int
        Rows with this label count for nothing.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly over all v classes, as
        PyTorch's ``cross_entropy`` does.
    chunk_length : int
        Rows whose logits are in memory at a time; 0 chooses. The loss may change by rounding.
    matmul_precision : {"highest", "high", "medium"}, optional
        How products are computed, see `reformer_c.set_matmul_precision`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    float
        The mean over the labels that count; nan if there are none.

    Raises
    ------
    TypeError, ValueError, IndexError
        For another dtype or shape, or a label out of range; naming the argument.

    See Also
    --------
    cross_entropy_head_forward, cross_entropy_head_backward

    References
    ----------
    Reformer (Kitaev et al. 2020), section 3, "Chunking": the log-probabilities of large
    vocabularies are computed for sections of the sequence at a time. Label smoothing: Szegedy et
    al. 2016, section 7.

    Examples
    --------
    >>> h, weight = np.eye(2), np.eye(2)
    >>> round(cross_entropy_head(h, weight, None, [0, 1]), 4)
    0.3133
    >>> round(cross_entropy_head(h, weight, None, [0, -100]), 4)
    0.3133
    """
    return cross_entropy_head_forward(
        h, weight, bias, labels, ignore_index=ignore_index, label_smoothing=label_smoothing,
        chunk_length=chunk_length, matmul_precision=matmul_precision, workers=workers,
    )[0]  # fmt: skip


@parameters_of(cross_entropy_head)
def cross_entropy_head_forward(
    h: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    labels: np.ndarray,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk_length: int = 0,
    matmul_precision: str | None = None,
    workers: int | None = None,
) -> tuple[float, CrossEntropySaved]:
    """`cross_entropy_head`, and what its backward pass needs.

    Returns
    -------
    loss : float
    saved : CrossEntropySaved
        References to the inputs, no copies: do not write into them before the backward pass.

    Examples
    --------
    >>> loss, saved = cross_entropy_head_forward(np.eye(2), np.eye(2), None, [0, 1])
    >>> saved.counted
    2.0
    """
    precision = resolve_precision(matmul_precision)
    total, count = _core.cross_entropy_head_forward(
        h, weight, bias, labels, ignore_index, label_smoothing, chunk_length, precision,
        resolve_workers(workers),
    )  # fmt: skip
    saved = CrossEntropySaved(
        np.asarray(h), np.asarray(weight), bias, np.asarray(labels), ignore_index,
        label_smoothing, chunk_length, count, precision,
    )  # fmt: skip
    return (total / count if count else math.nan), saved


def cross_entropy_head_backward(
    dloss: float, saved: CrossEntropySaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of `cross_entropy_head`.

    Parameters
    ----------
    dloss : float
        Gradient of the mean loss, usually 1.
    saved : CrossEntropySaved
        Of `cross_entropy_head_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dh : (..., c)
    dweight : (v, c)
    dbias : (v,) or None
        All 0 if no label counts.

    Examples
    --------
    >>> loss, saved = cross_entropy_head_forward(np.eye(2), np.eye(2), None, [0, 1])
    >>> dh, dweight, dbias = cross_entropy_head_backward(1.0, saved)
    >>> dh.round(4)
    array([[-0.1345,  0.1345],
           [ 0.1345, -0.1345]])
    """
    h, weight, bias, labels, ignore_index, smoothing, chunk_length, count, precision = saved_by(
        CrossEntropySaved, saved
    )
    dweight = zeros_for(weight)
    dbias = None if bias is None else np.zeros(len(weight), dweight.dtype)
    dh = _core.cross_entropy_head_backward(
        h, weight, bias, labels, ignore_index, smoothing, chunk_length,
        dloss / count if count else 0.0, dweight, dbias, precision, resolve_workers(workers),
    )  # fmt: skip
    return dh, dweight, dbias
