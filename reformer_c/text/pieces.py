"""Segmentation into subwords by Hugging Face's libraries, and matching of added tokens before it.

`sentencepiece` reads spiece.model, `tokenizers` reads tokenizer.json; both are in the extra
``hf``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import groupby
from typing import Any, ClassVar

from ..checks import requires_extra
from .checks import utf8
from .tokenizer import FIRST, SECOND, Template

__all__ = ["AddedToken", "Reader", "SentencePieces", "TokenizerFile"]

# prefix of pieces that follow a space; both libraries drop it at the start of a text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, order=True)
class AddedToken:
    """A token that is matched in the text before segmentation."""

    content: str
    # match whole words only; include the spaces before and after
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    # match in the normalized text: supported by the library `tokenizers` only
    normalized: bool = False
    special: bool = False

    @classmethod
    def of(cls, name: str, value: Any, *, special: bool) -> AddedToken:
        """Convert a str, a dictionary or an AddedToken of the library; `name` is used in errors."""
        given = value
        if isinstance(value, str):
            value = {"content": value, "normalized": not special}
        elif not isinstance(value, Mapping):
            fields = cls.__dataclass_fields__
            value = {field: getattr(value, field) for field in fields if hasattr(value, field)}
        content = value.get("content")
        if not isinstance(content, str) or not content:
            raise TypeError(f"{name} must be a token, which is a non-empty str, got {given!r}")
        utf8(content, name)
        flags = {field: bool(value[field]) for field in FLAGS if field in value}
        return cls(content, **flags | {"special": special or flags.get("special", False)})


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Reader(ABC):
    """Interface to one vocabulary file."""

    name: ClassVar[str]
    # all tokens of the file; the number of pieces among them; the tokens that are matched before
    # segmentation
    vocabulary: dict[str, int]
    vocab_size: int
    added: list[AddedToken]
    # settings of the file for special tokens and batches
    options: dict[str, Any]

    @abstractmethod
    def __init__(self, data: bytes) -> None: ...

    @abstractmethod
    def add(self, tokens: Mapping[str, AddedToken], vocabulary: Mapping[str, int]) -> None:
        """Match these tokens from now on; their ids are in `vocabulary`."""

    @abstractmethod
    def encode(self, text: str, split_special: bool) -> list[int]:
        """Encode a text; with `split_special`, special tokens in it are segmented as plain text."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Decode pieces to text."""

    def template(self, pair: bool) -> Template | None:
        """The template of special tokens for a text or a pair of texts, if the file has one."""
        return None


class SentencePieces(Reader):
    """A spiece.model, read by `sentencepiece`."""

    name = "spiece.model"

    def __init__(self, data: bytes) -> None:
        library = _library("sentencepiece")
        try:
            self._model = library.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"folder: {self.name} is not a SentencePiece model: {error}"
            ) from error
        pieces = range(self._model.get_piece_size())
        self.vocabulary = {self._model.id_to_piece(i): i for i in pieces}
        self.vocab_size = len(pieces)
        self.added = [
            AddedToken(self._model.id_to_piece(i), special=True)
            for i in pieces
            if self._model.is_control(i)
        ]
        self.options = {"additional_special_tokens": [token.content for token in self.added]}

    def add(self, tokens: Mapping[str, AddedToken], vocabulary: Mapping[str, int]) -> None:
        self._ids = dict(vocabulary)
        self._whole = _pattern(tokens.values())
        self._plain = _pattern(token for token in tokens.values() if not token.special)

    def encode(self, text: str, split_special: bool) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in (self._plain if split_special else self._whole).finditer(text):
            ids += self._cut(text[start : match.start()])
            ids.append(self._ids[match[match.lastindex or 0]])
            start = match.end()
        return ids + self._cut(text[start:])

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text)
        # the library drops a trailing space; transformers encodes it as a piece
        if text and (text[-1].isspace() or text[-1] == SPACE or not text[-1].isprintable()):
            end = "x" + text[-64:]
            inside = self._model.normalize(end + "x").endswith(SPACE + "x")
            if inside and not self._model.normalize(end).endswith(SPACE):
                ids.append(self._model.piece_to_id(SPACE))
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids)
        return text


class TokenizerFile(Reader):
    """A tokenizer.json, read by `tokenizers`."""

    name = "tokenizer.json"

    def __init__(self, data: bytes) -> None:
        library = _library("tokenizers")
        try:
            self._model = library.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"folder: {self.name} is not a tokenizer: {error}") from error
        self.vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = self._model.get_vocab_size(with_added_tokens=False)
        tokens = self._model.get_added_tokens_decoder().values()
        self.added = [AddedToken.of(self.name, token, special=False) for token in tokens]
        # padding and truncation are done by this package
        padding, truncation = self._model.padding or {}, self._model.truncation or {}
        self.options = {
            "padding_side": padding.get("direction"),
            "truncation_side": truncation.get("direction"),
            "pad_token": padding.get("pad_token"),
        }
        self._model.no_padding()
        self._model.no_truncation()
        self._templates = [self._read_template(pair) for pair in (False, True)]

    def add(self, tokens: Mapping[str, AddedToken], vocabulary: Mapping[str, int]) -> None:
        make = _library("tokenizers").AddedToken
        self._model.add_tokens([make(**asdict(token)) for token in tokens.values()])
        for content in tokens:
            if self._model.token_to_id(content) != vocabulary[content]:
                raise ValueError(
                    f"added tokens: the id of {content!r} must be that of {self.name}, "
                    f"{self._model.token_to_id(content)}, got {vocabulary[content]}"
                )

    def encode(self, text: str, split_special: bool) -> list[int]:
        self._model.encode_special_tokens = split_special
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids, skip_special_tokens=False)
        return text

    def template(self, pair: bool) -> Template | None:
        return self._templates[pair]

    def _read_template(self, pair: bool) -> Template | None:
        """Derive the template from an encoded sample: special tokens belong to no sequence."""
        for text in self.vocabulary:
            row = self._model.encode(text, *[text] * pair)
            if {0, int(pair)} <= set(row.sequence_ids):
                break
        else:
            return None
        template: Template = []
        parts = zip(row.sequence_ids, row.ids, row.type_ids, strict=True)
        for sequence, part in groupby(parts, key=lambda part: part[0]):
            if sequence is None:
                template += [(i, kind) for _, i, kind in part]
            else:
                template.append(((FIRST, SECOND)[sequence], next(part)[2]))
        return template


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """A pattern that matches the tokens, longest first."""
    found = []
    for token in sorted(tokens, key=lambda token: -len(token.content)):
        text = f"({re.escape(token.content)})"
        if token.single_word:
            text = rf"(?<!\w){text}(?!\w)"
        found.append(r"\s*" * token.lstrip + text + r"\s*" * token.rstrip)
    return re.compile("|".join(found) or r"(?!)")


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise requires_extra("this tokenizer", name, "hf") from error
