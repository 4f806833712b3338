"""Text files to token ids: reading, splitting off what is held out, encoding."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import number
from ..text.byte_tokenizer import ByteTokenizer
from ..text.tokenizer import Tokenizer

__all__ = ["TextSource", "count_bytes", "encode_text", "files_of", "read_parts", "read_split",
           "read_text", "read_texts", "read_tokens", "split_parts", "split_tokens",
           "texts_of"]  # fmt: skip

TextSource = str | os.PathLike[str]


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
    sources = _listed(sources)
    joined = b"\n".join(_read(sources))
    if not joined:
        raise ValueError(f"files must contain text, got none in {_names(sources)}")
    return joined


def read_texts(sources: TextSource | Iterable[TextSource], *, utf8: bool = False) -> list[bytes]:
    """The bytes of each text separately: `read_text` without joining; empty texts are omitted.

    Parameters
    ----------
    sources : path or iterable of paths
        As in `read_text`.
    utf8 : bool
        Refuse a text that is not UTF-8, which subword tokenizers cannot read, with ValueError.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "b.txt").write_text("two")
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one")
    ...     read_texts(folder)
    [b'one', b'two']
    """
    sources = _listed(sources)
    texts = [text for text in _read(sources, utf8=utf8) if text]
    if not texts:
        raise ValueError(f"files must contain text, got none in {_names(sources)}")
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
    sources : path or iterable of paths
        As in `read_tokens`.
    held_out : float
        Fraction in [0, 1) of each file, at its end, that is held out.
    whole_files : bool
        As in `read_tokens`, of the training parts.

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
    sources = _listed(sources)
    found = _read(sources, utf8=utf8, arrays=True)
    parts = [part for part in found if isinstance(part, np.ndarray) or part]
    if not any(map(len, parts)):
        raise ValueError(f"files must contain tokens, got none in {_names(sources)}")
    return sorted(parts, key=lambda part: isinstance(part, bytes))


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


def _listed(sources: TextSource | Iterable[TextSource]) -> list[TextSource]:
    return [sources] if isinstance(sources, (str, os.PathLike)) else [*sources]


def _names(sources: Sequence[TextSource]) -> str:
    return ", ".join(map(str, sources)) or "no files"


def _read(
    sources: Sequence[TextSource], *, utf8: bool = False, arrays: bool = False
) -> Iterator[Any]:
    """The bytes of every file; with `arrays`, each ``.npy`` file as a mapped array."""
    for source in sources:
        files = [(Path("-"), True)] if source == "-" else files_of(Path(source))
        for file, named in files:
            if arrays and file.suffix == ".npy":
                yield _map(file)
                continue
            text = sys.stdin.buffer.read() if source == "-" else file.read_bytes()
            if named or b"\0" not in text:
                yield _check_utf8(file, text) if utf8 else text


def _check_utf8(file: Path, text: bytes) -> bytes:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 for this tokenizer: {error}") from error
    return text


def _map(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file} must be an array of token ids: {error}") from error
    return _check_tokens(str(file), array)


def files_of(path: Path) -> Iterator[tuple[Path, bool]]:
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
        raise TypeError(
            f"{name} must be an array without a mask, got a masked array: pass {name}.compressed()"
        )
    tokens = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be a 1-d array of integers, got {tokens.dtype} of shape {tokens.shape}"
        )
    return tokens
