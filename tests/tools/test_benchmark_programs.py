"""The programs that measure models: they run, resume, and their sums are right."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tolerances import tolerance

import reformer_c as rc

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the sources")


def program(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [module.__file__, *map(str, arguments)])
    with rc.num_threads(1):
        module.main()
    return capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_depth_adds_parameters_and_bucket_ids_and_nothing_else(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    depth = program("depth")
    picture = tmp_path / "depth.svg"
    printed = run(depth, monkeypatch, capsys, "--layers", 2, 6, "--length", 4096, "--plot", picture)
    shallow, deep = (
        [float(x.replace(",", "")) for x in line.split()]
        for line in printed.strip().split("\n")[-2:]
    )
    assert (shallow[0], deep[0]) == (2, 6)
    measured, parameters, buckets = (deep[i] - shallow[i] for i in (1, 3, 4))
    # where the peak is that of the loss, the layers' gradients come after it
    assert measured < 1.2 * (parameters + buckets)
    assert deep[5] - shallow[5] > 4 * (parameters + buckets)
    assert picture.stat().st_size > 1000


@pytest.mark.filterwarnings("default")  # transformers warns about itself
def test_a_step_is_timed_alone_and_with_hugging_faces(monkeypatch, capfd):
    from benchmarks import rivals, step

    options = ("--lengths", 256, 512, "--compare", 256, "--repeats", 1)
    printed = run(step, monkeypatch, capfd, *options, "--residual-dtype", "int16")
    assert re.findall(r"^ +(256|512) .*%", printed, re.MULTILINE) == ["256", "512"]
    rows = re.findall(r"^(.*?) +[\d.]+ s +[\d,]+ tokens/s", printed, re.MULTILINE)
    theirs = [f"{rivals.HUGGING_FACE}, patched", rivals.HUGGING_FACE]
    there = theirs if rivals.HUGGING_FACE in rivals.installed() else []
    assert rows == ["reformer_c", "reformer_c, memory_budget", *there]


@pytest.mark.filterwarnings("default")  # transformers warns about itself
def test_decoding_is_timed_after_each_prompt(monkeypatch, capsys):
    from benchmarks import decode, rivals

    printed = run(decode, monkeypatch, capsys, "--prompts", 70, 130, "--tokens", 2)
    for name in ("scope=chunk", "scope=bucket", rivals.HUGGING_FACE):
        rows = re.findall(rf"{name} +(70|130) +[\d,]+ +[\d,]+", printed)
        there = name.startswith("scope") or name in rivals.installed()
        assert rows == (["70", "130"] if there else []), name


def test_scopes_are_trained_and_compared(monkeypatch, capsys):
    from benchmarks import scope

    printed = run(scope, monkeypatch, capsys, "--steps", 2, "--length", 256)
    chunk, bucket = (line.split() for line in printed.splitlines()[-2:])
    assert (chunk[0], bucket[0]) == ("chunk", "bucket")
    assert bucket[4] == "0%"  # strictly causal
    assert float(bucket[6]) < tolerance("four_places")


def test_separate_keys_are_compared_with_shared_ones(monkeypatch, capsys):
    from benchmarks import separate

    options = ("--length", 512, "--sizes", 64, 256, "--repeats", 1)
    rows = [line.split() for line in run(separate, monkeypatch, capsys, *options).splitlines()[-4:]]
    assert [row[:2] for row in rows] == [[n, c] for n in ("64", "256") for c in ("no", "yes")]
    assert all(float(x) > 0 for row in rows for x in row[2:])


def test_streams_in_fixed_point_are_compared(monkeypatch, capsys):
    from benchmarks import streams

    printed = run(
        streams, monkeypatch, capsys, "--quick", "--steps", 2, "--kinds", "int16", "int32"
    )
    errors = dict(re.findall(r"^(\w+) +([\d.]+e[-+]\d+)$", printed, re.MULTILINE))
    assert float(errors["float32"]) == 0 < float(errors["int32"]) < float(errors["int16"]) < 0.3
    rows = re.findall(r"^ +0 +(\w+) +([\d.]+) +[-+][\d.]+% +[\d.]+$", printed, re.MULTILINE)
    assert [name for name, _ in rows] == ["float32", "int16", "int32"]
    assert len(re.findall(r"^int\d\d: [-+][\d.]+% .*: (?:yes|NO)$", printed, re.MULTILINE)) == 2


def test_precisions_are_compared_and_the_same_command_goes_on(monkeypatch, capsys, tmp_path):
    from benchmarks import precision

    command = ["--quick", "--steps", 2, "--save", tmp_path]
    printed = run(precision, monkeypatch, capsys, *command)
    results = json.loads((tmp_path / "results.json").read_text())
    for operation, errors in results["errors"].items():
        for name, e in errors.items():
            assert e["highest"] < tolerance("highest", "float32"), (operation, name)
            if (operation, name) == ("cross_entropy_head", "output"):
                continue  # errors of many rows cancel out
            if name.startswith("db"):  # sums, in which there may be no product
                assert e["highest"] <= e["high"] <= e["medium"], (operation, name)
            else:
                assert 3 * e["highest"] < e["high"] < e["medium"] / 5, (operation, name)
                assert 1e-3 < e["medium"] < 0.1, (operation, name)
    assert {f"{name}_attention" for name in ("full", "local", "lsh")} < set(results["errors"])
    rows = {name: row["0"]["bits_per_byte"] for name, row in results["trained"].items()}
    assert set(rows) == {"highest", "high", "medium"} == set(rows["medium"])
    more = rows["medium"]["medium"] - rows["highest"]["highest"]
    assert re.search(rf"^medium +\{more:+.4f} .* (yes|NO)$", printed, re.MULTILINE)
    # a model that is missing goes on from its checkpoint, and the others are not trained again
    del results["trained"]["medium"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(
        rc.ReformerModelWithLMHead, "loss_and_gradients", lambda *_, **__: pytest.fail("again")
    )
    assert run(precision, monkeypatch, capsys, *command) == printed
    with pytest.raises(SystemExit, match=r"has the results of .*'steps': 2"):
        run(precision, monkeypatch, capsys, "--quick", "--steps", 3, "--save", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "FILE: .*No such file"),
        ("", "FILE: .*must contain text"),
        ("a" * 99, "FILE must .*got 99"),
    ],
)
def test_a_text_to_compare_precisions_on_is_checked_first(
    text, words, monkeypatch, capsys, tmp_path
):
    from benchmarks import precision

    file = tmp_path / "text.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit):
        run(precision, monkeypatch, capsys, file, "--quick", "--save", tmp_path / "run")
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_quantized_weights_are_compared_with_those_of_the_model(monkeypatch, capsys):
    printed = run(program("quantized"), monkeypatch, capsys, "--quick")
    bits = dict(re.findall(r"^(\w+) +([\d.]+) bits per byte", printed, re.MULTILINE))
    assert bits.keys() == {"float32", "bfloat16", "int8"}
    for x in bits.values():
        assert abs(float(x) - float(bits["float32"])) < tolerance("three_digits")
    speeds = re.findall(
        r"^1 thread +(\w+) +[\d,.]+ tokens/s +([\d.]+) times", printed, re.MULTILINE
    )
    assert [name for name, _ in speeds] == ["float32", "bfloat16", "int8"]
    assert speeds[0][1] == "1.00"


def test_a_novel_starts_at_random_positions_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys
):
    for library in ("tokenizers", "safetensors"):
        pytest.importorskip(library)
    novel = program("novel")
    text = "".join(np.random.default_rng(0).choice(list("once upon a time"), 1000))
    (tmp_path / "novel.txt").write_text(text)
    command = [tmp_path / "novel.txt", "--save", tmp_path / "run", "--eval-every", 1, "--write", 2]
    printed = run(novel, monkeypatch, capsys, *command, "--steps", 1, "--offset", 9)
    length = int(re.search(r"^(\d+) tokens to train on", printed, re.MULTILINE)[1])
    config = rc.ReformerConfig.from_json(tmp_path / "run")
    assert config.max_position_embeddings == length + 9
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["data"]["offset"] == 9
    printed = run(novel, monkeypatch, capsys, *command, "--steps", 1, "--offset", 9)
    assert printed.count("1 steps, ") == 1


@pytest.mark.parametrize("library", ["tokenizers", "safetensors", "matplotlib"])
def test_a_novel_needs_its_libraries_before_any_work(library, tmp_path, monkeypatch, capsys):
    novel = program("novel")
    monkeypatch.setattr(novel, "find_spec", lambda name: None if name == library else "there")
    (tmp_path / "novel.txt").write_text("Once upon a time.")
    arguments = [tmp_path / "novel.txt", "--save", tmp_path / "run", "--plot", tmp_path / "a.svg"]
    with pytest.raises(SystemExit):
        run(novel, monkeypatch, capsys, *arguments)
    assert f"needs the {library} library" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
