"""The command line: what is typed, what comes out, and how it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reformer_c import presets
from reformer_c.__main__ import PRESETS, main

COMMANDS = ["demo", "train", "generate", "evaluate", "info", "bench"]
SMALL = ["--length", "256", "--layers", "2", "--width", "32", "--threads", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "\u00e9t\u00e9.\n"]
    draw = np.random.default_rng(0).choice(words, 3000)
    file.write_text(" ".join(draw), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("models") / "model")
    assert main(["train", text, *SMALL, "--steps", "4", "--save", folder]) == 0
    return folder


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "reformer_c", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ---- help and errors ----


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_an_example(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    last = " ".join(capsys.readouterr().out.strip().split("\n\n")[-1].split())
    assert last.startswith(f"example: reformer-c {command}")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(re.search(rf"^ +{command} ", printed, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["train"], "FILE"),
        (["train", "a.txt", "--length", "0"], "--length: expected a whole number >= 1, got '0'"),
        (["train", "a.txt", "--lr", "nan"], "--lr: expected a number > 0, got 'nan'"),
        (["train", "a.txt", "--preset", "huge"], "--preset"),
        (["train", "a.txt", "--held-out", "1"], "--held-out: expected a number in [0, 1)"),
        (["generate", "model", "--prompt", "a", "--prompt-file", "b"], "--prompt-file"),
        (["generate", "model", "--prompt", "a", "--until", "ab"], "--until: expected one ASCII"),
        (["info", "model", "--lengths", "0"], "--lengths: expected a whole number >= 1"),
        (["generate", "model", "--prompt", "a", "--top-p", "2"], "--top-p: expected a number in"),
        (["generate", "model", "--prompt", ""], "--prompt: expected at least one character"),
        (["demo", "--threads", "two"], "--threads: expected a whole number >= 1, got 'two'"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_argument(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.txt"], "nowhere.txt"),
        (["train", "TEXT", "--length", "100000"], "length: a window of 100000 tokens does not fit"),
        (["train", "TEXT", "--resume"], "--resume: needs --save"),
        (["train", "TEXT", "--save-every", "5"], "--save-every: needs --save"),
        (["train", "TEXT", "--save", "EMPTY", "--resume"], "--resume: there is no checkpoint"),
        (["train", "TEXT", "--save", "TEXT"], "TEXT"),
        (["evaluate", "EMPTY", "TEXT"], "config.json"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", "MODEL", "--prompt", "a", "--length", "256"], "--length: 1 bytes of prompt"),
        (["evaluate", "MODEL", "TEXT", "--length", "257"], "--length: expected at most 256"),
        (["evaluate", "MODEL", "TEXT", "--sliding", "256"], "--sliding: expected fewer bytes"),
        (["generate", "MODEL", "--prompt", "a", "--stream", "--beams", "2"], "--stream"),
        (["info", "MODEL", "--lengths", "257"], "--lengths: expected at most 256"),
        (["info", "EMPTY"], "config.json"),
        (["demo", "--length", "10"], "length: expected at least 456 bytes, got 10"),
    ],
)
def test_failures_are_one_line_that_names_the_argument(
    arguments, words, text, trained, tmp_path, capsys
):
    names = {"TEXT": text, "EMPTY": str(tmp_path), "MODEL": trained}
    capsys.readouterr()
    assert main([names.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert names.get(words, words) in said


# ---- the commands ----


def test_a_trained_model_evaluates_generates_and_tells_about_itself(trained, text, capsys):
    assert main(["evaluate", trained, text]) == 0
    bits = float(re.match(r"([\d.]+) bits per byte", capsys.readouterr().out)[1])
    assert 0 < bits < 8
    assert main(["generate", trained, "--prompt", "the \u00e9", "--length", "20"]) == 0
    whole = capsys.readouterr().out
    assert whole.startswith("the \u00e9")
    assert main(["generate", trained, "--prompt", "the \u00e9", "--length", "20", "--stream"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["generate", trained, "--prompt", "the \u00e9", "--length", "20"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["info", trained]) == 0
    told = capsys.readouterr().out
    assert "reformer.encoder.layers.1" in told
    assert "256 tokens" in told


def test_a_prompt_comes_from_an_argument_a_file_or_standard_input(
    trained, tmp_path, capsys, monkeypatch
):
    (tmp_path / "prompt.txt").write_text("the cat")
    texts = set()
    for source in (["--prompt", "the cat"], ["--prompt-file", str(tmp_path / "prompt.txt")], []):
        monkeypatch.setattr("sys.stdin", io.StringIO("the cat"))
        assert main(["generate", trained, *source, "--length", "12"]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_every_way_to_choose_bytes(trained, capsys):
    common = ["generate", trained, "--prompt", "the ", "--length", "12"]
    assert main([*common, "--beams", "3", "--texts", "2", "--length-penalty", "0.5"]) == 0
    assert capsys.readouterr().out.count("the ") >= 2
    assert main([*common, "--top-k", "5", "--min-p", "0.01", "--repetition-penalty", "1.2"]) == 0
    assert main([*common, "--temperature", "0", "--without", "e", "a"]) == 0
    capsys.readouterr()
    assert main([*common, "--temperature", "0", "--until", "e", "t", "a", " ", "o"]) == 0


def test_sliding_windows_predict_each_byte_once(trained, text, capsys):
    found = []
    for more in ([], ["--sliding", "64"], ["--sliding", "200"]):
        assert main(["evaluate", trained, text, "--length", "256", *more]) == 0
        found.append(re.match(r"([\d.]+) bits per byte \(([\d,]+)", capsys.readouterr().out))
    whole, *sliding = (int(match[2].replace(",", "")) for match in found)
    assert sliding[0] == sliding[1] >= whole
    assert all(0 < float(match[1]) < 8 for match in found)


def test_info_measures_what_a_length_costs(trained, capsys):
    assert main(["info", trained, "--lengths", "64", "256"]) == 0
    told = capsys.readouterr().out
    assert told.count("tokens/s") == 3
    assert told.count(" MB") >= 3


def test_temperature_zero_takes_the_likeliest_bytes(trained, capsys):
    texts = set()
    for seed in ("0", "1"):
        assert (
            main(
                ["generate", trained, "--prompt", "the", "--temperature", "0", "--seed", seed]
                + ["--length", "5"]
            )
            == 0
        )
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_resuming_continues_bit_for_bit(text, tmp_path):
    once, twice = str(tmp_path / "once"), str(tmp_path / "twice")
    command = ["train", text, *SMALL, "--seed", "3", "--steps", "6"]
    assert main([*command, "--save", once]) == 0
    process = start(*command, "--save", twice, "--save-every", "1")
    while not os.path.exists(os.path.join(twice, "trainer_state.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert main([*command, "--save", twice, "--resume"]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        assert Path(once, name).read_bytes() == Path(twice, name).read_bytes()


def test_a_checkpoint_is_not_trained_over(trained, text, capsys):
    assert main(["train", text, *SMALL, "--steps", "4", "--save", trained]) == 1
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_saves_and_says_so(number, code, text, tmp_path):
    folder = tmp_path / "model"
    process = start(
        "train", text, *SMALL, "--steps", "1000000", "--save", str(folder), "--save-every", "2"
    )
    while not (folder / "trainer_state.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert json.loads((folder / "trainer_state.json").read_text())["step"] >= 2


def test_text_comes_from_standard_input_too(text, tmp_path):
    with open(text, "rb") as file:
        process = start("train", "-", *SMALL, "--steps", "1", stdin=file)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "held out: " in printed


def test_a_closed_pipe_is_no_error():
    process = subprocess.Popen(
        f"{sys.executable} -m reformer_c --help | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, said = process.communicate()
    assert b"Traceback" not in said


def test_bench_prints_shares_of_the_peak_and_writes_them(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main(["bench", "--length", "256", "--repeats", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "LSH attention" in printed
    assert "of peak" in printed
    result = json.loads(file.read_text())
    row = result["measurements"][0]
    assert row["name"] == "LSH attention"
    assert row["gigaflops"] == pytest.approx(
        4e-6 * 256 * 8 * 128 * 64 / row["milliseconds"], rel=1e-6
    )
    assert row["share_of_peak"] == pytest.approx(
        row["gigaflops"] / result["peak"][str(row["threads"])]
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("length", [1, 2, 1000, 8192, 524_288])
def test_presets_make_models_for_any_length(name, length):
    config = presets.preset_config(name, length)
    rows, columns = config.axial_pos_shape
    assert rows * columns >= length
    assert config.max_position_embeddings == length
    assert list(config.attn_layers) == list(presets.PRESETS[name].layers)


def test_presets_change_width_depth_and_rounds():
    config = presets.preset_config("book", 100, layers=3, width=33, num_hashes=4)
    assert config.attn_layers == ["local", "lsh", "local"]
    assert (config.hidden_size, config.feed_forward_size) == (33, 66)
    assert config.num_hashes == 4


def test_the_command_line_offers_all_presets():
    assert set(presets.PRESETS) == set(PRESETS)
