"""rc.feed_forward: linear, activation, linear, in chunks of rows."""

import numpy as np
import pytest
from gradients import assert_backward_is_the_derivative, assert_is_the_derivative
from reference import feed_forward as reference
from reference.dropout import assert_bernoulli, kept
from tolerances import assert_all_close, assert_close, tolerance

from reformer_c import ops

ACTIVATIONS = sorted(reference.ACTIVATIONS)
# those that tend to 0 on the left and to x on the right
RAMPS = {"relu", "gelu", "gelu_new", "hardswish", "mish", "quick_gelu", "silu"}
SIZES = [0, 1, 3, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
SHAPES = [
    *((n, 5, 7) for n in SIZES),
    *((6, c, 7) for c in SIZES[1:]),
    *((6, 5, f) for f in SIZES[1:]),
    (66, 65, 130),
]  # fmt: skip


def draw(rng, dtype, n, c, f):
    x = rng.standard_normal((n, c))
    w1, b1 = rng.standard_normal((f, c)) / np.sqrt(c), rng.standard_normal(f)
    w2, b2 = rng.standard_normal((c, f)) / np.sqrt(f), rng.standard_normal(c)
    return [a.astype(dtype) for a in (x, w1, b1, w2, b2)]


@pytest.mark.parametrize(("n", "c", "f"), SHAPES)
def test_forward_matches_the_reference(isa, dtype, rng, n, c, f):
    inputs = draw(rng, dtype, n, c, f)
    y = ops.feed_forward(*inputs)
    assert y.dtype == inputs[0].dtype
    assert_close(y, reference.feed_forward(*inputs), "forward")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_matches_the_reference(isa, dtype, rng, activation):
    x, w1, b1, w2, b2 = draw(rng, dtype, 40, 9, 33)
    for spread in [1e-3, 1, 10, 100]:
        inputs = (x * np.dtype(dtype).type(spread), w1, b1, w2, b2)
        y = ops.feed_forward(*inputs, activation=activation)
        assert_close(y, reference.feed_forward(*inputs, activation=activation), "forward")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_right_far_out_on_its_tails(isa, dtype, activation):
    """Identity maps show the activation's own values: small ones are exact, and none overflows."""
    x = np.array([-1e4, -200, -90, -30, -9, -5, -3, -1e-4, 0, 1e-4, 3, 5, 9, 30, 90, 200, 1e4])
    x = x.astype(dtype)[:, None]
    one, none = np.ones((1, 1), dtype), np.zeros(1, dtype)
    y = ops.feed_forward(x, one, none, one, none, activation=activation)
    expected = reference.feed_forward(x, one, none, one, none, activation=activation)
    limit = tolerance("forward", dtype)
    np.testing.assert_allclose(y, expected, rtol=limit, atol=limit)
    _, saved = ops.feed_forward_forward(x, one, none, one, none, activation=activation)
    dx = ops.feed_forward_backward(np.ones_like(x), saved)[0]
    assert np.isfinite(dx).all()
    if activation in RAMPS:
        limit = tolerance("forward", "float32")  # of the slopes at 30 from their limits
        np.testing.assert_allclose(dx[-4:], 1, rtol=limit)
        np.testing.assert_allclose(dx[:4], 0, atol=limit)


@pytest.mark.parametrize(("n", "c", "f"), SHAPES)
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
        draw(rng, dtype, 19, 9, 14), rng,
        step=1e-6 if activation in reference.CORNERED else 1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("chunk_length", [1, 2, 5, 18, 19, 20, 1000])
def test_chunks_of_any_length_change_nothing(isa, dtype, rng, chunk_length):
    inputs = draw(rng, dtype, 19, 6, 10)
    dout = rng.standard_normal((19, 6)).astype(dtype)
    y, saved = ops.feed_forward_forward(*inputs, chunk_length=chunk_length)
    assert_close(y, reference.feed_forward(*inputs), "forward")
    whole = ops.feed_forward_backward(dout, ops.feed_forward_forward(*inputs)[1])
    assert_all_close(ops.feed_forward_backward(dout, saved), whole, "backward")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chunk_length", [0, 30])
@pytest.mark.parametrize(("n", "c", "f"), [(0, 5, 7), (3, 5, 7), (9, 1, 1), (150, 17, 600)])
def test_backward_gives_the_value_again_bit_for_bit(
    isa, dtype, rng, n, c, f, chunk_length, dropout
):
    options = {"chunk_length": chunk_length, "dropout": dropout, "dropout_key": 3}
    y, saved = ops.feed_forward_forward(*draw(rng, dtype, n, c, f), **options)
    dout = rng.standard_normal(y.shape).astype(dtype)
    again = np.full((2 * n, c), np.nan, dtype)[::2]
    gradients = ops.feed_forward_backward(dout, saved, value_out=again)
    # fewer rows than these are summed in another order
    np.testing.assert_array_equal(again, y) if n >= 8 else assert_close(again, y, "forward")
    for one, other in zip(gradients, ops.feed_forward_backward(dout, saved), strict=True):
        np.testing.assert_array_equal(one, other)
    one = ops.feed_forward_backward(dout, saved, value_out=again, workers=3)
    for a, b in zip(one, gradients, strict=True):
        np.testing.assert_array_equal(a, b)


def dropped_units(dtype, n, f, **options):
    """y for hidden units that are all 1, each seen on its own: w2 is the identity."""
    x, w1, b1 = np.zeros((n, f), dtype), np.zeros((f, f), dtype), np.ones(f, dtype)
    return ops.feed_forward(x, w1, b1, np.eye(f, dtype=dtype), np.zeros(f, dtype), **options)


def test_dropout_drops_a_share_p_of_the_hidden_units(isa, dtype):
    y = dropped_units(dtype, 150, 64, dropout=0.3, dropout_key=5)
    assert_bernoulli(kept(np.ones_like(y), y, 0.3), 0.3)


def test_dropout_stands_before_the_activation(isa, dtype):
    """Hugging Face's place for it: a unit of 2 becomes tanh(2 / (1 - p)), not tanh(2) / (1 - p)."""
    one, zero = np.ones((1, 1), dtype), np.zeros(1, dtype)
    options = {"activation": "tanh", "dropout": 0.5, "dropout_key": 1}
    y = ops.feed_forward(np.full((64, 1), 2, dtype), one, zero, one, zero, **options)
    assert_close(np.unique(y.round(6)), [0, np.tanh(4).round(6)], "rounding", "float32")


def test_dropout_bits_do_not_depend_on_the_chunks(isa, dtype):
    whole = dropped_units(dtype, 37, 21, dropout=0.4, dropout_key=8)
    for chunk_length in [1, 4, 36]:
        chunked = dropped_units(
            dtype, 37, 21, dropout=0.4, dropout_key=8, chunk_length=chunk_length
        )
        np.testing.assert_array_equal(chunked, whole)
    other = dropped_units(dtype, 37, 21, dropout=0.4, dropout_key=9)
    assert (other != whole).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_with_dropout_is_the_derivative_for_the_mask_that_was_drawn(isa, rng, activation):
    inputs = draw(rng, "float64", 13, 6, 17)
    options = {"activation": activation, "dropout": 0.4, "dropout_key": 2, "chunk_length": 4}
    y, saved = ops.feed_forward_forward(*inputs, **options)
    dout = rng.standard_normal(y.shape)
    loss = lambda *a: float((ops.feed_forward(*a, **options) * dout).sum())  # noqa: E731
    gradients = ops.feed_forward_backward(dout, saved)
    assert_is_the_derivative(loss, inputs, gradients, rng, step=1e-6)


def test_leading_axes_are_kept(isa, dtype, rng):
    x, *weights = draw(rng, dtype, 24, 6, 5)
    flat = ops.feed_forward(x, *weights)
    shaped = ops.feed_forward(x.reshape(2, 3, 4, 6), *weights)
    np.testing.assert_array_equal(shaped, flat.reshape(2, 3, 4, 6))


def test_an_unknown_activation_is_named():
    inputs = draw(np.random.default_rng(0), "float32", 2, 2, 2)
    with pytest.raises(ValueError, match=r"^activation must be 'relu', .* or 'sqrtsoftplus', got"):
        ops.feed_forward(*inputs, activation="swish-9")
