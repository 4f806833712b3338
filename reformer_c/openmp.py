"""Loading OpenMP with a short spin time, and with all processors available to the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading_openmp"]

SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
LIBRARIES = ("libgomp", "libomp", "libiomp")


@contextmanager
def loading_openmp() -> Iterator[None]:
    """Set up the environment in which OpenMP is loaded; it reads its settings once, on loading.

    GNU OpenMP's idle threads spin for milliseconds, which takes cores from working threads as soon
    as anything else runs on the machine; a tenth of a millisecond bridges the gaps between
    operations equally well. Settings made by the user are kept.

    Another package's OpenMP may have bound this thread to one processor (PyTorch's wheels bundle
    their own copy). Ours would see that processor as the only one, and place every thread on it.
    """
    own_spinning = not any(name in os.environ for name in SPINNING)
    if own_spinning:
        os.environ["GOMP_SPINCOUNT"] = "10000"
    places = _places() if any(name in os.environ for name in BINDING) else set()
    bound = os.sched_getaffinity(0) if places else set()
    try:
        if places:
            os.sched_setaffinity(0, places | bound)
        yield
    finally:
        if places:
            os.sched_setaffinity(0, bound)
        if own_spinning:
            del os.environ["GOMP_SPINCOUNT"]


def _places() -> set[int]:
    """The processors to which the OpenMP libraries of this process bind their threads."""
    try:
        import ctypes

        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[-1].rstrip("\n") for line in file}
    except (ImportError, OSError):
        return set()
    places: set[int] = set()
    for path in sorted(path for path in paths if os.path.basename(path).startswith(LIBRARIES)):
        try:
            library = ctypes.CDLL(path)
            count = library.omp_get_num_places() if library.omp_get_proc_bind() else 0
        except (OSError, AttributeError):  # a plugin, or a deleted file
            continue
        for place in range(count):
            ids = (ctypes.c_int * library.omp_get_place_num_procs(place))()
            library.omp_get_place_proc_ids(place, ids)
            places.update(ids)
    return places
