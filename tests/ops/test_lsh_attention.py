"""rc.lsh_attention: attention among vectors that hash alike."""

import numpy as np
import pytest
from attention_cases import MASKS, buckets_of, mask_of, normal
from gradients import assert_backward_is_the_derivative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import attention as reference
from reference import hashing, hf_layers
from tolerances import assert_all_close, assert_close, tolerance

from reformer_c import ops

quick = settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

CHUNKS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200]


def assert_matches(rng, dtype, qk, v, buckets, num_buckets, **options):
    """Forward and backward against the reference; rows that see only themselves more loosely."""
    out, saved = ops.lsh_attention_forward(
        qk, v, num_hashes=buckets.shape[2], num_buckets=num_buckets, buckets=buckets, **options
    )
    assert out.dtype == qk.dtype
    expected = reference.lsh(qk, buckets, **options)
    seeing = expected.moving.any(axis=-1)
    want = expected.output(v)
    assert_close(out[seeing], want[seeing], "attention")
    assert_close(out[~seeing], want[~seeing], "self_only")

    # gradients of rows that see only themselves have tests of their own
    dout = normal(rng, dtype, *qk.shape) * seeing[..., None].astype(dtype)
    gradients = ops.lsh_attention_backward(dout, saved)
    assert all(g.dtype == qk.dtype for g in gradients)
    assert_all_close(gradients, expected.gradients(v, dout), "attention_backward")
    return out


def case(rng, dtype, b, h, t, d, r, k, kind="random", mask=None):
    qk, v = normal(rng, dtype, b, h, t, d), normal(rng, dtype, b, h, t, d)
    return qk, v, buckets_of(kind, (b, h, r, t), k, mask, rng)


@pytest.mark.parametrize("m", CHUNKS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_chunk_length_matches_the_reference(isa, dtype, rng, m, is_causal):
    for t in [2 * m + 1, 3 * m - 1] if m < 10 else [2 * m + m // 2]:
        qk, v, buckets = case(rng, dtype, 1, 1, t, 6, 2, 4)
        assert_matches(rng, dtype, qk, v, buckets, 4, chunk_length=m, is_causal=is_causal)


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_chunks_and_buckets_longer_than_what_one_task_holds(isa, dtype, rng, scope, is_causal):
    mask = rng.random((1, 600)) < 0.9
    qk, v, buckets = case(rng, dtype, 1, 1, 600, 8, 2, 6, "uneven", mask)
    options = {"chunk_length": 270, "scope": scope, "is_causal": is_causal, "attention_mask": mask}
    assert_matches(rng, dtype, qk, v, buckets, 6, **options)
    options["allow_duplicate_attention"] = False
    assert_matches(rng, dtype, qk, v, buckets, 6, **options)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 128, 255, 256])
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_every_depth_matches_the_reference(isa, dtype, rng, d, scope):
    qk, v, buckets = case(rng, dtype, 1, 2, 29, d, 2, 4)
    assert_matches(rng, dtype, qk, v, buckets, 4, chunk_length=8, scope=scope, is_causal=True)


@pytest.mark.parametrize("t", [0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25])
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_ragged_lengths_match_the_reference(isa, dtype, rng, t, scope):
    for is_causal in [False, True]:
        qk, v, buckets = case(rng, dtype, 2, 2, t, 5, 3, 4)
        assert_matches(
            rng, dtype, qk, v, buckets, 4, chunk_length=8, scope=scope, is_causal=is_causal
        )


@pytest.mark.parametrize("before", [0, 1, 2, 3])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("wrap", [False, True])
def test_windows_larger_than_the_circle_match_the_reference(isa, dtype, rng, before, after, wrap):
    options = {
        "num_chunks_before": before,
        "num_chunks_after": after,
        "wrap": wrap,
        "chunk_length": 4,
    }
    for t, r in [(5, 1), (8, 1), (11, 2), (17, 1)]:
        qk, v, buckets = case(rng, dtype, 1, 1, t, 3, r, 4)
        assert_matches(rng, dtype, qk, v, buckets, 4, **options)


SWITCHES = {
    "plain": {},
    "causal": {"is_causal": True},
    "without wrapping": {"wrap": False},
    "own bucket only": {"attend_across_buckets": False},
    "duplicates corrected": {"allow_duplicate_attention": False},
    "look ahead": {"num_chunks_after": 1},
    "no look-back": {"num_chunks_before": 0},
    "scale": {"scale": 0.25},
    "no scale": {"scale": 0.0},
    "negative scale": {"scale": -1.0},
    "whole buckets": {"scope": "bucket"},
    "whole buckets, causal": {"scope": "bucket", "is_causal": True},
    "whole buckets, duplicates corrected": {"scope": "bucket", "allow_duplicate_attention": False},
    "all": {"is_causal": True, "wrap": False, "attend_across_buckets": False, "num_chunks_after": 1,
                "allow_duplicate_attention": False},
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("r", [1, 3])
def test_every_switch_alone_matches_the_reference(isa, dtype, rng, switch, mask_kind, r):
    mask = mask_of(mask_kind, 2, 21, rng)
    qk, v, buckets = case(rng, dtype, 2, 2, 21, 6, r, 4, mask=mask)
    assert_matches(
        rng, dtype, qk, v, buckets, 4, chunk_length=5, attention_mask=mask, **SWITCHES[switch]
    )


@quick
@given(
    st.integers(0, 2), st.integers(1, 3), st.integers(0, 36), st.integers(1, 20), st.integers(1, 4),
    st.sampled_from(["random", "uneven", "one", "own"]), st.sampled_from(MASKS),
    st.sampled_from(["float32", "float64"]), st.integers(0, 9),
    st.fixed_dictionaries({
        "chunk_length": st.integers(1, 12) | st.just(40),
        "num_chunks_before": st.integers(0, 3),
        "num_chunks_after": st.integers(0, 3),
        "is_causal": st.booleans(),
        "scope": st.sampled_from(["chunk", "chunk", "bucket"]),
        "scale": st.sampled_from([None, None, 0.3, -1.0]),
        "attend_across_buckets": st.booleans(),
        "allow_duplicate_attention": st.booleans(),
        "wrap": st.booleans(),
    }),
)  # fmt: skip
def test_any_combination_of_switches_matches_the_reference(
    isa, b, h, t, d, r, bucket_kind, mask_kind, dtype, seed, options
):
    rng = np.random.default_rng(seed)
    mask = mask_of(mask_kind, b, t, rng)
    qk, v, buckets = case(rng, dtype, b, h, t, d, r, 6, bucket_kind, mask)
    assert_matches(rng, dtype, qk, v, buckets, 6, attention_mask=mask, **options)


# lucidrains PR #104: the gradient of several rounds went through a sort of all rounds at once
@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize(
    "switch",
    [
        "plain",
        "causal",
        "duplicates corrected",
        "own bucket only",
        "without wrapping",
        "whole buckets, causal",
        "all",
    ],
)
def test_backward_is_the_derivative(isa, dtype, rng, r, switch):
    mask = np.ones((2, 17))
    mask[0, 3] = mask[1, 12:] = 0
    qk, v, buckets = case(rng, dtype, 2, 2, 17, 5, r, 4, mask=mask)
    options = dict(chunk_length=4, attention_mask=mask, **SWITCHES[switch])
    mine = dict(num_hashes=r, num_buckets=4, buckets=buckets, **options)
    # in float32 the weights of rows that see only themselves show the rounding of 1e5
    seeing = reference.lsh(qk, buckets, **options).moving.any(axis=-1, keepdims=True)
    assert_backward_is_the_derivative(
        lambda *a: ops.lsh_attention_forward(*a, **mine), ops.lsh_attention_backward,
        lambda qk, v: reference.lsh(qk, buckets, **options).output(v), (qk, v), rng,
        "attention_backward", compare=seeing,
    )  # fmt: skip


@pytest.mark.parametrize("t", [8, 9, 16, 21, 26, 33])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("num_buckets", [4, (2, 4)])
def test_the_defaults_are_hugging_faces_padded_evaluation(
    isa, rng, t, is_causal, mask_kind, num_buckets
):
    mask = mask_of(mask_kind, 2, t, rng)
    qk, v = normal(rng, "float32", 2, 2, t, 6), normal(rng, "float32", 2, 2, t, 6)
    r = 3
    rotations = normal(rng, "float32", 2, 6, r, sum(hashing.factors_of(num_buckets)) // 2)
    options = {
        "chunk_length": 8,
        "num_chunks_before": 1,
        "num_chunks_after": 1,
        "is_causal": is_causal,
        "attention_mask": mask,
    }
    out = ops.lsh_attention(
        qk, v, num_hashes=r, num_buckets=num_buckets, rotations=rotations, **options
    )
    buckets = hashing.lsh_hash(qk, rotations, num_buckets, mask)
    theirs = hf_layers.lsh(qk, v, buckets, **options)
    alone = ~reference.lsh(qk, buckets, **options).moving.any(axis=-1)
    assert_close(out[~alone], theirs[~alone], "attention")
    assert_close(out[alone], theirs[alone], "self_only")


def test_rotations_and_the_buckets_that_they_give_are_the_same_call(isa, dtype, rng):
    # lucidrains PR #81: hashing rebuilt (rounded) inputs again in the backward flipped buckets
    qk, v = normal(rng, dtype, 2, 2, 37, 8), normal(rng, dtype, 2, 2, 37, 8)
    mask = mask_of("some", 2, 37, rng)
    options = {"num_hashes": 3, "num_buckets": (2, 4), "chunk_length": 7, "attention_mask": mask}
    rotations = normal(rng, dtype, 2, 8, 3, 3)
    out, saved = ops.lsh_attention_forward(qk, v, rotations=rotations, **options)
    hashed = ops.lsh_hash(
        qk, num_hashes=3, num_buckets=(2, 4), rotations=rotations, attention_mask=mask
    )
    assert saved.buckets.dtype == np.int32
    np.testing.assert_array_equal(saved.buckets, hashed)

    again, saved_again = ops.lsh_attention_forward(qk, v, buckets=saved.buckets, **options)
    np.testing.assert_array_equal(again, out)
    dout = normal(rng, dtype, *out.shape)
    for a, e in zip(
        ops.lsh_attention_backward(dout, saved_again),
        ops.lsh_attention_backward(dout, saved),
        strict=True,
    ):
        np.testing.assert_array_equal(a, e)

    # a little noise, the buckets kept: a little change, not another neighbourhood
    noisy = qk + np.dtype(dtype).type(1e-6) * normal(rng, dtype, *qk.shape)
    close, _ = ops.lsh_attention_forward(noisy, v, buckets=saved.buckets, **options)
    assert_close(close, out, "noise")


def test_a_seed_gives_the_same_attention_again(isa, dtype, rng):
    qk, v = normal(rng, dtype, 1, 2, 40, 8), normal(rng, dtype, 1, 2, 40, 8)
    options = {"num_hashes": 2, "num_buckets": 8, "chunk_length": 8}
    once = ops.lsh_attention(qk, v, rng=5, **options)
    np.testing.assert_array_equal(ops.lsh_attention(qk, v, rng=5, **options), once)
    generator = np.random.default_rng(5)
    np.testing.assert_array_equal(ops.lsh_attention(qk, v, rng=generator, **options), once)
    assert (ops.lsh_attention(qk, v, rng=6, **options) != once).any()
    rotations = ops.lsh_rotations(2, 8, num_hashes=2, num_buckets=8, rng=5, dtype=dtype)
    np.testing.assert_array_equal(ops.lsh_attention(qk, v, rotations=rotations, **options), once)
    assert np.isfinite(ops.lsh_attention(qk, v, **options)).all()


# Hugging Face #4543 and trax #1664: numbers of buckets frozen from the first length seen
def test_the_number_of_buckets_is_chosen_from_each_length_anew(isa, dtype, rng):
    for t in [40, 9, 17, 70, 40]:
        qk, v = normal(rng, dtype, 1, 1, t, 8), normal(rng, dtype, 1, 1, t, 8)
        chosen = ops.choose_num_buckets(t, 8)
        _, saved = ops.lsh_attention_forward(qk, v, chunk_length=8, rng=1)
        _, named = ops.lsh_attention_forward(qk, v, chunk_length=8, rng=1, num_buckets=chosen)
        np.testing.assert_array_equal(saved.buckets, named.buckets)
        assert saved.buckets.max() < np.prod(chosen)


def test_up_to_one_chunk_is_full_attention_whatever_the_rounds(isa, dtype, rng):
    qk, v = normal(rng, dtype, 2, 2, 9, 4), normal(rng, dtype, 2, 2, 9, 4)
    for is_causal in [False, True]:
        full = ops.full_attention(qk, None, v, is_causal=is_causal, shared_qk=True)
        for m in [9, 10, 64]:
            options = {"chunk_length": m, "is_causal": is_causal, "num_hashes": 4, "rng": 0}
            out, saved = ops.lsh_attention_forward(qk, v, **options)
            np.testing.assert_array_equal(out, full)
            assert saved.buckets is None


def test_one_bucket_is_full_attention(isa, dtype, rng):
    # lucidrains: its full attention for short inputs forgot the scale, and positions
    qk, v = normal(rng, dtype, 2, 2, 24, 6), normal(rng, dtype, 2, 2, 24, 6)
    mask = mask_of("right", 2, 24, rng)
    mask[:, :2] = 1
    for is_causal in [False, True]:
        options = {"is_causal": is_causal, "attention_mask": mask, "scale": 0.35}
        full = ops.full_attention(qk, None, v, shared_qk=True, **options)
        seeing = reference.full(qk, None, **options).moving.any(axis=-1)
        one = buckets_of("one", (2, 2, 1, 24), 2, mask, rng)
        whole = ops.lsh_attention(
            qk, v, buckets=one, num_buckets=2, scope="bucket", chunk_length=4, **options
        )
        # a masked query is in the bucket of masked positions
        visible = seeing & (mask[:, None] != 0)
        assert_close(whole[visible], full[visible], "attention")
        covered = {
            "chunk_length": 12,
            "num_chunks_after": 1,
            "wrap": False,
            "buckets": one,
            "num_buckets": 2,
        }
        assert_close(
            ops.lsh_attention(qk, v, **covered, **options)[seeing], full[seeing], "attention"
        )


def test_equal_rounds_are_one_round(isa, dtype, rng):
    """The same buckets twice over change nothing, whether or not duplicates are corrected."""
    qk, v, buckets = case(rng, dtype, 1, 2, 26, 6, 1, 4)
    for scope, wrap in [("chunk", False), ("bucket", True)]:
        options = {
            "num_buckets": 4,
            "chunk_length": 6,
            "scope": scope,
            "wrap": wrap,
            "is_causal": True,
        }
        once = ops.lsh_attention(qk, v, buckets=buckets, **options)
        three = np.repeat(buckets, 3, axis=2)
        for allow in [True, False]:
            out = ops.lsh_attention(
                qk, v, num_hashes=3, buckets=three, allow_duplicate_attention=allow, **options
            )
            seeing = reference.lsh(qk, buckets, chunk_length=6, scope=scope, wrap=wrap,
                                   is_causal=True).moving.any(axis=-1)  # fmt: skip
            assert_close(out[seeing], once[seeing], "attention")


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("score", [-6e4, -8e4, -99e3])
def test_a_dreadful_score_still_beats_the_token_itself(isa, dtype, rng, scope, score):
    qk = normal(rng, dtype, 1, 1, 1, 64) * np.array([1, score], dtype)[:, None]
    qk[..., 1, :] /= np.linalg.norm(qk[..., 0, :])
    v, buckets = normal(rng, dtype, 1, 1, 2, 64), np.zeros((1, 1, 1, 2), np.int32)
    rules = {"chunk_length": 1 if scope == "chunk" else 64, "scope": scope, "is_causal": True}
    out = ops.lsh_attention(qk, v, num_buckets=2, buckets=buckets, **rules)
    np.testing.assert_array_equal(out[..., 1, :], v[..., 0, :])
    np.testing.assert_array_equal(out[..., 0, :], v[..., 0, :])


def test_every_bucket_is_alone_where_each_token_has_its_own(isa, dtype, rng):
    qk, v = normal(rng, dtype, 1, 1, 20, 4), normal(rng, dtype, 1, 1, 20, 4)
    own = np.arange(20, dtype=np.int32)[None, None, None]
    for options in [
        {"scope": "bucket"},
        {"scope": "bucket", "is_causal": True},
        {"attend_across_buckets": False, "chunk_length": 6},
    ]:
        out, saved = ops.lsh_attention_forward(qk, v, buckets=own, num_buckets=20, **options)
        assert_close(out, v, "self_only")
        dout = normal(rng, dtype, 1, 1, 20, 4)
        dqk, dv = ops.lsh_attention_backward(dout, saved)
        assert_close(dv, dout, "self_only")
        assert not dqk.any()


@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("r", [1, 2, 3])
def test_within_buckets_a_token_meets_itself_once_a_round(isa, rng, r, before, duplicates):
    """Chunks reach into other rounds, where no bucket is the token's own."""
    qk, v = normal(rng, "float64", 1, 1, 6, 4), normal(rng, "float64", 1, 1, 6, 4)
    own = np.arange(6)
    buckets = np.array([own, own[::-1], own])[None, None, :r]
    options = {
        "chunk_length": 2, "num_chunks_before": before, "attend_across_buckets": False,
        "allow_duplicate_attention": duplicates,
    }  # fmt: skip
    out, lse = ops.lsh_attention(qk, v, buckets=buckets, num_hashes=r, lse=True, **options)
    assert_close(out, v, "self_only")
    expected = reference.lsh(qk, buckets, **options).lse
    assert_close(np.exp(lse + 1e5), np.exp(expected + 1e5), "self_only")
    if not duplicates:
        assert_close(np.exp(lse + 1e5), np.ones(lse.shape), "self_only")


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_huge_ids_cost_no_more_than_small_ones(isa, rng, scope):
    """Their order alone counts; time and memory would be those of 2 billion buckets."""
    qk, v, k = (normal(rng, "float32", 1, 1, 8, 4) for _ in range(3))
    huge = np.array([5, 2 * 10**9, 5, 7, 7, 1, 2 * 10**9, 1]).reshape(1, 1, 1, 8)
    small = np.array([1, 3, 1, 2, 2, 0, 3, 0]).reshape(1, 1, 1, 8)
    options = {"scope": scope, "chunk_length": 2}
    for keys in ({}, {"k": k}):
        named = [{"key_buckets": ids[..., ::-1]} if keys else {} for ids in (huge, small)]
        one, other = (
            ops.lsh_attention_forward(qk, v, buckets=ids, **keys, **own, **options)
            for ids, own in zip((huge, small), named, strict=True)
        )
        np.testing.assert_array_equal(one[0], other[0])
        for a, b in zip(*(ops.lsh_attention_backward(v, s) for _, s in (one, other)), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(IndexError, match=r"^buckets"):
        ops.lsh_attention(qk, v, buckets=-huge, **options)


def test_the_sort_keeps_positions_in_order_within_a_bucket(isa, dtype, rng):
    """Stable: chunk edges inside a long bucket fall where Hugging Face's fall."""
    # idiap sorts without that, so that chunks of one bucket are drawn by accident
    qk, v = normal(rng, dtype, 1, 1, 90, 4), normal(rng, dtype, 1, 1, 90, 4)
    for k in [2, 4]:
        buckets = buckets_of("uneven", (1, 1, 2, 90), k, None, rng)
        options = {"chunk_length": 7, "num_chunks_before": 0}
        assert_matches(rng, dtype, qk, v, buckets, k, **options)


def test_many_buckets_over_a_long_text_sort_right(isa, rng):
    # trax sorts by bucket * length + position in 32 bits, which overflows here
    t, k = 2500, 2**20
    qk, v = normal(rng, "float32", 1, 1, t, 4), normal(rng, "float32", 1, 1, t, 4)
    buckets = rng.integers(0, k, (1, 1, 2, t)).astype(np.int32)
    options = {"chunk_length": 50, "is_causal": True}
    out = ops.lsh_attention(
        qk, v, num_hashes=2, num_buckets=(1024, 1024), buckets=buckets, **options
    )
    theirs = hf_layers.lsh(
        qk, v, buckets, num_chunks_before=1, num_chunks_after=0, attention_mask=None, **options
    )
    # rows that see only themselves are right to an ulp of 1e5
    assert_close(out, theirs, "self_only")
    assert np.median(np.abs(out - theirs)) < tolerance("rounding", "float32")


def test_an_array_may_be_its_own_value(isa, dtype, rng):
    # trax added 1 to the queries in place; with shared arrays in NumPy that would shift the keys
    qk, _, buckets = case(rng, dtype, 1, 2, 20, 4, 2, 4)
    options = {"num_hashes": 2, "num_buckets": 4, "buckets": buckets, "chunk_length": 6}
    separate = ops.lsh_attention(qk.copy(), qk.copy(), **options)
    np.testing.assert_array_equal(ops.lsh_attention(qk, qk, **options), separate)


def test_two_calls_use_their_own_masks_and_buckets(isa, dtype, rng):
    # lucidrains PR #52: the mask was used up by the first call
    for kind in ["left", "right", "some", "no mask"]:
        mask = mask_of(kind, 1, 20, rng)
        qk, v, buckets = case(rng, dtype, 1, 1, 20, 4, 2, 4, mask=mask)
        assert_matches(rng, dtype, qk, v, buckets, 4, chunk_length=6, attention_mask=mask)


@pytest.mark.parametrize("masked", [[0], [1], [0, 1], [0, 1, 2], [7], [19]])
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_any_position_can_be_masked(isa, dtype, rng, masked, scope):
    # trax #820: position 0 could not be masked; its repair unmasked positions 0 and 1
    mask = np.ones((1, 20))
    mask[0, masked] = 0
    qk, v, buckets = case(rng, dtype, 1, 1, 20, 4, 2, 4, mask=mask)
    options = {"chunk_length": 6, "attention_mask": mask, "scope": scope}
    out = assert_matches(rng, dtype, qk, v, buckets, 4, **options)
    v[:, :, masked] += 10
    other = ops.lsh_attention(qk, v, num_hashes=2, num_buckets=4, buckets=buckets, **options)
    real = mask[0] != 0
    np.testing.assert_array_equal(other[:, :, real], out[:, :, real])


# lucidrains and reformer_fastai keep one set of buckets for all chunks, or all heads, of a layer
def test_every_text_and_head_has_its_own_buckets(isa, dtype, rng):
    qk, v, buckets = case(rng, dtype, 3, 2, 25, 5, 2, 4)
    dout = normal(rng, dtype, *qk.shape)
    options = {"num_hashes": 2, "num_buckets": 4, "chunk_length": 6, "is_causal": True}
    out, saved = ops.lsh_attention_forward(qk, v, buckets=buckets, **options)
    together = ops.lsh_attention_backward(dout, saved)
    for b, h in np.ndindex(3, 2):
        one = np.s_[b : b + 1, h : h + 1]
        alone, saved = ops.lsh_attention_forward(qk[one], v[one], buckets=buckets[one], **options)
        assert_close(alone, out[one], "attention")
        apart = ops.lsh_attention_backward(dout[one], saved)
        assert_all_close(apart, [g[one] for g in together], "attention_backward")


@pytest.mark.parametrize(("wrong", "error"), [
    (dict(buckets=np.zeros((1, 1, 1, 3), int)), r"^buckets must have shape .* with t = 4"),
    (dict(buckets=np.zeros((1, 1, 2, 4), int)), r"^buckets must have shape .* num_hashes = 1"),
    (dict(buckets=np.zeros((1, 1, 1, 4))), r"^buckets must be of an integer type, got float64"),
    (dict(buckets=np.full((1, 1, 1, 4), 7)), r"^buckets\[0, 0, 0, 0\] = 7 is out of range"),
    (dict(buckets=np.full((1, 1, 1, 4), -1)), r"^buckets\[0, 0, 0, 0\] = -1 is out of range"),
    (dict(buckets=[[0, 1], [0]]), r"^buckets must have rows of one length"),
    (dict(rotations=np.zeros((1, 2, 1, 3))), r"^rotations must have shape"),
    (dict(rotations=np.zeros((1, 3, 1, 2))), r"^rotations must have shape"),
    (dict(rotations=np.zeros((1, 2, 2, 2))), r"^rotations must have shape .* num_hashes = 1"),
    (dict(rotations=np.zeros((1, 2, 1, 2), "f4")), r"^rotations must be float64"),
    (dict(rotations=[[1.0], [1.0, 2.0]]), r"^rotations must have rows of one length"),
    (dict(rng="seed"), r"^rng must be an integer >= 0"),
])  # fmt: skip
@pytest.mark.parametrize("chunk_length", [2, 4, 64])
def test_what_decides_the_buckets_is_checked_where_one_chunk_needs_none(wrong, error, chunk_length):
    x = np.ones((1, 1, 4, 2))
    with pytest.raises((TypeError, ValueError, IndexError), match=error):
        ops.lsh_attention(x, x, num_hashes=1, num_buckets=4, chunk_length=chunk_length, **wrong)


@pytest.mark.parametrize("name", [
    "is_causal", "attend_across_buckets", "allow_duplicate_attention", "wrap",
])  # fmt: skip
def test_a_switch_is_true_or_false(name):
    x = np.ones((16, 4), np.float32)
    for value in ("no", None, 2, [0]):
        with pytest.raises(TypeError, match=f"^{name} must be True or False, got "):
            ops.lsh_attention(x, x, num_buckets=2, chunk_length=4, rng=0, **{name: value})
    same = [
        ops.lsh_attention(x, x, num_buckets=2, chunk_length=4, rng=0, **{name: value})
        for value in (True, 1, np.True_)
    ]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])
