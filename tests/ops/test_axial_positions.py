"""rc.axial_positions: a row's vector followed by a column's."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative
from reference import embedding as reference

from reformer_c import ops

SHAPES = [(1, 1, 1, 1), (4, 8, 16, 16), (3, 5, 2, 7), (7, 2, 33, 1), (2, 64, 5, 65)]


def draw(rng, dtype, n1, n2, d1, d2):
    return [rng.standard_normal(shape).astype(dtype) for shape in [(n1, d1), (n2, d2)]]


@pytest.mark.parametrize(("n1", "n2", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("count", [0, 1, 2, None])
def test_forward_matches_the_reference(isa, dtype, rng, n1, n2, d1, d2, count):
    w0, w1 = draw(rng, dtype, n1, n2, d1, d2)
    positions = rng.permutation(n1 * n2)[:count]
    y = ops.axial_positions(positions, w0, w1)
    assert y.dtype == w0.dtype
    np.testing.assert_array_equal(y, reference.axial_positions(positions, w0, w1).astype(dtype))


@pytest.mark.parametrize(("n1", "n2", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 9)])
def test_backward_is_the_derivative(isa, dtype, rng, n1, n2, d1, d2, shape):
    positions = rng.integers(0, n1 * n2, shape)
    assert_backward_is_the_derivative(
        lambda w0, w1: ops.axial_positions_forward(positions, w0, w1),
        ops.axial_positions_backward,
        lambda w0, w1: reference.axial_positions(positions, w0, w1),
        draw(rng, dtype, n1, n2, d1, d2), rng,
    )  # fmt: skip


def test_the_row_is_the_quotient_and_the_column_the_remainder(isa, dtype):
    """Hugging Face's documentation has the opposite order of its code."""
    w0, w1 = np.array([[10], [20]], dtype), np.array([[1], [2], [3]], dtype)
    y = ops.axial_positions(np.arange(6), w0, w1)
    np.testing.assert_array_equal(y, [[10, 1], [10, 2], [10, 3], [20, 1], [20, 2], [20, 3]])


def test_hugging_faces_shapes_of_the_tables_are_taken_and_given_back(isa, dtype, rng):
    w0, w1 = draw(rng, dtype, 3, 4, 5, 6)
    positions = rng.integers(0, 12, (2, 7))
    y, saved = ops.axial_positions_forward(positions, w0[:, None], w1[None])
    np.testing.assert_array_equal(y, ops.axial_positions(positions, w0, w1))
    dw0, dw1 = ops.axial_positions_backward(np.ones_like(y), saved)
    assert dw0.shape == (3, 1, 5)
    assert dw1.shape == (1, 4, 6)


def test_a_position_past_the_rectangle_is_refused():
    with pytest.raises((ValueError, IndexError), match="position_ids"):
        ops.axial_positions(np.array([12]), np.ones((3, 2), "float32"), np.ones((4, 2), "float32"))
