"""rc.embedding: rows of a table."""

import numpy as np
import pytest
from reference import embedding as reference
from tolerances import assert_close

from reformer_c import ops

SHAPES = [((0,), 5, 3), ((1,), 1, 1), ((2, 7), 5, 4), ((33,), 3, 17), ((2, 3, 5), 64, 65),
          ((129,), 320, 16), ((700,), 2, 33)]  # fmt: skip


@pytest.mark.parametrize(("shape", "v", "c"), SHAPES)
def test_forward_is_the_rows_themselves(isa, dtype, rng, shape, v, c):
    weight = rng.standard_normal((v, c)).astype(dtype)
    ids = rng.integers(0, v, shape)
    y = ops.embedding(ids, weight)
    assert y.dtype == weight.dtype
    np.testing.assert_array_equal(y, weight[ids])


@pytest.mark.parametrize(("shape", "v", "c"), SHAPES)
def test_backward_adds_up_the_rows_of_each_id(isa, dtype, rng, shape, v, c):
    weight = rng.standard_normal((v, c)).astype(dtype)
    ids = rng.integers(0, v, shape)
    dout = rng.standard_normal((*shape, c)).astype(dtype)
    expected = np.zeros((v, c))
    np.add.at(expected, ids, np.float64(dout))
    dweight = ops.embedding_backward(dout, ops.embedding_forward(ids, weight)[1])
    assert dweight.dtype == weight.dtype
    assert_close(dweight, expected, "backward")


def test_an_id_that_never_occurs_has_no_gradient(isa, dtype, rng):
    weight = rng.standard_normal((9, 4)).astype(dtype)
    ids = np.array([3, 3, 5])
    _, saved = ops.embedding_forward(ids, weight)
    dweight = ops.embedding_backward(np.ones((3, 4), dtype), saved)
    np.testing.assert_array_equal(dweight.any(axis=1), np.isin(np.arange(9), ids))
    np.testing.assert_array_equal(dweight[3], np.full(4, 2))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_any_integers_are_ids(isa, rng, kind):
    weight = rng.standard_normal((100, 6)).astype("float32")
    ids = rng.integers(0, 100, (3, 11)).astype(kind)
    np.testing.assert_array_equal(ops.embedding(ids, weight), weight[ids])
    np.testing.assert_array_equal(ops.embedding(ids[:, ::-2], weight), weight[ids[:, ::-2]])


@pytest.mark.parametrize("wrong", [-1, 5, 2**31, -(2**40)])
def test_an_id_outside_the_table_is_refused(wrong):
    with pytest.raises((ValueError, IndexError), match="ids"):
        ops.embedding(np.array([0, wrong]), np.ones((5, 2), "float32"))


def test_the_gradient_is_the_derivative_of_the_reference(rng):
    from gradients import assert_backward_is_the_derivative

    ids = rng.integers(0, 6, (2, 9))
    assert_backward_is_the_derivative(
        lambda w: ops.embedding_forward(ids, w), ops.embedding_backward,
        lambda w: reference.embedding(ids, w), [rng.standard_normal((6, 5))], rng,
    )  # fmt: skip
