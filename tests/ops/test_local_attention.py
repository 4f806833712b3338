"""rc.local_attention: a query sees its chunk of the sequence and the neighbours."""

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
from reference import hf_layers
from tolerances import assert_close

from reformer_c import ops

quick = settings(
    max_examples=50, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

CHUNKS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200]

# the operation, and its reference
LOCAL = (ops.local_attention_forward, ops.local_attention_backward, reference.local)


# the same with shared queries and keys
def shared_forward(qk, _, v, **options):
    return ops.local_attention_forward(qk, None, v, shared_qk=True, **options)


def shared_backward(dout, saved, **options):
    dqk, dk, dv = ops.local_attention_backward(dout, saved, **options)
    assert dk is None
    return dqk, dv


SHARED = (shared_forward, shared_backward, reference.local)


def draw(rng, dtype, b, h, t, d):
    return [normal(rng, dtype, b, h, t, d) for _ in range(3)]


@pytest.mark.parametrize("m", CHUNKS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_chunk_length_matches_the_reference(isa, dtype, rng, m, is_causal):
    for t in [2 * m + 1, 3 * m - 1] if m < 10 else [2 * m + m // 2]:
        q, k, v = draw(rng, dtype, 1, 1, t, 6)
        options = {"chunk_length": m, "is_causal": is_causal}
        assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)


@pytest.mark.parametrize("is_causal", [False, True])
def test_chunks_longer_than_what_one_task_holds_match_the_reference(isa, dtype, rng, is_causal):
    q, k, v = draw(rng, dtype, 1, 1, 600, 8)
    options = {
        "chunk_length": 270,
        "num_chunks_after": 1,
        "is_causal": is_causal,
        "attention_mask": rng.random((1, 600)) < 0.9,
    }
    assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)


@pytest.mark.parametrize("m", [5, 64, 100, 256, 300])
@pytest.mark.parametrize("wrap", [False, True])
def test_neighbours_that_meet_once_give_both_what_they_should(isa, dtype, rng, m, wrap):
    # with one chunk of look-back a chunk leaves dq to the next one on the same thread
    q, k, v = draw(rng, dtype, 1, 2, 5 * m // 2, 6)
    options = {"chunk_length": m, "wrap": wrap, "attention_mask": rng.random((1, 5 * m // 2)) < 0.9}
    assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)
    assert_threads_do_not_matter(rng, *LOCAL[:2], q, k, v, **options)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 128, 255, 256])
def test_every_depth_matches_the_reference(isa, dtype, rng, d):
    q, k, v = draw(rng, dtype, 1, 2, 29, d)
    options = {"chunk_length": 8, "num_chunks_after": 1}
    assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)


@pytest.mark.parametrize("t", [0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25])
@pytest.mark.parametrize("wrap", [False, True])
def test_ragged_lengths_match_the_reference(isa, dtype, rng, t, wrap):
    q, k, v = draw(rng, dtype, 2, 2, t, 5)
    for is_causal in [False, True]:
        options = {"chunk_length": 8, "wrap": wrap, "is_causal": is_causal}
        out = ops.local_attention(q, k, v, **options)
        assert_close(out, reference.local(q, k, **options).output(v), "attention")


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
    for t in [5, 8, 11, 17]:
        q, k, v = draw(rng, dtype, 1, 1, t, 3)
        assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)


# lucidrains #53: masks were not cut into chunks with the attention
@quick
@given(
    st.integers(0, 2), st.integers(1, 3), st.integers(0, 45), st.integers(1, 20),
    st.integers(1, 14), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.sampled_from(MASKS),
    st.sampled_from([None, 0.4, -1.5]), st.booleans(), st.booleans(),
    st.sampled_from(["float32", "float64"]), st.integers(0, 9),
)  # fmt: skip
def test_any_combination_of_options_matches_the_reference(
    isa, b, h, t, d, m, before, after, is_causal, mask_kind, scale, wrap, shared, dtype, seed
):
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, dtype, b, h, t, d)
    options = {
        "chunk_length": m,
        "num_chunks_before": before,
        "num_chunks_after": after,
        "is_causal": is_causal,
        "attention_mask": mask_of(mask_kind, b, t, rng),
        "scale": scale,
        "wrap": wrap,
    }
    if shared:
        assert_forward_and_backward_match(rng, *SHARED, q, None, v, **options)
    else:
        assert_forward_and_backward_match(rng, *LOCAL, q, k, v, **options)


@pytest.mark.parametrize("m", [1, 4, 15, 16, 17, 64, 65, 270])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_shared_queries_match_the_reference(isa, dtype, rng, m, is_causal, wrap, mask_kind):
    t = 9 * m // 4 + 1
    q, _, v = draw(rng, dtype, 1, 2, t, 6)
    options = {
        "chunk_length": m, "is_causal": is_causal, "wrap": wrap,
        "attention_mask": mask_of(mask_kind, 1, t, rng),
    }  # fmt: skip
    assert_forward_and_backward_match(rng, *SHARED, q, None, v, **options)
    assert_threads_do_not_matter(rng, *SHARED[:2], q, None, v, **options)


@pytest.mark.parametrize("t", [7, 8, 9, 30, 200])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_shared_queries_are_lsh_attention_in_one_bucket(isa, dtype, rng, t, is_causal, wrap):
    """Bit for bit: the order of the hash is then that of the sequence."""
    qk, _, v = draw(rng, dtype, 2, 2, t, 5)
    dout = normal(rng, dtype, 2, 2, t, 5)
    options = {"chunk_length": 8, "is_causal": is_causal, "wrap": wrap, "dropout": 0.2}
    out, saved = shared_forward(qk, None, v, **options)
    expected, of_lsh = ops.lsh_attention_forward(
        qk, v, buckets=np.zeros((2, 2, 1, t), int), num_buckets=2, **options
    )
    np.testing.assert_array_equal(out, expected)
    both = shared_backward(dout, saved), ops.lsh_attention_backward(dout, of_lsh)
    for found, wanted in zip(*both, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_shared_query_without_other_keys_is_its_value(isa, dtype, rng):
    qk, _, v = draw(rng, dtype, 1, 2, 20, 4)
    alone = {"chunk_length": 1, "num_chunks_before": 0, "shared_qk": True}
    np.testing.assert_array_equal(ops.local_attention(qk, None, v, **alone), v)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_backward_is_the_derivative(isa, dtype, rng, is_causal, wrap, shared):
    mask = np.ones((2, 22))
    mask[0, 5:9] = mask[1, 20:] = 0
    options = {"chunk_length": 5, "num_chunks_after": 1, "is_causal": is_causal, "wrap": wrap,
                   "attention_mask": mask}  # fmt: skip
    inputs = draw(rng, dtype, 2, 2, 22, 7)
    if shared:
        assert_backward_is_the_derivative(
            lambda qk, v: shared_forward(qk, None, v, **options), shared_backward,
            lambda qk, v: reference.local(qk, None, **options).output(v), inputs[1:], rng,
            "attention_backward",
        )  # fmt: skip
        return
    assert_backward_is_the_derivative(
        lambda *a: ops.local_attention_forward(*a, **options), ops.local_attention_backward,
        lambda q, k, v: reference.local(q, k, **options).output(v), inputs, rng,
        "attention_backward",
    )  # fmt: skip


@pytest.mark.parametrize("t", [3, 8, 9, 16, 21, 26])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_the_circle_is_hugging_faces_padded_evaluation(isa, rng, t, is_causal, mask_kind):
    """Including rows that see nothing: in float32 they are the sum over their window."""
    q, k, v = draw(rng, "float32", 2, 2, t, 6)
    options = {
        "chunk_length": 8,
        "num_chunks_before": 1,
        "num_chunks_after": 1,
        "is_causal": is_causal,
        "attention_mask": mask_of(mask_kind, 2, t, rng),
    }
    out = ops.local_attention(q, k, v, wrap=True, **options)
    assert_close(out, hf_layers.local(q, k, v, **options), "attention")


def test_up_to_one_chunk_is_full_attention(isa, dtype, rng):
    q, k, v = draw(rng, dtype, 2, 2, 9, 4)
    for is_causal in [False, True]:
        full = ops.full_attention(q, k, v, is_causal=is_causal)
        for m in [9, 10, 64, 10_000]:
            for wrap in [False, True]:
                out = ops.local_attention(q, k, v, chunk_length=m, is_causal=is_causal, wrap=wrap)
                np.testing.assert_array_equal(out, full)


def test_windows_that_cover_everything_are_full_attention(isa, dtype, rng):
    # lucidrains: its full attention for short inputs forgot the scale, and positions
    q, k, v = draw(rng, dtype, 1, 2, 30, 8)
    for is_causal in [False, True]:
        options = {"is_causal": is_causal, "scale": 0.3}
        wide = {"chunk_length": 10, "num_chunks_before": 2, "num_chunks_after": 2}
        out = ops.local_attention(q, k, v, **wide, **options)
        assert_close(out, ops.full_attention(q, k, v, **options), "attention")


def test_two_calls_use_their_own_masks(isa, dtype, rng):
    # lucidrains PR #52: the mask was used up by the first call
    q, k, v = draw(rng, dtype, 1, 1, 20, 4)
    for kind in ["left", "right", "some", "no mask"]:
        options = {"chunk_length": 6, "attention_mask": mask_of(kind, 1, 20, rng)}
        out = ops.local_attention(q, k, v, **options)
        assert_close(out, reference.local(q, k, **options).output(v), "attention")


@pytest.mark.parametrize("masked", [[0], [1], [0, 1], [0, 1, 2], [7], [19]])
def test_any_position_can_be_masked(isa, dtype, rng, masked):
    # trax #820: position 0 could not be masked; its repair unmasked positions 0 and 1
    q, k, v = draw(rng, dtype, 1, 1, 20, 4)
    mask = np.ones((1, 20))
    mask[0, masked] = 0
    options = {"chunk_length": 6, "num_chunks_after": 1, "attention_mask": mask}
    out = ops.local_attention(q, k, v, **options)
    assert_close(out, reference.local(q, k, **options).output(v), "attention")
    v[:, :, masked] += 10
    np.testing.assert_array_equal(ops.local_attention(q, k, v, **options), out)


@pytest.mark.parametrize("wrap", [False, True])
def test_nothing_outside_the_window_matters(isa, dtype, rng, wrap):
    q, k, v = draw(rng, dtype, 1, 1, 40, 8)
    clean = ops.local_attention(q, k, v, chunk_length=8, wrap=wrap)
    k[:, :, 17], v[:, :, 18] = np.nan, np.nan
    out = ops.local_attention(q, k, v, chunk_length=8, wrap=wrap)
    sees = (np.arange(40) // 8 == 2) | (np.arange(40) // 8 == 3)
    assert np.isnan(out[0, 0, sees]).all()
    assert_close(out[0, 0, ~sees], clean[0, 0, ~sees], "attention")


def test_causal_outputs_do_not_depend_on_later_tokens(isa, dtype, rng):
    q, k, v = draw(rng, dtype, 1, 2, 50, 8)
    options = {"chunk_length": 16, "is_causal": True}
    clean = ops.local_attention(q, k, v, **options)
    for p in [1, 15, 16, 17, 40]:
        later = [x.copy() for x in (q, k, v)]
        for x in later:
            x[:, :, p:] = np.nan
        out = ops.local_attention(*later, **options)
        assert_close(out[:, :, :p], clean[:, :, :p], "attention")


@pytest.mark.parametrize("anything", [np.nan, np.inf])
def test_what_flows_back_from_a_value_reaches_those_who_see_it_alone(isa, dtype, rng, anything):
    q, k, v = draw(rng, dtype, 1, 1, 70, 8)
    dout = normal(rng, dtype, 1, 1, 70, 8)
    options = {"chunk_length": 16, "is_causal": True}
    _, saved = ops.local_attention_forward(q, k, v, **options)
    expected, _, _ = ops.local_attention_backward(dout, saved)
    for at in range(0, 70, 3):
        spoilt = v.copy()
        spoilt[:, :, at, 2] = anything
        _, saved = ops.local_attention_forward(q, k, spoilt, **options)
        dq, _, _ = ops.local_attention_backward(dout, saved)
        last = min(70, (at // 16 + 2) * 16)  # its own chunk and the next one see it
        scale = float(np.abs(expected).max())
        for part in (np.s_[:, :, :at], np.s_[:, :, last:]):
            assert_close(dq[part], expected[part], "attention_backward", scale=scale)
        assert not np.isfinite(dq[:, :, at:last]).all()
