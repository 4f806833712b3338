"""Text to ids and back, and texts to batches; here, a byte at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .checks import integer

__all__ = ["ByteTokenizer", "Tokenizer"]

Text = str | bytes | bytearray | memoryview


class Tokenizer(ABC):
    """Text to ids and back, and texts to batches; how one text is encoded, a subclass says."""

    pad_token_id: int | None

    def __init__(self, model_max_length: int | None = None) -> None:
        if model_max_length is not None:
            model_max_length = integer("model_max_length", model_max_length, 1)
        self.model_max_length = model_max_length

    @abstractmethod
    def encode(self, text: Text) -> np.ndarray:
        """The ids (t,), int64, of one text."""

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """The text of ids (t,)."""

    def batch_decode(self, rows: Iterable[Any], **options: Any) -> list[str]:
        """The text of each row of ids; options are those of `decode`."""
        return [self.decode(row, **options) for row in rows]

    def pad(
        self,
        rows: Sequence[Any],
        *,
        padding_side: str = "right",
        pad_to_multiple_of: int = 1,
        length: int = 0,
    ) -> dict[str, np.ndarray]:
        """Rows of ids of several lengths as one array.

        Parameters
        ----------
        rows : sequence of (t_i,) integers
        padding_side : "right" or "left"
        pad_to_multiple_of : int
        length : int
            What rows are padded to at least.

        Returns
        -------
        dict
            "input_ids" (b, t) and "attention_mask" (b, t), 1 for a real token; int64.

        Examples
        --------
        >>> ByteTokenizer().pad([[5, 6], [7]], padding_side="left")["input_ids"]
        array([[5, 6],
               [0, 7]])
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {padding_side!r}")
        integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        rows = [np.asarray(row, np.int64) for row in rows]
        if any(row.ndim != 1 for row in rows):
            raise ValueError("rows: expected rows of ids, one dimension each")
        longest = max((len(row) for row in rows), default=0)
        longest = max(longest, length)
        t = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        pad_token_id = self.pad_token_id
        if pad_token_id is None:
            if any(len(row) < t for row in rows):
                raise ValueError(
                    "pad_token: there is none to pad with; the end of a text may serve: "
                    "tokenizer.pad_token = tokenizer.eos_token"
                )
            pad_token_id = 0
        ids = np.full((len(rows), t), pad_token_id, np.int64)
        mask = np.zeros((len(rows), t), np.int64)
        for i, row in enumerate(rows):
            place = slice(t - len(row), t) if padding_side == "left" else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(
        self,
        text: Text | Sequence[Text],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str = "right",
        return_tensors: str = "np",
    ) -> dict[str, np.ndarray]:
        """Texts as a batch that a model takes: ``model(**tokenizer(texts))``.

        Parameters
        ----------
        text : str, bytes, or a sequence of them
            One text is a batch of one.
        padding : bool, "longest" or "max_length"
            True and "longest" pad to the longest, "max_length" to that length; False takes texts
            of one length only.
        truncation : bool
            Cut to `max_length`, or else to ``model_max_length``.
        max_length : int, optional
        padding_side : "right" or "left"
        return_tensors : "np"
            As in transformers, whose other kinds of arrays there are not.

        Returns
        -------
        dict
            "input_ids" (b, t) and "attention_mask" (b, t), int64.

        Raises
        ------
        ValueError
            The texts differ in length and `padding` is False, or there is no length to cut to.
        """
        if return_tensors != "np":
            raise ValueError(f"return_tensors: expected 'np', got {return_tensors!r}")
        if padding not in (True, False, "longest", "max_length"):
            raise ValueError(
                f"padding: expected True, False, 'longest' or 'max_length', got {padding!r}"
            )
        texts = [text] if isinstance(text, (str, bytes, bytearray, memoryview)) else text
        rows = [self.encode(one) for one in texts]
        to_length = padding == "max_length"
        limit = self.model_max_length if max_length is None else max_length
        if truncation or to_length:
            if limit is None:
                name = "truncation" if truncation else "padding"
                raise ValueError(f"{name}: needs max_length, or a model_max_length")
            integer("max_length", limit, 1)
            rows = [row[:limit] if truncation else row for row in rows]
        elif max_length is not None:
            raise ValueError("max_length: needs truncation=True or padding='max_length'")
        if not padding and len({len(row) for row in rows}) > 1:
            raise ValueError("padding: expected True for texts of several lengths")
        return self.pad(rows, padding_side=padding_side, length=limit if to_length and limit else 0)


class ByteTokenizer(Tokenizer):
    """One id for each byte, as the enwik8 model of Reformer has them: byte + 2.

    Id 0 pads, and id 1 is unused. Every text has ids, in UTF-8, and every byte string comes back
    as it was.

    Parameters
    ----------
    model_max_length : int, optional
        Length that `truncation` cuts to.

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

    # what every byte is moved by: the ids below are special
    offset = 2
    pad_token_id = 0
    vocab_size = 256 + offset

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"ByteTokenizer(model_max_length={self.model_max_length})"

    def encode(self, text: Text) -> np.ndarray:
        """The ids (t,), int64, of a text or of bytes.

        Raises
        ------
        TypeError
            It is neither.
        """
        if isinstance(text, str):
            # a lone surrogate, as surrogateescape makes of a bad byte, is no text in UTF-8
            text = text.encode("utf-8", errors="surrogateescape")
        elif not isinstance(text, (bytes, bytearray, memoryview)):
            raise TypeError(f"text: expected str or bytes, got {type(text).__name__}")
        return np.frombuffer(text, np.uint8).astype(np.int64) + self.offset

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of ids (t,); special ids have none.

        Raises
        ------
        TypeError, ValueError
            They are not integers in [0, 258).

        Examples
        --------
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.decode_bytes(tokenizer.encode(b"\\xff\\x00"))
        b'\\xff\\x00'
        """
        ids = check_token_ids(ids, self.vocab_size)
        ids = ids[ids >= self.offset]
        return (ids - self.offset).astype(np.uint8).tobytes()

    def decode(self, ids: Any) -> str:
        """The text of ids (t,). Bytes that are not UTF-8 show as U+FFFD: see `decode_bytes`."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def check_token_ids(ids: Any, vocab_size: int) -> np.ndarray:
    """Integers (t,) in [0, vocab_size)."""
    ids = np.asarray(ids)
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"ids: expected shape (t,), got {ids.shape}")
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        raise ValueError(f"ids: expected ids in [0, {vocab_size}), got {ids[wrong][0]}")
    return ids.astype(np.int64)
