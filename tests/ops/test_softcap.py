"""softcap: scores s become softcap tanh(s / softcap), in every attention, forward and backward."""

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
from reference import attention as reference
from tolerances import tolerance

from reformer_c import ops

# scores of standard normal vectors reach past it
CAP = 0.8
WINDOW = {"chunk_length": 16, "num_chunks_after": 1}
LSH = [
    {"scope": scope, "allow_duplicate_attention": duplicates, "attend_across_buckets": across}
    for scope in ("chunk", "bucket")
    for duplicates in (True, False)
    for across in (True, False)
]


def full(q, k, v, **options):
    return ops.full_attention_forward(q, k, v, **options)


def local(q, k, v, **options):
    return ops.local_attention_forward(q, k, v, **WINDOW, **options)


@pytest.mark.parametrize("t", [0, 1, 16, 63, 65, 130])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_full_and_local_attention_match_the_reference(isa, dtype, rng, t, is_causal, mask_kind):
    q, k, v = (normal(rng, dtype, 2, 2, t, 8) for _ in range(3))
    options = {
        "is_causal": is_causal, "attention_mask": mask_of(mask_kind, 2, t, rng), "softcap": CAP,
    }  # fmt: skip
    assert_forward_and_backward_match(
        rng, full, ops.full_attention_backward, reference.full, q, k, v, **options
    )
    assert_forward_and_backward_match(
        rng, local, ops.local_attention_backward,
        lambda q, k, **rest: reference.local(q, k, **WINDOW, **rest), q, k, v, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", LSH, ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("t", [1, 37, 100])
def test_lsh_attention_matches_the_reference(isa, dtype, rng, kind, is_causal, t):
    qk, v = (normal(rng, dtype, 2, 2, t, 8) for _ in range(2))
    buckets = rng.integers(0, 4, (2, 2, 3, t)).astype(np.int32)
    options = kind | WINDOW | {"is_causal": is_causal, "softcap": CAP}
    assert_forward_and_backward_match(
        rng,
        lambda qk, _, v, **rest: ops.lsh_attention_forward(
            qk, v, num_hashes=3, num_buckets=4, buckets=buckets, **rest
        ),
        ops.lsh_attention_backward,
        lambda qk, _, **rest: reference.lsh(qk, buckets, **rest),
        qk, None, v, **options,
    )  # fmt: skip


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_the_backward_is_the_derivative(rng, scope):
    qk, v = (normal(rng, np.float64, 1, 2, 40, 6) for _ in range(2))
    buckets = rng.integers(0, 4, (1, 2, 2, 40)).astype(np.int32)
    options = {"is_causal": True, "scope": scope, "chunk_length": 8, "softcap": CAP}
    assert_backward_is_the_derivative(
        lambda qk, v: ops.lsh_attention_forward(
            qk, v, num_hashes=2, num_buckets=4, buckets=buckets, **options
        ),
        ops.lsh_attention_backward,
        lambda qk, v: reference.lsh(qk, buckets, **options).output(v),
        [qk, v], rng,
    )  # fmt: skip


def test_threads_do_not_matter(dtype, rng):
    q, k, v = (normal(rng, dtype, 1, 2, 300, 8) for _ in range(3))
    for forward, backward in (
        (full, ops.full_attention_backward), (local, ops.local_attention_backward)
    ):  # fmt: skip
        assert_threads_do_not_matter(rng, forward, backward, q, k, v, softcap=CAP)


def test_a_huge_cap_changes_nothing_and_a_small_one_bounds_the_weights(dtype, rng):
    q, k, v = (normal(rng, dtype, 1, 1, 50, 8) for _ in range(3))
    plain = ops.full_attention(q, k, v)
    capped = ops.full_attention(q, k, v, softcap=1e6)
    np.testing.assert_allclose(capped, plain, rtol=0, atol=tolerance("noise"))
    # scores within 0.01 of each other: nearly the mean of the values
    even = ops.full_attention(100 * q, k, v, softcap=0.005)
    mean = np.broadcast_to(v.mean(axis=2, keepdims=True), even.shape)
    np.testing.assert_allclose(even, mean, rtol=0, atol=tolerance("share"))


@pytest.mark.parametrize("wrong", [0, -1.0, np.nan, np.inf, "one"])
def test_a_wrong_cap_is_named(wrong):
    x = np.zeros((1, 1, 4, 4))
    for op in (ops.full_attention, ops.local_attention):
        with pytest.raises((TypeError, ValueError), match=r"^softcap must be"):
            op(x, x, x, softcap=wrong)
    with pytest.raises((TypeError, ValueError), match=r"^softcap must be"):
        ops.lsh_attention(x, x, softcap=wrong)
