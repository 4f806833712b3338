"""Checks of the arguments that are not arrays; the extension checks those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ..checks import is_masked

MOST = 2**31 - 1
Saved = TypeVar("Saved")


def whole(value: Any, name: str, least: int, most: int = MOST) -> int:
    """An integer of at least `least`; what is larger than `most` makes no difference to the op."""
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return min(number, most)


def probability(value: Any, name: str) -> float:
    number = finite(value, name)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, got {number}")
    return number


def finite(value: Any, name: str) -> float:
    try:
        if getattr(value, "ndim", 0):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def switch(value: Any, name: str) -> bool:
    """True or False, NumPy's too, or 0 and 1."""
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def random_key(value: Any, name: str) -> int:
    """A key of random bits: an integer in [0, 2**64)."""
    key = whole(value, name, 0, 2**64)
    if key == 2**64:
        raise ValueError(f"{name} must be below 2**64, got {value}")
    return key


def factors_of(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    """The number of buckets as a tuple of even factors whose product is a bucket id or two short
    of 2**31."""
    listed = num_buckets if isinstance(num_buckets, (tuple, list)) else (num_buckets,)
    if isinstance(num_buckets, np.ndarray):
        listed = num_buckets.ravel()
    factors = tuple(whole(factor, "num_buckets", 2) for factor in listed)
    if not factors or len(factors) > 16 or any(factor % 2 for factor in factors):
        raise ValueError(
            f"num_buckets must be an even number, or 1 to 16 even factors, got {num_buckets}"
        )
    if math.prod(factors) >= MOST:
        raise ValueError(f"num_buckets must have a product below 2**31 - 1, got {num_buckets}")
    return factors


def array_of(values: Any, name: str) -> np.ndarray:
    """What NumPy makes of values: as the extension checks its arrays, where Python looks first."""
    if is_masked(values):
        raise TypeError(
            f"{name} must not be a masked array, whose mask would be lost: pass "
            f"{name}.filled(...), and say which tokens are not real by attention_mask"
        )
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be an array, got rows of several lengths") from None


def heads(x: Any, name: str) -> tuple[np.ndarray, int, int, int]:
    """An attention array with its (h, t, d)."""
    array = array_of(x, name)
    shape = array.shape
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"{name} must have shape (b, h, t, d), (h, t, d) or (t, d), got {shape}")
    return array, shape[-3] if len(shape) > 2 else 1, shape[-2], shape[-1]


def real_type(array: np.ndarray, name: str) -> type[np.floating[Any]]:
    """float32 or float64."""
    if array.dtype.type not in (np.float32, np.float64):  # of any byte order
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}: pass "
            f"{name}.astype(numpy.float32)"
        )
    return array.dtype.type


def saved_by(kind: type[Saved], saved: Any) -> Saved:
    """What a forward pass saved; nothing else will do."""
    if not isinstance(saved, kind):
        raise TypeError(
            f"saved must be the {kind.__name__} that the forward pass gave, "
            f"got {type(saved).__name__}"
        )
    return saved


def zeros_for(weight: np.ndarray) -> np.ndarray:
    """A gradient to add to: contiguous, in native byte order."""
    return np.zeros(weight.shape, weight.dtype.type)
