"""The model and the tokenizer in a folder."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from ..files.checkpoint import local_folder
from ..models.encoder_decoder import ReformerEncoderDecoder
from ..models.model import (
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModelWithLMHead,
)
from ..text.byte_tokenizer import ByteTokenizer
from ..text.folders import (
    check_vocabulary,
    folder_tokenizer,
    named_tokenizer,
    same_tokenizer,
)

__all__ = ["check_length", "consistent_tokenizer", "no_tokenizer", "open_folder", "open_model",
           "open_tokenizer", "unit"]  # fmt: skip

# the models that can be opened, by their names in config.json
CLASSES = {
    kind.__name__: kind
    for kind in (
        ReformerModelWithLMHead,
        ReformerForMaskedLM,
        ReformerForSequenceClassification,
        ReformerForQuestionAnswering,
        ReformerEncoderDecoder,
    )
}


def open_folder(folder: str, tokenizer: str | None) -> tuple[Any, Any]:
    """The tokenizer and the language model of a folder."""
    model = open_model(folder)
    if not isinstance(model, ReformerModelWithLMHead):
        raise ValueError(f"DIR must be a language model, got {type(model).__name__} in {folder!r}")
    if model.config.image_shape is not None:
        raise ValueError(
            f"DIR must have a model of text, got a model of pictures in {folder!r}, for "
            "reformer-c complete"
        )
    return open_tokenizer(folder, tokenizer, model.config.vocab_size), model


def open_model(folder: str) -> Any:
    """The model of a folder, of the class that its config.json names."""
    return CLASSES.get(_class_name(folder), ReformerModelWithLMHead).from_pretrained(folder)


def _class_name(folder: str) -> str:
    """The first of the architectures in config.json, or an empty str."""
    path = local_folder(folder, None, [["config.json"]]) / "config.json"
    try:
        name: str = json.loads(path.read_text(encoding="utf-8"))["architectures"][0]
        return name
    except (OSError, ValueError, TypeError, LookupError):
        return ""  # from_pretrained names the fault, if it is one


def check_length(options: Namespace, longest: int) -> None:
    """Refuse a --length beyond the `longest` that a model has positions for."""
    if options.length is not None and options.length > longest:
        raise ValueError(f"--length must be at most the model's {longest} positions")


def open_tokenizer(folder: str, name: str | None, vocab_size: int) -> Any:
    """The tokenizer of --tokenizer, or of the folder."""
    # guess from the vocabulary's size only if no tokenizer is named
    saved = folder_tokenizer(folder, vocab_size if name is None else None)
    tokenizer = consistent_tokenizer(name, saved, folder)
    if tokenizer is None:
        raise no_tokenizer(folder)
    check_vocabulary(tokenizer, vocab_size, paired=saved is not None)
    return tokenizer


def consistent_tokenizer(name: str | None, saved: Any, folder: Any) -> Any:
    """The tokenizer called `name`, which must equal the folder's; by default the folder's."""
    if name is None:
        return saved
    try:
        named = named_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer: {name!r}: {error}") from error
    if saved is not None and not same_tokenizer(named, saved):
        raise ValueError(f"--tokenizer must be that of {str(folder)!r}, {saved!r}, got {named!r}")
    return named


def no_tokenizer(folder: Any) -> ValueError:
    return ValueError(
        f"--tokenizer must be DIR, FILE or bytes: there is no tokenizer in {str(folder)!r}"
    )


def unit(tokenizer: Any) -> str:
    """What a tokenizer's ids stand for, in the plural."""
    return "bytes" if isinstance(tokenizer, ByteTokenizer) else "tokens"
