"""Adafactor (Shazeer and Stern 2018, algorithms 4 and 5), as transformers' class has it."""

import numpy as np


def adafactor_step(
    w, g, *, row=None, column=None, s=None, m=None, lr, beta1=0.0, beta2, eps, clip_threshold,
    weight_decay,
):  # fmt: skip
    """The new (w, row, column, s, m); None stays None."""
    w, g, row, column, s, m = (
        None if a is None else np.asarray(a, np.float64) for a in (w, g, row, column, s, m)
    )
    squares = g**2 + eps
    if row is not None:
        row = beta2 * row + (1 - beta2) * squares.mean(axis=-1)
        column = beta2 * column + (1 - beta2) * squares.mean(axis=-2)
        share = row / row.mean(axis=-1, keepdims=True)
        estimate = share[..., :, None] * column[..., None, :]
    else:
        s = estimate = beta2 * s + (1 - beta2) * squares
    u = g / np.sqrt(estimate)
    u = lr * u / max(1.0, np.sqrt((u**2).mean()) / clip_threshold)
    if m is not None:
        u = m = beta1 * m + (1 - beta1) * u
    return w - lr * weight_decay * w - u, row, column, s, m
