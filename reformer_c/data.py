"""Text to tokens, and tokens to the windows that a model trains on.

What a training step sees is a function of (seed, step) alone: a run that is resumed at step n goes
on with exactly the windows that it would have seen.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["TextSource", "Windows", "read_text", "split_tokens"]

TextSource = str | os.PathLike


def read_text(sources: TextSource | Iterable[TextSource]) -> bytes:
    """The bytes of text files, folders and standard input, one after the other.

    Parameters
    ----------
    sources : path or iterable of paths
        A file is taken whole. A folder gives every text file below it, in sorted order: hidden
        files and folders, and files that contain a zero byte, are left out. ``"-"`` is standard
        input.

    Returns
    -------
    bytes
        The texts, joined by a newline.

    Raises
    ------
    FileNotFoundError, OSError
        A path that does not exist or cannot be read.
    ValueError
        There is no text at all.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "b.txt").write_text("two")
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one")
    ...     read_text(folder)
    b'one\\ntwo'
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    texts = [text for source in sources for text in _texts_of(source)]
    joined = b"\n".join(texts)
    if not joined:
        raise ValueError("files: there is no text in them")
    return joined


def _texts_of(source: TextSource) -> list[bytes]:
    if source == "-":
        return [sys.stdin.buffer.read()]
    path = Path(source)
    if not path.is_dir():
        return [path.read_bytes()]
    texts = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            file = Path(folder, name)
            if file.is_file() and b"\0" not in (text := file.read_bytes()):
                texts.append(text)
    return texts


def split_tokens(tokens: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut the last share `held_out` of a text off, to be evaluated on and never trained on.

    Parameters
    ----------
    tokens : ndarray (n,)
        Token ids of one text.
    held_out : float
        Share in [0, 1) that is held out.

    Returns
    -------
    (ndarray, ndarray)
        Views of the training and of the held-out part.

    Examples
    --------
    >>> split_tokens(np.arange(5), held_out=0.2)
    (array([0, 1, 2, 3]), array([4]))
    """
    tokens = _check_tokens("tokens", tokens)
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"held_out: expected a share in [0, 1), got {held_out!r}")
    border = len(tokens) - round(len(tokens) * held_out)
    return tokens[:border], tokens[border:]


class Windows:
    """Batches of windows of one length out of a text, a function of (seed, step) alone.

    Parameters
    ----------
    tokens : ndarray (n,)
        Token ids of any integer dtype, at least `length` of them. A memory map does as well.
    length : int
        Tokens of a window.
    batch : int
        Windows of a step.
    order : {"random", "sequential"}
        Random windows begin anywhere; sequential ones follow each other, and after the last full
        window come round to the first.
    seed : int
        Of the random order.
    bytes_per_token : float
        How many bytes of text a token stands for, for losses in bits per byte; 1 for bytes.

    Raises
    ------
    TypeError, ValueError
        Name the argument and say what was expected.

    Examples
    --------
    >>> windows = Windows(np.arange(10), length=4, batch=2, order="sequential")
    >>> windows.batch(0)
    array([[0, 1, 2, 3],
           [4, 5, 6, 7]])
    >>> len(windows)
    2
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        *,
        batch: int = 1,
        order: str = "random",
        seed: int = 0,
        bytes_per_token: float = 1.0,
    ) -> None:
        self.tokens = _check_tokens("tokens", tokens)
        self.length = _positive("length", length)
        self.batch_size = _positive("batch", batch)
        if order not in ("random", "sequential"):
            raise ValueError(f"order: expected 'random' or 'sequential', got {order!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed: expected a whole number >= 0, got {seed!r}")
        if not bytes_per_token > 0:
            raise ValueError(f"bytes_per_token: expected a number > 0, got {bytes_per_token!r}")
        if len(self.tokens) < self.length:
            raise ValueError(
                f"length: a window of {self.length} tokens does not fit into a text of "
                f"{len(self.tokens)}"
            )
        self.order = order
        self.seed = int(seed)
        self.bytes_per_token = float(bytes_per_token)

    def __repr__(self) -> str:
        return (
            f"Windows({len(self.tokens)} tokens, length={self.length}, batch={self.batch_size}, "
            f"order={self.order!r}, seed={self.seed})"
        )

    def __len__(self) -> int:
        """How many full windows there are, side by side."""
        return len(self.tokens) // self.length

    def batch(self, step: int) -> np.ndarray:
        """The windows of one step, int64 (batch, length); steps count from 0."""
        if self.order == "sequential":
            first = step * self.batch_size
            starts = [(first + row) % len(self) * self.length for row in range(self.batch_size)]
        else:
            rng = np.random.default_rng((self.seed, step))
            starts = rng.integers(0, len(self.tokens) - self.length + 1, self.batch_size)
        rows = [self.tokens[start : start + self.length] for start in starts]
        return np.stack(rows).astype(np.int64)

    def describe(self) -> dict[str, int | str]:
        """What tells one stream of windows from another: a resumed run must find the same."""
        return {
            "tokens": len(self.tokens),
            "checksum": zlib.crc32(np.ascontiguousarray(self.tokens)),
            "dtype": str(self.tokens.dtype),
            "length": self.length,
            "batch": self.batch_size,
            "order": self.order,
            "seed": self.seed,
        }


def _check_tokens(name: str, tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    tokens = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: expected a 1-d array of integers, got {tokens.dtype} of shape {tokens.shape}"
        )
    return tokens


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
    return int(value)
