"""rc.axial_positions: the concatenation of one row of each axis' table."""

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


# sizes and widths of the axes
GRIDS = [
    ([5], [3]), ([1], [17]), ([64], [70]), ([4, 3, 2], [5, 1, 16]), ([64, 64, 3], [7, 33, 8]),
    ([1, 7, 1], [16, 16, 16]), ([2, 1, 3, 2, 2], [1, 2, 3, 4, 17]), ([2] * 8, [3] * 8),
]  # fmt: skip


def draw_grid(rng, dtype, sizes, widths):
    return [rng.standard_normal(shape).astype(dtype) for shape in zip(sizes, widths, strict=True)]


@pytest.mark.parametrize(("sizes", "widths"), GRIDS)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_axes_matches_the_reference(isa, dtype, rng, sizes, widths, count):
    weights = draw_grid(rng, dtype, sizes, widths)
    positions = rng.integers(0, np.prod(sizes), (2, count))
    y = ops.axial_positions(positions, *weights)
    np.testing.assert_array_equal(y, reference.axial_positions(positions, *weights).astype(dtype))


@pytest.mark.parametrize(("sizes", "widths"), GRIDS)
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 9)])
def test_the_backward_pass_of_any_number_of_axes_is_the_derivative(
    isa, dtype, rng, sizes, widths, shape
):
    positions = rng.integers(0, np.prod(sizes), shape)
    assert_backward_is_the_derivative(
        lambda *weights: ops.axial_positions_forward(positions, *weights),
        ops.axial_positions_backward,
        lambda *weights: reference.axial_positions(positions, *weights),
        draw_grid(rng, dtype, sizes, widths), rng,
    )  # fmt: skip


@pytest.mark.parametrize(("sizes", "widths"), GRIDS)
def test_any_number_of_axes_gives_the_same_bits_for_any_number_of_workers(
    isa, dtype, rng, sizes, widths
):
    weights = draw_grid(rng, dtype, sizes, widths)
    positions = rng.integers(0, np.prod(sizes), 2000)
    y, saved = ops.axial_positions_forward(positions, *weights, workers=1)
    dout = rng.standard_normal(y.shape).astype(dtype)
    gradients = ops.axial_positions_backward(dout, saved, workers=1)
    for workers in [2, 3, 7]:
        np.testing.assert_array_equal(ops.axial_positions(positions, *weights, workers=workers), y)
        again = ops.axial_positions_backward(dout, saved, workers=workers)
        for found, expected in zip(again, gradients, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_three_tables_have_hugging_faces_shapes_too(isa, dtype, rng):
    weights = draw_grid(rng, dtype, [3, 4, 2], [5, 6, 7])
    shaped = [weights[0][:, None, None], weights[1][None, :, None], weights[2][None, None]]
    positions = rng.integers(0, 24, (2, 7))
    y, saved = ops.axial_positions_forward(positions, *shaped)
    np.testing.assert_array_equal(y, ops.axial_positions(positions, *weights))
    found = ops.axial_positions_backward(np.ones_like(y), saved)
    assert [dw.shape for dw in found] == [w.shape for w in shaped]


def test_tables_of_other_shapes_are_named():
    w = np.ones((3, 2), "float32")
    for i, wrong in enumerate([w[None], w[:, None, :], w[:, None]]):
        weights = [w, w, w]
        weights[i] = wrong
        with pytest.raises(ValueError, match=rf"^w{i} must have shape \(n{i + 1}, d{i + 1}\) or "):
            ops.axial_positions(np.array([0]), *weights)
    with pytest.raises(TypeError, match=r"^axial_positions takes 1 to 8 tables, got 9$"):
        ops.axial_positions(np.array([0]), *[w] * 9)
    with pytest.raises(IndexError, match="position_ids"):
        ops.axial_positions(np.array([27]), w, w, w)


def test_more_points_than_integers_are_no_error():
    wide, empty = np.ones((3, 2), "float32"), np.ones((2**40, 0), "float32")
    y, saved = ops.axial_positions_forward(np.array([2**62]), wide, empty, empty)
    assert y.shape == (1, 2)
    dw, *_ = ops.axial_positions_backward(np.ones_like(y), saved)
    np.testing.assert_array_equal(dw, [[1, 1], [0, 0], [0, 0]])
