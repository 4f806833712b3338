"""``reformer-c average``: the mean of the weights of several checkpoints."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..text.folders import folder_tokenizer, save_tokenizer
from ..text.screen import show
from ..training.averaging import average_models
from ..training.state import kept_models
from .folder import open_model


def run(options: Namespace) -> None:
    output = Path(options.output)
    if (output / "config.json").exists():
        raise ValueError(
            f"--output: there is a model in {options.output!r}, which would be replaced: choose "
            "another folder"
        )
    folders = []
    for name in options.models:
        # of a run with --keep, the models that it kept
        folders += [str(path) for path in kept_models(Path(name))] or [name]
    folders = list({Path(folder).resolve(): folder for folder in folders}.values())  # each once
    model = average_models(open_model(folder) for folder in folders)
    tokenizer = folder_tokenizer(options.models[0])
    model.save_pretrained(output)
    if tokenizer is not None:
        save_tokenizer(tokenizer, output)
    show(f"mean of {len(folders)}: {', '.join(folders)}\nsaved: {output}")
