"""rc.ops.rotary_positions: pairs of channels, rotated by the angle of the position."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative
from reference import embedding as reference
from tolerances import assert_close

from reformer_c import ops

SHAPES = [(1, 1, 1), (2, 1, 2), (3, 2, 5), (63, 2, 64), (64, 1, 8), (65, 3, 128), (130, 2, 130)]


@pytest.mark.parametrize(("n", "h", "d"), [(0, 2, 4), (3, 0, 4), (3, 2, 0), *SHAPES])
@pytest.mark.parametrize("theta", [10000.0, 3.0])
def test_forward_matches_the_reference(isa, dtype, rng, n, h, d, theta):
    x, positions = rng.standard_normal((n, h, d)).astype(dtype), rng.integers(0, 5000, n)
    y = ops.rotary_positions(x, positions, theta=theta)
    assert y.dtype == dtype and y.shape == x.shape
    # angles up to 5000 are rounded in both
    scale = 5000.0 if dtype == np.float64 else 0.0
    assert_close(y, reference.rotary_positions(x, positions, theta), "rounding", scale=scale)


@pytest.mark.parametrize(("n", "h", "d"), SHAPES)
def test_backward_is_the_derivative(isa, dtype, rng, n, h, d):
    positions = rng.integers(0, 100, n)
    assert_backward_is_the_derivative(
        lambda x: ops.rotary_positions_forward(x, positions),
        ops.rotary_positions_backward,
        lambda x: reference.rotary_positions(x, positions),
        [rng.standard_normal((n, h, d)).astype(dtype)], rng,
    )  # fmt: skip


def test_in_place_is_the_same(isa, dtype, rng):
    x, positions = rng.standard_normal((2, 70, 3, 10)).astype(dtype), rng.integers(0, 99, (2, 70))
    y, saved = ops.rotary_positions_forward(x, positions)
    z = x.copy()
    assert ops.rotary_positions(z, positions, out=z) is z
    np.testing.assert_array_equal(z, y)
    dx = ops.rotary_positions_backward(y, saved)
    assert ops.rotary_positions_backward(z, saved, out=z) is z
    np.testing.assert_array_equal(z, dx)
    assert_close(dx, x, "forward")


def test_products_depend_on_differences_of_positions_only(isa, rng):
    q, k = rng.standard_normal((2, 1, 1, 16))
    products = [
        (ops.rotary_positions(q, [i]) * ops.rotary_positions(k, [i - 7])).sum()
        for i in (7, 100, 10**6)
    ]
    assert_close(products[1:], [products[0]] * 2, "hidden")


def test_wrong_arguments_are_named():
    x = np.ones((3, 2, 4))
    for theta in (0, -1.0, np.inf, "x"):
        with pytest.raises((TypeError, ValueError), match=r"^theta must be "):
            ops.rotary_positions(x, np.arange(3), theta=theta)
    with pytest.raises(ValueError, match=r"^position_ids must have shape \(\.\.\.\)"):
        ops.rotary_positions(x, np.arange(4))
    for wrong in (-1, 2**53):
        with pytest.raises(IndexError, match="position_ids"):
            ops.rotary_positions(x, np.array([0, wrong, 1]))
