"""The interface of tokenizers: encoding texts to token ids, decoding, and batching."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..checks import NamedAttributes, did_you_mean, flag, integer, names_keywords, refuse_unknown
from .batches import COLUMNS, SIDES, Batch, Layout, columns_of, listed, padded, truncated
from .checks import Text, numpy_only, one_of, text_pairs

__all__ = ["FIRST", "SECOND", "Template", "Tokenizer"]

# the parts of a row, each with its token type: FIRST and SECOND text, and ids of special tokens
Template = list[tuple[int | str, int]]
FIRST, SECOND = "first", "second"
NAMES = ("text", "text_pair")

# the options of `Layout.of`
LAYOUT = ("padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side",
          "truncation_side")  # fmt: skip
# lengths from this value on mean "no limit" in files
UNLIMITED = 10**15


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
        """Length that `truncation` cuts to; None without a limit."""
        return self._model_max_length

    @model_max_length.setter
    def model_max_length(self, value: int | None) -> None:
        if value is not None:
            value = integer("model_max_length", value, 1)
        self._model_max_length = None if value is None or value >= UNLIMITED else value

    @property
    def padding_side(self) -> str:
        """The end of a row that is padded, "right" or "left"."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, value: str) -> None:
        self._padding_side = one_of("padding_side", value, SIDES)

    @property
    def truncation_side(self) -> str:
        """The end of a text that is truncated, "right" or "left"."""
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, value: str) -> None:
        self._truncation_side = one_of("truncation_side", value, SIDES)

    @property
    def model_input_names(self) -> list[str]:
        """The entries that a call returns."""
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
        """Decode each row of ids.

        Parameters
        ----------
        rows : iterable of (t,) integers
            The ids of each text.
        **options
            As in `decode`.
        """
        return [self.decode(row, **options) for row in listed("rows", rows)]

    def _template(self, pair: bool) -> Template:
        """The template of a row: texts and special tokens in order."""
        return [(FIRST, 0), (SECOND, 1)] if pair else [(FIRST, 0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """The number of special tokens that a call adds to a text, or to a pair of texts.

        Parameters
        ----------
        pair : bool
            Whether to count those of a pair.
        """
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
        >>> from reformer_c import ByteTokenizer
        >>> ByteTokenizer().encode("To", return_tensors="np")
        array([[ 86, 113]])
        """
        refuse_unknown(options, LAYOUT, f"{type(self).__name__}.encode")
        if not isinstance(text, Text):  # a sequence is a batch of several rows
            raise TypeError(f"text must be a single text, got {type(text).__name__}")
        ids = self(
            text, text_pair, add_special_tokens=add_special_tokens, return_tensors=return_tensors,
            return_token_type_ids=False, return_attention_mask=False, **options,
        ).input_ids  # fmt: skip
        return ids if return_tensors else ids[0]

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
        >>> from reformer_c import ByteTokenizer
        >>> batch = ByteTokenizer()("To be?", "Yes.", truncation="only_first", max_length=6,
        ...                         return_token_type_ids=True)
        >>> batch["input_ids"]
        array([[ 86, 113,  91, 103, 117,  48]])
        >>> batch["token_type_ids"]
        array([[0, 0, 1, 1, 1, 1]])
        """
        numpy_only(return_tensors)
        names = self._model_input_names
        types = flag("return_token_type_ids", return_token_type_ids, "token_type_ids" in names)
        mask = flag("return_attention_mask", return_attention_mask, "attention_mask" in names)
        layout = Layout.of(
            self, padding, truncation, max_length, pad_to_multiple_of, padding_side, truncation_side
        )
        rows = self._rows(text, text_pair, add_special_tokens, layout)
        columns = {"input_ids": [ids for ids, _ in rows]}
        if types:
            columns["token_type_ids"] = [np.repeat(*runs) for _, runs in rows]
        return padded(columns, [*columns, *["attention_mask"] * mask], layout, self.pad_token_id)

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
        >>> from reformer_c import ByteTokenizer
        >>> ByteTokenizer().pad([[5, 6], [7]], padding_side="left")["input_ids"]
        array([[5, 6],
               [0, 7]])
        """
        numpy_only(return_tensors)
        layout = Layout.of(self, padding, False, max_length, pad_to_multiple_of, padding_side)
        integer("length", length, 0)
        columns = columns_of(rows)
        mask = flag("return_attention_mask", return_attention_mask, True)
        names = [name for name in columns if name != "attention_mask"]
        names += ["attention_mask"] * mask
        return padded(columns, names, layout, self.pad_token_id, length)

    def _rows(
        self, text: Any, text_pair: Any, add_special_tokens: bool, layout: Layout
    ) -> list[tuple[np.ndarray, tuple[list[int], list[int]]]]:
        """For each text or pair: its ids, and runs of equal token type as (types, lengths)."""
        special = flag("add_special_tokens", add_special_tokens, True)
        pairs = text_pairs(text, text_pair)
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
            ids = truncated(ids, room, layout)
            named: dict[str, Any] = dict(zip((FIRST, SECOND), ids, strict=False))
            parts = [named[what] if isinstance(what, str) else [what] for what, _ in template]
            runs = [kind for _, kind in template], [len(part) for part in parts]
            row = parts[0] if len(parts) == 1 else np.concatenate(parts).astype(np.int64)
            rows.append((np.asarray(row), runs))
        return rows
