"""The feed-forward sublayer of the Transformer: linear, activation, linear."""

from math import erf, pi, sqrt

import numpy as np

from .linear import linear

erf = np.vectorize(erf, otypes=[float])


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))  # 1 / (1 + exp(-x)), without overflow


def softplus(x):
    return np.logaddexp(0, x)


def gelu(x):
    return x * 0.5 * (1 + erf(x / sqrt(2)))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "gelu_10": lambda x: np.clip(gelu(x), -10, 10),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "laplace": lambda x: 0.5 * (1 + erf((x - 0.707107) / (0.282095 * sqrt(2)))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "sqrtsoftplus": lambda x: np.sqrt(softplus(x)),
}

# those with a corner, which need a small step of differences
CORNERED = {"relu", "leaky_relu", "relu6", "relu2", "hardswish", "gelu_10"}


def xielu(x, alpha_p, alpha_n, beta, eps):
    p, n = softplus(alpha_p), beta + softplus(alpha_n)
    below = n * (np.exp(np.minimum(x, eps)) - 1 - x)
    return np.where(x > 0, p * x**2, below) + beta * x


# those with weights, one number each
WEIGHTED = {
    "prelu": lambda x, weight: np.where(x > 0, x, weight * x),
    "xielu": xielu,
}


def feed_forward(x, w1, b1, w2, b2, w3=None, b3=None, activation="relu"):
    """x (..., c), w1 (f, c), b1 (f,), w2 (c, f), b2 (c,), and w3 (f, c), b3 (f,) of a gated layer
    -> (..., c)."""
    hidden = ACTIVATIONS[activation](linear(x, w1, b1))
    return linear(hidden if w3 is None else hidden * linear(x, w3, b3), w2, b2)
