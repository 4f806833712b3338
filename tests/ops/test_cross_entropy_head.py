"""rc.cross_entropy_head: projection, log-softmax and mean loss, never all logits at once."""

import numpy as np
import pytest
from gradients import assert_is_the_derivative
from reference import cross_entropy as reference
from tolerances import assert_all_close, assert_close

from reformer_c import ops

SIZES = [1, 3, 4, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129]
SHAPES = [
    *((n, 5, 7) for n in SIZES),
    *((6, c, 7) for c in SIZES),
    *((6, 5, v) for v in SIZES),
    (66, 64, 320),
]  # fmt: skip


def draw(rng, dtype, n, c, v):
    shapes = (n, c), (v, c), (v,)
    return [rng.standard_normal(s).astype(dtype) for s in shapes], rng.integers(0, v, n)


def gradients_of(inputs, labels, dloss=1.0, **options):
    _, saved = ops.cross_entropy_head_forward(*inputs, labels, **options)
    return ops.cross_entropy_head_backward(dloss, saved)


@pytest.mark.parametrize(("n", "c", "v"), SHAPES)
def test_forward_matches_the_reference(isa, dtype, rng, n, c, v):
    inputs, labels = draw(rng, dtype, n, c, v)
    labels[rng.random(n) < 0.2] = -100
    loss = ops.cross_entropy_head(*inputs, labels)
    assert isinstance(loss, float)
    assert_close(loss, reference.cross_entropy_head(*inputs, labels), "forward", dtype)
    h, weight, _ = inputs
    without = ops.cross_entropy_head(h, weight, None, labels)
    assert_close(without, reference.cross_entropy_head(h, weight, None, labels), "forward", dtype)


@pytest.mark.parametrize(("n", "c", "v"), SHAPES)
def test_backward_is_the_derivative(isa, dtype, rng, n, c, v):
    inputs, labels = draw(rng, dtype, n, c, v)
    labels[1:][rng.random(n - 1) < 0.3] = -100
    exact = gradients_of([np.float64(a) for a in inputs], labels, 1.7)
    loss = lambda *a: 1.7 * reference.cross_entropy_head(*a, labels)  # noqa: E731
    assert_is_the_derivative(loss, inputs, exact, rng)
    assert_all_close(gradients_of(inputs, labels, 1.7), exact, "backward", dtype)


@pytest.mark.parametrize("chunk_length", [1, 2, 16, 40, 41, 42, 5000])
def test_chunks_of_any_length_change_nothing(isa, dtype, rng, chunk_length):
    inputs, labels = draw(rng, dtype, 41, 8, 19)
    labels[5:9] = -100
    loss = ops.cross_entropy_head(*inputs, labels, chunk_length=chunk_length)
    assert_close(loss, reference.cross_entropy_head(*inputs, labels), "forward", dtype)
    whole = gradients_of(inputs, labels)
    assert_all_close(gradients_of(inputs, labels, chunk_length=chunk_length), whole, "backward")


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize(("n", "c", "v"), [(0, 5, 7), (1, 1, 2), (6, 5, 17), (66, 64, 320)])
def test_smoothed_labels_match_the_reference(isa, dtype, rng, n, c, v, smoothing):
    inputs, labels = draw(rng, dtype, n, c, v)
    labels[1:][rng.random(max(0, n - 1)) < 0.3] = -100
    loss = ops.cross_entropy_head(*inputs, labels, label_smoothing=smoothing)
    expected = reference.cross_entropy_head(*inputs, labels, label_smoothing=smoothing)
    assert_close(loss, expected, "forward", dtype)
    if n == 0:
        assert not any(g.any() for g in gradients_of(inputs, labels, label_smoothing=smoothing))
        return
    exact = gradients_of([np.float64(a) for a in inputs], labels, 1.7, label_smoothing=smoothing)

    def smoothed(*inputs):
        return 1.7 * reference.cross_entropy_head(*inputs, labels, label_smoothing=smoothing)

    assert_is_the_derivative(smoothed, inputs, exact, rng)
    actual = gradients_of(inputs, labels, 1.7, label_smoothing=smoothing)
    assert_all_close(actual, exact, "backward", dtype)


def test_smoothed_labels_match_torch(isa, rng):
    torch = pytest.importorskip("torch")
    inputs, labels = draw(rng, np.float64, 60, 12, 2000)
    labels[rng.random(60) < 0.3] = -100
    tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
    loss = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(*tensors), torch.tensor(labels), label_smoothing=0.1
    )
    loss.backward()
    actual = ops.cross_entropy_head(*inputs, labels, label_smoothing=0.1)
    assert_close(actual, loss.item(), "forward")
    assert_all_close(
        gradients_of(inputs, labels, label_smoothing=0.1),
        [tensor.grad.numpy() for tensor in tensors],
        "backward",
    )


def test_without_bias_there_is_no_gradient_of_it(isa, dtype, rng):
    (h, weight, _), labels = draw(rng, dtype, 9, 4, 6)
    assert gradients_of((h, weight, None), labels)[2] is None


def test_ignored_labels_count_neither_in_the_loss_nor_in_the_gradient(isa, dtype, rng):
    (h, weight, bias), labels = draw(rng, dtype, 20, 5, 9)
    some = rng.random(20) < 0.5
    ignored = np.where(some, labels, 3_000_000_000)
    loss = ops.cross_entropy_head(h, weight, bias, ignored, ignore_index=3_000_000_000)
    expected = reference.cross_entropy_head(h[some], weight, bias, labels[some])
    assert_close(loss, expected, "forward", dtype)
    dh, _, _ = gradients_of((h, weight, bias), np.where(some, labels, -100))
    np.testing.assert_array_equal(dh[~some], 0)
    assert (dh[some] != 0).any(axis=1).all()


def test_all_ignored_is_nan_as_torch_has_it(isa, dtype, rng):
    inputs, labels = draw(rng, dtype, 4, 3, 5)
    assert np.isnan(ops.cross_entropy_head(*inputs, np.full_like(labels, -100)))
    inputs, labels = draw(rng, dtype, 0, 3, 5)
    assert np.isnan(ops.cross_entropy_head(*inputs, labels))


def test_huge_logits_neither_overflow_nor_lose_the_loss(isa, dtype, rng):
    inputs, labels = draw(rng, dtype, 12, 4, 9)
    h, weight, bias = inputs
    h = h * np.dtype(dtype).type(1e4)
    loss = ops.cross_entropy_head(h, weight, bias, labels)
    assert_close(loss, reference.cross_entropy_head(h, weight, bias, labels), "forward", dtype)
    assert all(np.isfinite(g).all() for g in gradients_of((h, weight, bias), labels))


def test_leading_axes_are_kept(isa, dtype, rng):
    (h, weight, bias), labels = draw(rng, dtype, 24, 6, 5)
    shaped = (h.reshape(2, 12, 6), weight, bias), labels.reshape(2, 12)
    assert ops.cross_entropy_head(*shaped[0], shaped[1]) == ops.cross_entropy_head(
        h, weight, bias, labels
    )
    assert gradients_of(*shaped)[0].shape == (2, 12, 6)


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_a_label_outside_the_vocabulary_is_refused(wrong):
    with pytest.raises((ValueError, IndexError), match="labels"):
        ops.cross_entropy_head(
            np.ones((2, 3), "float32"), np.ones((5, 3), "float32"), None, np.array([0, wrong])
        )
