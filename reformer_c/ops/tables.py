"""Rows of tables: word embeddings, and positions from two small tables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from ..checks import as_array, saved_by
from ..runtime import resolve_workers
from ._derive import zeros_for

__all__ = [
    "axial_positions",
    "axial_positions_backward",
    "axial_positions_forward",
    "embedding",
    "embedding_backward",
    "embedding_forward",
]


# ---- embedding ----


class EmbeddingSaved(NamedTuple):
    """What the backward pass of `embedding` needs: its inputs, not copied."""

    ids: np.ndarray
    weight: np.ndarray


def embedding(
    ids: np.ndarray,
    weight: np.ndarray,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Rows of a table: ``weight[ids]``.

    Parameters
    ----------
    ids : (...) of any integer dtype
        At least 0 and below v.
    weight : (v, c) float32 or float64
    out : (..., c) same dtype, optional
        Where to write the result.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., c)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.
    IndexError
        For an id out of range.

    Examples
    --------
    >>> embedding([2, 0], np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    array([[2., 2.],
           [0., 0.]])
    """
    return _core.embedding_forward(ids, weight, out, resolve_workers(workers))


def embedding_forward(
    ids: np.ndarray,
    weight: np.ndarray,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, EmbeddingSaved]:
    """`embedding`, and what its backward pass needs.

    Returns
    -------
    out : (..., c)
    saved : EmbeddingSaved
        References, no copies.

    Examples
    --------
    >>> out, saved = embedding_forward([2, 0], np.zeros((3, 2)))
    >>> out.shape
    (2, 2)
    """
    y = embedding(ids, weight, out=out, workers=workers)
    return y, EmbeddingSaved(np.asarray(ids), np.asarray(weight))


def embedding_backward(
    dout: np.ndarray, saved: EmbeddingSaved, *, workers: int | None = None
) -> np.ndarray:
    """Gradient of `embedding` with respect to its table.

    Parameters
    ----------
    dout : (..., c)
        Gradient of its output.
    saved : EmbeddingSaved
        Of `embedding_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dweight : (v, c)
        Each row the sum over the places where its id stands.

    Examples
    --------
    >>> out, saved = embedding_forward([2, 0, 2], np.zeros((3, 1)))
    >>> embedding_backward(np.ones((3, 1)), saved)
    array([[1.],
           [0.],
           [2.]])
    """
    saved = saved_by(EmbeddingSaved, saved)
    dweight = zeros_for(saved.weight)
    _core.embedding_backward(saved.ids, dout, dweight, resolve_workers(workers))
    return dweight


# ---- axial positions ----


class AxialPositionsSaved(NamedTuple):
    """What the backward pass of `axial_positions` needs: its inputs, not copied."""

    position_ids: np.ndarray
    w0: np.ndarray
    w1: np.ndarray


def axial_positions(
    position_ids: np.ndarray,
    w0: np.ndarray,
    w1: np.ndarray,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Vectors of positions from two small tables: position j has ``w0[j // n2], w1[j % n2]``.

    Parameters
    ----------
    position_ids : (...) of any integer dtype
        At least 0 and below n1 * n2.
    w0 : (n1, d1) or (n1, 1, d1), float32 or float64
    w1 : (n2, d2) or (1, n2, d2), same dtype
    out : (..., d1 + d2) same dtype, optional
        Where to write the result.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., d1 + d2)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.
    IndexError
        For a position out of range.

    Notes
    -----
    Any length up to n1 * n2 may be looked up, in training as well.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 5, "Experiments"; the axial position embeddings of trax
    and of Hugging Face's code, whose documentation has quotient and remainder swapped.

    Examples
    --------
    >>> axial_positions(np.arange(4), np.array([[10.0], [20.0]]), np.array([[1.0], [2.0]]))
    array([[10.,  1.],
           [10.,  2.],
           [20.,  1.],
           [20.,  2.]])
    """
    return _core.axial_positions_forward(
        position_ids,
        _table(w0, 1, "w0", "(n1, d1) or (n1, 1, d1)"),
        _table(w1, 0, "w1", "(n2, d2) or (1, n2, d2)"),
        out,
        resolve_workers(workers),
    )


def axial_positions_forward(
    position_ids: np.ndarray,
    w0: np.ndarray,
    w1: np.ndarray,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, AxialPositionsSaved]:
    """`axial_positions`, and what its backward pass needs.

    Returns
    -------
    out : (..., d1 + d2)
    saved : AxialPositionsSaved
        References, no copies.

    Examples
    --------
    >>> out, saved = axial_positions_forward(np.arange(4), np.ones((2, 3)), np.ones((2, 5)))
    >>> out.shape
    (4, 8)
    """
    y = axial_positions(position_ids, w0, w1, out=out, workers=workers)
    return y, AxialPositionsSaved(np.asarray(position_ids), np.asarray(w0), np.asarray(w1))


def axial_positions_backward(
    dout: np.ndarray, saved: AxialPositionsSaved, *, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `axial_positions` with respect to its tables.

    Parameters
    ----------
    dout : (..., d1 + d2)
        Gradient of its output.
    saved : AxialPositionsSaved
        Of `axial_positions_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dw0, dw1
        With the shapes of w0 and w1.

    Examples
    --------
    >>> out, saved = axial_positions_forward(np.arange(3), np.ones((2, 1)), np.ones((2, 1)))
    >>> axial_positions_backward(np.ones((3, 2)), saved)
    (array([[2.],
           [1.]]), array([[2.],
           [1.]]))
    """
    saved = saved_by(AxialPositionsSaved, saved)
    dw0, dw1 = zeros_for(saved.w0), zeros_for(saved.w1)
    _core.axial_positions_backward(
        saved.position_ids,
        dout,
        _table(dw0, 1, "w0", ""),
        _table(dw1, 0, "w1", ""),
        resolve_workers(workers),
    )
    return dw0, dw1


def _table(w: np.ndarray, axis: int, name: str, shapes: str) -> np.ndarray:
    """Without the axis of length 1 that Hugging Face's parameters have."""
    w = as_array(name, w)
    if w.ndim == 3 and w.shape[axis] == 1:
        return w[:, 0] if axis else w[0]
    if w.ndim != 2:
        raise ValueError(f"{name} must have shape {shapes}, got {w.shape}")
    return w
