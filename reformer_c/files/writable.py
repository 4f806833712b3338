"""A check in advance that a checkpoint can be written."""

from __future__ import annotations

import errno
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..checks import requires_extra
from .checkpoint import write_safetensors

__all__ = ["check_writable"]


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
