"""The log of a training run: one line of JSON per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..files.checkpoint import write_atomically

__all__ = ["TrainingLog", "read_log"]


class TrainingLog:
    """A file with one line of JSON per step of a run, across any number of resumes.

    Parameters
    ----------
    path : path
        Created if missing.

    Raises
    ------
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "run.jsonl")
    ...     with TrainingLog(file).begin(after=0) as log:
    ...         log.write({"step": 1, "loss": 5.5})
    ...         log.write({"step": 2, "loss": 5.0})
    ...     with TrainingLog(file).begin(after=1) as log:    # step 2 was not saved
    ...         log.write({"step": 2, "loss": 5.0})
    ...     [line["step"] for line in read_log(file)]
    [1, 2]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        with open(self.path, "a", encoding="utf-8"):
            pass  # report an unwritable file before the first step

    def begin(self, after: int) -> TrainingLog:
        """Continue after the line of step `after`; lines of later steps are deleted.

        Raises
        ------
        FileExistsError
            A new run (`after` is 0) finds the lines of another.
        ValueError
            The file is not a log.
        """
        self.close()
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        if text and after == 0:
            raise FileExistsError(
                f"log: {os.fspath(self.path)!r} has the steps of another run: resume it, or choose "
                "another file"
            )
        kept = [line for line in _complete_lines(text) if _step_of(line, self.path) <= after]
        rest = "".join(f"{line}\n" for line in kept)
        if rest != text:
            write_atomically(self.path, lambda part: part.write_text(rest, encoding="utf-8"))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        return self

    def write(self, values: Mapping[str, Any]) -> None:
        """Append the line of one step; None and values that JSON cannot represent are omitted."""
        assert self._file is not None, "call begin first"
        self._file.write(json.dumps(_representable(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a log in the order of steps; an incomplete last line is ignored.

    Raises
    ------
    FileNotFoundError, ValueError
        The file does not exist, or is not a log.
    """
    lines = _complete_lines(Path(path).read_text(encoding="utf-8"))
    return [_parse(line, path) for line in lines]


def _representable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can represent, also of inner objects."""
    return {
        name: _representable(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }


def _parse(line: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"log: {os.fspath(path)!r} is not a file of JSON lines: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"log: {os.fspath(path)!r} has a line that is not an object: {line:.80}")
    return values


def _step_of(line: str, path: str | os.PathLike[str]) -> int:
    step = _parse(line, path).get("step")
    if not isinstance(step, int):
        raise ValueError(f"log: {os.fspath(path)!r} has a line without a step: {line:.80}")
    return step


def _complete_lines(text: str) -> list[str]:
    return text.split("\n")[:-1]
