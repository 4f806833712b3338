"""Rows of a table, and axial positions made of a small table for each axis."""

import numpy as np


def embedding(ids, weight):
    """ids (...), weight (v, c) -> (..., c)."""
    return np.asarray(weight, np.float64)[ids]


def sinusoidal_positions(position_ids, c):
    """position_ids (...) -> (..., c): sines at even places and cosines at odd ones."""
    place = np.arange(c)
    angles = np.asarray(position_ids)[..., None] / 10000 ** (2 * (place // 2) / c)
    return np.where(place % 2 == 0, np.sin(angles), np.cos(angles))


def rotary_positions(x, position_ids, theta=10000.0):
    """x (..., h, d), position_ids (...): complex numbers x[..., :d / 2] + i x[..., d / 2:], times
    exp(i angle)."""
    x = np.asarray(x, np.float64)
    d = x.shape[-1]
    half = d // 2
    angles = np.asarray(position_ids)[..., None, None] * theta ** (-2 * np.arange(half) / d)
    z = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag, x[..., 2 * half :]], axis=-1)


def axial_positions(position_ids, *weights):
    """position_ids (...), weights (n1, d1), (n2, d2), ... -> (..., d1 + d2 + ...).

    Position j is a point of an n1 x n2 x ... grid, row by row: with two axes, in row j // n2 and
    column j % n2. Its vector is the concatenation of its row of each table.
    """
    point = np.unravel_index(np.asarray(position_ids), [len(w) for w in weights])
    return np.concatenate(
        [embedding(index, w) for index, w in zip(point, weights, strict=True)], axis=-1
    )
