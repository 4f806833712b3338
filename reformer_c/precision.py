"""Precision of matrix products: float32, or operands rounded to bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

__all__ = ["get_matmul_precision", "matmul_precision", "set_matmul_precision"]

PRECISIONS = ("highest", "high", "medium")

Method = TypeVar("Method", bound=Callable[..., Any])

_process_precision = "highest"
_block_precision: ContextVar[str | None] = ContextVar("reformer_c_matmul_precision", default=None)


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products for this process.

    Arrays are float32 and sums are float32 in every case. The products are those of linear and
    feed-forward layers, of the loss head, and of attention, forward and backward. Hashing, softmax,
    norms, residual streams and optimizers are always float32; so are products with fewer than 8
    rows, such as those of a decoded token, whose time is bound by reading the weights. float64
    arrays are never rounded.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        "highest" multiplies float32 numbers. "medium" rounds both operands to bfloat16 (8
        significant bits). "high" splits each operand into two bfloat16 numbers, whose sum has 16
        significant bits, and computes three products.

    Raises
    ------
    ValueError
        The precision is not one of these.

    See Also
    --------
    matmul_precision : for a block of code.

    Notes
    -----
    The names have the meaning of ``torch.set_float32_matmul_precision`` and of JAX's
    ``jax_default_matmul_precision``. "medium" is faster where the processor multiplies bfloat16
    numbers (instruction sets "amx" and "avx512_bf16"); elsewhere operands are rounded and
    multiplied in float32, which takes slightly longer than "highest"; results differ only by the
    order of summation. Results are bit-identical for any number of threads.

    References
    ----------
    Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype for
    Higher-Precision Computations": the algorithm of "high".

    Examples
    --------
    >>> set_matmul_precision("medium")
    >>> get_matmul_precision()
    'medium'
    >>> set_matmul_precision("highest")
    """
    global _process_precision
    _process_precision = resolve_precision(precision, "precision")


def get_matmul_precision() -> str:
    """The precision that a call from here uses without ``matmul_precision=``.

    Returns
    -------
    {"highest", "high", "medium"}

    Examples
    --------
    >>> get_matmul_precision()
    'highest'
    """
    return _block_precision.get() or _process_precision


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """Set the precision in a ``with`` block, in this Python thread (or asyncio task) only.

    A Python thread that the block starts is in it where threads inherit context variables, which
    is the default of free-threaded Python from 3.14 on (``-X thread_inherit_context``).

    Parameters
    ----------
    precision : {"highest", "high", "medium"} or None
        As for `set_matmul_precision`; None changes nothing.

    Examples
    --------
    >>> with matmul_precision("medium"):
    ...     get_matmul_precision()
    'medium'
    >>> get_matmul_precision()
    'highest'
    """
    token = _block_precision.set(resolve_precision(precision, "precision"))
    try:
        yield
    finally:
        _block_precision.reset(token)


def resolve_precision(precision: str | None, name: str = "matmul_precision") -> str:
    """The precision for a call's ``matmul_precision`` argument; None means the default.

    Examples
    --------
    >>> resolve_precision("low")
    Traceback (most recent call last):
    ValueError: matmul_precision must be 'highest', 'high' or 'medium', got 'low'
    """
    if precision is None:
        return _block_precision.get() or _process_precision
    if precision not in PRECISIONS:
        raise ValueError(f"{name} must be 'highest', 'high' or 'medium', got {precision!r}")
    return precision


def in_own_precision(method: Method) -> Method:
    """Decorate a method to use the precision of ``self.config``, or of its first argument's config.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class Pass:
    ...     config = SimpleNamespace(matmul_precision="high")
    ...     @in_own_precision
    ...     def precision(self):
    ...         return get_matmul_precision()
    >>> Pass().precision()
    'high'
    """

    @functools.wraps(method)
    def computed(self: Any, *args: Any, **options: Any) -> Any:
        owner = self if hasattr(self, "config") else args[0]
        with matmul_precision(owner.config.matmul_precision):
            return method(self, *args, **options)

    return cast(Method, computed)
