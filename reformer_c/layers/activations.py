"""Activations with trainable weights, as in transformers: prelu and xielu.

All others are in the kernels of ``reformer_c.feed_forward``. These two are rare, and use NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["WEIGHTED", "WeightedActivation"]


class WeightedActivation(NamedTuple):
    """An activation act(h), for h of any shape, and its scalar weights.

    Weights and constants are passed to the functions by name.
    """

    # (h, **values) -> act(h)
    forward: Callable[..., np.ndarray]
    # (da, h, **values) -> dh, {weight: its gradient}
    backward: Callable[..., tuple[np.ndarray, dict[str, float]]]
    # trainable scalars and their initial values
    weights: dict[str, float]
    # saved with the weights, not trained
    constants: dict[str, float]
    # arrays of h's size that the backward pass holds at once: h, act(h), da, NumPy's temporaries
    arrays: int


# ---- prelu: He et al. 2015, "Delving Deep into Rectifiers", section 2.1 ----


def prelu(h: np.ndarray, *, weight: float) -> np.ndarray:
    """``h`` above 0, and ``weight h`` below.

    Examples
    --------
    >>> prelu(np.array([-2.0, 3.0]), weight=0.25)
    array([-0.5,  3. ])
    """
    return np.where(h > 0, h, weight * h)


def prelu_backward(
    da: np.ndarray, h: np.ndarray, *, weight: float
) -> tuple[np.ndarray, dict[str, float]]:
    """dh, and the gradient of the weight.

    Examples
    --------
    >>> prelu_backward(np.ones(2), np.array([-2.0, 3.0]), weight=0.25)
    (array([0.25, 1.  ]), {'weight': -2.0})
    """
    return np.where(h > 0, da, weight * da), {"weight": _sum(da * np.minimum(h, 0))}


# ---- xielu: Huang and Schlag 2024, "Deriving Activation Functions Using Integration" ----


def xielu(h: np.ndarray, *, alpha_p: float, alpha_n: float, beta: float, eps: float) -> np.ndarray:
    """``p h^2 + beta h`` above 0, and ``n (exp(h) - 1 - h) + beta h`` below.

    Here ``p = log(1 + exp(alpha_p))`` and ``n = beta + log(1 + exp(alpha_n))``. For h between
    eps < 0 and 0 the exponential is evaluated at eps.

    Examples
    --------
    >>> xielu(np.array([-2.0, 3.0]), alpha_p=0.2, alpha_n=-1.0, beta=0.5, eps=-1e-6).round(3)
    array([-0.077,  8.683])
    """
    p, n = _softplus(alpha_p), beta + _softplus(alpha_n)
    out: np.ndarray = np.where(h > 0, p * h * h, n * (np.expm1(np.minimum(h, eps)) - h)) + beta * h
    return out


def xielu_backward(
    da: np.ndarray, h: np.ndarray, *, alpha_p: float, alpha_n: float, beta: float, eps: float
) -> tuple[np.ndarray, dict[str, float]]:
    """dh, and the gradients of the two weights.

    Examples
    --------
    >>> dh, gradients = xielu_backward(
    ...     np.ones(2), np.array([-2.0, 3.0]), alpha_p=0.2, alpha_n=-1.0, beta=0.5, eps=-1e-6)
    >>> dh.round(3), sorted(gradients)
    (array([-0.203,  5.289]), ['alpha_n', 'alpha_p'])
    """
    p, n = _softplus(alpha_p), beta + _softplus(alpha_n)
    bend = np.expm1(np.minimum(h, eps))
    slope = np.where(h > 0, (2 * p) * h, n * np.where(h < eps, bend, -1)) + beta
    dp = _sum(np.where(h > 0, da * h * h, 0))
    dn = _sum(np.where(h > 0, 0, da * (bend - h)))
    return da * slope, {"alpha_p": dp * _sigmoid(alpha_p), "alpha_n": dn * _sigmoid(alpha_n)}


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def _sigmoid(x: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -x)))


def _sum(x: np.ndarray) -> float:
    return float(x.sum(dtype=np.float64))


WEIGHTED = {
    "prelu": WeightedActivation(prelu, prelu_backward, {"weight": 0.25}, {}, arrays=6),
    # transformers rounds these to bfloat16; unrounded they are 0.2035, -1.0502 and -1e-6
    "xielu": WeightedActivation(
        xielu, xielu_backward, {"alpha_p": 0.2041015625, "alpha_n": -1.046875},
        {"beta": 0.5, "eps": -9.98377799987793e-07}, arrays=8,
    ),
}  # fmt: skip
