"""Checks of arguments that models, texts and training share; the ops have their own."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["integer"]


def integer(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int, if it is an integer of at least `least`, Python's or NumPy's.

    Raises
    ------
    TypeError
        It is no integer; a boolean is none.
    ValueError
        It is below `least`.

    Examples
    --------
    >>> integer("steps", 3, 1)
    3
    >>> integer("steps", 0, 1)
    Traceback (most recent call last):
    ValueError: steps: expected an integer >= 1, got 0
    >>> integer("steps", 3.0, 1)
    Traceback (most recent call last):
    TypeError: steps: expected an integer >= 1, got 3.0
    """
    expected = "an integer" if least is None else f"an integer >= {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number
