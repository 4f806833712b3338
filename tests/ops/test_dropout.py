"""rc.dropout: bits that depend on the key and the element alone."""

import numpy as np
import pytest
from reference.dropout import assert_bernoulli, kept

from reformer_c import ops

RATES = [0.05, 0.1, 0.5, 0.9]


def nonzero(rng, shape, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    return np.where(np.abs(x) < 1e-3, np.ones((), dtype), x)


@pytest.mark.parametrize("p", RATES)
def test_a_share_p_is_dropped_and_the_rest_scaled(isa, dtype, rng, p):
    x = nonzero(rng, (97, 211), dtype)
    y = ops.dropout(x, p, key=12345)
    assert y.dtype == x.dtype
    keep = kept(x, y, p)
    assert_bernoulli(keep, p)
    # the same share in rows, columns and strides
    assert_bernoulli(keep[:, ::2], p)
    assert_bernoulli(keep[::2], p)
    assert_bernoulli(keep.ravel()[3::4], p)
    both = keep.ravel()[1:] & keep.ravel()[:-1]
    assert_bernoulli(both, 1 - (1 - p) ** 2, sigmas=7)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257])
def test_backward_drops_the_same_elements(isa, dtype, rng, n):
    x, dout = nonzero(rng, n, dtype), nonzero(rng, n, dtype)
    y, saved = ops.dropout_forward(x, 0.3, key=7)
    dx = ops.dropout_backward(dout, saved)
    np.testing.assert_array_equal(kept(x, y, 0.3), kept(dout, dx, 0.3))


def test_an_elements_bit_does_not_depend_on_the_length(isa, dtype):
    long = ops.dropout(np.ones(1000, dtype), 0.4, key=3)
    for n in [1, 5, 64, 333]:
        np.testing.assert_array_equal(ops.dropout(np.ones(n, dtype), 0.4, key=3), long[:n])


def test_the_mask_is_the_same_in_every_type_and_instruction_set(isa):
    masks = [ops.dropout(np.ones(500, t), 0.25, key=99) != 0 for t in ("float32", "float64")]
    np.testing.assert_array_equal(*masks)
    assert SEEN.setdefault("mask", masks[0].tobytes()) == masks[0].tobytes()


SEEN = {}


def test_other_keys_draw_other_masks_however_close_they_are(isa, dtype):
    ones = np.ones(20_000, dtype)
    keys = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    masks = [ops.dropout(ones, 0.5, key=key) != 0 for key in keys]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert_bernoulli(a == b, 0.5)


def test_zero_drops_nothing(isa, dtype, rng):
    x = nonzero(rng, (5, 7), dtype)
    np.testing.assert_array_equal(ops.dropout(x, 0.0, key=1), x)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match=r"\bp\b"):
        ops.dropout(np.ones(3, "float32"), p, key=0)
