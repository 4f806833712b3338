"""bucket_cap: large buckets are cut into segments, and the share left out is reported."""

import numpy as np
import pytest
from attention_cases import buckets_of, mask_of, normal
from reference import attention as reference
from tolerances import assert_all_close, assert_close

from reformer_c import ops
from reformer_c.layers.probabilities import lsh_probabilities

T = 700


@pytest.mark.parametrize("cap", [64, 128, 192])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("mask_kind", ["no mask", "some"])
def test_a_cap_is_the_reference_s(isa, rng, cap, is_causal, duplicates, mask_kind):
    dtype = np.float64
    mask = mask_of(mask_kind, 1, T, rng)
    qk, v, dout = (normal(rng, dtype, 1, 2, T, 5) for _ in range(3))
    # one bucket has nearly all tokens, one a few segments
    buckets = buckets_of("uneven", (1, 2, 2, T), 4, mask, rng)
    options = {
        "is_causal": is_causal, "allow_duplicate_attention": duplicates, "scope": "bucket",
        "bucket_cap": cap, "attention_mask": mask,
    }  # fmt: skip
    out, saved = ops.lsh_attention_forward(
        qk, v, num_hashes=2, num_buckets=4, buckets=buckets, **options
    )
    expected = reference.lsh(qk, buckets, **options)
    assert_close(out, expected.output(v), "attention")
    gradients = ops.lsh_attention_backward(dout, saved)
    assert_all_close(gradients, expected.gradients(v, dout), "attention_backward")


def test_a_cap_that_no_bucket_reaches_changes_nothing(isa, dtype, rng):
    qk, v = normal(rng, dtype, 2, 2, 300, 8), normal(rng, dtype, 2, 2, 300, 8)
    options = {"num_hashes": 2, "num_buckets": 4, "scope": "bucket", "rng": 3, "is_causal": True}
    whole = ops.lsh_attention(qk, v, **options)
    assert np.array_equal(ops.lsh_attention(qk, v, bucket_cap=192, **options), whole)


def test_capped_attention_is_strictly_causal(isa, dtype, rng):
    qk, v = normal(rng, dtype, 1, 2, 500, 8), normal(rng, dtype, 1, 2, 500, 8)
    options = {"num_hashes": 2, "num_buckets": 2, "rotations": normal(rng, dtype, 2, 8, 2, 1)}
    options |= {"scope": "bucket", "is_causal": True, "bucket_cap": 64}
    whole = ops.lsh_attention(qk, v, **options)
    for t in [1, 64, 65, 300, 499]:
        prefix = ops.lsh_attention(qk[:, :, :t], v[:, :, :t], **options)
        assert_close(prefix, whole[:, :, :t], "attention")


@pytest.mark.parametrize("cap", [64, 128])
def test_the_share_that_is_cut_is_counted(rng, cap):
    buckets = rng.geometric(0.6, (2, 2, 1, 700)) - 1
    mask = rng.integers(0, 2, (2, 700))
    for real in (np.ones((2, 700), int), mask):
        pairs = seen = 0
        for at in np.ndindex(2, 2):
            own = buckets[at][:, real[at[0]] != 0]
            for limit in (None, cap):
                found = sum(len(view) - 1 for view in reference.see_buckets(own, limit))
                pairs, seen = (pairs + found, seen) if limit is None else (pairs, seen + found)
        share = ops.cut_share(buckets, cap, attention_mask=None if real.all() else real)
        assert share == pytest.approx(1 - seen / pairs)


@pytest.mark.parametrize(
    ("mask", "error"), [(np.ones((1, 3)), "must have shape"), (-np.ones((1, 9)), "not below 0")]
)
def test_the_mask_of_a_share_is_checked(mask, error):
    with pytest.raises(ValueError, match=f"^attention_mask .*{error}"):
        ops.cut_share(np.zeros((1, 2, 1, 9), int), 64, attention_mask=mask)


@pytest.mark.parametrize("is_causal", [True, False])
def test_recorded_probabilities_know_the_cap(rng, is_causal):
    qk = normal(rng, np.float64, 1, 1, 300, 4)
    options = {"is_causal": is_causal, "scope": "bucket", "attention_mask": None, "bucket_cap": 64}
    buckets = buckets_of("uneven", (1, 1, 2, 300), 4, None, rng)
    found = lsh_probabilities(
        qk, buckets, chunk_length=64, num_chunks_before=1, num_chunks_after=0, **options
    )
    assert_close(found, reference.lsh(qk, buckets, **options).weights, "attention")


@pytest.mark.parametrize("cap", [0, 63, 65, 2.0])
def test_a_wrong_cap_is_named(rng, cap):
    qk = normal(rng, np.float64, 10, 4)
    with pytest.raises((TypeError, ValueError), match="bucket_cap"):
        ops.lsh_attention(qk, qk, scope="bucket", bucket_cap=cap)
    with pytest.raises(ValueError, match="bucket_cap"):
        ops.lsh_attention(qk, qk, bucket_cap=64)
