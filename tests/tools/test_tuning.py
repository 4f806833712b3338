"""tune_lsh against its definition, pair by pair."""

import numpy as np
import pytest
from reference.attention import SELF, normalised

import reformer_c as rc
from reformer_c.ops.hashing import generator_of

FEW = {"num_hashes": (1, 3), "num_buckets": (4, (2, 4)), "local_window": (0, 3), "heads": None,
       "queries": None}  # fmt: skip


def draw(b=1, h=2, hk=2, t=40, tk=40, d=8, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((b, h, t, d)), rng.standard_normal((b, hk, tk, d)) + 0.5
    return q.astype(dtype), k.astype(dtype)


def softmax(q, k, visible, scale):
    p = np.exp(scale * q @ k.T) * visible
    total = p.sum(-1, keepdims=True)
    return p / np.where(total > 0, total, 1)


def full_attention(qk, causal):
    """The weights (t, t) of shared queries and keys."""
    t, d = qk.shape
    scores = qk @ normalised(qk).T / np.sqrt(d)
    if causal:
        scores[np.triu_indices(t, 1)] = -1e9
    np.fill_diagonal(scores, SELF)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def buckets_of(x, y, num_hashes, num_buckets, rng, dtype=np.float64):
    """Of queries and of keys, with the rotations that the tuning draws next."""
    rotations = rc.lsh_rotations(
        1, x.shape[1], num_hashes=num_hashes, num_buckets=num_buckets, rng=rng, dtype=dtype
    )
    rules = {"num_hashes": num_hashes, "num_buckets": num_buckets, "rotations": rotations}
    return [rc.lsh_hash(z, **rules) for z in (x, y)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("t", "tk"), [(40, 40), (11, 40), (40, 11)])
def test_each_candidate_finds_and_costs_what_its_pairs_do(causal, masked, t, tk):
    q, k = draw(b=2, h=4, hk=2, t=t, tk=tk)
    mask = np.random.default_rng(1).integers(0, 2, (2, tk)) if masked else None
    tuning = rc.tune_lsh(
        q, k, recall=0.5, is_causal=causal, attention_mask=mask, scale=0.6, rng=5, **FEW
    )
    assert tuning.heads == tuple(np.ndindex(2, 4))
    assert len(tuning.candidates) == 2 * 2 * 2
    real = np.ones((2, tk), bool) if mask is None else mask != 0
    rng = generator_of(5)
    mass, pairs, unique = ({} for _ in range(3))
    count, visible_pairs = 0, 0
    where = np.arange(t)[:, None] + tk - t
    for i, j in np.ndindex(2, 4):
        visible = real[i] & ((np.arange(tk) <= where) | (not causal))
        rows = visible.any(1)
        keys = k[i, j // 2]
        p = softmax(q[i, j], keys, visible, 0.6)
        count, visible_pairs = count + rows.sum(), visible_pairs + visible.sum()
        hashed = keys - keys[real[i]].mean(0)
        if causal:
            upto = np.cumsum(real[i])[:, None]
            hashed = keys - np.cumsum(keys * real[i][:, None], 0) / np.maximum(1, upto)
        for factors in FEW["num_buckets"]:
            ids_q, ids_k = buckets_of(q[i, j][rows], hashed, 3, factors, rng)
            for r in FEW["num_hashes"]:
                meets = np.zeros((r, t, tk), bool)
                meets[:, rows] = ids_q[:r, :, None] == ids_k[:r, None]
                for w in FEW["local_window"]:
                    near = np.abs(np.arange(tk) - where) <= w
                    found, at = meets.any(0) | near, (r, factors, w)
                    orphans = ~(found & visible).any(1)
                    found[orphans] = True
                    mass.setdefault(at, {})[i, j] = p[found].sum()
                    computed = (meets & visible).sum() + (near & visible).sum()
                    pairs[at] = pairs.get(at, 0) + computed + visible[orphans].sum()
                    unique[at] = unique.get(at, 0) + (found & visible).sum()
    for row in tuning.candidates:
        at = row.num_hashes, row.num_buckets, row.local_window
        assert row.recall == pytest.approx(sum(mass[at].values()) / count)
        assert row.keys == pytest.approx(pairs[at] / count)
        assert row.seen == pytest.approx(unique[at] / visible_pairs)
        half = np.sum(np.atleast_1d(row.num_buckets)) / 2
        hashing = 2 * 8 * row.num_hashes * half * (1 + 2 * tk / (4 * t))
        assert row.operations == pytest.approx(4 * 8 * row.keys + hashing)
        assert row.share == pytest.approx(row.operations * count / (4 * 8 * visible_pairs))


@pytest.mark.parametrize("causal", [False, True])
def test_shared_queries_and_keys_follow_the_reformers_rules(causal):
    qk, _ = draw(t=30)
    tuning = rc.tune_lsh(qk, recall=0.5, is_causal=causal, rng=5, **FEW)
    rng = generator_of(5)
    mass = {}
    for j in range(2):
        p = full_attention(qk[0, j], causal)
        for factors in FEW["num_buckets"]:
            ids, _ = buckets_of(qk[0, j], qk[0, j], 3, factors, rng)
            for r in FEW["num_hashes"]:
                meets = (ids[:r, :, None] == ids[:r, None]).any(0)
                for w in FEW["local_window"]:
                    near = np.abs(np.arange(30)[:, None] - np.arange(30)) <= w
                    found = meets | near
                    at = r, factors, w
                    mass[at] = mass.get(at, 0) + p[found].sum() / 60
    for row in tuning.candidates:
        at = row.num_hashes, row.num_buckets, row.local_window
        assert row.recall == pytest.approx(mass[at])


def test_the_cheapest_that_finds_enough_is_chosen():
    q, k = draw(t=300, tk=300, d=16)
    tuning = rc.tune_lsh(2 * q, k, recall=0.7, rng=0)
    assert tuning.reached
    costs = [row.operations for row in tuning.candidates]
    assert costs == sorted(costs)
    for row in tuning.candidates:
        if row.operations < tuning.chosen.operations:
            assert row.recall < 0.7
    assert tuning.chosen.recall >= 0.7
    assert tuning.chosen.least_recall <= tuning.chosen.recall
    assert tuning.settings == {
        "num_hashes": tuning.chosen.num_hashes, "num_buckets": tuning.chosen.num_buckets,
        "local_window": tuning.chosen.local_window, "scope": "bucket",
        "allow_duplicate_attention": False,
    }  # fmt: skip


def test_the_settings_give_the_share_that_was_measured():
    """The result with them is full attention's on the keys that are found, weighed anew."""
    q, k = draw(b=1, h=1, hk=1, t=60, tk=60)
    tuning = rc.tune_lsh(q, k, recall=0.6, queries=None, num_hashes=4, num_buckets=4)
    _, whole = rc.full_attention_forward(q, k, k)
    shares = []
    for seed in range(40):
        _, lse = rc.lsh_attention(q, k, k=k, rng=seed, lse=True, **tuning.settings)
        shares.append(np.exp(lse - whole.lse).mean())
    assert abs(np.mean(shares) - tuning.chosen.recall) < 0.05


def test_one_number_of_buckets_of_any_integer_type():
    q, k = draw()
    one, same = (rc.tune_lsh(q, k, recall=1e-9, num_buckets=n) for n in (4, np.int64(4)))
    assert one == same


def test_the_same_rng_gives_the_same_result_and_heads_are_sampled():
    q, k = draw(b=3, h=4, hk=4, dtype=np.float32)
    rules = FEW | {"heads": 5, "recall": 0.2}
    one, same, other = (rc.tune_lsh(q, k, rng=seed, **rules) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one.heads)) == 5
    assert all(0 <= i < 3 and 0 <= j < 4 for i, j in one.heads)
    assert rc.tune_lsh(q[0], k[0], rng=1, **rules).heads == tuple((0, j) for j in range(4))


def test_centred_keys_are_found_where_others_are_not():
    """A mean of all keys that is far from zero puts them into one bucket."""
    q, k = draw(t=200, tk=200, d=16)
    few = {"num_hashes": 1, "num_buckets": [16], "local_window": 0, "recall": 1e-9}
    found = [
        rc.tune_lsh(q, k + 20, center=center, **few).chosen
        for center in ("keys", None, np.full(16, 20.5))
    ]

    assert min(found[0].recall, found[2].recall) > 1.3 * found[1].recall


def test_what_is_not_reached_is_said():
    q, k = draw()
    with pytest.warns(
        UserWarning, match=r"^no candidate finds recall = 0.999 .* finds 0\."
    ) as seen:
        tuning = rc.tune_lsh(
            q, k, recall=0.999, num_hashes=1, num_buckets=[8, 4], local_window=(0, 2)
        )
    assert seen[0].filename == __file__
    assert not tuning.reached
    assert tuning.chosen.recall == max(row.recall for row in tuning.candidates)
    assert "which no candidate finds" in str(tuning)


def test_a_tuning_prints_what_no_candidate_beats():
    q, k = draw(t=200, tk=200)
    tuning = rc.tune_lsh(q, k, recall=0.6)
    title, header, *lines = str(tuning).splitlines()
    assert title == "60.0% of full attention's mass"
    assert header.split()[:3] == ["buckets", "rounds", "window"]
    assert sum(line.startswith("chosen") for line in lines) == 1
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    masses = [float(line.split()[-3].rstrip("%")) for line in lines]
    assert shares == sorted(shares)
    assert masses == sorted(masses)
    assert tuning._repr_html_().count("<tr>") == len(lines) + 1


@pytest.mark.parametrize("tk", [1, 2, 7, 100, 5000])
def test_any_length_has_numbers_of_buckets_to_try(tk):
    q, k = draw(t=3, tk=tk)
    tuning = rc.tune_lsh(q, k, recall=1e-9, num_hashes=1, local_window=0)
    sizes = [np.prod(row.num_buckets) for row in tuning.candidates]
    assert min(sizes) >= 2
    assert len(sizes) == len(set(sizes)) <= 6
    assert all(tk / n <= 512 for n in sizes)


def test_masked_queries_of_shared_queries_and_keys_do_not_count():
    qk, _ = draw(t=30)
    mask = np.ones((1, 30), int)
    mask[:, 20:] = 0
    some = rc.tune_lsh(qk, recall=1e-9, attention_mask=mask, **FEW)
    rest = rc.tune_lsh(qk[:, :, :20], recall=1e-9, **FEW)
    for a, b in zip(some.candidates, rest.candidates):
        assert a.recall == pytest.approx(b.recall)
        assert a.operations == pytest.approx(b.operations)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"q": np.zeros((4, 4), int)}, TypeError, "^q must be a float32 or float64"),
        ({"q": np.zeros((0, 4))}, ValueError, "^q must have shape"),
        ({"k": np.zeros((40, 8), np.float32)}, TypeError, "^k must be float64 as q"),
        ({"k": np.zeros((40, 7))}, ValueError, "^k must have shape"),
        ({"k": np.zeros((2, 40, 8))}, ValueError, "^k must have shape"),
        ({"recall": 0}, ValueError, "^recall must be a number > 0 and <= 1"),
        ({"recall": 1.1}, ValueError, "^recall must be"),
        ({"num_hashes": ()}, ValueError, "^num_hashes must be"),
        ({"num_hashes": (0, 1)}, ValueError, "^num_hashes must be"),
        ({"num_buckets": ()}, ValueError, "^num_buckets must be"),
        ({"num_buckets": (3,)}, ValueError, "^num_buckets must be"),
        ({"num_buckets": 4.5}, TypeError, "^num_buckets must be"),
        ({"local_window": -1}, ValueError, "^local_window must be"),
        ({"is_causal": 2}, TypeError, "^is_causal must be"),
        ({"attention_mask": np.ones(7)}, ValueError, "^attention_mask must have shape"),
        ({"attention_mask": -np.ones(40)}, ValueError, "^attention_mask .* not below 0"),
        ({"attention_mask": np.zeros(40)}, ValueError, "^q must have a sampled query"),
        ({"center": "mean"}, ValueError, "^center must be"),
        ({"scale": np.inf}, ValueError, "^scale must be"),
        ({"heads": 0}, ValueError, "^heads must be"),
        ({"queries": 0}, ValueError, "^queries must be"),
        ({"rng": "x"}, TypeError, "^rng must be"),
        ({"window": 3}, TypeError, "local_window"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    q, k = draw(h=1, hk=1)
    with pytest.raises(error, match=words):
        rc.tune_lsh(**({"q": q[0, 0], "k": k[0, 0]} | arguments))
