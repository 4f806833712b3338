"""Plots of buckets, attention, memory, speed and training.

Each function draws into the matplotlib axes `ax`, or pyplot's current axes, and returns them.
matplotlib (the extra ``notebook``) is imported only when needed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..checks import as_array, number, requires_extra
from ..runtime import underflow_to_zero
from ..text.screen import in_notebook
from ..training.log import read_log
from ..training.train import StepReport, Trainer
from .pairs import Pattern, attention_weights

__all__ = ["attention_pattern", "buckets", "live", "memory", "speed", "training"]

# red, green, blue
_FOUND, _MISSED, _SEEN, _UNSEEN = np.array(
    [(0.03, 0.19, 0.42), (0.80, 0.09, 0.11), (0.90, 0.92, 0.94), (1.0, 1.0, 1.0)], np.float32
)


def buckets(ids: np.ndarray, ax: Any = None, *, labels: Sequence[str] | None = None) -> Any:
    """Draw which tokens share a bucket: x is the position, y the bucket.

    Parameters
    ----------
    ids : ndarray of int, (t,)
        Bucket of each position in one round of one head, as ``lsh_hash(...)[0, 0, 0]``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot's current axes by default.
    labels : sequence of str, optional
        Text to draw for each position instead of a dot, such as the token.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        `ids` or `labels` is invalid.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = buckets(np.array([2, 0, 2]), Figure().subplots(), labels=["a", "b", "a"])
    >>> [(text.get_text(), text.get_position()) for text in ax.texts]
    [('a', (0, 2)), ('b', (1, 0)), ('a', (2, 2))]
    """
    ids = as_array("ids", ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
        raise ValueError(f"ids must be integers of shape (t,), got {ids.dtype} of {ids.shape}")
    if labels is not None and len(labels) != len(ids):
        raise ValueError(f"labels must be {len(ids)}, one for each position, got {len(labels)}")
    ax = _axes(ax)
    ax.set(xlabel="position", ylabel="bucket", xlim=(-1, len(ids)))
    if labels is None:
        ax.plot(np.arange(len(ids)), ids, ".", markersize=3)
        return ax
    ax.set_ylim(ids.min() - 1, ids.max() + 1)
    for position, (bucket, label) in enumerate(zip(ids.tolist(), labels, strict=True)):
        ax.text(position, bucket, label, ha="center", va="center", family="monospace")
    return ax


@underflow_to_zero()
def attention_pattern(
    qk: np.ndarray,
    ids: np.ndarray | None = None,
    ax: Any = None,
    *,
    scope: str = "chunk",
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    sort: bool = False,
) -> Any:
    """Draw the attention matrix, a row per query, as in figure 2 of the Reformer paper.

    The colour's depth is the weight of full attention relative to the row's maximum. With buckets,
    pairs that LSH attention computes have a grey background; weight on them is blue, weight that it
    misses red. The title gives the share of weight found.

    Parameters
    ----------
    qk : ndarray (t, d)
        Shared queries and keys of one head, float32 or float64. The image has t x t pixels: pass
        only a part of a long sequence.
    ids : ndarray of int, (r, t) or (t,), optional
        Buckets of each round, as ``lsh_hash(...)[0, 0]``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot's current axes by default.
    scope, chunk_length, num_chunks_before, num_chunks_after, is_causal
        As in `lsh_attention`.
    sort : bool
        Order the positions by their bucket in the first round.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        An argument is invalid.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from reformer_c import lsh_hash
    >>> qk = np.random.default_rng(0).standard_normal((128, 16))
    >>> ids = lsh_hash(qk, num_hashes=4, num_buckets=8, rng=0)
    >>> ax = attention_pattern(qk, ids, Figure().subplots(), chunk_length=16)
    >>> ax.get_title()
    '75% found'
    """
    qk = as_array("qk", qk)
    if qk.ndim != 2 or qk.dtype not in (np.float32, np.float64) or not qk.size:
        raise ValueError(f"qk must be floats of shape (t, d), got {qk.dtype} of {qk.shape}")
    pattern = Pattern(scope, chunk_length, num_chunks_before, num_chunks_after)
    if ids is not None:
        ids = np.atleast_2d(as_array("ids", ids))
        if ids.ndim != 2 or ids.shape[1] != len(qk) or ids.dtype.kind not in "iu":
            expected = f"integers of shape (r, {len(qk)})"
            raise ValueError(f"ids must be {expected}, got {ids.dtype} of {ids.shape}")
    elif sort:
        raise ValueError("sort must be False without ids")
    rows = np.arange(len(qk))
    weights = attention_weights(qk, rows, is_causal)
    ground, colours, title = _UNSEEN, _FOUND, ""
    if ids is not None:
        found = pattern.count_pairs(pattern.groups(ids), rows) > 0
        if is_causal:
            found &= rows <= rows[:, None]
        ground = np.where(found[..., None], _SEEN, _UNSEEN)
        colours = np.where(found[..., None], _FOUND, _MISSED)
        title = f"{weights[found].sum() / len(qk):.0%} found"
    depth = (weights / weights.max(axis=-1, keepdims=True))[..., None]
    picture = ground + depth * (colours - ground)
    if sort and ids is not None:
        order = np.argsort(ids[0], kind="stable")
        picture = picture[order][:, order]
    ax = _axes(ax)
    ax.imshow(np.clip(picture, 0, 1), interpolation="nearest")
    ax.set(xlabel="key", ylabel="query", title=title)
    return ax


def memory(figures: Mapping[str, Mapping[int, float]], ax: Any = None) -> Any:
    """Plot memory against length, one line per name.

    Parameters
    ----------
    figures : {name: {length: bytes}}
        For instance a model's peak memory with and without stored activations.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot's current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is nothing to draw, or a number is not above 0.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = memory({"full": {1024: 4e6, 4096: 6.4e7}}, Figure().subplots())
    >>> ax.get_ylabel(), ax.lines[0].get_ydata().tolist()
    ('memory in MB', [4.0, 64.0])
    """
    in_mb = {
        name: {length: size / 1e6 for length, size in row.items()} for name, row in figures.items()
    }
    return _against_length(in_mb, ax, "memory in MB")


def speed(figures: Mapping[str, Mapping[int, float]], ax: Any = None) -> Any:
    """Plot time against length, one line per name, as in figure 5 of the Reformer paper.

    Parameters
    ----------
    figures : {name: {length: seconds}}
        As measured by ``python -m benchmarks.length``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot's current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is nothing to draw, or a number is not above 0.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> times = {"full": {1024: 0.2, 4096: 0.8}, "LSH-1": {1024: 0.06, 4096: 0.07}}
    >>> ax = speed(times, Figure().subplots())
    >>> [line.get_label() for line in ax.lines]
    ['full', 'LSH-1']
    """
    return _against_length(figures, ax, "seconds")


def _against_length(figures: Mapping[str, Mapping[int, float]], ax: Any, ylabel: str) -> Any:
    """Plot with logarithmic axes and a tick at each length."""
    lengths = sorted({length for row in figures.values() for length in row})
    if not lengths:
        raise ValueError("figures must be {name: {length: number}}, got nothing to draw")
    for name, row in figures.items():
        if not all(length > 0 and number > 0 for length, number in row.items()):
            raise ValueError(f"figures must be numbers > 0, got {dict(row)} for {name!r}")
    ax = _axes(ax)
    for name, row in figures.items():
        ax.plot(sorted(row), [row[length] for length in sorted(row)], "o-", label=name)
    ax.set(xscale="log", yscale="log", xlabel="length", ylabel=ylabel)
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def training(log: str | os.PathLike[str] | Sequence[Mapping[str, Any]], ax: Any = None) -> Any:
    """Plot a training run: bits per byte or loss of every step, running mean, and held-out data.

    Parameters
    ----------
    log : path or sequence of mappings
        A file written by ``Trainer(log=...)`` or ``reformer-c train --log FILE``, or its lines.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot's current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The log has no steps.

    Examples
    --------
    >>> lines = [{"step": i + 1, "bits_per_byte": 5 - i / 10} for i in range(20)]
    >>> lines[-1]["held_out"] = 3.5
    >>> from matplotlib.figure import Figure
    >>> [line.get_label() for line in training(lines, Figure().subplots()).lines]
    ['step', 'mean of 1', 'held out']
    >>> task = [{"step": 1, "loss": 0.7, "held_out": {"accuracy": 0.5, "loss": 0.8}}]
    >>> training(task, Figure().subplots()).get_ylabel()
    'loss'
    """
    lines = read_log(log) if isinstance(log, (str, os.PathLike)) else list(log)
    # tasks other than language models have only a loss, and skipped steps do not
    name = "bits_per_byte" if any("bits_per_byte" in line for line in lines) else "loss"
    taken = [line for line in lines if name in line]
    if not taken:
        raise ValueError("log must have steps")
    ax = _axes(ax)
    steps = np.array([line["step"] for line in taken])
    values = np.array([line[name] for line in taken])
    window = max(1, len(values) // 50)
    ax.plot(steps, values, color="C0", linewidth=0.5, alpha=0.4, label="step")
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    ax.plot(steps[window - 1 :], mean, color="C0", label=f"mean of {window}")
    held_out = [
        (line["step"], found["loss"] if isinstance(found := line["held_out"], dict) else found)
        for line in lines
        if "held_out" in line
    ]
    if held_out:
        ax.plot(*zip(*held_out, strict=True), "o-", color="C1", markersize=4, label="held out")
    ax.set(xlabel="step", ylabel=name.replace("_", " "))
    ax.legend()
    return ax


def live(trainer: Trainer, ax: Any = None, *, seconds: float = 2.0) -> Iterator[StepReport]:
    """Yield a trainer's reports, and draw the curve of `training` while it trains.

    In a notebook the figure below the cell is replaced as the run continues; a window of another
    program is redrawn.

    Parameters
    ----------
    trainer : Trainer
    ax : matplotlib.axes.Axes, optional
        Where to draw; those of a new figure by default.
    seconds : float
        Time between two drawings; the last is made after the last step.

    Yields
    ------
    StepReport

    Raises
    ------
    TypeError, ValueError
        `seconds` is not a number >= 0.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> from reformer_c import ReformerConfig, ReformerModelWithLMHead, Trainer, data
    >>> from matplotlib.figure import Figure
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=1, is_decoder=True)
    >>> windows = data.Windows(np.arange(300), length=64)
    >>> trainer = Trainer(ReformerModelWithLMHead(config, rng=0), windows, steps=3)
    >>> ax = Figure().subplots()
    >>> for report in live(trainer, ax):
    ...     pass
    >>> ax.lines[0].get_xdata().tolist()
    [1, 2, 3]
    """
    seconds = number("seconds", seconds, 0.0)
    if ax is None:
        ax = _new_figure().subplots()
    return _reports(trainer, ax, seconds)


def _reports(trainer: Trainer, ax: Any, seconds: float) -> Iterator[StepReport]:
    """`live`, after its checks."""
    lines: list[dict[str, Any]] = []
    shown: Any = None
    if in_notebook():
        from IPython import display

        shown = display.display(ax.figure, display_id=True)  # type: ignore[no-untyped-call]

    def draw() -> None:
        finite = [line for line in lines if math.isfinite(line["loss"])]
        if finite:
            ax.clear()
            training(finite, ax)
        if shown is not None:
            shown.update(ax.figure)
        else:
            ax.figure.canvas.draw_idle()
            ax.figure.canvas.flush_events()

    drawn = time.monotonic()
    try:
        for report in trainer:
            found = asdict(report).items()
            lines.append({name: value for name, value in found if value is not None})
            if time.monotonic() - drawn >= seconds:
                draw()
                drawn = time.monotonic()
            yield report
    finally:
        draw()


def _new_figure() -> Any:
    """A figure that pyplot shows in a window, or that a notebook gets from `display` alone."""
    figure = _pyplot().figure()
    if in_notebook():
        _pyplot().close(figure)
    return figure


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    return _pyplot().gca()


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise requires_extra("a plot", "matplotlib", "notebook") from error
    return plt
