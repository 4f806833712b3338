"""The experiments on a pretrained network: its layers, rules that find keys, and measurements."""

from importlib import import_module

import numpy as np
import pytest
from tolerances import assert_close, tolerance

import reformer_c as rc

pytest.importorskip("experiments", reason="needs the sources")
bert, pretrained, timing = (
    import_module(f"experiments.{name}") for name in ("bert", "pretrained", "pretrained_time")
)
SETTINGS = {"rounds": 2, "buckets": 4, "window": 0, "cluster": 8, "seed": 0, "rule": "hash"}


@pytest.fixture
def data():
    return bert.read([], pretrained.SIZE | pretrained.QUICK)


def draw(t=24, h=2, d=8, seed=0):
    q, k, v = np.random.default_rng(seed).standard_normal((3, 1, h, t, d))
    return q, k + 1, v


def test_the_network_is_transformers_bert(data):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    torch = pytest.importorskip("torch")
    c, words = bert.RANDOM["width"], bert.RANDOM["words"]
    config = transformers.BertConfig(
        hidden_size=c, num_hidden_layers=bert.RANDOM["layers"], vocab_size=words,
        num_attention_heads=bert.RANDOM["heads"], intermediate_size=4 * c,
        max_position_embeddings=bert.RANDOM["positions"],
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    weights = {name: torch.from_numpy(x) for name, x in data.network.weights.items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        expected = model(torch.from_numpy(data.ids)).last_hidden_state.numpy()
    assert_close(data.network.states(data.ids, bert.exact), expected, "parity_output")


def test_passages_are_those_of_the_text(tmp_path):
    file = tmp_path / "BOOK.txt"
    file.write_bytes(bytes(range(256)) * 40)
    size = {"network": "random", "length": 12, "passages": 3}
    found = bert.read([file], size)
    assert found.ids.shape == (3, 12)
    assert (found.ids[:, 0] == bert.FIRST).all()
    assert (found.ids[:, -1] == bert.LAST).all()
    np.testing.assert_array_equal(found.ids[0, 1:-1], np.arange(10))
    np.testing.assert_array_equal(found.ids[2, 1:-1], np.arange(246, 256))
    np.testing.assert_allclose((found.exact**2).sum(1), 1, rtol=tolerance("forward", "float32"))
    assert found.about["text"] == "BOOK.txt"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"network": "mine"}, "network must be one of"),
        ({"length": 2}, "length must be at least 3 and at most 64"),
        ({"length": 65}, "length must be at least 3 and at most 64"),
        ({"passages": 100_000_000}, "the text must have"),
    ],
)
def test_what_cannot_be_read_is_refused(size, words):
    with pytest.raises(ValueError, match=words):
        bert.read([], {"network": "random", "length": 12, "passages": 3} | size)


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(bert, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit):
        import_module("experiments.__main__").main(["pretrained"])
    assert 'pip install "reformer_c[pretrained]"' in capsys.readouterr().err


# ---- rules ----


def counted(options, h, i, j):
    """How often query i of a head finds key j."""
    buckets, key_buckets = (options[x][0, h] for x in ("buckets", "key_buckets"))
    if options["local_window"] is not None and abs(i - j) <= options["local_window"]:
        return 1
    times = (buckets[:, i] == key_buckets[:, j]).sum()
    return times if options["allow_duplicate_attention"] else min(times, 1)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("rule", ["hash", "SMYRF", "window"])
def test_attention_is_that_to_the_keys_that_a_rule_finds(rule, window):
    q, k, v = draw()
    options = pretrained.finding(q, k, SETTINGS | {"rule": rule, "window": window}, layer=1)
    out = rc.lsh_attention(q, v, k=k, **options)
    for h, i in np.ndindex(2, 24):
        counts = [counted(options, h, i, j) for j in range(24)]
        p = counts * np.exp(k[0, h] @ q[0, h, i] / np.sqrt(8))
        assert_close(out[0, h, i], p @ v[0, h] / p.sum(), "attention")


def test_the_hash_is_of_centred_keys_and_of_a_passage_alone():
    q, k, _ = draw()
    options = pretrained.finding(q, k, SETTINGS, layer=1)
    other = pretrained.finding(q, k + 9, SETTINGS, layer=1)
    np.testing.assert_array_equal(other["key_buckets"], options["key_buckets"])
    again = pretrained.finding(q, k, SETTINGS, layer=2)
    assert not np.array_equal(again["buckets"], options["buckets"])
    both = (np.concatenate([x, x[::-1]]) for x in (q, k))
    both = pretrained.finding(*both, SETTINGS, layer=2)
    np.testing.assert_array_equal(both["buckets"][:1], again["buckets"])


def test_smyrf_clusters_are_balanced_and_distances_are_inner_products():
    q, k, _ = draw()
    options = pretrained.finding(q, k, SETTINGS | {"rule": "SMYRF"}, layer=0)
    for ids in (options["buckets"], options["key_buckets"]):
        assert ids.shape == (1, 2, 2, 24)
        for row in ids.reshape(4, 24):
            np.testing.assert_array_equal(np.bincount(row), [8, 8, 8])
    # by hand, the first head: lifted, |F(q) - G(k)|^2 = 2 (M - q k)
    directions = np.random.default_rng([0, 0]).standard_normal((10, 2))
    x, y = q[0, 0], k[0, 0]
    most = (x**2).sum(1).max() + (y**2).sum(1).max()
    lifted_q = np.c_[x, np.zeros(24), np.sqrt(most - (x**2).sum(1))]
    lifted_k = np.c_[y, np.sqrt(most - (y**2).sum(1)), np.zeros(24)]
    squares = ((lifted_q[:, None] - lifted_k) ** 2).sum(-1)
    np.testing.assert_allclose(squares, 2 * (most - x @ y.T), rtol=tolerance("noise"))
    for r, direction in enumerate(directions.T):
        for lifted, name in ((lifted_q, "buckets"), (lifted_k, "key_buckets")):
            order = np.argsort(lifted @ direction)
            assert [{*order[i : i + 8]} for i in (0, 8, 16)] == [
                {*np.flatnonzero(options[name][0, 0, r] == i)} for i in range(3)
            ]


def test_shares_and_errors_are_those_of_the_pairs_that_are_found(data):
    rule = SETTINGS | {"window": 2, "measured": 1}
    figures = []

    def attend(layer, q, k, v):
        options = pretrained.finding(q, k, rule, layer)
        out = rc.lsh_attention(q, v, k=k, **options)
        for h in range(2):
            seen = np.array([[counted(options, h, i, j) for j in range(48)] for i in range(48)])
            p = np.exp(q[0, h] @ k[0, h].T / np.sqrt(8))
            p /= p.sum(-1, keepdims=True)
            error = np.linalg.norm(out[0, h] - p @ v[0, h]) / np.linalg.norm(p @ v[0, h])
            figures.append([seen.mean(), (p * seen).sum() / 48, error])
        return bert.exact(layer, q, k, v)

    data.network.states(data.ids[:1], attend)
    found = pretrained.measure(rule, data)
    expected = dict(zip(("pairs", "mass", "error"), np.mean(figures, axis=0)))
    assert found == pytest.approx(expected, abs=tolerance("four_places"))


def test_a_window_of_everything_changes_nothing(data):
    rule = SETTINGS | {"rule": "window", "rounds": 0, "window": 1000, "measured": 2}
    found = pretrained.run(rule, data, None)
    assert found == {
        "pairs": 1, "mass": pytest.approx(1), "error": pytest.approx(0, abs=tolerance("noise")),
        "cosine": pytest.approx(1), "least_cosine": pytest.approx(1), "nearest": 1, "neighbours": 1,
    }  # fmt: skip


def test_neighbours_are_the_most_similar_others():
    x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    np.testing.assert_array_equal(pretrained.neighbours(x)[:, 0], [1, 0, 3, 2])
    assert pretrained.neighbours(x).shape == (4, 4)


# ---- times ----


def test_the_text_of_a_layer_is_that_of_its_passages_in_order(data):
    settings = {"layer": 1, "tokens": 100, "length": 48}
    q, _, v = timing.inputs(settings, data)
    assert q.shape == (1, 2, 100, 8)
    seen = []

    def attend(layer, *heads):
        if layer == 1:
            seen.append(heads)
        return bert.exact(layer, *heads)

    data.network.states(data.ids[2:3], attend)
    assert_close(q[0, :, 96:], seen[0][0][0, :, :4], "parity_output")
    assert_close(v[0, :, 96:], seen[0][2][0, :, :4], "parity_output")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ([1, 1, 1], "not faster than SDPA at any length up to 4,000"),
        ([9, 9, 9], "faster than SDPA from 1,000 tokens on"),
        ([1, 1, 4], "from about 2,000 tokens on"),
        ([1, 1.0, 9], "from about 2,000 tokens on"),
        ([0.5, 2, 4], "from about 1,400 tokens on"),
        ([2, 0.5, 2], "from about 2,800 tokens on"),
    ],
)
def test_the_break_even_length_is_interpolated(seconds, words):
    lengths = [1000, 2000, 4000]
    said = timing.break_even(lengths, {"SDPA": seconds, "LSH": [1, 1, 1]})
    assert words in said


def test_buckets_grow_with_the_text():
    settings = {"rounds": 2, "window": 3, "keys": 32}
    for tokens, buckets in ((1024, 32), (4096, 128), (16384, 512), (65536, 2048)):
        found = timing.hashing_of(settings | {"tokens": tokens})["num_buckets"]
        assert np.prod(found) == buckets
