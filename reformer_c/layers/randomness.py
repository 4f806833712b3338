"""Random choices of a model: a key for each of them, and dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops

__all__ = ["Dropout", "Key", "draw_seed", "random_key"]

# from the purpose of a random choice to its key
Key = Callable[..., int]


def random_key(*fields: int | str) -> int:
    """Hash a seed and its purpose into a 64-bit key.

    Every random choice of a model has its own key, made of (seed, layer, purpose), so choices are
    independent of each other and of the order in which they are made. The hash is BLAKE2b of the
    fields' text.

    Examples
    --------
    >>> random_key(0, 3, "rotations") == random_key(0, 3, "rotations")
    True
    >>> random_key(0, 3, "rotations") == random_key(0, 4, "rotations")
    False
    >>> random_key(1, 23) == random_key(12, 3)
    False
    """
    digest = hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_seed(rng: Any = None) -> int:
    """A 64-bit seed from anything ``numpy.random.default_rng`` accepts; None gives a fresh one.

    Examples
    --------
    >>> draw_seed(7) == draw_seed(7) != draw_seed((7, 1))
    True
    >>> draw_seed("seven")
    Traceback (most recent call last):
    TypeError: rng must be an integer >= 0, a numpy Generator or None, got 'seven'
    """
    try:
        return int(np.random.default_rng(rng).integers(2**64, dtype=np.uint64))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"rng must be an integer >= 0, a numpy Generator or None, got {rng!r}"
        ) from error


class Dropout:
    """drop(x) = x keep / (1 - p), where each element of `keep` is 0 with probability p, else 1.

    The mask depends on the key and the shape only. The function is linear and equals its transpose,
    so the backward pass applies it to the gradient. See `reformer_c.ops.dropout`.

    Parameters
    ----------
    p : float
        0 turns it off.
    key : callable
        From the purpose of a mask to its key.

    Examples
    --------
    >>> drop = Dropout(0.5, lambda purpose: random_key(0, purpose))
    >>> drop(np.ones(4), "output")
    array([2., 2., 0., 0.])
    """

    def __init__(self, p: float, key: Key) -> None:
        self.p, self._key = p, key

    def __call__(self, x: np.ndarray, *purpose: int | str, in_place: bool = False) -> np.ndarray:
        """drop(x), for x (...); x itself if p is 0."""
        if self.p == 0.0:
            return x
        return ops.dropout(x, self.p, key=self._key(*purpose), out=x if in_place else None)
