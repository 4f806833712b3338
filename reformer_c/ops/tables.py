"""Rows of tables: word embeddings, and positions from a small table for each axis of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..checks import as_array, saved_by
from ..runtime import resolve_workers
from ._derive import parameters_of, zeros_for

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
    ids : (...) int, of any size
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


@parameters_of(embedding)
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
    weights: tuple[np.ndarray, ...]


def axial_positions(
    position_ids: np.ndarray,
    w0: np.ndarray,
    w1: np.ndarray | None = None,
    *more: np.ndarray,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Vectors of positions from a small table for each axis of a grid.

    The positions fill the grid (n1, n2, ...) in row-major order. A position's vector is the
    concatenation of one row of each table: ``w0[j // n2], w1[j % n2]`` with two axes.

    Parameters
    ----------
    position_ids : (...) int, of any size
        At least 0 and below n1 * n2 * ...
    w0 : (n1, d1) or (n1, 1, ..., d1), float32 or float64
    w1 : (n2, d2) or (1, n2, ..., d2), same dtype, optional
    *more : (n3, d3) or (1, 1, n3, ..., d3) ..., same dtype
        The tables of further axes, 8 in all.
    out : (..., d1 + d2 + ...) same dtype, optional
        Where to write the result.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., d1 + d2 + ...)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape, naming the argument.
    IndexError
        For a position out of range.

    Notes
    -----
    Any length up to n1 * n2 * ... may be looked up, in training as well.

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
    tables = _squeezed(_listed(w0, w1, more))
    return _core.axial_positions_forward(position_ids, *tables, out, resolve_workers(workers))


@parameters_of(axial_positions)
def axial_positions_forward(
    position_ids: np.ndarray,
    w0: np.ndarray,
    w1: np.ndarray | None = None,
    *more: np.ndarray,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, AxialPositionsSaved]:
    """`axial_positions`, and what its backward pass needs.

    Returns
    -------
    out : (..., d1 + d2 + ...)
    saved : AxialPositionsSaved
        References, no copies.

    Examples
    --------
    >>> out, saved = axial_positions_forward(np.arange(4), np.ones((2, 3)), np.ones((2, 5)))
    >>> out.shape
    (4, 8)
    """
    y = axial_positions(position_ids, w0, w1, *more, out=out, workers=workers)
    weights = tuple(np.asarray(w) for w in _listed(w0, w1, more))
    return y, AxialPositionsSaved(np.asarray(position_ids), weights)


def axial_positions_backward(
    dout: np.ndarray, saved: AxialPositionsSaved, *, workers: int | None = None
) -> tuple[np.ndarray, ...]:
    """Gradients of `axial_positions` with respect to its tables.

    Parameters
    ----------
    dout : (..., d1 + d2 + ...)
        Gradient of its output.
    saved : AxialPositionsSaved
        Of `axial_positions_forward`.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dw0, dw1, ...
        With the shapes of the tables.

    Examples
    --------
    >>> out, saved = axial_positions_forward(np.arange(3), np.ones((2, 1)), np.ones((2, 1)))
    >>> axial_positions_backward(np.ones((3, 2)), saved)
    (array([[2.],
           [1.]]), array([[2.],
           [1.]]))
    """
    saved = saved_by(AxialPositionsSaved, saved)
    gradients = tuple(map(zeros_for, saved.weights))
    _core.axial_positions_backward(
        saved.position_ids, dout, *_squeezed(gradients), resolve_workers(workers)
    )
    return gradients


def _listed(w0: np.ndarray, w1: np.ndarray | None, more: Sequence[np.ndarray]) -> list[Any]:
    return [w0] if w1 is None and not more else [w0, w1, *more]


def _squeezed(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Without the other axes, of length 1, that Hugging Face's parameters have."""
    tables = []
    for a, w in enumerate(weights):
        w = as_array(f"w{a}", w)
        if w.ndim == len(weights) + 1 and w.size == w.shape[a] * w.shape[-1]:
            w = w.reshape(w.shape[a], w.shape[-1])
        if w.ndim != 2:
            n, d = f"n{a + 1}", f"d{a + 1}"
            whole = ", ".join(n if b == a else "1" for b in range(len(weights)))
            raise ValueError(f"w{a} must have shape ({n}, {d}) or ({whole}, {d}), got {w.shape}")
        tables.append(w)
    return tables
