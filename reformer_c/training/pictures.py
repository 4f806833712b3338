"""Pictures as sequences of bytes in raster order: reading, splitting, bits per dim, writing.

A picture (height, width, channels) is one sequence of height * width * channels bytes: row by row,
and the channels of a pixel next to each other. A byte is its own token id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import number, requires_extra
from .texts import TextSource, files_of

__all__ = ["bits_per_dim", "read_pictures", "split_pictures", "write_pictures"]

# Pillow's modes of one and of three channels of 8 bits
MODES = {1: "L", 3: "RGB"}
# its modes of other numbers, which it would clip
DEEP = ("I", "F")
# pixels between two pictures in a file
GAP = 2


def read_pictures(
    sources: TextSource | Iterable[TextSource],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
) -> list[np.ndarray]:
    """Pictures of one size: files of any format that Pillow reads, folders, and ``.npy`` files.

    Parameters
    ----------
    sources : path or iterable of paths
        A folder contributes every file below it, in sorted order, except hidden files and folders.
        A ``.npy`` file contains pictures (n, height, width, channels), or (n, height, width) if
        `channels` is 1, uint8; it is memory-mapped.
    channels : {3, 1}
        Picture files are converted to colours (red, green, blue) or to grey. Transparency is
        ignored.
    size : (int, int), optional
        Height and width that every picture must have; by default, those of the first.

    Returns
    -------
    list of ndarray (height, width, channels)
        uint8. ``[picture.ravel() for picture in pictures]`` are the sequences for `Windows`.

    Raises
    ------
    FileNotFoundError, OSError
        A path does not exist or cannot be read.
    TypeError, ValueError
        There are no pictures; or a file, which is named, is not a picture, has another size, or has
        more than 8 bits per channel.
    ImportError
        Pillow is not installed (extra ``image``).

    Examples
    --------
    >>> import tempfile
    >>> from reformer_c.training.data import Windows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/pictures.npy", np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
    ...     pictures = read_pictures(folder)
    >>> sequences = [picture.ravel() for picture in pictures]
    >>> Windows(sequences, length=12, order="sequential").batch(1)
    array([[12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]])
    """
    if channels not in MODES:
        raise ValueError(f"channels must be 3 or 1, got {channels!r}")
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    pictures: list[np.ndarray] = []
    first = ""
    for file in (file for source in sources for file, _ in files_of(Path(source))):
        for picture in _read(file, channels):
            height, width = picture.shape[:2]
            if size is None:
                size, first = (height, width), f", as {file}"
            if (height, width) != size:
                raise ValueError(
                    f"{file} must have {size[1]} x {size[0]} pixels{first}, got {width} x {height}"
                )
            pictures.append(picture)
    if not pictures:
        raise ValueError(f"{', '.join(map(str, sources))} must contain pictures, got none")
    return pictures


def _read(file: Path, channels: int) -> Iterator[np.ndarray]:
    """The pictures (height, width, channels) of a file."""
    if file.suffix == ".npy":
        return iter(_map(file, channels))
    return iter([_decode(file, channels)])


def _map(file: Path, channels: int) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{file} must be an array of pictures: {error}") from error
    if array.ndim == 3 and channels == 1:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != channels:
        raise TypeError(
            f"{file} must be uint8 pictures (n, height, width, {channels}), got {array.dtype} of "
            f"shape {array.shape}"
        )
    return array


def _decode(file: Path, channels: int) -> np.ndarray:
    image = _pillow()
    try:
        with image.open(file) as picture:
            mode, shape = picture.mode, (picture.height, picture.width, channels)
            if not mode.startswith(DEEP):
                return np.asarray(picture.convert(MODES[channels])).reshape(shape)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # the decoders of damaged files raise errors of many types
        raise ValueError(f"{file} must be a picture: {error}") from error
    raise ValueError(f"{file} must have 8 bits per channel, got Pillow's mode {mode!r}")


def split_pictures(
    pictures: Sequence[np.ndarray], held_out: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Split off a fraction `held_out` of the pictures, for evaluation only.

    They are evenly spaced, so that folders sorted by subject are represented in both parts.

    Examples
    --------
    >>> split_pictures(["a", "b", "c", "d", "e", "f"], 0.34)
    (['a', 'c', 'd', 'f'], ['b', 'e'])
    """
    n = len(pictures)
    count = round(n * number("held_out", held_out, 0.0, below=1.0))
    # the middle of each of `count` equal parts
    chosen = {(2 * i + 1) * n // (2 * count) for i in range(count)}
    train = [picture for i, picture in enumerate(pictures) if i not in chosen]
    return train, [pictures[i] for i in sorted(chosen)]


def bits_per_dim(bits_per_byte: float, dims: int) -> float:
    """Mean bits of the `dims` values of a picture, from those of all values but the first.

    A language model does not predict the first value, which costs 8 bits.

    Examples
    --------
    >>> bits_per_dim(3.0, 12_288)
    3.00040690...
    """
    return (bits_per_byte * (dims - 1) + 8.0) / dims


def write_pictures(file: str | os.PathLike[str], rows: Sequence[Sequence[np.ndarray]]) -> None:
    """Write pictures (height, width, channels) of one size to an image file, in rows side by side.

    Raises
    ------
    OSError
        The file cannot be written.
    ImportError
        Pillow is not installed (extra ``image``).
    """
    edges = ((0, GAP), (0, GAP), (0, 0))
    lines = [
        np.concatenate([np.pad(p, edges, constant_values=255) for p in row], axis=1) for row in rows
    ]
    whole = np.concatenate(lines)[:-GAP, :-GAP]
    # Pillow's grey pictures have two axes
    _pillow().fromarray(whole[..., 0] if whole.shape[2] == 1 else whole).save(file)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise requires_extra("a picture", "Pillow", "image") from error
    return Image
