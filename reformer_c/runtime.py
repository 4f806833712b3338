"""Threads, memory, and what this build and this machine are."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from . import _core

__all__ = ["get_num_threads", "num_threads", "release_memory", "set_num_threads", "show_config"]


# ---- how many threads ----


def set_num_threads(n: int) -> None:
    """Set how many threads a call uses by default, in all of this process.

    Parameters
    ----------
    n : int
        At least 1; negative numbers count from the end: -1 is all processors that this process may
        use, -2 one fewer.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    See Also
    --------
    num_threads : for a block of code.

    Notes
    -----
    Results do not depend on it, bit for bit. The default comes from ``REFORMER_C_NUM_THREADS``,
    else ``OMP_NUM_THREADS``, else the processors that this process may use (its affinity or the
    places that OpenMP binds threads to, and its control group's quota), but is at most
    ``OMP_THREAD_LIMIT``. Other libraries' threads are left alone.

    Where OpenMP's number of threads has changed since (``threadpoolctl.threadpool_limits``, of
    "openmp"; ``torch.set_num_threads`` changes it too), the smaller of the two counts. It is a
    property of each thread: a limit holds in the thread that sets it.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    global _process_threads
    _process_threads = _Setting.of(_count_from_end(n, "n"))


def get_num_threads() -> int:
    """How many threads a call uses here and now, unless it says ``workers=``.

    Returns
    -------
    int
        1 in a child of a fork, whatever was set: threads do not survive a fork.

    Examples
    --------
    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    return 1 if _core.forked() else resolve_workers(None)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use `n` threads within a ``with`` block, in this Python thread (or task) alone.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Examples
    --------
    >>> before = get_num_threads()
    >>> with num_threads(1):
    ...     get_num_threads()
    1
    >>> get_num_threads() == before
    True
    """
    token = _block_threads.set(_Setting.of(_count_from_end(n, "n")))
    try:
        yield
    finally:
        _block_threads.reset(token)


def resolve_workers(workers: int | None) -> int:
    """The number of threads for a call's ``workers`` argument, which has scipy.fft's meaning.

    None is the default, negative numbers count from the end. Beyond twice the machine's processors
    (or 64) no more threads are started: the result would be the same.

    Examples
    --------
    >>> resolve_workers(3)
    3
    >>> resolve_workers(0)
    Traceback (most recent call last):
    ValueError: workers must not be 0: pass None for the default, or a number of threads
    """
    if workers is None:
        return (_block_threads.get() or _process_threads).here()
    return _count_from_end(workers, "workers")


def _count_from_end(n: int, name: str) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(n).__name__}")
    n = n.__index__()
    if n == 0:
        raise ValueError(f"{name} must not be 0: pass None for the default, or a number of threads")
    if n < -_available:
        raise ValueError(f"{name} must not be less than {-_available} here, got {n}")
    return min(n, _MOST_THREADS) if n > 0 else _available + 1 + n


class _Setting(NamedTuple):
    """A number of threads, and OpenMP's number when it was set."""

    threads: int
    openmp: int

    @classmethod
    def of(cls, threads: int) -> _Setting:
        return cls(threads, _core.openmp_threads())

    def here(self) -> int:
        """The number of threads in this thread, under a limit that was set since.

        Threads that nobody has limited have OpenMP's initial number.
        """
        limit = _core.openmp_threads()
        unlimited = limit in (self.openmp, _initial_openmp_threads)
        return self.threads if unlimited else min(self.threads, limit)


def _in_a_new_thread(function: Callable[[], int]) -> int:
    found: list[int] = []
    thread = Thread(target=lambda: found.append(function()))
    try:
        thread.start()
        thread.join()
    except RuntimeError:  # the process has no room for a thread
        return function()
    return found[0]


# ---- the default: what we are told, else what we are allowed ----


def _default_threads() -> int:
    for name in ("REFORMER_C_NUM_THREADS", "OMP_NUM_THREADS"):
        # a list ("4,2") speaks of nested levels, the first is ours
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdigit() and int(first) > 0:
            return min(int(first), _MOST_THREADS)
    return _available


def _allowed_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    # of a main thread that OpenMP has bound, the affinity is one place of many
    allowed = _core.openmp_processors() or (affinity(0) if affinity else range(os.cpu_count() or 1))
    counts = (len(allowed), _cgroup_quota(), _core.openmp_thread_limit)
    return min(count for count in counts if count)


def _cgroup_quota(root: str | Path = "/sys/fs/cgroup", own: str | Path = "/proc/self/cgroup"):
    """Processors' worth of time that the control group allows, rounded up; None for no limit.

    A group is bounded by its parents too. Version 2 has one tree and a file ``cpu.max`` with quota
    and period, version 1 has a tree for the processor and a file for each number.
    """
    quotas = []
    for folder, version in _cgroup_folders(Path(root), Path(own)):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        numbers = " ".join(_read(folder / name) for name in names).split()
        # "max", or -1, is no limit
        if len(numbers) == 2 and all(x.isdigit() and int(x) > 0 for x in numbers):
            quota, period = map(int, numbers)
            quotas.append(-(-quota // period))
    return min(quotas, default=None)


def _cgroup_folders(root: Path, own: Path, controller: str = "cpu") -> Iterator[tuple[Path, int]]:
    """The folders of our control group and its parents: (folder, version)."""
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator:
            continue  # nothing that Linux writes
        if controllers == "":
            tops, version = [root, root / "unified"], 2
        elif controller in controllers.split(","):
            tops, version = [root / controller, root / controllers], 1
        else:
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            yield folder, version
            while folder != top and top in folder.parents:
                folder = folder.parent
                yield folder, version


# ---- memory ----


def available_memory(
    root: str | Path = "/sys/fs/cgroup",
    own: str | Path = "/proc/self/cgroup",
    proc: str | Path = "/proc",
) -> int | None:
    """Bytes that this process may still take; None where the system does not tell.

    What the system has left, without swapping, and what the control group and its parents allow,
    the limits of this process (``ulimit -v``, ``ulimit -d``), and a system that promises no more
    than it has (``vm.overcommit_memory=2``). Files that are only cached count as free, and so does
    what this process keeps for its next pass. A limit of the resident set (``ulimit -m``) is not
    counted: Linux does not enforce it.

    Examples
    --------
    >>> available_memory() is None or available_memory() > 0
    True
    """
    proc = Path(proc)
    system, process = _kilobytes(proc / "meminfo"), _kilobytes(proc / "self/status")
    free = [system["MemAvailable"]] if "MemAvailable" in system else []
    if _read(proc / "sys/vm/overcommit_memory").strip() == "2" and "CommitLimit" in system:
        free.append(system["CommitLimit"] - system.get("Committed_AS", 0))
    for limit, size in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        most = _process_limit(limit)
        if most is not None and size in process:
            free.append(most - process[size])
    free += [limit - used for limit, used in _cgroup_memory(Path(root), Path(own))]
    return max(0, min(free)) + _core.pool_cached() if free else None


def _all_memory(
    root: str | Path = "/sys/fs/cgroup",
    own: str | Path = "/proc/self/cgroup",
    proc: str | Path = "/proc",
) -> int:
    """Bytes of the machine's memory, or of the container's."""
    total = _kilobytes(Path(proc) / "meminfo").get("MemTotal")
    if total is None and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit, _ in _cgroup_memory(Path(root), Path(own))]
    return min([total or 0, *limits])


def _cgroup_memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Of our control group and its parents, where they are bounded: the limit, and the bytes in use
    that are not cached files. Above ``memory.high`` a group is slowed down until it has given
    memory back: that is a limit too."""
    for folder, version in _cgroup_folders(root, own, "memory"):
        names = (["memory.max", "memory.high"], "memory.current", "inactive_file")
        if version == 1:
            names = (["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file")
        limits = [
            int(x) for x in (_read(folder / name) for name in names[0]) if x.strip().isdigit()
        ]
        used = _read(folder / names[1]).strip()
        if limits and used.isdigit():
            entries = (line.split() for line in _read(folder / "memory.stat").splitlines())
            cached = sum(
                int(entry[1]) for entry in entries if len(entry) == 2 and entry[0] == names[2]
            )
            yield min(limits), int(used) - cached


def _process_limit(name: str) -> int | None:
    """A limit of this process that is in force, in bytes."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most, _ = resource.getrlimit(getattr(resource, name))
    return None if most == resource.RLIM_INFINITY else most


def _kilobytes(path: Path) -> dict[str, int]:
    """Bytes by name, from lines like ``VmSize:   12 kB``."""
    lines = (line.split() for line in _read(path).splitlines())
    return {x[0][:-1]: 1024 * int(x[1]) for x in lines if len(x) == 3 and x[2] == "kB"}


def _read(path: Path) -> str:
    """What is in a file; nothing, where it is not there."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def release_memory() -> int:
    """Give the memory that is kept for the next pass back to the system.

    A model's call, or a block of `reuse_memory`, keeps up to a sixteenth of the memory (the
    machine's, or the limit of the container's control group) for the next one, which begins faster
    with it. Arrays that are in use stay where they are.

    Returns
    -------
    int
        The bytes that were given back.

    See Also
    --------
    reuse_memory : what keeps it.

    Examples
    --------
    >>> with reuse_memory():
    ...     total = np.ones(10**6).sum()
    >>> release_memory() >= 8 * 10**6
    True
    >>> release_memory()
    0
    """
    return _core.pool_trim()


_MOST_THREADS = min(max(64, 2 * (os.cpu_count() or 1)), _core.openmp_thread_limit or 64)
_available = _allowed_processors()
_initial_openmp_threads = _in_a_new_thread(_core.openmp_threads)
_process_threads = _Setting(_default_threads(), _initial_openmp_threads)
_core.pool_set_memory(_all_memory())
_block_threads: ContextVar[_Setting | None] = ContextVar("reformer_c_num_threads", default=None)


@contextmanager
def reuse_memory() -> Iterator[None]:
    """In a ``with`` block, or a function so decorated, large arrays and scratch that are freed
    serve the next of their size.

    The system gives new memory zeroed, page by page: a tenth of a call whose result is new. Models
    do this by themselves; around a loop of operations it is worth as much.

    The block's highest use of memory is what it would be otherwise, or 32 MB more. After it at most
    a sixteenth of the memory stays for the next (of the machine, or of the container's limit); the
    rest is the system's again, and `release_memory` gives all back. In a process whose addresses
    are limited (``ulimit -v``) nothing is kept.

    Examples
    --------
    >>> with reuse_memory():
    ...     first = np.ones(10**6).sum()
    ...     second = np.ones(10**6).sum()  # where the first was
    """
    before = _core.pool_enter()
    try:
        yield
    finally:
        _core.pool_exit(before)


# ---- NumPy's error state ----


@contextmanager
def underflow_to_zero() -> Iterator[None]:
    """In a ``with`` block, or a function so decorated, NumPy's arithmetic underflows silently.

    A softmax has shares below the smallest number, and they are 0: that is no error for a program
    that called ``np.seterr(all="raise")``. Overflow, division by 0 and invalid values stay as the
    program says. Only our own arithmetic is so decorated: a user's function keeps the user's state.

    Examples
    --------
    >>> with np.errstate(all="raise"), underflow_to_zero():
    ...     np.exp(np.full(1, -1e4))
    array([0.])
    """
    with np.errstate(under="ignore"):
        yield


# ---- what this is ----


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Tell version, compiler, instruction sets and threads, as ``numpy.show_config`` does.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return a dictionary.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        For another mode.

    Examples
    --------
    >>> config = show_config(mode="dicts")
    >>> config["Instruction sets"]["in use"] in config["Instruction sets"]["built"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    config = _config()
    if mode == "dicts":
        return config
    for title, entries in config.items():
        print(f"{title}:")
        for name, value in entries.items():
            text = ", ".join(value) if isinstance(value, (list, tuple)) else value
            print(f"  {name}: {text}")
    return None


def _config() -> dict[str, dict[str, Any]]:
    from . import __version__

    return {
        "Package": {
            "reformer_c": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "Build": {
            "compiler": _core.compiler,
            "OpenMP": str(_core.openmp) if _core.openmp else "no",
        },
        "Instruction sets": {
            "built": list(_core.isas_built()),
            "runnable": list(_core.isas()),
            "in use": _core.isa(),
        },
        "Machine": {"system": sys.platform, "processor": platform.machine()},
        "Threads": {"in use": get_num_threads(), "available": _available},
    }
