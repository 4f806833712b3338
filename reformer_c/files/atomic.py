"""Atomic update of a checkpoint folder, and a check in advance that it can be written.

All files are written into .saving; renaming that to .saved commits the checkpoint; then its files
replace the old ones. A process killed before the rename leaves the old checkpoint; one killed after
it leaves moves that the next save or resume completes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..checks import requires_extra
from .checkpoint import write_safetensors

__all__ = ["check_writable", "finish_checkpoint", "replace_files"]

STAGE, COMMIT = ".saving", ".saved"


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace the files in a folder with those that `write` creates in an empty one: all or none.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     replace_files(folder, lambda stage: (stage / "a").write_text("new") and None)
    ...     os.listdir(folder)
    ['a']
    """
    folder.mkdir(parents=True, exist_ok=True)
    finish_checkpoint(folder)
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        write(stage)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _sync_folder(stage)
    os.replace(stage, folder / COMMIT)
    finish_checkpoint(folder)


def finish_checkpoint(folder: Path) -> None:
    """Complete the moves of a save that was killed after its rename, if any."""
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    for file in sorted(commit.iterdir()):
        os.replace(file, folder / file.name)
    _sync_folder(folder)
    commit.rmdir()


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # on other systems folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path, size: int) -> None:
    """Create the folder and allocate `size` bytes in it, so that errors appear before training.

    Raises
    ------
    ImportError
        The library that writes checkpoints is not installed.
    OSError
        The folder cannot be written, or the disk has no room.
    """
    if find_spec("safetensors") is None:
        raise requires_extra("folder: saving a model", "safetensors", "cli")
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # also tests the library
        write_safetensors(probe, {"probe": np.zeros(1, np.float32)})
        # an old checkpoint is kept until the new one is complete
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(f"a checkpoint takes {size:,} bytes, and the disk has {free:,}")
        with open(probe, "wb") as file:
            _reserve(file.fileno(), size)
    except OSError as error:
        raise OSError(f"folder: {os.fspath(folder)!r} cannot be saved to: {error}") from error
    finally:
        if folder.is_dir():
            probe.unlink(missing_ok=True)


def _reserve(descriptor: int, size: int) -> None:
    """Allocate bytes on disk, where supported, which detects quotas and limits."""
    if not hasattr(os, "posix_fallocate") or size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
