"""The byte tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import flag, names_keywords
from .checks import check_token_ids, one_row, utf8
from .tokenizer import Tokenizer

__all__ = ["ByteTokenizer"]


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
    pad_token_id = 0  # pyright: ignore
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

        Parameters
        ----------
        ids : (t,) integers, or one
            The ids.

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
        data: bytes = (ids - self.offset).astype(np.uint8).tobytes()
        return data

    @names_keywords
    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        """Decode ids (t,) to a text. Bytes that are not UTF-8 become U+FFFD: see `decode_bytes`.

        Parameters
        ----------
        ids : (t,) integers, or one
            The ids.
        skip_special_tokens : bool
            Without effect: special ids are always skipped.
        """
        flag("skip_special_tokens", skip_special_tokens, True)
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
