"""lsh_report against its definition, written out pair by pair."""

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config
from tolerances import tolerance

import reformer_c as rc
from reformer_c import ops
from reformer_c.tools.report import attention_inputs, lsh_report


def draw(t, d=8, heads=2, dtype=np.float64, seed=0):
    qk, v = np.random.default_rng(seed).standard_normal((2, 1, heads, t, d))
    return qk.astype(dtype), v.astype(dtype)


def meetings(buckets, m, before, after):
    """{(query, key): how often the key is in the query's window}, over all rounds."""
    t = buckets.shape[-1]
    chunks = []
    for row in buckets:
        order = sorted(range(t), key=lambda position: (row[position], position))
        chunks += [order[start : start + m] for start in range(0, t, m)]
    met = {}
    for c, chunk in enumerate(chunks):
        for offset in range(-before, after + 1):
            for i in chunk:
                for j in chunks[(c + offset) % len(chunks)]:
                    met[i, j] = met.get((i, j), 0) + 1
    return met


def full_attention(qk, causal):
    t, d = qk.shape
    keys = qk / np.sqrt((qk**2).mean(-1, keepdims=True) + 1e-6)
    scores = qk @ keys.T / np.sqrt(d)
    if causal:
        scores[np.triu_indices(t, 1)] = -1e9
    np.fill_diagonal(scores, -1e5)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 0), (2, 1)])
@pytest.mark.parametrize("t", [64, 75])
def test_shares_are_those_of_the_pairs_that_meet(t, before, after, causal):
    qk, _ = draw(t)
    rules = {"chunk_length": 8, "num_chunks_before": before, "num_chunks_after": after}
    report = lsh_report(
        qk, num_hashes=(1, 3), num_buckets=8, is_causal=causal, queries=None, rng=7, **rules
    )
    rotations = ops.lsh_rotations(2, 8, num_hashes=3, num_buckets=8, rng=7, dtype=qk.dtype)
    buckets = ops.lsh_hash(qk, num_hashes=3, num_buckets=8, rotations=rotations)
    for row in report:
        mass, pairs, unique, allowed = 0.0, 0, 0, 0
        for h in range(2):
            met = meetings(buckets[0, h, : row.num_hashes], 8, before, after)
            p = full_attention(qk[0, h], causal)
            mass += sum(p[pair] for pair in met)
            visible = [n for (i, j), n in met.items() if (j < i if causal else j != i)]
            pairs, unique = pairs + sum(visible), unique + len(visible)
            allowed += t * (t - 1) // (2 if causal else 1)
        assert row.recall == pytest.approx(mass / (2 * t))
        assert row.duplicates == pytest.approx(1 - unique / pairs)
        assert row.keys == pytest.approx(pairs / (2 * t))
        assert row.seen == pytest.approx(unique / allowed)
        assert row.error is None
        assert row.bucket_sizes.shape == (1, 2, row.num_hashes, 8)
        assert (row.bucket_sizes.sum(-1) == t).all()


@pytest.mark.parametrize("allow", [True, False])
def test_errors_are_those_of_the_op(allow):
    qk, v = draw(96)
    report = lsh_report(
        qk, v, chunk_length=16, num_hashes=(2, 4), rng=3, allow_duplicate_attention=allow
    )
    full = rc.full_attention(qk, None, v, shared_qk=True)
    buckets = rc.choose_num_buckets(96, 16)
    rotations = rc.lsh_rotations(2, 8, num_hashes=4, num_buckets=buckets, rng=3, dtype=qk.dtype)
    for row in report:
        out = rc.lsh_attention(
            qk,
            v,
            chunk_length=16,
            num_hashes=row.num_hashes,
            num_buckets=buckets,
            rotations=np.ascontiguousarray(rotations[:, :, : row.num_hashes]),
            allow_duplicate_attention=allow,
        )
        assert row.error == pytest.approx(np.linalg.norm(out - full) / np.linalg.norm(full))


def test_more_rounds_find_more_and_the_papers_equation_comes_nearer():
    qk, v = draw(512, d=16, seed=1)
    report = lsh_report(
        2 * qk, v, chunk_length=32, num_hashes=(1, 2, 4, 8, 16), allow_duplicate_attention=False
    )
    recalls, errors = [row.recall for row in report], [row.error for row in report]
    assert recalls == sorted(recalls)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_a_single_chunk_finds_everything():
    qk, v = draw(20)
    for row in lsh_report(qk, v, chunk_length=32, num_hashes=(1, 2)):
        assert row.recall == pytest.approx(1.0)
        assert row.seen == 1.0
        assert row.error < tolerance("forward", "float64")


def test_axes_are_optional_and_more_queries_than_there_are_are_all():
    qk, v = draw(128, heads=1)
    whole = lsh_report(qk, v, chunk_length=16, queries=None)
    for other in (
        lsh_report(qk[0], v[0], chunk_length=16, queries=None),
        lsh_report(qk[0, 0], v[0, 0], chunk_length=16, queries=1000),
    ):
        for a, b in zip(whole, other, strict=True):
            assert a.recall == pytest.approx(b.recall)
            assert a.error == pytest.approx(b.error)


def test_float32_has_the_same_shares_to_its_precision():
    qk, v = draw(512, d=16, dtype=np.float32)
    found = [
        lsh_report(x, y, chunk_length=32, queries=None, num_hashes=64)[0].recall
        for x, y in [(qk, v), (qk.astype(np.float64), v.astype(np.float64))]
    ]
    # another dtype draws other rotations
    assert abs(found[0] - found[1]) < tolerance("share")


@pytest.mark.parametrize("causal", [False, True])
def test_whole_buckets_are_counted_pair_by_pair(causal):
    t, factors = 40, (2, 4)
    qk, v = draw(t)
    rotations = ops.lsh_rotations(2, 8, num_hashes=2, num_buckets=factors, rng=7, dtype=qk.dtype)
    buckets = ops.lsh_hash(qk, num_hashes=2, num_buckets=factors, rotations=rotations)
    row = lsh_report(
        qk, v, num_hashes=2, num_buckets=factors, is_causal=causal, queries=None, rng=7,
        scope="bucket",
    )[0]  # fmt: skip
    mass, pairs, unique = 0.0, 0, 0
    for h in range(2):
        p = full_attention(qk[0, h], causal)
        for i, j in np.ndindex(t, t):
            met = sum(ids[i] == ids[j] for ids in buckets[0, h])
            mass += p[i, j] * bool(met)
            if j < i or (j != i and not causal):
                pairs, unique = pairs + met, unique + bool(met)
    assert row.num_buckets == factors
    assert row.recall == pytest.approx(mass / (2 * t))
    assert row.keys == pytest.approx(pairs / (2 * t))
    assert row.duplicates == pytest.approx(1 - unique / pairs)
    full = rc.full_attention(qk, None, v, shared_qk=True, is_causal=causal)
    out = rc.lsh_attention(
        qk, v, num_hashes=2, num_buckets=factors, rotations=rotations, is_causal=causal,
        scope="bucket",
    )  # fmt: skip
    assert row.error == pytest.approx(np.linalg.norm(out - full) / np.linalg.norm(full))


def test_what_a_layer_attends_with_is_what_the_model_hashes_and_attends():
    config = small_config()
    model = randomise(rc.ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 24))
    rotations = [
        rc.lsh_rotations(2, 6, num_hashes=2, num_buckets=4, rng=i, dtype=np.float64) for i in (0, 1)
    ]
    output = model(ids, rotations=rotations, output_buckets=True)
    # the layers below the second LSH layer draw from rng: the first alone is compared
    qk, v = attention_inputs(model, ids, layer=1)
    assert qk.shape == v.shape == (2, 2, 24, 6)
    found = rc.lsh_hash(qk, num_hashes=2, num_buckets=4, rotations=rotations[0])
    np.testing.assert_array_equal(found, output.buckets[0])


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_does_not_hash_is_named(layer):
    model = rc.ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(ValueError, match="layer must be the index of an LSH layer"):
        attention_inputs(model, random_ids((1, 24)), layer)


@pytest.mark.parametrize("options", [{"num_hashes": [2.9]}, {"num_hashes": 0}, {"queries": 1.5}])
def test_counts_of_a_report_are_integers(options):
    qk, v = draw(64)
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be an integer >= 1, got "):
        rc.lsh_report(qk, v=v, **options)


def test_a_report_prints_as_a_table():
    qk, v = draw(64)
    lines = str(lsh_report(qk, v, chunk_length=16)).splitlines()
    assert lines[0].split()[:2] == ["buckets", "rounds"]
    assert [line.split()[:2] for line in lines[1:]] == [["8", str(r)] for r in (1, 2, 4, 8, 16)]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"qk": np.zeros((4, 4), int)}, TypeError, "qk"),
        ({"qk": [[1.0]]}, TypeError, "qk"),
        ({"qk": np.zeros(4)}, ValueError, "qk"),
        ({"qk": np.zeros((0, 4))}, ValueError, "qk"),
        ({"v": np.zeros((64, 7))}, ValueError, "v"),
        ({"num_hashes": ()}, ValueError, "num_hashes"),
        ({"num_hashes": (0, 1)}, ValueError, "num_hashes"),
        ({"queries": 0}, ValueError, "queries"),
        ({"scope": "window"}, ValueError, "scope"),
    ],
)
def test_bad_arguments_are_named(arguments, error, word):
    qk, v = draw(64)
    with pytest.raises(error, match=word):
        lsh_report(**({"qk": qk[0, 0], "v": v[0, 0]} | arguments))


# ---- keys of their own ----


def draw_separate(t, tk, h=4, hk=2, d=8, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, h, t, d))
    k, v = rng.standard_normal((2, 2, hk, tk, d)) + 0.5
    return q, k, v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 0, 3])
@pytest.mark.parametrize(("t", "tk"), [(40, 40), (11, 40), (40, 11)])
@pytest.mark.parametrize("scope", ["bucket", "chunk"])
def test_shares_of_separate_keys_are_those_of_the_pairs_that_lsh_attention_weighs(
    scope, t, tk, window, masked, causal
):
    q, k, _ = draw_separate(t, tk)
    mask = np.random.default_rng(1).integers(0, 2, (2, tk)) if masked else None
    rules = {
        "num_buckets": 6, "is_causal": causal, "attention_mask": mask, "scope": scope,
        "chunk_length": 8, "local_window": window, "scale": 0.7,
    }  # fmt: skip
    report = lsh_report(q, k=k, num_hashes=(1, 3), queries=None, rng=7, **rules)
    rotations = ops.lsh_rotations(4, 8, num_hashes=3, num_buckets=6, rng=7, dtype=q.dtype)
    # the keys of a query are those whose values it gets
    for row in report:
        found = np.zeros((2, 4, t, tk))
        for start in range(0, tk, 8):
            part = np.zeros((2, 2, tk, 8))
            part[:, :, start : start + 8] = np.eye(8)[: tk - start]
            found[..., start : start + 8] = ops.lsh_attention(
                q, part, k=k, num_hashes=row.num_hashes,
                rotations=np.ascontiguousarray(rotations[:, :, : row.num_hashes]), **rules,
            )[..., : tk - start]  # fmt: skip
        real = np.ones((2, tk), bool) if mask is None else mask != 0
        where = np.arange(t)[:, None] + tk - t
        visible = real[:, None] & ((np.arange(tk) <= where) | (not causal))
        p = np.exp(0.7 * q @ np.repeat(k, 2, axis=1).swapaxes(2, 3)) * visible[:, None]
        total = p.sum(-1, keepdims=True)
        some = (total > 0)[..., 0]
        mass = ((p / np.where(total > 0, total, 1)) * (found > 0)).sum(-1)[some]
        assert row.recall == pytest.approx(mass.mean())
        assert row.seen == pytest.approx((found > 0).sum() / (4 * visible.sum()))
        assert row.keys >= (found > 0).sum() / some.sum()
        assert row.bucket_sizes.sum() == 4 * row.num_hashes * real.sum()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "tk"), [(40, 40), (11, 40), (40, 11)])
def test_errors_of_separate_keys_are_those_of_the_op(t, tk, causal, padding):
    q, k, v = draw_separate(t, tk)
    real = np.repeat(np.arange(tk)[None] >= padding, 2, axis=0)
    rules = {"num_buckets": 6, "is_causal": causal, "scope": "bucket", "local_window": 2,
             "allow_duplicate_attention": False, "attention_mask": real}  # fmt: skip
    (row,) = lsh_report(q, v, k=k, num_hashes=2, rng=7, **rules)
    rotations = ops.lsh_rotations(4, 8, num_hashes=2, num_buckets=6, rng=7, dtype=q.dtype)
    out = ops.lsh_attention(q, v, k=k, num_hashes=2, rotations=rotations, **rules)
    where = np.arange(t)[:, None] + tk - t
    p = np.exp(q @ np.repeat(k, 2, axis=1).swapaxes(2, 3) / np.sqrt(8))
    p *= ((np.arange(tk) <= where) | (not causal)) & real[:, None, None]
    total = p.sum(-1, keepdims=True)
    full = p / np.where(total > 0, total, 1) @ np.repeat(v, 2, axis=1)
    assert row.error == pytest.approx(np.linalg.norm(out - full) / np.linalg.norm(full))
    (whole,) = lsh_report(q, v, k=k, num_hashes=1, **rules | {"local_window": 100})
    assert whole.recall == pytest.approx(1.0)
    assert whole.error < tolerance("forward", "float64")


@pytest.mark.parametrize("scope", ["bucket", "chunk"])
def test_masked_shared_tokens_are_in_no_bucket_and_do_not_count(scope):
    qk, v = draw(40)
    mask = np.ones((1, 40), int)
    mask[:, 32:] = 0
    rules = {"num_buckets": 4, "chunk_length": 8, "num_hashes": 2, "queries": None, "scope": scope}
    (row,) = lsh_report(qk, v, attention_mask=mask, **rules)
    assert row.bucket_sizes.sum() == 2 * 2 * 32
    if scope == "bucket":
        (rest,) = lsh_report(qk[:, :, :32], v[:, :, :32], **rules)
        assert row.recall == pytest.approx(rest.recall)
        assert row.keys == pytest.approx(rest.keys)
        assert row.error == pytest.approx(rest.error)


def test_an_error_of_queries_that_may_see_no_key_is_0():
    q, k, v = draw_separate(12, 20)
    (row,) = lsh_report(q, v, k=k, num_hashes=1, attention_mask=np.zeros((2, 20)))
    assert row.recall == row.error == 0.0


def test_a_window_joins_shared_queries_and_keys():
    qk, _ = draw(60)
    rules = {"num_buckets": 8, "scope": "bucket", "num_hashes": 1}
    (alone,), (near,) = (lsh_report(qk, local_window=w, **rules) for w in (None, 4))
    assert near.recall > alone.recall
    assert near.duplicates > alone.duplicates == 0
    (everything,) = lsh_report(qk, local_window=60, **rules)
    assert everything.recall == pytest.approx(1.0)
    assert everything.seen == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"k": np.zeros((64, 7))}, ValueError, "^k must have shape"),
        ({"k": np.zeros((64, 8), np.float32)}, TypeError, "^k must be float64"),
        ({"k": np.zeros((9, 8))}, ValueError, r"^v must have the shape of k, \(1, 1, 9, 8\)"),
        ({"attention_mask": np.ones(63)}, ValueError, "^attention_mask must have shape"),
        ({"attention_mask": np.full(64, np.nan)}, ValueError, "^attention_mask .* not below 0"),
        ({"local_window": -1}, ValueError, "^local_window must be"),
        ({"center": None}, ValueError, "^center must be"),
        ({"scale": "1"}, TypeError, "^scale must be"),
    ],
)
def test_bad_arguments_of_separate_keys_are_named(arguments, error, words):
    qk, v = draw(64, heads=1)
    with pytest.raises(error, match=words):
        lsh_report(**({"qk": qk[0, 0], "v": v[0, 0]} | arguments))
