"""Ctrl-C and SIGTERM, deferred to the end of a training step."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """Records the first Ctrl-C or SIGTERM; a second one acts at once, unless it comes within `echo`
    seconds of the first."""

    def __init__(self, echo: float) -> None:
        self.echo, self.began = echo, 0.0

    def __enter__(self) -> Interruption:
        self.signal = 0
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # an ignored signal (nohup, a background job) stays ignored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, _frame: object) -> None:
        if not self.signal:
            self.signal, self.began = number, time.monotonic()
            if not self.echo:
                self.__exit__()
        elif time.monotonic() - self.began > self.echo:
            self.__exit__()
            signal.raise_signal(number)

    @staticmethod
    def leave(number: int) -> None:
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
