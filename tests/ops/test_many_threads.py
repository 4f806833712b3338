"""Operations called by many Python threads at once: the bits of one.

Meant for builds of Python without the GIL, where all of a call runs at the same time as others.
"""

import numpy as np
import pytest
from many_threads import at_once
from op_cases import CALLS, SIZES, large

import reformer_c as rc
from reformer_c import ops
from reformer_c.runtime import reuse_memory


def prepared(name):
    """Functions of `workers` that call the operation, and its backward pass on what that saved."""
    op, options = CALLS[name]
    inputs = large(op, np.random.default_rng(0), np.dtype("float32"), **SIZES.get(name, {}))

    def forward(**workers):
        return getattr(ops, f"{op}_forward")(*inputs, **options, **workers)

    def backward(saved, **workers):
        out, saved = saved
        dout = 0.7 if op == "cross_entropy_head" else np.cos(out)
        found = getattr(ops, f"{op}_backward")(dout, saved, **workers)
        return found if isinstance(found, tuple) else (found,)

    return forward, backward


def digest(name, **workers):
    """All results of a call and of its backward pass, as bytes."""
    forward, backward = prepared(name)
    results = forward(**workers)
    return bytes_of(results[0], *backward(results, **workers))


def bytes_of(*arrays):
    return b"".join(np.asarray(x).tobytes() for x in arrays)


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_called_by_eight_threads_at_once(name):
    expected = digest(name, workers=1)

    def work(i):
        for workers in (1 + i % 3, 1 + (i + 1) % 3):
            assert digest(name, workers=workers) == expected

    at_once(work)


def test_threads_that_share_inputs_and_what_a_forward_pass_saved():
    forward, backward = prepared("full, causal")
    results = forward(workers=1)
    out, gradients = results[0].tobytes(), bytes_of(*backward(results, workers=1))

    def work(i):
        assert forward(workers=1 + i % 3)[0].tobytes() == out
        assert bytes_of(*backward(results, workers=1 + (i + 1) % 3)) == gradients

    at_once(work)


def test_settings_that_change_during_calls():
    names = list(CALLS)
    expected = {name: digest(name, workers=1) for name in names}
    before = rc.get_num_threads()

    def work(i):
        for step, name in enumerate(names[i:] + names[:i]):
            if i % 4 == 0:
                rc.set_num_threads(1 + step % 3)
                assert 1 <= rc.get_num_threads() <= 3
                rc.release_memory()
            if i % 4 == 1:
                with rc.num_threads(1 + step % 3):
                    assert rc.get_num_threads() == 1 + step % 3
                    assert digest(name) == expected[name]
            if i % 4 == 2:
                with reuse_memory():
                    assert digest(name) == expected[name]
            assert digest(name) == expected[name]

    try:
        at_once(work)
    finally:
        rc.set_num_threads(before)


def test_lists_that_change_during_a_call():
    x = [np.ones(3, np.float32), np.ones(3, np.float32)]

    def work(i):
        for _ in range(300):
            if i % 2:
                x[0], x[1] = np.ones(3, np.float32), np.ones(3, np.float32)
            else:
                assert (ops.linear(x, np.ones((2, 3), np.float32)) == 3).all()

    at_once(work)
