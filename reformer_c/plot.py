"""Pictures, on matplotlib's axes (extra ``reformer_c[notebook]``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .log import read_log

__all__ = ["training"]


# ---- a training run ----


def training(log: str | os.PathLike | Sequence[Mapping[str, Any]], ax: Any = None) -> Any:
    """Draw a run: bits per byte of every step, their running mean, and those of held-out text.

    Parameters
    ----------
    log : path or sequence of mappings
        What ``Trainer(log=...)`` or ``reformer-c train --log FILE`` wrote, or its lines.
    ax : matplotlib Axes, optional
        Those of a new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The log has no steps.

    Examples
    --------
    >>> lines = [{"step": i + 1, "bits_per_byte": 5 - i / 10} for i in range(20)]
    >>> lines[-1]["held_out"] = 3.5
    >>> ax = training(lines)                                        # doctest: +SKIP
    """
    lines = read_log(log) if isinstance(log, (str, os.PathLike)) else list(log)
    if not lines:
        raise ValueError("log: there are no steps in it")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    steps = np.array([line["step"] for line in lines])
    bits = np.array([line["bits_per_byte"] for line in lines])
    window = max(1, len(bits) // 50)
    ax.plot(steps, bits, color="C0", linewidth=0.5, alpha=0.4, label="step")
    mean = np.convolve(bits, np.full(window, 1 / window), mode="valid")
    ax.plot(steps[window - 1 :], mean, color="C0", label=f"mean of {window}")
    held_out = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    if held_out:
        ax.plot(*zip(*held_out, strict=True), "o-", color="C1", markersize=4, label="held out")
    ax.set(xlabel="step", ylabel="bits per byte")
    ax.legend()
    return ax
