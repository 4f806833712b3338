"""Progress of training and of evaluation on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from ..text.screen import in_notebook
from .metrics import describe_metrics
from .train import StepReport, Trainer

__all__ = ["describe", "progress_bar", "show_count", "show_progress"]

# between two lines, where there is no bar
SECONDS = 5.0
# the format of a bar of time
TIME = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}"


def show_progress(
    trainer: Trainer, stream: TextIO | None = None, *, seconds: float | None = None
) -> Iterator[StepReport]:
    """Yield a trainer's reports, and show progress: a tqdm bar, or a line every five seconds.

    The bar needs tqdm (the extra ``cli``), and a terminal or a notebook.

    Parameters
    ----------
    trainer : Trainer
    stream : text file, optional
        Standard error by default.
    seconds : float, optional
        For a run that ends after this time: the bar is one of time, and the number of steps, which
        is then an estimate that changes, is not shown.

    Examples
    --------
    >>> report = StepReport(7, 2.0, 2.885, 1e-3, 0.5, 50_000.0, 300_000_000, held_out=3.0)
    >>> describe(report)
    '2.885 bits/byte, 50,000 tokens/s, peak 300 MB, held out 3.000'
    """
    to = sys.stderr if stream is None else stream
    begin = shown = time.monotonic()
    if seconds is None:
        bar = progress_bar(trainer.steps, trainer.step, "step", to)
    else:
        bar = progress_bar(seconds, 0, "s", to, bar_format=TIME)
    report: StepReport | None = None

    def show_line(report: StepReport) -> None:
        total = "" if trainer.steps is None or seconds is not None else f"/{trainer.steps}"
        print(f"step {report.step}{total}: {describe(report)}", file=to, flush=True)

    try:
        for report in trainer:
            if bar is not None and seconds is not None:
                bar.set_postfix_str(f"step {report.step}, {describe(report)}", refresh=False)
                bar.update(min(time.monotonic() - begin, seconds) - bar.n)
            elif bar is not None:
                bar.total = trainer.steps
                bar.set_postfix_str(describe(report), refresh=False)
                bar.update()
            elif time.monotonic() - shown >= SECONDS:
                show_line(report)
                shown = time.monotonic()
            yield report
    finally:
        if bar is not None:
            bar.close()
        elif report is not None:
            show_line(report)


def describe(report: StepReport) -> str:
    """Summarise a step in one line."""
    if report.targets == 0:
        words = ["skipped: no label counts"]
    elif report.bits_per_byte is None:
        words = [f"loss {report.loss:.4f}"]
    else:
        words = [f"{report.bits_per_byte:.3f} bits/byte"]
    words.append(f"{report.tokens_per_second:,.0f} tokens/s")
    if report.peak_memory is not None:
        words.append(f"peak {report.peak_memory / 1e6:,.0f} MB")
    if report.held_out is not None:
        found = report.held_out
        words.append(
            f"held out {describe_metrics(found) if isinstance(found, Mapping) else f'{found:.3f}'}"
        )
    return ", ".join(words)


@contextmanager
def show_count(unit: str, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done: a tqdm bar, or a line every five seconds.

    Parameters
    ----------
    unit : str
        What is counted, in the plural.
    stream : text file, optional
        Standard error by default.

    Yields
    ------
    callable
        To be called as ``progress(done, total)``, first before any work.

    Examples
    --------
    >>> import io
    >>> with show_count("texts", io.StringIO()) as progress:
    ...     for done in range(4):
    ...         progress(done, 3)
    """
    to = sys.stderr if stream is None else stream
    shown, bar = time.monotonic(), None

    def progress(done: int, total: int) -> None:
        nonlocal shown, bar
        if done == 0:
            bar = progress_bar(total, 0, f" {unit}", to)
        if bar is not None:
            bar.update(done - bar.n)
        elif time.monotonic() - shown >= SECONDS:
            print(f"{done:,} of {total:,} {unit}", file=to, flush=True)
            shown = time.monotonic()

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


def progress_bar(
    total: float | None, initial: int, unit: str, stream: TextIO, **options: Any
) -> Any:
    """A tqdm bar, or None without tqdm or without a terminal or notebook."""
    notebook = stream is sys.stderr and in_notebook()
    if not notebook and not stream.isatty():
        return None
    try:
        if notebook:
            # draws widgets, or text without ipywidgets
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
    except ImportError:
        return None
    # recorders and containers may report a terminal of 0 rows, for which tqdm draws nothing
    size: dict[str, Any] = {} if notebook or _has_size(stream) else {"ncols": 100, "nrows": 20}
    return tqdm(total=total, initial=initial, unit=unit, file=stream, **size, **options)


def _has_size(stream: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False
