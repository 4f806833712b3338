"""Model files: config.json and model.safetensors, written atomically.

Also reads the older `pytorch_model.bin`, and repositories of the Hugging Face hub.

This module knows nothing about models: it maps names to arrays.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..checks import requires_extra
from .atomic import finish_checkpoint
from .pickled import iterate_torch_file

__all__ = [
    "load_into",
    "local_folder",
    "read_folder",
    "read_safetensors",
    "save_folder",
    "write_atomically",
    "write_safetensors",
]

# weight files in order of preference; NAME.index.json lists the shards of NAME
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
# safetensors' names of the number types that NumPy has, and bfloat16
READABLE = {"BOOL", "BF16", "C64"} | {f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)}
READABLE |= {"F16", "F32", "F64"}
# name parts added by PyTorch's data parallelism and its compiler
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# a name on the Hugging Face hub: owner/model, or model
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


# ---- atomic writes ----


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then rename the result to `path`.

    A concurrent reader, or one after a crash, finds either the old file or the new one, complete.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "note.txt")
    ...     write_atomically(file, lambda part: part.write_text("whole"))
    ...     file.read_text(), os.listdir(folder)
    ('whole', ['note.txt'])
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", os.fspath(path.parent))
    part = _temporary_name(path)
    try:
        write(part)
        _sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def save_folder(folder: str | os.PathLike[str], files: Mapping[str, Callable[[Path], Any]]) -> None:
    """Write `files`, {name: function that writes a path}, into a folder that may be new.

    All are written before the first is renamed: a full disk leaves the folder unchanged. A new
    folder appears with all of them at once.
    """
    folder = as_path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder: {os.fspath(folder)!r} is a file")
    is_new = not folder.exists()
    if is_new:
        folder.parent.mkdir(parents=True, exist_ok=True)
    stage = _temporary_name(folder if is_new else folder / "stage")
    stage.mkdir()
    try:
        for name, write in files.items():
            write(stage / name)
            _sync(stage / name)
        _sync(stage)
        if is_new:
            os.rename(stage, folder)
            _sync(folder.parent)
        else:
            for name in files:
                os.replace(stage / name, folder / name)
            _sync(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def save_model(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, model.safetensors and other files, {name: text}; atomically."""
    texts = {"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"} | dict(texts or {})
    files: dict[str, Callable[[Path], Any]] = {
        name: partial(Path.write_text, data=text, encoding="utf-8") for name, text in texts.items()
    }
    save_folder(folder, files | {SAFETENSORS: lambda path: write_safetensors(path, tensors)})


def as_path(folder: Any) -> Path:
    """The path of a folder; TypeError if it is not a path."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    return Path(folder)


def _temporary_name(path: Path) -> Path:
    """An unused name in the same folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # folders cannot be opened on this system
    # Windows flushes only what may be written
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- safetensors ----


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, atomically, in the format that transformers reads.

    Raises
    ------
    ImportError
        The safetensors library is not installed.
    OSError
        The file cannot be written, or the disk is full; the previous file at `path` is intact.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.safetensors")
    ...     write_safetensors(file, {"a": np.arange(6.0).reshape(2, 3).T})
    ...     read_safetensors(file)["a"].shape
    (3, 2)
    """
    library = _safetensors()
    from safetensors.numpy import save_file

    def save(part: Path) -> None:
        try:
            save_file(contiguous, part, metadata={"format": "pt"})
        except library.SafetensorError as error:
            # the system's message, inside the library's
            raise OSError(f"{os.fspath(path)!r} could not be written: {error}") from error

    # version 0.8.0 of the library writes raw memory, ignoring strides: arrays must be contiguous
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    # ascontiguousarray adds an axis to scalars
    contiguous = {name: a.reshape(np.shape(tensors[name])) for name, a in contiguous.items()}
    write_atomically(path, save)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name; bfloat16 is converted to float32.

    Raises
    ------
    FileNotFoundError, ValueError
        The file does not exist or is not a safetensors file, or a named tensor has a number type
        that NumPy lacks, such as 8-bit floats.
    ImportError
        The safetensors library is not installed.
    """
    return dict(_iterate_safetensors(Path(path)))


def _iterate_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    library = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {os.fspath(path)!r}")
    try:
        with library.safe_open(path, framework="numpy") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            for name, kind in kinds.items():
                if kind not in READABLE:
                    raise ValueError(
                        f"path: {os.fspath(path)!r} has {name} as {kind}, must be F64, F32, F16 or "
                        "BF16"
                    )
            read = _bfloat16_of(path)  # NumPy has no bfloat16
            for name, kind in kinds.items():
                yield name, read(name) if kind == "BF16" else file.get_tensor(name)
    except library.SafetensorError as error:
        raise ValueError(f"path: {os.fspath(path)!r} is not a safetensors file: {error}") from error


def _bfloat16_of(path: Path) -> Callable[[str], np.ndarray]:
    """A function that reads a bfloat16 tensor of a file, by name, as float32."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))

    def read(name: str) -> np.ndarray:
        start, end = header[name]["data_offsets"]
        halves = np.fromfile(path, "<u2", (end - start) // 2, offset=8 + size + start)
        shape = header[name]["shape"]
        return ops.from_bfloat16(halves.astype(np.uint16, copy=False).reshape(shape))

    return read


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise requires_extra("reading or writing a model", "safetensors", "cli") from error
    return safetensors


# ---- folders of weights ----


def read_folder(folder: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over the tensors of a model folder, from a single file or from indexed shards.

    Raises
    ------
    FileNotFoundError
        The folder, its weights or one of the shards does not exist.
    ValueError
        A file is damaged or refused, or a tensor is not in the shard that the index names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {os.fspath(folder)!r}")
    for name in (SAFETENSORS, TORCH):
        if (folder / name).is_file():
            return _iterate_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _iterate_shards(folder, f"{name}.index.json")
    raise FileNotFoundError(
        f"folder: there is neither {SAFETENSORS} nor {TORCH}, nor an index of shards, "
        f"in {os.fspath(folder)!r}"
    )


def _iterate_file(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    read = iterate_torch_file if path.suffix == ".bin" else _iterate_safetensors
    return read(path)


def _iterate_shards(folder: Path, index: str) -> Iterator[tuple[str, np.ndarray]]:
    try:
        shard_of = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"folder: {index} has no weight_map: {error!r}") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"folder: {index} names {shard!r}, which is not a file of the folder")
    for shard in shards:
        expected = {name for name in shard_of if shard_of[name] == shard}
        for name, tensor in _iterate_file(folder / shard):
            if name in expected:
                expected.remove(name)
                yield name, tensor
        if expected:
            raise ValueError(f"folder: {shard} lacks {', '.join(sorted(expected))}")


def local_folder(
    name: str | os.PathLike[str],
    revision: str | None,
    either: Sequence[Sequence[str]],
    always: Sequence[str] = (),
) -> Path:
    """A local folder, or the files of a model on the Hugging Face hub, downloaded if missing.

    Parameters
    ----------
    name : path or str
        An existing folder, or a name on the hub.
    revision : str or None
        Branch, tag or commit on the hub.
    either : sequence of (sequence of str)
        Groups of file names, which may contain ``*``. They are tried in order, until one yields a
        file.
    always : sequence of str
        Names downloaded with every group, which do not count as a match.

    Raises
    ------
    FileNotFoundError
        There is neither a folder nor a repository of that name, or the hub cannot be reached.
    ImportError
        The name may be on the hub, and the huggingface_hub library is not installed.
    """
    folder = as_path(name)
    text = os.fspath(name)
    if text and folder.is_dir():
        finish_checkpoint(folder)
        return folder
    if not HUB_NAME.fullmatch(text):
        raise FileNotFoundError(f"folder: there is no folder {text!r}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        what = f"folder: there is no folder {text!r}, and a name on the Hugging Face hub"
        raise requires_extra(what, "huggingface_hub", "hf") from error
    try:
        for group in either:
            wanted = [*always, *group]
            folder = Path(snapshot_download(text, revision=revision, allow_patterns=wanted))
            if any(any(folder.glob(pattern)) for pattern in group):
                break
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"folder: there is no folder {text!r}, and the Hugging Face hub returned no model of "
            f"that name: {error}"
        ) from error
    return folder


class Mismatch(NamedTuple):
    """A tensor whose shape or dtype differs from its parameter's."""

    name: str  # of the parameter
    kind: str  # "shape" or "dtype"
    text: str


def load_into(
    parameters: Mapping[str, np.ndarray],
    tensors: Iterator[tuple[str, np.ndarray]],
    rename: Callable[[str], str | None],
) -> tuple[list[str], list[str], list[Mismatch]]:
    """Copy tensors into the parameters of the same names, cast to the parameters' dtype.

    Prefixes and name parts that training programs add are ignored, such as ``module.``,
    ``_orig_mod.`` or ``model.``.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Overwritten.
    tensors : iterator of (str, ndarray)
    rename : callable
        Maps a tensor's name to the parameter's name, or to None to skip it. If two tensors map to
        one parameter, the renamed one is used.

    Returns
    -------
    missing, unexpected : list of str
        Parameters without a tensor, and tensors without a parameter.
    mismatched : list of Mismatch
        Parameters whose tensor has another shape or is not real. `describe_mismatch` formats all
        three lists.

    Raises
    ------
    ValueError
        The tensors are those of two models.
    """
    missing, unexpected, mismatched = dict.fromkeys(parameters), list[str](), dict[str, Mismatch]()
    renamed: set[str] = set()
    # the first tensor with each prefix, and the first with each name without its prefix
    by_prefix: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for stored, tensor in tensors:
        prefix, plain = _without_wrappers(stored, parameters, rename)
        name = rename(plain)
        if name is None or (name == plain and name in renamed):
            continue
        if name not in parameters:
            unexpected.append(stored)
            continue
        by_prefix.setdefault(prefix, stored)
        others = {by_name.setdefault(plain, stored), *by_prefix.values()} - {stored}
        if len(by_prefix) > 1 or by_name[plain] != stored:
            raise ValueError(f"{min(others)}, {stored} must be tensors of one model")
        if name != plain:
            renamed.add(name)
        missing.pop(name, None)
        mismatched.pop(name, None)
        array = parameters[name]
        if tensor.shape != array.shape or tensor.dtype.kind != "f":
            mismatched[name] = Mismatch(
                name,
                "dtype" if tensor.shape == array.shape else "shape",
                f"{stored}: {tensor.dtype}{list(tensor.shape)} in the file, "
                f"{array.dtype}{list(array.shape)} in the model",
            )
        else:
            # values too small for a narrower dtype become 0
            with np.errstate(under="ignore", over="ignore"):
                array[...] = tensor
            if (
                array.dtype.itemsize == 2
                and not np.isfinite(array).all()
                and (np.isfinite(tensor).all())
            ):
                raise ValueError(
                    f"{stored} must be within the range of {array.dtype}, got numbers as large as "
                    f"{float(np.abs(tensor).max()):.3g}: open it in another dtype"
                )
    return list(missing), unexpected, list(mismatched.values())


def _without_wrappers(
    stored: str, parameters: Mapping[str, Any], rename: Callable[[str], str | None]
) -> tuple[str, str]:
    """Split a name into prefix and parameter name: the longest suffix that is a parameter."""
    parts = [part for part in stored.split(".") if part not in WRAPPERS]
    for i in range(len(parts)):
        name = ".".join(parts[i:])
        if rename(name) in parameters:
            return ".".join(parts[:i]), name
    return "", ".".join(parts)


def describe_mismatch(
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Mismatch]
) -> str:
    """Format the mismatches that `load_into` found; empty if there are none.

    Examples
    --------
    >>> describe_mismatch(["bias"], [], [])
    'missing: bias'
    """
    found: dict[str, list[str]] = {"missing": [*missing], "unexpected": [*unexpected]}
    for _, kind, text in mismatched:
        found.setdefault(f"of another {kind}", []).append(text)
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items() if names)
