"""The feed-forward sublayer of the Transformer: linear, activation, linear."""

from math import erf, pi, sqrt

import numpy as np

from .linear import linear

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(erf, otypes=[float])(x / sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(x / 2)),  # x / (1 + exp(-x)), without overflow
    "tanh": np.tanh,
}


def feed_forward(x, w1, b1, w2, b2, activation="relu"):
    """x (..., c), w1 (f, c), b1 (f,), w2 (c, f), b2 (c,) -> (..., c)."""
    return linear(ACTIVATIONS[activation](linear(x, w1, b1)), w2, b2)
