"""rc.feed_forward with w3 and b3: the gated layer of Shazeer 2020."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative, assert_is_the_derivative
from reference import feed_forward as reference
from reference.dropout import assert_bernoulli
from tolerances import assert_all_close, assert_close

from reformer_c import ops

ACTIVATIONS = sorted(reference.ACTIVATIONS)
SIZES = [1, 3, 7, 8, 9, 15, 16, 17, 33, 64, 129]
SHAPES = [
    *((n, 5, 7) for n in (0, *SIZES)),
    *((6, c, 7) for c in SIZES),
    *((9, 5, f) for f in SIZES),
    (66, 65, 130),
]  # fmt: skip


def draw(rng, dtype, n, c, f):
    x = rng.standard_normal((n, c))
    w1, w3 = rng.standard_normal((2, f, c)) / np.sqrt(c)
    w2, (b1, b3) = rng.standard_normal((c, f)) / np.sqrt(f), rng.standard_normal((2, f))
    return [a.astype(dtype) for a in (x, w1, b1, w2, rng.standard_normal(c), w3, b3)]


@pytest.mark.parametrize(("n", "c", "f"), SHAPES)
def test_forward_matches_the_reference(isa, dtype, rng, n, c, f):
    inputs = draw(rng, dtype, n, c, f)
    y = ops.feed_forward(*inputs)
    assert y.dtype == inputs[0].dtype
    assert_close(y, reference.feed_forward(*inputs), "forward")


@pytest.mark.parametrize(("n", "c", "f"), [*SHAPES, (40, 7, 600)])
def test_backward_is_the_derivative(isa, dtype, rng, n, c, f):
    assert_backward_is_the_derivative(
        ops.feed_forward_forward, ops.feed_forward_backward, reference.feed_forward,
        draw(rng, dtype, n, c, f), rng, step=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("chunk_length", [0, 5])
def test_backward_of_every_activation_is_the_derivative(isa, dtype, rng, activation, chunk_length):
    options = {"activation": activation, "chunk_length": chunk_length}
    assert_backward_is_the_derivative(
        lambda *a: ops.feed_forward_forward(*a, **options), ops.feed_forward_backward,
        lambda *a: reference.feed_forward(*a, activation=activation),
        draw(rng, dtype, 19, 9, 14), rng, step=1e-6 if activation in reference.CORNERED else 1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chunk_length", [0, 30])
@pytest.mark.parametrize(("n", "c", "f"), [(0, 5, 7), (3, 5, 7), (9, 1, 1), (150, 17, 600)])
def test_backward_gives_the_value_again_bit_for_bit(
    isa, dtype, rng, n, c, f, chunk_length, dropout
):
    options = {"chunk_length": chunk_length, "dropout": dropout, "dropout_key": 3}
    options["activation"] = "gelu"
    y, saved = ops.feed_forward_forward(*draw(rng, dtype, n, c, f), **options)
    dout = rng.standard_normal(y.shape).astype(dtype)
    again = np.full_like(y, np.nan)
    gradients = ops.feed_forward_backward(dout, saved, value_out=again)
    # fewer rows than these are summed in another order
    np.testing.assert_array_equal(again, y) if n >= 8 else assert_close(again, y, "forward")
    for workers in (1, 3):
        others = ops.feed_forward_backward(dout, saved, workers=workers)
        for one, other in zip(gradients, others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_chunks_of_any_length_change_nothing(isa, dtype, rng):
    inputs = draw(rng, dtype, 19, 6, 10)
    dout = rng.standard_normal((19, 6)).astype(dtype)
    whole = ops.feed_forward_backward(dout, ops.feed_forward_forward(*inputs)[1])
    for chunk_length in (1, 2, 18, 19, 1000):
        _, saved = ops.feed_forward_forward(*inputs, chunk_length=chunk_length)
        assert_all_close(ops.feed_forward_backward(dout, saved), whole, "backward")


def test_dropout_drops_products(isa, dtype):
    """A unit of sigmoid(0) = 0.5, times 2, becomes 0 or 1 / (1 - p)."""
    f = 64
    x, w, zero = np.zeros((150, f), dtype), np.zeros((f, f), dtype), np.zeros(f, dtype)
    two, eye = np.full(f, 2, dtype), np.eye(f, dtype=dtype)
    options = {"activation": "sigmoid", "dropout": 0.5, "dropout_key": 5}
    y = ops.feed_forward(x, w, zero, eye, zero, w, two, **options)
    np.testing.assert_array_equal(np.unique(y), [0, 2])
    assert_bernoulli(y != 0, 0.5)
    few = ops.feed_forward(x[:3], w, zero, eye, zero, w, two, **options)
    np.testing.assert_array_equal(few, y[:3])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_with_dropout_is_the_derivative_for_the_mask_that_was_drawn(isa, rng, activation):
    inputs = draw(rng, "float64", 13, 6, 17)
    options = {"activation": activation, "dropout": 0.4, "dropout_key": 2, "chunk_length": 4}
    y, saved = ops.feed_forward_forward(*inputs, **options)
    dout = rng.standard_normal(y.shape)
    loss = lambda *a: float((ops.feed_forward(*a, **options) * dout).sum())  # noqa: E731
    gradients = ops.feed_forward_backward(dout, saved)
    assert_is_the_derivative(loss, inputs, gradients, rng, step=1e-6)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("n", [0, 8, 200])
@pytest.mark.parametrize("f", [8, 300])
def test_lower_precisions_are_near_the_reference(isa, rng, precision, n, f):
    inputs, smooth = draw(rng, "float32", n, 24, f), {"activation": "gelu"}
    y, saved = ops.feed_forward_forward(*inputs, matmul_precision=precision, **smooth)
    assert_close(y, reference.feed_forward(*inputs, **smooth), precision)
    dy = rng.standard_normal((n, 24)).astype(np.float32)
    exact = ops.feed_forward_forward(*(np.float64(a) for a in inputs), **smooth)[1]
    expected = ops.feed_forward_backward(np.float64(dy), exact)
    assert_all_close(ops.feed_forward_backward(dy, saved), expected, precision)


def test_a_gate_of_ones_changes_no_bit(isa, dtype, rng):
    x, w1, b1, w2, b2, w3, b3 = draw(rng, dtype, 40, 9, 300)
    ones = np.zeros_like(w3), np.ones_like(b3)
    plain, gated = (ops.feed_forward(x, w1, b1, w2, b2, *gate) for gate in ((), ones))
    np.testing.assert_array_equal(gated, plain)


def test_what_is_wrong_with_the_gate_is_named():
    x, w1, b1, w2, b2, w3, b3 = draw(np.random.default_rng(0), "float64", 2, 3, 4)
    with pytest.raises(TypeError, match=r"^b3 must be"):
        ops.feed_forward(x, w1, b1, w2, b2, w3)
    with pytest.raises(TypeError, match=r"^b3 must be None without w3"):
        ops.feed_forward(x, w1, b1, w2, b2, None, b3)
    with pytest.raises(ValueError, match=r"^w3 must have shape \(f, c\) with f = 4 as in w1"):
        ops.feed_forward(x, w1, b1, w2, b2, w3[:2], b3[:2])
