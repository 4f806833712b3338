"""A file of options, for ``reformer-c train --config``."""

from __future__ import annotations

import json
from pathlib import Path

from .values import option

__all__ = ["config_arguments"]


def config_arguments(file: str) -> tuple[list[str], list[str]]:
    """The options in a JSON file as command-line arguments, and its `files`."""
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{file!r} must be a JSON object, got {type(values).__name__}")
    if "model_type" in values:  # a model's config.json
        from ..models.config import ReformerConfig

        model = dict(vars(ReformerConfig.from_dict(values)))
        del model["extra"]
        values = {"model": model}
    model, files = values.pop("model", {}), values.pop("files", [])
    if not isinstance(model, dict):
        raise ValueError(f"'model' must be an object of fields, got {model!r}")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ValueError(f"'files' must be a name or a list of names, got {files!r}")
    words = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(option(name))
            elif one is not None and one is not False:
                words.append(f"{option(name)}={one}")
    words += [f"--set={name}={json.dumps(value)}" for name, value in model.items()]
    return words, files
