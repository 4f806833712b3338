"""adamw_step, sum_of_squares and add_scaled: the steps that an optimizer is made of."""

import numpy as np
import pytest
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
    np.testing.assert_allclose(w, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares_matches_numpy(isa, dtype, rng, n):
    x = rng.standard_normal(n).astype(dtype)
    assert_close(ops.sum_of_squares(x), (np.float64(x) ** 2).sum(), "forward", dtype)


def test_sum_of_squares_does_not_overflow_float32(isa):
    assert ops.sum_of_squares(np.full(3, 1e30, "float32")) == pytest.approx(3e60)


def test_sum_of_squares_keeps_its_digits_over_many_elements(isa):
    x = np.full(300_000, 0.1, "float32")
    assert ops.sum_of_squares(x) == pytest.approx(300_000 * float(np.float32(0.1)) ** 2, rel=1e-6)


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
    np.testing.assert_allclose(y, before, rtol=0, atol=8 * np.finfo(y.dtype).eps)
