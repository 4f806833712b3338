"""Checks of texts, of token ids and of named choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

__all__ = ["Text", "check_token_ids", "numpy_only", "one_of", "one_row", "text_pairs", "utf8"]

Text = str | bytes | bytearray | memoryview


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
    checked: np.ndarray = ids.astype(np.int64)
    return checked


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """`value`, if it is one of the known choices; 1 is not True."""
    for one in known:
        if value is one or (isinstance(value, str) and value == one):
            return one
    *others, last = map(repr, known)
    raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def numpy_only(return_tensors: Any) -> None:
    if return_tensors not in (None, "np"):
        raise ValueError(
            f"return_tensors must be 'np' or None, got {return_tensors!r}; models here take NumPy "
            "arrays, and torch.from_numpy converts them to tensors"
        )


def text_pairs(text: Any, text_pair: Any) -> list[tuple[Any, ...]]:
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


def one_row(ids: Any) -> Any:
    """One-dimensional ids; a scalar is one id."""
    return [ids] if isinstance(ids, (int, np.integer)) else ids
