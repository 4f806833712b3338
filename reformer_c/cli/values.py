"""What options accept, as the arguments `type` and `metavar` of ``add_argument``."""

from __future__ import annotations

import json
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from ..checks import did_you_mean

__all__ = ["ASCII", "COUNT", "FIELD", "FINITE", "NONNEGATIVE", "POSITIVE", "POSITIVE_OR_INF",
           "SHARE", "SHARE_BELOW_1", "SHARE_INSIDE", "SHARE_OR_0", "TEXT", "WHOLE", "given",
           "one_of", "option"]  # fmt: skip


def _value(
    metavar: str, read: Callable[[str], Any], fits: Callable[[Any], bool], expected: str
) -> dict[str, Any]:
    def convert(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return {"type": convert, "metavar": metavar}


def _field(text: str) -> tuple[str, Any] | None:
    name, equals, value = text.partition("=")
    if not name or not equals:
        return None
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word needs no quotes


def one_of(names: Sequence[str]) -> dict[str, Any]:
    """The arguments of an option that takes one of these names.

    Examples
    --------
    >>> one_of(["adamw", "adafactor"])["type"]("adamv")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be one of adamw, adafactor, got 'adamv'; did you mean adamw?
    """

    def convert(text: str) -> str:
        if text not in names:
            expected = f"must be one of {', '.join(names)}, got {text!r}"
            raise ArgumentTypeError(f"{expected}{did_you_mean(text, names)}")
        return text

    return {"type": convert, "choices": names}


TEXT = _value("TEXT", str, lambda text: text != "", "at least one character")
ASCII = _value("CHARACTER", str, lambda text: len(text.encode()) == 1, "one ASCII character")
FIELD = _value("FIELD=VALUE", _field, lambda pair: True, "FIELD=VALUE")
WHOLE = _value("N", int, lambda n: n >= 0, "a whole number >= 0")
COUNT = _value("N", int, lambda n: n >= 1, "a whole number >= 1")
FINITE = _value("X", float, math.isfinite, "a finite number")
NONNEGATIVE = _value("X", float, lambda x: 0 <= x < math.inf, "a number >= 0")
POSITIVE = _value("X", float, lambda x: 0 < x < math.inf, "a number > 0")
POSITIVE_OR_INF = _value("X", float, lambda x: x > 0, "a number > 0")
SHARE = _value("X", float, lambda x: 0 < x <= 1, "a number in (0, 1]")
SHARE_OR_0 = _value("X", float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
SHARE_INSIDE = _value("X", float, lambda x: 0 < x < 1, "a number in (0, 1)")
SHARE_BELOW_1 = _value("X", float, lambda x: 0 <= x < 1, "a number in [0, 1)")


def option(name: str) -> str:
    """The option that sets a value.

    Examples
    --------
    >>> option("save_every")
    '--save-every'
    """
    return f"--{name.replace('_', '-')}"


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
