"""Rows of token ids: truncated, padded to one length, and put together as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from ..checks import did_you_mean, integer, refuse_unknown
from .checks import check_token_ids, one_of

__all__ = ["COLUMNS", "SIDES", "Batch", "Layout", "columns_of", "listed", "padded", "truncated"]

SIDES = ("right", "left")
PADDING = {False: None, True: "longest", "longest": "longest", "max_length": "max_length",
           "do_not_pad": None}  # fmt: skip
TRUNCATION = {False: None, True: "longest_first", "longest_first": "longest_first",
              "only_first": "only_first", "only_second": "only_second",
              "do_not_truncate": None}  # fmt: skip
COLUMNS = ("input_ids", "token_type_ids", "attention_mask")


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
    # the length to truncate or pad to, if there is one
    limit: int
    multiple: int
    padding_side: str
    truncation_side: str

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
    ) -> Layout:
        """Check the options of a call; `tokenizer` has the defaults."""
        fill = PADDING[one_of("padding", padding, PADDING)]
        cut = TRUNCATION[
            one_of("truncation", False if truncation is None else truncation, TRUNCATION)
        ]
        limit = tokenizer.model_max_length if max_length is None else max_length
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
                ("padding_side", padding_side, tokenizer.padding_side),
                ("truncation_side", truncation_side, tokenizer.truncation_side),
            )
        ]
        return cls(fill, cut, limit or 0, multiple, *sides)


def truncated(ids: list[np.ndarray], room: int, layout: Layout) -> list[np.ndarray]:
    """Truncate one or two texts to `room` tokens in total."""
    if not layout.truncation:
        return ids
    lengths = _kept([len(one) for one in ids], room, layout.truncation)
    left = layout.truncation_side == "left"
    return [one[len(one) - n :] if left else one[:n] for one, n in zip(ids, lengths, strict=True)]


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


def padded(
    columns: Mapping[str, Sequence[np.ndarray]],
    names: Iterable[str],
    layout: Layout,
    pad_token_id: int | None,
    length: int = 0,
) -> Batch:
    """Pad the rows of `columns` to the arrays `names` of one length, at least `length`."""
    lengths = [len(row) for row in columns["input_ids"]]
    if not layout.padding and len(set(lengths)) > 1:
        raise ValueError("padding must be True for texts of different lengths")
    t = max([length, *lengths])
    if layout.padding == "max_length":
        t = max(t, layout.limit)
    t = -(-t // layout.multiple) * layout.multiple
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


def columns_of(rows: Any) -> dict[str, list[np.ndarray]]:
    """Rows of ids by name, from any input that `Tokenizer.pad` accepts."""
    batches = [rows] if isinstance(rows, Mapping) else listed("rows", rows)
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
    rows = listed(name, values)
    return [rows] if rows and not any(np.iterable(row) for row in rows) else rows


def listed(name: str, rows: Any) -> list[Any]:
    if not np.iterable(rows) or isinstance(rows, (str, bytes, Set)):
        raise TypeError(f"{name} must be rows of ids, got {type(rows).__name__}")
    return list(rows)
