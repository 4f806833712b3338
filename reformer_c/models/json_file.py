"""Configurations in JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ..files.checkpoint import write_atomically
from ..text.tables import html_pairs

__all__ = ["JsonFile"]


class JsonFile:
    """Base class of configurations that are stored in a file of a model folder."""

    # the name of the file in a folder
    _file_name: ClassVar[str]

    def _repr_html_(self) -> str:
        default, values = type(self)(), {}
        for name in self.__dataclass_fields__:  # type: ignore[attr-defined]
            if getattr(self, name) != getattr(default, name):
                values[name] = getattr(self, name)
        title = f"{type(self).__name__}, where it differs from the defaults"
        return html_pairs(title, values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a JSON file, or a folder's config.json or generation_config.json.

        Parameters
        ----------
        path : path or str
            The file, or the folder.
        """
        path = cls._path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"path: {os.fspath(path)!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise TypeError(f"path: {os.fspath(path)!r} must be a JSON object, got {kind}")
        return cls.from_dict(values)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, or the file of an existing folder, atomically.

        Parameters
        ----------
        path : path or str
            The file, or the folder.
        """
        text = self.to_json_string()
        write_atomically(self._path(path), lambda part: part.write_text(text, encoding="utf-8"))

    def to_json_string(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def _path(cls, path: str | os.PathLike[str]) -> Path:
        path = Path(path)
        return path / cls._file_name if path.is_dir() else path
