"""runtime.reuse_memory: large arrays are made from freed memory, and stay correct."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_models import small_config

import reformer_c as rc
from reformer_c.runtime import reuse_memory

LARGE = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def address(x):
    return x.__array_interface__["data"][0]


def churn(rng, steps):
    """Make and free arrays of many sizes, each filled with its own number; return those left."""
    live = []
    for i in range(1, steps):
        if live and rng.random() < 0.3 + 0.02 * len(live):
            x, value = live.pop(rng.integers(len(live)))
            assert (x == value).all()
            continue
        n = int(2 ** rng.uniform(12, 19))
        kind = rng.integers(3)
        if kind == 0:
            x = np.zeros(n, np.int32)
            assert not x.any()
        elif kind == 1:
            x = np.arange(n // 2 + 1, dtype=np.int32)
            x.resize(n, refcheck=False)
            assert (x[: n // 2 + 1] == np.arange(n // 2 + 1)).all()
        else:
            x = np.empty(n, np.int32)
        assert address(x) % 64 == 0
        x[:] = i
        live.append((x, i))
    return live


def test_what_is_freed_serves_the_next_of_its_size():
    with reuse_memory():
        first = np.ones(LARGE)
        where = address(first)
        del first
        second = np.zeros(LARGE)
        assert address(second) == where
        assert not second.any()
        third = np.ones(LARGE)
        assert address(third) != where


def test_free_neighbours_become_one():
    with reuse_memory():
        parts = [np.ones(LARGE) for _ in range(4)]
        where = min(map(address, parts))
        wall = np.ones(LARGE)
        for i in (1, 3, 0, 2):  # each combination of neighbours
            parts[i] = None
        whole = np.zeros(4 * LARGE)
        assert address(whole) == where
        assert (wall == 1).all()


def test_arrays_keep_what_is_in_them_through_any_order_of_frees(rng):
    left = []
    for _ in range(3):
        with reuse_memory():
            left += churn(rng, 1500)
        # from a region that is closed
        left, gone = left[::2], left[1::2]
        assert all((x == value).all() for x, value in gone)
        del gone
        assert all((x == value).all() for x, value in left)


def test_blocks_may_lie_in_each_other_and_end_with_an_error(rng):
    inner, outer = [], []

    @reuse_memory()
    def fails():
        with reuse_memory():
            inner.extend(churn(rng, 200))
        outer.extend(churn(rng, 200))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all((x == value).all() for x, value in inner + outer)
    outside = np.ones(LARGE)
    core = np._core if hasattr(np, "_core") else np.core
    assert core.multiarray.get_handler_name(outside) == "default_allocator"


def test_threads_share_it():
    errors = []

    def work(seed):
        try:
            with reuse_memory():
                left = churn(np.random.default_rng(seed), 800)
            assert all((x == value).all() for x, value in left)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


FREED = """
import numpy as np
from reformer_c import _core
_core.pool_set_memory(2**32)  # of which a sixteenth may be kept
from reformer_c.runtime import reuse_memory
with reuse_memory():
    held = [np.ones(2**20) for _ in range(60)]
    one = held[7]
    del held
pages = int(open("/proc/self/statm").read().split()[1])
print(_core.pool_cached(), 4096 * pages, int(one.sum()))
"""


@needs_proc
def test_most_of_what_was_freed_is_the_systems_again_afterwards():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=environment
    )
    waiting, size, total = map(int, child.stdout.split())
    assert 0 < waiting <= 2**28
    assert size < waiting + 2**27
    assert total == 2**20


RELEASED = """
import gc
import numpy as np
import reformer_c as rc

def process(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

model = rc.ReformerModelWithLMHead(
    rc.ReformerConfig(
        attn_layers=["local", "lsh"], num_attention_heads=2, attention_head_size=32,
        hidden_size=64, axial_pos_embds=False, max_position_embeddings=8192, is_decoder=True,
    ), rng=0,
)
model.loss_and_gradients(np.ones((1, 8), int), labels=np.ones((1, 8), int), rng=0)
rc.release_memory()
resident, addresses = process("VmRSS"), process("VmSize")
ids = np.ones((8, 8192), int)
loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
kept, waiting = process("VmRSS") - resident, rc._core.pool_cached()
released = rc.release_memory()
left = process("VmRSS") - resident
assert rc.release_memory() == rc._core.pool_cached() == 0
assert released == waiting > 2**26, (released, waiting)
assert kept > 0.9 * released, (kept, released)
assert left < 2**25, left  # the gradients, and pages that they share
assert process("VmSize") - addresses < 2**28, (process("VmSize"), addresses)
again, same = model.loss_and_gradients(ids, labels=ids, rng=0)
assert again == loss and all((same[name] == x).all() for name, x in gradients.items())
# within a pass too
with rc.reuse_memory():
    x = np.ones(2**20)
    del x
    assert rc.release_memory() >= 2**23
    x = np.ones(2**20)
    assert x.sum() == 2**20
print("ok")
"""


def run_alone(program):
    """Run a program in a process of its own, where nothing else is in the region."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert child.stdout == "ok\n", child.stderr


@needs_proc
def test_what_is_kept_can_be_given_back():
    run_alone(RELEASED)


HEMMED_IN = """
import ctypes
import mmap
import numpy as np
import reformer_c as rc

LARGE = 2**20

def address(x):
    return x.__array_interface__["data"][0]

with rc.reuse_memory():
    held = [np.ones(LARGE) for _ in range(4)]
    where = min(map(address, held))
    del held
after = (where + 4 * (8 * LARGE + 64) + 2**21 - 1) // 2**21 * 2**21
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, *[ctypes.c_int] * 2, ctypes.c_long]
walls = [libc.mmap(at, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
         for at in range(after, after + 2**24, 2**21)]
for _ in range(3):
    with rc.reuse_memory():
        held = [np.ones(LARGE) for _ in range(20)]
        places = set(map(address, held))
        del held
        again = [np.ones(LARGE) for _ in range(20)]
        assert set(map(address, again)) == places
        del again
print("ok")
"""


def test_a_region_that_others_have_hemmed_in_begins_elsewhere():
    run_alone(HEMMED_IN)


BOUNDED = """
import tempfile
from pathlib import Path

import numpy as np
import reformer_c as rc
from reformer_c import _core, runtime

before = runtime._all_memory()
with rc.reuse_memory():
    held = [np.ones(2**20) for _ in range(8)]
    del held
assert 0 < _core.pool_cached() <= before // 16
root = Path(tempfile.mkdtemp())  # the files of a container's control group
group = root / "group"
group.mkdir()
(group / "memory.max").write_text(str(2**28))
(group / "memory.current").write_text("0")
(root / "own").write_text("0::/group")
assert runtime._all_memory(root, root / "own") == 2**28
_core.pool_set_memory(runtime._all_memory(root, root / "own"))
assert 0 < _core.pool_cached() <= 2**24
with rc.reuse_memory():
    held = [np.ones(2**20) for _ in range(64)]  # more than there is: the rest is the system's
    del held
assert 0 < _core.pool_cached() <= 2**24
print("ok")
"""


def test_what_is_kept_is_bounded_by_the_memory_that_there_is():
    run_alone(BOUNDED)


@needs_proc
def test_a_high_tide_leaves_no_more_than_it_took():
    """Successive sizes would accumulate, if freed memory served only its own size."""
    before = resident()
    with reuse_memory():
        for size in range(LARGE, 2 * LARGE, LARGE // 16):
            held = np.ones(size)
            assert resident() - before < 16 * LARGE + 2**26
            del held


@needs_proc
def test_pages_next_to_empty_ones_stay():
    """Small allocations next to a large gap keep their pages; the gap keeps none."""
    with reuse_memory():
        gap, held = np.ones(16 * LARGE), [np.ones(8 * LARGE)]
        del gap
        held.append(np.ones(20 * LARGE))  # fits nowhere: pages of the gap go back
        before, faults = resident(), []
        for _ in range(8):
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            small = [np.ones(2 * LARGE), np.ones(2 * LARGE)]
            del small
        assert faults[-1] - faults[1] < 8
        assert resident() - before < 5 * LARGE * 8
        # all of the gap, and what is above it
        held.append(np.ones(17 * LARGE))
        assert all((x == 1).all() for x in held)


def test_what_a_model_gives_stays_after_its_pass():
    model = rc.ReformerModelWithLMHead(small_config(vocab_size=3000), rng=0)
    ids = np.random.default_rng(0).integers(0, 3000, (2, 42))
    logits = model(ids, rng=0).logits
    assert logits.nbytes > 2**18
    copy = logits.copy()
    for _ in range(3):
        model.loss_and_gradients(ids, labels=ids, rng=0)
    np.testing.assert_array_equal(logits, copy)
