"""adamw_step, adafactor_step, sum_of_squares, add_scaled: what an optimizer is made of."""

import numpy as np
import pytest
from reference.adafactor import adafactor_step
from reference.adamw import adamw_step
from tolerances import assert_close

from reformer_c import ops

SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 1000, 20_001]
HYPER = {"lr": 0.01, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.1}


def draw(rng, dtype, shape):
    w, m, g = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    return w, m, rng.random(shape).astype(dtype), g


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_adamw_matches_the_reference(isa, dtype, rng, n, step):
    w, m, s, g = draw(rng, dtype, n)
    expected = adamw_step(w, m, s, g, step=step, **HYPER)
    before = g.copy()
    ops.adamw_step(w, m, s, g, step=step, **HYPER)
    for actual, e in zip((w, m, s), expected, strict=True):
        assert_close(actual, e, "forward")
    np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("change", [
    {"lr": 0.0}, {"weight_decay": 0.0}, {"beta1": 0.0}, {"beta2": 0.0}, {"eps": 1e-12},
    {"grad_scale": 0.25}, {"grad_scale": -1.0}, {"grad_scale": 0.0},
])  # fmt: skip
def test_every_hyperparameter_of_adamw_counts(isa, dtype, rng, change):
    w, m, s, g = draw(rng, dtype, (7, 5))
    options = {**HYPER, "step": 3, **change}
    expected = adamw_step(w, m, s, g, **options)
    ops.adamw_step(w, m, s, g, **options)
    for actual, e in zip((w, m, s), expected, strict=True):
        assert_close(actual, e, "forward")


def test_many_steps_of_adamw_follow_the_reference(isa, dtype, rng):
    w, m, s, _ = draw(rng, dtype, 33)
    m[:], s[:] = 0, 0
    expected = w, m, s
    for step in range(1, 30):
        g = rng.standard_normal(33).astype(dtype)
        expected = adamw_step(*expected, g, step=step, **HYPER)
        ops.adamw_step(w, m, s, g, step=step, **HYPER)
    assert_close(w, expected[0], "forward")


FACTORED = {"lr": 0.01, "beta1": 0.7, "beta2": 0.8, "eps": 1e-30, "clip_threshold": 1.0,
            "weight_decay": 0.1}  # fmt: skip
# around the strips of columns, the pieces of a row and the blocks of a vector
MATRICES = [(1, 1), (3, 63), (64, 64), (65, 65), (2, 1023), (3, 1024), (2, 1025), (300, 7),
            (2, 5, 6), (40, 1, 9), (3, 2, 5, 4), (0, 3), (3, 0), (0, 2, 3)]  # fmt: skip


def draw_factored(rng, dtype, shape, first):
    w, g, m = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    moments = {"m": m if first else None}
    if len(shape) > 1:
        moments["row"] = rng.random(shape[:-1]).astype(dtype)
        moments["column"] = rng.random((*shape[:-2], shape[-1])).astype(dtype)
    else:
        moments["s"] = rng.random(shape).astype(dtype)
    return w, g, moments


def assert_adafactor_matches(w, g, moments, options):
    names = [name for name, moment in moments.items() if moment is not None]
    if w.size:
        new = adafactor_step(w, g, **moments, **options)
        new = dict(zip(("w", "row", "column", "s", "m"), new, strict=True))
    else:
        new = {"w": w} | {name: moments[name].copy() for name in names}
    before = g.copy()
    ops.adafactor_step(w, g, **moments, **options)
    for name, actual in {"w": w, **moments}.items():
        if actual is not None:
            assert_close(actual, new[name], "forward")
    np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("shape", [*((n,) for n in SIZES), (), *MATRICES], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_adafactor_matches_the_reference(isa, dtype, rng, shape, first):
    assert_adafactor_matches(*draw_factored(rng, dtype, shape, first), FACTORED)


@pytest.mark.parametrize("shape", [(20, 30), (50,)])
@pytest.mark.parametrize("change", [
    {"lr": 0.0}, {"beta1": 0.0}, {"beta2": 0.0}, {"eps": 0.1}, {"clip_threshold": 0.01},
    {"clip_threshold": 100.0}, {"weight_decay": 0.0},
])  # fmt: skip
def test_every_hyperparameter_of_adafactor_counts(isa, dtype, rng, shape, change):
    assert_adafactor_matches(*draw_factored(rng, dtype, shape, True), FACTORED | change)


@pytest.mark.parametrize("shape", [(700, 1100), (5, 300, 200), (300_000,)])
def test_adafactor_gives_the_same_bits_with_any_number_of_workers(isa, shape):
    results = []
    for workers in (1, 2, 3, 5):
        w, g, moments = draw_factored(np.random.default_rng(0), np.float32, shape, True)
        ops.adafactor_step(w, g, **moments, **FACTORED, workers=workers)
        results.append([x.tobytes() for x in (w, *moments.values()) if x is not None])
    assert all(result == results[0] for result in results)


def test_gradients_of_zero_leave_weights_where_they_are(isa, dtype):
    for shape in [(3, 4), (5,)]:
        w, g, moments = draw_factored(np.random.default_rng(0), dtype, shape, False)
        for moment in moments.values():
            if moment is not None:
                moment[...] = 0
        before, g[...] = w.copy(), 0
        ops.adafactor_step(w, g, **moments, **FACTORED | {"beta2": 0.0, "weight_decay": 0.0})
        np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares_matches_numpy(isa, dtype, rng, n):
    x = rng.standard_normal(n).astype(dtype)
    assert_close(ops.sum_of_squares(x), (np.float64(x) ** 2).sum(), "forward", dtype)


def test_sum_of_squares_does_not_overflow_float32(isa):
    assert ops.sum_of_squares(np.full(3, 1e30, "float32")) == pytest.approx(3e60)


def test_sum_of_squares_keeps_its_digits_over_many_elements(isa):
    x = np.full(300_000, 0.1, "float32")
    assert ops.sum_of_squares(x) == pytest.approx(300_000 * float(np.float32(0.1)) ** 2)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("alpha", [1.0, -1.0, 0.3])
def test_add_scaled_adds_in_place(isa, dtype, rng, n, alpha):
    y, x, *_ = draw(rng, dtype, n)
    expected = np.float64(y) + alpha * np.float64(x)
    ops.add_scaled(y, x, alpha)
    assert_close(y, expected, "forward")


def test_a_sum_that_is_added_and_taken_out_again_is_back_within_an_ulp(isa, dtype, rng):
    y, x, *_ = draw(rng, dtype, 1000)
    before = y.copy()
    ops.add_scaled(y, x, 1.0)
    ops.add_scaled(y, x, -1.0)
    assert_close(y, before, "rounding")


@pytest.mark.parametrize("name", ["w", "s", "m"])
def test_adafactor_refuses_what_it_could_not_step(name):
    arrays = {"w": np.ones(3), "s": np.ones(3), "m": np.ones(3)}
    with pytest.raises(TypeError, match=f"^{name} must be a numpy array, got list"):
        ops.adafactor_step(g=np.ones(3), **arrays | {name: [1.0, 1.0, 1.0]}, **FACTORED)
    with pytest.raises(TypeError, match=r"^w must be a numpy array, got NoneType"):
        ops.adafactor_step(None, np.ones(3), s=np.ones(3), **FACTORED)
