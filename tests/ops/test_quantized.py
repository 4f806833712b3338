"""Weights in 8 and 16 bits: rounding, products with them, and their place in decoding."""

import numpy as np
import pytest
from reference import feed_forward as feed_forward_reference
from reference import linear as linear_reference
from reference import quantized as reference
from tolerances import assert_close

from reformer_c import ops

STORAGES = ["bfloat16", "int8"]
# the four vectors of a dot product hold 8, 16, 32 or 64 numbers
WIDTHS = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 130]


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


def draw(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


# ---- rounding ----


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (7, 33), (70_000, 5), (3, 300_000)])
def test_a_weight_is_rounded_as_the_reference_rounds_it(dtype, rng, storage, shape):
    weight = rng.standard_normal(shape).astype(dtype)
    weight[:1] = 0.0
    weight[1:2, :1] = np.finfo(np.float32).tiny
    quantized = ops.quantize(weight, storage)
    assert quantized.shape == weight.shape
    np.testing.assert_array_equal(
        ops.dequantize(quantized, dtype), reference.dequantized(weight, storage).astype(dtype)
    )
    assert quantized.nbytes <= weight.size * 2 + (weight.dtype.itemsize * len(weight))
    if storage == "int8":
        assert quantized.data.dtype == np.int8 and quantized.scale.dtype == dtype
        assert np.abs(quantized.data.astype(int)).max(initial=0) <= 127
    else:
        assert quantized.data.dtype == np.uint16 and quantized.scale is None


def test_an_element_moves_by_at_most_half_a_scale(rng):
    weight = rng.standard_normal((50, 70)).astype(np.float32)
    quantized = ops.quantize(weight, "int8")
    moved = np.abs(ops.dequantize(quantized) - weight)
    assert (moved <= quantized.scale[:, None] * 0.5001).all()
    assert (moved.max(axis=1) > quantized.scale * 0.4).all()


def test_ties_are_rounded_to_even():
    halves = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    assert ops.quantize(halves, "int8").data.tolist() == [[127, 0, 2, 2, 0, -2]]
    ties = np.array([[1 + 2**-8, 1 + 3 * 2**-8]], np.float32)
    assert ops.dequantize(ops.quantize(ties, "bfloat16")).tolist() == [[1.0, 1 + 2**-6]]


@pytest.mark.parametrize(
    ("weight", "storage", "message"),
    [
        (np.ones((2, 2), np.float32), "int4", "storage must be 'int8' or 'bfloat16', got 'int4'"),
        (np.ones((2, 2), np.float32), None, "storage must be 'int8' or 'bfloat16', got None"),
        (np.ones((2, 2), int), "int8", "weight must be float32 or float64"),
        (np.ones(2, np.float32), "int8", r"weight must have shape \(co, ci\)"),
        (np.full((2, 2), np.nan), "int8", "weight must be finite"),
        (np.full((2, 2), np.inf), "bfloat16", "weight must be finite"),
        (np.ma.masked_equal(np.ones((2, 2)), 1), "int8", "weight must be an array without a mask"),
    ],
)
def test_what_cannot_be_quantized_is_named(weight, storage, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ops.quantize(weight, storage)


# ---- products ----


@pytest.mark.parametrize("ci", WIDTHS)
@pytest.mark.parametrize(("n", "co"), [(0, 5), (1, 1), (1, 65), (3, 130), (9, 0), (9, 7)])
def test_a_linear_layer_matches_the_reference(isa, dtype, rng, storage, n, ci, co):
    x, weight, bias = draw(rng, dtype, (n, ci), (co, ci), (co,))
    quantized, exact = ops.quantize(weight, storage), reference.dequantized(weight, storage)
    y = ops.quantized_linear(x, quantized, bias)
    assert y.dtype == dtype
    through = (np.abs(x) @ np.abs(exact).T).max(initial=0)
    assert_close(y, linear_reference.linear(x, exact, bias), "forward", scale=through)
    plain = ops.quantized_linear(x, quantized)
    assert_close(plain, linear_reference.linear(x, exact), "forward", dtype, through)
    out = np.full((n, co), np.nan, dtype)
    assert ops.quantized_linear(x, quantized, bias, out=out) is out
    np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "mish"])
@pytest.mark.parametrize(("n", "c", "f"), [(0, 3, 4), (1, 1, 1), (1, 33, 130), (5, 64, 65)])
def test_a_feed_forward_layer_matches_the_reference(isa, dtype, rng, storage, activation, n, c, f):
    x, w1, b1, w2, b2 = draw(rng, dtype, (n, c), (f, c), (f,), (c, f), (c,))
    small, large = ops.quantize(w1, storage), ops.quantize(w2, storage)
    y = ops.quantized_feed_forward(x, small, b1, large, b2, activation=activation)
    expected = feed_forward_reference.feed_forward(
        x, reference.dequantized(w1, storage), b1, reference.dequantized(w2, storage), b2,
        activation=activation,
    )  # fmt: skip
    assert_close(y, expected, "forward", dtype)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("n", "c", "f"), [(0, 3, 4), (1, 1, 1), (1, 33, 130), (5, 64, 65)])
def test_a_gated_layer_matches_the_reference(isa, dtype, rng, storage, activation, n, c, f):
    x, w1, b1, w2, b2, w3, b3 = draw(
        rng, dtype, (n, c), (f, c), (f,), (c, f), (c,), (f, c), (f,)
    )  # fmt: skip
    one, two, three = (ops.quantize(w, storage) for w in (w1, w2, w3))
    y = ops.quantized_feed_forward(x, one, b1, two, b2, three, b3, activation=activation)
    one, two, three = (reference.dequantized(w, storage) for w in (w1, w2, w3))
    expected = feed_forward_reference.feed_forward(
        x, one, b1, two, b2, three, b3, activation=activation
    )
    assert_close(y, expected, "forward", dtype)
    with pytest.raises(TypeError, match=r"^b3 must be"):
        ops.quantized_feed_forward(x, w1, b1, w2, b2, w3, activation=activation)


def test_weights_that_are_not_quantized_are_multiplied_as_by_the_other_op(isa, dtype, rng):
    x, w1, b1, w2, b2 = draw(rng, dtype, (3, 33), (70, 33), (70,), (33, 70), (33,))
    np.testing.assert_array_equal(ops.quantized_linear(x, w1, b1), ops.linear(x, w1, b1))
    np.testing.assert_array_equal(
        ops.quantized_feed_forward(x, w1, b1, w2, b2, activation="gelu"),
        ops.feed_forward(x, w1, b1, w2, b2, activation="gelu"),
    )


def test_results_do_not_depend_on_the_number_of_threads(isa, rng, storage):
    x, w1, b1, w2, b2 = draw(
        rng, np.float32, (2, 300), (700, 300), (700,), (300, 700), (300,)
    )  # fmt: skip
    small, large = ops.quantize(w1, storage), ops.quantize(w2, storage)
    for op, arguments in (
        (ops.quantized_linear, (x, small, b1)),
        (ops.quantized_feed_forward, (x, small, b1, large, b2)),
    ):
        one, *others = (op(*arguments, workers=n) for n in (1, 2, 3, 7))
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_a_row_does_not_depend_on_the_others(isa, rng, storage):
    x, weight = draw(rng, np.float32, (11, 70), (40, 70))
    quantized = ops.quantize(weight, storage)
    together = ops.quantized_linear(x, quantized)
    alone = np.concatenate([ops.quantized_linear(row[None], quantized) for row in x])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.ones((4, 3), np.int16)}, "weight must be quantized to int8 or to bfloat16"),
        ({"data": np.ones((4, 5), np.int8)}, "weight must have shape"),
        ({"data": np.ones(4, np.int8)}, "weight must have shape"),
        ({"scale": None}, "weight must have a scale for each row"),
        ({"scale": np.ones(3, np.float32)}, "weight must have shape"),
        ({"scale": np.ones(4)}, "weight must be float32"),
        ({"data": np.ones((4, 3), np.uint16)}, "weight must have a scale for each row"),
        (
            {"data": np.ma.masked_equal(np.ones((4, 3), np.int8), 1)},
            "weight must be an array without",
        ),
    ],
)
def test_a_wrong_quantized_weight_is_named(changes, message):
    right = ops.quantize(np.ones((4, 3), np.float32), "int8")
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ops.quantized_linear(np.ones((2, 3), np.float32), right._replace(**changes))


def test_arrays_of_any_layout_are_taken(rng, storage):
    x, weight = draw(rng, np.float32, (4, 9), (6, 9))
    quantized = ops.quantize(weight, storage)
    turned = quantized._replace(data=np.asfortranarray(quantized.data))
    np.testing.assert_array_equal(
        ops.quantized_linear(x[::2], turned), ops.quantized_linear(x, quantized)[::2]
    )
