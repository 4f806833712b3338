"""What the commands print: progress, JSON, units, control characters, suggestions, completion."""

import ast
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import reformer_c as rc
from reformer_c.cli.main import main
from reformer_c.models.presets import preset_config
from reformer_c.text.screen import show_json
from reformer_c.tools import demo
from reformer_c.training import progress
from reformer_c.training.evaluation import evaluate

pytest.importorskip("safetensors", reason="models are saved")

ROOT = Path(__file__).parents[2]
SMALL = ["--layers", "2", "--width", "16", "--threads", "1", "--steps", "1"]
# of one C1 control character, which JSON does not escape, and letters beyond ASCII
NAMES = ["caf\u00e9\x9b", "\u20ac"]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen(io.StringIO):
    """A terminal, or a pipe, of an encoding."""

    def __init__(self, tty=True, encoding="utf-8"):
        super().__init__()
        self.tty, self.name = tty, encoding

    def isatty(self):
        return self.tty

    @property
    def encoding(self):
        return self.name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data of each task: a text, pairs, and examples whose classes are `NAMES`."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("the caf\u00e9 by the sea " * 40, encoding="utf-8")
    (folder / "pairs.tsv").write_text("ein Haus\ta house\n" * 12)
    with open(folder / "examples.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label"), *[("word", name) for name in NAMES] * 8])
    return folder


@pytest.fixture(scope="module")
def models(files, tmp_path_factory):
    """A folder with a model of each task, by the name of its data."""
    folder = tmp_path_factory.mktemp("models")
    for name, more in (
        ("text.txt", ["--length", "64"]),
        ("pairs.tsv", ["--task", "translation"]),
        ("examples.csv", ["--task", "classification"]),
    ):
        command = ["train", str(files / name), *more, *SMALL, "--save", str(folder / name)]
        assert main(command) == 0
    # a model that has learned to write a control character
    model = rc.ReformerEncoderDecoder.from_pretrained(folder / "pairs.tsv")
    model.parameters["decoder.lm_head.bias"][0x1B + rc.ByteTokenizer.offset] = 50.0
    model.save_pretrained(folder / "writes escapes")
    shutil.copy(folder / "pairs.tsv" / "tokenizer_config.json", folder / "writes escapes")
    return folder


TASKS = ["text.txt", "pairs.tsv", "examples.csv"]


def test_commands_print_through_one_function_that_escapes():
    for path in [*(ROOT / "reformer_c" / "cli").glob("*.py"), ROOT / "reformer_c/tools/demo.py"]:
        code = ast.walk(ast.parse(path.read_text()))
        calls = [node for node in code if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "print"], path


# ---- progress ----


@pytest.mark.parametrize("name", TASKS)
def test_evaluate_shows_progress_on_a_terminal_alone(name, files, models, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    command = ["evaluate", str(models / name), str(files / name)]
    assert main(command) == 0
    assert "100%" in screen.getvalue()
    pipe = Screen(tty=False)
    monkeypatch.setattr(sys, "stderr", pipe)
    assert main(command) == 0
    assert pipe.getvalue() == ""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert main(command) == 0
    counts = re.findall(r"^([\d,]+) of ([\d,]+) ", pipe.getvalue(), re.M)
    assert counts[-1][0] == counts[-1][1]


@pytest.mark.parametrize("stride", [None, 1, 3, 7])
def test_progress_counts_what_is_predicted(stride, monkeypatch):
    model = rc.ReformerModelWithLMHead(preset_config("tiny", 64, width=16), rng=0)
    monkeypatch.setattr(type(model), "loss", lambda self, ids, labels, rng: 1.0)
    for sizes in ([2], [8], [9], [16], [17], [1, 0, 30, 5]):
        done, totals = [], set()

        def progress(count, total, done=done, totals=totals):
            done.append(count)
            totals.add(total)

        texts = [np.arange(size) for size in sizes]
        found = evaluate(model, texts, 8, stride=stride, progress=progress)
        assert totals == {found.tokens}
        assert done == sorted(set(done))
        assert (done[0], done[-1]) == (0, found.tokens)


def test_the_demos_bar_is_one_of_time_whose_total_stays(monkeypatch):
    pytest.importorskip("tqdm")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    demo.run_demo(quick=True, seconds=1.0, length=1024, stream=io.StringIO())
    assert {*re.findall(r"/(\d+) s", screen.getvalue())} == {"1"}
    assert re.search(r" s, step \d+, ", screen.getvalue())
    assert not re.search(r"\d/\d+ \[", screen.getvalue())
    lines = Screen(tty=False)
    monkeypatch.setattr(sys, "stderr", lines)
    demo.run_demo(quick=True, seconds=1.0, length=1024, stream=io.StringIO())
    assert re.match(r"step \d+: ", lines.getvalue())


# ---- JSON and units ----


@pytest.mark.parametrize("name", TASKS)
def test_evaluate_prints_its_figures_as_json(name, files, models, capsys):
    command = ["evaluate", str(models / name), str(files / name)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    main_figure = {"text.txt": "bits_per_byte", "pairs.tsv": "bleu", "examples.csv": "accuracy"}
    for key in (main_figure[name], "loss", "seconds"):
        assert np.isfinite(values[key])
    assert f"{values[main_figure[name]]:.{2 if name == 'pairs.tsv' else 4}f}" in printed
    if name == "text.txt":
        assert values["length"] == 64
        assert values["tokens"] == 40 * len("the caf\u00e9 by the sea ".encode()) - 14


@pytest.mark.parametrize("name", TASKS)
def test_info_prints_all_as_json(name, models, capsys):
    lengths = ["--lengths", "16", "32"] if name == "text.txt" else []
    assert main(["info", str(models / name), "--json", *lengths]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["parameters"] == sum(values["parameters_by_part"].values())
    assert values["parameter_bytes"] == 4 * values["parameters"]
    assert [row["length"] for row in values.get("measured", [])] == [int(n) for n in lengths[1:]]
    assert main(["info", str(models / name)]) == 0
    printed = capsys.readouterr().out
    assert f"{values['class']}: {values['parameters']:,} parameters" in printed
    # MB are 10**6 bytes, as in the progress of training and in plots
    assert f"{values['parameter_bytes'] / 1e6:,.1f} MB" in printed


def test_info_of_pictures_is_json_too(tmp_path, capsys):
    config = preset_config("cifar10", 12, width=16, image_shape=[2, 2, 3])
    rc.ReformerModelWithLMHead(config, rng=0).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["image_shape"] == [2, 2, 3]
    assert "tokenizer" not in values


def test_units_of_1024_are_nowhere():
    for path in (ROOT / "reformer_c").rglob("*.py"):
        assert not re.search(r"/ ?(2\*\*[1234]0|1024)\b|[KMGT]iB", path.read_text()), path
    for path in (ROOT / "csrc" / "module").glob("*.c"):
        strings = re.findall(r'"[^"\n]*"', path.read_text())
        assert not [text for text in strings if re.search("[KMGT]iB", text)], path


# ---- control characters and encodings ----


def printed_by(command, stdout, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(command) == 0
    return stdout.getvalue()


def test_translations_reach_a_pipe_raw_and_a_terminal_escaped(models, monkeypatch):
    command = ["translate", str(models / "writes escapes"), "--text", "ein Haus", "--length", "4"]
    pipe = printed_by(command, Screen(tty=False), monkeypatch)
    assert "\x1b" in pipe
    terminal = printed_by(command, Screen(), monkeypatch)
    assert terminal == pipe.replace("\x1b", "\\x1b")


def test_predictions_are_json_in_a_pipe_and_on_any_terminal(files, models, monkeypatch):
    command = ["predict", str(models / "examples.csv"), str(files / "examples.csv")]
    pipe = printed_by(command, Screen(tty=False), monkeypatch)
    assert NAMES[0] in pipe
    for stdout in (Screen(), Screen(encoding="ascii"), Screen(tty=False, encoding="ascii")):
        other = printed_by(command, stdout, monkeypatch)
        assert not CONTROL.search(other)
        assert [*map(json.loads, other.splitlines())] == [*map(json.loads, pipe.splitlines())]
        assert other.isascii()


def test_classes_of_a_file_are_escaped_on_a_terminal(files, monkeypatch):
    command = ["train", str(files / "examples.csv"), "--task", "classification", *SMALL]
    assert not CONTROL.search(printed_by(command, Screen(), monkeypatch))


def test_numbers_that_json_lacks_are_null():
    screen = Screen()
    show_json({"a": [1.0, float("inf"), {"b": float("nan")}]}, screen)
    assert json.loads(screen.getvalue()) == {"a": [1.0, None, {"b": None}]}


@pytest.mark.parametrize("name", TASKS)
def test_an_ascii_terminal_loses_no_work(name, files, models, tmp_path):
    task = ["--task", {"text.txt": "lm", "pairs.tsv": "translation"}.get(name, "classification")]
    length = ["--length", "64"] if name == "text.txt" else []
    saved, data = str(tmp_path / "mod\u00e8le"), str(tmp_path / f"donn\u00e9es{name[-4:]}")
    shutil.copy(files / name, data)
    commands = [
        ["train", data, *task, *length, *SMALL, "--save", saved, "--log", f"{saved}.log"],
        ["evaluate", saved, data],
        ["evaluate", saved, data, "--json"],
        ["info", saved],
        ["info", saved, "--json"],
    ]
    commands += {
        "text.txt": [["generate", saved, "--prompt", "\u20ac", "--length", "9"]],
        "pairs.tsv": [["translate", saved, "--text", "\u20ac", "--length", "4"]],
        "examples.csv": [["predict", saved, data]],
    }[name]
    environment = os.environ | {
        "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii:strict",
    }  # fmt: skip
    # one process, since starting one takes longer than the work
    program = (
        "import json, os, sys; from reformer_c.cli.main import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    assert main([os.fsdecode(word.encode()) for word in command]) == 0, command\n"
        "print('all done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([[os.fspath(w) for w in c] for c in commands])],
        env=environment, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stdout.endswith(b"all done\n")
    assert Path(saved, "model.safetensors").is_file()


# ---- suggestions ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "a.txt"], "got 'trian'; did you mean train?"),
        (["fly"], "COMMAND must be one of demo, train,"),
        (["train", "a.txt", "--task", "clasification"], "did you mean classification?"),
        (["train", "a.txt", "--optimizer=adamv"], "did you mean adamw?"),
        (["train", "a.txt", "--preset", "books"], "did you mean book?"),
        (["train", "a.txt", "-length", "5"], "did you mean --length?"),
        (["generate", "model", "--weights", "int"], "did you mean int8?"),
        # the parser would say that --output or DIR is missing
        (["average", "a", "b", "--ouput", "c"], "did you mean --output?"),
        (["info", "--jsno"], "did you mean --json?"),
        (["evaluate", "--json", "--lenght=5"], "did you mean --length?"),
        (["demo", "--secnods", "5"], "did you mean --seconds?"),
    ],
)
def test_a_misspelt_word_suggests_the_right_one(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize("prompt", ["-- the end", "--a b", "-1", "- and -"])
def test_text_with_dashes_is_no_option(prompt, models, capsys):
    command = ["generate", str(models / "text.txt"), "--prompt", prompt, "--length", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(prompt)


# ---- shell completion ----


def completed(words, script):
    """What bash completes the last of some words to."""
    program = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        "$(complete -p reformer-c | sed 's/.*-F \\([^ ]*\\).*/\\1/') reformer-c\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, script, "reformer-c", *words], capture_output=True, text=True
    )
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_files(tmp_path, monkeypatch, capsys):
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    with pytest.raises(SystemExit) as leaving:
        main(["--print-completion", "bash"])
    assert not leaving.value.code
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    Path("book.txt").touch()
    assert set(completed(["tra"], script)) == {"train", "translate"}
    assert set(completed(["train", "--ste"], script)) == {"--steps"}
    assert set(completed(["train", "--optimizer", ""], script)) == {"adamw", "adafactor"}
    assert "book.txt" in completed(["train", "bo"], script)
    assert "book.txt" in completed(["train", "--tokenizer", "bo"], script)


def test_completion_refuses_what_it_cannot_do(monkeypatch, capsys):
    pytest.importorskip("shtab")
    for blocked, code, words in (
        (False, 2, "--print-completion must be one of bash,"),
        (True, 1, "--print-completion needs the shtab library: pip install "),
    ):
        if blocked:
            monkeypatch.setitem(sys.modules, "shtab", None)
        with pytest.raises(SystemExit) as leaving:
            main(["--print-completion", "fishy"])
        assert leaving.value.code == code
        assert words in capsys.readouterr().err


# ---- extras ----


def test_one_table_lists_all_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs/install.md").read_text(), re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras.keys()
    # whatever trains can save what it has trained
    for name in ("image", "bleu", "hf", "mpi", "notebook"):
        assert "reformer_c[cli]" in extras[name], name
    assert any(name.startswith("safetensors") for name in extras["cli"])
