"""Fixtures: seeded randomness, both element types, and every instruction set of this machine."""

import gc
import os
import platform
import random
import signal
from collections import defaultdict
from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest
from hypothesis import settings

# with many threads, small models would spend their time on synchronization
os.environ.setdefault("REFORMER_C_NUM_THREADS", "2")

# the same examples in every run, and no time limit on slow machines
settings.register_profile("reformer_c", derandomize=True, deadline=None)
settings.load_profile("reformer_c")

# a background job of a shell ignores Ctrl-C, and its child processes would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# a program, which doctest would import
collect_ignore = [] if find_spec("mpi4py") else ["mpi_program.py"]


def pytest_configure(config):
    if platform.machine() in ("aarch64", "arm64"):
        # of NumPy's products there, about lanes that do not reach the result
        config.addinivalue_line("filterwarnings", "ignore:.* encountered in matmul:RuntimeWarning")


try:
    from reformer_c import _core
except ImportError as error:
    raise pytest.UsageError(
        f"the extension of reformer_c is not built ({error}): run pip install -e '.[test]'"
    ) from error


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark cases as exhaustive that only complete the cross product of a test's parameters.

    In the other cases each value of each parameter occurs, and each pair of values of two
    parameters, except that instruction sets take turns. The order in which cases are considered is
    random, but the same in every run, so that few are needed.
    """
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        random.Random(0).shuffle(cases)
        seen = set()
        for item in cases:
            new = values_and_pairs(item) - seen
            if not new:
                item.add_marker("exhaustive")
            seen |= new


def pytest_collection_finish():
    """Leave the tests, tens of thousands of objects, out of every garbage collection."""
    gc.collect()
    gc.freeze()


def values_and_pairs(item):
    """The values of a case's parameters, and their pairs; a value is known by its identity."""
    params = {name: (name, id(value)) for name, value in item.callspec.params.items()}
    isa = params.pop("isa", None)
    values = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = names.split(",") if isinstance(names, str) else names
        values.append(tuple(params.pop(name.strip()) for name in names))
    values += params.values()  # of fixtures
    return {isa, *values, *combinations(values, 2)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=_core.isas())
def isa(request):
    """The instruction set that all calls of the test use."""
    before = _core.isa()
    _core.select_isa(request.param)
    yield request.param
    _core.select_isa(before)
