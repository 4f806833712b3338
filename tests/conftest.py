"""Fixtures: seeded randomness, both element types, and every instruction set of this machine."""

import os
import signal
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import settings

# small models in many threads would mostly wait for each other
os.environ.setdefault("REFORMER_C_NUM_THREADS", "2")

# the same examples in every run, however slow the machine
settings.register_profile("reformer_c", derandomize=True, deadline=None)
settings.load_profile("reformer_c")

# a shell's background job ignores Ctrl-C, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

# a program, which doctest would import
collect_ignore = [] if find_spec("mpi4py") else ["mpi_program.py"]

try:
    from reformer_c import _core
except ImportError as error:
    raise pytest.UsageError(
        f"the extension of reformer_c is not built ({error}): run pip install -e '.[test]'"
    ) from error


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark as exhaustive what repeats a case on another instruction set.

    Each case of a test runs on the best instruction set and on one of the others, which take turns
    from case to case; so each of them runs each test, and meets each option.
    """
    best, *others = _core.isas()
    cases = defaultdict(dict)
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "isa" in params:
            case = item.nodeid.replace(params["isa"], "")
            turns = cases[item.nodeid.partition("[")[0]]
            turn = turns.setdefault(case, len(turns))
            if params["isa"] not in (best, others[turn % len(others)] if others else best):
                item.add_marker("exhaustive")


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
