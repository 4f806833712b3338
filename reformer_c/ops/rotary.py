"""Rotary positions: queries and keys rotated by the angles of their positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import _core
from ..checks import positive, saved_by
from ..runtime import resolve_workers
from ._derive import value_of

__all__ = ["rotary_positions", "rotary_positions_backward", "rotary_positions_forward"]


class RotaryPositionsSaved(NamedTuple):
    """What the backward pass of `rotary_positions` needs: the positions, not copied."""

    position_ids: np.ndarray
    theta: float


def rotary_positions_forward(
    x: np.ndarray,
    position_ids: np.ndarray,
    *,
    theta: float = 10000.0,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, RotaryPositionsSaved]:
    """`rotary_positions`, and what its backward pass needs.

    Returns
    -------
    out : (..., h, d)
    saved : RotaryPositionsSaved
        References, no copies.

    Examples
    --------
    >>> out, saved = rotary_positions_forward(np.ones((5, 1, 2)), np.arange(5))
    >>> out.shape, saved.theta
    ((5, 1, 2), 10000.0)
    """
    theta = positive("theta", theta)
    y = _core.rotary_positions_forward(x, position_ids, theta, out, resolve_workers(workers))
    return y, RotaryPositionsSaved(np.asarray(position_ids), theta)


@value_of(rotary_positions_forward)
def rotary_positions() -> np.ndarray:  # type: ignore[empty-body]
    """Rotate queries or keys by their positions.

    Channels i and i + d // 2 of a head are the coordinates of a point, which is rotated by the
    angle ``position * theta ** (-2 i / d)``. The product of a rotated query and a rotated key then
    depends only on the difference of their positions.

    Parameters
    ----------
    x : (..., h, d) float32 or float64
        The h heads of each token. The last channel of an odd d is not rotated.
    position_ids : (...) int, of any size
        At least 0 and below 2**53.
    theta : float
        The longest wavelength is 2 pi times nearly this number.
    out : (..., h, d) same dtype, optional
        Where to write the result; x itself is fine.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (..., h, d)

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.
    IndexError
        For a position out of range.

    References
    ----------
    Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding". The pairs of
    channels are those of Hugging Face's models.

    Examples
    --------
    >>> q, k = np.array([[[1.0, 2.0]]]), np.array([[[0.5, -1.0]]])
    >>> near = rotary_positions(q, [7]) * rotary_positions(k, [5])
    >>> far = rotary_positions(q, [1007]) * rotary_positions(k, [1005])
    >>> bool(np.isclose(near.sum(), far.sum()))
    True
    """


def rotary_positions_backward(
    dout: np.ndarray,
    saved: RotaryPositionsSaved,
    *,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Gradient of `rotary_positions` with respect to x: the rotation back.

    Parameters
    ----------
    dout : (..., h, d)
        Gradient of its output.
    saved : RotaryPositionsSaved
        Of `rotary_positions_forward`.
    out : (..., h, d) same dtype, optional
        Where to write the result; dout itself is fine.
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    dx : (..., h, d)

    Examples
    --------
    >>> out, saved = rotary_positions_forward(np.ones((1, 1, 2)), [3])
    >>> rotary_positions_backward(out, saved).round(6)
    array([[[1., 1.]]])
    """
    saved = saved_by(RotaryPositionsSaved, saved)
    return _core.rotary_positions_backward(
        saved.position_ids, saved.theta, dout, out, resolve_workers(workers)
    )
