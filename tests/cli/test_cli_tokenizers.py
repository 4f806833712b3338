"""The command line with models of subwords: the folder's tokenizer is used everywhere."""

import io
import json
import math
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close, tolerance

import reformer_c as rc
from reformer_c.cli.main import main
from reformer_c.models.presets import preset_config
from reformer_c.text.folders import folder_tokenizer, named_tokenizer
from reformer_c.text.screen import TextStream
from reformer_c.text.token_texts import TokenTexts
from reformer_c.training.log import read_log

tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers library: .[hf]")

SMALL = ["--layers", "2", "--width", "32", "--threads", "1", "--length", "128"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "\u00e9t\u00e9.\n", "\u20ac5", "7)"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 3000))


def learn_bytes(folder):
    """Byte-pair encoding over bytes, whose pieces may end inside a character."""
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, show_progress=False, special_tokens=["</s>"]
    )
    pieces.train_from_iterator([TEXT], trainer)
    pieces.save(str(folder / "tokenizer.json"))


def learn_words(folder):
    """Pieces as SentencePiece has them, with a mark for the space before a word."""
    pieces = tokenizers.SentencePieceBPETokenizer(unk_token="<unk>")
    pieces.train_from_iterator(
        [TEXT], vocab_size=80, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    pieces.save(str(folder / "tokenizer.json"))


def learn_spiece(folder):
    library = pytest.importorskip("sentencepiece", reason="needs sentencepiece: .[hf]")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=model, vocab_size=60,
        model_type="bpe", character_coverage=1.0, bos_id=-1, unk_id=0, eos_id=1, pad_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())


@pytest.fixture(scope="module", params=[learn_bytes, learn_words, learn_spiece])
def pieces(request, tmp_path_factory):
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("pieces")
    request.param(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def trained(pieces, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    command = ["train", text, *SMALL, "--steps", "30", "--lr", "0.01", "--tokenizer", str(pieces)]
    log = str(folder.parent / "log")
    assert main([*command, "--save", str(folder), "--log", log]) == 0
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_training_writes_the_tokenizer_and_counts_the_bytes_of_the_text(pieces, trained, text):
    tokenizer = folder_tokenizer(trained)
    assert tokenizer.get_vocab() == folder_tokenizer(pieces).get_vocab()
    config = rc.ReformerConfig.from_json(trained)
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id
    # the training text: all but the last tenth of the bytes
    begin = TEXT.encode()[: round(len(TEXT.encode()) * 0.9)].decode(errors="ignore")
    ratio = len(begin.encode()) / len(tokenizer.encode(begin))
    assert ratio > 1.5
    for line in read_log(trained.parent / "log"):
        bits = line["loss"] / math.log(2) / ratio
        assert abs(line["bits_per_byte"] - bits) < tolerance("four_places")


def test_evaluate_counts_the_bytes_of_the_text(trained, tmp_path, capsys):
    held_out = "the cat sat on a mat and saw \u00e9t\u00e9 on the mat. \u20ac5 7)" * 3
    (tmp_path / "held_out.txt").write_text(held_out, encoding="utf-8")
    printed = run(capsys, "evaluate", trained, tmp_path / "held_out.txt")
    tokenizer = folder_tokenizer(trained)
    ids = tokenizer.encode(held_out)
    model = rc.ReformerModelWithLMHead.from_pretrained(trained)
    loss = model.loss(ids[None], labels=ids[None], rng=0)
    bits = loss / math.log(2) * len(ids) / len(held_out.encode())
    found = float(re.match(r"([\d.]+) bits per byte", printed)[1])
    assert abs(found - bits) < tolerance("four_places")
    assert f"({len(ids) - 1} tokens of " in printed


def test_held_out_text_is_measured_as_evaluate_does(pieces, tmp_path, capsys):
    # the end of the text has words, and so pieces, that the training text has not
    data = (TEXT[:4000] + "4 8 #? " * 100).encode()
    border = len(data) - round(len(data) * 0.1)
    for name, part in (("text.txt", data), ("end.txt", data[border:])):
        (tmp_path / name).write_bytes(part)
    folder = tmp_path / "model"
    command = ["train", tmp_path / "text.txt", *SMALL, "--steps", "2", "--tokenizer", pieces]
    printed = run(capsys, *command, "--save", folder)
    held_out = re.search(r"held out: ([\d.]+) bits per byte", printed)[1]
    printed = run(capsys, "evaluate", folder, tmp_path / "end.txt", "--length", "128")
    assert f"{float(printed.split()[0]):.3f}" == held_out


def test_a_prompt_of_nothing_is_begun(trained, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("")
    command = ["generate", trained, "--prompt-file", tmp_path / "prompt.txt", "--length", "9"]
    assert run(capsys, *command) == run(capsys, *command, "--stream")


def test_a_name_on_the_hub_has_its_tokenizer(trained, tmp_path, monkeypatch, capsys):
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **options: {"some/model": str(trained)}[name]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    command = ["--prompt", "the cat", "--length", "9"]
    expected = run(capsys, "generate", trained, *command)
    assert run(capsys, "generate", "some/model", *command) == expected


def test_what_is_generated_is_the_text_of_the_tokens(trained, capsys):
    prompt = "the cat"
    tokenizer = folder_tokenizer(trained)
    model = rc.ReformerModelWithLMHead.from_pretrained(trained)
    ids = model.generate(
        tokenizer.encode(prompt)[None], max_new_tokens=40, eos_token_id=tokenizer.eos_token_id
    )
    expected = tokenizer.decode(ids[0]).removesuffix("</s>")
    common = ["generate", trained, "--prompt", prompt, "--length", "40"]
    assert run(capsys, *common, "--temperature", "0") == f"{expected}\n"
    for seed in range(3):
        whole = run(capsys, *common, "--seed", seed, "--temperature", "2", "--top-p", "1")
        assert whole.startswith(prompt)
        streamed = run(
            capsys, *common, "--seed", seed, "--temperature", "2", "--top-p", "1", "--stream"
        )
        assert streamed == whole
    assert run(capsys, *common, "--beams", "2", "--texts", "2").count(prompt) >= 2


def test_a_text_ends_at_the_end_token_which_is_not_shown(trained, tmp_path, capsys):
    model = rc.ReformerModelWithLMHead.from_pretrained(trained)
    tokenizer = folder_tokenizer(trained)
    folder = tmp_path / "model"
    # only the end token is likely
    model.parameters["lm_head.bias"][tokenizer.eos_token_id] = 100.0
    shutil.copytree(trained, folder)
    model.save_pretrained(folder)
    for more in ([], ["--stream"], ["--beams", "2"], ["--texts", "2"]):
        printed = run(capsys, "generate", folder, "--prompt", "the", "--length", "20", *more)
        assert printed == "the\n" * (2 if "--texts" in more else 1)
    common = ["generate", folder, "--prompt", "the", "--length", "20"]
    longer = run(capsys, *common, "--min-length", "10")
    assert "</s>" not in longer
    assert len(longer) > len("the\n")


def test_an_end_that_is_a_piece_like_others_is_shown(trained, capsys, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    tokenizer = folder_tokenizer(trained)
    model = rc.ReformerModelWithLMHead.from_pretrained(trained)
    prompt = tokenizer.encode("the")
    free = model.generate(
        prompt, max_new_tokens=60, top_k=0, do_sample=True, rng=0, eos_token_id=None
    )[0].tolist()
    piece = free[len(prompt) + 10]
    ids = free[: free.index(piece, len(prompt)) + 1]
    assert tokenizer.eos_token_id not in ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": piece}))
    printed = run(
        capsys, "generate", folder, "--prompt", "the", "--length", "60", "--temperature", "1",
        "--top-p", "1",
    )  # fmt: skip
    assert printed == f"{tokenizer.decode(ids)}\n"


def test_a_character_that_no_piece_has_ends_nothing(trained, capsys):
    assert main(["generate", str(trained), "--prompt", "the", "--until", "#"]) == 1
    assert "never writes '#'" in capsys.readouterr().err


def test_until_and_without_go_by_the_text_not_by_the_pieces(trained, capsys):
    common = ["generate", trained, "--prompt", "the", "--length", "60", "--temperature", "1.5"]
    for seed in range(3):
        free = run(capsys, *common, "--seed", seed)[3:]
        assert "a" in free
        ended = run(capsys, *common, "--seed", seed, "--until", "a", "t")[3:].removesuffix("\n")
        assert len(re.findall("[at]", ended)) == 1
        assert ended[-1] in "at"
        streamed = run(capsys, *common, "--seed", seed, "--until", "a", "t", "--stream")
        assert streamed == f"the{ended}\n"
        without = run(capsys, *common, "--seed", seed, "--without", "at", "s", "the")
        assert not re.search("at|s|the", without[3:])


@pytest.mark.parametrize("more", [[], ["--tokenizer", "PIECES"]])
def test_resuming_takes_the_folders_tokenizer(more, pieces, trained, text, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    more = [str(pieces) if word == "PIECES" else word for word in more]
    command = ["train", text, *SMALL, "--lr", "0.01", "--save", folder, "--resume"]
    assert "saved: " in run(capsys, *command, "--steps", "30", *more)
    assert main([*map(str, command), "--steps", "30", "--tokenizer", "bytes"]) == 1
    said = capsys.readouterr().err
    assert "--tokenizer must be that of" in said
    assert "got ByteTokenizer" in said


def test_a_folder_with_a_tokenizer_trains_a_model_of_its_pieces(pieces, text, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(pieces, folder)
    run(capsys, "train", text, *SMALL, "--steps", "1", "--save", folder)
    assert rc.ReformerConfig.from_json(folder).vocab_size == len(folder_tokenizer(pieces))


def test_a_file_is_named_too_and_arrays_are_counted(pieces, text, tmp_path, capsys):
    (file,) = (path for path in pieces.iterdir())
    tokenizer = folder_tokenizer(pieces)
    assert named_tokenizer(str(file)).get_vocab() == tokenizer.get_vocab()
    # another name, in a folder whose other files belong to no tokenizer
    file = Path(shutil.copy(file, tmp_path / f"mine{file.suffix}"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    np.save(tmp_path / "ids.npy", tokenizer.encode(TEXT))
    folder, log = tmp_path / "model", tmp_path / "log"
    run(
        capsys, "train", tmp_path / "ids.npy", *SMALL, "--steps", "1", "--tokenizer", file,
        "--save", folder, "--log", log,
    )  # fmt: skip
    (line,) = read_log(log)
    ratio = line["loss"] / math.log(2) / line["bits_per_byte"]
    # of the decoded ids: some tokenizers make one space of several
    ids = tokenizer.encode(TEXT)
    assert_close(ratio, len(tokenizer.decode(ids).encode()) / len(ids), "share")
    assert folder_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    assert main(["generate", str(folder), "--prompt", "the", "--length", "5"]) == 0


def test_a_model_without_its_tokenizer_is_refused_until_it_is_named(
    pieces, trained, text, tmp_path, capsys
):
    folder = tmp_path / "model"
    rc.ReformerModelWithLMHead.from_pretrained(trained).save_pretrained(folder)
    for command in (["generate", folder, "--prompt", "a", "--length", "5"],
                    ["evaluate", folder, text, "--length", "100"]):  # fmt: skip
        command = list(map(str, command))
        assert main(command) == 1
        assert "--tokenizer must be DIR, FILE or bytes" in capsys.readouterr().err
        assert main([*command, "--tokenizer", "bytes"]) == 1
        said = capsys.readouterr().err
        assert "must be 258, as many as ByteTokenizer" in said
        assert f"got a model of {len(folder_tokenizer(pieces))}" in said
        assert main([*command, "--tokenizer", str(pieces)]) == 0
        capsys.readouterr()
    told = run(capsys, "info", folder)
    assert "--tokenizer must be DIR" in told
    told = run(capsys, "info", trained)
    assert repr(folder_tokenizer(trained)) in told


def test_a_tokenizer_of_another_model_is_refused(pieces, text, tmp_path, capsys):
    count = len(folder_tokenizer(pieces))
    folder = tmp_path / "model"
    rc.ReformerModelWithLMHead(
        preset_config("tiny", 128, layers=1, width=16, vocab_size=count - 1), rng=0
    ).save_pretrained(folder)
    command = ["generate", str(folder), "--prompt", "a", "--tokenizer", str(pieces)]
    assert main(command) == 1
    assert f"must be {count}, as many as" in capsys.readouterr().err
    train = ["train", text, *SMALL, "--steps", "1", "--tokenizer", str(pieces)]
    assert main([*train, "--set", f"vocab_size={count - 1}"]) == 1
    said = capsys.readouterr().err
    assert f"vocabulary of {count - 1}" in said or f"got a model of {count - 1}" in said
    # more ids than pieces are refused if no file relates the two
    folder = str(tmp_path / "more")
    assert main([*train, "--set", f"vocab_size={count + 500}", "--save", folder]) == 0
    command = ["generate", folder, "--prompt", "the", "--length", "30", "--temperature", "9"]
    assert main([*command, "--top-p", "1"]) == 0
    assert main([*command, "--tokenizer", str(pieces)]) == 0
    for file in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (Path(folder) / file).unlink(missing_ok=True)
    assert main([*command, "--tokenizer", str(pieces)]) == 1
    assert f"got a model of {count + 500}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "evaluate", "info"])
def test_a_folder_with_a_tokenizer_is_read_with_no_other(command, trained, text, tmp_path, capsys):
    # as many pieces, but different ones
    ids = {f"w{i}": i for i in range(len(folder_tokenizer(trained)))}
    other = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="w0")).save(str(other))
    more = {"generate": ["--prompt", "the", "--length", "3"], "evaluate": [text], "info": []}
    arguments = [command, str(trained), *more[command]]
    assert main([*arguments, "--tokenizer", str(other)]) == 1
    said = capsys.readouterr().err
    assert f"--tokenizer must be that of {str(trained)!r}" in said
    assert main([*arguments, "--tokenizer", str(tmp_path / "none")]) == 1
    assert "--tokenizer" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", str(trained)]) == 0


def test_text_that_is_not_utf8_is_named(pieces, trained, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    for command in (["evaluate", trained, tmp_path / "latin.txt"],
                    ["train", tmp_path / "latin.txt", *SMALL, "--tokenizer", pieces]):  # fmt: skip
        assert main(list(map(str, command))) == 1
        assert "latin.txt must be UTF-8" in capsys.readouterr().err
    command = ["generate", str(trained), "--prompt-file", str(tmp_path / "latin.txt")]
    assert main(command) == 1
    assert "must be UTF-8 for" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_of_any_tokens_shows_what_decoding_all_of_them_gives(pieces, seed):
    tokenizer = folder_tokenizer(pieces)
    ids = np.random.default_rng(seed).integers(0, len(tokenizer), 60)
    screen = io.StringIO()
    stream = TextStream(tokenizer, screen, prompt=ids[:7])
    for token in ids[7:]:
        stream(np.array([token]))
    stream.end()
    assert screen.getvalue() == tokenizer.decode(ids)


def test_pieces_know_what_they_write(pieces):
    tokenizer = folder_tokenizer(pieces)
    found = TokenTexts(tokenizer)
    ids = tokenizer.encode("the cat sat on")
    assert "".join(found.texts[i] for i in ids).strip() == "the cat sat on"
    assert all("a" in found.texts[i] for i in found.with_any("a"))
    assert found.texts[tokenizer.eos_token_id] == ""


def test_a_named_tokenizer_that_is_not_there_is_said(trained, tmp_path, capsys):
    for name, words in (("nowhere.json", "nowhere.json"), (str(tmp_path), "there is neither")):
        command = ["generate", str(trained), "--prompt", "a", "--tokenizer", name]
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith("reformer-c generate: error: --tokenizer: ")
        assert words in said


def test_a_file_of_a_folder_goes_with_what_the_folder_says(pieces, tmp_path):
    folder = Path(shutil.copytree(pieces, tmp_path / "pieces"))
    (file,) = folder.iterdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    for name in (folder, file):
        tokenizer = named_tokenizer(str(name))
        assert tokenizer.eos_token == "<end>"
        assert len(tokenizer) == len(folder_tokenizer(pieces)) + 1


def test_a_config_of_another_class_is_not_taken_for_bytes(tmp_path, capsys):
    rc.ReformerModelWithLMHead(preset_config("tiny", 64), rng=0).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--prompt", "a", "--length", "5"]) == 0
    Path(tmp_path, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Other"}))
    assert main(["generate", str(tmp_path), "--prompt", "a", "--length", "5"]) == 1
    assert "--tokenizer must be" in capsys.readouterr().err


def test_a_trained_folder_opens_in_transformers(trained, text, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: .[parity]")
    pytest.importorskip("torch", reason="needs torch: .[parity]")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(trained), folder_tokenizer(trained)
    for line in ("the cat sat", "a mat \u00e9t\u00e9. \u20ac5"):
        assert theirs(line)["input_ids"] == ours.encode(line).tolist()
        assert theirs.decode(theirs(line)["input_ids"]) == line
    assert theirs.eos_token_id == ours.eos_token_id
    assert main(["train", text, *SMALL, "--steps", "1", "--save", str(tmp_path / "bytes")]) == 0
    for folder in (trained, tmp_path / "bytes"):
        model = transformers.ReformerModelWithLMHead.from_pretrained(folder)
        assert model.config.vocab_size == rc.ReformerConfig.from_json(folder).vocab_size
