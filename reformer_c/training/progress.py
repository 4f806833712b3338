"""Progress of a training run on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from .metrics import describe_metrics
from .train import StepReport, Trainer

__all__ = ["describe", "progress_bar", "show_progress"]


def show_progress(trainer: Trainer, stream: TextIO | None = None) -> Iterator[StepReport]:
    """Yield a trainer's reports, and show progress: a tqdm bar, or a line every five seconds.

    The bar needs tqdm (the extra ``cli``) and a terminal.

    Examples
    --------
    >>> report = StepReport(7, 2.0, 2.885, 1e-3, 0.5, 50_000.0, 300_000_000, held_out=3.0)
    >>> describe(report)
    '2.885 bits/byte, 50,000 tokens/s, peak 300 MB, held out 3.000'
    """
    to = sys.stderr if stream is None else stream
    bar = progress_bar(trainer.steps, trainer.step, "step", to)
    report: StepReport | None = None
    shown = time.monotonic()

    def show_line(report: StepReport) -> None:
        total = "" if trainer.steps is None else f"/{trainer.steps}"
        print(f"step {report.step}{total}: {describe(report)}", file=to, flush=True)

    try:
        for report in trainer:
            if bar is not None:
                bar.total = trainer.steps
                bar.set_postfix_str(describe(report), refresh=False)
                bar.update()
            elif time.monotonic() - shown >= 5.0:
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


def progress_bar(total: int | None, initial: int, unit: str, stream: TextIO) -> Any:
    """A tqdm bar, or None without tqdm or a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    if not stream.isatty():
        return None
    # recorders and containers may report a terminal of 0 rows, for which tqdm draws nothing
    size: dict[str, Any] = {} if _has_size(stream) else {"ncols": 100, "nrows": 20}
    return tqdm(total=total, initial=initial, unit=unit, file=stream, **size)


def _has_size(stream: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False
