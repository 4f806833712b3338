"""`KeyValueIndex` against its definition, token by token."""

import numpy as np
import pytest
from attention_cases import mask_of, normal
from reference import key_value_index as reference
from tolerances import assert_close, tolerance

import reformer_c as rc

HASHING = {"num_hashes": 2, "num_buckets": 6}


def draw(rng, dtype, b, h, hk, t, tk, d):
    """Queries, keys and values, whose keys have a mean and whose heads differ in length."""
    q = normal(rng, dtype, b, h, t, d)
    k, v = normal(rng, dtype, b, hk, tk, d) + dtype(1.5), normal(rng, dtype, b, hk, tk, d)
    return q, k, v


def rotations_of(rng, k, hashing=HASHING):
    seed = int(rng.integers(1000))
    return rc.lsh_rotations(k.shape[1], k.shape[3], **hashing, rng=seed, dtype=k.dtype)


def mean_of(k, real=None):
    real = np.ones((len(k), k.shape[2]), bool) if real is None else real
    shares = real[:, None, :, None] / np.maximum(1, real.sum(1))[:, None, None, None]
    return (k.astype(np.float64) * shares).sum(2, keepdims=True).astype(k.dtype)


def seen_by(q, k, rotations, *, center, window, sinks, real=None, hashing=HASHING):
    """Which keys the reference finds, by the buckets of `lsh_hash`."""
    group = q.shape[1] // k.shape[1]
    ids_k = rc.lsh_hash(k - center, **hashing, rotations=rotations)
    ids_q = rc.lsh_hash(q, **hashing, rotations=np.repeat(rotations, group, axis=0))
    return reference.found(ids_q, ids_k, window=window, sinks=sinks, real=real)


@pytest.mark.parametrize("mask", ["no mask", "left", "right", "some", "all"])
@pytest.mark.parametrize(("h", "hk"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(("t", "tk"), [(1, 1), (1, 40), (3, 65), (7, 7)])
@pytest.mark.parametrize(("window", "sinks"), [(0, 0), (5, 2), (100, 3)])
def test_outputs_are_those_of_the_definition(isa, dtype, rng, mask, h, hk, t, tk, window, sinks):
    q, k, v = draw(rng, dtype, 2, h, hk, t, tk, 5)
    given = mask_of(mask, 2, tk, rng)
    real = None if given is None else given != 0
    rotations = rotations_of(rng, k)
    index = rc.KeyValueIndex(
        k, v, num_hashes=2, num_buckets=6, rotations=rotations, local_window=window, sinks=sinks,
        attention_mask=given, center=mean_of(k, real),
    )  # fmt: skip
    seen = seen_by(q, k, rotations, center=mean_of(k, real), window=window, sinks=sinks, real=real)
    expected, lse = reference.attend(q, k, v, seen, 1 / np.sqrt(5))
    assert_close(index.attend(q), expected, "attention")
    out, mine, keys = index._attend(q, 1)
    np.testing.assert_array_equal(keys, seen.sum(-1))
    np.testing.assert_array_equal(np.isneginf(mine), np.isneginf(lse))
    some = np.isfinite(lse)
    assert_close(mine[some], lse[some], "attention")
    for workers in (2, 3):
        assert index.attend(q, workers=workers).tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_scale_softcap_and_factors_of_buckets(dtype, softcap, rng):
    q, k, v = draw(rng, dtype, 1, 2, 1, 2, 50, 8)
    hashing = {"num_hashes": 3, "num_buckets": (2, 4)}
    rotations = rotations_of(rng, k, hashing)
    index = rc.KeyValueIndex(
        k, v, **hashing, rotations=rotations, center=None, local_window=3, sinks=1, scale=0.9,
        softcap=softcap,
    )  # fmt: skip
    seen = seen_by(q, k, rotations, center=0, window=3, sinks=1, hashing=hashing)
    expected, _ = reference.attend(q, k, v, seen, 0.9, softcap)
    assert_close(index.attend(q), expected, "attention")
    assert index.num_buckets == (2, 4)


@pytest.mark.parametrize("pieces", [[0, 1, 1, 1], [5, 3, 20, 1, 1], [30]])
@pytest.mark.parametrize("masked", [False, True])
def test_appended_tokens_are_as_if_they_had_been_there(pieces, masked, rng):
    tk = sum(pieces)
    q, k, v = draw(rng, np.float64, 2, 2, 2, 1, tk, 4)
    mask = rng.integers(0, 2, (2, tk)) if masked else None
    rules = {"num_hashes": 2, "num_buckets": 4, "rng": 3, "center": np.full(4, 0.5), "sinks": 2,
             "local_window": 1}  # fmt: skip
    ends = np.cumsum(pieces)
    parts = [np.s_[:, :, a:b] for a, b in zip([0, *ends], ends)]
    whole = rc.KeyValueIndex(k, v, attention_mask=mask, **rules)
    grown = None
    for part in parts:
        some = None if mask is None else mask[:, part[2]]
        if grown is None:
            grown = rc.KeyValueIndex(k[part], v[part], attention_mask=some, **rules)
        else:
            grown.append(k[part], v[part], attention_mask=some)
    assert grown.length == whole.length == tk
    assert grown.attend(q).tobytes() == whole.attend(q).tobytes()
    np.testing.assert_array_equal(grown.keys, k)
    np.testing.assert_array_equal(grown.values, v)
    # tokens that are forgotten leave nothing
    more = normal(rng, np.float64, 2, 2, 9, 4)
    grown.append(more, more)
    grown.crop(tk)
    assert grown.attend(q).tobytes() == whole.attend(q).tobytes()
    grown.crop(0)
    grown.append(k, v, attention_mask=mask)
    assert grown.attend(q).tobytes() == whole.attend(q).tobytes()


def test_the_center_is_the_mean_of_the_real_keys(rng):
    q, k, v = draw(rng, np.float64, 2, 2, 2, 1, 60, 4)
    mask = rng.integers(0, 2, (2, 60))
    rules = {"num_hashes": 1, "num_buckets": 8, "local_window": 0, "sinks": 0, "rng": 1}
    mean = rc.KeyValueIndex(k, v, attention_mask=mask, **rules)
    given = rc.KeyValueIndex(k, v, attention_mask=mask, center=mean_of(k, mask != 0), **rules)
    assert mean.attend(q).tobytes() == given.attend(q).tobytes()
    # what a masked key holds does not matter
    k[mask[:, None].repeat(2, 1) == 0] = np.nan
    again = rc.KeyValueIndex(k, v, attention_mask=mask, **rules)
    assert again.attend(q).tobytes() == mean.attend(q).tobytes()


@pytest.mark.parametrize("t", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_recall_is_the_share_of_full_attention(t, masked, rng):
    q, k, v = draw(rng, np.float64, 2, 4, 2, t, 50, 6)
    mask = np.ones((2, 50), int)
    if masked:
        mask[0, :20], mask[1, 40:] = 0, 0
    rotations = rotations_of(rng, k)
    index = rc.KeyValueIndex(
        k, v, num_hashes=2, num_buckets=6, rotations=rotations, local_window=2, sinks=1,
        attention_mask=mask if masked else None,
    )  # fmt: skip
    seen = seen_by(q, k, rotations, center=mean_of(k, mask != 0), window=2, sinks=1, real=mask != 0)
    report = index.compare(q)
    for n, head, i in np.ndindex(2, 4, t):
        s = k[n, head // 2] @ q[n, head, i] / np.sqrt(6)
        p = np.exp(s) * mask[n] * (np.arange(50) <= 50 - t + i)
        share = p[seen[n, head, i]].sum() / p.sum()
        assert report.recall[n, head, i] == pytest.approx(share)
    np.testing.assert_array_equal(report.keys, seen.sum(-1))
    visible = [mask[n, : 50 - t + i + 1].sum() for n in range(2) for i in range(t)]
    assert report.full_operations == pytest.approx(4 * 6 * np.mean(visible))
    assert report.operations == pytest.approx(4 * 6 * seen.sum(-1).mean() + 2 * 6 * 2 * 3)
    assert report.nbytes == index.nbytes
    assert "of 50 keys a query" in str(report)


def test_a_query_that_sees_no_key_finds_all_of_nothing(rng):
    q, k, v = draw(rng, np.float64, 1, 2, 1, 3, 6, 4)
    mask = np.arange(6)[None] >= 5
    index = rc.KeyValueIndex(k, v, num_buckets=2, sinks=0, attention_mask=mask)
    report = index.compare(q)
    np.testing.assert_array_equal(report.keys, [[[0, 0, 1]] * 2])
    assert report.recall == pytest.approx(1.0)


def test_a_window_of_the_whole_text_finds_everything(rng):
    q, k, v = draw(rng, np.float32, 1, 2, 2, 1, 300, 8)
    index = rc.KeyValueIndex(k, v, local_window=300, rng=0)
    assert_close(index.attend(q), rc.full_attention(q, k, v), "attention")
    assert abs(index.compare(q).recall - 1).max() < tolerance("forward", "float32")


def test_only_what_queries_find_is_read_whatever_the_length(rng):
    """Buckets grow in number with the text, and hardly in size: by the unevenness of the hash."""
    keys = []
    for tk in (1000, 4000, 16000):
        q, k, v = draw(rng, np.float32, 1, 4, 4, 32, tk, 32)
        keys.append(rc.KeyValueIndex(k, v, local_window=16, rng=0).compare(q).keys.mean())
    assert max(keys) < 3 * min(keys)


# ---- another cache ----


def test_the_common_length_is_that_of_equal_bits(rng):
    _, k, v = draw(rng, np.float32, 2, 2, 2, 1, 30, 4)
    k[0, 0, 3, 1] = np.nan
    index = rc.KeyValueIndex(k[:, :, :20], v[:, :, :20], rng=0)
    assert index.common_length(k, v) == 20
    assert index.common_length(k[:, :, :11], v[:, :, :11]) == 11
    for array in (k, v):
        other = array.copy()
        other[1, 0, 7, 2] = np.nextafter(other[1, 0, 7, 2], np.float32(9))
        pair = (other, v) if array is k else (k, other)
        assert index.common_length(*pair) == 7
    assert index.common_length(k[::-1], v[::-1]) == 0
    assert index.common_length(k[:1], v[:1]) == 0
    assert index.common_length(k.astype(np.float64), v.astype(np.float64)) == 0
    mask = np.ones((2, 30), int)
    assert index.common_length(k, v, attention_mask=mask) == 20
    mask[1, 5] = 0
    assert index.common_length(k, v, attention_mask=mask) == 5
    mask[:, 9:] = 0
    masked = rc.KeyValueIndex(k, v, attention_mask=mask, rng=0)
    assert masked.common_length(k, v, attention_mask=mask) == 30
    assert masked.common_length(k, v) == 5


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"k": np.zeros((2, 3))}, ValueError, r"^k must have shape \(b, hk, tk, d\)"),
        ({"k": np.zeros((1, 2, 9, 4), int)}, TypeError, "^k must be float32 or float64"),
        ({"v": np.zeros((1, 2, 8, 4))}, ValueError, "^v must have shape"),
        ({"v": np.zeros((1, 2, 9, 4), np.float32)}, TypeError, "^v must be float64"),
        ({"num_hashes": 0}, ValueError, "^num_hashes must be"),
        ({"num_buckets": 3}, ValueError, "^num_buckets must be"),
        ({"local_window": -1}, ValueError, "^local_window must be"),
        ({"sinks": 1.0}, TypeError, "^sinks must be"),
        ({"center": "mean"}, ValueError, "^center must be 'keys', None or an array"),
        ({"center": np.zeros(3)}, ValueError, r"^center must have shape \(d,\), \(hk, d\)"),
        ({"attention_mask": np.ones((1, 8))}, ValueError, "^attention_mask must have shape"),
        ({"attention_mask": np.full((1, 9), -1)}, ValueError, "^attention_mask .* not below 0"),
        ({"attention_mask": [["yes"] * 9]}, TypeError, "^attention_mask must be numbers or"),
        ({"scale": "1"}, TypeError, "^scale must be"),
        ({"softcap": 0.0}, ValueError, "^softcap must be"),
        ({"rotations": np.zeros((2, 4, 1, 1))}, ValueError, "^rotations must have shape"),
        ({"rng": -1}, ValueError, "^rng must be"),
        ({"windows": 1}, TypeError, "did you mean local_window"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    given = {"k": np.zeros((1, 2, 9, 4)), "v": np.zeros((1, 2, 9, 4))} | arguments
    with pytest.raises(error, match=words):
        rc.KeyValueIndex(**given)


def test_wrong_tokens_and_queries_are_named():
    zeros = np.zeros((1, 2, 9, 4))
    index = rc.KeyValueIndex(zeros, zeros, rng=0)
    rotations = np.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match="pass one of them"):
        rc.KeyValueIndex(zeros, zeros, num_buckets=2, rotations=rotations, rng=0)
    for q, error, words in [
        (np.zeros((1, 3, 1, 4)), ValueError, "^q must have shape"),
        (np.zeros((2, 4)), ValueError, "^q must have shape"),
        (
            np.zeros((1, 2, 10, 4)),
            ValueError,
            "^q must have at most as many tokens as the index, 9",
        ),
        (np.zeros((1, 2, 1, 4), np.float32), TypeError, "^q must be float64"),
    ]:
        with pytest.raises(error, match=words):
            index.attend(q)
    with pytest.raises(ValueError, match=r"^q must not be empty"):
        index.compare(np.zeros((1, 2, 0, 4)))
    with pytest.raises(ValueError, match=r"^k must have shape"):
        index.append(np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 1, 4)))
    with pytest.raises(ValueError, match=r"^k must have shape \(b, hk, n, d\), got \(2, 1, 4\)"):
        index.append(np.zeros((2, 1, 4)), np.zeros((2, 1, 4)))
    with pytest.raises(ValueError, match=r"^q must have shape .* h a multiple of 0"):
        rc.KeyValueIndex(zeros[:, :0], zeros[:, :0]).attend(zeros)
    with pytest.raises(ValueError, match=r"^v must have shape"):
        index.append(np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 2, 4)))
    for length in (-1, 10):
        with pytest.raises(ValueError, match=r"^length must be"):
            index.crop(length)
    assert index.length == 9


def test_the_arrays_of_an_index_are_to_read():
    zeros = np.zeros((1, 1, 3, 2))
    index = rc.KeyValueIndex(zeros, zeros, rng=0)
    with pytest.raises(ValueError, match="read-only"):
        index.keys[...] = 1
    assert index.attend(np.zeros((1, 1, 0, 2))).shape == (1, 1, 0, 2)
    empty = rc.KeyValueIndex(np.zeros((2, 1, 0, 4)), np.zeros((2, 1, 0, 4)), rng=0)
    assert empty.attend(np.zeros((2, 2, 0, 4))).shape == (2, 2, 0, 4)
