"""Examples, rows of token ids with their targets, to the batches that a model trains on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..checks import NamedAttributes, integer, names_keywords

__all__ = ["Example", "Examples", "Progress", "batches_of", "no_progress", "padded", "padded_ids",
           "split_examples"]  # fmt: skip

# tokens of a batch in evaluation
BATCH_TOKENS = 2**14
# what an evaluation calls with what is done and with the total, first before any work
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class Example(NamedTuple):
    """The token ids (t,) of one row, its targets, which are arguments of a loss, without the batch,
    and whether its text has more tokens."""

    ids: np.ndarray
    targets: Mapping[str, Any]
    is_cut: bool = False


class Examples(NamedAttributes):
    """Batches of examples, padded on the right, as a function of (seed, step) alone.

    Parameters
    ----------
    examples : sequence of Example
    batch : int
        Examples per step.
    order : {"random", "sequential"}
        Random: a new permutation of all examples in each pass.
    seed : int
        Seed of the random order.
    pad_token_id : int
        Id that pads the shorter rows of a batch.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or there are no examples.

    Examples
    --------
    >>> rows = [Example(np.array([5, 6]), {"labels": 1}), Example(np.array([7]), {"labels": 0})]
    >>> for name, value in Examples(rows, batch=2, order="sequential").batch(0).items():
    ...     print(name, value.tolist())
    input_ids [[5, 6], [7, 0]]
    attention_mask [[1, 1], [1, 0]]
    labels [1, 0]
    """

    examples: list[Example]
    batch_size: int
    order: str
    seed: int
    pad_token_id: int
    # tokens of the longest row
    length: int
    # losses per byte are those of language models
    bytes_per_token = None
    _drawn: tuple[int, np.ndarray] | None

    @names_keywords
    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch: int = 1,
        order: str = "random",
        seed: int = 0,
        pad_token_id: int = 0,
    ) -> None:
        self.examples = list(examples)
        if not self.examples:
            raise ValueError("examples must have at least one, got none")
        if order not in ("random", "sequential"):
            raise ValueError(f"order must be 'random' or 'sequential', got {order!r}")
        self.batch_size = integer("batch", batch, 1)
        self.order = order
        self.seed = integer("seed", seed, 0)
        self.pad_token_id = integer("pad_token_id", pad_token_id, 0)
        self.length = max(len(example.ids) for example in self.examples)
        self._drawn = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def __repr__(self) -> str:
        return (
            f"Examples({len(self)} rows, length={self.length}, batch={self.batch_size}, "
            f"order={self.order!r}, seed={self.seed})"
        )

    def describe(self) -> dict[str, int | str]:
        """What identifies the stream of batches, which must be the same when a run is resumed."""
        return {
            "kind": type(self).__name__,
            "examples": len(self),
            "checksum": self._checksum,
            "batch": self.batch_size,
            "order": self.order,
            "seed": self.seed,
        }

    @cached_property
    def _checksum(self) -> int:
        checksum = 0
        for ids, targets, _ in self.examples:
            checksum = zlib.crc32(np.asarray(ids, np.int64).tobytes(), checksum)
            targets = {name: np.asarray(value).tolist() for name, value in targets.items()}
            checksum = zlib.crc32(f"{len(ids)} {targets}".encode(), checksum)
        return checksum

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The arguments of ``loss_and_gradients`` for one step; steps count from 0."""
        first = step * self.batch_size
        rows = [self._example(i) for i in range(first, first + self.batch_size)]
        targets = {
            name: np.array([example.targets[name] for example in rows]) for name in rows[0].targets
        }
        return padded_ids([example.ids for example in rows], self.pad_token_id) | targets

    def _example(self, number: int) -> Example:
        """Example `number` of the endless stream of passes."""
        epoch, place = divmod(number, len(self))
        if self.order == "random":
            if self._drawn is None or self._drawn[0] != epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self._drawn = epoch, rng.permutation(len(self))
            place = int(self._drawn[1][place])
        return self.examples[place]


def padded_ids(rows: Sequence[np.ndarray], pad_token_id: int) -> dict[str, np.ndarray]:
    """Rows of ids (t_i,) as "input_ids" and "attention_mask" (b, t), padded on the right.

    Examples
    --------
    >>> padded_ids([np.array([5]), np.array([6, 7])], 0)["input_ids"]
    array([[5, 0],
           [6, 7]])
    """
    mask = padded([np.ones(len(row), np.int64) for row in rows], 0)
    return {"input_ids": padded(rows, pad_token_id), "attention_mask": mask}


def padded(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Rows of integers (t_i,) as int64 (b, t), padded on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for to, row in zip(out, rows, strict=True):
        to[: len(row)] = row
    return out


def batches_of(
    rows: Sequence[np.ndarray], tokens: int | None = None, *, progress: Progress = no_progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows in batches of at most `tokens` for evaluation: their indices, and their ids (b, t).

    Rows of a batch have one length. Padding takes part in hashing, so that predictions for a text
    would depend on the texts that it is evaluated with.

    Examples
    --------
    >>> rows = [np.array([5]), np.array([6, 7]), np.array([8])]
    >>> [(index.tolist(), ids.tolist()) for index, ids in batches_of(rows)]
    [([0, 2], [[5], [8]]), ([1], [[6, 7]])]
    """
    lengths, done = np.array([len(row) for row in rows], np.int64), 0
    progress(0, len(rows))
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        count = max(1, (tokens or BATCH_TOKENS) // int(length))
        for start in range(0, len(same), count):
            index = same[start : start + count]
            yield index, np.stack([rows[i] for i in index])
            done += len(index)
            progress(done, len(rows))


def split_examples(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples to train on, and of the share `held_out`, drawn at random.

    Files of examples are often sorted by class, so that their ends would not be like the rest.

    Examples
    --------
    >>> train, held = split_examples(10, 0.2, seed=0)
    >>> len(train), len(held)
    (8, 2)
    """
    border = count - round(count * held_out)
    drawn = np.random.default_rng((seed, count)).permutation(count)
    return np.sort(drawn[:border]), np.sort(drawn[border:])
