"""rc.full_attention: exact softmax attention over every key."""

import functools

import numpy as np
import pytest
from attention_cases import (
    MASKS,
    assert_forward_and_backward_match,
    assert_threads_do_not_matter,
    mask_of,
    normal,
)
from gradients import assert_backward_is_the_derivative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import attention as reference
from tolerances import assert_all_close, assert_close, tolerance

from reformer_c import ops

quick = settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

LENGTHS = [1, 3, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65]
DEPTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256]
SHAPES = [
    *((t, t, 5) for t in LENGTHS),
    *((t, 9, 6) for t in LENGTHS),
    *((10, tk, 6) for tk in LENGTHS),
    *((9, 9, d) for d in DEPTHS),
    (129, 127, 64), (64, 200, 33), (270, 330, 8), (330, 270, 8),
]  # fmt: skip

# the operation, and its reference
FULL = (ops.full_attention_forward, ops.full_attention_backward, reference.full)


def draw(rng, dtype, t, tk, d, b=2, h=2):
    return [normal(rng, dtype, b, h, n, d) for n in (t, tk, tk)]


@pytest.mark.parametrize(("t", "tk", "d"), SHAPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_matches_the_reference(isa, dtype, rng, t, tk, d, is_causal):
    q, k, v = draw(rng, dtype, t, tk, d, b=1)
    out = ops.full_attention(q, k, v, is_causal=is_causal)
    assert out.dtype == q.dtype
    assert_close(out, reference.full(q, k, is_causal=is_causal).output(v), "attention")


@pytest.mark.parametrize(("t", "tk", "d"), [s for s in SHAPES if s[0] == s[1]])
@pytest.mark.parametrize("is_causal", [False, True])
def test_shared_queries_match_the_reference(isa, dtype, rng, t, tk, d, is_causal):
    qk, _, v = draw(rng, dtype, t, t, d, b=1)
    out = ops.full_attention(qk, None, v, is_causal=is_causal, shared_qk=True)
    assert_close(out, reference.full(qk, None, is_causal=is_causal).output(v), "attention")


@pytest.mark.parametrize(("t", "tk", "d"), SHAPES)
def test_backward_matches_the_reference(isa, dtype, rng, t, tk, d):
    q, k, v = draw(rng, dtype, t, tk, d, b=1)
    dout = normal(rng, dtype, *q.shape)
    for is_causal in [False, True]:
        _, saved = ops.full_attention_forward(q, k, v, is_causal=is_causal)
        expected = reference.full(q, k, is_causal=is_causal).gradients(v, dout)
        assert_all_close(ops.full_attention_backward(dout, saved), expected, "attention_backward")


@pytest.mark.parametrize(("t", "tk"), [(600, 600), (600, 300), (300, 600)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_whole_heads_and_pieces_of_heads_give_the_same_gradients(isa, dtype, rng, t, tk, is_causal):
    # one or two threads process whole heads; three share them in pieces
    q, k, v = draw(rng, dtype, t, tk, 5, b=1)
    options = {"is_causal": is_causal, "attention_mask": rng.random((1, tk)) < 0.9}
    assert_forward_and_backward_match(rng, *FULL, q, k, v, **options)
    assert_threads_do_not_matter(rng, *FULL[:2], q, k, v, **options)
    if t == tk:
        shared = [
            functools.partial(ops.full_attention_forward, shared_qk=True),
            lambda dout, saved, **more: ops.full_attention_backward(dout, saved, **more)[::2],
        ]
        assert_forward_and_backward_match(rng, *shared, reference.full, q, None, v, **options)
        assert_threads_do_not_matter(rng, *shared, q, None, v, **options)


@pytest.mark.parametrize("is_causal", [False, True])
def test_as_many_keys_are_seen_as_there_are_queries_but_not_the_same(isa, dtype, rng, is_causal):
    # 50 queries see 50 of 64 keys in one block: their number does not tell which they are
    q, k, v = draw(rng, dtype, 50, 64, 16, b=1)
    mask = np.ones((1, 64), bool)
    mask[0, 5:19] = False
    options = {"is_causal": is_causal, "attention_mask": mask}
    assert_forward_and_backward_match(rng, *FULL, q, k, v, **options)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shared_qk", [False, True])
def test_backward_is_the_derivative(isa, dtype, rng, is_causal, shared_qk):
    q, k, v = draw(rng, dtype, 19, 19, 6)
    mask = mask_of("left", 2, 19, rng)
    options = {"is_causal": is_causal, "attention_mask": mask, "scale": 0.6}

    def forward(q, *kv):
        k = None if shared_qk else kv[0]
        return ops.full_attention_forward(q, k, kv[-1], shared_qk=shared_qk, **options)

    def backward(dout, saved):
        gradients = ops.full_attention_backward(dout, saved)
        return tuple(g for g in gradients if g is not None)

    def outcome(q, *kv):
        return reference.full(q, None if shared_qk else kv[0], **options).output(kv[-1])

    inputs = (q, v) if shared_qk else (q, k, v)
    # the first rows see nothing, and in float32 take the sum where float64 takes the mean
    kind = "attention_backward"
    if np.dtype(dtype) == np.float32:
        mask[0, 0] = mask[1, 0] = 1
    assert_backward_is_the_derivative(forward, backward, outcome, inputs, rng, kind)


@quick
@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from(MASKS),
    st.sampled_from([None, 0.0, 0.4, -1.5]),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 9),
)
def test_any_shape_mask_and_scale(
    isa, b, h, t, tk, d, is_causal, shared_qk, mask_kind, scale, dtype, seed
):
    rng = np.random.default_rng(seed)
    tk = t if shared_qk else tk
    q, k, v = draw(rng, dtype, t, tk, d, b, h)
    k = None if shared_qk else k
    mask = mask_of(mask_kind, b, tk, rng)
    options = {"is_causal": is_causal, "attention_mask": mask, "scale": scale}
    out, saved = ops.full_attention_forward(q, k, v, shared_qk=shared_qk, **options)
    expected = reference.full(q, k, **options)
    assert_close(out, expected.output(v), "attention")
    dout = normal(rng, dtype, b, h, t, d)
    gradients = ops.full_attention_backward(dout, saved)
    if shared_qk:
        assert gradients[1] is None
    gradients = [g for g in gradients if g is not None]
    assert_all_close(gradients, expected.gradients(v, dout), "attention_backward")


@pytest.mark.parametrize("kind", ["bool", "int8", "int64", "float32", "float64"])
def test_a_mask_of_any_type_says_nonzero_is_real(isa, rng, kind):
    q, k, v = draw(rng, "float32", 7, 7, 4)
    real = np.array([[1, 0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]])
    expected = ops.full_attention(q, k, v, attention_mask=real)
    assert_close(expected, reference.full(q, k, attention_mask=real).output(v), "attention")
    odd = (real * (0.5 if "float" in kind else 3)).astype(kind)
    np.testing.assert_array_equal(ops.full_attention(q, k, v, attention_mask=odd), expected)


def test_no_keys_give_zero_and_no_queries_give_nothing(isa, dtype, rng):
    q, k, v = draw(rng, dtype, 5, 0, 4)
    out, saved = ops.full_attention_forward(q, k, v)
    np.testing.assert_array_equal(out, np.zeros_like(q))
    dq, dk, dv = ops.full_attention_backward(np.ones_like(out), saved)
    np.testing.assert_array_equal(dq, np.zeros_like(q))
    assert dk.shape == dv.shape == k.shape
    q, k, v = draw(rng, dtype, 0, 5, 4)
    out, saved = ops.full_attention_forward(q, k, v)
    assert out.shape == q.shape
    for gradient in ops.full_attention_backward(out, saved)[1:]:
        np.testing.assert_array_equal(gradient, np.zeros_like(k))


def test_a_causal_query_sees_keys_up_to_its_own_position(isa, dtype, rng):
    """Also where the lengths differ: positions count from the first of each."""
    q, k, v = draw(rng, dtype, 6, 9, 4)
    out = ops.full_attention(q, k, v, is_causal=True)
    for i in range(6):
        row = reference.full(q[:, :, i : i + 1], k[:, :, : i + 1]).output(v[:, :, : i + 1])
        assert_close(out[:, :, i : i + 1], row, "attention", dtype)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e2, 1e4])
def test_large_and_small_scores_neither_overflow_nor_vanish(isa, rng, size):
    q, k, v = (
        x * s for x, s in zip(draw(rng, "float64", 33, 40, 16), (size, size, 1), strict=True)
    )
    for is_causal in [False, True]:
        out, saved = ops.full_attention_forward(q, k, v, is_causal=is_causal)
        # a score's rounding is a share of the score
        expected = reference.full(q, k, is_causal=is_causal).output(v)
        assert_close(out, expected, "forward", scale=size**2 * 16)
        assert all(np.isfinite(g).all() for g in ops.full_attention_backward(out, saved))


@pytest.mark.parametrize("size", [1e4, 1e6, 1e10, 1e15])
def test_huge_scores_in_float32_stay_among_the_values(isa, rng, size):
    q, k, v = (
        x * np.float32(s)
        for x, s in zip(draw(rng, "float32", 33, 40, 16), (size, 1, 1), strict=True)
    )
    out, saved = ops.full_attention_forward(q, k, v)
    lowest, highest = v.min(axis=2, keepdims=True), v.max(axis=2, keepdims=True)
    slack = tolerance("attention", "float32")
    assert ((out >= lowest - slack) & (out <= highest + slack)).all()
    assert all(np.isfinite(g).all() for g in ops.full_attention_backward(out, saved))


def test_a_score_that_rises_along_the_keys_needs_a_new_maximum_each_time(isa, dtype):
    """The worst order for a softmax in one pass; and the best."""
    t, d = 150, 8
    k = np.zeros((1, 1, t, d), dtype)
    k[..., 0] = np.linspace(-300, 300, t)
    q = np.zeros((1, 1, 3, d), dtype)
    q[0, 0, :, 0] = 1, -1, 0
    v = np.random.default_rng(0).standard_normal((1, 1, t, d)).astype(dtype)
    out = ops.full_attention(q, k, v, scale=1.0)
    assert_close(out, reference.full(q, k, scale=1.0).output(v), "attention")


def test_hidden_rows_take_the_sum_in_float32_and_the_mean_in_float64(isa, dtype, rng):
    q, k, v = draw(rng, dtype, 5, 5, 4)
    nothing = np.zeros((2, 5))
    out, saved = ops.full_attention_forward(q, k, v, attention_mask=nothing)
    share = 1 if np.dtype(dtype) == np.float32 else 1 / 5
    window = share * np.float64(v).sum(axis=2, keepdims=True)
    assert_close(out, np.broadcast_to(window, out.shape), "hidden")
    dout = normal(rng, dtype, *out.shape)
    dq, dk, dv = ops.full_attention_backward(dout, saved)
    assert not dq.any()
    assert not dk.any()
    column = share * np.float64(dout).sum(axis=2, keepdims=True)
    assert_close(dv, np.broadcast_to(column, dv.shape), "hidden")


def test_a_value_or_key_that_is_not_a_number_reaches_only_the_queries_that_see_it(isa, dtype, rng):
    q, k, v = draw(rng, dtype, 40, 40, 16)
    clean = ops.full_attention(q, k, v, is_causal=True)
    for spoilt in ("key", "value"):
        k_, v_ = k.copy(), v.copy()
        (k_ if spoilt == "key" else v_)[0, 1, 21, 3] = np.nan
        out = ops.full_attention(q, k_, v_, is_causal=True)
        assert np.isnan(out[0, 1, 21:]).any(axis=-1).all(), spoilt
        assert_close(out[0, 1, :21], clean[0, 1, :21], "attention")
        assert_close(out[:, 0], clean[:, 0], "attention")
        assert_close(out[1], clean[1], "attention")


def test_a_masked_key_may_hold_anything(isa, dtype, rng):
    """Values in padding, NaN included, change no result."""
    q, k, v = draw(rng, dtype, 20, 20, 8)
    mask = np.ones((2, 20))
    mask[:, [3, 4, 17]] = 0
    clean = ops.full_attention(q, k, v, attention_mask=mask)
    for anything in [np.nan, np.inf, -np.inf]:
        k_, v_ = k.copy(), v.copy()
        k_[:, :, [3, 17]] = anything
        v_[:, :, [4, 17]] = anything
        assert_close(ops.full_attention(q, k_, v_, attention_mask=mask), clean, "attention")


def test_an_array_may_be_its_own_key_and_value(isa, dtype, rng):
    # trax added 1 to the queries in place; with shared arrays in NumPy that would shift the keys
    x = normal(rng, dtype, 1, 2, 13, 6)
    separate = ops.full_attention(x.copy(), x.copy(), x.copy())
    np.testing.assert_array_equal(ops.full_attention(x, x, x), separate)
