"""What operations have in common besides their checks: values and gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..checks import names_keywords

P = ParamSpec("P")
Value = TypeVar("Value", bound=np.ndarray | float)
Function = TypeVar("Function", bound=Callable[..., Any])


def value_of(
    forward: Callable[P, tuple[Value, Any]],
) -> Callable[[Callable[..., Value]], Callable[P, Value]]:
    """Decorate the name and the documentation of an operation whose value is ``forward(...)[0]``.

    The operation has the signature of `forward`; the decorated function's body is never run. The
    documentation of `forward` gets the parameters.
    """

    call: Callable[P, tuple[Value, Any]] = inspect.unwrap(forward)  # errors name the operation

    def decorate(documented: Callable[..., Value]) -> Callable[P, Value]:
        parameters_of(documented)(forward)

        @functools.wraps(documented)
        def op(*args: P.args, **kwargs: P.kwargs) -> Value:
            return call(*args, **kwargs)[0]

        signature = inspect.signature(forward)
        op.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(documented).return_annotation
        )
        return names_keywords(op)

    return decorate


def parameters_of(op: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate a function with the parameters of `op`: its documentation lists them before Returns.

    Examples
    --------
    >>> from .layers import linear, linear_forward
    >>> (linear.__doc__.count("matmul_precision :"), linear_forward.__doc__.count("..., ci"))
    (1, 1)
    """

    def decorate(function: Function) -> Function:
        if function.__doc__ and op.__doc__:  # None with python -OO
            section = inspect.cleandoc(op.__doc__).partition("Parameters\n---")[2]
            section = section.partition("\n\nReturns\n---")[0]
            own, returns, rest = inspect.cleandoc(function.__doc__).partition("Returns\n---")
            function.__doc__ = f"{own}Parameters\n---{section}\n\n{returns}{rest}"
        return function

    return decorate


def zeros_for(weight: np.ndarray) -> np.ndarray:
    """Zeros to add a gradient to: of the weight's shape, contiguous and in native byte order."""
    return np.zeros(weight.shape, weight.dtype.type)
