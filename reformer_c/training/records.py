"""Files of examples, CSV, TSV, JSON lines, JSON or plain text, as records with their places."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ..checks import did_you_mean

__all__ = ["Record", "parse_json", "read_records", "read_utf8"]


@dataclass(frozen=True)
class Record:
    """One example of a file: its values by column, and where it is, such as ``"reviews.csv:3"``."""

    where: str
    values: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            names = ", ".join(map(repr, self.values))
            nearest = did_you_mean(column, self.values)
            raise ValueError(f"{self.where}: columns must include {column!r}, got {names}{nearest}")
        return self.values[column]

    def text(self, column: str) -> str:
        """The value of a column, which must be a text of at least one character."""
        value = self[column]
        if not isinstance(value, str) or not value:
            raise ValueError(f"{self.where}: {column} must be a text, got {value!r}")
        return value


def read_records(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Record]:
    """The examples of files.

    Parameters
    ----------
    sources : path or iterable of paths
        The end of a file's name determines how it is read:

        - ``.csv`` and ``.tsv``: the first line names the columns;
        - ``.jsonl``: an object per line;
        - ``.json``: a list of objects, or questions in the form of SQuAD;
        - ``.txt``: each line is the column "text" of an example.

        ``"-"`` is standard input, with an object of JSON per line.

    Raises
    ------
    FileNotFoundError, OSError
        A path does not exist or cannot be read.
    ValueError
        A file has another form, or no examples; names the file and the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "reviews.csv")
    ...     _ = file.write_text('text,label\\n"Good, and cheap.",1\\n')
    ...     [record] = read_records(file)
    >>> record.text("text"), record["label"]
    ('Good, and cheap.', '1')
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    return [record for source in sources for record in _read(os.fspath(source))]


def _read(name: str) -> list[Record]:
    readers = {
        ".csv": _read_table, ".tsv": _read_table, ".jsonl": _read_lines, ".json": _read_json,
        ".txt": _read_text,
    }  # fmt: skip
    suffix = ".jsonl" if name == "-" else Path(name).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"FILE must end in {', '.join(readers)}, got {name!r}")
    records = [*readers[suffix](name, read_utf8(name))]
    if not records:
        raise ValueError(f"{name}: must have at least one example, got none")
    return records


def read_utf8(name: str) -> str:
    """The text of a file, or of standard input ("-"); an error names the line."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}:{line}: must be UTF-8: {error}") from error


def _read_table(name: str, text: str) -> Iterator[Record]:
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    with _fields_of_any_size():
        rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns: list[str] | None = None
        line = 1
        try:
            for row in rows:
                if row and columns is None:
                    columns = _columns(f"{name}:{line}", row)
                elif row and columns is not None:
                    if len(row) != len(columns):
                        raise ValueError(
                            f"{name}:{line}: must have {len(columns)} columns, got {len(row)}"
                        )
                    yield Record(f"{name}:{line}", dict(zip(columns, row, strict=True)))
                line = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{name}:{line}: must be a row of CSV: {error}") from error


def _columns(where: str, row: list[str]) -> list[str]:
    if len(set(row)) < len(row):
        raise ValueError(f"{where}: columns must have different names, got {', '.join(row)}")
    return row


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """By default, the csv module refuses fields of more than 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_lines(name: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}:{number}"
            yield _record(where, parse_json(where, line))


def _read_json(name: str, text: str) -> Iterator[Record]:
    values = parse_json(name, text)
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        yield from _read_squad(name, values["data"])
        return
    if not isinstance(values, list):
        raise ValueError(
            f"{name}: must be a list of objects, or 'data' of SQuAD, got {type(values).__name__}"
        )
    for i, value in enumerate(values):
        yield _record(f"{name}[{i}]", value)


def _read_squad(name: str, articles: list[Any]) -> Iterator[Record]:
    """Each question of SQuAD's nested format, with its context."""
    for i, article in enumerate(articles):
        if "paragraphs" not in _record(f"{name}: data[{i}]", article).values:  # a flat list
            yield _record(f"{name}: data[{i}]", article)
            continue
        for j, paragraph in enumerate(article["paragraphs"]):
            where = f"{name}: data[{i}].paragraphs[{j}]"
            block = _record(where, paragraph)
            context = block.text("context")
            for k, question in enumerate(block["qas"]):
                found = _record(f"{where}.qas[{k}]", question)
                yield Record(found.where, {"context": context, **found.values})


def _read_text(name: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.removesuffix("\r"):
            yield Record(f"{name}:{number}", {"text": line})


def parse_json(where: str, text: str) -> Any:
    """The value of a text of JSON; an error begins with `where` it is."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: must be JSON: {error}") from error


def _record(where: str, values: Any) -> Record:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be an object, got {type(values).__name__}")
    return Record(where, values)
