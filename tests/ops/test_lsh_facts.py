"""Properties of rc.lsh_attention for any input: which keys a query sees, and extreme values."""

from functools import partial

import numpy as np
import pytest
from attention_cases import buckets_of, mask_of, normal, weights_of
from reference import attention as reference
from reference import hf_layers
from tolerances import assert_close, largest, tolerance

from reformer_c import ops

SCOPES = ["chunk", "bucket"]


# trax PR #1539: editing later tokens moves chunk edges, so that earlier outputs change though no
# later token is attended to. With the buckets held fixed, nothing may change.
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("duplicates", [True, False])
def test_causal_outputs_do_not_depend_on_later_tokens(isa, dtype, rng, scope, across, duplicates):
    t = 50
    qk, v = normal(rng, dtype, 1, 2, t, 8), normal(rng, dtype, 1, 2, t, 8)
    options = {
        "num_hashes": 3,
        "num_buckets": 4,
        "buckets": buckets_of("random", (1, 2, 3, t), 4, None, rng),
        "chunk_length": 8,
        "num_chunks_after": 1,
        "is_causal": True,
        "scope": scope,
        "attend_across_buckets": across,
        "allow_duplicate_attention": duplicates,
    }
    clean = ops.lsh_attention(qk, v, **options)
    for p in [1, 7, 8, 31, 49]:
        for later in [3.0, np.nan]:
            qk_, v_ = qk.copy(), v.copy()
            qk_[:, :, p:] *= later
            v_[:, :, p:] += later
            out = ops.lsh_attention(qk_, v_, **options)
            assert_close(out[:, :, :p], clean[:, :, :p], "attention")


@pytest.mark.parametrize("allow_duplicate_attention", [True, False])
def test_whole_buckets_are_strictly_causal(isa, dtype, rng, allow_duplicate_attention):
    """A longer text does not change the outputs of its beginning."""
    qk, v = normal(rng, dtype, 2, 2, 60, 8), normal(rng, dtype, 2, 2, 60, 8)
    options = {
        "num_hashes": 3,
        "num_buckets": (2, 4),
        "rotations": normal(rng, dtype, 2, 8, 3, 3),
        "scope": "bucket",
        "is_causal": True,
        "chunk_length": 16,
        "allow_duplicate_attention": allow_duplicate_attention,
    }
    whole = ops.lsh_attention(qk, v, **options)
    for t in [1, 2, 15, 16, 17, 33, 59]:
        prefix = ops.lsh_attention(qk[:, :, :t], v[:, :, :t], **options)
        assert_close(prefix, whole[:, :, :t], "attention")


@pytest.mark.parametrize("scope", SCOPES)
def test_the_weights_of_a_query_sum_to_1(isa, dtype, rng, scope):
    # Rick-McCoy corrected duplicates after the log-sum-exp, so that weights did not add up
    t, shape = 30, (2, 2, 30, 32)
    qk = normal(rng, dtype, *shape)
    buckets = buckets_of("random", (2, 2, 4, t), 4, None, rng)
    for duplicates in [True, False]:
        for across in [True, False]:
            options = {
                "chunk_length": 7,
                "scope": scope,
                "is_causal": True,
                "attend_across_buckets": across,
                "allow_duplicate_attention": duplicates,
            }
            attend = partial(
                ops.lsh_attention, qk, num_hashes=4, num_buckets=4, buckets=buckets, **options
            )
            weights = weights_of(attend, shape, dtype)
            seeing = reference.lsh(qk, buckets, **options).moving.any(axis=-1)
            sums = weights.sum(axis=-1)
            assert_close(sums[seeing], np.ones(seeing.sum()), "forward", dtype)
            assert_close(sums[~seeing], np.ones((~seeing).sum()), "self_only", dtype)


def test_corrected_duplicates_count_each_pair_once(isa, dtype, rng):
    """The paper's set: the union of the query's buckets over the rounds, each key once."""
    t, shape = 30, (1, 2, 30, 32)
    qk = normal(rng, dtype, *shape)
    buckets = buckets_of("random", (1, 2, 4, t), 4, None, rng)
    weights = weights_of(
        lambda v: ops.lsh_attention(
            qk, v, num_hashes=4, num_buckets=4, buckets=buckets, scope="bucket",
            allow_duplicate_attention=False,
        ),
        shape, dtype,
    )  # fmt: skip
    met = (buckets[..., :, None] == buckets[..., None, :]).any(axis=2)
    scores = np.float64(qk) @ reference.normalised(np.float64(qk)).swapaxes(-1, -2) / np.sqrt(32)
    once = np.where(met & ~np.eye(t, dtype=bool), np.exp(scores), 0)
    assert_close(weights, once / once.sum(axis=-1, keepdims=True), "attention")


def test_chunks_with_corrected_duplicates_and_own_buckets_are_whole_buckets(isa, dtype, rng):
    """Where no bucket reaches out of its window, fixed chunks find the whole buckets."""
    qk, v = normal(rng, dtype, 1, 2, 40, 8), normal(rng, dtype, 1, 2, 40, 8)
    buckets = np.stack([rng.permutation(np.arange(40) // 4) for _ in range(4)])
    buckets = buckets.reshape(1, 2, 2, 40).astype(np.int32)
    for duplicates in [True, False]:
        options = {"num_hashes": 2, "num_buckets": 10, "buckets": buckets, "is_causal": True,
                       "allow_duplicate_attention": duplicates}  # fmt: skip
        chunks = ops.lsh_attention(
            qk, v, chunk_length=8, num_chunks_before=1, attend_across_buckets=False, **options
        )
        whole = ops.lsh_attention(qk, v, scope="bucket", **options)
        seeing = reference.lsh(qk, buckets, scope="bucket", is_causal=True).moving.any(axis=-1)
        assert_close(chunks[seeing], whole[seeing], "attention")
        assert_close(chunks[~seeing], whole[~seeing], "self_only")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mask_kind", ["left", "all"])
def test_rows_that_see_only_themselves_give_their_own_value(isa, dtype, rng, scope, mask_kind):
    # lucidrains PR #26: masks of -inf made such rows NaN
    t = 20
    mask = mask_of(mask_kind, 1, t, rng)
    mask[:, :9] = 0
    qk, v = normal(rng, dtype, 1, 2, t, 8), normal(rng, dtype, 1, 2, t, 8)
    buckets = buckets_of("random", (1, 2, 3, t), 4, mask, rng)
    options = {"chunk_length": 6, "is_causal": True, "attention_mask": mask, "scope": scope}
    out, saved = ops.lsh_attention_forward(
        qk, v, num_hashes=3, num_buckets=4, buckets=buckets, **options
    )
    alone = ~reference.lsh(qk, buckets, **options).moving.any(axis=-1)
    assert alone.any()
    assert_close(out[alone], v[alone], "self_only")
    dout = normal(rng, dtype, *out.shape) * alone[..., None].astype(dtype)
    dqk, dv = ops.lsh_attention_backward(dout, saved)
    np.testing.assert_array_equal(dqk, np.zeros_like(qk))
    assert_close(dv, dout, "self_only")


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_such_rows_are_rounded_as_hugging_face_rounds_them(isa, rng, r):
    """-1e5 + log n in float32 is a multiple of 1/128, and the weights show it."""
    t = 26
    mask = np.zeros((1, t))
    mask[0, 20:] = 1
    qk, v = normal(rng, "float32", 1, 2, t, 8), normal(rng, "float32", 1, 2, t, 8)
    buckets = buckets_of("random", (1, 2, r, t), 4, mask, rng)
    for before, after in [(1, 0), (3, 1), (0, 0)]:
        options = {"chunk_length": 13, "is_causal": True, "attention_mask": mask,
                       "num_chunks_before": before, "num_chunks_after": after}  # fmt: skip
        out = ops.lsh_attention(qk, v, num_hashes=r, num_buckets=4, buckets=buckets, **options)
        theirs = hf_layers.lsh(qk, v, buckets, **options)
        assert_close(out, theirs, "attention")


NOT_HUGGING_FACES = [
    {"scope": "bucket"},
    {"scope": "bucket", "bucket_cap": 64},
    {"allow_duplicate_attention": False},
    {"allow_duplicate_attention": False, "num_chunks_before": 9},
    {"attend_across_buckets": False},
    {"wrap": False},
]


@pytest.mark.parametrize("options", NOT_HUGGING_FACES, ids=str)
@pytest.mark.parametrize("r", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("t", [13, 40])
def test_such_rows_are_their_value_where_hugging_face_has_no_such_attention(
    isa, dtype, rng, options, r, t
):
    """Bit for bit: the rounding of Hugging Face's log-sum-exp, 9e-3 in float32, is not repeated."""
    qk, v, dout = normal(rng, dtype, 3, 1, 2, t, 8)
    mask = np.ones((1, t), bool)
    mask[0, :3] = False
    # each token of a bucket of its own
    buckets = np.broadcast_to(np.arange(t), (1, 2, r, t))
    options = {"chunk_length": 8, "is_causal": True, "attention_mask": mask} | options
    out, saved = ops.lsh_attention_forward(qk, v, num_hashes=r, buckets=buckets, **options)
    alone = np.zeros(t, bool)
    alone[:4] = True
    if "scope" in options or "attend_across_buckets" in options:
        alone[:] = True
    np.testing.assert_array_equal(out[:, :, alone], v[:, :, alone])
    dout[:, :, ~alone] = 0
    dqk, dv = ops.lsh_attention_backward(dout, saved)
    np.testing.assert_array_equal(dqk, np.zeros_like(qk))
    np.testing.assert_array_equal(dv, dout)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 0), (3, 2)])
@pytest.mark.parametrize("t", [11, 13, 17])
def test_such_rows_may_see_chunks_repeatedly_around_the_circle(isa, dtype, rng, before, after, t):
    rules = {"chunk_length": 8, "num_chunks_before": before, "num_chunks_after": after, "rng": 0}
    # with a window, the first row sees only itself
    qk, v = 1 + rng.random((2, 1, 1, t, 4)).astype(dtype)
    shared = rules | {"is_causal": True, "local_window": 0, "num_hashes": 2}
    out, saved = ops.lsh_attention_forward(qk, v, **shared)
    assert_close(out[0, 0, 0], v[0, 0, 0], "forward")
    # with separate keys, all scores are low
    q, k = np.full_like(qk, 1e4), -1e3 * qk
    low, saved_low = ops.lsh_attention_forward(q, v, k=k, **rules)
    assert low.min() >= 1
    assert low.max() <= 2
    # the weights of each row sum to 1
    for result in (saved, saved_low):
        dv = ops.lsh_attention_backward(np.ones_like(v), result)[-1]
        assert_close(dv.sum(), np.asarray(v.size, dtype), "backward")


def test_such_rows_drop_each_meeting_for_itself(isa, dtype, rng):
    t, r = 600, 3
    qk, v = normal(rng, dtype, 2, 1, 1, t, 8)
    buckets = np.broadcast_to(np.arange(t), (1, 1, r, t))
    out = ops.lsh_attention(
        qk, v, num_hashes=r, buckets=buckets, scope="bucket", dropout=0.5, dropout_key=3
    )
    share = (out / v)[0, 0, :, 0]  # of three occurrences, each 0 or 2 thirds
    kept = np.round(share * 1.5)
    np.testing.assert_allclose(share, kept / 1.5, rtol=tolerance("forward", dtype))
    assert set(kept) == {0, 1, 2, 3}


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_not_a_number_reaches_only_the_queries_that_see_it(isa, dtype, rng, scope):
    t, spoilt = 45, 21
    qk, v = normal(rng, dtype, 1, 2, t, 8), normal(rng, dtype, 1, 2, t, 8)
    buckets = buckets_of("random", (1, 2, 2, t), 4, None, rng)
    for options in [{}, {"is_causal": True}, {"attend_across_buckets": False}]:
        options = dict(chunk_length=8, scope=scope, **options)
        mine = dict(num_hashes=2, num_buckets=4, buckets=buckets, **options)
        sees = reference.lsh(qk, buckets, **options).moving[0, 0, :, spoilt] != 0
        sees[spoilt] = True
        clean = ops.lsh_attention(qk, v, **mine)
        for name in ["qk", "v"]:
            qk_, v_ = qk.copy(), v.copy()
            (qk_ if name == "qk" else v_)[0, 0, spoilt, 3] = np.nan
            out = ops.lsh_attention(qk_, v_, **mine)
            assert_close(out[0, 0, ~sees], clean[0, 0, ~sees], "attention")
            assert_close(out[0, 1], clean[0, 1], "attention")
            others = sees & (np.arange(t) != spoilt)
            assert np.isnan(out[0, 0, others]).any(axis=-1).all(), name
            if name == "qk":
                assert np.isnan(out[0, 0, spoilt]).all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e-3])
def test_equal_vectors_share_their_attention_equally(isa, dtype, rng, scope, size):
    t = 24
    qk = np.full((1, 1, t, 4), size, dtype)
    v = normal(rng, dtype, 1, 1, t, 4)
    one = np.zeros((1, 1, 2, t), np.int32)
    options = {
        "num_buckets": 2,
        "chunk_length": 12,
        "num_chunks_after": 1,
        "wrap": False,
        "scope": scope,
    }
    out, saved = ops.lsh_attention_forward(qk, v, num_hashes=2, buckets=one, **options)
    others = (v.sum(axis=2, keepdims=True) - v) / (t - 1)
    assert_close(out, others, "attention")
    assert all(np.isfinite(g).all() for g in ops.lsh_attention_backward(np.ones_like(v), saved))
    # hashed, they fall into one bucket too
    hashed = ops.lsh_attention(qk, v, num_hashes=2, rng=0, **options)
    assert_close(hashed, others, "attention")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-6, 1e-3, 1e2, 1e4, 1e5, 1e6])
def test_large_and_small_vectors_match_the_reference_in_float64(isa, rng, scope, size):
    """Beyond 1e5 scores can be below a query's constant score with itself, which then wins."""
    t = 30
    qk, v = size * normal(rng, "float64", 1, 2, t, 6), normal(rng, "float64", 1, 2, t, 6)
    qk[:, :, ::3] *= 1e-3
    options = {"chunk_length": 8, "is_causal": True, "scope": scope}
    buckets = buckets_of("random", (1, 2, 2, t), 4, None, rng)
    mine = dict(num_hashes=2, num_buckets=4, buckets=buckets, **options)
    out, saved = ops.lsh_attention_forward(qk, v, **mine)
    expected = reference.lsh(qk, buckets, **options)
    # a score's rounding is a share of the score
    loose = tolerance("attention_backward", "float64") * max(1, size)
    np.testing.assert_allclose(out, expected.output(v), rtol=0, atol=loose)
    dout = normal(rng, "float64", *v.shape)
    gradients = expected.gradients(v, dout)
    scale = max(largest(e) for e in gradients)
    for found, e in zip(ops.lsh_attention_backward(dout, saved), gradients, strict=True):
        np.testing.assert_allclose(found, e, rtol=0, atol=100 * loose * scale)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e3, 1e4, 1e6])
def test_large_and_small_vectors_in_float32_stay_among_the_values(isa, rng, scope, size):
    t = 30
    qk, v = normal(rng, "float32", 1, 2, t, 6), normal(rng, "float32", 1, 2, t, 6)
    qk *= np.float32(size)
    options = {"chunk_length": 8, "scope": scope, "num_hashes": 2, "num_buckets": 4, "rng": 0}
    for is_causal in [False, True]:
        out, saved = ops.lsh_attention_forward(qk, v, is_causal=is_causal, **options)
        lowest, highest = v.min(axis=2, keepdims=True), v.max(axis=2, keepdims=True)
        slack = tolerance("self_only", "float32") * np.abs(v).max()
        assert ((out >= lowest - slack) & (out <= highest + slack)).all()
        assert all(np.isfinite(g).all() for g in ops.lsh_attention_backward(np.ones_like(v), saved))


def test_one_long_vector_among_short_ones_matches_the_reference(isa, dtype, rng):
    """A bound on the scores that one long query sets must not drown the others."""
    t = 40
    qk, v = normal(rng, dtype, 1, 1, t, 8), normal(rng, dtype, 1, 1, t, 8)
    qk[0, 0, 7] *= 300
    qk[0, 0, 20] /= 300
    buckets = buckets_of("random", (1, 1, 2, t), 4, None, rng)
    for scope in SCOPES:
        options = {"chunk_length": 8, "scope": scope}
        out = ops.lsh_attention(qk, v, num_hashes=2, num_buckets=4, buckets=buckets, **options)
        expected = reference.lsh(qk, buckets, **options).output(v)
        assert_close(out, expected, "attention" if dtype == np.float64 else "self_only")


@pytest.mark.parametrize("gap", [50, 95, 150, 1000])
def test_scores_far_below_their_bound_do_not_vanish(isa, dtype, rng, gap):
    """|q| bounds every score, but all keys may point away: exp(score - bound) would be 0."""
    t, d = 32, 4
    qk, v = 0.1 * normal(rng, dtype, 1, 1, t, d), normal(rng, dtype, 1, 1, t, d)
    qk[..., 0] += 1
    qk[0, 0, 13] = [-gap, 0, 0, 0]  # every other key is opposite
    one = np.zeros((1, 1, 1, t), np.int32)
    for scope in SCOPES:
        options = {"scope": scope, "chunk_length": 16, "num_chunks_after": 1, "scale": 1.0}
        out, saved = ops.lsh_attention_forward(qk, v, buckets=one, num_buckets=2, **options)
        expected = reference.lsh(qk, one, **options)
        # a score's rounding is a share of the score
        assert_close(out, expected.output(v), "rounding", dtype, scale=2 * gap)
        dout = normal(rng, dtype, *v.shape)
        gradients = ops.lsh_attention_backward(dout, saved)
        for found, e in zip(gradients, expected.gradients(v, dout), strict=True):
            assert_close(found, e, "rounding", dtype, scale=40 * gap * largest(e))
