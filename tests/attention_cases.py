"""Inputs that the tests of attention share: arrays, masks, and a way to see the weights."""

import numpy as np
from tolerances import assert_all_close, assert_close

MASKS = ["no mask", "left", "right", "some", "all"]


def normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def assert_forward_and_backward_match(rng, forward, backward, reference, q, k, v, **options):
    """An attention's values and gradients are those of the reference with the same arguments."""
    out, saved = forward(q, k, v, **options)
    expected = reference(q, k, **options)
    assert_close(out, expected.output(v), "attention")
    dout = normal(rng, q.dtype, *q.shape)
    assert_all_close(backward(dout, saved), expected.gradients(v, dout), "attention_backward")


def assert_threads_do_not_matter(rng, forward, backward, q, k, v, **options):
    """Gradients have the same bits for any number of threads, and so however work is divided."""
    dout = normal(rng, q.dtype, *q.shape)
    _, saved = forward(q, k, v, **options)
    expected = backward(dout, saved, workers=1)
    for workers in [2, 3]:
        for a, e in zip(backward(dout, saved, workers=workers), expected, strict=True):
            assert a.tobytes() == e.tobytes()


def mask_of(kind, b, t, rng):
    """A mask (b, t) with zeros where `kind` names, in the first sequence at least."""
    if kind == "no mask":
        return None
    mask = np.ones((b, t), np.int64)
    if kind == "left" and b:
        mask[0, : rng.integers(0, t + 1)] = 0
    elif kind == "right" and b:
        mask[0, rng.integers(0, t + 1) :] = 0
    elif kind == "some":
        mask = rng.integers(0, 2, (b, t))
    elif kind == "all":
        mask[:] = 0
    return mask


def buckets_of(kind, shape, k, mask, rng):
    """Bucket ids (b, h, r, t) below k, as int32; masked positions get the extra id k."""
    buckets = np.zeros(shape, np.int32)
    if kind == "random":
        buckets = rng.integers(0, k, shape).astype(np.int32)
    elif kind == "uneven":
        buckets = np.minimum(rng.geometric(0.6, shape) - 1, k - 1).astype(np.int32)
    elif kind == "own":
        buckets += np.arange(shape[3], dtype=np.int32) % k
    if mask is not None:
        buckets = np.where(np.asarray(mask)[:, None, None, :] != 0, buckets, k).astype(np.int32)
    return buckets


def weights_of(attend, shape, dtype):
    """The weights (b, h, t, t) that attend(v) gives: its outputs for the unit vectors as values."""
    b, h, t, d = shape
    assert t <= d, "one value for each position has to fit into the depth"
    unit = np.broadcast_to(np.eye(t, d, dtype=dtype), (b, h, t, d))
    return attend(np.ascontiguousarray(unit))[..., :t]
