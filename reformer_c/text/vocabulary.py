"""Finding the tokenizer of a model folder, and the text that each token produces."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files.checkpoint import local_folder, save_folder
from .byte_tokenizer import ByteTokenizer
from .subwords import SENTENCEPIECE, TOKENIZERS, ReformerTokenizer, ReformerTokenizerFast
from .tokenizer import Tokenizer
from .tokenizer_config import ADDED, CONFIG, SPECIAL

__all__ = [
    "TokenTexts",
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


def folder_tokenizer(folder: str | os.PathLike, vocab_size: int | None = None) -> Tokenizer | None:
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


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
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


class TokenTexts:
    """The text that each token produces, and logits processors that exclude text.

    Examples
    --------
    >>> token_texts = TokenTexts(ByteTokenizer())
    >>> token_texts.with_any(".!")
    [35, 48]
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(getattr(tokenizer, "all_special_ids", ()))

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token inside a text; empty for special tokens."""
        return [self._text(i) for i in range(len(self._tokenizer))]

    @cached_property
    def known(self) -> list[int]:
        """Ids that have a token."""
        if isinstance(self._tokenizer, ReformerTokenizer):
            return sorted(self._tokenizer.get_vocab().values())
        return list(range(len(self._tokenizer)))

    def _text(self, i: int) -> str:
        if i in self._special or i not in self._known_set:
            return ""
        # decode pairs and use the second token: libraries drop a leading space of the first
        once, twice = (self._tokenizer.decode([i] * n) for n in (1, 2))
        return twice[len(once) :]

    @cached_property
    def _known_set(self) -> set[int]:
        return set(self.known)

    def with_any(self, characters: str) -> list[int]:
        """The tokens whose text contains any of these characters."""
        if not characters:
            return []
        return [i for i, text in enumerate(self.texts) if any(c in text for c in characters)]

    def only_known(self, _ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """A `logits_processor` that excludes ids without a token."""
        unknown = np.ones(len(logits), bool)
        unknown[self.known] = False
        logits[unknown] = -math.inf
        return logits

    def without(self, words: Sequence[str]) -> Any:
        """A `logits_processor` that excludes tokens which would complete one of the words."""
        longest = max(map(len, words), default=0)
        # by word and the number of its characters at the end of the text: tokens that complete it
        completing = {
            (word, k): np.array(
                [i for i, text in enumerate(self.texts) if _completes(text, word, k)], np.int64
            )
            for word in words
            for k in range(len(word))
        }

        def process(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            end = self._end_of(ids, longest - 1)
            for (word, k), tokens in completing.items():
                if end.endswith(word[:k]):
                    logits[tokens] = -math.inf
            return logits

        return process

    def _end_of(self, ids: np.ndarray, length: int) -> str:
        """The last characters of a text."""
        end = ""
        for i in ids[::-1]:
            if len(end) >= length:
                break
            end = self.texts[i] + end
        return end


def _completes(text: str, word: str, k: int) -> bool:
    """Whether a token's text completes a word of which the first k characters are present."""
    return text.startswith(word[k:]) if k else word in text
