"""Number of threads, memory, and the configuration of this build and machine."""

from __future__ import annotations

import os  # not pathlib, whose import would take a tenth of ours
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from . import _core
from ._core import openmp_threads
from .checks import integer

__all__ = ["get_num_threads", "num_threads", "release_memory", "set_num_threads", "show_config"]


# ---- how many threads ----


def set_num_threads(n: int) -> None:
    """Set the default number of threads for this process.

    Parameters
    ----------
    n : int
        At least 1, or negative: -1 means all processors that this process may use, -2 one fewer.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    See Also
    --------
    num_threads : for a block of code.

    Notes
    -----
    Results are bit-identical for any number. The default is ``REFORMER_C_NUM_THREADS``, else
    ``OMP_NUM_THREADS``, else the number of processors that this process may use (by its affinity or
    the places to which OpenMP binds threads, and by its control group's quota), and at most
    ``OMP_THREAD_LIMIT``. Threads of other libraries are not affected.

    If OpenMP's number of threads is changed later (by ``threadpoolctl.threadpool_limits`` for
    "openmp", or ``torch.set_num_threads``), the smaller of the two applies. OpenMP keeps this
    number per thread, so such a limit applies to the thread that set it.

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
    """The number of threads that a call from here uses without ``workers=``.

    Returns
    -------
    int
        Always 1 in a forked child: threads do not survive a fork.

    Examples
    --------
    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    return 1 if _core.forked() else resolve_workers(None)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use `n` threads within a ``with`` block, in this Python thread (or asyncio task) only.

    A Python thread that the block starts is in it where threads inherit context variables, which
    is the default of free-threaded Python from 3.14 on (``-X thread_inherit_context``).

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

    None means the default, -1 all processors. Numbers are capped at twice the machine's processors,
    or at 64 if that is more; results do not depend on it.

    Examples
    --------
    >>> resolve_workers(3)
    3
    >>> resolve_workers(0)
    Traceback (most recent call last):
    ValueError: workers must not be 0: pass None for the default, or a number of threads
    """
    if workers is None:
        threads, openmp = _block_threads.get() or _process_threads
        limit = openmp_threads()
        if limit == openmp:
            return threads
        # OpenMP was limited since; or this is a thread without a limit: it has the initial number
        return threads if limit == _initial_openmp_threads else min(threads, limit)
    return _count_from_end(workers, "workers")


def _count_from_end(n: int, name: str) -> int:
    n = integer(name, n)
    if n == 0:
        raise ValueError(f"{name} must not be 0: pass None for the default, or a number of threads")
    if n < -_available:
        raise ValueError(f"{name} must not be less than {-_available} here, got {n}")
    return min(n, _MAX_THREADS) if n > 0 else _available + 1 + n


class _Setting(NamedTuple):
    """A number of threads, and OpenMP's number at the time it was set."""

    threads: int
    openmp: int

    @classmethod
    def of(cls, threads: int) -> _Setting:
        return cls(threads, openmp_threads())


def _in_a_new_thread(function: Callable[[], int]) -> int:
    found: list[int] = []
    thread = Thread(target=lambda: found.append(function()))
    try:
        thread.start()
        thread.join()
    except RuntimeError:  # no thread can be started
        return function()
    return found[0]


# ---- the default: environment variables, else available processors ----


def _default_threads() -> int:
    for name in ("REFORMER_C_NUM_THREADS", "OMP_NUM_THREADS"):
        # a list ("4,2") gives a number per nesting level; the first is the outermost
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdigit() and int(first) > 0:
            return min(int(first), _MAX_THREADS)
    return _available


def _allowed_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    # if OpenMP has bound the main thread, its affinity is only one of the places
    allowed = _core.openmp_processors() or (affinity(0) if affinity else range(os.cpu_count() or 1))
    counts = (len(allowed), _cgroup_quota(), _core.openmp_thread_limit)
    return min(count for count in counts if count)


def _cgroup_quota(
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
    own: str | os.PathLike[str] = "/proc/self/cgroup",
) -> int | None:
    """The control group's CPU quota in processors, rounded up; None without a limit.

    The parents' limits apply too. Version 2 has a single hierarchy and one file ``cpu.max`` with
    quota and period; version 1 has a hierarchy per controller and a file for each number.
    """
    quotas = []
    for folder, version in _cgroup_folders(root, own):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        numbers = " ".join(_read(folder, name) for name in names).split()
        # "max", or -1, is no limit
        if len(numbers) == 2 and all(x.isdigit() and int(x) > 0 for x in numbers):
            quota, period = map(int, numbers)
            quotas.append(-(-quota // period))
    return min(quotas, default=None)


def _cgroup_folders(
    root: str | os.PathLike[str], own: str | os.PathLike[str], controller: str = "cpu"
) -> Iterator[tuple[str, int]]:
    """The folders of this process's control group and its parents: (folder, version)."""
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator:
            continue  # not in Linux's format
        if controllers == "":
            tops, version = ["", "unified"], 2
        elif controller in controllers.split(","):
            tops, version = [controller, controllers], 1
        else:
            continue
        names = [name for name in path.split("/") if name]
        for top in tops:
            for depth in range(len(names), -1, -1):
                yield os.path.join(root, top, *names[:depth]), version


# ---- memory ----


def available_memory(
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
    own: str | os.PathLike[str] = "/proc/self/cgroup",
    proc: str | os.PathLike[str] = "/proc",
) -> int | None:
    """Bytes that this process can still allocate; None if the system does not report it.

    The minimum of: the system's available memory without swapping; the limits of the control group
    and its parents; the limits of the process (``ulimit -v``, ``ulimit -d``); and the commit limit
    under ``vm.overcommit_memory=2``. The page cache and memory that `reuse_memory` has cached count
    as available. ``ulimit -m`` is ignored, as Linux does not enforce it.

    Examples
    --------
    >>> available_memory() is None or available_memory() > 0
    True
    """
    system, process = _kilobytes(proc, "meminfo"), _kilobytes(proc, "self/status")
    free = [system["MemAvailable"]] if "MemAvailable" in system else []
    if _read(proc, "sys/vm/overcommit_memory").strip() == "2" and "CommitLimit" in system:
        free.append(system["CommitLimit"] - system.get("Committed_AS", 0))
    for limit, size in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        bound = _process_limit(limit)
        if bound is not None and size in process:
            free.append(bound - process[size])
    free += [limit - used for limit, used in _cgroup_memory(root, own)]
    if (memory := _core.memory()) is not None:
        free.append(memory[1])
    return max(0, min(free)) + _core.pool_cached() if free else None


def peak_memory() -> int | None:
    """Peak resident size of this process in bytes; None if the system does not report it.

    Examples
    --------
    >>> peak_memory() is None or peak_memory() > 1_000_000
    True
    """
    try:
        import resource
    except ImportError:  # Windows
        return memory[2] if (memory := _core.memory()) is not None else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _all_memory(
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
    own: str | os.PathLike[str] = "/proc/self/cgroup",
    proc: str | os.PathLike[str] = "/proc",
) -> int:
    """Bytes of memory of the machine, or of the container if that is less."""
    total = _kilobytes(proc, "meminfo").get("MemTotal")
    if (memory := _core.memory()) is not None:
        total = memory[0]
    names: dict[str, int] = getattr(os, "sysconf_names", {})
    if total is None and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit, _ in _cgroup_memory(root, own)]
    return min([total or 0, *limits])


def _cgroup_memory(
    root: str | os.PathLike[str], own: str | os.PathLike[str]
) -> Iterator[tuple[int, int]]:
    """For this process's control group and each parent that has a limit: the limit, and the bytes
    in use without the page cache. ``memory.high`` is a limit too: above it, the kernel throttles
    the group and reclaims memory."""
    for folder, version in _cgroup_folders(root, own, "memory"):
        names = (["memory.max", "memory.high"], "memory.current", "inactive_file")
        if version == 1:
            names = (["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file")
        limits = [int(x) for x in (_read(folder, name) for name in names[0]) if x.strip().isdigit()]
        used = _read(folder, names[1]).strip()
        if limits and used.isdigit():
            entries = (line.split() for line in _read(folder, "memory.stat").splitlines())
            cached = sum(
                int(entry[1]) for entry in entries if len(entry) == 2 and entry[0] == names[2]
            )
            yield min(limits), int(used) - cached


def _process_limit(name: str) -> int | None:
    """A resource limit of this process in bytes; None if unlimited."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit, _ = resource.getrlimit(getattr(resource, name))
    return None if limit == resource.RLIM_INFINITY else limit


def _kilobytes(*path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes by name, from lines like ``VmSize:   12 kB``."""
    lines = (line.split() for line in _read(*path).splitlines())
    return {x[0][:-1]: 1024 * int(x[1]) for x in lines if len(x) == 3 and x[2] == "kB"}


def _read(*path: str | os.PathLike[str]) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        with open(os.path.join(*path)) as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def release_memory() -> int:
    """Return cached memory to the system.

    After a model's call or a block of `reuse_memory`, freed memory stays cached for the next one,
    up to a sixteenth of the memory of the machine (or of the container's control group). Arrays in
    use are not affected.

    Returns
    -------
    int
        Bytes returned.

    See Also
    --------
    reuse_memory : caches freed memory.

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


_MAX_THREADS = min(max(64, 2 * (os.cpu_count() or 1)), _core.openmp_thread_limit or 64)
_available = _allowed_processors()
_initial_openmp_threads = _in_a_new_thread(_core.openmp_threads)
_process_threads = _Setting(_default_threads(), _initial_openmp_threads)
_core.pool_set_memory(_all_memory())
_block_threads: ContextVar[_Setting | None] = ContextVar("reformer_c_num_threads", default=None)


@contextmanager
def reuse_memory() -> Iterator[None]:
    """Reuse freed memory for large arrays and scratch, in a ``with`` block or decorated function.

    The system zeroes new memory page by page, which takes a tenth of the time of a call with a new
    result. Calls of models reuse memory already; loops over operations gain as much.

    The block's peak memory rises by at most 32 MB. After the block, at most a sixteenth of the
    memory of the machine (or of the container's control group) stays cached for the next one, until
    `release_memory`. Nothing is cached if the address space is limited (``ulimit -v``).

    Examples
    --------
    >>> with reuse_memory():
    ...     first = np.ones(10**6).sum()
    ...     second = np.ones(10**6).sum()  # in the same memory
    """
    before = _core.pool_enter()
    try:
        yield
    finally:
        _core.pool_exit(before)


# ---- NumPy's error state ----


@contextmanager
def underflow_to_zero() -> Iterator[None]:
    """Ignore underflow in NumPy's arithmetic, in a ``with`` block or decorated function.

    Small softmax probabilities underflow to 0, which must not raise in a program that has called
    ``np.seterr(all="raise")``. Overflow, division by zero and invalid values are handled as the
    program has set. Functions of the user are not run under this setting.

    Examples
    --------
    >>> with np.errstate(all="raise"), underflow_to_zero():
    ...     np.exp(np.full(1, -1e4))
    array([0.])
    """
    with np.errstate(under="ignore"):
        yield


# ---- configuration ----


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show version, compiler, instruction sets and threads, like ``numpy.show_config``.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return dictionaries.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        The mode is not one of these.

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
