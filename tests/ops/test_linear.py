"""rc.linear: y = x weight' + bias."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative
from reference import linear as reference
from tolerances import assert_close

from reformer_c import ops

# one less, equal and one more than blocks of 4, 6, 8, 12, 16, 32, 64, 128
AWKWARD = [0, 1, 3, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]
SHAPES = [
    *((n, 7, 5) for n in AWKWARD),
    *((5, ci, 7) for ci in AWKWARD),
    *((7, 5, co) for co in AWKWARD),
    (65, 129, 33), (128, 64, 128), (13, 257, 31),
]  # fmt: skip


def draw(rng, dtype, n, ci, co):
    shapes = (n, ci), (co, ci), (co,)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize(("n", "ci", "co"), SHAPES)
def test_forward_matches_the_reference(isa, dtype, rng, n, ci, co):
    x, weight, bias = draw(rng, dtype, n, ci, co)
    y = ops.linear(x, weight, bias)
    assert y.dtype == x.dtype
    assert_close(y, reference.linear(x, weight, bias), "forward")
    assert_close(ops.linear(x, weight), reference.linear(x, weight), "forward")


@pytest.mark.parametrize(("n", "ci", "co"), SHAPES)
def test_backward_is_the_derivative(isa, dtype, rng, n, ci, co):
    inputs = draw(rng, dtype, n, ci, co)
    assert_backward_is_the_derivative(
        ops.linear_forward, ops.linear_backward, reference.linear, inputs, rng
    )


def test_without_bias_there_is_no_gradient_of_it(isa, dtype, rng):
    x, weight, _ = draw(rng, dtype, 9, 8, 7)

    def backward(dout, saved):
        dx, dweight, dbias = ops.linear_backward(dout, saved)
        assert dbias is None
        return dx, dweight

    assert_backward_is_the_derivative(
        ops.linear_forward, backward, reference.linear, (x, weight), rng
    )


def test_the_gradient_is_written_where_it_is_wanted(isa, dtype, rng):
    x, weight, bias = draw(rng, dtype, 9, 8, 7)
    dout, saved = ops.linear_forward(x, weight, bias)
    out = np.empty_like(x)
    dx, *_ = ops.linear_backward(dout, saved, out=out)
    assert dx is out
    np.testing.assert_array_equal(out, ops.linear_backward(dout, saved)[0])


def test_leading_axes_are_kept(isa, dtype, rng):
    x, weight, bias = draw(rng, dtype, 24, 6, 5)
    flat = ops.linear(x, weight, bias)
    for lead in [(2, 3, 4), (4, 6), (24,)]:
        shaped = x.reshape(*lead, 6)
        np.testing.assert_array_equal(ops.linear(shaped, weight, bias), flat.reshape(*lead, 5))
        _, saved = ops.linear_forward(shaped, weight, bias)
        assert ops.linear_backward(flat.reshape(*lead, 5), saved)[0].shape == (*lead, 6)
    assert_close(ops.linear(x[3], weight, bias), flat[3], "forward")


def test_nan_stays_in_its_row(isa, dtype, rng):
    x, weight, bias = draw(rng, dtype, 40, 33, 35)
    clean = ops.linear(x, weight, bias)
    x[17, 20] = np.nan
    y = ops.linear(x, weight, bias)
    assert np.isnan(y[17]).all()
    others = np.arange(40) != 17
    np.testing.assert_array_equal(y[others], clean[others])
