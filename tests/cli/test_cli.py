"""The command line: arguments, output, and exit codes."""

import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reformer_c import _core
from reformer_c.cli.arguments import OPTIMIZERS, PRESETS, SCHEDULES, parse
from reformer_c.cli.main import main
from reformer_c.models import presets
from reformer_c.models.config import ReformerConfig
from reformer_c.models.model import ReformerModelWithLMHead
from reformer_c.text.byte_tokenizer import ByteTokenizer
from reformer_c.tools.bench import STEPS
from reformer_c.training.evaluation import evaluate
from reformer_c.training.log import read_log
from reformer_c.training.schedules import schedules

COMMANDS = ["demo", "train", "generate", "complete", "evaluate", "predict", "translate", "average",
            "info", "bench"]  # fmt: skip
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
        (["train", "a.txt", "--length", "0"], "--length: must be a whole number >= 1, got '0'"),
        (["train", "a.txt", "--lr", "nan"], "--lr: must be a number > 0, got 'nan'"),
        (["train", "a.npy", "--bytes-per-token", "inf"], "--bytes-per-token: must be a number"),
        (["train", "a.txt", "--preset", "huge"], "--preset"),
        (["train", "a.txt", "--held-out", "1"], "--held-out: must be a number in [0, 1)"),
        (["generate", "model", "--prompt", "a", "--prompt-file", "b"], "--prompt-file"),
        (["generate", "model", "--prompt", "a", "--until", "ab"], "--until: must be one ASCII"),
        (["info", "model", "--lengths", "0"], "--lengths: must be a whole number >= 1"),
        (["generate", "model", "--prompt", "a", "--top-p", "2"], "--top-p: must be a number in"),
        (["generate", "model", "--prompt", ""], "--prompt: must be at least one character"),
        (["train", "a.txt", "--set", "num_hashes"], "--set: must be FIELD=VALUE"),
        (["train", "a.txt", "--optimizer", "sgd"], "--optimizer"),
        (["train", "a.txt", "--schedule", "step"], "--schedule"),
        (["train", "a.txt", "--memory-budget", "-1"], "--memory-budget: must be a number >= 0"),
        (["demo", "--threads", "two"], "--threads: must be a whole number >= 1, got 'two'"),
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
        (["train", "TEXT", "--length", "100000"], "length must be at most "),
        (["train", "TEXT", "--resume"], "--resume needs --save"),
        (["train", "TEXT", "--save-every", "5"], "--save-every needs --save"),
        (["train", "TEXT", "--save", "EMPTY", "--resume"], "--resume: there is no checkpoint"),
        (["train", "TEXT", "--save", "TEXT"], "TEXT"),
        (["train", "TEXT", "--set", "hashes=3"], "hashes: ReformerConfig has no such field"),
        (["train", "TEXT", "--set", "vocab_size=100"], "below the model's vocabulary of 100"),
        (["train", "TEXT", "--whole-files", "--batch", "2"], "--batch must be 1"),
        (["evaluate", "EMPTY", "TEXT"], "config.json"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", "MODEL", "--prompt", "a", "--length", "256"], "--length: 1 bytes of prompt"),
        (["evaluate", "MODEL", "TEXT", "--length", "257"], "--length must be at most"),
        (["evaluate", "MODEL", "TEXT", "--sliding", "256"], "--sliding must be less"),
        (["generate", "MODEL", "--prompt", "a", "--stream", "--beams", "2"], "--stream"),
        (["generate", "MODEL", "--prompt", "a", "--stream", "--texts", "3"], "--texts 3"),
        (["evaluate", "MODEL", "ids.npy"], "FILE must be text, got token ids in 'ids.npy'"),
        (["bench", "--json", "nowhere/figures.json"], "nowhere/figures.json"),
        (["info", "MODEL", "--lengths", "257"], "--lengths must be at most the model's 256"),
        (["info", "EMPTY"], "config.json"),
        (["demo", "--length", "10"], "length must be at least 456 bytes, got 10"),
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
    for storage in ("int8", "bfloat16"):
        command = ["generate", trained, "--prompt", "the", "--length", "20", "--weights", storage]
        assert main(command) == 0
        assert capsys.readouterr().out.startswith("the")
    command = ["generate", trained, "--prompt", "the", "--length", "20", "--cache", "bfloat16"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("the")
    assert main(["info", trained]) == 0
    told = capsys.readouterr().out
    assert "reformer.encoder.layers.1" in told
    assert "256 tokens" in told


def test_a_model_without_learned_positions_has_no_longest_text(text, tmp_path, capsys):
    folder = str(tmp_path / "model")
    kind = ["--set", "position_embedding_type=sinusoidal"]
    assert main(["train", text, *SMALL, *kind, "--steps", "1", "--save", folder]) == 0
    for command in (
        ["evaluate", folder, text], ["evaluate", folder, text, "--length", "400"],
        ["info", folder, "--lengths", "300"],
    ):  # fmt: skip
        capsys.readouterr()
        assert main(command) == 0
    assert "longest sequence  of any length" in capsys.readouterr().out
    command = ["generate", folder, "--prompt", "the ", "--length", "300", "--until", "~"]
    capsys.readouterr()
    for bound, same in (["304"], True), (["20"], False), (["20", "--cache-drop", "20"], False):
        assert main(command) == 0
        whole = capsys.readouterr().out
        assert main([*command, "--cache-length", *bound]) == 0
        assert (capsys.readouterr().out == whole) is same
    assert main([*command, "--cache-length", "20", "--cache-drop", "21"]) == 1
    assert "cache_drop must be at most cache_length=20, got 21" in capsys.readouterr().err
    assert main([*command, "--cache-drop", "21"]) == 1
    assert "cache_drop must be None without cache_length" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        (["generate", "model"], "--without", ["a", "b", "c"]),
        (["generate", "model"], "--until", ["a", "b", "c"]),
        (["info", "model"], "--lengths", ["1", "2", "3"]),
        (["train"], "--pairs", ["a", "b", "c"]),
    ],
)
def test_values_of_an_option_that_is_repeated_are_joined(command, option, words):
    once, twice = (
        vars(parse([*command, *words])) | {"parser": None}
        for words in ([option, *words], [option, *words[:2], option, words[2]])
    )
    assert once == twice


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


def test_a_folder_says_how_it_is_generated_from_below_the_options(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "model")
    common = [str(folder), "--prompt", "the ", "--length", "40"]

    def written(*options, **saved):
        (folder / "generation_config.json").write_text(json.dumps(saved))
        assert main(["generate", *common, *options]) == 0
        return capsys.readouterr().out

    for option, value in (("temperature", 1.7), ("top_k", 3), ("top_p", 0.3), ("min_p", 0.2),
                          ("repetition_penalty", 3.0)):  # fmt: skip
        by_option = written(f"--{option.replace('_', '-')}", str(value))
        assert written(**{option: value}) == by_option
        assert by_option != written()
        usual = {"temperature": 0.8, "top_k": 0, "top_p": 0.95}.get(option)
        if usual is not None:
            assert written(f"--{option.replace('_', '-')}", str(usual), **{option: value}) == (
                written()
            )
    # settings without an option, and the end of a text
    assert "e" not in written(suppress_tokens=[ByteTokenizer.offset + ord("e")])[4:]
    ended = written("--until", "a")
    assert written(eos_token_id=ByteTokenizer.offset + ord("a")) == ended


def test_a_folder_says_how_much_and_with_how_many_beams(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "model")
    space = ByteTokenizer.offset + ord(" ")

    def written(*options, code=0, **saved):
        (folder / "generation_config.json").write_text(json.dumps(saved))
        assert main(["generate", str(folder), "--prompt", "the ", *options]) == code
        return capsys.readouterr()

    def same(options, **saved):
        assert written(**saved).out == written(*options).out

    same(["--length", "7"], max_new_tokens=7)
    same(["--length", "7"], max_length=11)
    same(["--length", "7"], max_length=11, max_new_tokens=7)
    short = ["--length", "9"]
    assert written(*short, max_new_tokens=7).out == written(*short).out
    # greedy, and beams
    greedy = {"max_new_tokens": 9, "do_sample": False}
    same([*short, "--temperature", "0"], **greedy)
    assert written("--temperature", "0.8", **greedy).out == written(*short).out
    beams = {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2}
    same([*short, "--beams", "3", "--texts", "2"], **beams)
    same([*short, "--beams", "3", "--length-penalty", "2"], num_beams=3, length_penalty=2.0,
         max_new_tokens=9)  # fmt: skip
    assert written("--beams", "1", "--texts", "1", **beams).out == written(*short).out
    assert "--stream cannot be combined with --beams 3" in written("--stream", code=1, **beams).err
    texts = {"num_return_sequences": 2, "max_new_tokens": 9}
    assert "with --texts 2" in written("--stream", code=1, **texts).err
    # suppressed tokens, and a text that must not end yet
    assert " " not in written("--length", "40", bad_words_ids=[[space]]).out[4:]
    both = written("--length", "40", "--without", "e", bad_words_ids=[[space]]).out[4:]
    assert not {" ", "e"} & set(both)
    ended = written("--length", "40", "--until", " ", "--min-length", "12")
    kept = written("--length", "40", "--until", " ", min_new_tokens=12)
    assert kept.out == ended.out != written("--length", "40", "--until", " ").out


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_continues_bit_for_bit(text, tmp_path, optimizer):
    once, twice = str(tmp_path / "once"), str(tmp_path / "twice")
    command = ["train", text, *SMALL, "--seed", "3", "--steps", "6", "--dropout", "0.1"]
    command += ["--optimizer", optimizer, "--memory-budget", "0.5"]
    assert main([*command, "--save", once]) == 0
    process = start(*command, "--save", twice, "--save-every", "1")
    while not os.path.exists(os.path.join(twice, "trainer_state.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert main([*command, "--save", twice, "--resume"]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        assert Path(once, name).read_bytes() == Path(twice, name).read_bytes()


def test_a_step_that_cannot_fit_is_refused_in_one_line(text, monkeypatch, capsys):
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: 1_000_000)
    assert main(["train", text, *SMALL, "--steps", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("reformer-c train: error: not enough memory: a step of 1 x 256 tokens")
    assert said.endswith("0.001 GB are free\n")
    assert said.count("\n") == 1


OPTIONS = {
    "length": 256, "batch": 2, "order": "sequential", "held_out": 0.2, "eval_every": 2, "layers": 2,
    "width": 32, "dropout": 0.1, "memory_budget": 0.25, "steps": 4, "optimizer": "adafactor",
    "accumulate": 2, "schedule": "rsqrt", "warmup": 2, "weight_decay": 0.01, "clip": 0.5,
    "threads": 1, "model": {"num_hashes": 2, "hidden_act": "gelu"},
}  # fmt: skip


def test_options_come_from_a_file_and_the_command_line_comes_first(text, tmp_path, capsys):
    file, log, folder = (str(tmp_path / name) for name in ("options.json", "log", "model"))
    Path(file).write_text(json.dumps(OPTIONS | {"files": text, "save": folder}))
    assert main(["train", "--config", file, "--steps", "3", "--log", log]) == 0
    assert "held out: " in capsys.readouterr().out
    lines = read_log(log)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines if "held_out" in line] == [2, 3]
    # Adafactor's own step size, times the factor of the schedule
    rates = [1e-2 * factor for factor in (0.5, 1.0, (2 / 3) ** 0.5)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    config = json.loads(Path(folder, "config.json").read_text())
    expected = {"num_hashes": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
                "hidden_size": 32}  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["memory_budget"] > 1e6  # bytes, so that a resumed run rounds identically
    # the same command resumes; one with another model is refused
    command = ["train", "--config", file, "--steps", "5", "--log", log, "--resume"]
    assert main(command) == 0
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4, 5]
    assert main([*command, "--set", "num_hashes=4"]) == 1
    assert "--resume: num_hashes is 4 here and 2 in" in capsys.readouterr().err


def test_a_models_own_config_is_taken_as_it_is(text, trained, tmp_path):
    config = json.loads(Path(trained, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"feed_forward_size": 48}))
    folder = tmp_path / "model"
    command = ["train", text, "--config", str(tmp_path / "config.json"), "--threads", "1"]
    assert main([*command, "--length", "200", "--steps", "1", "--save", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["feed_forward_size"] == 48


@pytest.mark.parametrize(
    ("written", "words", "code"),
    [
        ("{", "--config", 1),
        ("[]", "must be a JSON object, got list", 1),
        ('{"speed": 3}', "--speed=3", 2),
        ('{"length": 0}', "--length: must be a whole number >= 1, got '0'", 2),
        (None, "No such file", 1),
        ('{"model": [1]}', "'model' must be an object of fields, got [1]", 1),
        ('{"files": 3}', "'files' must be a name or a list of names, got 3", 1),
        ('{"model_type": "reformer", "hidden_size": "x"}', "hidden_size", 1),
    ],
)
def test_a_wrong_config_file_is_named(written, words, code, text, tmp_path, capsys):
    file = tmp_path / "options.json"
    if written is not None:
        file.write_text(written)
    with pytest.raises(SystemExit) as leaving:
        main(["train", text, "--config", str(file)])
    assert leaving.value.code == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_token_arrays_and_whole_files_are_trained_on(text, tmp_path, capsys):
    np.save(tmp_path / "ids.npy", np.arange(1000, dtype=np.int32) % 300)
    array = ["train", str(tmp_path / "ids.npy"), *SMALL, "--steps", "1"]
    assert main(array) == 1
    assert "below the model's vocabulary of 258, got 299" in capsys.readouterr().err
    assert main([*array, "--set", "vocab_size=300", "--bytes-per-token", "4"]) == 0
    (tmp_path / "short.txt").write_text("a short one\n" * 20)
    for words in (["--whole-files"], ["--whole-files", "--length", "300"]):
        files = ["train", text, str(tmp_path / "short.txt"), "--evaluate-on", text]
        options = [*SMALL[2:], "--steps", "2", "--held-out", "0.5"]
        assert main([*files, *options, *words]) == 0
        assert "tokens to train on" in capsys.readouterr().out


def test_arrays_shorter_than_a_window_are_counted(tmp_path, capsys):
    for name, length in (("a", 20), ("b", 9), ("c", 40)):
        np.save(tmp_path / f"{name}.npy", np.arange(length))
    command = ["train", str(tmp_path), *SMALL, "--length", "16", "--steps", "1", "--held-out", "0"]
    assert main([*command, "--bytes-per-token", "1"]) == 0
    printed = capsys.readouterr().out
    assert "60 tokens to train on, 0 held out\n" in printed
    assert "\n1 texts of fewer than 16 tokens are left out\n" in printed


@pytest.mark.parametrize("words", [["--whole-files"], []])
def test_held_out_text_of_several_files_is_read_file_by_file(words, text, tmp_path, capsys):
    files = [tmp_path / f"{name}.txt" for name in "ab"]
    for file, piece in zip(files, (slice(0, 300), slice(300, 500)), strict=True):
        file.write_bytes(Path(text).read_bytes()[piece])
    folder, log, ends = str(tmp_path / "model"), str(tmp_path / "log"), tmp_path / "ends"
    command = ["train", *map(str, files), *SMALL, "--length", "16", "--steps", "1", *words]
    assert main([*command, "--save", folder, "--log", log, "--eval-every", "1"]) == 0
    assert f"{450 + (not words)} tokens to train on, 50 held out" in capsys.readouterr().out
    ends.mkdir()
    for file, held in zip(files, (30, 20), strict=True):
        (ends / file.name).write_bytes(file.read_bytes()[-held:])
    model = ReformerModelWithLMHead.from_pretrained(folder)
    alone = [evaluate(model, ByteTokenizer().encode(file.read_bytes()), 16)
             for file in sorted(ends.iterdir())]  # fmt: skip
    tokens = [(30 - 2), (20 - 2)]
    assert [part.tokens for part in alone] == tokens
    expected = np.average([part.bits_per_byte for part in alone], weights=tokens)
    assert read_log(log)[0]["held_out"] == pytest.approx(expected)
    # the same for texts passed to evaluate
    for path in ([ends], sorted(ends.iterdir())):
        assert main(["evaluate", folder, *map(str, path), "--length", "16"]) == 0
        assert f"{expected:.4f} bits per byte (46 bytes" in capsys.readouterr().out
    named = [word for file in sorted(ends.iterdir()) for word in ("--evaluate-on", str(file))]
    Path(log).unlink()
    assert main([*command, *named, "--held-out", "0", "--log", log, "--eval-every", "1"]) == 0
    assert ", 50 held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([5, 400], "below the model's vocabulary of 258, got 400"),
        ([5, -1], "FILE must have token ids >= 0, got -1"),
        ([5], "--evaluate-on must have a text of at least 2 tokens"),
    ],
)
def test_held_out_tokens_are_checked_before_training(ids, words, text, tmp_path, capsys):
    np.save(tmp_path / "ids.npy", np.array(ids))
    command = ["train", text, *SMALL, "--steps", "1", "--evaluate-on", str(tmp_path / "ids.npy")]
    assert main(command) == 1
    assert words in capsys.readouterr().err


def test_a_file_of_one_byte_is_no_sequence(text, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("x")
    assert main(["train", text, str(tmp_path / "short.txt"), "--whole-files", "--steps", "1"]) == 1
    assert "--whole-files: each FILE must have at least 2 tokens" in capsys.readouterr().err


def test_a_model_that_was_not_trained_here_is_not_trained_over(text, tmp_path, capsys):
    ReformerModelWithLMHead(presets.preset_config("tiny", 256), rng=0).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    assert main(["train", text, *SMALL, "--steps", "1", "--save", str(tmp_path)]) == 1
    assert "there is a model in" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_what_differs_from_the_saved_run_is_said(trained, text, capsys):
    command = ["train", text, *SMALL, "--steps", "5", "--save", trained, "--resume", "--lr", "5"]
    assert main(command) == 1
    assert "resume: lr is 5.0 here and" in capsys.readouterr().err
    assert main([*command[:-2], "--schedule", "linear", "--clip", "3", "--warmup", "2"]) == 1
    said = capsys.readouterr().err
    for words in ("kind is linear here and cosine", "warmup is 2 here and 0"):
        assert f"schedule.{words}" in said
    assert "max_grad_norm is 3.0 here and 1.0" in said
    assert said.count("\n") == 1
    assert main([*command[:-2], "--set", "num_hashes=9", "--set", "hidden_act=gelu"]) == 1
    said = capsys.readouterr().err
    assert "--resume: num_hashes is 9 here and " in said or "; num_hashes is 9 here and " in said
    assert "hidden_act is gelu here and relu" in said
    # a memory budget that would be ignored, and fewer steps than those of the schedule
    assert main([*command[:-2], "--memory-budget", "1e6"]) == 1
    assert "--resume: memory_budget is 1000000 here and None in" in capsys.readouterr().err
    assert main([*command[:4], "--steps", "3", "--save", trained, "--resume"]) == 1
    assert "--steps must be at least the 4 of the run that resumes" in capsys.readouterr().err
    # a finished run may be extended, and its schedule with it
    assert main(command[:-2]) == 0
    assert f"resumed: schedule.steps is 5 here and 4 in {trained!r}\n" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--set", "apply_lm_head_bias=false"]])
def test_a_model_with_more_ids_than_bytes_writes_bytes(more, text, tmp_path, capsys):
    folder = str(tmp_path / "model")
    command = ["train", text, *SMALL, "--preset", "book", "--steps", "1", "--save", folder]
    assert main([*command, *more]) == 0
    capsys.readouterr()
    generate = ["generate", folder, "--prompt", "a", "--length", "30", "--temperature", "5"]
    assert main([*generate, "--top-p", "1"]) == 0
    assert capsys.readouterr().out.startswith("a")


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


@pytest.mark.parametrize("option", ["--help", "--print-completion bash"])
def test_a_closed_pipe_is_no_error(option):
    process = subprocess.Popen(
        f"{sys.executable} -m reformer_c {option} | head -n 1; exit ${{PIPESTATUS[0]}}",
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
    row, *others = result["measurements"]
    assert row["name"] == "LSH attention"
    for count in result["peak"]:
        assert re.search(rf"^{count} threads?, {_core.isa()}: peak", printed, re.MULTILINE)
    assert [row["matmul_precision"], *(x["matmul_precision"] for x in others[:2])] == [
        "highest", "high", "medium",
    ]  # fmt: skip
    times = " ".join(f"{row['milliseconds'] / x['milliseconds']:6.2f}x" for x in others[:2])
    assert re.search(rf"^ +LSH attention .* {times}$", printed, re.MULTILINE)
    names = {"local attention", "linear 256-512", "feed-forward 256-512", "training step"}
    # what is off by default has a row too
    names |= {
        "  keys count once", "  keys of the query's bucket", "  shared queries and keys",
        "rotary positions", "  three axes", "  label smoothing", "  bounded cache",
        "  positions from an offset", "  a loss of one's own", *STEPS,
    }  # fmt: skip
    assert names <= {x["name"] for x in others if x["matmul_precision"] == "medium"}
    assert row["gigaflops"] == pytest.approx(4e-6 * 256 * 8 * 128 * 64 / row["milliseconds"])
    assert row["share_of_peak"] == pytest.approx(
        row["gigaflops"] / result["peak"][str(row["threads"])]
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("length", [1, 2, 1000, 8192, 524_288])
def test_presets_make_models_for_any_length(name, length):
    config = presets.preset_config(name, length)
    assert math.prod(config.axial_pos_shape) >= length
    assert config.max_position_embeddings == length
    assert list(config.attn_layers) == list(presets.PRESETS[name].layers)


def test_positions_at_random_are_an_option_and_are_part_of_a_run(text, tmp_path, capsys):
    folder = str(tmp_path / "model")
    command = ["train", text, *SMALL, "--save", folder, "--steps"]
    assert main([*command, "2", "--offset", "44"]) == 0
    assert ReformerConfig.from_json(folder).max_position_embeddings == 300
    assert main([*command, "3", "--offset", "44", "--resume"]) == 0
    assert main([*command, "4", "--offset", "43", "--resume"]) == 1
    assert "max_position_embeddings is 299 here and 300" in capsys.readouterr().err
    many = ["--set", "max_position_embeddings=300", "--resume"]
    assert main([*command, "4", "--offset", "43", *many]) == 1
    assert "data.offset is 43 here and 44" in capsys.readouterr().err
    assert main([*command, "4", "--offset", "45", *many]) == 1
    assert "data must have an offset of at most 44" in capsys.readouterr().err


def test_presets_change_width_depth_and_rounds():
    config = presets.preset_config("book", 100, layers=3, width=33, num_hashes=4)
    assert config.attn_layers == ["local", "lsh", "local"]
    assert (config.hidden_size, config.feed_forward_size) == (33, 66)
    assert config.num_hashes == 4


def test_the_command_line_offers_all_presets_optimizers_and_schedules():
    assert set(presets.PRESETS) == set(PRESETS)
    assert {preset.optimizer for preset in presets.PRESETS.values()} <= set(OPTIMIZERS)
    assert {name for name in vars(schedules) if not name.startswith("_")} == set(SCHEDULES)


def test_book_is_the_model_that_read_a_novel_as_one_sequence():
    config = presets.preset_config("book", 524_288)
    published = ReformerConfig(
        attn_layers=["local", "lsh"] * 3, hidden_size=256, feed_forward_size=512,
        num_attention_heads=2, attention_head_size=64, local_attn_chunk_length=64,
        lsh_attn_chunk_length=64, num_hashes=1, num_buckets=[64, 128], vocab_size=320,
        axial_pos_shape=[512, 1024], axial_pos_embds_dim=[64, 192], is_decoder=True,
        max_position_embeddings=524_288, axial_norm_std=config.axial_norm_std,
    )  # fmt: skip
    assert config == published
    sizes = sum(array.size for array in ReformerModelWithLMHead(config).parameters.values())
    assert sizes == 2_748_224  # of the checkpoint that Hugging Face has


def test_enwik8_has_the_papers_twelve_layers():
    config = presets.preset_config("enwik8", 65_536)
    assert config.attn_layers.count("lsh") == 3
    assert config.num_hidden_layers == 12
    assert config.axial_pos_embds_dim == [256, 768]


def test_presets_of_pictures_have_their_shape_where_the_length_is_that_of_a_picture():
    config = presets.preset_config("imagenet64", 12_288)
    published = ReformerConfig(
        attn_layers=["lsh"] * 6, hidden_size=1024, feed_forward_size=4096, num_attention_heads=8,
        attention_head_size=64, lsh_attn_chunk_length=128, num_hashes=2, num_buckets=192,
        vocab_size=256, hidden_act="gelu_new", hidden_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.2, max_position_embeddings=12_288, is_decoder=True,
        axial_pos_shape=[64, 64, 3], axial_pos_embds_dim=[384, 384, 256], eos_token_id=None,
        image_shape=[64, 64, 3], axial_norm_std=config.axial_norm_std,
    )  # fmt: skip
    assert config == published
    config = presets.preset_config("cifar10", 3072)
    assert config.image_shape == [32, 32, 3]
    assert config.axial_pos_shape == [32, 32, 3]
    assert presets.preset_config("cifar10", 3071).image_shape is None
    config = presets.preset_config("cifar10", 192, image_shape=[8, 24, 1])
    assert (config.image_shape, config.axial_pos_shape) == ([8, 24, 1], [8, 24])
    with pytest.raises(TypeError, match="image_shape must be a list of three"):
        presets.preset_config("cifar10", 192, image_shape=[8, 24])


# ---- options that would be ignored, and the nearest name of unknown ones ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "MODEL", "--temprature", "0"], "did you mean --temperature?"),
        (["train", "TEXT", "--lenght=5"], "did you mean --length?"),
        (["evaluate", "MODEL", "TEXT", "--slide", "5"], "did you mean --sliding?"),
        (["bench", "--seed", "3"], "unrecognized arguments: --seed"),
        (["info", "MODEL", "one", "two"], "unrecognized arguments: one two"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"reformer-c {arguments[0]}: error: ")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["generate", "--temperature", "0", "--top-k", "5"],
            "--top-k cannot be combined with --temperature 0",
        ),
        (
            ["generate", "--temperature", "0", "--top-p", ".5"],
            "--top-p cannot be combined with --temperature 0",
        ),
        (
            ["generate", "--temperature", "0", "--min-p", ".5"],
            "--min-p cannot be combined with --temperature 0",
        ),
        (["generate", "--temperature", "0", "--texts", "2"], "--texts must be at most 1"),
        (
            ["generate", "--beams", "2", "--temperature", "1"],
            "--temperature cannot be combined with --beams",
        ),
        (["generate", "--beams", "2", "--top-k", "5"], "--top-k cannot be combined with --beams"),
        (["generate", "--beams", "2", "--texts", "3"], "--texts must be at most 2"),
        (["generate", "--until", "a", "b", "--without", "b"], "--until: --without excludes 'b'"),
        (
            ["generate", "--length-penalty", "2"],
            "--length-penalty cannot be combined with a single beam",
        ),
        (["generate", "--length", "5", "--min-length", "6"], "--min-length must be at most"),
        (
            ["train", "--schedule", "rsqrt", "--floor", "0.2"],
            "--floor cannot be combined with --schedule rsqrt",
        ),
        (["train", "--eval-every", "2", "--held-out", "0"], "--eval-every needs held-out text"),
        (
            ["train", "--bytes-per-token", "2"],
            "--bytes-per-token cannot be combined with a tokenizer or text",
        ),
        (
            ["train", "--hashes", "2", "--set", "num_hashes=4"],
            "--hashes cannot be combined with num_hashes",
        ),
        (
            ["train", "--width", "32", "--set", "hidden_size=64"],
            "--width cannot be combined with hidden_size",
        ),
        (["train", "--layers", "1", "--hashes", "2"], "--hashes needs an LSH layer, got local"),
        (["train", "--set", "hashes=4"], "did you mean num_hashes?"),
        (["demo", "--steps", "2", "--seconds", "9"], "--seconds cannot be combined with --steps"),
        (["demo", "--quick", "--seconds", "90"], "--seconds must be at most 10 with --quick"),
    ],
)
def test_no_option_is_taken_and_passed_over(arguments, words, text, trained, capsys):
    command, *options = arguments
    needed = {"generate": [trained, "--prompt", "the"], "train": [text], "demo": []}[command]
    capsys.readouterr()
    assert main([command, *needed, *options]) == 1
    assert words in capsys.readouterr().err


def test_a_share_is_held_out_of_training_with_text_of_its_own(text, capsys):
    size = len(Path(text).read_bytes())
    command = ["train", text, *SMALL, "--steps", "1", "--evaluate-on", text]
    for more, count in (([], size), (["--held-out", "0.5"], size - round(size * 0.5))):
        assert main([*command, *more]) == 0
        assert f"{count:,} tokens to train on, {size:,} held out" in capsys.readouterr().out


# ---- which tokenizer ----


def test_a_model_of_bytes_says_so(text, trained, tmp_path, capsys):
    config = json.loads(Path(trained, "tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": "ByteTokenizer"}
    assert main(["info", trained]) == 0
    assert "tokenizer         ByteTokenizer" in capsys.readouterr().out
    # 258 is the vocabulary of bytes; any other size has no known tokenizer
    for size, code in ((258, 0), (320, 1)):
        folder = str(tmp_path / str(size))
        config = presets.preset_config("tiny", 64, vocab_size=size)
        ReformerModelWithLMHead(config, rng=0).save_pretrained(folder)
        for command in (["generate", folder, "--prompt", "a", "--length", "3"],
                        ["evaluate", folder, text, "--length", "64"]):  # fmt: skip
            assert main(command) == code
            said = capsys.readouterr().err
            assert ("--tokenizer must be DIR, FILE or bytes" in said) == bool(code)
            assert main([*command, "--tokenizer", "bytes"]) == 0
            capsys.readouterr()


def test_a_run_of_before_goes_on_with_bytes(text, tmp_path, capsys):
    folder = tmp_path / "model"
    for preset, said in (("tiny", ""), ("book", "--tokenizer must be DIR, FILE or bytes")):
        command = ["train", text, *SMALL, "--save", str(folder / preset), "--preset", preset]
        assert main([*command, "--steps", "1"]) == 0
        (folder / preset / "tokenizer_config.json").unlink()  # as it was before
        capsys.readouterr()
        assert main([*command, "--steps", "2", "--resume"]) == bool(said)
        assert said in capsys.readouterr().err
    assert main([*command, "--steps", "2", "--resume", "--tokenizer", "bytes"]) == 0
    assert (folder / "book" / "tokenizer_config.json").exists()


def test_arrays_of_unknown_tokens_need_their_bytes(text, tmp_path, capsys):
    file, log = str(tmp_path / "ids.npy"), str(tmp_path / "log")
    np.save(file, ByteTokenizer().encode(Path(text).read_bytes()))
    command = ["train", file, *SMALL, "--steps", "1", "--held-out", "0", "--log", log]
    assert main(command) == 1
    assert "--bytes-per-token must be given with .npy files" in capsys.readouterr().err
    ratios = []
    for more in (["--tokenizer", "bytes"], ["--bytes-per-token", "4"]):
        Path(log).unlink(missing_ok=True)
        assert main([*command, *more]) == 0
        ratios.append(read_log(log)[0]["loss"] / read_log(log)[0]["bits_per_byte"] / np.log(2))
    assert ratios == pytest.approx([1, 4])


# ---- a plain installation, and what reaches a terminal ----


def test_what_cannot_be_saved_is_said_before_any_work(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    folder = tmp_path / "model"
    assert main(["train", "nowhere.txt", "--save", str(folder)]) == 1
    said = capsys.readouterr().err
    assert '--save needs the safetensors library: pip install "reformer_c[cli]", or ' in said
    assert 'from a checkout: pip install -e ".[cli]"' in said
    assert not folder.exists()


WRITTEN = b"a\x1b[2J\x08\x9b\x00\xc2\x9b\r\n\t\xc3\xa9\xffz"


@pytest.fixture(scope="module")
def escaping(tmp_path_factory):
    """A model that writes `WRITTEN`: its local layers see one byte."""
    folder = str(tmp_path_factory.mktemp("models") / "escaping")
    config = presets.preset_config("tiny", 64, attn_layers=["local"], num_hidden_layers=1)
    model = ReformerModelWithLMHead(config, rng=0)
    for byte in set(WRITTEN):
        model.parameters["lm_head.bias"][byte + ByteTokenizer.offset] = 30.0
    model.save_pretrained(folder)
    return folder


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.mark.parametrize("more", [[], ["--stream"], ["--beams", "2"]])
def test_control_characters_reach_a_pipe_but_not_a_terminal(more, escaping, monkeypatch):
    command = ["generate", escaping, "--prompt", "a\x1b", "--length", "60", *more]
    if "--beams" not in more:
        command += ["--temperature", "1", "--top-p", "1"]
    outputs = []
    for stdout in (io.StringIO(), Screen()):
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(command) == 0
        outputs.append(stdout.getvalue())
    pipe, terminal = outputs
    assert CONTROL.search(pipe)
    assert pipe.startswith("a\x1b")
    assert not CONTROL.search(terminal)
    assert terminal == CONTROL.sub(lambda c: c[0].encode("unicode_escape").decode(), pipe)


@pytest.mark.skipif(os.name != "posix", reason="terminals of their own are POSIX's")
def test_a_real_terminal_is_seen(escaping):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "reformer_c", "generate", escaping, "--prompt", "\x1b[2J"]
        + ["--length", "5", "--temperature", "0"],
        stdout=theirs, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, said = process.communicate()
    assert process.returncode == 0, said
    os.close(theirs)
    assert os.read(ours, 1000).startswith(b"\\x1b[2J")
    os.close(ours)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_text_is_lost_to_an_encoding(encoding, escaping, trained, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    (tmp_path / "prompt.txt").write_bytes("\u20ac\xff".encode() + b"\xff")
    for more in ([], ["--stream"]):
        process = start(
            "generate", escaping, "--prompt-file", str(tmp_path / "prompt.txt"), "--length", "20",
            *more, env=environment, encoding=encoding,
        )  # fmt: skip
        printed, said = process.communicate()
        assert process.returncode == 0, said
        assert printed.startswith("\u20ac" if encoding == "utf-8" else "\\u20ac")
    # a command line in another encoding than UTF-8 gives the bytes that were typed
    typed = b"caf\xe9".decode("utf-8", "surrogateescape")
    process = start("generate", trained, "--prompt", typed, "--length", "5", env=environment)
    assert process.wait() == 0
    process.communicate()


@pytest.mark.parametrize(("part", "library"), [("torch", "torch"), ("distributed", "mpi4py")])
def test_a_part_that_needs_an_extra_names_it(part, library, monkeypatch):
    monkeypatch.delitem(sys.modules, f"reformer_c.{part}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    words = rf'reformer_c\.{part} needs the {library} library: pip install "reformer_c\['
    with pytest.raises(ImportError, match=words):
        importlib.import_module(f"reformer_c.{part}")
