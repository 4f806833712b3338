"""How Hugging Face's libraries cut a text into pieces of words, and what is looked for before.

`sentencepiece` reads a spiece.model and `tokenizers` a tokenizer.json; both are the extra
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

from .checks import requires_extra
from .tokenizer import FIRST, SECOND, Template, utf8

__all__ = ["AddedToken", "Reader", "SentencePieces", "TokenizerFile"]

# what pieces begin with that follow a space; both libraries drop the first of a text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, order=True)
class AddedToken:
    """A token that is looked for in the text, before the text is cut into pieces."""

    content: str
    # not inside a word; and with the spaces before it, and after it
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    # looked for in the normalized text: by the library `tokenizers` alone
    normalized: bool = False
    special: bool = False

    @classmethod
    def of(cls, name: str, value: Any, *, special: bool) -> AddedToken:
        """Of a str, a dictionary or an AddedToken of the library, which errors call `name`."""
        given = value
        if isinstance(value, str):
            value = {"content": value, "normalized": not special}
        elif not isinstance(value, Mapping):
            fields = cls.__dataclass_fields__
            value = {field: getattr(value, field) for field in fields if hasattr(value, field)}
        content = value.get("content")
        if not isinstance(content, str) or not content:
            raise TypeError(f"{name}: expected a token, which is a str, got {given!r}")
        utf8(content, name)
        flags = {field: bool(value[field]) for field in FLAGS if field in value}
        return cls(content, **flags | {"special": special or flags.get("special", False)})


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Reader(ABC):
    """What a library does for one file."""

    name: ClassVar[str]
    # every token of the file, how many of them are pieces, and those that it looks for in a text
    # before it cuts that into pieces
    vocabulary: dict[str, int]
    vocab_size: int
    added: list[AddedToken]
    # what the file says about tokens and batches
    options: dict[str, Any]

    @abstractmethod
    def __init__(self, data: bytes) -> None: ...

    @abstractmethod
    def add(self, tokens: Mapping[str, AddedToken], vocabulary: Mapping[str, int]) -> None:
        """Look for tokens from now on, which have the ids of `vocabulary`."""

    @abstractmethod
    def encode(self, text: str, split_special: bool) -> list[int]:
        """The ids of a text; `split_special`, special tokens in it are text as well."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of pieces."""

    def template(self, pair: bool) -> Template | None:
        """What the file adds to a text, or to a pair of them, if it says so."""
        return None


class SentencePieces(Reader):
    """A spiece.model, by the library `sentencepiece`."""

    name = "spiece.model"

    def __init__(self, data: bytes) -> None:
        library = _library("sentencepiece")
        try:
            self._model = library.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise ValueError(f"folder: {self.name} is no SentencePiece model: {error}") from error
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
        ids = self._model.encode(text)
        # the library drops a space at the end, which transformers has a piece for
        if text and (text[-1].isspace() or text[-1] == SPACE or not text[-1].isprintable()):
            end = "x" + text[-64:]
            inside = self._model.normalize(end + "x").endswith(SPACE + "x")
            if inside and not self._model.normalize(end).endswith(SPACE):
                ids.append(self._model.piece_to_id(SPACE))
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


class TokenizerFile(Reader):
    """A tokenizer.json, by the library `tokenizers`."""

    name = "tokenizer.json"

    def __init__(self, data: bytes) -> None:
        library = _library("tokenizers")
        try:
            self._model = library.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"folder: {self.name} is no tokenizer: {error}") from error
        self.vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = self._model.get_vocab_size(with_added_tokens=False)
        tokens = self._model.get_added_tokens_decoder().values()
        self.added = [AddedToken.of(self.name, token, special=False) for token in tokens]
        # batches are padded and cut here
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
                    f"added tokens: expected the id that {self.name} gives to {content!r}, "
                    f"{self._model.token_to_id(content)}, got {vocabulary[content]}"
                )

    def encode(self, text: str, split_special: bool) -> list[int]:
        self._model.encode_special_tokens = split_special
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)

    def template(self, pair: bool) -> Template | None:
        return self._templates[pair]

    def _read_template(self, pair: bool) -> Template | None:
        """Read off what becomes of a text: special tokens belong to no sequence."""
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
    """What finds tokens in a text, the longest first."""
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
