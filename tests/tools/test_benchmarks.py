"""The benchmarks run, rivals do the same work, and measurements are compared with goals."""

import json
from functools import partial

import numpy as np
import pytest
from tolerances import assert_close, tolerance

import reformer_c as rc
from benchmarks import length, rivals
from benchmarks.__main__ import goal_table, main
from benchmarks.groups import GROUPS, MEDIUM, Goal, faster
from reformer_c import _core
from reformer_c.tools.bench import (
    Case,
    Measurement,
    draw,
    draw_feed_forward,
    draw_model,
    measure,
    training_operations,
)

BOTH = ["forward", "forward + backward"]


PRODUCT = 100.0  # GFLOP/s


def row(name, milliseconds, gigaflops=1.0):
    return Measurement(name, 1, 1, milliseconds, 1.0, gigaflops, 0.5)


def test_every_group_is_measured_and_written(tmp_path, capsys):
    file = tmp_path / "figures.json"
    main(["--quick", "--threads", "2", "--json", str(file)])
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert {group["group"] for group in result["groups"]} == set(GROUPS)
    for group in result["groups"]:
        assert group["title"] in printed
        assert group["product"] > 0
        first = group["measurements"][0]
        for measured in group["measurements"]:
            assert measured["milliseconds"] > 0
            ratio = measured["milliseconds"] / first["milliseconds"]
            assert measured["times_the_first"] == pytest.approx(ratio)
    for goal in result["goals"]:
        assert goal["work"] in printed
        there = rivals.HUGGING_FACE in rivals.installed() or "Hugging Face" not in goal["work"]
        there = there and (rivals.TORCH in rivals.installed() or "torch" not in goal["work"])
        there = there and (_core.isa() in MEDIUM or rivals.AUTOCAST not in goal["work"])
        assert (goal["measured"] is not None) == there, goal


def test_only_the_named_groups_are_measured(tmp_path):
    file = tmp_path / "figures.json"
    main(["--quick", "--only", "scope", "--threads", "1", "--json", str(file)])
    result = json.loads(file.read_text())
    assert [group["group"] for group in result["groups"]] == ["scope"]
    assert result["machine"]["threads"] == "1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--repeats", "0"], "--repeats"),
        (["--threads", "-1"], "--threads"),
    ],
)
def test_bad_arguments_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_a_goal_is_a_share_a_ratio_or_a_difference():
    rows = {"ours": row("ours", 2.0, gigaflops=70.0), "theirs": row("theirs", 5.0)}
    share, ratio = Goal("a", "ours", 0.65), faster("b", "ours", "theirs", 2.6)
    difference = Goal("c", "theirs", 3000.0, "ours", "µs")
    assert (share.value(rows, PRODUCT), share.holds(0.7), share.holds(0.6)) == (0.7, True, False)
    assert (ratio.value(rows, PRODUCT), ratio.holds(2.5), ratio.holds(2.7)) == (2.5, False, True)
    assert (difference.value(rows, PRODUCT), difference.holds(3000.0)) == (3000.0, True)
    assert not difference.holds(3001.0)


def test_a_goal_without_a_rival_or_without_a_number_is_left_open():
    absent = faster("a", "ours", "theirs", 2.0)
    assert absent.value({"ours": row("ours", 1.0)}, PRODUCT) is None
    assert absent.holds(None) is None
    assert Goal("b", "ours", None).holds(0.5) is None


def test_what_is_not_measured_is_called_so():
    goal = {"work": "a", "unit": "times", "required": 1.0, "measured": None, "holds": None}
    assert goal_table([goal]).splitlines()[1].split("  ")[-1] == "1 x"
    assert "not measured" in goal_table([goal])


def test_rounding_has_rivals_and_targets_where_bfloat16_has_instructions(isa):
    function, sizes = GROUPS["precision-products"]
    for group in function(sizes[0], 1):
        names = [case.name for case in group.cases]
        rival = f"{rivals.TORCH}{rivals.AUTOCAST}"
        there = isa in ("amx", "avx512_bf16")
        assert (rival in names) == (there and rivals.TORCH in rivals.installed())
        assert [name for name in names if name != rival] == [
            "reformer_c, highest", "reformer_c, high", "reformer_c, medium",
        ]  # fmt: skip
        assert [goal.than for goal in group.goals] == [names[0], rival]
        assert (group.goals[0].required is not None) == there


def test_a_step_of_book_has_the_operations_that_are_documented():
    model, ids = draw_model(1024)
    assert_close(training_operations(model.config, ids.size), 21.2e6 * 1024, "three_digits")


def test_the_fastest_call_counts_with_the_peak_of_its_threads_and_dtype():
    calls = []

    def call(workers):
        calls.append(workers)

    cases = [Case("a", 10, 1e6, call, 1), Case("b", 10, 1e6, call, 2, np.float64)]
    peak, rows = measure(cases, repeats=1)
    assert [r.threads for r in rows] == [1, 2]
    assert set(calls) == {1, 2}
    for r in rows:
        assert r.tokens_per_second == pytest.approx(1e4 / r.milliseconds)
        assert r.share_of_peak >= r.gigaflops / peak * (1 - tolerance("forward", "float64"))


# ---- rivals ----


def outputs(calls):
    return {name: np.asarray(call()) for name, call in calls.items()}


def test_feed_forwards_and_products_are_ours():
    x, *weights = draw_feed_forward(50, 16, 32)
    expected = rc.feed_forward(x, *weights)
    for out in outputs(rivals.feed_forward(x, *weights)).values():
        assert_close(out, expected, "forward")
    for out in outputs(rivals.product(x, weights[0].T)).values():
        assert_close(out, rc.linear(x, weights[0]), "forward")


def test_torchs_full_attention_is_ours():
    pytest.importorskip("torch", reason="a rival")
    q, k, v = draw(200)
    expected = rc.full_attention(q, k, v, is_causal=True)
    (out,) = outputs(rivals.full_attention(q, k, v)).values()
    assert_close(out, expected, "forward")


@pytest.mark.parametrize("backward", [False, True], ids=BOTH)
def test_under_autocast_torch_computes_what_medium_does(backward):
    torch = pytest.importorskip("torch", reason="a rival")
    q, k, v = draw(100)
    x, *weights = draw_feed_forward(50, 16, 32)
    for theirs, ours, undo, inputs in (
        (partial(rivals.full_attention, q, k, v),
         partial(rc.full_attention_forward, is_causal=True), rc.full_attention_backward, (q, k, v)),
        (partial(rivals.linear_layers, x, *weights),
         rc.feed_forward_forward, rc.feed_forward_backward, (x, *weights)),
    ):  # fmt: skip
        out, saved = ours(*inputs, matmul_precision="medium")
        (call,) = theirs(backward=backward, autocast=True).values()
        found = call() if backward else [call()]
        assert backward or found[0].dtype == torch.bfloat16
        expected = undo(np.ones_like(out), saved) if backward else [out]
        for a, b in zip(found, expected, strict=True):
            assert_close(a.float(), b, "medium")


@pytest.mark.filterwarnings("default")  # transformers warns about itself
@pytest.mark.parametrize("backward", [False, True], ids=BOTH)
def test_hugging_faces_local_attention_is_ours(backward):
    pytest.importorskip("transformers", reason="a rival")
    q, _, _ = draw(256)
    call = rivals.local_attention(q, q, q, backward)[rivals.HUGGING_FACE]
    expected, saved = rc.local_attention_forward(q, q, q, is_causal=True, wrap=True)
    if backward:
        (found,) = call()
        expected = sum(rc.local_attention_backward(np.ones_like(expected), saved))
    else:
        found = call()
    expected = expected.transpose(0, 2, 1, 3).reshape(found.shape)
    assert_close(found, expected, "attention_backward")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backward", [False, True], ids=BOTH)
def test_rivals_hash_in_one_round(backward):
    pytest.importorskip("torch", reason="a rival")
    qk, v, _ = draw(256)
    calls = rivals.lsh_attention(qk, v, backward)
    assert set(calls) == {rivals.HUGGING_FACE, rivals.LUCIDRAINS} & set(rivals.installed())
    for call in calls.values():
        result = call()
        for array in result if backward else [result]:
            assert array.numel() == qk.size
            assert bool(array.isfinite().all())


def test_rivals_get_the_same_number_of_threads_and_then_theirs_back():
    torch = pytest.importorskip("torch", reason="a rival")
    before = torch.get_num_threads()
    with rivals.num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_linear_algebra_behind_numpy_is_named():
    pytest.importorskip("threadpoolctl", reason="it looks into NumPy's library")
    assert "kernels for" in rivals.describe()["BLAS"]


# ---- time against length ----


def test_time_against_length_is_printed_drawn_and_written(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="it draws").use("agg")
    monkeypatch.setattr(length, "TOKENS", 512)
    plot, file = tmp_path / "length.svg", tmp_path / "length.json"
    main_arguments = ["--lengths", "128", "512", "--longest-full", "128", "--repeats", "1"]
    length.main([*main_arguments, "--plot", str(plot), "--json", str(file)])
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["512", "-"]
    seconds = json.loads(file.read_text())["seconds"]
    assert list(seconds["full"]) == ["128"]
    assert list(seconds["LSH-8"]) == ["128", "512"]
    assert plot.read_text().startswith("<?xml")


@pytest.mark.parametrize("arguments", [["--lengths", "0"], ["--repeats", "0"]])
def test_lengths_and_repeats_are_checked(arguments, capsys):
    with pytest.raises(SystemExit):
        length.main(arguments)
    assert arguments[0] in capsys.readouterr().err
