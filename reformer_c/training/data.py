"""Text to tokens, and tokens to the windows that a model trains on.

The data of a training step is a function of (seed, step) alone: a run resumed at step n sees
exactly the windows that it would have seen without interruption.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import NamedAttributes, integer, names_keywords, number, positive
from ..text.byte_tokenizer import ByteTokenizer
from ..text.tokenizer import Tokenizer

__all__ = [
    "Sequences",
    "TextSource",
    "Windows",
    "count_bytes",
    "encode_text",
    "read_parts",
    "read_split",
    "read_text",
    "read_texts",
    "read_tokens",
    "split_parts",
    "split_tokens",
]

TextSource = str | os.PathLike


def read_text(sources: TextSource | Iterable[TextSource]) -> bytes:
    """The concatenated bytes of text files, folders and standard input.

    Parameters
    ----------
    sources : path or iterable of paths
        A file is read whole. A folder contributes every text file below it, in sorted order,
        except hidden files and folders, and files that contain a zero byte. ``"-"`` is standard
        input.

    Returns
    -------
    bytes
        The texts, joined by a newline.

    Raises
    ------
    FileNotFoundError, OSError
        A path does not exist or cannot be read.
    ValueError
        There is no text.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "b.txt").write_text("two")
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one")
    ...     read_text(folder)
    b'one\\ntwo'
    """
    joined = b"\n".join(text for _, text in _iterate_texts(sources))
    if not joined:
        raise ValueError("files must contain text")
    return joined


def read_texts(sources: TextSource | Iterable[TextSource], *, utf8: bool = False) -> list[bytes]:
    """The bytes of each text separately: `read_text` without joining; empty texts are omitted.

    With `utf8`, a text that is not UTF-8 raises ValueError: subword tokenizers cannot read it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "b.txt").write_text("two")
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one")
    ...     read_texts(folder)
    [b'one', b'two']
    """
    texts = [
        _check_utf8(name, text) if utf8 else text for name, text in _iterate_texts(sources) if text
    ]
    if not texts:
        raise ValueError("files must contain text")
    return texts


def read_tokens(
    sources: TextSource | Iterable[TextSource], *, whole_files: bool = False
) -> list[np.ndarray]:
    """Token ids of text files, folders, standard input and ``.npy`` files.

    Parameters
    ----------
    sources : path or iterable of paths
        As in `read_text`; texts are encoded by `ByteTokenizer`. A ``.npy`` file contains token ids,
        (n,) of any integer dtype, and is memory-mapped.
    whole_files : bool
        Keep texts separate; otherwise they are joined by newlines.

    Returns
    -------
    list of ndarray (n,)
        The arrays of ``.npy`` files, followed by the texts, uint16.

    Raises
    ------
    FileNotFoundError, OSError
        A path does not exist or cannot be read.
    TypeError, ValueError
        A ``.npy`` file contains something else, or there are no tokens.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one")
    ...     _ = pathlib.Path(folder, "b.txt").write_text("two")
    ...     [len(ids) for ids in read_tokens(folder)]
    ...     [len(ids) for ids in read_tokens(folder, whole_files=True)]
    [7]
    [3, 3]
    """
    parts = read_parts(sources)
    return [encode_text(part) for part in (parts if whole_files else _join(parts))]


def read_split(
    sources: TextSource | Iterable[TextSource], held_out: float, *, whole_files: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids for training, and the held-out end of each file for evaluation.

    Parameters
    ----------
    sources, whole_files
        As in `read_tokens`; `whole_files` applies to the training parts.
    held_out : float
        Fraction in [0, 1) of each file, at its end, that is held out.

    Returns
    -------
    (list of ndarray, list of ndarray)
        The training parts, and the held-out part of each file separately.

    Raises
    ------
    FileNotFoundError, OSError, TypeError, ValueError
        As `read_tokens` and `split_tokens`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         _ = pathlib.Path(folder, f"{name}.txt").write_text(name * 5)
    ...     train, held_out = read_split(folder, 0.4)
    >>> [ByteTokenizer().decode(ids) for ids in train]
    ['aaa\\nbbb']
    >>> [ByteTokenizer().decode(ids) for ids in held_out]
    ['aa', 'bb']
    """
    parts = split_parts(read_parts(sources), held_out, whole_files=whole_files)
    train, ends = ([encode_text(part) for part in side] for side in parts)
    return train, ends


def read_parts(sources: TextSource | Iterable[TextSource], *, utf8: bool = False) -> list[Any]:
    """The input of `read_tokens` before tokenization: mapped arrays, then bytes, file by file.

    With `utf8`, a text that is not UTF-8 raises ValueError.

    Returns
    -------
    list of ndarray (n,) or bytes
    """
    arrays: list[Any] = []
    texts: list[Any] = []
    for name, text in _iterate_texts(sources, arrays=True):
        if isinstance(text, np.ndarray):
            arrays.append(_check_tokens(name, text))
        elif text:
            texts.append(_check_utf8(name, text) if utf8 else text)
    if not any(len(part) for part in (*arrays, *texts)):
        raise ValueError("files must contain tokens")
    return arrays + texts


def split_parts(
    parts: Sequence[Any],
    held_out: float,
    tokenizer: Tokenizer | None = None,
    *,
    whole_files: bool = False,
) -> tuple[list[Any], list[Any]]:
    """Split the result of `read_parts` as `read_split` does: training parts and held-out ends.

    Examples
    --------
    >>> split_parts([b"abcde", b"fg"], 0.4)
    ([b'abc\\nf'], [b'de', b'g'])
    """
    pairs = [_split(part, held_out, tokenizer) for part in parts]
    train = [part for part, _ in pairs]
    return train if whole_files else _join(train), [end for _, end in pairs if len(end)]


def _split(text: Any, held_out: float, tokenizer: Tokenizer | None) -> tuple[Any, Any]:
    """`split_tokens` of ids (n,) or bytes; text for subwords is split between characters."""
    if isinstance(text, np.ndarray):
        return split_tokens(text, held_out)
    border = len(split_tokens(np.frombuffer(text, np.uint8), held_out)[0])
    if not isinstance(tokenizer, ByteTokenizer | None):
        # UTF-8 continuation bytes
        while border < len(text) and text[border] & 0xC0 == 0x80:
            border -= 1
    return text[:border], text[border:]


def _join(parts: Sequence[Any]) -> list[Any]:
    """Arrays unchanged, and the texts joined by newlines; without texts, only the arrays."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    texts = [part for part in parts if not isinstance(part, np.ndarray) and part]
    return [*arrays, b"\n".join(texts)] if texts else arrays


def encode_text(text: bytes | np.ndarray, tokenizer: Tokenizer | None = None) -> np.ndarray:
    """The ids (n,) of a text, in the smallest dtype; an array of ids is returned unchanged.

    Examples
    --------
    >>> encode_text(b"one")
    array([113, 112, 103], dtype=uint16)
    """
    if isinstance(text, np.ndarray):
        return text
    if isinstance(tokenizer, ByteTokenizer | None):
        return ByteTokenizer().encode(text).astype(np.uint16)
    ids = tokenizer.encode(text.decode("utf-8"), add_special_tokens=False)
    return ids.astype(np.min_scalar_type(max(2**16 - 1, int(ids.max(initial=0)))))


def count_bytes(text: bytes | np.ndarray, tokenizer: Tokenizer) -> int:
    """The size in bytes of a text, or of the UTF-8 text of ids (n,).

    Examples
    --------
    >>> count_bytes(b"one", ByteTokenizer()), count_bytes(np.array([0, 99, 100]), ByteTokenizer())
    (3, 2)
    """
    if not isinstance(text, np.ndarray):
        return len(text)
    count = 0
    # in blocks: a mapped file may exceed the memory
    for start in range(0, len(text), 2**20):
        ids = text[start : start + 2**20]
        if isinstance(tokenizer, ByteTokenizer):
            offset = tokenizer.offset
            count += int(np.count_nonzero((ids >= offset) & (ids < offset + 256)))
        else:
            count += len(tokenizer.decode(ids).encode("utf-8"))
    return count


def _check_utf8(name: str, text: bytes) -> bytes:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8 for this tokenizer: {error}") from error
    return text


def _iterate_texts(
    sources: TextSource | Iterable[TextSource], arrays: bool = False
) -> Iterator[tuple[str, Any]]:
    """(name, bytes) of every file; with `arrays`, (name, mapped array) of each ``.npy`` file."""
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    for source in sources:
        if source == "-":
            yield "-", sys.stdin.buffer.read()
            continue
        for file, named in _files_of(Path(source)):
            if arrays and file.suffix == ".npy":
                yield str(file), _map(file)
            elif b"\0" not in (text := file.read_bytes()) or named:
                yield str(file), text


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file} must be an array of token ids: {error}") from error


def _files_of(path: Path) -> Iterator[tuple[Path, bool]]:
    """The files of a path, and whether they were named explicitly."""
    if not path.is_dir():
        yield path, True
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            if (file := Path(folder, name)).is_file():
                yield file, False


def split_tokens(tokens: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Split off the last fraction `held_out` of a text, for evaluation only.

    Parameters
    ----------
    tokens : ndarray (n,)
        Token ids of one text.
    held_out : float
        Fraction in [0, 1) that is held out.

    Returns
    -------
    (ndarray, ndarray)
        Views of the training part and of the held-out part.

    Examples
    --------
    >>> split_tokens(np.arange(5), held_out=0.2)
    (array([0, 1, 2, 3]), array([4]))
    """
    tokens = _check_tokens("tokens", tokens)
    held_out = number("held_out", held_out, 0.0, below=1.0)
    border = len(tokens) - round(len(tokens) * held_out)
    return tokens[:border], tokens[border:]


class Data(NamedAttributes):
    """Data as a function of (seed, step): common base of `Windows` and `Sequences`."""

    # tokens of the longest row, and rows of a batch
    length: int
    batch_size: int
    tokens: list[np.ndarray]
    order: str
    seed: int
    bytes_per_token: float

    def __init__(
        self,
        tokens: np.ndarray | Sequence[np.ndarray],
        *,
        order: str,
        seed: int,
        bytes_per_token: float,
    ) -> None:
        self.tokens = texts_of("tokens", tokens)
        if order not in ("random", "sequential"):
            raise ValueError(f"order must be 'random' or 'sequential', got {order!r}")
        self.order = order
        self.seed = integer("seed", seed, 0)
        self.bytes_per_token = positive("bytes_per_token", bytes_per_token)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({sum(map(len, self.tokens))} tokens, length={self.length}, "
            f"batch={self.batch_size}, order={self.order!r}, seed={self.seed})"
        )

    def describe(self) -> dict[str, int | str]:
        """What identifies the stream of windows, which must be the same when a run is resumed."""
        return {
            "kind": type(self).__name__,
            "tokens": sum(map(len, self.tokens)),
            "checksum": self._checksum,
            "dtype": ", ".join(sorted({str(part.dtype) for part in self.tokens})),
            "length": self.length,
            "batch": self.batch_size,
            "order": self.order,
            "seed": self.seed,
        }

    @cached_property
    def _checksum(self) -> int:
        checksum = 0
        for part in self.tokens:
            # in blocks: a mapped file may exceed the memory
            for start in range(0, len(part), 2**24):
                piece = np.ascontiguousarray(part[start : start + 2**24])
                checksum = zlib.crc32(piece.view(np.uint8).data, checksum)
            checksum = zlib.crc32(f"{len(part)};".encode(), checksum)
        return checksum


class Windows(Data):
    """Batches of fixed-length windows of a text, as a function of (seed, step) alone.

    Parameters
    ----------
    tokens : ndarray (n,), or a list of them
        Token ids of any integer dtype; memory maps are accepted. Windows do not cross from one
        array into the next, and at least one array must have `length` tokens.
    length : int
        Tokens per window.
    batch : int
        Windows per step.
    order : {"random", "sequential"}
        Random windows begin anywhere; sequential ones follow each other, and wrap around after the
        last full window.
    seed : int
        Seed of the random order.
    bytes_per_token : float
        Bytes of text per token, for losses in bits per byte; 1 for bytes.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or no text has `length` tokens.

    See Also
    --------
    Sequences : whole texts of their own lengths.

    Examples
    --------
    >>> windows = Windows(np.arange(10), length=4, batch=2, order="sequential")
    >>> windows.batch(0)
    array([[0, 1, 2, 3],
           [4, 5, 6, 7]])
    >>> len(windows)
    2
    """

    # valid starts of windows, and non-overlapping windows, within each array
    _starts: np.ndarray
    _full: np.ndarray

    @names_keywords
    def __init__(
        self,
        tokens: np.ndarray | Sequence[np.ndarray],
        length: int,
        *,
        batch: int = 1,
        order: str = "random",
        seed: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        super().__init__(tokens, order=order, seed=seed, bytes_per_token=bytes_per_token)
        self.length = integer("length", length, 1)
        self.batch_size = integer("batch", batch, 1)
        longest = max(map(len, self.tokens))
        if longest < self.length:
            raise ValueError(
                f"length must be at most {longest}, the tokens of the longest text, "
                f"got {self.length}"
            )
        self._starts = np.cumsum([max(0, len(part) - self.length + 1) for part in self.tokens])
        self._full = np.cumsum([len(part) // self.length for part in self.tokens])

    def __len__(self) -> int:
        """The number of full, non-overlapping windows."""
        return int(self._full[-1])

    def batch(self, step: int) -> np.ndarray:
        """The windows of one step, int64 (batch, length); steps count from 0."""
        if self.order == "sequential":
            first = step * self.batch_size
            places = (first + np.arange(self.batch_size)) % len(self)
            ends, stride = self._full, self.length
        else:
            rng = np.random.default_rng((self.seed, step))
            places = rng.integers(0, int(self._starts[-1]), self.batch_size)
            ends, stride = self._starts, 1
        rows = []
        for place in places:
            part = int(np.searchsorted(ends, place, side="right"))
            start = int(place - (ends[part - 1] if part else 0)) * stride
            rows.append(self.tokens[part][start : start + self.length])
        return np.stack(rows).astype(np.int64)


class Sequences(Data):
    """Whole texts, one per step, each of its own length, such as a book as one sequence.

    Parameters
    ----------
    tokens : list of ndarray (n,)
        Token ids of any integer dtype, at least 2 per text.
    length : int, optional
        Longer texts are cut to a window of that length: at a random position, or at the start with
        the sequential order. By default texts are not cut.
    order : {"random", "sequential"}
        Random: a new permutation of all texts in each pass.
    seed : int
        Seed of the random order and of the windows.
    bytes_per_token : float
        Bytes of text per token.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or a text has fewer than 2 tokens.

    Examples
    --------
    >>> texts = Sequences([np.arange(3), np.arange(5)], order="sequential")
    >>> [texts.batch(step).shape for step in range(3)]
    [(1, 3), (1, 5), (1, 3)]
    """

    batch_size = 1

    @names_keywords
    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        length: int | None = None,
        *,
        order: str = "random",
        seed: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        super().__init__(tokens, order=order, seed=seed, bytes_per_token=bytes_per_token)
        for i, part in enumerate(self.tokens):
            if len(part) < 2:
                raise ValueError(f"tokens[{i}] must have at least 2 tokens, got {len(part)}")
        longest = max(map(len, self.tokens))
        self.length = longest if length is None else min(longest, integer("length", length, 1))
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {length}")

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.tokens)

    def batch(self, step: int) -> np.ndarray:
        """The text of one step, int64 (1, n); steps count from 0."""
        epoch, place = divmod(step, len(self))
        start = 0
        if self.order == "random":
            place = np.random.default_rng((self.seed, epoch)).permutation(len(self))[place]
        part = self.tokens[place]
        if self.order == "random" and len(part) > self.length:
            rng = np.random.default_rng((self.seed, epoch, int(place)))
            start = int(rng.integers(0, len(part) - self.length + 1))
        return part[start : start + self.length].astype(np.int64)[None]


def texts_of(name: str, tokens: Any) -> list[np.ndarray]:
    """`tokens`, an array (n,) of ids or a list of such arrays, as a list of texts.

    Raises
    ------
    TypeError
        An array is not of integers (n,); the message starts with `name`.

    Examples
    --------
    >>> texts_of("tokens", [3, 4]), texts_of("tokens", [[3, 4], [5]])
    ([array([3, 4])], [array([3, 4]), array([5])])
    """
    if not isinstance(tokens, (list, tuple)) or not any(np.ndim(part) for part in tokens):
        return [_check_tokens(name, tokens)]
    return [_check_tokens(f"{name}[{i}]", part) for i, part in enumerate(tokens)]


def _check_tokens(name: str, tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    if isinstance(tokens, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, such as {name}.compressed()")
    tokens = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be a 1-d array of integers, got {tokens.dtype} of shape {tokens.shape}"
        )
    return tokens
