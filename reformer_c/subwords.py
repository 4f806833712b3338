"""Text to ids and back, in pieces of words: the tokenizers of Reformer checkpoints.

The pieces are cut by Hugging Face's libraries, `sentencepiece` for a spiece.model and `tokenizers`
for a tokenizer.json; both are the extra ``reformer_c[hf]``. Here is what stands around them: which
file of a folder is taken, special tokens, batches.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from .checkpoint import local_folder, save_folder
from .tokenizer import Tokenizer, check_token_ids

__all__ = ["ReformerTokenizer", "ReformerTokenizerFast"]

SENTENCEPIECE, TOKENIZERS = "spiece.model", "tokenizer.json"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# tokens that have a name, and what Reformer checkpoints call them; the others have none
NAMED = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "bos_token": None,
         "mask_token": None}  # fmt: skip
# what pieces begin with that follow a space; both libraries drop the first of a text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# a length in a tokenizer_config.json that means: none
UNLIMITED = 10**15


class Pieces(Protocol):
    """What a library does for one file."""

    vocabulary: dict[str, int]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class SentencePieces:
    """A spiece.model, by the library `sentencepiece`."""

    def __init__(self, path: Path) -> None:
        library = _library("sentencepiece")
        try:
            self._model = library.SentencePieceProcessor(model_file=os.fspath(path))
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise ValueError(f"folder: {path.name} is no SentencePiece model: {error}") from error
        count = self._model.get_piece_size()
        self.vocabulary = {self._model.id_to_piece(i): i for i in range(count)}

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


class TokenizerFile:
    """A tokenizer.json, by the library `tokenizers`."""

    def __init__(self, path: Path) -> None:
        library = _library("tokenizers")
        try:
            self._model = library.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"folder: {path.name} is no tokenizer: {error}") from error
        # batches are padded and cut here
        self._model.no_padding()
        self._model.no_truncation()
        self.vocabulary = self._model.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)


class ReformerTokenizer(Tokenizer):
    """The tokenizer of a checkpoint folder.

    It is made by `from_pretrained`, from spiece.model or, where that is missing, tokenizer.json.
    Text may hold special tokens by their names; nothing is added to it.

    Attributes
    ----------
    eos_token, unk_token, pad_token, bos_token, mask_token : str or None
        Special tokens; assignable. Published Reformers have no pad token: the end of a text may
        serve, ``tokenizer.pad_token = tokenizer.eos_token``. ``eos_token_id`` and so on are their
        ids.
    additional_special_tokens : list of str
    model_max_length : int or None
        Length that `truncation` cuts to.
    """

    # the files that are looked for, best first
    files: ClassVar[tuple[str, ...]] = (SENTENCEPIECE, TOKENIZERS)

    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    bos_token: str | None
    mask_token: str | None

    def __init__(self, path: str | os.PathLike, **options: Any) -> None:
        """`path` is a spiece.model or tokenizer.json; see `from_pretrained` for the options."""
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"path: there is no file {os.fspath(path)!r}")
        super().__init__(options.pop("model_max_length", None))
        reader = TokenizerFile if self._path.suffix == ".json" else SentencePieces
        self._pieces: Pieces = reader(self._path)
        self._added: dict[str, int] = dict(options.pop("added_tokens", {}))
        self.vocabulary = self._pieces.vocabulary | self._added
        self._texts = {i: token for token, i in self.vocabulary.items()}
        self.additional_special_tokens = list(options.pop("additional_special_tokens", []))
        for token in self.additional_special_tokens:
            if token not in self.vocabulary:
                raise ValueError(
                    "additional_special_tokens: expected tokens of the vocabulary, or of "
                    f"added_tokens, got {token!r}"
                )
        for name, usual in NAMED.items():
            given = options.pop(name, None)
            setattr(self, name, usual if given is None and usual in self.vocabulary else given)
        if options:
            raise TypeError(f"{next(iter(options))}: {type(self).__name__} has no such option")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, revision: str | None = None, **options: Any
    ) -> ReformerTokenizer:
        """The tokenizer of a folder, or of a name on the Hugging Face hub.

        Parameters
        ----------
        folder : path or str
            With spiece.model or tokenizer.json, and perhaps tokenizer_config.json,
            special_tokens_map.json and added_tokens.json.
        revision : str, optional
            Branch, tag or commit on the hub.
        **options
            `model_max_length`, `eos_token` and the other attributes, in place of the folder's.

        Raises
        ------
        FileNotFoundError
            There is no such folder, or neither file in it.
        ValueError
            A file is damaged, or a special token is not in the vocabulary.
        ImportError
            The library that reads the file is not installed (extra ``reformer_c[hf]``).
        """
        wanted = [*cls.files, CONFIG, SPECIAL, ADDED]
        folder = local_folder(folder, revision, [wanted])
        for name in cls.files:
            if (folder / name).is_file():
                return cls(folder / name, **_folder_options(folder) | options)
        raise FileNotFoundError(
            f"folder: there is neither {' nor '.join(cls.files)} in {os.fspath(folder)!r}"
        )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the file of pieces and tokenizer_config.json; atomically."""
        values: dict[str, Any] = {"tokenizer_class": type(self).__name__}
        values |= {name: getattr(self, name) for name in NAMED if getattr(self, name) is not None}
        values["additional_special_tokens"] = self.additional_special_tokens
        if self.model_max_length is not None:
            values["model_max_length"] = self.model_max_length
        files = {
            self._path.name: lambda path: shutil.copyfile(self._path, path),
            CONFIG: lambda path: path.write_text(json.dumps(values, indent=2) + "\n", "utf-8"),
        }
        if self._added:
            files[ADDED] = lambda path: path.write_text(json.dumps(self._added) + "\n", "utf-8")
        save_folder(folder, files)

    def __len__(self) -> int:
        return max(self.vocabulary.values(), default=-1) + 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path.name}, {len(self)} pieces)"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMED and value is not None and value not in self.vocabulary:
            raise ValueError(f"{name}: expected a token of the vocabulary, got {value!r}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        token = name.removesuffix("_id")
        if token == name or token not in NAMED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self, token)
        return None if value is None else self.vocabulary[value]

    @property
    def vocab_size(self) -> int:
        """Pieces of the file, without added tokens."""
        return len(self._pieces.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Ids by piece."""
        return dict(self.vocabulary)

    @property
    def all_special_tokens(self) -> list[str]:
        named = [getattr(self, name) for name in NAMED]
        tokens = [token for token in named if token is not None]
        return list(dict.fromkeys([*tokens, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.vocabulary[token] for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a piece, or of each of several; that of `unk_token` for what is none."""
        if isinstance(tokens, str):
            return self.vocabulary.get(tokens, self.unk_token_id)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The piece of an id, or of each of several."""
        if np.ndim(ids) == 0:
            return self._texts[int(check_token_ids([ids], len(self))[0])]
        return [self.convert_ids_to_tokens(i) for i in ids]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return self.convert_ids_to_tokens(self.encode(text))

    def encode(self, text: Any) -> np.ndarray:
        """The ids (t,), int64, of a text; special tokens in it are taken as such.

        Raises
        ------
        TypeError
            It is no str.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        ids: list[int] = []
        for part in self._split(text):
            if part in self._whole:
                ids.append(self.vocabulary[part])
            elif part:
                ids += self._pieces.encode(part)
        return np.array(ids, np.int64)

    @property
    def _whole(self) -> set[str]:
        return {*self.all_special_tokens, *self._added}

    def _split(self, text: str) -> list[str]:
        """The text between special tokens, and these."""
        tokens = sorted(self._whole, key=len, reverse=True)
        if not tokens:
            return [text]
        return re.split(f"({'|'.join(map(re.escape, tokens))})", text)

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of ids (t,): that which was encoded, as far as the pieces hold it.

        Raises
        ------
        TypeError, ValueError
            They are not integers, or there is no such piece.
        """
        special, run, parts = {self.vocabulary[t] for t in self._whole}, [], []
        unknown = self.unk_token_id
        hidden = set(self.all_special_ids) if skip_special_tokens else set()
        before = None  # the special token that the run follows
        for i in [*check_token_ids(ids, len(self)).tolist(), None]:
            if i is not None and i not in special:
                run.append(i)
                continue
            parts.append(self._decode_run(run, inside=before is not None and before == unknown))
            run, before = [], i
            if i is not None and i not in hidden:
                parts.append(self._texts[i])
        return "".join(parts)

    def _decode_run(self, run: list[int], *, inside: bool) -> str:
        """The text of pieces; `inside` a text, a space before the first of them is one."""
        if not run:
            return ""
        space = inside and self._texts[run[0]].startswith(SPACE)
        return " " * space + self._pieces.decode(run)


class ReformerTokenizerFast(ReformerTokenizer):
    """As `ReformerTokenizer`, from tokenizer.json or, where that is missing, spiece.model."""

    files = (TOKENIZERS, SENTENCEPIECE)


def _folder_options(folder: Path) -> dict[str, Any]:
    """What the files beside the pieces say."""
    config = _json(folder / CONFIG)
    values = {**_json(folder / SPECIAL), **config}
    options: dict[str, Any] = {"added_tokens": _json(folder / ADDED)}
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        options["added_tokens"][_text(token)] = int(i)
    for name in NAMED:
        if values.get(name) is not None:
            options[name] = _text(values[name])
    more = values.get("additional_special_tokens") or values.get("extra_special_tokens") or []
    if isinstance(more, dict):  # by names, which transformers makes attributes of
        more = more.values()
    options["additional_special_tokens"] = [_text(token) for token in more]
    longest = values.get("model_max_length")
    if longest is not None and longest < UNLIMITED:
        options["model_max_length"] = int(longest)
    return options


def _text(token: Any) -> str:
    """A token, which may be written with how it is matched."""
    return token["content"] if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"folder: {path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"folder: expected a dictionary in {path.name}")
    return values


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this tokenizer needs the {name} library: pip install 'reformer_c[hf]'"
        ) from error
