"""The options of a tokenizer's folder: tokenizer_config.json, and the files that older versions of
transformers wrote next to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import integer
from .pieces import AddedToken

__all__ = ["added_tokens", "folder_options", "merged"]

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# named special tokens in transformers' order, with the defaults of Reformer checkpoints
NAMED = {"bos_token": None, "eos_token": "</s>", "unk_token": "<unk>", "sep_token": None,
         "pad_token": None, "cls_token": None, "mask_token": None}  # fmt: skip
# further special tokens: a list, or a dictionary that gives them names
EXTRA = ("additional_special_tokens", "extra_special_tokens")
OWN_NAMES = "model_specific_special_tokens"
# whether a token is added at the start and the end of each text
ADDS = ("add_bos_token", "add_eos_token")
# plain attributes, and further options
PLAIN = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
OPTIONS = (*PLAIN, *ADDS, "split_special_tokens")
DECODER = "added_tokens_decoder"
KNOWN = (*NAMED, *EXTRA, OWN_NAMES, *OPTIONS, "added_tokens", DECODER)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge options; `above` takes precedence. The list of special tokens has two names."""
    if any(name in above for name in EXTRA):
        below = {name: below[name] for name in below if name not in EXTRA}
    return below | above


def folder_options(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configuration files of a tokenizer: its options, and all other fields."""
    values = _json(folder / CONFIG)
    if DECODER not in values:  # format of older versions of transformers
        values |= _json(folder / SPECIAL)
        values["added_tokens"] = _json(folder / ADDED)
    if "max_len" in values:
        values.setdefault("model_max_length", values.pop("max_len"))
    length = values.get("model_max_length")
    if isinstance(length, float) and length.is_integer():  # 1e30 means no limit
        values["model_max_length"] = int(length)
    own_names = {
        name: values.pop(name)
        for name, token in list(values.items())
        if name.endswith("_token") and name not in KNOWN and isinstance(token, (str, Mapping))
    }
    if own_names:
        values[OWN_NAMES] = own_names | (values.get(OWN_NAMES) or {})
    fields = {name: values.pop(name) for name in list(values) if name not in KNOWN}
    return values, fields


def added_tokens(options: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    """The added tokens among a folder's options, and their ids; in both formats."""
    ids, decoder = options.get("added_tokens") or {}, options.get(DECODER) or {}
    for name, given in ((ADDED, ids), (DECODER, decoder)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a dictionary, got {given!r}")
    tokens = [(i, AddedToken.of(ADDED, text, special=False)) for text, i in ids.items()]
    tokens += [(i, AddedToken.of(DECODER, one, special=False)) for i, one in decoder.items()]
    return sorted((_id(i), token) for i, token in tokens)


def _id(value: Any) -> int:
    """An id in a file; keys are str."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return integer(DECODER, value, 0)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"folder: {path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"folder: {path.name} must be a dictionary, got {type(values).__name__}")
    return values
