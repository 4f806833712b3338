"""What operations have in common besides their checks: values and gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
Value = TypeVar("Value", bound=np.ndarray | float)


def value_of(
    forward: Callable[P, tuple[Value, Any]],
) -> Callable[[Callable[..., Value]], Callable[P, Value]]:
    """Decorate the name and the documentation of an operation whose value is ``forward(...)[0]``.

    The operation has the signature of `forward`; the decorated function's body is never run.
    """

    def decorate(documented: Callable[..., Value]) -> Callable[P, Value]:
        @functools.wraps(documented)
        def op(*args: P.args, **kwargs: P.kwargs) -> Value:
            return forward(*args, **kwargs)[0]

        signature = inspect.signature(forward)
        op.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(documented).return_annotation
        )
        return op

    return decorate


def zeros_for(weight: np.ndarray) -> np.ndarray:
    """Zeros to add a gradient to: of the weight's shape, contiguous and in native byte order."""
    return np.zeros(weight.shape, weight.dtype.type)
