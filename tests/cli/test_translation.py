"""Translation on the command line: train --pairs, translate, evaluate, info."""

import io
import json
import shutil

import numpy as np
import pytest
from tolerances import assert_close

from reformer_c.cli.main import main
from reformer_c.cli.translation import beam_options, translate
from reformer_c.models.encoder_decoder import ReformerEncoderDecoder
from reformer_c.models.generation_config import GenerationConfig
from reformer_c.text.byte_tokenizer import ByteTokenizer
from reformer_c.training.bleu import bleu
from reformer_c.training.log import read_log
from reformer_c.training.pairs import end_token_of

pytest.importorskip("safetensors", reason="models are saved")

SMALL = ["--layers", "2", "--width", "16", "--threads", "1"]
WORDS = {"ein": "one", "rot": "red", "Haus": "house", "Hund": "dog"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The same pairs in three forms: the folder of pairs.tsv, .jsonl, .de and .en."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    drawn = [rng.choice([*WORDS], rng.integers(1, 4)).tolist() for _ in range(40)]
    rows = [(" ".join(words), " ".join(WORDS[word] for word in words)) for words in drawn]
    lines = {
        "tsv": ["\t".join(row) for row in rows],
        "jsonl": [json.dumps(dict(zip(["source", "target"], row))) for row in rows],
        "de": [source for source, _ in rows],
        "en": [target for _, target in rows],
    }
    for suffix, found in lines.items():
        (folder / f"pairs.{suffix}").write_text("\n".join(found) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("models") / "model")
    assert (
        main(["train", "--pairs", f"{pairs}/pairs.tsv", *SMALL, "--steps", "4", "--save", folder])
        == 0
    )
    return folder


# ---- train ----


def losses(arguments, folder, capsys):
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    assert main(["train", *arguments, *SMALL, "--steps", "3", "--log", str(log)]) == 0
    return [step["loss"] for step in read_log(log)], capsys.readouterr().out


def test_every_form_of_pairs_trains_the_same_model(pairs, tmp_path, capsys):
    files = {suffix: f"{pairs}/pairs.{suffix}" for suffix in ("tsv", "jsonl", "de", "en")}
    expected, printed = losses(["--pairs", files["tsv"]], tmp_path, capsys)
    assert "36 pairs to train on, 4 held out" in printed
    assert "held out: bits per byte" in printed
    config = tmp_path / "options.json"
    config.write_text(json.dumps({"pairs": [files["de"], files["en"]]}))
    for arguments in (
        ["--pairs", files["jsonl"]],
        ["--pairs", files["de"], files["en"]],
        ["--pairs", files["de"], "--pairs", files["en"]],
        [files["tsv"], "--task", "translation"],
        ["--config", str(config)],
    ):
        assert losses(arguments, tmp_path, capsys)[0] == expected


def test_a_run_resumes_bit_for_bit(pairs, tmp_path):
    arguments = ["train", "--pairs", f"{pairs}/pairs.tsv", *SMALL, "--schedule", "constant"]
    arguments += ["--set", "label_smoothing=0.1", "--set", "shared_embeddings=true"]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert main([*arguments, "--steps", "4", "--warmup", "0", "--save", whole]) == 0
    assert main([*arguments, "--steps", "2", "--warmup", "0", "--save", parts]) == 0
    assert main([*arguments, "--steps", "4", "--warmup", "0", "--save", parts, "--resume"]) == 0
    one, other = (ReformerEncoderDecoder.from_pretrained(folder) for folder in (whole, parts))
    assert one.decoder.config.shared_embeddings
    for name, array in one.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], array)


def test_a_resumed_run_must_have_the_same_fields(trained, pairs, tmp_path, capsys):
    folder = str(tmp_path / "model")
    shutil.copytree(trained, folder)
    arguments = ["train", "--pairs", f"{pairs}/pairs.tsv", *SMALL, "--save", folder, "--resume"]
    assert main([*arguments, "--set", "label_smoothing=0.1"]) == 1
    assert "encoder.label_smoothing is 0.1 here and 0.0" in capsys.readouterr().err


def test_the_sides_are_an_encoder_and_a_causal_decoder(trained):
    model = ReformerEncoderDecoder.from_pretrained(trained)
    encoder, decoder = (side.config for side in model.sides.values())
    assert (encoder.is_decoder, encoder.local_num_chunks_after) == (False, 1)
    assert (decoder.is_decoder, decoder.local_num_chunks_after) == (True, 0)
    assert decoder.eos_token_id == end_token_of(ByteTokenizer())
    assert encoder.attn_layers == decoder.attn_layers == ["full"] * 2


def test_other_layers_can_be_chosen(pairs, tmp_path, capsys):
    folder = str(tmp_path / "model")
    arguments = ["--pairs", f"{pairs}/pairs.tsv", "--set", 'attn_layers=["local", "lsh"]']
    arguments += ["--hashes", "2", "--width", "16", "--steps", "1", "--save", folder]
    assert main(["train", *arguments]) == 0
    for side in ReformerEncoderDecoder.from_pretrained(folder).sides.values():
        assert (side.config.attn_layers, side.config.num_hashes) == (["local", "lsh"], 2)
    assert main(["translate", folder, "--text", "ein Haus"]) == 0


def test_rounds_are_those_of_cross_attention(pairs, tmp_path, capsys):
    command = ["--pairs", f"{pairs}/pairs.tsv", "--set", "cross_attention=lsh"]
    named = losses([*command, "--hashes", "2"], tmp_path, capsys)[0]
    assert named == losses([*command, "--set", "num_hashes=2"], tmp_path, capsys)[0]
    assert main(["train", *command[:2], "--hashes", "2"]) == 1
    assert "--hashes needs an LSH layer, got full" in capsys.readouterr().err


def test_what_is_held_out_does_not_depend_on_padding(pairs, tmp_path, capsys):
    arguments = ["train", "--pairs", f"{pairs}/pairs.tsv", *SMALL, "--steps", "2", "--lr", "1e-9"]
    found = []
    for batch in ("1", "16"):
        log = tmp_path / f"{batch}.jsonl"
        assert main([*arguments, "--batch", batch, "--eval-every", "1", "--log", str(log)]) == 0
        found += [step["held_out"]["bits per byte"] for step in read_log(log)]
    assert_close(found, np.full(len(found), found[0]), "model_forward", np.float32)


def test_long_pairs_are_left_out(pairs, tmp_path, capsys):
    arguments = ["--pairs", f"{pairs}/pairs.tsv", "--length", "9"]
    _, printed = losses(arguments, tmp_path, capsys)
    assert "pairs of more than 9 tokens are left out" in printed


def test_batches_may_have_a_number_of_tokens(pairs, tmp_path, capsys):
    arguments = ["--pairs", f"{pairs}/pairs.tsv", "--batch-tokens", "60"]
    found, _ = losses(arguments, tmp_path, capsys)
    assert found != losses(arguments[:2], tmp_path, capsys)[0]
    folder = str(tmp_path / "model")
    command = ["train", *arguments, *SMALL, "--steps", "2", "--save", folder]
    assert main(command) == 0
    capsys.readouterr()
    for changed in ("61", None):
        again = command[:-2] + ["--save", folder, "--resume"]
        at = again.index("--batch-tokens")
        again[at : at + 2] = ["--batch-tokens", changed] if changed else []
        assert main(again) == 1
        assert "batch_tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "TSV", "--whole-files"], "--whole-files cannot be combined with --task trans"),
        (["--pairs", "TSV", "--offset", "3"], "--offset cannot be combined with --task trans"),
        (["--pairs", "TSV", "--length", "2"], "length must be at least"),
        (["--pairs", "TSV", "--batch-tokens", "2"], "batch_tokens must be at least"),
        (["DE", "--batch-tokens", "200"], "--batch-tokens needs --pairs"),
        (["--pairs", "DE"], "without its target"),
        (["--pairs", "WRONG"], "wrong.tsv:2: must be a source, a tab and a target, got 0 tabs"),
        (["--pairs", "TSV", "--evaluate-on", "WRONG"], "wrong.tsv:2: must be a source"),
    ],
)
def test_what_cannot_be_trained_on_is_named(pairs, arguments, words, tmp_path, capsys):
    (tmp_path / "wrong.tsv").write_text("a\tb\nc\n")
    files = {
        "TSV": f"{pairs}/pairs.tsv",
        "DE": f"{pairs}/pairs.de",
        "WRONG": str(tmp_path / "wrong.tsv"),
    }
    assert main(["train", *[files.get(word, word) for word in arguments]]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert words in printed


def test_pairs_and_other_files_are_refused(capsys):
    for more in (["b.txt", "--pairs", "a.tsv"], ["--pairs", "a.tsv", "--task", "image"]):
        with pytest.raises(SystemExit) as leaving:
            main(["train", *more])
        assert leaving.value.code == 2
        assert "--pairs cannot be combined with" in capsys.readouterr().err


# ---- translate ----


def run(arguments, capsys, text=None, monkeypatch=None):
    if text is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(arguments) == 0
    return capsys.readouterr().out.split("\n")[:-1]


def test_each_line_is_translated_to_one_line(trained, pairs, capsys, monkeypatch):
    found = run(["translate", trained, "--text-file", f"{pairs}/pairs.de"], capsys)
    assert len(found) == 40
    lines = (pairs / "pairs.de").read_text()
    assert run(["translate", trained], capsys, lines, monkeypatch) == found
    assert run(["translate", trained, "--text-file", "-"], capsys, lines, monkeypatch) == found
    first = lines.split("\n")[0]
    assert run(["translate", trained, "--text", first], capsys) == found[:1]
    assert len(run(["translate", trained], capsys, "ein\n\nrot\n", monkeypatch)) == 3


def test_batches_do_not_change_a_translation(trained, pairs, capsys):
    arguments = ["translate", trained, "--text-file", f"{pairs}/pairs.de"]
    alone = run([*arguments, "--batch", "1"], capsys)
    assert run([*arguments, "--batch", "7"], capsys) == alone


def test_beam_search_has_the_defaults_of_the_paper_unless_others_are_given(trained):
    model = ReformerEncoderDecoder.from_pretrained(trained)
    assert beam_options(model) == {"num_beams": 4, "length_penalty": 0.6}
    assert beam_options(model, 2, -1.0) == {"num_beams": 2, "length_penalty": -1.0}
    assert beam_options(model, 1) == {"num_beams": 1}
    model.generation_config = GenerationConfig(num_beams=3, length_penalty=0.9)
    assert beam_options(model) == {"num_beams": 3, "length_penalty": 0.9}
    assert beam_options(model, 2) == {"num_beams": 2, "length_penalty": 0.9}
    with pytest.raises(ValueError, match="--length-penalty needs several beams"):
        beam_options(model, 1, 0.5)


def test_translations_are_what_generate_writes(trained):
    model, tokenizer = ReformerEncoderDecoder.from_pretrained(trained), ByteTokenizer()
    [found] = translate(model, tokenizer, ["ein Haus"], length=6, num_beams=4, length_penalty=0.6)
    ids = np.append(tokenizer.encode("ein Haus"), 1)
    written = model.generate(
        ids, max_new_tokens=6, num_beams=4, length_penalty=0.6, eos_token_id=1, rng=0
    )
    assert found == tokenizer.decode(written[0]).replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "a" * 100], "line 1 must have at most"),
        (["--text", "a", "--length", "1000"], "--length must be at most"),
        (["--text", "a", "--beams", "1", "--length-penalty", "1"], "needs several beams"),
        (["--text-file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_translated_is_named(trained, arguments, words, capsys):
    assert main(["translate", trained, *arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["generate", "--prompt", "a"], ["predict", "a.tsv"], ["complete", "a.png"],
     ["info", "--lengths", "4"]],
)  # fmt: skip
def test_other_commands_refuse_an_encoder_decoder(trained, arguments, capsys):
    command, *rest = arguments
    assert main([command, trained, *rest]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_translate_refuses_another_model(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("a text " * 100)
    folder = str(tmp_path / "model")
    assert (
        main(["train", str(file), *SMALL, "--length", "32", "--steps", "1", "--save", folder]) == 0
    )
    assert main(["translate", folder, "--text", "a"]) == 1
    assert "DIR must be an encoder-decoder, got ReformerModelWithLMHead" in capsys.readouterr().err


# ---- evaluate, info ----


def test_bits_per_byte_are_those_of_the_pairs_that_are_not_left_out(trained, pairs, capsys):
    command = ["evaluate", trained, f"{pairs}/all.tsv", "--length", "8"]
    found = []
    for more in ("", "a\t" + "é" * 6 + "\n"):
        (pairs / "all.tsv").write_text("ab\tcd\n" * 4 + more, encoding="utf-8")
        found.append(run(command, capsys))
    assert found[0][1] == found[1][1]
    assert found[1][3] == "bits per byte: without 1 pairs that are too long"


def test_evaluate_prints_bleu_and_the_loss(trained, pairs, capsys):
    sacrebleu = pytest.importorskip("sacrebleu")
    translated = run(["translate", trained, "--text-file", f"{pairs}/pairs.de"], capsys)
    found = run(["evaluate", trained, f"{pairs}/pairs.de", f"{pairs}/pairs.en"], capsys)
    references = (pairs / "pairs.en").read_text().split("\n")[:-1]
    expected = sacrebleu.corpus_bleu(translated, [references]).score
    assert found[0].split() == ["bleu", f"{expected:.2f}"]
    assert found[1].startswith("bits per byte")
    assert found[2].startswith("40 pairs, ")
    assert "tok:13a" in found[2]


def test_evaluate_names_the_extra_that_it_needs(trained, pairs, capsys, monkeypatch):
    monkeypatch.setattr("reformer_c.training.bleu.find_spec", lambda name: None)
    assert main(["evaluate", trained, f"{pairs}/pairs.tsv"]) == 1
    printed = capsys.readouterr().err
    assert "sacrebleu" in printed
    assert "bleu" in printed


def test_info_describes_both_sides(trained, capsys):
    printed = "\n".join(run(["info", trained], capsys))
    for words in ("longest source", "longest target", "ByteTokenizer", "decoder.lm_head"):
        assert words in printed


def test_bleu_needs_a_reference_for_each_translation():
    with pytest.raises(ValueError, match=r"^references must be 1 texts, as translations, got 2"):
        bleu(["a"], ["a", "b"])
