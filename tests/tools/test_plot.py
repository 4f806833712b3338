"""Plots: they show the data, in the axes that were passed."""

import subprocess
import sys

import numpy as np
import pytest

import reformer_c as rc

matplotlib = pytest.importorskip("matplotlib", reason="it draws")
matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of what draws


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def draw(t=96, d=16):
    return np.random.default_rng(0).standard_normal((t, d))


def picture(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


def is_red(pixels):
    """More red than blue: attention that is missed."""
    return pixels[..., 0] > pixels[..., 2] + 1e-6


TIMES = {"full": {64: 0.1, 128: 0.4}, "LSH": {128: 0.2}}
CALLS = {
    "buckets": lambda ax=None: rc.plot.buckets(np.array([1, 0]), ax),
    "attention_pattern": lambda ax=None: rc.plot.attention_pattern(draw(), None, ax),
    "memory": lambda ax=None: rc.plot.memory(TIMES, ax),
    "speed": lambda ax=None: rc.plot.speed(TIMES, ax),
}


@pytest.mark.parametrize("name", CALLS)
def test_axes_go_in_and_come_out(name, ax):
    figure, other = plt.subplots()  # the current axes, which stay empty
    assert CALLS[name](ax) is ax
    assert ax.has_data()
    assert not other.has_data()
    plt.close(figure)


@pytest.mark.parametrize("name", CALLS)
def test_the_current_axes_are_the_default(name, ax):
    plt.sca(ax)
    assert CALLS[name]() is ax


def test_matplotlib_is_not_imported_before_it_is_needed():
    code = "import sys, reformer_c as rc; rc.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"matplotlib library: pip install .reformer_c"):
        rc.plot.speed(TIMES)


def test_dots_stand_at_position_and_bucket(ax):
    rc.plot.buckets(np.array([5, 1, 5]), ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 5], [1, 1], [2, 5]])


def test_dark_points_are_large_weights(ax):
    qk = draw()
    rc.plot.attention_pattern(qk, None, ax, is_causal=True)
    light = picture(ax).sum(-1)
    scores = qk @ (qk / np.sqrt((qk**2).mean(-1, keepdims=True) + 1e-6)).T / 4
    for i in (10, 50, 95):
        assert light[i, :i].argmin() == scores[i, :i].argmax()
        np.testing.assert_array_equal(light[i, i + 1 :], 3.0)  # white: the future


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_red_is_what_lsh_attention_does_not_look_at(scope, causal, ax):
    qk = draw()
    buckets = rc.lsh_hash(qk, num_hashes=2, num_buckets=8, rng=0)
    rules = dict(chunk_length=16, is_causal=causal, scope=scope)
    rc.plot.attention_pattern(qk, buckets, ax, **rules)
    # only one key has this value: a query that sees it gets part of it
    seen = np.stack([
        rc.lsh_attention(qk, np.eye(len(qk))[:, j : j + 16], buckets=buckets, num_hashes=2,
                         num_buckets=8, **rules)
        for j in range(0, len(qk), 16)
    ], axis=1).reshape(len(qk), -1) > 0  # fmt: skip
    visible = np.tri(len(qk), k=-1, dtype=bool) if causal else ~np.eye(len(qk), dtype=bool)
    np.testing.assert_array_equal(~is_red(picture(ax))[visible], seen[visible])


def test_the_title_is_what_the_report_measures(ax):
    qk = draw()
    rules = dict(chunk_length=16, is_causal=True, scope="bucket")
    rotations = dict(num_hashes=2, num_buckets=8, rng=3)
    ids = rc.lsh_hash(qk, **rotations)
    rc.plot.attention_pattern(qk, ids, ax, **rules)
    (row,) = rc.lsh_report(qk, queries=None, **rotations, **rules)
    assert ax.get_title() == f"{row.recall:.0%} found"


def test_sorting_moves_rows_and_columns_alike(ax):
    qk = draw()
    ids = rc.lsh_hash(qk, num_hashes=1, num_buckets=8, rng=0)
    rc.plot.attention_pattern(qk, ids, ax, chunk_length=16)
    plain = picture(ax)
    ax.clear()
    rc.plot.attention_pattern(qk, ids, ax, chunk_length=16, sort=True)
    order = np.argsort(ids[0], kind="stable")
    np.testing.assert_array_equal(picture(ax), plain[np.ix_(order, order)])


def test_lines_have_their_lengths_and_numbers(ax):
    rc.plot.speed(TIMES, ax)
    assert [line.get_label() for line in ax.lines] == ["full", "LSH"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[64, 0.1], [128, 0.4]])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[128, 0.2]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["64", "128"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rc.plot.buckets(np.zeros((2, 3), int)), "ids must be integers"),
        (lambda: rc.plot.buckets(np.zeros(3)), "ids must be integers"),
        (lambda: rc.plot.buckets(np.zeros(3, int), labels=["a"]), "labels must be 3"),
        (lambda: rc.plot.attention_pattern(draw()[None]), "qk must be floats"),
        (lambda: rc.plot.attention_pattern(draw().astype(int)), "qk must be floats"),
        (lambda: rc.plot.attention_pattern(draw(), np.zeros((1, 5), int)), "ids must"),
        (lambda: rc.plot.attention_pattern(draw(), sort=True), "sort must be False"),
        (lambda: rc.plot.attention_pattern(draw(), scope="window"), "scope must"),
        (lambda: rc.plot.speed({}), "figures must"),
        (lambda: rc.plot.memory({"a": {64: 0.0}}), "figures must be numbers > 0"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_drawn(call, words):
    plt.close("all")
    with pytest.raises(ValueError, match=words):
        call()
    assert not plt.get_fignums()
