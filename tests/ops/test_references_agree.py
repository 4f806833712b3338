"""The references themselves: two independent implementations agree, and gradients are exact."""

import numpy as np
import pytest
from attention_cases import MASKS, mask_of
from gradients import assert_is_the_derivative
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import attention, hashing, hf_layers, reversible
from tolerances import assert_all_close, assert_close

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def windows(draw):
    """Options that Hugging Face has, and a length."""
    t = draw(st.integers(1, 26))
    options = {
        "chunk_length": draw(st.integers(1, 9)),
        "num_chunks_before": draw(st.integers(0, 3)),
        "num_chunks_after": draw(st.integers(0, 3)),
        "is_causal": draw(st.booleans()),
    }
    return t, options, draw(st.sampled_from(MASKS))


def draw_arrays(rng, count, b, h, t, d, dtype):
    return [rng.standard_normal((b, h, t, d)).astype(dtype) for _ in range(count)]


def has_padding(t, m):
    return t > m and t % m != 0


@quick
@given(windows(), st.integers(0, 99), st.sampled_from(["float32", "float64"]))
def test_local_attention_is_hugging_faces(case, seed, dtype):
    t, options, mask_kind = case
    rng = np.random.default_rng(seed)
    q, k, v = draw_arrays(rng, 3, 2, 2, t, 5, dtype)
    mask = mask_of(mask_kind, 2, t, rng)
    weights = attention.local(q, k, attention_mask=mask, wrap=True, **options)
    theirs = hf_layers.local(q, k, v, attention_mask=mask, **options)
    # rows that see nothing, in float64, take the mean over a window that padding has widened
    rows = (
        weights.moving.any(axis=-1)
        | (dtype == "float32")
        | (not has_padding(t, options["chunk_length"]))
    )
    assert_close(weights.output(v)[rows], theirs[rows], "attention", dtype)


@quick
@given(
    windows(), st.integers(0, 99), st.sampled_from(["float32", "float64"]),
    st.sampled_from([2, 4, 6, (2, 4), (2, 2, 2)]), st.integers(1, 4),
)  # fmt: skip
def test_lsh_attention_is_hugging_faces(case, seed, dtype, num_buckets, r):
    t, options, mask_kind = case
    rng = np.random.default_rng(seed)
    qk, v = draw_arrays(rng, 2, 2, 2, t, 5, dtype)
    mask = mask_of(mask_kind, 2, t, rng)
    rotations = rng.standard_normal((2, 5, r, sum(hashing.factors_of(num_buckets)) // 2))
    buckets = hashing.lsh_hash(qk, rotations, num_buckets, mask)
    ours = attention.lsh(qk, buckets, attention_mask=mask, **options).output(v)
    theirs = hf_layers.lsh(qk, v, buckets, attention_mask=mask, **options)
    alone = ~attention.lsh(qk, buckets, attention_mask=mask, **options).moving.any(axis=-1)
    assert_close(ours[~alone], theirs[~alone], "attention", dtype)
    assert_close(ours[alone], theirs[alone], "self_only", dtype)


def test_a_hidden_row_is_the_sum_in_float32_and_the_mean_in_float64():
    rng = np.random.default_rng(0)
    q, k, v = draw_arrays(rng, 3, 1, 1, 8, 4, "float32")
    mask = [[0, 1, 1, 1, 1, 1, 1, 1]]
    options = {"chunk_length": 4, "is_causal": True, "attention_mask": mask, "wrap": True}
    window = v[0, 0].sum(axis=0)  # its chunk, and the last one, which precedes it on the circle
    assert_close(
        attention.local(q, k, **options).output(v)[0, 0, 0], window, "attention", "float32"
    )
    in_float64 = attention.local(np.float64(q), k, **options).output(v)[0, 0, 0]
    assert_close(in_float64, window / 8, "hidden")


def masked_sum(weights, v, dout):
    return float((weights.output(v) * dout).sum())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask_kind", ["no mask", "left", "some"])
def test_gradients_of_plain_attention_are_the_derivative(is_causal, mask_kind):
    rng = np.random.default_rng(3)
    q, k, v, dout = draw_arrays(rng, 4, 2, 2, 11, 4, "float64")
    options = {
        "chunk_length": 3,
        "num_chunks_before": 2,
        "num_chunks_after": 1,
        "wrap": True,
        "scale": 0.7,
        "is_causal": is_causal,
        "attention_mask": mask_of(mask_kind, 2, 11, rng),
    }
    gradients = attention.local(q, k, **options).gradients(v, dout)
    loss = lambda q, k, v: masked_sum(attention.local(q, k, **options), v, dout)  # noqa: E731
    assert_is_the_derivative(loss, (q, k, v), gradients, rng)


@quick
@given(
    windows(),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["chunk", "bucket"]),
)
def test_gradients_of_lsh_attention_are_the_derivative(case, seed, across, duplicates, wrap, scope):
    t, options, mask_kind = case
    rng = np.random.default_rng(seed)
    qk, v, dout = draw_arrays(rng, 3, 1, 1, min(t, 12), 3, "float64")
    options.update(attend_across_buckets=across, allow_duplicate_attention=duplicates, wrap=wrap,
                   scope=scope, attention_mask=mask_of(mask_kind, 1, min(t, 12), rng))  # fmt: skip
    buckets = rng.integers(0, 3, (1, 1, 2, min(t, 12)))
    gradients = attention.lsh(qk, buckets, **options).gradients(v, dout)
    loss = lambda qk, v: masked_sum(attention.lsh(qk, buckets, **options), v, dout)  # noqa: E731
    assert_is_the_derivative(loss, (qk, v), gradients, rng)


def test_corrected_duplicates_count_each_pair_once():
    rng = np.random.default_rng(5)
    (qk,) = draw_arrays(rng, 1, 1, 1, 12, 4, "float64")
    buckets = rng.integers(0, 2, (1, 1, 3, 12))
    weights = attention.lsh(qk, buckets, scope="bucket", allow_duplicate_attention=False).weights[
        0, 0
    ]
    met = (buckets[0, 0, :, :, None] == buckets[0, 0, :, None, :]).any(axis=0)
    scores = qk[0, 0] @ attention.normalised(qk[0, 0]).T / 2
    once = np.where(met & ~np.eye(12, dtype=bool), np.exp(scores), 0)
    assert_close(weights, once / once.sum(axis=-1, keepdims=True), "attention")


@pytest.mark.parametrize(
    ("t", "m", "longest", "expected"),
    [
        (128, 64, 4096, 4),
        (4096, 64, 4096, 128),
        (8192, 64, 8192, (16, 16)),
        (16384, 64, 16384, (16, 32)),
        (65536, 256, 65536, 512),
        (524288, 64, 524288, (128, 128)),
    ],
)
def test_num_buckets_are_the_published_ones(t, m, longest, expected):
    assert hashing.choose_num_buckets(t, m, longest) == expected


def test_reversible_gradients_are_the_derivative():
    rng = np.random.default_rng(7)
    a, b, c, e = (rng.standard_normal((5, 5)) for _ in range(4))

    def layer(w):
        return (lambda x: np.tanh(x @ w), lambda x, dy: (dy * (1 - np.tanh(x @ w) ** 2)) @ w.T)

    layers = [(layer(a), layer(b)), (layer(c), layer(e))]
    x1, x2, dy1, dy2 = (rng.standard_normal((3, 5)) for _ in range(4))

    def loss(x1, x2):
        y1, y2, _ = reversible.forward(layers, x1, x2)
        return float((y1 * dy1).sum() + (y2 * dy2).sum())

    before = reversible.forward(layers, x1, x2)[2]
    gradients = reversible.backward(layers, before, dy1, dy2)
    assert_is_the_derivative(loss, (x1, x2), gradients, rng)
    assert_all_close(gradients, gradients, "backward")
