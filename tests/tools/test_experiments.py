"""The experiments of the paper: quick forms, resuming, refusals, and what they compute."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close, tolerance

import reformer_c as rc

ROOT = Path(__file__).parents[2]

experiments = pytest.importorskip("experiments", reason="needs the sources")
pytest.importorskip("safetensors", reason="runs save models")

contribute, language, runner, table1, program = (
    import_module(f"experiments.{name}")
    for name in ("contribute", "language", "runner", "table1", "__main__")
)


def names():
    """The experiments, with a mark for those that need more than the test extra."""
    linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
    torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
    needed = dict.fromkeys(("table1", "figure5_left", "enwik8"), linux) | {"pretrained_time": torch}
    return [pytest.param(x, marks=needed[x]) if x in needed else x for x in experiments.NAMES]


def run(capsys, *arguments):
    with rc.num_threads(1):
        program.main([*map(str, arguments)])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", names())
def test_the_quick_form_runs_and_the_same_command_only_shows_it_again(
    name, capsys, monkeypatch, tmp_path
):
    pytest.importorskip("matplotlib")
    command = [name, "--quick", "--save", tmp_path]
    printed = run(capsys, *command)
    assert printed == (tmp_path / f"{name}.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / f"{name}.json").read_text())
    assert summary["command"] == f"python -m experiments {name} --quick"
    assert [x["name"] for x in summary["runs"]] == [x["name"] for x in lines]
    assert summary["machines"] == [lines[0]["machine"]] == [machine()]
    picture = (tmp_path / f"{name}.svg").read_bytes()
    module = import_module(f"experiments.{name}")
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("ran again"))
    assert run(capsys, *command) == printed
    assert (tmp_path / f"{name}.svg").read_bytes() == picture
    # in another order of the runs, or read from the file that is kept, the table is the same
    assert module.show(summary["runs"]) + "\n" == printed


def machine():
    from reformer_c.tools.bench import describe_machine

    with rc.num_threads(1):
        return describe_machine()


def test_a_killed_run_goes_on_from_its_last_checkpoint(capsys, monkeypatch, tmp_path):
    command = ["figure3", "--quick", "--seeds", 0, 3, "--save"]
    whole = run(capsys, *command, tmp_path / "whole")
    # a run has 4 steps: this is killed in the fourth step of the second
    original, calls = rc.ReformerModelWithLMHead.loss_and_gradients, []

    def killed(model, *arguments, **rest):
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(model, *arguments, **rest)

    monkeypatch.setattr(rc.ReformerModelWithLMHead, "loss_and_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        run(capsys, *command, tmp_path / "killed")
    assert len((tmp_path / "killed" / "runs.jsonl").read_text().splitlines()) == 1
    assert run(capsys, *command, tmp_path / "killed") == whole
    # 6 runs of 4 steps, of which the last checkpoint had all but 2 of the killed one
    assert len(calls) == 24 + 2
    one, other = (
        json.loads((tmp_path / folder / "figure3.json").read_text())["runs"]
        for folder in ("whole", "killed")
    )
    for mine, theirs in zip(one, other):
        assert mine["result"]["held_out"] == theirs["result"]["held_out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure99"], "invalid choice: 'figure99'"),
        (["figure3", "--set", "wdith=3"], "'wdith' must be one of layers, width"),
        (["figure3", "--set", "width=wide"], "width must be JSON, got 'wide'"),
        (["figure3", "--set", 'steps="5"'], 'steps must be like 1500, got "5"'),
        (["figure3", "--set", "steps=0"], "steps must be at least 1, got 0"),
        (["figure3", "--set", "lr=-1"], "lr must be at least 0, got -1"),
        (["figure5_left", "--set", "depths=[3,0]"], "depths must be at least 1, got [3,0]"),
        (["pretrained", "--set", "windows=[-1]"], "windows must be at least 0, got [-1]"),
        (["enwik8", "--set", "measured=1"], "measured must be like true, got 1"),
        (["figure3", "--quick", "{short}"], "must have at least 640 bytes, got 5"),
        (["figure3", "--quick", "--save", "{short}"], "a must be a folder"),
        (["figure3", "--kept", "{part}"], "part must have what an experiment writes, got KeyErr"),
        (["figure3", "--seeds", "1", "1"], "must be different numbers >= 0, got [1, 1]"),
        (["figure3", "--seeds", "-1"], "must be different numbers >= 0, got [-1]"),
        (["figure3", "missing.txt"], "FILE: [Errno 2] No such file"),
        (["figure3", "{short}", "--quick"], "must have at least 640 bytes, got 5"),
        (["table1", "{short}"], "FILE: table1 reads none"),
        (["figure3", "--only", "shard"], "--only: 'shard' must be the beginning of one of sep"),
        (["table4", "--quick", "--set", 'models=["odd"]'], "models must be of reversible, ordin"),
        (["figure4", "--kept", "{save}/figure3.json"], "must have results of figure4, got figure3"),
        (["figure3", "--kept", "missing.json"], "--kept: [Errno 2] No such file"),
        (["figure3", "--quick", "--save", "{save}", "--set", "steps=3"], "with the settings"),
        (["figure3", "{long}", "--quick", "--save", "{save}"], "with the data"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    arguments, words, capsys, monkeypatch, tmp_path
):
    places = {"short": tmp_path / "a", "long": tmp_path / "b", "save": tmp_path / "saved"}
    places["part"] = tmp_path / "part"
    places["part"].write_text('{"experiment": "figure3"}')
    places["short"].write_text("short")
    places["long"].write_text("long enough " * 100)
    run(capsys, "figure3", "--quick", "--save", places["save"])
    monkeypatch.setattr(
        rc.ReformerModelWithLMHead, "loss_and_gradients", lambda *_, **__: pytest.fail("trained")
    )
    with pytest.raises(SystemExit):
        program.main([word.format(**places) for word in arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table1", "figure5_left"])
def test_memory_is_only_measured_on_linux(name, monkeypatch, tmp_path):
    module = import_module(f"experiments.{name}")
    monkeypatch.setattr(import_module("experiments.growth"), "CLEAR", tmp_path / "missing")
    with pytest.raises(runner.Refused, match="only be measured on Linux"):
        module.grid(module.SIZE, [0])


def test_a_command_is_kept_without_the_places_of_files_and_what_results_do_not_depend_on():
    words = ["figure5_left", "in/BOOK.txt", "--save", "here", "--only", "3", "--kept", "a.json"]
    _, _, options = program.parse([*words, "--seeds", "1", "--set", "depths=[3]"])
    expected = "python -m experiments figure5_left BOOK.txt --seeds 1 --set 'depths=[3]'"
    assert options.command == expected
    options, once = (
        program.parse(["figure3", "--seeds", "1", *words, "--quick", "BOOK.txt"])[2]
        for words in (
            ["--set", "steps=2", "--seeds", "2", "--only", "a", "--set", "width=8", "--only", "b"],
            ["2", "--only", "a", "b", "--set", "steps=2", "width=8"],
        )
    )
    assert options == once
    assert once.files == ["BOOK.txt"]
    assert program.parse(["figure3"])[2].command == "python -m experiments figure3"


def test_processes_share_a_folder_and_the_last_command_shows_all_runs(
    capsys, monkeypatch, tmp_path
):
    command = ["table4", "--quick", "--save", tmp_path]
    others = "ordinary, seed 0; smoothed, seed 0"
    assert run(capsys, *command, "--only", "reversible") == f"not run yet: {others}\n"
    assert not (tmp_path / "table4.json").exists()
    # while the second run is in progress, another process finishes the third
    module = import_module("experiments.table4")
    original = module.run

    def meanwhile(settings, *rest):
        monkeypatch.setattr(module, "run", original)
        run(capsys, *command, "--only", "smoothed")
        return original(settings, *rest)

    monkeypatch.setattr(module, "run", meanwhile)
    table = run(capsys, *command, "--only", "ordinary", "smoothed")
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("ran again"))
    assert run(capsys, *command) == table
    names = [x["name"] for x in json.loads((tmp_path / "table4.json").read_text())["runs"]]
    assert names == ["reversible, seed 0", *others.split("; ")]


def test_runs_that_are_kept_are_not_run_again_if_settings_and_data_are_the_same(
    capsys, monkeypatch, tmp_path
):
    command = ["figure3", "--set", "steps=2", "--quick"]
    table = run(capsys, *command, "--save", tmp_path / "one")
    kept = tmp_path / "one" / "figure3.json"
    summary = json.loads(kept.read_text())
    summary["machines"].append({"processor": "another"})
    summary["runs"][1]["machine"] = 1
    summary["runs"][2]["settings"]["steps"] = 3
    kept.write_text(json.dumps(summary))
    module = import_module("experiments.figure3")
    original, calls = module.run, []
    monkeypatch.setattr(module, "run", lambda *x: calls.append(x[0]["model"]) or original(*x))
    again = tmp_path / "other"
    assert run(capsys, *command, "--save", again, "--kept", kept) == table
    assert calls == ["ordinary"]
    found = json.loads((again / "figure3.json").read_text())
    assert [found["machines"][x["machine"]] == machine() for x in found["runs"]] == [1, 0, 1]
    text = tmp_path / "BOOK.txt"
    text.write_text("long enough " * 100)
    run(capsys, "figure3", text, *command[1:], "--kept", kept)  # other data
    assert calls == ["ordinary", "separate", "shared", "ordinary"]


def test_kept_results_are_in_the_page_as_the_experiments_show_them():
    page = (ROOT / "docs" / "paper.md").read_text("utf-8")
    for file in sorted((ROOT / "experiments" / "results").glob("*.json")):
        summary = json.loads(file.read_text())
        name, _, _ = file.stem.partition("-")  # table2-direct: table2 with other settings
        assert summary["experiment"] == name
        table = import_module(f"experiments.{name}").show(summary["runs"])
        assert table in page, file
    for name in experiments.NAMES:
        assert f".venv/bin/python -m experiments {name}" in page


# ---- what is computed ----


def test_an_interval_is_students():
    mean, half = language.difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert mean == 2.0
    # t = 4.303 for two degrees of freedom, times the standard error 1 / sqrt(3)
    assert half == pytest.approx(4.303 / np.sqrt(3))
    assert language.in_words(0.5, 0.6).endswith("(no difference is shown)")
    assert language.in_words(-0.5, 0.4).endswith("(a difference)")


def test_exponents_are_those_of_powers():
    sizes = np.array([1, 2, 4])
    assert table1.exponent(sizes, 3.0 * sizes**2) == pytest.approx(2)
    assert table1.exponent(sizes, [5.0] * 3) == pytest.approx(0)


def test_the_least_of_all_seeds_is_shown():
    def a_run(seed, l, seconds):  # noqa: E741
        settings = {"attention": "full", "l": l, "rounds": 0, "seed": seed}
        return {"settings": settings, "result": {"seconds": seconds, "bytes": 5}}

    runs = [a_run(0, 64, 2.0), a_run(0, 128, 1.0), a_run(1, 64, 1.0), a_run(1, 128, 3.0)]
    points, steps = table1.split(runs)
    assert steps == []
    assert [(x["settings"]["l"], x["result"]["seconds"]) for x in points] == [(64, 1.0), (128, 1.0)]


def test_the_papers_formulas_are_those_of_its_tables():
    point = {"l": 64, "rounds": 2, "width": 8, "d_ff": 1000, "n_l": 3}
    full = dict(zip(table1.PARTS, ("full", "kept", "whole")))
    # Transformer: (b l d_ff + b n_h l^2) n_l, and max(b l d_ff, b n_h l^2) n_l
    assert table1.formulas(point | full) == ((64_000 + 2 * 64**2) * 3, 64_000 * 3)
    reformer = dict(zip(table1.PARTS, ("lsh", "reversible", "chunked")))
    # Reformer: (b l d_ff + b n_h n_r l c) n_l, and max(b l d_model, b n_h l n_r c)
    pairs = 2 * 64 * 2 * 128**2
    assert table1.formulas(point | reformer) == ((64_000 + pairs) * 3, pairs)
    assert table1.formulas(point | reformer | {"activations": "kept"}) is None


def test_resampled_bleu_is_that_of_the_sentences_drawn():
    pytest.importorskip("sacrebleu", reason="sacrebleu computes BLEU")
    table4, bleu = import_module("experiments.table4"), import_module("reformer_c.training.bleu")
    targets = ["a dog runs in the snow", "two men sit on a red bench", "the girl sings", "go"]
    written = ["a dog runs on the snow", "two men sit at a red bench", "a girl is singing", "go"]
    drawn = np.random.default_rng(0).integers(0, 4, 4)
    score, _ = bleu.bleu([written[i] for i in drawn], [targets[i] for i in drawn])
    assert table4.resampled(written, targets, 1) == [round(score, 2)]


@pytest.fixture
def hashed():
    settings = {"width": 16, "length": 64, "seed": 0}
    model = language.make_model(
        settings, attn_layers=["local", "lsh", "lsh"], num_hashes=2, num_buckets=8,
        local_attn_chunk_length=8, lsh_attn_chunk_length=8,
    )  # fmt: skip
    return model, np.random.default_rng(0).integers(2, 258, (1, 64))


def twin(model, kinds):
    """A model with other types of attention, and the same weights."""
    other = rc.ReformerModelWithLMHead(model.config.changed({"attn_layers": kinds}), rng=1)
    for name, array in other.parameters.items():
        array[...] = model.parameters[name]
    return other


def replaced(model, ids, kind, layers):
    with contribute.attending(model, kind, layers, seed=3):
        return model(ids, rng=0).logits


def test_full_attention_in_place_of_hashing_is_that_of_a_model_of_full_attention(hashed):
    model, ids = hashed
    found = replaced(model, ids, "full", [1, 2])
    expected = twin(model, ["local", "full_shared", "full_shared"])(ids).logits
    assert_close(found, expected, "model_forward", "float32")
    one = replaced(model, ids, "full", [2])
    assert not np.array_equal(one, found)
    assert not np.array_equal(one, model(ids, rng=0).logits)


def test_local_buckets_are_those_of_the_twin_that_hashes_all_tokens_to_one(hashed):
    model, ids = hashed
    one = contribute.OneBucket(model)
    logits = model(ids, rotations=one.rotations).logits
    np.testing.assert_array_equal(replaced(model, ids, "local", [1, 2]), logits)
    assert not model(ids, rotations=one.rotations, output_buckets=True).buckets[0].any()
    expected = model.loss_and_gradients(ids, labels=ids, rotations=one.rotations, rng=0)
    loss, gradients = one.loss_and_gradients(ids, labels=ids, rng=0)
    assert loss == expected[0] == one.loss(ids, labels=ids, rng=0)
    assert all(np.array_equal(gradients[name], expected[1][name]) for name in gradients)


def test_nothing_is_the_model_whose_output_projections_are_zero(hashed):
    model, ids = hashed
    found = replaced(model, ids, "nothing", [2])
    other = twin(model, model.config.attn_layers)
    other.parameters["reformer.encoder.layers.2.attention.output.dense.weight"][...] = 0
    np.testing.assert_array_equal(found, other(ids, rng=0).logits)


def test_random_buckets_are_drawn_for_each_layer_and_then_hashing_is_as_before(hashed):
    model, ids = hashed
    before = model(ids, rng=0).logits
    one, other = (replaced(model, ids, "random", layers) for layers in ([1], [2]))
    assert not np.array_equal(one, before)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(model(ids, rng=0).logits, before)
    np.testing.assert_array_equal(replaced(model, ids, None, ()), before)


def test_the_loss_by_position_is_the_models(hashed):
    model, ids = hashed
    text = language.Text(ids[0], np.concatenate([ids[0], ids[0, ::-1]]), {})
    pieces = contribute.loss_by_position(model, text, {"length": 64, "seed": 7}, None, ())
    losses = [
        model.loss(row[None], labels=row[None], rng=7) for row in text.held_out.reshape(2, 64)
    ]
    assert [piece[:2] for piece in pieces] == [[1, 63]]
    distance = contribute.mean_loss(pieces) - np.mean(losses) / np.log(2)
    assert abs(distance) < tolerance("four_places")


def test_the_mass_that_buckets_find_is_that_of_a_report():
    qk = np.random.default_rng(0).standard_normal((1, 2, 96, 8))
    buckets = rc.lsh_hash(qk, num_hashes=2, num_buckets=8, rng=4)
    (row,) = rc.lsh_report(
        qk, num_hashes=2, num_buckets=8, chunk_length=8, is_causal=True, queries=None, rng=4
    )
    found = contribute.mass(qk, buckets, {"chunk": 8, "queries": 96})
    assert found == pytest.approx(row.recall)
