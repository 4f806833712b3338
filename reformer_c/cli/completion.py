"""Shell completion of commands and options, by shtab (the extra ``completion``)."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from typing import Any

from ..checks import requires_extra
from ..text.screen import show

__all__ = ["PrintCompletion"]

# metavars of arguments that are files
FILES = {"FILE", "IMAGE", "DIR|FILE"}


class PrintCompletion(Action):
    """Prints the script of a shell, and exits."""

    def __call__(
        self, parser: ArgumentParser, options: Namespace, shell: Any, name: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            error = requires_extra("--print-completion", "shtab", "completion")
            parser.exit(1, f"{parser.prog}: error: {error}\n")
        if shell not in shtab.SUPPORTED_SHELLS:
            known = ", ".join(shtab.SUPPORTED_SHELLS)
            parser.error(f"--print-completion must be one of {known}, got {shell!r}")
        _complete_files(parser, shtab)
        show(shtab.complete(parser, shell=shell))
        parser.exit()


def _complete_files(parser: ArgumentParser, shtab: Any) -> None:
    """Mark the arguments of a parser and of its commands that are files or folders."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _complete_files(command, shtab)
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
