"""Subword tokenizers of Reformer checkpoints: their files, special tokens and texts.

Hugging Face's libraries (extra ``hf``) do the segmentation, see `pieces`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..checks import flag, names_keywords, refuse_unknown
from ..files.checkpoint import local_folder, save_folder, write_atomically
from .checks import one_row, utf8
from .pieces import Reader, SentencePieces, TokenizerFile
from .tokenizer import Template, Tokenizer
from .tokenizer_config import (
    ADDED,
    ADDS,
    CONFIG,
    DECODER,
    EXTRA,
    KNOWN,
    NAMED,
    OWN_NAMES,
    PLAIN,
    SPECIAL,
    added_tokens,
    folder_options,
    merged,
)
from .vocabulary import Vocabulary

__all__ = ["ReformerTokenizer", "ReformerTokenizerFast"]

SENTENCEPIECE, TOKENIZERS = SentencePieces.name, TokenizerFile.name
# transformers' class for a tokenizer.json of any kind
ANY_FILE = "PreTrainedTokenizerFast"


class ReformerTokenizer(Tokenizer):
    """The tokenizer of a checkpoint folder.

    Created by `from_pretrained`, from spiece.model or, if that is missing, tokenizer.json.
    Special tokens in a text are recognised by name. None are added unless the folder specifies it.

    Parameters
    ----------
    path : path or str
        A spiece.model or tokenizer.json.
    **options
        As in `from_pretrained`.

    Attributes
    ----------
    bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token : str or None
        Special tokens; assignable. Published Reformers have no padding token; the end-of-text token
        can be used instead: ``tokenizer.pad_token = tokenizer.eos_token``. Their ids are
        ``eos_token_id`` and so on.
    additional_special_tokens : list of str
        Further special tokens; ``extra_special_tokens`` is an alias.
    model_max_length : int or None
        Length that `truncation` cuts to and ``padding="max_length"`` pads to.
    padding_side, truncation_side : "right" or "left"
        The end of a row that is padded, and the end of a text that is truncated.

    Examples
    --------
    A vocabulary learnt with the library `tokenizers`:

    >>> import tempfile
    >>> from tokenizers import ByteLevelBPETokenizer
    >>> library = ByteLevelBPETokenizer()
    >>> library.train_from_iterator(["to be or not to be"], vocab_size=260, show_progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     library.save(f"{folder}/tokenizer.json")
    ...     tokenizer = ReformerTokenizer.from_pretrained(folder)
    >>> tokenizer.decode(tokenizer.encode("not to be"))
    'not to be'
    """

    # readers in order of preference
    _readers: ClassVar[tuple[type[Reader], ...]] = (SentencePieces, TokenizerFile)

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    sep_token_id: int | None
    cls_token_id: int | None
    mask_token_id: int | None
    # special tokens by name, including names that only this folder has; and unnamed ones
    _named: dict[str, str | None]
    _extra: list[str]
    # the contents of the vocabulary file, and its pieces with the added tokens
    _data: bytes
    _vocabulary: Vocabulary
    # unused fields of the folder, kept for saving
    _fields: dict[str, Any]
    _split_special: bool
    _adds: list[bool] | None

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Read the spiece.model or tokenizer.json at `path`; options as in `from_pretrained`."""
        refuse_unknown(options, KNOWN, type(self).__name__)
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path: there is no file {os.fspath(path)!r}")
        kind = TokenizerFile if path.suffix == ".json" else SentencePieces
        # read once, so that the tokenizer can be saved after the file is gone
        self._data = path.read_bytes()
        reader = kind(self._data)
        self._fields = {}
        in_file = {name: value for name, value in reader.options.items() if value}
        if in_file.get("pad_token") not in reader.vocabulary:  # it may be of another model
            in_file.pop("pad_token", None)
        options = merged(in_file, options)
        super().__init__()
        for name in PLAIN:
            if options.get(name) is not None:
                setattr(self, name, options[name])
        split = "split_special_tokens"
        self._split_special = flag(split, options.get(split), False)
        # None: as the vocabulary file has it
        given = any(options.get(name) is not None for name in ADDS)
        self._adds = [flag(name, options.get(name), False) for name in ADDS] if given else None
        self._vocabulary = Vocabulary(reader, added_tokens(options))
        self._take_special(options)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> ReformerTokenizer:
        """Load the tokenizer of a folder, or of a name on the Hugging Face hub.

        Parameters
        ----------
        folder : path or str
            Contains spiece.model or tokenizer.json, optionally tokenizer_config.json,
            special_tokens_map.json and added_tokens.json; or the path of one of the first two
            files.
        revision : str, optional
            Branch, tag or commit on the hub.
        **options
            `model_max_length`, `padding_side`, `eos_token` and the other attributes override the
            folder's. Special tokens that are not in the vocabulary are added to it.

        Raises
        ------
        FileNotFoundError
            The folder does not exist, or contains neither file.
        TypeError
            An option is unknown, or a token is not a str.
        ValueError
            A file is damaged or inconsistent.
        ImportError
            The library that reads the file is not installed (extra ``hf``).
        """
        if isinstance(folder, (str, os.PathLike)) and os.path.isfile(folder):
            return cls(folder, **options)
        names = [reader.name for reader in cls._readers]
        folder = local_folder(folder, revision, [[*names, CONFIG, SPECIAL, ADDED]])
        for name in names:
            if (folder / name).is_file():
                known, fields = folder_options(folder)
                tokenizer = cls(folder / name, **merged(known, options))
                tokenizer._fields = fields
                return tokenizer
        raise FileNotFoundError(
            f"folder: there is neither {' nor '.join(names)} in {os.fspath(folder)!r}"
        )

    @names_keywords
    def save_pretrained(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the vocabulary file and tokenizer_config.json, atomically.

        Fields of the folder that are not used here are preserved.

        Parameters
        ----------
        folder : path or str
            Created if it does not exist.

        Returns
        -------
        tuple of str
            The paths of both files.
        """
        # transformers rebuilds the segmentation of a class that it has; with ANY_FILE it uses the
        # tokenizer.json unchanged
        kind = type(self).__name__ if self._vocabulary.reader.name == SENTENCEPIECE else ANY_FILE
        values = {"tokenizer_class": kind} | self._fields
        values |= {name: self._named[name] for name in NAMED}
        values["additional_special_tokens"] = self._extra
        own_names = {name: self._named[name] for name in self._named if name not in NAMED}
        if own_names:
            values[OWN_NAMES] = own_names
        values |= {name: getattr(self, name) for name in PLAIN}
        if self._adds is not None:
            values |= dict(zip(ADDS, self._adds, strict=True))
        if self._split_special:
            values["split_special_tokens"] = True
        added, ids = self._vocabulary.added, self._vocabulary.ids
        values[DECODER] = {ids[text]: asdict(token) for text, token in added.items()}
        files = {
            self._vocabulary.reader.name: lambda path: path.write_bytes(self._data),
            CONFIG: lambda path: path.write_text(json.dumps(values, indent=2) + "\n", "utf-8"),
        }
        save_folder(folder, files)
        return tuple(os.path.join(folder, name) for name in files)

    @names_keywords
    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write only the vocabulary file, unchanged: without added tokens and attributes.

        Parameters
        ----------
        save_directory : path
            An existing folder.
        filename_prefix : str, optional
            Prefix of the file name, followed by ``-``.

        Returns
        -------
        tuple of str
            The path of the file.

        Raises
        ------
        NotADirectoryError
            The folder does not exist.
        """
        if not isinstance(save_directory, (str, os.PathLike)):
            kind = type(save_directory).__name__
            raise TypeError(f"save_directory must be a path, got {kind}")
        if not os.path.isdir(save_directory):
            raise NotADirectoryError(
                f"save_directory: there is no folder {os.fspath(save_directory)!r}"
            )
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(save_directory, prefix + self._vocabulary.reader.name)
        write_atomically(path, lambda part: part.write_bytes(self._data))
        return (path,)

    # ---- tokens ----

    @names_keywords
    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens that are matched in a text before it is segmented.

        Parameters
        ----------
        new_tokens : str, or a sequence of str
            Or AddedTokens of the library `tokenizers`, which specify how they are matched.
        special_tokens : bool
            Whether `decode` omits them with ``skip_special_tokens=True``.

        Returns
        -------
        int
            The number of new ids, by which ``len(tokenizer)`` has grown: a token already in the
            vocabulary keeps its id. To extend the model, call
            ``model.resize_token_embeddings(len(tokenizer))``.

        Raises
        ------
        TypeError, ValueError
            A value is not a token; none is added then.
        """
        one = isinstance(new_tokens, (str, Mapping)) or hasattr(new_tokens, "content")
        if not one and not isinstance(new_tokens, Iterable):
            raise TypeError(f"new_tokens must be tokens, got {type(new_tokens).__name__}")
        special = flag("special_tokens", special_tokens, False)
        tokens = [new_tokens] if one else list(new_tokens)
        return self._vocabulary.add(
            self._vocabulary.token("new_tokens", one, special=special) for one in tokens
        )

    @names_keywords
    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Set named special tokens, adding those that are not in the vocabulary.

        Parameters
        ----------
        special_tokens_dict : dict
            ``{"pad_token": "<pad>"}``: a token for each name, and a list of them for
            "additional_special_tokens".
        replace_extra_special_tokens : bool
            Whether that list replaces the existing one, or is appended to it.

        Returns
        -------
        int
            The number of new ids, as in `add_tokens`.

        Raises
        ------
        TypeError, ValueError
            A value is not a token, or a name is unknown; nothing is changed then.
        """
        if not isinstance(special_tokens_dict, Mapping):
            kind = type(special_tokens_dict).__name__
            raise TypeError(f"special_tokens_dict must be a dictionary, got {kind}")
        refuse_unknown(special_tokens_dict, (*self._named, *EXTRA), "add_special_tokens")
        named = {
            name: self._vocabulary.token(name, token, special=True)
            for name, token in special_tokens_dict.items()
            if name not in EXTRA
        }
        extra = [
            self._vocabulary.token(name, token, special=True)
            for name in EXTRA
            for token in _list(name, special_tokens_dict.get(name, []))
        ]
        replaced = flag("replace_extra_special_tokens", replace_extra_special_tokens, True)
        before = [] if extra and replaced else self._extra
        count = self._vocabulary.add([*named.values(), *extra])
        self._named |= {name: token.content for name, token in named.items()}
        self._extra = list(dict.fromkeys([*before, *(token.content for token in extra)]))
        return count

    def _take_special(self, options: Mapping[str, Any]) -> None:
        """Set the special tokens that the options give."""
        named = {
            name: options.get(name, default if default in self._vocabulary.ids else None)
            for name, default in NAMED.items()
        }
        named |= options.get(OWN_NAMES) or {}
        extra: dict[str, Any] = {}
        for name in EXTRA:
            tokens = options.get(name) or []
            if isinstance(tokens, Mapping):
                named |= tokens
            else:
                extra[name] = tokens
        self._named = dict.fromkeys(named)
        self._extra = []
        self.add_special_tokens(
            {name: token for name, token in named.items() if token is not None} | extra
        )

    # ---- attributes ----

    def __len__(self) -> int:
        return len(self._vocabulary)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._vocabulary.reader.name}, {len(self)} pieces)"

    def __setattr__(self, name: str, value: Any) -> None:
        named = self.__dict__.get("_named", {})
        token = name.removesuffix("_id")
        if token not in named:
            super().__setattr__(name, value)
            return
        if token != name and value is not None:
            value = self.convert_ids_to_tokens(value)
        if value is not None:
            known = self._vocabulary.known_token(name, value)
            self._vocabulary.add([known])
            value = known.content
        named[token] = value

    def __getattr__(self, name: str) -> Any:
        named = self.__dict__.get("_named", {})
        if name in named:
            return named[name]
        token = name.removesuffix("_id")
        if token not in named:
            raise self._no_attribute(name)
        return None if named[token] is None else self._vocabulary.ids[named[token]]

    def __dir__(self) -> Iterable[str]:
        named = self.__dict__.get("_named", {})
        return [*super().__dir__(), *named, *(f"{name}_id" for name in named)]

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token, or None."""
        token = self._named["pad_token"]
        return None if token is None else self._vocabulary.ids[token]

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a name."""
        return list(self._extra)

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Iterable[Any]) -> None:
        name = EXTRA[0]
        known = [self._vocabulary.known_token(name, token) for token in _list(name, tokens)]
        self._vocabulary.add(known)
        self._extra = [token.content for token in known]

    extra_special_tokens = additional_special_tokens

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by piece."""
        return dict(self._vocabulary.ids)

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the file, without added tokens."""
        return self._vocabulary.reader.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Ids by piece, including added tokens."""
        return self.vocabulary

    def get_added_vocab(self) -> dict[str, int]:
        """Ids of the tokens that are matched before segmentation."""
        return {token: self._vocabulary.ids[token] for token in self._vocabulary.added}

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by name."""
        return {name: token for name, token in self._named.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._vocabulary.ids[token] for token in self.all_special_tokens]

    # ---- texts ----

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a piece, or of each of several; unknown pieces give `unk_token_id`.

        Parameters
        ----------
        tokens : str, or sequence of str
            One or several pieces.
        """
        if isinstance(tokens, str):
            return self._vocabulary.ids.get(tokens, self.unk_token_id)
        if not isinstance(tokens, Iterable) or not all(isinstance(one, str) for one in tokens):
            raise TypeError(f"tokens must be a str or a sequence of str, got {tokens!r}")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @names_keywords
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The piece of an id, or of each of several.

        Parameters
        ----------
        ids : int, or sequence of int
            One or several ids.
        skip_special_tokens : bool
            Omit special tokens.
        """
        if isinstance(ids, (int, np.integer)):
            return self._vocabulary.texts[self._vocabulary.known_ids([ids])[0]]
        hidden = self._hidden(skip_special_tokens)
        known = self._vocabulary.known_ids(ids)
        return [self._vocabulary.texts[i] for i in known if i not in hidden]

    def tokenize(
        self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Segment a text or a pair of texts into pieces.

        Parameters
        ----------
        text, pair, add_special_tokens, **options
            As in `encode`.
        """
        pieces: list[str] = self.convert_ids_to_tokens(
            self.encode(text, pair, add_special_tokens, **options)
        )
        return pieces

    def _ids(self, text: Any, name: str) -> np.ndarray:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a str, got {type(text).__name__}")
        utf8(text, name)
        return np.array(self._vocabulary.reader.encode(text, self._split_special), np.int64)

    def _template(self, pair: bool) -> Template:
        if self._adds is None:
            return self._vocabulary.reader.template(pair) or super()._template(pair)
        bos, eos = (
            [i] if adds and i is not None else []
            for adds, i in zip(self._adds, (self.bos_token_id, self.eos_token_id), strict=True)
        )
        template: Template = []
        for what, kind in super()._template(pair):
            template += [(one, kind) for one in (*bos, what, *eos)]
        return template

    @names_keywords
    def decode(
        self,
        ids: Any,
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Decode ids (t,) to the encoded text, as far as the pieces preserve it.

        Parameters
        ----------
        ids : (t,) integers, or one
        skip_special_tokens : bool
            Omit special tokens.
        clean_up_tokenization_spaces : bool, optional
            True is refused: pieces preserve spaces, and transformers does not clean them up either.

        Raises
        ------
        TypeError, ValueError
            The ids are not integers, or an id has no piece.
        """
        if flag("clean_up_tokenization_spaces", clean_up_tokenization_spaces, False):
            raise ValueError(
                "clean_up_tokenization_spaces must be False, because pieces preserve spaces"
            )
        hidden = self._hidden(skip_special_tokens)
        return self._vocabulary.decode(one_row(ids), hidden=hidden, unk_token_id=self.unk_token_id)

    def _hidden(self, skip_special_tokens: bool) -> set[int]:
        """The ids that `decode` omits."""
        skipped = flag("skip_special_tokens", skip_special_tokens, False)
        return self._vocabulary.special_ids() if skipped else set()


class ReformerTokenizerFast(ReformerTokenizer):
    """Like `ReformerTokenizer`, but prefers tokenizer.json to spiece.model.

    Parameters
    ----------
    path : path or str
        A spiece.model or tokenizer.json.
    **options
        As in `from_pretrained`.

    Examples
    --------
    >>> import tempfile
    >>> from tokenizers import ByteLevelBPETokenizer
    >>> library = ByteLevelBPETokenizer()
    >>> library.train_from_iterator(["to be or not to be"], vocab_size=260, show_progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     library.save(f"{folder}/tokenizer.json")
    ...     tokenizer = ReformerTokenizerFast.from_pretrained(folder)
    >>> tokenizer.decode(tokenizer.encode("not to be"))
    'not to be'
    """

    _readers = (TokenizerFile, SentencePieces)


def _list(name: str, tokens: Any) -> list[Any]:
    if isinstance(tokens, (str, Mapping)) or not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must be a list of tokens, got {tokens!r}")
    return list(tokens)
