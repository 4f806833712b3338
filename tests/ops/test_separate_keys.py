"""LSH attention with keys of their own; and its window and log-sum-exp, also of shared ones."""

import itertools
import tracemalloc

import numpy as np
import pytest
from attention_cases import (
    MASKS,
    assert_threads_do_not_matter,
    buckets_of,
    mask_of,
    normal,
)
from gradients import assert_backward_is_the_derivative
from reference import attention as reference
from tolerances import assert_all_close, assert_close

from reformer_c import ops
from reformer_c.ops.attention import AttentionSpec, attention_scratch
from reformer_c.ops.separate_keys import centered

SWITCHES = {
    "buckets": {"scope": "bucket"},
    "buckets, union": {"scope": "bucket", "allow_duplicate_attention": False},
    "chunks": {"chunk_length": 7},
    "chunks, union": {"chunk_length": 7, "allow_duplicate_attention": False},
    "chunks, around": {"chunk_length": 5, "num_chunks_before": 2, "num_chunks_after": 1},
    "chunks, alone": {"chunk_length": 9, "num_chunks_before": 0, "wrap": False},
    "chunks, own bucket": {"chunk_length": 6, "attend_across_buckets": False},
    "chunks, own bucket, union": {
        "chunk_length": 6,
        "attend_across_buckets": False,
        "allow_duplicate_attention": False,
        "num_chunks_after": 1,
        "wrap": False,
    },
    "one chunk": {"chunk_length": 500},
}


def case(rng, dtype, b, h, hk, t, tk, d, r, k, kinds=("random", "uneven")):
    q = normal(rng, dtype, b, h, t, d)
    keys, v = normal(rng, dtype, b, hk, tk, d), normal(rng, dtype, b, hk, tk, d)
    buckets = buckets_of(kinds[0], (b, h, r, t), k, None, rng)
    key_buckets = buckets_of(kinds[1], (b, h, r, tk), k, None, rng)
    return q, keys, v, {"buckets": buckets, "key_buckets": key_buckets, "num_hashes": r}


def mine(q, v, k, options):
    return ops.lsh_attention_forward(q, v, k=k, lse=True, **options)


def theirs(q, k, options):
    rules = {name: value for name, value in options.items() if name != "num_hashes"}
    ids = rules.pop("buckets"), rules.pop("key_buckets")
    return reference.separate(q, k, *ids, **rules)


def assert_matches(rng, q, k, v, options):
    """Values, log-sum-exps and gradients are those of the reference."""
    (out, lse), saved = mine(q, v, k, options)
    expected = theirs(q, k, options)
    assert_close(out, expected.output(v), "attention")
    empty = np.isneginf(expected.lse)
    np.testing.assert_array_equal(np.isneginf(lse), empty)
    assert_close(np.where(empty, 0, lse), np.where(empty, 0, expected.lse), "attention")
    assert not out[empty].any()
    dout = normal(rng, q.dtype, *q.shape)
    found = ops.lsh_attention_backward(dout, saved)
    assert_all_close(found, expected.gradients(v, dout), "attention_backward")
    return out


SIZES = [(37, 37), (20, 90), (90, 20), (1, 70), (70, 1)]
WINDOWS = [None, 0, 3, 40]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_reference_says_the_same(isa, dtype, rng, switch, is_causal, window):
    for i, (t, tk) in enumerate(SIZES):
        mask = mask_of(MASKS[(i + WINDOWS.index(window)) % len(MASKS)], 2, tk, rng)
        q, k, v, options = case(rng, dtype, 2, 2, 1, t, tk, 5, 1 + i % 3, 4)
        options |= SWITCHES[switch] | {"is_causal": is_causal, "attention_mask": mask}
        assert_matches(rng, q, k, v, options | {"local_window": window})


@pytest.mark.parametrize("hk", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("switch", ["buckets", "buckets, union", "chunks, union"])
def test_heads_may_share_keys(isa, dtype, rng, hk, softcap, window, switch):
    q, k, v, options = case(rng, dtype, 2, 4, hk, 41, 33, 6, 2, 4)
    options |= {"softcap": softcap, "local_window": window, "scale": 0.4, "is_causal": True}
    assert_matches(rng, q, k, v, options | SWITCHES[switch])


@pytest.mark.parametrize(("t", "tk"), [(300, 500), (700, 130), (520, 520)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 0, 64, 100])
@pytest.mark.parametrize("switch", ["buckets", "buckets, union", "long chunks"])
@pytest.mark.parametrize("buckets", [1, 2, 9])
def test_buckets_and_windows_of_several_blocks(isa, rng, t, tk, is_causal, window, switch, buckets):
    q, k, v, options = case(rng, "float64", 1, 1, 1, t, tk, 8, 2, buckets)
    options |= SWITCHES.get(switch, {"chunk_length": 150, "allow_duplicate_attention": False})
    options |= {"is_causal": is_causal, "local_window": window}
    options |= {"attention_mask": mask_of("some", 1, tk, rng)}
    assert_matches(rng, q, k, v, options)


# with twelve heads, one task processes buckets of up to eight blocks of queries
@pytest.mark.parametrize(("hk", "t", "tk"), [(12, 700, 300), (12, 700, 900), (4, 530, 600)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("buckets", [1, 2])
def test_buckets_of_several_spans(rng, hk, t, tk, is_causal, window, buckets):
    q, k, v, options = case(rng, "float64", 1, 12, hk, t, tk, 4, 2, buckets)
    options |= {"scope": "bucket", "is_causal": is_causal, "local_window": window}
    options |= {"attention_mask": mask_of("some", 1, tk, rng)}
    assert_matches(rng, q, k, v, options)

    def forward(q, k, v, **options):
        return ops.lsh_attention_forward(q, v, k=k, **options)

    assert_threads_do_not_matter(rng, forward, ops.lsh_attention_backward, q, k, v, **options)


@pytest.mark.parametrize(("t", "tk"), [(0, 5), (5, 0), (0, 0), (3, 0)])
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("window", [None, 2])
def test_nothing_to_attend_to(isa, dtype, rng, t, tk, switch, window):
    q, k, v, options = case(rng, dtype, 1, 2, 2, t, tk, 4, 2, 3)
    options |= SWITCHES[switch] | {"local_window": window}
    (out, lse), saved = mine(q, v, k, options)
    assert out.shape == q.shape and not out.any() and np.isneginf(lse).all()
    for gradient in ops.lsh_attention_backward(np.ones_like(out), saved):
        assert not gradient.any()


@pytest.mark.parametrize("switch", ["buckets", "buckets, union", "chunks, union", "one chunk"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_backward_is_the_derivative(isa, dtype, rng, switch, is_causal, window):
    q, k, v, options = case(rng, dtype, 1, 2, 1, 13, 17, 4, 2, 3)
    options |= SWITCHES[switch] | {"is_causal": is_causal, "local_window": window}
    options |= {"attention_mask": mask_of("some", 1, 17, rng)}

    def backward(dout, saved):
        dq, dk, dv = ops.lsh_attention_backward(dout, saved)
        return dq, dv, dk

    assert_backward_is_the_derivative(
        lambda q, v, k: ops.lsh_attention_forward(q, v, k=k, **options), backward,
        lambda q, v, k: theirs(q, k, options).output(v), (q, v, k), rng, "attention_backward",
    )  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("sizes", [(2, 4, 4, 150, 260), (1, 4, 2, 310, 310)])
def test_threads_do_not_matter(rng, switch, window, sizes):
    q, k, v, options = case(rng, "float32", *sizes, 8, 2, 5)
    options |= SWITCHES[switch] | {"local_window": window, "is_causal": True, "dropout": 0.1}
    results = [ops.lsh_attention(q, v, k=k, workers=n, **options).tobytes() for n in (1, 2, 3)]
    assert results[0] == results[1] == results[2]

    def forward(q, k, v, **options):
        return ops.lsh_attention_forward(q, v, k=k, **options)

    assert_threads_do_not_matter(rng, forward, ops.lsh_attention_backward, q, k, v, **options)


# ---- the rules ----


def test_one_bucket_is_exact_attention(isa, dtype, rng):
    q, k, v, options = case(rng, dtype, 2, 2, 2, 40, 40, 6, 3, 1, ("one", "one"))
    for is_causal, duplicates in itertools.product([False, True], repeat=2):
        out, lse = ops.lsh_attention(
            q, v, k=k, scope="bucket", is_causal=is_causal, lse=True,
            allow_duplicate_attention=duplicates, **options,
        )  # fmt: skip
        full, saved = ops.full_attention_forward(q, k, v, is_causal=is_causal)
        assert_close(out, full, "attention")
        times = 3 if duplicates else 1
        assert_close(lse, saved.lse + np.log(times), "attention")


def test_a_window_of_everything_is_exact_attention(isa, dtype, rng):
    for t, tk in [(40, 40), (20, 50)]:
        q, k, v, options = case(rng, dtype, 2, 2, 1, t, tk, 6, 2, 7)
        for window in (tk, 2**31 - 1):
            out = ops.lsh_attention(q, v, k=k, scope="bucket", local_window=window, **options)
            assert_close(out, ops.full_attention(q, k, v), "attention")


@pytest.mark.parametrize("scope", ["bucket", "chunk"])
@pytest.mark.parametrize("window", [None, 4])
def test_later_tokens_change_nothing_of_a_causal_run_in_buckets(isa, dtype, rng, scope, window):
    if scope == "chunk":
        pytest.skip("edges of chunks depend on later tokens")
    q, k, v = (normal(rng, dtype, 1, 2, 1500, 4) for _ in range(3))
    options = {
        "rotations": ops.lsh_rotations(2, 4, num_hashes=2, num_buckets=8, rng=0, dtype=dtype),
        "num_hashes": 2, "num_buckets": 8, "is_causal": True, "local_window": window,
        "scope": scope,
    }  # fmt: skip
    out, saved = ops.lsh_attention_forward(q, v, k=k, **options)
    for n in (1, 700, 1100):
        part, of_part = ops.lsh_attention_forward(
            q[:, :, :n], v[:, :, :n], k=k[:, :, :n], **options
        )
        np.testing.assert_array_equal(of_part.key_buckets, saved.key_buckets[..., :n])
        assert_close(part, out[:, :, :n], "attention")


def test_parts_are_merged_by_their_log_sum_exps(isa, dtype, rng):
    q, k, v, options = case(rng, dtype, 2, 2, 1, 30, 50, 6, 1, 3)
    del options["buckets"], options["key_buckets"]
    dout = normal(rng, dtype, *q.shape)
    whole, of_whole = ops.full_attention_forward(q, k, v)
    parts = [np.s_[:, :, :20], np.s_[:, :, 20:]]
    results = [
        ops.lsh_attention_forward(q, v[part], k=k[part], local_window=50, scope="bucket", rng=0,
                                  lse=True) for part in parts
    ]  # fmt: skip
    (one, lse_1), (two, lse_2) = (result for result, _ in results)
    lse = np.logaddexp(lse_1, lse_2)
    share = np.exp(lse_1 - lse)[..., None]
    merged = share * one + (1 - share) * two
    assert_close(merged, whole, "attention")
    assert_close(lse, of_whole.lse, "attention")
    # gradients of the merged result
    expected = ops.full_attention_backward(dout, of_whole)
    found = [
        ops.lsh_attention_backward(dout, saved._replace(out=merged, lse=lse))
        for _, saved in results
    ]
    joined = [found[0][0] + found[1][0], *(np.concatenate(x, 2) for x in zip(*found, strict=True))]
    assert_all_close([joined[0], joined[2], joined[3]], expected, "attention_backward")


def test_a_query_that_finds_no_key_sees_all(isa, dtype, rng):
    q, k, v, options = case(rng, dtype, 1, 1, 1, 100, 80, 6, 1, 2)
    options |= {"scope": "bucket", "buckets": np.zeros((1, 1, 1, 100), int)}
    options["key_buckets"] = np.ones((1, 1, 1, 80), int)
    for is_causal in [False, True]:
        assert_matches(rng, q, k, v, options | {"is_causal": is_causal})
    assert_close(ops.lsh_attention(q, v, k=k, **options), ops.full_attention(q, k, v), "attention")


@pytest.mark.parametrize("score", [-6e4, -3e5])
def test_extremely_low_scores_are_scores(isa, rng, score):
    q, k, v, options = case(rng, "float64", 1, 1, 1, 3, 4, 64, 1, 1)
    k[:] = q[..., :1, :] / np.linalg.norm(q[..., 0, :]) ** 2 * score * 8
    k[..., 1:, :] *= 1 + 1e-6
    options |= {"scope": "bucket"}
    (out, lse), saved = mine(q, v, k, options)
    expected = theirs(q, k, options)
    # float64 rounds such scores by up to 1e-10, and so the logarithms of their probabilities
    assert_close(out, expected.output(v), "self_only", scale=8.0)
    assert_close(lse, expected.lse, "attention")
    dout = normal(rng, "float64", *q.shape)
    # not dq: it is a difference of nearly equal multiples of nearly equal keys
    found = ops.lsh_attention_backward(dout, saved)[1:]
    for mine_of, theirs_of in zip(found, expected.gradients(v, dout)[1:], strict=True):
        scale = 8 * np.abs(theirs_of).max()
        assert_close(mine_of, theirs_of, "self_only", scale=scale)


# ---- hashing ----


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask_kind", ["no mask", "left", "some", "all"])
@pytest.mark.parametrize("hk", [1, 2])
def test_keys_are_hashed_less_their_mean(dtype, rng, is_causal, mask_kind, hk):
    q, k, v, _ = case(rng, dtype, 2, 4, hk, 9, 1100, 6, 1, 2)
    k += 3
    mask = mask_of(mask_kind, 2, 1100, rng)
    rotations = ops.lsh_rotations(4, 6, num_hashes=2, num_buckets=4, rng=0, dtype=dtype)
    _, saved = ops.lsh_attention_forward(
        q, v, k=k, num_hashes=2, num_buckets=4, rotations=rotations, is_causal=is_causal,
        attention_mask=mask, scope="bucket",
    )  # fmt: skip
    real = np.ones((2, 1100)) if mask is None else mask
    kept, real = np.float64(k) * real[:, None, :, None], real[:, None, :, None]
    if is_causal:
        mean = kept.cumsum(2) / np.maximum(real.cumsum(2), 1)
    else:
        mean = kept.sum(2, keepdims=True) / np.maximum(real.sum(2, keepdims=True), 1)
    expected = ops.lsh_hash(
        reference.for_each_head((k - mean).astype(dtype), 4), num_hashes=2, num_buckets=4,
        rotations=rotations, attention_mask=mask,
    )  # fmt: skip
    assert np.mean(saved.key_buckets != expected) < 0.01
    np.testing.assert_array_equal(
        saved.buckets, ops.lsh_hash(q, num_hashes=2, num_buckets=4, rotations=rotations)
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_centred_keys_are_one_array(rng, is_causal):
    k = rng.standard_normal((1, 2, 20_000, 8))
    tracemalloc.start()
    centered(k, "keys", None, is_causal)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * k.nbytes


def test_what_is_subtracted_may_be_given(dtype, rng):
    q, k, v, _ = case(rng, dtype, 2, 4, 2, 9, 30, 6, 1, 2)
    options = {"num_hashes": 2, "num_buckets": 4, "rng": 0, "scope": "bucket"}

    def ids(k, center):
        return ops.lsh_attention_forward(q, v, k=k, center=center, **options)[1].key_buckets

    center = normal(rng, dtype, 2, 6)
    np.testing.assert_array_equal(ids(k, center), ids(k - center[:, None], None))
    np.testing.assert_array_equal(ids(k, center[0]), ids(k - center[0], None))
    np.testing.assert_array_equal(ids(k, k.mean(axis=2, keepdims=True)), ids(k, "keys"))
    assert (ids(k + 2, None) != ids(k + 2, "keys")).any()


def test_saved_buckets_repeat_the_call(isa, dtype, rng):
    q, k, v, _ = case(rng, dtype, 2, 4, 2, 90, 130, 6, 1, 2)
    options = {"scope": "bucket", "num_hashes": 3, "local_window": 4}
    out, saved = ops.lsh_attention_forward(q, v, k=k, rng=0, **options)
    again = ops.lsh_attention(
        q, v, k=k, buckets=saved.buckets, key_buckets=saved.key_buckets, **options
    )
    np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_axes_may_be_missing(dtype, rng, axes):
    q, k, v, options = case(rng, dtype, 1, 1, 1, 30, 50, 6, 2, 3)
    at = (0,) * (3 - axes) if axes < 3 else (0,)
    whole, lse = ops.lsh_attention(q, v, k=k, scope="bucket", lse=True, rng=0)
    mask = np.ones((1, 50))
    part = ops.lsh_attention(
        q[at], v[at], k=k[at], scope="bucket", lse=True, rng=0,
        attention_mask=mask[0] if axes < 4 else mask,
    )  # fmt: skip
    np.testing.assert_array_equal(part[0], whole[at])
    np.testing.assert_array_equal(part[1], lse[at])
    assert options["num_hashes"] == 2


# ---- other options ----


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("switch", ["buckets, union", "chunks"])
@pytest.mark.parametrize("window", [None, 30])
def test_products_may_be_rounded(isa, rng, precision, switch, window):
    q, k, v, options = case(rng, "float32", 1, 2, 2, 200, 150, 16, 2, 3)
    options |= SWITCHES[switch] | {"local_window": window, "is_causal": True}
    dout = normal(rng, "float32", *q.shape)
    found, exact = (
        ops.lsh_attention_forward(q, v, k=k, matmul_precision=p, **options)
        for p in (precision, "highest")
    )
    assert_close(found[0], exact[0], precision)
    gradients = (ops.lsh_attention_backward(dout, saved) for _, saved in (found, exact))
    assert_all_close(*gradients, precision)


@pytest.mark.parametrize("switch", ["buckets", "buckets, union", "chunks", "one chunk"])
@pytest.mark.parametrize("window", [None, 3])
def test_dropout_keeps_the_mean_and_its_gradient(isa, rng, switch, window):
    q, k, v, options = case(rng, "float64", 1, 1, 1, 12, 20, 20, 2, 3)
    v[:] = np.eye(20)
    options |= SWITCHES[switch] | {"local_window": window, "dropout": 0.5}
    exact = ops.lsh_attention(q, v, k=k, **options | {"dropout": 0.0})
    draws = [ops.lsh_attention(q, v, k=k, dropout_key=i, **options) for i in range(400)]
    assert np.abs(np.mean(draws, axis=0) - exact).max() < 0.2
    # linear in v: the gradient by v is that of the same weights
    dout = normal(rng, "float64", *q.shape)
    _, saved = ops.lsh_attention_forward(q, v, k=k, dropout_key=7, **options)
    dv = ops.lsh_attention_backward(dout, saved)[2]
    assert_close(dv, draws[7].swapaxes(-1, -2) @ dout, "attention_backward")


def test_values_that_are_not_finite_reach_only_who_sees_them(isa, dtype, rng):
    q, k, v, options = case(rng, dtype, 1, 1, 1, 80, 90, 4, 2, 4)
    options |= {"scope": "bucket", "local_window": 3, "allow_duplicate_attention": False}
    sees = theirs(q, k, options).weights[0, 0, :, 11] > 0
    v[..., 11, :] = np.nan
    out = ops.lsh_attention(q, v, k=k, **options)
    np.testing.assert_array_equal(np.isnan(out[0, 0]).all(-1), sees)
    assert np.isfinite(out[0, 0][~sees]).all()


def test_the_result_and_the_log_sum_exp_are_written_to_given_arrays(dtype, rng):
    q, k, v, options = case(rng, dtype, 2, 2, 2, 30, 30, 4, 2, 4)
    out, lse = np.empty_like(q), np.empty(q.shape[:3], dtype)
    pair = ops.lsh_attention(q, v, k=k, scope="bucket", out=out, lse=lse, **options)
    assert pair[0] is out and pair[1] is lse
    expected = ops.lsh_attention(q, v, k=k, scope="bucket", lse=True, **options)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(lse, expected[1])


# ---- shared queries and keys ----

SHARED = {
    "chunks": {"chunk_length": 7},
    "chunks, union": {"chunk_length": 7, "allow_duplicate_attention": False},
    "chunks, own bucket": {"chunk_length": 6, "attend_across_buckets": False, "wrap": False},
    "buckets": {"scope": "bucket"},
    "buckets, union": {"scope": "bucket", "allow_duplicate_attention": False},
    "buckets, cap": {"scope": "bucket", "bucket_cap": 64},
    "one chunk": {"chunk_length": 500},
}


@pytest.mark.parametrize("switch", SHARED)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_shared_keys_have_a_window(isa, dtype, rng, switch, is_causal, window):
    kinds = ["no mask", "left", "some", "right"]
    for i, t in enumerate([1, 37, 38, 130]):
        mask = mask_of(kinds[(i + WINDOWS.index(window)) % 4], 1, t, rng)
        rules = SHARED[switch] | {"is_causal": is_causal, "local_window": window}
        assert_shared_matches(rng, dtype, t, 1 + i % 2, rules | {"attention_mask": mask})


def assert_shared_matches(rng, dtype, t, r, rules):
    mask = rules["attention_mask"]
    qk, v = normal(rng, dtype, 1, 2, t, 5), normal(rng, dtype, 1, 1, t, 5)
    buckets = buckets_of("uneven", (1, 2, r, t), 4, mask, rng)
    (out, lse), saved = ops.lsh_attention_forward(
        qk, v, num_hashes=r, buckets=buckets, lse=True, **rules
    )
    expected = reference.lsh(qk, buckets, **rules)
    dout = normal(rng, dtype, *qk.shape)
    seeing = expected.moving.any(axis=-1)
    assert_close(out[seeing], expected.output(v)[seeing], "attention")
    assert_close(lse[seeing], expected.lse[seeing], "attention")
    # alone: -1e5 plus the logarithm of a count, as rounded
    assert_close(lse[~seeing], expected.lse[~seeing], "self_only")
    if seeing.all() or dtype == np.float64:
        found = ops.lsh_attention_backward(dout, saved)
        kind = "attention_backward" if seeing.all() else "self_only"
        assert_all_close(found, expected.gradients(v, dout), kind)


def test_a_token_alone_has_a_log_sum_exp(isa, dtype, rng):
    qk, v = normal(rng, dtype, 1, 1, 20, 4), normal(rng, dtype, 1, 1, 20, 4)
    own = np.arange(20, dtype=np.int32)[None, None, None]
    for r in (1, 3):
        _, lse = ops.lsh_attention(
            qk, v, num_hashes=r, buckets=np.repeat(own, r, axis=2), scope="bucket", lse=True
        )
        assert_close(lse, np.full_like(lse, -1e5 + np.log(r)), "self_only")


# ---- errors and memory ----


def test_scratch_is_known_before_the_call():
    spec = AttentionSpec("lsh", scope="bucket", num_buckets=(8,), local_window=4)
    few, many = (attention_scratch(spec, (1, 2, 1000, 8), num_keys=n) for n in (1000, 100_000))
    # places and tokens of 99,000 more keys, of two heads, in both passes
    assert all(b - a >= 2 * 2 * 4 * 99_000 for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize(("wrong", "error"), [
    (dict(k=np.ones((1, 1, 5, 3))), r"^k must have the axes of q"),
    (dict(k=np.ones((1, 5, 2))), r"^k must have the axes of q"),
    (dict(k=np.ones((1, 1, 5, 2), "f4")), r"^k must be float64"),
    (dict(v=np.ones((1, 1, 4, 2))), r"^v must have shape .* tk"),
    (dict(k=np.ones((1, 0, 5, 2))), r"^k must have hk that divides h = 1 of q, got 0"),
    (dict(attention_mask=np.ones((1, 4))), r"^attention_mask must have shape \(1, 5\)"),
    (dict(attention_mask=-np.ones((1, 5))), r"^attention_mask must be nonzero"),
    (dict(bucket_cap=64), r"^bucket_cap must be None with k, got 64"),
    (dict(local_window=-1), r"^local_window must be an integer >= 0"),
    (dict(local_window=1.5), r"^local_window must be an integer >= 0"),
    (dict(local_window=2**31), r"^local_window must be an integer"),
    (dict(center="mean"), r"^center must be 'keys', None or an array, got 'mean'"),
    (dict(center=np.ones(3)), r"^center must have shape \(d,\), \(hk, d\)"),
    (dict(center=np.ones((5, 2, 2))), r"^center must have shape \(d,\), \(hk, d\)"),
    (dict(center=[True, False]), r"^center must be of real numbers, got bool"),
    (dict(center=[0.0, np.nan]), r"^center must be finite numbers, got inf or nan"),
    (dict(buckets=np.zeros((1, 1, 1, 4), int)), r"^key_buckets must be given with k and buckets"),
    (dict(key_buckets=np.zeros((1, 1, 1, 5), int)), r"^key_buckets must be given with k and"),
    (dict(buckets=np.zeros((1, 1, 1, 4), int), key_buckets=np.zeros((1, 1, 1, 4), int)),
     r"^key_buckets must have shape .* tk = 5"),
    (dict(buckets=np.zeros((1, 1, 1, 4), int), key_buckets=np.zeros((1, 1, 2, 5), int)),
     r"^key_buckets must have shape .* num_hashes = 1"),
    (dict(buckets=np.zeros((1, 1, 1, 4), int), key_buckets=np.full((1, 1, 1, 5), 9)),
     r"^key_buckets\[0, 0, 0, 0\] = 9 is out of range"),
    (dict(lse=np.empty((1, 1, 5))), r"^lse must have shape"),
    (dict(lse=np.empty((1, 1, 4), "f4")), r"^lse must be float64"),
    (dict(lse="yes"), r"^lse must be"),
])  # fmt: skip
@pytest.mark.parametrize("scope", ["bucket", "chunk"])
def test_errors(wrong, error, scope):
    if "bucket_cap" in wrong and scope == "chunk":
        pytest.skip("another message")
    right = {
        "k": np.ones((1, 1, 5, 2)), "v": np.ones((1, 1, 5, 2)), "num_buckets": 4, "scope": scope,
        "chunk_length": 2,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError, IndexError), match=error):
        ops.lsh_attention(np.ones((1, 1, 4, 2)), **right | wrong)


def test_what_is_subtracted_is_checked_where_nothing_is_hashed():
    q, k = np.ones((1, 1, 4, 2)), np.ones((1, 1, 5, 2))
    with pytest.raises(ValueError, match=r"^center must have shape \(d,\), \(hk, d\)"):
        ops.lsh_attention(q, k, k=k, center=np.ones(3))  # one chunk
    ids = {"buckets": np.zeros((1, 1, 1, 4), int), "key_buckets": np.zeros((1, 1, 1, 5), int)}
    with pytest.raises(ValueError, match=r"^center must be left out with buckets"):
        ops.lsh_attention(q, k, k=k, center=np.ones(2), scope="bucket", **ids)


@pytest.mark.parametrize("wrong", [dict(center=None), dict(key_buckets=np.zeros((1, 1, 1, 4)))])
def test_what_belongs_to_separate_keys_needs_them(wrong):
    x = np.ones((1, 1, 4, 2))
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        ops.lsh_attention(x, x, num_buckets=4, rng=0, **wrong)
