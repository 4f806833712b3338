"""Keys and values with fewer heads than the queries: each serves some successive heads."""

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
from reference.attention import for_each_head

from reformer_c import ops

# h, hk, t
SHAPES = [(2, 1, 130), (4, 2, 65), (6, 2, 16), (3, 1, 1), (4, 2, 0), (6, 2, 130)]
LSH = {"num_hashes": 2, "num_buckets": 4, "chunk_length": 16}


def buckets_for(q):
    b, h, t, _ = q.shape
    return np.random.default_rng(1).integers(0, 4, (b, h, 2, t)).astype(np.int32)


def plain(kind, **fixed):
    """Forward, backward and reference of a kind, called with q, k and v."""
    forward, backward = (getattr(ops, f"{kind}_attention_{way}") for way in ("forward", "backward"))
    return (
        lambda q, k, v, **rest: forward(q, k, v, **fixed, **rest),
        backward,
        lambda q, k, **rest: getattr(reference, kind)(q, k, **fixed, **rest),
    )


def shared(kind, **fixed):
    forward, backward = (getattr(ops, f"{kind}_attention_{way}") for way in ("forward", "backward"))
    return (
        lambda q, k, v, **rest: forward(q, None, v, shared_qk=True, **fixed, **rest),
        lambda dout, saved, **rest: backward(dout, saved, **rest)[::2],
        lambda q, k, **rest: getattr(reference, kind)(q, None, **fixed, **rest),
    )


def lsh(**fixed):
    fixed = LSH | fixed
    known = {name: value for name, value in fixed.items() if not name.startswith("num_")}
    return (
        lambda q, k, v, **rest: ops.lsh_attention_forward(
            q, v, buckets=buckets_for(q), **fixed, **rest
        ),
        ops.lsh_attention_backward,
        lambda q, k, **rest: reference.lsh(q, buckets_for(q), **known, **rest),
    )


KINDS = {
    "full": plain("full"),
    "full, shared": shared("full"),
    "local": plain("local", chunk_length=16, num_chunks_after=1),
    "local, one before": plain("local", chunk_length=24),
    "local, shared": shared("local", chunk_length=16, wrap=True),
    "lsh": lsh(),
    "lsh, once": lsh(allow_duplicate_attention=False, attend_across_buckets=False),
    "buckets": lsh(scope="bucket"),
}
SHARED = {name for name in KINDS if name not in ("full", "local", "local, one before")}


def draw(rng, dtype, h, hk, t, d=6, b=2):
    return [normal(rng, dtype, b, heads, t, d) for heads in (h, hk, hk)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("h", "hk", "t"), SHAPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_every_kind_matches_the_reference(isa, dtype, rng, name, h, hk, t, is_causal, mask_kind):
    q, k, v = draw(rng, dtype, h, hk, t)
    options = {"is_causal": is_causal, "attention_mask": mask_of(mask_kind, 2, t, rng)}
    k = None if name in SHARED else k
    assert_forward_and_backward_match(rng, *KINDS[name], q, k, v, **options)


@pytest.mark.parametrize(("t", "tk"), [(30, 70), (300, 90), (5, 0)])
@pytest.mark.parametrize("hk", [1, 2])
def test_lengths_may_differ(isa, dtype, rng, t, tk, hk):
    q, *_ = draw(rng, dtype, 4, hk, t)
    _, k, v = draw(rng, dtype, 4, hk, tk)
    if tk:
        assert_forward_and_backward_match(rng, *KINDS["full"], q, k, v)
    out, saved = ops.full_attention_forward(q, k, v)
    assert out.shape == q.shape
    assert [g.shape for g in ops.full_attention_backward(out, saved)] == [
        x.shape for x in (q, k, v)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_the_output_is_that_of_copies_bit_for_bit(isa, dtype, rng, name):
    q, k, v = draw(rng, dtype, 4, 2, 130)
    forward, _, _ = KINDS[name]
    out, _ = forward(q, k, v, dropout=0.2)
    expected, _ = forward(q, for_each_head(k, 4), for_each_head(v, 4), dropout=0.2)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("h", "hk"), [(2, 1), (6, 2)])
def test_threads_do_not_matter(dtype, rng, name, h, hk):
    q, k, v = draw(rng, dtype, h, hk, 300)
    forward, backward, _ = KINDS[name]
    mask = rng.random((2, 300)) < 0.9
    options = {"attention_mask": mask, "dropout": 0.2}
    assert_threads_do_not_matter(rng, forward, backward, q, k, v, **options)
    nothing = {"attention_mask": np.zeros((2, 300))}
    assert_threads_do_not_matter(rng, forward, backward, q, k, v, **nothing)


@pytest.mark.parametrize("name", KINDS)
def test_the_backward_is_the_derivative(rng, name):
    q, k, v = draw(rng, np.float64, 4, 2, 40)
    forward, backward, expected = KINDS[name]
    if name in SHARED:
        assert_backward_is_the_derivative(
            lambda q, v: forward(q, None, v, is_causal=True), backward,
            lambda q, v: expected(q, None, is_causal=True).output(v), [q, v], rng,
        )  # fmt: skip
        return
    assert_backward_is_the_derivative(
        lambda q, k, v: forward(q, k, v, softcap=0.8), backward,
        lambda q, k, v: expected(q, k, softcap=0.8).output(v), [q, k, v], rng,
    )  # fmt: skip


@pytest.mark.parametrize("heads", [3, 8, 0])
def test_heads_that_do_not_divide_are_named(heads):
    q, k = np.zeros((1, 4, 8, 2)), np.zeros((1, heads, 8, 2))
    message = rf" must have hk that divides h = 4 of qk?, got {heads}"
    for op in (ops.full_attention, ops.local_attention):
        with pytest.raises(ValueError, match="^k" + message):
            op(q, k, k)
        with pytest.raises(ValueError, match="^v" + message):
            op(q, None, k, shared_qk=True)
    with pytest.raises(ValueError, match="^v" + message):
        ops.lsh_attention(q, k)


def test_keys_and_values_have_the_same_heads_and_axes():
    q, k = np.zeros((1, 4, 8, 2)), np.zeros((1, 2, 8, 2))
    with pytest.raises(ValueError, match=r"^v must have shape .* with hk = 2 as in k"):
        ops.full_attention(q, k, k[:, :1])
    with pytest.raises(ValueError, match=r"^k must have as many axes as q"):
        ops.full_attention(q[0], k[0, 0], k[0, 0])
    with pytest.raises(ValueError, match=r"^v must have as many axes as qk"):
        ops.lsh_attention(q[0, 0], k[0, :1])
