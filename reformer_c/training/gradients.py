"""Checks and clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .. import ops
from ..checks import positive
from ..runtime import underflow_to_zero

__all__ = ["check_finite", "check_float_array", "clip_gradients", "not_finite"]


def not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first array that contains a NaN or an infinity."""
    for name, array in arrays.items():
        # the sum is one fast pass in C; it may overflow, so then check the elements
        if not math.isfinite(ops.sum_of_squares(array)) and not np.isfinite(array).all():
            return name
    return None


def check_finite(grads: Mapping[str, np.ndarray], step: int) -> None:
    """Raise FloatingPointError, naming step and parameter, if a gradient is NaN or infinite."""
    if (name := not_finite(grads)) is not None:
        grad = grads[name]
        bad = grad.size - np.count_nonzero(np.isfinite(grad))
        raise FloatingPointError(
            f"step {step}: the gradient of {name!r} is not finite "
            f"({bad} of {grad.size} elements are NaN or infinite)"
        )


@underflow_to_zero()
def clip_gradients(grads: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients in place by one factor, to a global Euclidean norm up to `max_norm`.

    The norm is right even where squares overflow or underflow.

    Parameters
    ----------
    grads : dict of str to ndarray
        Gradients by name, float32 or float64, writable.
    max_norm : float
        Maximum norm, > 0; ``inf`` does not clip.

    Returns
    -------
    float
        The norm before clipping; ``inf`` if it exceeds float64. If a gradient has a NaN or an
        infinity, the norm is NaN or infinite and no gradient is scaled: the optimiser raises then.

    Examples
    --------
    >>> import numpy as np
    >>> grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    >>> clip_gradients(grads, max_norm=1.0)
    5.0
    >>> grads["a"].round(6), grads["b"].round(6)
    (array([0.6]), array([0.8]))
    """
    if not isinstance(grads, Mapping):
        raise TypeError("grads must be a dictionary of arrays by name")
    max_norm = positive("max_norm", max_norm, infinite=True)
    for name, grad in grads.items():
        check_float_array(f"grads[{name!r}]", grad)
    norm, shift = _norm(grads)
    limit = _ldexp(max_norm, -shift)
    if math.isfinite(norm) and norm > limit:
        factor, times = limit / norm, 1
        if shift or factor < np.finfo(np.float32).tiny:  # the factor may underflow or overflow:
            # multiply twice by its square root
            factor, times = math.ldexp(math.sqrt(max_norm) / math.sqrt(norm), -shift // 2), 2
        for grad in [grad for grad in grads.values() for _ in range(times)]:
            np.multiply(grad, factor, out=grad)
    return _ldexp(norm, shift)


def _norm(grads: Mapping[str, np.ndarray]) -> tuple[float, int]:
    """(x, n) where the global norm is x 2^n; n is even, and 0 unless squares over- or underflow."""
    squares = [ops.sum_of_squares(grad) for grad in grads.values()]
    total = math.fsum(squares) if max(squares, default=0.0) < 1e300 else math.inf
    if math.isnan(total) or 1e-280 < total < math.inf:
        return math.sqrt(total), 0
    largest = float(np.max([np.abs(grad).max(initial=0.0) for grad in grads.values()], initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest, 0
    shift = math.frexp(largest)[1] // 2 * 2
    scaled = [np.asarray(np.ldexp(grad, -shift)) for grad in grads.values()]
    return math.sqrt(math.fsum(map(ops.sum_of_squares, scaled))), shift


def _ldexp(x: float, n: int) -> float:
    """x 2^n; infinity on overflow."""
    try:
        return math.ldexp(x, n)
    except OverflowError:
        return math.inf


def check_float_array(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        kind = type(array).__name__
        raise TypeError(f"{name} must be a float32 or float64 array, got {kind}")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be a float32 or float64 array, got {array.dtype}")
    if not (array.flags.writeable and array.flags.c_contiguous):
        raise ValueError(f"{name} must be a writable C-contiguous array")
