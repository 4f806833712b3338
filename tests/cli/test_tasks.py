"""The command line for tasks other than language models."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close

import reformer_c as rc
from reformer_c.cli.arguments import PROBLEMS
from reformer_c.cli.main import main
from reformer_c.training import classification
from reformer_c.training.log import read_log

SMALL = ["--layers", "2", "--width", "32", "--threads", "1"]
WORDS = {"good": ["fine", "superb"], "bad": ["awful", "dull"]}


def write_table(file, rows):
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows(rows)
    return str(file)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [("text", "label")]
    for _ in range(200):
        label = str(rng.choice(["good", "bad"]))
        rows.append((f"It was {rng.choice(WORDS[label])}.", label))
    return write_table(tmp_path_factory.mktemp("data") / "reviews.csv", rows)


@pytest.fixture(scope="module")
def trained(reviews, tmp_path_factory):
    pytest.importorskip("safetensors", reason="saves a model")
    folder = str(tmp_path_factory.mktemp("models") / "model")
    command = ["train", reviews, "--task", "classification", *SMALL, "--save", folder]
    assert main([*command, "--steps", "120", "--log", f"{folder}.log", "--eval-every", "60"]) == 0
    return folder


def metrics_of(printed):
    return {
        name: float(x)
        for name, x in re.findall(r"^([a-z]\S*(?: \S+)*?) +([-\d.]+)$", printed, re.M)
    }


def test_a_classifier_is_trained_evaluated_and_predicts(trained, reviews, tmp_path, capsys):
    lines = read_log(f"{trained}.log")
    assert [line["step"] for line in lines if "held_out" in line] == [60, 120]
    assert lines[-1]["held_out"]["accuracy"] == 1.0
    assert "bits_per_byte" not in lines[-1]
    capsys.readouterr()
    assert main(["evaluate", trained, reviews]) == 0
    printed = capsys.readouterr().out
    found = metrics_of(printed)
    assert found["accuracy"] == found["f1"] == 1.0
    assert 0 < found["loss"] < 0.7
    assert "\n200 examples, " in printed
    (tmp_path / "new.jsonl").write_text(
        '{"id": 7, "text": "It was dull."}\n{"text": "It was fine."}'
    )
    assert main(["predict", trained, str(tmp_path / "new.jsonl")]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["prediction"], second["prediction"]) == (7, "bad", "good")
    assert sum(first["scores"].values()) == pytest.approx(1.0)
    (tmp_path / "new.txt").write_text("It was dull.\nIt was fine.\n")
    assert main(["predict", trained, str(tmp_path / "new.txt")]) == 0
    assert [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()] == [
        "bad", "good",
    ]  # fmt: skip
    assert main(["info", trained]) == 0
    printed = capsys.readouterr().out
    assert "classifier.out_proj" in printed
    # whole chunks of texts of 15 bytes
    assert "longest sequence  64 tokens" in printed


def test_other_columns_and_problems(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [
        {"review": f"It is {a} {b}.", "tags": ["a"] * a + ["b"] * b, "stars": a + b}
        for a, b in rng.integers(0, 2, (60, 2)).tolist()
    ]  # fmt: skip
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns = ["--text-column", "review", "--label-column"]
    for problem, column, names in (
        ("multi-label", "tags", {"accuracy", "f1", "loss"}),
        ("regression", "stars", {"mean absolute error", "pearson", "loss"}),
        ("single-label", "stars", {"accuracy", "f1", "loss"}),
    ):
        folder = str(tmp_path / problem)
        command = ["train", str(file), "--task", "classification", "--problem", problem, *SMALL]
        assert main([*command, *columns, column, "--steps", "5", "--save", folder]) == 0
        printed = capsys.readouterr().out
        assert "54 examples to train on, 6 held out" in printed
        assert main(["evaluate", folder, str(file), *columns, column]) == 0
        assert metrics_of(capsys.readouterr().out).keys() == names
        assert main(["predict", folder, str(file), "--text-column", "review"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[0])
        kind = {"multi-label": list, "regression": float, "single-label": str}[problem]
        assert isinstance(found["prediction"], kind)


@pytest.mark.parametrize(
    "fields",
    [
        ['attn_layers=["full", "full_shared"]'],
        ['attn_layers=["local", "full"]', "position_embedding_type=sinusoidal"],
        ["num_buckets=4", "lsh_allow_duplicate_attention=false"],
    ],
)
def test_other_layers_classify_too(fields, reviews, tmp_path, capsys):
    folder = str(tmp_path / "model")
    command = ["train", reviews, "--task", "classification", "--steps", "1", "--threads", "1"]
    sets = [word for field in fields for word in ("--set", field)]
    assert main([*command, "--save", folder, *sets]) == 0
    assert main(["evaluate", folder, reviews]) == 0
    assert main(["predict", folder, reviews]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 200


def test_resuming_continues_bit_for_bit(reviews, tmp_path):
    command = ["train", reviews, "--task", "classification", *SMALL, "--dropout", "0.1"]
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main([*command, "--steps", "4", "--save", str(once), "--schedule", "constant"]) == 0
    command += ["--schedule", "constant", "--warmup", "0", "--save", str(twice)]
    shutil.rmtree(once)
    assert main([*command[:-1], str(once), "--steps", "4"]) == 0
    assert main([*command, "--steps", "2"]) == 0
    assert main([*command, "--steps", "4", "--resume"]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "REVIEWS", "--task", "classification", "--label-column", "lable"],
         "reviews.csv:2: columns must include 'lable', got 'text', 'label'; did you mean label?"),
        (["train", "REVIEWS", "--task", "classification", "--text-column", "x"],
         "columns must include 'x'"),
        (["train", "EMPTY", "--task", "classification"], "empty.csv: must have at least one"),
        (["train", "ONE", "--task", "classification"], "FILE must have at least 2 labels"),
        (["train", "REVIEWS", "--task", "classification", "--evaluate-on", "OTHER"],
         "other.csv:3: label must be one of bad, good, got 'god'; did you mean good?"),
        (["train", "REVIEWS", "--task", "classification", "--whole-files"],
         "--whole-files cannot be combined with --task classification"),
        (["train", "REVIEWS", "--problem", "regression"],
         "--problem cannot be combined with --task lm"),
        (["train", "REVIEWS", "--task", "classification", "--problem", "regression"],
         "reviews.csv:"),
        (["evaluate", "MODEL", "OTHER"], "other.csv:3: label must be one of bad, good, got 'god'"),
        (["evaluate", "MODEL", "REVIEWS", "--length", "5000"], "--length must be at most"),
        (["evaluate", "MODEL", "REVIEWS", "--sliding", "4"], "--sliding needs a language model"),
        (["predict", "MODEL", "EMPTY"], "empty.csv: must have at least one example, got none"),
        (["generate", "MODEL", "--prompt", "a"], "DIR must be a language model, got Reformer"),
        (["info", "MODEL", "--lengths", "5"], "--lengths needs a language model, got Reformer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(arguments, words, reviews, trained, tmp_path, capsys):
    files = {
        "REVIEWS": reviews,
        "MODEL": trained,
        "EMPTY": write_table(tmp_path / "empty.csv", [("text", "label")]),
        "ONE": write_table(tmp_path / "one.csv", [("text", "label"), *[("a b", "x")] * 20]),
        "OTHER": write_table(
            tmp_path / "other.csv", [("text", "label"), ("a", "good"), ("b", "god")]
        ),
    }
    capsys.readouterr()
    assert main([files.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_a_language_model_does_not_classify(tmp_path, reviews, capsys):
    folder = str(tmp_path / "model")
    assert main(["train", reviews, *SMALL, "--length", "32", "--steps", "1", "--save", folder]) == 0
    for command, words in (
        (
            ["predict", folder, reviews],
            "DIR must have one of Refor",
        ),
        (["evaluate", folder, reviews, "--text-column", "x"], "--text-column needs a"),
    ):
        assert main(command) == 1
        assert words in capsys.readouterr().err


def test_the_command_line_offers_all_problems():
    assert set(classification.PROBLEMS) == set(PROBLEMS)


# ---- masked language models ----


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    pytest.importorskip("safetensors", reason="saves a model")
    folder = tmp_path_factory.mktemp("masked")
    (folder / "text.txt").write_text("the cat sat on the mat " * 40)
    command = ["train", str(folder / "text.txt"), "--task", "mlm", *SMALL, "--length", "48"]
    command += ["--batch", "2", "--offset", "16", "--save", str(folder / "model")]
    assert main([*command, "--steps", "2", "--log", str(folder / "log")]) == 0
    assert main([*command, "--steps", "3", "--log", str(folder / "log"), "--resume"]) == 0
    return folder


def test_a_masked_model_is_trained_evaluated_and_predicts(masked, tmp_path, capsys):
    assert [line["step"] for line in read_log(masked / "log")] == [1, 2, 3]
    folder, text = str(masked / "model"), str(masked / "text.txt")
    assert json.loads((masked / "model" / "config.json").read_text())["architectures"] == [
        "ReformerForMaskedLM"
    ]
    found = []
    for options in ([], [], ["--seed", "1"], ["--length", "16"]):
        capsys.readouterr()
        assert main(["evaluate", folder, text, *options]) == 0
        printed = capsys.readouterr().out
        assert "\n1 texts, " in printed
        found.append(metrics_of(printed))
    assert found[0].keys() == {"accuracy", "loss", "perplexity"}
    assert found[0] == found[1]
    assert found[0]["loss"] not in (found[2]["loss"], found[3]["loss"])
    (tmp_path / "new.txt").write_text("the c[MASK]t\n")
    assert main(["predict", folder, str(tmp_path / "new.txt")]) == 0
    prediction = json.loads(capsys.readouterr().out)["prediction"]
    assert prediction.startswith("the c")
    assert "[MASK]" not in prediction


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "IDS", "--task", "mlm", "--length", "9"],
         "--task mlm needs --tokenizer with .npy files"),
        (["train", "TEXT", "--task", "mlm", "--bytes-per-token", "2"],
         "--bytes-per-token cannot be combined with"),
        (["train", "TEXT", "--task", "mlm", "--text-column", "x"],
         "--text-column cannot be combined with --task mlm"),
        (["predict", "MODEL", "TEXT"], "text.txt:1: text must contain [MASK], got"),
        (["evaluate", "MODEL", "TEXT", "--label-column", "x"], "--label-column needs a classifier"),
        (["evaluate", "MODEL", "TEXT", "--text-column", "x"], "--text-column needs a classifier"),
        (["evaluate", "MODEL", "TEXT", "--sliding", "2"], "--sliding needs a language model that"),
        (["generate", "MODEL", "--prompt", "a"], "DIR must be a language model, got ReformerForM"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_masked_models_is_one_line(arguments, words, masked, tmp_path, capsys):
    np.save(tmp_path / "ids.npy", np.arange(2, 100))
    files = {"TEXT": str(masked / "text.txt"), "MODEL": str(masked / "model"),
             "IDS": str(tmp_path / "ids.npy")}  # fmt: skip
    capsys.readouterr()
    assert main([files.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


# ---- question answering ----

SQUAD = [
    {"id": f"q{i}", "question": "Who?", "answers": [{"text": name, "answer_start": 8}],
     "context": f"It was: {name}, in {1900 + i}."}
    for i, name in enumerate(["Anna", "Bob", "Cleo", "Dora"] * 8)
]  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    pytest.importorskip("safetensors", reason="saves a model")
    folder = tmp_path_factory.mktemp("reader")
    nested = {"data": [{"paragraphs": [
        {"context": row["context"], "qas": [{name: row[name] for name in row if name != "context"}]}
        for row in SQUAD
    ]}]}  # fmt: skip
    (folder / "questions.json").write_text(json.dumps(nested))
    (folder / "flat.json").write_text(json.dumps(SQUAD))
    command = ["train", str(folder / "questions.json"), "--task", "question-answering", *SMALL]
    command += ["--save", str(folder / "model"), "--eval-every", "40", "--log", str(folder / "log")]
    assert main([*command, "--steps", "40"]) == 0
    assert main([*command, "--steps", "80", "--resume"]) == 0
    return folder


def test_a_reader_is_trained_evaluated_and_predicts(reader, tmp_path, capsys):
    lines = read_log(reader / "log")
    assert [line["held_out"].keys() for line in lines if "held_out" in line] == [
        {"exact match", "f1", "loss"}
    ] * 2
    folder = str(reader / "model")
    found = []
    for file in ("questions.json", "flat.json"):
        capsys.readouterr()
        assert main(["evaluate", folder, str(reader / file)]) == 0
        found.append(metrics_of(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0].keys() == {"exact match", "f1", "loss"}
    assert found[0]["f1"] >= found[0]["exact match"] > 0.5
    asked = tmp_path / "asked.csv"
    write_table(asked, [("id", "question", "context"), ("7", "Who?", "It was: Cleo, in 1999.")])
    assert main(["predict", folder, str(asked)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["id"] == "7"
    assert answer["prediction"] == "It was: Cleo, in 1999."[answer["start"] : answer["end"]]
    # windows of a context that is too long
    assert main(["evaluate", folder, str(reader / "flat.json"), "--length", "16"]) == 0
    assert metrics_of(capsys.readouterr().out).keys() == found[0].keys()


def test_a_reader_learns_which_questions_have_no_answer(reader, tmp_path, capsys):
    """The form of SQuAD 2."""
    for row in (nested := json.loads((reader / "questions.json").read_text()))["data"][0][
        "paragraphs"
    ]:
        row["qas"][0]["is_impossible"] = False
        row["qas"].append({"id": "no", "question": "Why?", "answers": [], "is_impossible": True,
                           "plausible_answers": [{"text": "It", "answer_start": 0}]})  # fmt: skip
    file, folder = tmp_path / "questions.json", str(tmp_path / "model")
    file.write_text(json.dumps(nested))
    command = ["train", str(file), "--task", "question-answering", *SMALL, "--save", folder]
    assert main([*command, "--steps", "60"]) == 0
    assert "no answer" in (said := capsys.readouterr()).out + said.err
    assert main([*command, "--steps", "120", "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", folder, str(file)]) == 0
    metrics = metrics_of(capsys.readouterr().out)
    assert metrics["unanswerable exact match"] > 0.9
    of_each = [metrics[f"{kind} exact match"] for kind in ("answerable", "unanswerable")]
    assert round(64 * metrics["exact match"]) == round(32 * sum(of_each))
    assert main(["predict", folder, str(file)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    empty = np.mean([line["prediction"] == "" for line in lines if line["id"] == "no"])
    assert round(empty, 4) == metrics["unanswerable exact match"]
    # a model that has seen none always answers
    assert main(["predict", str(reader / "model"), str(file)]) == 0
    assert all(json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "REVIEWS", "--task", "question-answering"],
         "reviews.csv:2: columns must include 'question', got 'text', 'label'"),
        (["train", "WRONG", "--task", "question-answering"],
         "wrong.jsonl:1: an answer must be a part of the context, got 'Eve'"),
        (["train", "FLAT", "--task", "question-answering", "--length", "5"],
         "question must have fewer than 5 tokens, got 5"),
        (["train", "FLAT", "--task", "question-answering", "--problem", "regression"],
         "--problem cannot be combined with --task question-answering"),
        (["evaluate", "MODEL", "FLAT", "--text-column", "x"], "--text-column needs a classifier"),
        (["predict", "MODEL", "FLAT", "--text-column", "x"], "--text-column needs a model of an"),
        (["predict", "MODEL", "REVIEWS"], "reviews.csv:2: columns must include 'question'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_questions_is_one_line(
    arguments, words, reader, reviews, tmp_path, capsys
):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "Who?", "context": "Anna", "answers": ["Eve"]}\n')
    files = {"REVIEWS": reviews, "WRONG": str(wrong), "FLAT": str(reader / "flat.json"),
             "MODEL": str(reader / "model")}  # fmt: skip
    capsys.readouterr()
    assert main([files.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


# ---- training further ----

TUNE = ["--task", "classification", "--from"]


def test_a_model_is_trained_further_for_another_task(masked, reviews, tmp_path, capsys):
    start, folder = str(masked / "model"), str(tmp_path / "tuned")
    command = ["train", reviews, *TUNE, start, "--save", folder, "--threads", "1"]
    # a step that changes nothing
    assert main([*command, "--steps", "1", "--lr", "1e-30", "--weight-decay", "0"]) == 0
    printed = capsys.readouterr().out
    assert "--from: ReformerForSequenceClassification.from_pretrained: " in printed
    before = rc.ReformerForMaskedLM.from_pretrained(start)
    after = rc.ReformerForSequenceClassification.from_pretrained(folder)
    shared = [name for name in after.parameters if name.startswith("reformer.")]
    assert shared
    for name in shared:
        np.testing.assert_array_equal(after.parameters[name], before.parameters[name])
    assert after.config.num_positions == before.config.num_positions
    assert [after.config.id2label[i] for i in range(2)] == ["bad", "good"]
    # and further, and resumed bit for bit
    once, twice = tmp_path / "once", tmp_path / "twice"
    command = ["train", reviews, *TUNE, folder, "--schedule", "constant", "--warmup", "0"]
    assert main([*command, "--save", str(once), "--steps", "3", "--threads", "1"]) == 0
    assert main([*command, "--save", str(twice), "--steps", "2", "--threads", "1"]) == 0
    assert main([*command, "--save", str(twice), "--steps", "3", "--resume"]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()
    assert "--from: " not in capsys.readouterr().out


def test_a_language_model_is_trained_further(tmp_path, reviews, capsys):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    command = ["train", reviews, "--length", "32", "--steps", "1", "--threads", "1"]
    assert main([*command, *SMALL, "--set", "vocab_size=300", "--save", first]) == 0
    assert main([*command, "--from", first, "--save", second]) == 0
    config = json.loads(Path(second, "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"]) == (300, 32)
    Path(first, "tokenizer_config.json").unlink()  # then 300 ids may be those of any tokenizer
    assert main([*command, "--from", first]) == 1
    assert "--tokenizer must be DIR, FILE or bytes" in capsys.readouterr().err
    assert main([*command, "--from", first, "--tokenizer", "bytes"]) == 0
    # texts are cut to the positions that there are
    assert main(["train", reviews, *TUNE, second, "--steps", "1", "--threads", "1"]) == 0
    assert main([*command, "--from", second, "--length", "64"]) == 1
    assert "--length must be at most the 32 positions of" in capsys.readouterr().err
    few = ["--set", "max_position_embeddings=16"]
    assert main([*command, *SMALL, *few]) == 1
    assert "--length must be at most the 16 positions of the model" in capsys.readouterr().err
    # without --length, these positions are the length
    command = ["train", reviews, "--steps", "1", "--threads", "1"]
    for model, positions in ((["--from", second], 32), ([*SMALL, *few], 16)):
        assert main([*command, *model, "--save", str(tmp_path / "third")]) == 0
        state = json.loads((tmp_path / "third" / "trainer_state.json").read_text())
        assert state["data"]["length"] == positions
        shutil.rmtree(tmp_path / "third")


def test_a_masked_language_model_becomes_a_causal_one(tmp_path, reviews):
    masked, causal = str(tmp_path / "masked"), str(tmp_path / "causal")
    command = ["train", reviews, "--length", "32", "--steps", "1", "--threads", "1"]
    assert main([*command, *SMALL, "--task", "mlm", "--save", masked]) == 0
    assert main([*command, "--from", masked, "--save", causal]) == 0
    config = json.loads(Path(causal, "config.json").read_text())
    assert (config["is_decoder"], config["local_num_chunks_after"]) == (True, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "2"], "--layers cannot be combined with --from"),
        (["--preset", "tiny"], "--preset cannot be combined with --from"),
        (["--set", "hidden_size=64", "--set", "axial_pos_embds_dim=[32, 32]"], "are not those of"),
    ],
)
def test_what_a_model_cannot_become_is_one_line(options, words, masked, reviews, capsys):
    command = ["train", reviews, *TUNE, str(masked / "model"), *options, "--steps", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_saved_models_open_in_transformers(trained, masked, reader):
    torch = pytest.importorskip("torch", reason="needs torch: .[parity]")
    transformers = pytest.importorskip("transformers", reason="needs transformers: .[parity]")
    folders = {
        "ReformerForSequenceClassification": (trained, "logits"),
        "ReformerForMaskedLM": (masked / "model", "logits"),
        "ReformerForQuestionAnswering": (reader / "model", "end_logits"),
    }
    ids = rc.ByteTokenizer().encode("It was fine.")[None]
    for name, (folder, logits) in folders.items():
        theirs = getattr(transformers, name).from_pretrained(folder).eval()
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids))[logits].numpy()
        assert_close(getattr(rc, name).from_pretrained(folder)(ids)[logits], expected,
                     "parity_output")  # fmt: skip
