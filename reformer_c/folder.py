"""A checkpoint folder: its files change as a whole, and it is tried before it is needed.

Everything is written into .saving; one rename to .saved makes it the checkpoint; then its files
are moved up, over the old ones. Who is killed before the rename leaves the old checkpoint, who is
killed after it leaves moves that the next save or resume finishes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .checkpoint import write_safetensors
from .checks import requires_extra

__all__ = ["check_writable", "finish_checkpoint", "replace_files"]

STAGE, COMMIT = ".saving", ".saved"


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Let all files that `write` writes into an empty folder take their places, or none.

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
    """Finish the moves of a save that was killed after its rename, if there was one."""
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    for file in sorted(commit.iterdir()):
        os.replace(file, folder / file.name)
    _sync_folder(folder)
    commit.rmdir()


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path, size: int) -> None:
    """Make the folder and take `size` bytes of it, so that what cannot be saved is known now.

    Raises
    ------
    ImportError
        The library that writes checkpoints is not installed.
    OSError
        Says what stands in the way.
    """
    if find_spec("safetensors") is None:
        raise requires_extra("folder: saving a model", "safetensors", "cli")
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the library works, too
        write_safetensors(probe, {"probe": np.zeros(1, np.float32)})
        # an old checkpoint stays until the new one is complete
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
    """Have the disk give that many bytes, where it can be asked: it knows of quotas and limits."""
    if not hasattr(os, "posix_fallocate") or size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
