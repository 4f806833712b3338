"""Pairs of a text and its translation: files, token ids, and batches of similar length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checks import integer, names_keywords
from ..models.inputs import IGNORE
from ..text.byte_tokenizer import ByteTokenizer
from ..text.tokenizer import Tokenizer
from .data import Data
from .examples import padded, padded_ids
from .records import parse_json, read_utf8
from .texts import texts_of

__all__ = ["Pairs", "TextPair", "bytes_per_target", "encode_pairs", "encode_source",
           "end_token_of", "read_lines", "read_pairs"]  # fmt: skip

# pairs of a batch
BATCH = 16
# ByteTokenizer's id that stands for no byte and is not padding
BYTES_END = 1


class TextPair(NamedTuple):
    """A text, and what a model is to make of it, such as its translation."""

    source: str
    target: str


def read_pairs(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[TextPair]:
    """The pairs of texts in files, in order.

    Parameters
    ----------
    files : path or iterable of paths
        The end of a name determines how a file is read:

        - ``.tsv``: a source, a tab and a target in each line, without a header;
        - ``.jsonl``: an object with the strings "source" and "target" in each line;
        - any other, two files at a time: line i of the second is the target of line i of the first.

    Raises
    ------
    FileNotFoundError, OSError
        A path does not exist or cannot be read.
    ValueError
        A file has another form, or no pairs; names the file and the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "words.tsv")
    ...     _ = file.write_text("Haus\\thouse\\nBaum\\ttree\\n")
    ...     read_pairs(file)
    [TextPair(source='Haus', target='house'), TextPair(source='Baum', target='tree')]
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    pairs: list[TextPair] = []
    names = iter([os.fspath(file) for file in files])
    for name in names:
        reader = READERS.get(Path(name).suffix.lower())
        if reader is None:
            found = _aligned(name, next(names, None))
        else:
            found = [reader(f"{name}:{i}", line) for i, line in enumerate(read_lines(name), 1)]
        if not found:
            raise ValueError(f"{name}: must have at least one pair, got none")
        pairs += found
    if not pairs:
        raise ValueError("files must be at least one file, got none")
    return pairs


def read_lines(name: str) -> list[str]:
    """The lines of a text file, or of standard input ("-"); only a newline ends a line, so that
    files of any text stay aligned."""
    lines = read_utf8(name).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _aligned(source: str, target: str | None) -> list[TextPair]:
    if target is None or Path(target).suffix.lower() in READERS:
        raise ValueError(
            f"files must be .tsv, .jsonl, or two aligned files, got {source!r} without its target"
        )
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        short, long = (source, target) if len(sources) < len(targets) else (target, source)
        count, more = sorted((len(sources), len(targets)))
        raise ValueError(
            f"{short}:{count + 1}: must be a line, as {long} has {more} lines, got the end"
        )
    return [TextPair(*texts) for texts in zip(sources, targets, strict=True)]


def _tabbed(where: str, line: str) -> TextPair:
    texts = line.split("\t")
    if len(texts) != 2:
        raise ValueError(
            f"{where}: must be a source, a tab and a target, got {len(texts) - 1} tabs"
        )
    return TextPair(*texts)


def _json(where: str, line: str) -> TextPair:
    values = parse_json(where, line)
    if isinstance(values, dict):
        source, target = values.get("source"), values.get("target")
        if isinstance(source, str) and isinstance(target, str):
            return TextPair(source, target)
    raise ValueError(
        f"{where}: must be an object with the strings 'source' and 'target', got {line:.80}"
    )


READERS: dict[str, Callable[[str, str], TextPair]] = {".tsv": _tabbed, ".jsonl": _json}


# ---- token ids ----


def end_token_of(tokenizer: Tokenizer) -> int:
    """The token that ends each source and each target; id 1 of a `ByteTokenizer`.

    Raises
    ------
    ValueError
        The tokenizer has no end token.

    Examples
    --------
    >>> end_token_of(ByteTokenizer())
    1
    """
    if isinstance(tokenizer, ByteTokenizer):
        return BYTES_END
    end: int | None = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        raise ValueError(f"tokenizer must have an end token (eos_token), got {tokenizer!r}")
    return end


def encode_source(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids (t,) of a text and the end token, as models of pairs are trained on.

    Examples
    --------
    >>> encode_source("To", ByteTokenizer())
    array([ 86, 113,   1])
    """
    return np.append(tokenizer.encode(text, add_special_tokens=False), end_token_of(tokenizer))


def encode_pairs(
    pairs: Sequence[TextPair], tokenizer: Tokenizer
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids of the sources and of the targets, each followed by the end token.

    Examples
    --------
    >>> encode_pairs([TextPair("a", "b")], ByteTokenizer())
    ([array([99,  1], dtype=int32)], [array([100,   1], dtype=int32)])
    """
    sources, targets = (
        [encode_source(text, tokenizer).astype(np.int32) for text in side]
        for side in zip(*pairs, strict=True)
    )
    return sources, targets


def bytes_per_target(
    pairs: Sequence[TextPair],
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    length: int | None = None,
) -> float:
    """Bytes of text per token of the targets, of pairs of which neither side is longer than
    `length` tokens.

    Examples
    --------
    >>> pairs = [TextPair("a", "bcd"), TextPair("e", "f")]
    >>> bytes_per_target(pairs, *encode_pairs(pairs, ByteTokenizer()), length=2)
    0.5
    """
    texts, tokens = 0, 0
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        if length is None or max(len(source), len(target)) <= length:
            texts += len(pair.target.encode("utf-8"))
            tokens += len(target)
    return max(1, texts) / max(1, tokens)


class Pairs(Data):
    """Batches of pairs of similar length, as a function of (seed, step) alone.

    Parameters
    ----------
    sources, targets : lists of ndarray (n,)
        Token ids of any integer dtype, each with its end token, as `encode_pairs` gives them.
    batch : int, optional
        The most pairs of a batch: 16, or any number with `batch_tokens`.
    batch_tokens : int, optional
        The most tokens of either side of a batch, padding included.
    length : int, optional
        Pairs of which a side has more tokens are left out.
    order : {"random", "sequential"}
        Random: in each pass, pairs of one length meet anew, and batches come in a new order.
        Sequential: from the shortest to the longest.
    seed : int
        Seed of the random order.
    pad_token_id : int
        What sources are padded with on the right, where `attention_mask` is 0.
    bytes_per_token : float
        Bytes of text per token of the targets, for losses in bits per byte.

    Attributes
    ----------
    left_out : int
        The number of pairs longer than `length`.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, a text has no tokens, or all pairs are longer than `length`.

    Examples
    --------
    >>> sources, targets = [[5, 6, 1], [7, 1]], [[8, 1], [9, 4, 1]]
    >>> pairs = Pairs(sources, targets, batch=2, order="sequential")
    >>> for name, rows in pairs.batch(0).items():
    ...     print(name, rows.tolist())
    input_ids [[5, 6, 1], [7, 1, 0]]
    attention_mask [[1, 1, 1], [1, 1, 0]]
    labels [[8, 1, -100], [9, 4, 1]]
    """

    left_out: int
    pad_token_id: int
    batch_tokens: int | None
    _sources: list[np.ndarray]
    _targets: list[np.ndarray]
    _lengths: np.ndarray
    _starts: list[int]
    # the last pass, and the pairs of each of its batches
    _pass: tuple[int, list[np.ndarray]]

    @names_keywords
    def __init__(
        self,
        sources: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        *,
        batch: int | None = None,
        batch_tokens: int | None = None,
        length: int | None = None,
        order: str = "random",
        seed: int = 0,
        pad_token_id: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        sides = {"sources": list(sources), "targets": list(targets)}
        texts = {name: texts_of(name, side) if side else [] for name, side in sides.items()}
        count = len(texts["sources"])
        if len(texts["targets"]) != count:
            raise ValueError(
                f"targets must have {count} rows, as sources has, got {len(texts['targets'])}"
            )
        for name, side in texts.items():
            for i, ids in enumerate(side):
                if len(ids) == 0:
                    raise ValueError(f"{name}[{i}] must have at least 1 token, got 0")
        if not count:
            raise ValueError("sources must have at least one row, got none")
        lengths = np.array([max(map(len, pair)) for pair in zip(*texts.values(), strict=True)])
        longest = lengths.max() if length is None else integer("length", length, 1)
        kept = np.flatnonzero(lengths <= longest)
        if not len(kept):
            raise ValueError(
                f"length must be at least {lengths.min()}, that of the shortest pair, got {length}"
            )
        self._sources, self._targets = ([side[i] for i in kept] for side in texts.values())
        self._lengths = lengths[kept]
        self.left_out = count - len(kept)
        super().__init__(
            self._sources + self._targets, order=order, seed=seed, offset=0,
            bytes_per_token=bytes_per_token,
        )  # fmt: skip
        self.length = int(self._lengths.max())
        if batch is None:
            batch = BATCH if batch_tokens is None else len(self)
        self.batch_size, self.batch_tokens = integer("batch", batch, 1), batch_tokens
        if batch_tokens is not None and integer("batch_tokens", batch_tokens, 1) < self.length:
            raise ValueError(
                f"batch_tokens must be at least {self.length}, the tokens of the longest pair, got "
                f"{batch_tokens}"
            )
        self._starts = self._batch_starts()
        self.pad_token_id = integer("pad_token_id", pad_token_id, 0)
        self._pass = -1, []

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._sources)

    @property
    def num_batches(self) -> int:
        """The number of batches of a pass over all pairs."""
        return len(self._starts) + 1

    def describe(self) -> dict[str, int | str]:
        own: dict[str, int | str] = {"pairs": len(self), "pad_token_id": self.pad_token_id}
        if self.batch_tokens is not None:
            own["batch_tokens"] = self.batch_tokens
        return super().describe() | own

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The arguments of a model's loss at one step, int64; steps count from 0.

        "input_ids" and "attention_mask" (b, s) are the sources; "labels" (b, t) the targets, padded
        with -100.
        """
        number, place = divmod(step, self.num_batches)
        if self._pass[0] != number:
            self._pass = number, self._batches_of(number)
        rows = self._pass[1][place]
        sources = padded_ids([self._sources[i] for i in rows], self.pad_token_id)
        return sources | {"labels": padded([self._targets[i] for i in rows], IGNORE)}

    def _batches_of(self, number: int) -> list[np.ndarray]:
        """The numbers of the pairs of each batch of a pass."""
        if self.order == "sequential":
            return np.split(np.argsort(self._lengths, kind="stable"), self._starts)
        rng = np.random.default_rng((self.seed, number))
        drawn = rng.permutation(len(self))
        batches = np.split(drawn[np.argsort(self._lengths[drawn], kind="stable")], self._starts)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _batch_starts(self) -> list[int]:
        """Where the batches but for the first begin among the pairs, from the shortest to the
        longest: the same in every pass."""
        if self.batch_tokens is None:
            return [*range(self.batch_size, len(self), self.batch_size)]
        starts, begin = [], 0
        for i, longest in enumerate(np.sort(self._lengths).tolist()):
            pairs = i + 1 - begin
            if pairs > self.batch_size or pairs * longest > self.batch_tokens:
                starts.append(begin := i)
        return starts
