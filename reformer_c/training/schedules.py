"""Learning-rate schedules: functions from the number of steps taken to a factor on the rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..checks import integer, names_keywords, number

__all__ = ["Schedule", "describe_schedule", "schedules"]

Schedule = Callable[[int], float]


class _NamedSchedule:
    """A schedule with its kind and arguments, which determine its factors."""

    def __init__(self, factor: Schedule, kind: str, **arguments: float) -> None:
        self._factor, self.kind, self.arguments = factor, kind, arguments

    def __call__(self, step: int) -> float:
        return self._factor(step)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{k}={v}' for k, v in self.arguments.items())})"


@names_keywords
def _constant(*, warmup: int = 0) -> Schedule:
    """1, after a linear warm-up of `warmup` steps.

    Parameters
    ----------
    warmup : int
        Steps of linear increase; the first has 1 / warmup.

    Returns
    -------
    callable
        ``schedule(step)``.

    Examples
    --------
    >>> [schedules.constant(warmup=2)(step) for step in range(3)]
    [0.5, 1.0, 1.0]
    """
    warmup = integer("warmup", warmup, 0)
    return _NamedSchedule(lambda step: _warm(step, warmup), "constant", warmup=warmup)


@names_keywords
def _linear(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Linear decay from 1 after the warm-up to `floor` after `steps` steps.

    Parameters
    ----------
    steps : int
        After which the factor is `floor`.
    warmup : int
        Steps of linear increase; the first has 1 / warmup.
    floor : float
        The last factor, in [0, 1].

    Returns
    -------
    callable
        ``schedule(step)``.

    Examples
    --------
    >>> [schedules.linear(4)(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return _decay("linear", lambda progress: 1.0 - progress, steps, warmup, floor)


@names_keywords
def _cosine(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Cosine decay from 1 after the warm-up to `floor` (Loshchilov and Hutter 2017, section 3).

    Parameters
    ----------
    steps : int
        After which the factor is `floor`.
    warmup : int
        Steps of linear increase; the first has 1 / warmup.
    floor : float
        The last factor, in [0, 1].

    Returns
    -------
    callable
        ``schedule(step)``.

    Examples
    --------
    >>> [round(schedules.cosine(4, floor=0.1)(step), 3) for step in range(5)]
    [1.0, 0.868, 0.55, 0.232, 0.1]
    """
    return _decay("cosine", lambda x: 0.5 + 0.5 * math.cos(math.pi * x), steps, warmup, floor)


@names_keywords
def _rsqrt(*, warmup: int = 1) -> Schedule:
    """Linear warm-up, then ``sqrt(warmup / step)`` (Vaswani et al. 2017, section 5.3).

    Parameters
    ----------
    warmup : int
        Steps of linear increase; the first has 1 / warmup.

    Returns
    -------
    callable
        ``schedule(step)``.

    Examples
    --------
    >>> [schedules.rsqrt(warmup=4)(step) for step in (0, 3, 15, 63)]
    [0.25, 1.0, 0.5, 0.25]
    """
    warmup = max(1, integer("warmup", warmup, 0))
    return _NamedSchedule(
        lambda step: _warm(step, warmup) * math.sqrt(warmup / max(warmup, step + 1)),
        "rsqrt",
        warmup=warmup,
    )


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _decay(
    kind: str, shape: Callable[[float], float], steps: int, warmup: int, floor: float
) -> Schedule:
    steps, warmup = integer("steps", steps, 0), integer("warmup", warmup, 0)
    floor = number("floor", floor, 0.0, 1.0)

    def factor(step: int) -> float:
        if step < warmup:
            return _warm(step, warmup)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1.0 - floor) * shape(progress)

    return _NamedSchedule(factor, kind, steps=steps, warmup=warmup, floor=floor)


class schedules:
    """Learning-rate schedules: functions from the number of steps taken to a factor on the rate.

    Examples
    --------
    >>> schedule = schedules.cosine(100, warmup=10)
    >>> schedule(0), schedule(9), schedule(100)
    (0.1, 1.0, 0.0)
    """

    constant = staticmethod(_constant)
    linear = staticmethod(_linear)
    cosine = staticmethod(_cosine)
    rsqrt = staticmethod(_rsqrt)


def describe_schedule(schedule: Schedule | None, step: int) -> Any:
    """A named schedule's name and arguments; for other functions, factors of steps taken."""
    if schedule is None:
        return None
    if isinstance(schedule, _NamedSchedule):
        return {"kind": schedule.kind, **schedule.arguments}
    steps = {0, step // 2, step - 1} if step else ()
    return {f"factor of step {i}": float(schedule(i)) for i in sorted(steps)}
