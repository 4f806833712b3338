"""Rows of a table, and axial positions made of two small tables."""

import numpy as np


def embedding(ids, weight):
    """ids (...), weight (v, c) -> (..., c)."""
    return np.asarray(weight, np.float64)[ids]


def axial_positions(position_ids, w0, w1):
    """position_ids (...), w0 (n1, d1), w1 (n2, d2) -> (..., d1 + d2).

    Position j stands in row j // n2 and column j % n2 of an n1 x n2 rectangle; its vector is the
    row's vector followed by the column's.
    """
    n2 = len(w1)
    row, column = np.asarray(position_ids) // n2, np.asarray(position_ids) % n2
    return np.concatenate([embedding(row, w0), embedding(column, w1)], axis=-1)
