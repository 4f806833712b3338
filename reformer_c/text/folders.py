"""The tokenizer of a model folder: found, saved and compared with the model."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..files.checkpoint import local_folder, save_folder
from .byte_tokenizer import ByteTokenizer
from .subwords import SENTENCEPIECE, TOKENIZERS, ReformerTokenizer, ReformerTokenizerFast
from .tokenizer import Tokenizer
from .tokenizer_config import ADDED, CONFIG, SPECIAL

__all__ = [
    "check_vocabulary",
    "folder_tokenizer",
    "named_tokenizer",
    "same_tokenizer",
    "save_tokenizer",
]

BYTES = "bytes"
# a model's vocabulary may be rounded up to a multiple of at most this, for speed
PADDING = 128


def named_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a command names: "bytes", a folder, or a vocabulary file.

    Raises
    ------
    FileNotFoundError, ValueError
        The file does not exist, or the folder contains no tokenizer.

    Examples
    --------
    >>> named_tokenizer("bytes")
    ByteTokenizer(model_max_length=None)
    """
    if name == BYTES:
        return ByteTokenizer()
    path = Path(name)
    if path.is_file():
        # a file in a folder is loaded together with the folder's other files
        kind = {SENTENCEPIECE: ReformerTokenizer, TOKENIZERS: ReformerTokenizerFast}.get(path.name)
        return ReformerTokenizer(path) if kind is None else kind.from_pretrained(path.parent)
    tokenizer = folder_tokenizer(name)
    if tokenizer is None:
        raise FileNotFoundError(
            f"there is neither {SENTENCEPIECE} nor {TOKENIZERS} in {os.fspath(name)!r}, and no "
            f"{CONFIG} that names {ByteTokenizer.__name__}"
        )
    return tokenizer


def folder_tokenizer(
    folder: str | os.PathLike[str], vocab_size: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a model folder, or of a name on the Hugging Face hub.

    Parameters
    ----------
    folder : path or str
    vocab_size : int, optional
        Vocabulary size of the model: a folder without a tokenizer is taken as a byte model if this
        is 258, as in the enwik8 model of Reformer.

    Returns
    -------
    Tokenizer or None
        None if it cannot be determined.

    Raises
    ------
    FileNotFoundError, ValueError
        The folder does not exist, or the tokenizer's files are damaged.
    ImportError
        The library that reads them is not installed.
    """
    folder = local_folder(folder, None, [[SENTENCEPIECE, TOKENIZERS, CONFIG, SPECIAL, ADDED]])
    name = _class_name(folder)
    if name == ByteTokenizer.__name__:
        return ByteTokenizer()
    if any((folder / file).is_file() for file in (SENTENCEPIECE, TOKENIZERS)):
        kind = ReformerTokenizerFast if name.endswith("Fast") else ReformerTokenizer
        return kind.from_pretrained(folder)
    return ByteTokenizer() if vocab_size == ByteTokenizer.vocab_size and not name else None


def _class_name(folder: Path) -> str:
    """The class that tokenizer_config.json names, or an empty str."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        name = json.loads((folder / CONFIG).read_text("utf-8")).get("tokenizer_class")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"folder: {CONFIG} must be a JSON object: {error}") from error
    return name if isinstance(name, str) else ""


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Save a tokenizer so that `folder_tokenizer` finds it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tokenizer(ByteTokenizer(), folder)
    ...     folder_tokenizer(folder)
    ByteTokenizer(model_max_length=None)
    """
    if isinstance(tokenizer, ReformerTokenizer):
        tokenizer.save_pretrained(folder)
        return
    text = json.dumps({"tokenizer_class": type(tokenizer).__name__}) + "\n"
    save_folder(folder, {CONFIG: lambda path: path.write_text(text, "utf-8")})


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both have the same pieces with the same ids."""
    if isinstance(one, ReformerTokenizer) and isinstance(other, ReformerTokenizer):
        return one.get_vocab() == other.get_vocab()
    return type(one) is type(other)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, *, paired: bool = True) -> None:
    """Refuse a tokenizer that does not match a model's vocabulary size.

    Parameters
    ----------
    tokenizer : Tokenizer
    vocab_size : int
        Of the model; may exceed the number of pieces.
    paired : bool
        Whether they are known to belong together; otherwise the model may have at most 127 extra
        ids.

    Raises
    ------
    ValueError
        Names both sizes.

    Examples
    --------
    >>> check_vocabulary(ByteTokenizer(), 1000)
    >>> check_vocabulary(ByteTokenizer(), 1000, paired=False)
    Traceback (most recent call last):
    ValueError: vocab_size must be 258, as many as ByteTokenizer(...) has, or a few more, got ...
    """
    count = len(tokenizer)  # type: ignore[arg-type]
    if not count <= vocab_size or not (paired or vocab_size < count + PADDING):
        raise ValueError(
            f"vocab_size must be {count}, as many as {tokenizer!r} has, or a few more, got a "
            f"model of {vocab_size}"
        )
