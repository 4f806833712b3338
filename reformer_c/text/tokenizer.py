"""Encoding text to token ids, decoding, and batching; and the byte tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from ..checks import NamedAttributes, did_you_mean, flag, integer, names_keywords, refuse_unknown

__all__ = ["Batch", "ByteTokenizer", "Tokenizer"]

Text = str | bytes | bytearray | memoryview
# the parts of a row, each with its token type: FIRST and SECOND text, and ids of special tokens
Template = list[tuple[int | str, int]]
FIRST, SECOND = "first", "second"
NAMES = ("text", "text_pair")

SIDES = ("right", "left")
PADDING = {False: None, True: "longest", "longest": "longest", "max_length": "max_length",
           "do_not_pad": None}  # fmt: skip
TRUNCATION = {False: None, True: "longest_first", "longest_first": "longest_first",
              "only_first": "only_first", "only_second": "only_second",
              "do_not_truncate": None}  # fmt: skip
# the options of `Tokenizer._layout`
LAYOUT = ("padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side",
          "truncation_side")  # fmt: skip
COLUMNS = ("input_ids", "token_type_ids", "attention_mask")
# lengths from this value on mean "no limit" in files
UNLIMITED = 10**15


class Batch(dict[str, np.ndarray]):
    """Arrays by name, also as attributes: ``batch.input_ids`` is ``batch["input_ids"]``."""

    def __getattr__(self, name: str) -> np.ndarray:
        if name in self:
            return self[name]
        raise AttributeError(f"{name}: the batch has no such array{did_you_mean(name, self)}")


class Layout(NamedTuple):
    """How rows are truncated and padded."""

    padding: str | None
    truncation: str | None
    # the length to truncate or pad to; at least one is set where a length is needed
    limit: int
    multiple: int
    padding_side: str
    truncation_side: str


class Tokenizer(NamedAttributes, ABC):
    """Base class of tokenizers: encoding, decoding, batches. Subclasses encode a single text.

    Attributes
    ----------
    model_max_length : int or None
        Length that `truncation` cuts to and ``padding="max_length"`` pads to.
    padding_side, truncation_side : "right" or "left"
        The end of a row that is padded, and the end of a text that is truncated.
    model_input_names : list of str
        The entries that a call returns: "input_ids", optionally "token_type_ids" and
        "attention_mask".
    """

    _model_max_length: int | None
    _padding_side: str
    _truncation_side: str
    _model_input_names: list[str]

    @names_keywords
    def __init__(
        self,
        model_max_length: int | None = None,
        *,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.model_max_length = model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_input_names = ["input_ids", "attention_mask"]

    def _no_attribute(self, name: str) -> AttributeError:
        names = [known for known in dir(self) if not known.startswith("_")]
        return AttributeError(
            f"{name}: a {type(self).__name__} has no such attribute{did_you_mean(name, names)}"
        )

    @property
    def model_max_length(self) -> int | None:
        return self._model_max_length

    @model_max_length.setter
    def model_max_length(self, value: int | None) -> None:
        if value is not None:
            value = integer("model_max_length", value, 1)
        self._model_max_length = None if value is None or value >= UNLIMITED else value

    @property
    def padding_side(self) -> str:
        return self._padding_side

    @padding_side.setter
    def padding_side(self, value: str) -> None:
        self._padding_side = one_of("padding_side", value, SIDES)

    @property
    def truncation_side(self) -> str:
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, value: str) -> None:
        self._truncation_side = one_of("truncation_side", value, SIDES)

    @property
    def model_input_names(self) -> list[str]:
        return list(self._model_input_names)

    @model_input_names.setter
    def model_input_names(self, names: Iterable[str]) -> None:
        names = [names] if isinstance(names, str) else list(names)
        if "input_ids" not in names or not all(name in COLUMNS for name in names):
            raise ValueError(
                f"model_input_names must be 'input_ids' and others of {COLUMNS}, got {names!r}"
            )
        self._model_input_names = names

    @property
    @abstractmethod
    def pad_token_id(self) -> int | None:
        """The id of the padding token, or None."""

    @abstractmethod
    def _ids(self, text: Any, name: str) -> np.ndarray:
        """Encode one text to ids (t,), int64; `name` is its name in error messages."""

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """Decode ids (t,) to a text."""

    def batch_decode(self, rows: Iterable[Any], **options: Any) -> list[str]:
        """Decode each row of ids; options are those of `decode`."""
        return [self.decode(row, **options) for row in _listed("rows", rows)]

    def _template(self, pair: bool) -> Template:
        """The template of a row: texts and special tokens in order."""
        return [(FIRST, 0), (SECOND, 1)] if pair else [(FIRST, 0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """The number of special tokens that a call adds to a text, or to a pair of texts."""
        return sum(what not in (FIRST, SECOND) for what, _ in self._template(pair))

    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        *,
        return_tensors: str | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Encode a text or a pair of texts to ids.

        Parameters
        ----------
        text : str
            A `ByteTokenizer` also accepts bytes.
        text_pair : str, optional
            A second text, whose ids are appended.
        add_special_tokens : bool
            Add the special tokens that the tokenizer's folder specifies; published Reformers have
            none.
        return_tensors : "np", optional
            Return a batch of one row.
        **options
            `padding`, `truncation`, `max_length`, `pad_to_multiple_of`, `padding_side` and
            `truncation_side`, as in a call.

        Returns
        -------
        ndarray (t,), or (1, t) with return_tensors="np"
            int64.

        Raises
        ------
        TypeError
            The input is not a text, or an option is unknown.
        ValueError
            The text has a lone surrogate, which Unicode encodings cannot represent; or as in a
            call.

        Examples
        --------
        >>> ByteTokenizer().encode("To", return_tensors="np")
        array([[ 86, 113]])
        """
        refuse_unknown(options, LAYOUT, f"{type(self).__name__}.encode")
        _numpy_only(return_tensors)
        layout = self._layout(**options)
        if not isinstance(text, Text):  # a sequence is a batch of several rows
            raise TypeError(f"text must be a single text, got {type(text).__name__}")
        [(ids, _)] = self._rows(text, text_pair, add_special_tokens, layout)
        if layout.padding:
            ids = self._filled({"input_ids": [ids]}, layout, ["input_ids"])["input_ids"][0]
        return ids[None] if return_tensors else ids

    @names_keywords
    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
    ) -> Batch:
        """Encode texts, or pairs of texts, to a batch for a model: ``model(**tokenizer(texts))``.

        Parameters
        ----------
        text : str, or a sequence of str or of pairs of str
            A single text gives a batch of one. A `ByteTokenizer` also accepts bytes.
        text_pair : str or sequence of str, optional
            The second text of each pair, such as the context of each question.
        add_special_tokens : bool
            Add the special tokens that the tokenizer's folder specifies; published Reformers have
            none.
        padding : bool, "longest", "max_length" or "do_not_pad"
            True and "longest" pad to the longest row, "max_length" to that length. With False, all
            texts must have the same length.
        truncation : bool, "longest_first", "only_first", "only_second" or "do_not_truncate"
            Which text of a pair is truncated until the row has `max_length` tokens (default
            ``model_max_length``). True is "longest_first": the longer text is cut to the length of
            the shorter, then both to half a row each.
        max_length : int, optional
        pad_to_multiple_of : int, optional
        padding_side, truncation_side : "right" or "left", optional
            Override the tokenizer's settings.
        return_tensors : "np", optional
            Accepted as in transformers; arrays are always returned.
        return_token_type_ids : bool, optional
            Return token types: 0 for tokens of the first text, 1 for the second. Default False,
            unless ``model_input_names`` includes them.
        return_attention_mask : bool, optional
            Default True, unless ``model_input_names`` does not include it.

        Returns
        -------
        dict
            "input_ids", "token_type_ids" and "attention_mask" (b, t), int64, also as attributes.
            The mask is 1 for a real token.

        Raises
        ------
        TypeError
            The input is neither a text nor a sequence of texts, or an option is unknown.
        ValueError
            The texts differ in length and `padding` is False, no length to truncate to is known, or
            the text to be truncated is too short for it.

        Examples
        --------
        >>> batch = ByteTokenizer()("To be?", "Yes.", truncation="only_first", max_length=6,
        ...                         return_token_type_ids=True)
        >>> batch["input_ids"]
        array([[ 86, 113,  91, 103, 117,  48]])
        >>> batch["token_type_ids"]
        array([[0, 0, 1, 1, 1, 1]])
        """
        _numpy_only(return_tensors)
        names = self._model_input_names
        types = flag("return_token_type_ids", return_token_type_ids, "token_type_ids" in names)
        mask = flag("return_attention_mask", return_attention_mask, "attention_mask" in names)
        layout = self._layout(
            padding, truncation, max_length, pad_to_multiple_of, padding_side, truncation_side
        )
        rows = self._rows(text, text_pair, add_special_tokens, layout)
        columns = {"input_ids": [ids for ids, _ in rows]}
        if types:
            columns["token_type_ids"] = [np.repeat(*runs) for _, runs in rows]
        return self._filled(columns, layout, [*columns, *["attention_mask"] * mask])

    # names of the call before transformers 5
    encode_plus = batch_encode_plus = __call__

    @names_keywords
    def pad(
        self,
        rows: Any,
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        length: int = 0,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Pad rows of ids of different lengths to one array.

        Parameters
        ----------
        rows : sequence of (t_i,) integers
            Or results of calls: a dictionary, or a sequence of dictionaries, of "input_ids" and
            optionally "token_type_ids" and "attention_mask".
        padding : bool, "longest", "max_length" or "do_not_pad"
        max_length : int, optional
            For ``padding="max_length"``; default ``model_max_length``.
        padding_side : "right" or "left", optional
            Overrides the tokenizer's setting.
        pad_to_multiple_of : int, optional
        length : int
            Minimum length of the padded rows.
        return_attention_mask : bool, optional
            Default True.
        return_tensors : "np", optional
            Accepted as in transformers; arrays are always returned.

        Returns
        -------
        dict
            "input_ids" and "attention_mask" (b, t), 1 for a real token, and the other entries of
            `rows`; int64.

        Raises
        ------
        TypeError, ValueError
            Rows are not one-dimensional integer arrays, or there is no padding token.

        Examples
        --------
        >>> ByteTokenizer().pad([[5, 6], [7]], padding_side="left")["input_ids"]
        array([[5, 6],
               [0, 7]])
        """
        _numpy_only(return_tensors)
        layout = self._layout(padding, False, max_length, pad_to_multiple_of, padding_side, None)
        integer("length", length, 0)
        columns = _columns(rows)
        mask = flag("return_attention_mask", return_attention_mask, True)
        names = [name for name in columns if name != "attention_mask"]
        return self._filled(columns, layout, [*names, *["attention_mask"] * mask], length)

    def _layout(
        self,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
    ) -> Layout:
        """Check the options of a call."""
        fill = PADDING[one_of("padding", padding, PADDING)]
        cut = TRUNCATION[
            one_of("truncation", False if truncation is None else truncation, TRUNCATION)
        ]
        limit = self.model_max_length if max_length is None else max_length
        if cut or fill == "max_length":
            if limit is None:
                raise ValueError(
                    f"{'truncation' if cut else 'padding'} needs max_length, or a model_max_length"
                )
            integer("max_length", limit, 1)
        elif max_length is not None:
            raise ValueError("max_length needs truncation=True or padding='max_length'")
        multiple = 1
        if pad_to_multiple_of is not None:
            multiple = integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        if multiple > 1 and not fill:
            raise ValueError("pad_to_multiple_of needs padding=True or padding='max_length'")
        if cut and fill and limit and limit % multiple:
            raise ValueError(
                f"pad_to_multiple_of must be a divisor of {limit}, the length that texts are "
                f"truncated to, got {multiple}"
            )
        sides = [
            default if side is None else one_of(name, side, SIDES)
            for name, side, default in (
                ("padding_side", padding_side, self.padding_side),
                ("truncation_side", truncation_side, self.truncation_side),
            )
        ]
        return Layout(fill, cut, limit or 0, multiple, *sides)

    def _rows(
        self, text: Any, text_pair: Any, add_special_tokens: bool, layout: Layout
    ) -> list[tuple[np.ndarray, tuple[list[int], list[int]]]]:
        """For each text or pair: its ids, and runs of equal token type as (types, lengths)."""
        special = flag("add_special_tokens", add_special_tokens, True)
        pairs = _pairs(text, text_pair)
        pair = bool(pairs) and len(pairs[0]) == 2
        if layout.truncation == "only_second" and not pair:
            raise ValueError("truncation must not be 'only_second' without a second text")
        template = self._template(pair)
        if not special:  # without special tokens, the template still gives order and types
            template = [part for part in template if part[0] in (FIRST, SECOND)]
        room = layout.limit - sum(what not in (FIRST, SECOND) for what, _ in template)
        if layout.truncation and room < 1:
            raise ValueError(
                f"max_length must be more than the {layout.limit - room} special tokens of a "
                f"row, got {layout.limit}"
            )
        rows = []
        for i, texts in enumerate(pairs):
            where = "" if isinstance(text, Text) else f": item {i}"
            ids = [self._ids(one, name + where) for one, name in zip(texts, NAMES, strict=False)]
            if layout.truncation:
                lengths = _kept([len(one) for one in ids], room, layout.truncation)
                left = layout.truncation_side == "left"
                ids = [
                    one[len(one) - n :] if left else one[:n]
                    for one, n in zip(ids, lengths, strict=True)
                ]
            named = dict(zip((FIRST, SECOND), ids, strict=False))
            parts = [named[what] if isinstance(what, str) else [what] for what, _ in template]
            runs = [kind for _, kind in template], [len(part) for part in parts]
            row = parts[0] if len(parts) == 1 else np.concatenate(parts).astype(np.int64)
            rows.append((np.asarray(row), runs))
        return rows

    def _filled(
        self,
        columns: Mapping[str, Sequence[np.ndarray]],
        layout: Layout,
        names: Iterable[str],
        length: int = 0,
    ) -> Batch:
        """Pad rows to arrays of one length."""
        lengths = [len(row) for row in columns["input_ids"]]
        if not layout.padding and len(set(lengths)) > 1:
            raise ValueError("padding must be True for texts of different lengths")
        t = max([length, *lengths])
        if layout.padding == "max_length":
            t = max(t, layout.limit)
        t = -(-t // layout.multiple) * layout.multiple
        pad_token_id = self.pad_token_id
        if pad_token_id is None and any(n < t for n in lengths):
            raise ValueError(
                "pad_token must be set for padding, for example to the end token: "
                "tokenizer.pad_token = tokenizer.eos_token"
            )
        fill = {"input_ids": pad_token_id or 0}
        batch = Batch()
        for name in names:
            batch[name] = np.full((len(lengths), t), fill.get(name, 0), np.int64)
            for i, n in enumerate(lengths):
                place = slice(t - n, t) if layout.padding_side == "left" else slice(n)
                # rows without a mask consist of real tokens
                batch[name][i, place] = columns[name][i] if name in columns else 1
        return batch


class ByteTokenizer(Tokenizer):
    """One id per byte, byte + 2, as in the enwik8 model of Reformer.

    Id 0 is padding, id 1 is unused. Every text can be encoded (as UTF-8), and every byte string
    round-trips exactly. No special tokens are added to a text, and the 258 ids cannot be extended.

    Parameters
    ----------
    model_max_length : int, optional
        Length that `truncation` cuts to.
    padding_side, truncation_side : "right" or "left"

    Examples
    --------
    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("a\N{LATIN SMALL LETTER E WITH ACUTE}")
    array([ 99, 197, 171])
    >>> tokenizer.decode(tokenizer.encode("To be"))
    'To be'
    >>> batch = tokenizer(["To be", "or"], padding=True)
    >>> batch["input_ids"]
    array([[ 86, 113,  34, 100, 103],
           [113, 116,   0,   0,   0]])
    >>> batch["attention_mask"]
    array([[1, 1, 1, 1, 1],
           [1, 1, 0, 0, 0]])
    """

    # offset of byte ids: the ids below it are special
    offset = 2
    pad_token_id = 0
    vocab_size = 256 + offset

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"ByteTokenizer(model_max_length={self.model_max_length})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("offset", "pad_token_id", "vocab_size"):
            raise AttributeError(
                f"{name} of a ByteTokenizer is {getattr(self, name)} and cannot be changed"
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("add_tokens", "add_special_tokens"):
            raise AttributeError(
                f"{name}: a ByteTokenizer cannot be extended, it has one id per byte; a "
                "ReformerTokenizer can"
            )
        raise self._no_attribute(name)

    def _ids(self, text: Any, name: str) -> np.ndarray:
        if isinstance(text, str):
            # surrogateescape decodes bytes that are not UTF-8 to lone surrogates, encoded back here
            text = utf8(text, name, errors="surrogateescape")
        elif not isinstance(text, (bytes, bytearray, memoryview)):
            raise TypeError(f"{name} must be str or bytes, got {type(text).__name__}")
        elif isinstance(text, memoryview):
            text = text.tobytes()  # works for any strides
        return np.frombuffer(text, np.uint8).astype(np.int64) + self.offset

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of ids (t,); special ids are skipped.

        Raises
        ------
        TypeError, ValueError
            The ids are not integers in [0, 258).

        Examples
        --------
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.decode_bytes(tokenizer.encode(b"\\xff\\x00"))
        b'\\xff\\x00'
        """
        ids = check_token_ids(one_row(ids), self.vocab_size)
        ids = ids[ids >= self.offset]
        return (ids - self.offset).astype(np.uint8).tobytes()

    @names_keywords
    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        """Decode ids (t,) to a text. Bytes that are not UTF-8 become U+FFFD: see `decode_bytes`.

        Special ids are skipped, whatever `skip_special_tokens` is.
        """
        flag("skip_special_tokens", skip_special_tokens, True)
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def utf8(text: str, name: str, errors: str = "strict") -> bytes:
    """Encode a text to UTF-8.

    Raises
    ------
    ValueError
        The text contains half of a surrogate pair, which is not a character.

    Examples
    --------
    >>> utf8("a" + chr(0xD800), "text")
    Traceback (most recent call last):
    ValueError: text must be valid Unicode, got the lone surrogate '\\ud800' at position 1
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be valid Unicode, got the lone surrogate {text[error.start]!r} at "
            f"position {error.start}"
        ) from None


def check_token_ids(ids: Any, vocab_size: int | None, name: str = "ids") -> np.ndarray:
    """Integers (t,) in [0, vocab_size), or in the range of int64 if that is None."""
    if isinstance(ids, np.ma.MaskedArray):
        raise TypeError(f"{name} must be integers, got a masked array: pass its filled() data")
    try:
        ids = np.asarray(ids)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name} must have one dimension, got rows of several lengths") from None
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"{name} must have shape (t,), got {ids.shape}")
    wrong = (ids < 0) | (ids >= (2**63 if vocab_size is None else vocab_size))
    if wrong.any():
        end = "2**63" if vocab_size is None else vocab_size
        raise ValueError(f"{name} must be in [0, {end}), got {ids[wrong][0]}")
    return ids.astype(np.int64)


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """`value`, if it is one of the known choices; 1 is not True."""
    for one in known:
        if value is one or (isinstance(value, str) and value == one):
            return one
    *others, last = map(repr, known)
    raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def _numpy_only(return_tensors: Any) -> None:
    if return_tensors not in (None, "np"):
        raise ValueError(
            f"return_tensors must be 'np' or None, got {return_tensors!r}; models here take NumPy "
            "arrays, and torch.from_numpy converts them to tensors"
        )


def _pairs(text: Any, text_pair: Any) -> list[tuple[Any, ...]]:
    """The texts of a call as a list of (text,) or (text, text_pair)."""
    if isinstance(text, Text):
        if text_pair is not None and not isinstance(text_pair, Text):
            raise TypeError(f"text_pair must be a single text, as text is, got {text_pair!r:.60}")
        return [(text,) if text_pair is None else (text, text_pair)]
    texts = _sequence("text", text)
    if text_pair is not None:
        second = [] if isinstance(text_pair, Text) else _sequence("text_pair", text_pair)
        if len(second) != len(texts) or isinstance(text_pair, Text):
            got = "one" if isinstance(text_pair, Text) else len(second)
            raise ValueError(f"text_pair must be {len(texts)} texts, as text is, got {got}")
        return list(zip(texts, second, strict=True))
    if any(isinstance(one, (tuple, list)) for one in texts):
        if not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in texts):
            raise ValueError("text must be texts, or pairs of texts, but not both")
        return [tuple(one) for one in texts]
    return [(one,) for one in texts]


def _sequence(name: str, texts: Any) -> list[Any]:
    """The items of a sequence of texts; dictionaries and sets are rejected as ambiguous."""
    if isinstance(texts, (Mapping, Set)) or not np.iterable(texts):
        raise TypeError(f"{name} must be a text or a sequence of texts, got {type(texts).__name__}")
    return list(texts)


def _kept(lengths: list[int], room: int, strategy: str) -> list[int]:
    """The numbers of tokens kept of one or two texts, at most `room` in total."""
    over = sum(lengths) - room
    if over <= 0:
        return lengths
    if strategy != "longest_first":
        cut = ("only_first", "only_second").index(strategy)
        if lengths[cut] <= over:
            raise ValueError(
                f"truncation must leave at least one token, but {strategy!r} removes {over} of "
                f"{lengths[cut]}"
            )
        return [n - over if i == cut else n for i, n in enumerate(lengths)]
    if len(lengths) == 1:
        return [room]
    short = min(lengths)
    long = max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return [short, long] if lengths[0] <= lengths[1] else [long, short]


def _columns(rows: Any) -> dict[str, list[np.ndarray]]:
    """Rows of ids by name, from any input that `Tokenizer.pad` accepts."""
    batches = [rows] if isinstance(rows, Mapping) else _listed("rows", rows)
    if not batches or not all(isinstance(batch, Mapping) for batch in batches):
        return {"input_ids": [check_token_ids(row, None, "rows") for row in batches]}
    names = list(batches[0])
    refuse_unknown(names, COLUMNS, "pad")
    if "input_ids" not in names or any(batch.keys() != batches[0].keys() for batch in batches):
        raise ValueError("rows must be dictionaries with the same keys, including 'input_ids'")
    columns = {
        name: [
            check_token_ids(row, None, name)
            for batch in batches
            for row in _rows_of(name, batch[name])
        ]
        for name in names
    }
    lengths = [len(row) for row in columns["input_ids"]]
    for name, values in columns.items():
        if [len(row) for row in values] != lengths:
            raise ValueError(f"{name} must have rows of the lengths of input_ids")
    return columns


def _rows_of(name: str, values: Any) -> list[Any]:
    """The rows of an array; a one-dimensional array is a single row."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return [values]
    rows = _listed(name, values)
    return [rows] if rows and not any(np.iterable(row) for row in rows) else rows


def _listed(name: str, rows: Any) -> list[Any]:
    if not np.iterable(rows) or isinstance(rows, (str, bytes, Set)):
        raise TypeError(f"{name} must be rows of ids, got {type(rows).__name__}")
    return list(rows)


def one_row(ids: Any) -> Any:
    """One-dimensional ids; a scalar is one id."""
    return [ids] if isinstance(ids, (int, np.integer)) else ids
