"""rc.layer_norm: each row to mean 0 and variance 1, then scaled and shifted."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative
from reference import layer_norm as reference
from tolerances import assert_close

from reformer_c import ops

SIZES = [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
SHAPES = [*((n, 6) for n in [0, *SIZES]), *((5, c) for c in SIZES[1:]), (130, 257)]


def draw(rng, dtype, n, c):
    return [rng.standard_normal(shape).astype(dtype) for shape in [(n, c), (c,), (c,)]]


@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_forward_matches_the_reference(isa, dtype, rng, n, c):
    inputs = draw(rng, dtype, n, c)
    y = ops.layer_norm(*inputs)
    assert y.dtype == inputs[0].dtype
    assert_close(y, reference.layer_norm(*inputs), "forward")


@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_backward_is_the_derivative(isa, dtype, rng, n, c):
    assert_backward_is_the_derivative(
        ops.layer_norm_forward, ops.layer_norm_backward, reference.layer_norm,
        draw(rng, dtype, n, c), rng,
    )  # fmt: skip


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_eps_is_added_to_the_variance(isa, dtype, rng, eps):
    x, weight, bias = draw(rng, dtype, 9, 20)
    x /= 128
    y = ops.layer_norm(x, weight, bias, eps=eps)
    assert_close(y, reference.layer_norm(x, weight, bias, eps), "forward")
    assert_backward_is_the_derivative(
        lambda *a: ops.layer_norm_forward(*a, eps=eps), ops.layer_norm_backward,
        lambda *a: reference.layer_norm(*a, eps), (x, weight, bias), rng, step=1e-6,
    )  # fmt: skip


def test_a_constant_row_gives_the_bias(isa, dtype, rng):
    _, weight, bias = draw(rng, dtype, 1, 33)
    x = np.full((4, 33), 2, dtype)
    np.testing.assert_array_equal(ops.layer_norm(x, weight, bias), np.tile(bias, (4, 1)))
    one_wide = ops.layer_norm(np.full((3, 1), 7, dtype), weight[:1], bias[:1])
    np.testing.assert_array_equal(one_wide, np.full((3, 1), bias[0]))


def test_a_large_mean_costs_no_digits_of_the_variance(isa, rng):
    """E[x^2] - E[x]^2 would lose them all."""
    x, weight, bias = draw(rng, "float32", 5, 64)
    x = np.round(x * 64) / 64 + np.float32(4096)
    y = ops.layer_norm(x, weight, bias)
    assert_close(y, reference.layer_norm(x, weight, bias), "large_mean")


def test_leading_axes_are_kept(isa, dtype, rng):
    x, weight, bias = draw(rng, dtype, 24, 6)
    flat = ops.layer_norm(x, weight, bias)
    shaped = ops.layer_norm(x.reshape(2, 3, 4, 6), weight, bias)
    np.testing.assert_array_equal(shaped, flat.reshape(2, 3, 4, 6))
    np.testing.assert_array_equal(ops.layer_norm(x[5], weight, bias), flat[5])


def test_nan_stays_in_its_row(isa, dtype, rng):
    x, weight, bias = draw(rng, dtype, 10, 33)
    clean = ops.layer_norm(x, weight, bias)
    x[4, 7] = np.nan
    y = ops.layer_norm(x, weight, bias)
    assert np.isnan(y[4]).all()
    np.testing.assert_array_equal(np.delete(y, 4, axis=0), np.delete(clean, 4, axis=0))
