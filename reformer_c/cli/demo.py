"""``reformer-c demo``: train on text that comes with Python, and generate."""

from __future__ import annotations

from argparse import Namespace

from ..tools.demo import QUICK_SECONDS, run_demo
from .values import given


def run(options: Namespace) -> None:
    if options.steps is not None and options.seconds is not None:
        raise ValueError("--seconds cannot be combined with --steps")
    if options.quick and (options.seconds or 0) > QUICK_SECONDS:
        raise ValueError(f"--seconds must be at most {QUICK_SECONDS:g} with --quick")
    run_demo(
        steps=options.steps,
        **given(seconds=options.seconds),
        length=options.length,
        seed=options.seed,
        quick=options.quick,
    )
