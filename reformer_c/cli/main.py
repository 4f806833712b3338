"""Run a command: ``reformer-c``, or ``python -m reformer_c``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..runtime import set_num_threads
from ..text.screen import show
from .arguments import FAILURE, parse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 on failure, 2 on wrong usage, 130 after Ctrl-C."""
    name = "reformer-c"
    _escape_unencodable()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        name = f"reformer-c {options.command}"
        if options.threads is not None:
            set_num_threads(options.threads)
        import_module(f"{__package__}.{options.command}").run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # the reader of our output has exited: exit quietly, and discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError as error:
        return _fail(name, f"error: not enough memory: {error}", FAILURE)
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        return _fail(name, f"error: {' '.join(str(error).split())}", FAILURE)


def _escape_unencodable() -> None:
    """Escape characters that standard output cannot encode, instead of failing after the work."""
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure") and (
        stdout.errors == "strict" or stdout.encoding.lower() != "utf-8"
    ):
        stdout.reconfigure(errors="backslashreplace")


def _fail(name: str, message: str, code: int) -> int:
    show(f"{name}: {message}", sys.stderr)
    return code
