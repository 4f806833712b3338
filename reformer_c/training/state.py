"""A training run in a folder: what is written, and what must agree when the run resumes."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files.atomic import finish_checkpoint, replace_files
from ..files.checkpoint import read_safetensors, write_atomically, write_safetensors
from ..models.config import ReformerConfig
from .optim import Optimizer

__all__ = ["config_differences", "has_checkpoint", "keep_model", "kept_models", "read_state",
           "restore_run", "save_run"]  # fmt: skip

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.json"
# and the step: as transformers' Trainer calls them
KEPT = "checkpoint-"


def has_checkpoint(folder: Path) -> bool:
    """Whether `Trainer.resume` would find a checkpoint in the folder."""
    return (folder / STATE_FILE).is_file()


def read_state(folder: Path) -> dict[str, Any]:
    """What `save_run` wrote of a run, besides weights: its steps, and what must agree.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"resume: {os.fspath(path)!r} is damaged: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"resume: {STATE_FILE} in {os.fspath(folder)!r} has no step")
    return state


def save_run(folder: Path, model: Any, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in the folder, atomically."""
    text = json.dumps(state, indent=2) + "\n"

    def write(stage: Path) -> None:
        model.save_pretrained(stage)
        write_safetensors(stage / OPTIMIZER_FILE, optimizer.state_dict())
        write_atomically(stage / STATE_FILE, lambda part: part.write_text(text))

    replace_files(folder, write)


def keep_model(folder: Path, model: Any, step: int, limit: int) -> None:
    """Save the model of a step below the folder, and remove all but the last `limit` of them."""
    model.save_pretrained(folder / f"{KEPT}{step}")
    for old in kept_models(folder)[:-limit]:
        shutil.rmtree(old)


def kept_models(folder: Path) -> list[Path]:
    """The folders that `keep_model` made, in the order of their steps.

    Those of steps after the checkpoint's are another run's.
    """
    last = read_state(folder)["step"] if has_checkpoint(folder) else math.inf
    found = [path for path in folder.glob(f"{KEPT}*") if path.name[len(KEPT) :].isdecimal()]
    return sorted((path for path in found if _step_of(path) <= last), key=_step_of)


def _step_of(kept: Path) -> int:
    return int(kept.name[len(KEPT) :])


def restore_run(
    folder: Path,
    model: Any,
    optimizer: Optimizer,
    describe: Callable[[int], dict[str, Any]],
    allow: Collection[str],
) -> tuple[int, list[str]]:
    """Load what `save_run` wrote; returns the number of steps taken, and the allowed differences.

    `describe` gives what must agree after a number of steps.
    """
    finish_checkpoint(folder)
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"folder: there is no {STATE_FILE} in {os.fspath(folder)!r}")
    state = read_state(folder)
    own = describe(state["step"])
    if own["optimizer"] != state.get("optimizer"):  # its arguments differ as a consequence
        state.pop("settings", None)
    found = _differences(json.loads(json.dumps(own)), state)  # tuples are lists in JSON
    sides = _saved_configs(folder, model)
    for name, (side, config) in sides.items():
        found += config_differences(side.config, config, f"{name}." if name else "")
    allow = [allow] if isinstance(allow, str) else allow
    allowed = [words for words in found if words.split(" is ")[0] in allow]
    if refused := [words for words in found if words not in allowed]:
        raise ValueError(f"resume: {'; '.join(refused)} in {os.fspath(folder)!r}")
    weights = read_safetensors(folder / MODEL_FILE)
    moments = read_safetensors(folder / OPTIMIZER_FILE)
    _check_weights(weights, model.parameters)
    optimizer.load_state_dict(moments)
    for name, array in model.parameters.items():
        array[...] = weights[name]
    for side, config in sides.values():
        if side.config.num_buckets is None:
            side.config = replace(side.config, num_buckets=config.num_buckets)
    return int(state["step"]), allowed


def _saved_configs(folder: Path, model: Any) -> dict[str, tuple[Any, ReformerConfig]]:
    """By name: each model that has its own configuration, and the saved configuration."""
    sides = getattr(model, "sides", {})  # models of other packages have none
    values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) if sides else {}
    return {
        name: (side, ReformerConfig.from_dict(values.get(name, values)))
        for name, side in sides.items()
    }


def _differences(own: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Differences from a saved state, in words; entries that an older state lacks are skipped."""
    found = []
    for name, theirs in saved.items():
        mine = own.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            inner = "" if name == "settings" else f"{prefix}{name}."
            found += _differences(mine, theirs, inner)
        elif mine != theirs:
            found.append(f"{prefix}{name} is {mine} here and {theirs}")
    return found


def config_differences(own: ReformerConfig, saved: ReformerConfig, prefix: str = "") -> list[str]:
    """Differences between two configurations, in words; `memory_budget` is not compared.

    Examples
    --------
    >>> config_differences(ReformerConfig(num_hashes=4), ReformerConfig(num_hashes=2))
    ['num_hashes is 4 here and 2']
    """
    mine, theirs = vars(own), vars(saved)
    # not compared: a number of buckets that the first step determines; who wrote the file; unknown
    # keys
    same = {"memory_budget", "architectures", "extra"}
    same |= {"num_buckets"} if own.num_buckets is None else set()
    return [
        f"{prefix}{name} is {value} here and {theirs[name]}"
        for name, value in mine.items()
        if name not in same and value != theirs[name]
    ]


def _check_weights(weights: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> None:
    for name, array in own.items():
        if name not in weights:
            raise ValueError(f"resume: the parameter {name!r} is not in the checkpoint")
        if weights[name].shape != array.shape or weights[name].dtype != array.dtype:
            raise ValueError(
                f"resume: the parameter {name!r} is {array.dtype} {array.shape} here and "
                f"{weights[name].dtype} {weights[name].shape} in the checkpoint"
            )
