"""Code that waits for another library to be imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

__all__ = ["when_imported"]


def when_imported(name: str, run: Callable[[], None]) -> None:
    """Call `run` as soon as the module `name` is imported: now, if it is; never, if it never is.

    Examples
    --------
    >>> when_imported("math", lambda: print("there"))
    there
    """
    if name in sys.modules:
        run()
    else:
        sys.meta_path.insert(0, _Waiting(name, run))


class _Waiting(MetaPathFinder):
    """Finds nothing itself: the first search for the module leaves `run` with what others find."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._name, self._run = name, run

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def then_run(module: Any) -> None:
            execute(module)
            self._run()

        loader.exec_module = then_run
        return spec
