"""The distribution that sampling draws from: temperature, top-k and the other filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["FILTERS", "TINY", "kth_largest", "log_softmax", "probabilities", "softmax", "warp"]

# lower bound for temperatures and penalties: it has the effect of their limit 0, and float32 logits
# divided by it do not overflow
TINY = 1e-100
# the options of `warp`
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def probabilities(logits: np.ndarray, **options: Any) -> np.ndarray:
    """The distribution (v,) that sampling draws from.

    Logits (v,) are divided by the temperature. Then these filters are applied in turn, each to the
    tokens that the previous one left:

    - `top_k`: the k likeliest tokens, and those tied with the last of them; 0 keeps all.
    - `top_p`: the fewest tokens whose total probability is at least p (Holtzman et al. 2020).
    - `min_p`: tokens at least p times as likely as the likeliest (Nguyen et al. 2024).
    - `typical_p`: tokens whose information is nearest to the entropy, of total probability p
      (Meister et al. 2023).
    - `epsilon_cutoff`, `eta_cutoff`: tokens of at least this probability, which `eta_cutoff` lowers
      if the entropy is high (Hewitt et al. 2022).

    At least one token is kept.

    Examples
    --------
    >>> probabilities(np.log([0.5, 0.3, 0.2]), top_p=0.6).round(3)
    array([0.625, 0.375, 0.   ])
    >>> probabilities(np.log([0.5, 0.3, 0.2]), min_p=0.5).round(3)
    array([0.625, 0.375, 0.   ])
    """
    return softmax(warp(np.asarray(logits, np.float64), **options))


def warp(
    z: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
    keep: int = 1,
) -> np.ndarray:
    """Divide logits (v,) by the temperature and set excluded tokens to minus infinity.

    The options are those of `probabilities`. Each filter leaves at least `keep` tokens.
    """
    with np.errstate(under="ignore", over="ignore"):
        # lower temperatures have the same result: the likeliest token alone
        z = z / max(temperature, TINY)
    keep = min(keep, len(z))
    if 0 < top_k < len(z):
        z = np.where(z < kth_largest(z, max(top_k, keep)), -math.inf, z)
    if top_p < 1.0:
        p = softmax(z)
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        z = _without(z, order, before >= top_p, keep)
    if min_p > 0.0:
        with np.errstate(under="ignore"):
            cutoff = min_p * softmax(z).max()
        z = _at_least(z, cutoff, keep)
    if typical_p < 1.0:
        with np.errstate(divide="ignore"):
            distance = np.abs(-log_softmax(z) - _entropy(z))
        order = np.argsort(distance, kind="stable")
        last = min(int((np.cumsum(softmax(z)[order]) < typical_p).sum()), len(z) - 1)
        z = _without(z, order, distance[order] > distance[order[last]], keep)
    if epsilon_cutoff > 0.0:
        z = _at_least(z, epsilon_cutoff, keep)
    if eta_cutoff > 0.0:
        cutoff = min(eta_cutoff, math.sqrt(eta_cutoff) * math.exp(-_entropy(z)))
        z = _at_least(z, cutoff, keep)
    return z


def _without(z: np.ndarray, order: np.ndarray, excluded: np.ndarray, keep: int) -> np.ndarray:
    """Exclude tokens, marked in the given order, but not the first `keep`."""
    excluded[:keep] = False
    z = z.copy()
    z[order[excluded]] = -math.inf
    return z


def _at_least(z: np.ndarray, cutoff: float, keep: int) -> np.ndarray:
    """Exclude the tokens less probable than `cutoff`, but not the `keep` likeliest."""
    return np.where((softmax(z) < cutoff) & (z < kth_largest(z, keep)), -math.inf, z)


def kth_largest(z: np.ndarray, k: int) -> float:
    kth: float = np.partition(z, -k)[-k]
    return kth


def softmax(z: np.ndarray) -> np.ndarray:
    """Of each row of z (..., v)."""
    # probabilities may underflow to 0
    with np.errstate(under="ignore", over="ignore"):
        p = np.exp(z - z.max(axis=-1, keepdims=True))
        shares: np.ndarray = p / p.sum(axis=-1, keepdims=True)
        return shares


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    z = z - z.max()
    with np.errstate(under="ignore"):
        logarithms: np.ndarray = z - np.log(np.exp(z).sum())
        return logarithms


def _entropy(z: np.ndarray) -> float:
    p, log_p = softmax(z), log_softmax(z)
    with np.errstate(under="ignore"):
        return float(-(p[p > 0] * log_p[p > 0]).sum())
