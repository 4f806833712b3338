"""Atomic update of a checkpoint folder.

All files are written into .saving; renaming that to .saved commits the checkpoint; then its files
replace the old ones. A process killed before the rename leaves the old checkpoint; one killed after
it leaves moves that whatever opens the folder next completes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["finish_checkpoint", "replace_files"]

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
    """Complete the moves of a save that was killed after its rename, if any.

    Another process may do the same at this moment, the one that saves or one that opens the folder:
    what it has moved is not missing.
    """
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    for name in sorted(os.listdir(commit)):
        with suppress(FileNotFoundError):
            os.replace(commit / name, folder / name)
    _sync_folder(folder)
    with suppress(OSError):  # or it holds the next save
        commit.rmdir()


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # on other systems folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
