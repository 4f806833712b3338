"""Tokenizers of checkpoint folders: text comes back, special tokens stay whole, files are named."""

import io
import json
import sys

import numpy as np
import pytest

from reformer_c.subwords import ReformerTokenizer, ReformerTokenizerFast

WHY = "needs the {} library: pip install '.[hf]'"
LINES = [
    "It was the best of times, it was the worst of times.",
    "A few months later Raskolnikov walked down the stairs, and out into the street.",
    "To be, or not to be: that is the question.",
    "The quick brown fox jumps over the lazy dog 0123456789 times!",
] * 5


def write_spiece(folder):
    library = pytest.importorskip("sentencepiece", reason=WHY.format("sentencepiece"))
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=90, model_type="bpe",
        character_coverage=1.0, bos_id=-1, unk_id=0, eos_id=1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())


def write_tokenizer_json(folder):
    library = pytest.importorskip("tokenizers", reason=WHY.format("tokenizers"))
    tokenizer = library.SentencePieceBPETokenizer(unk_token="<unk>")
    tokenizer.train_from_iterator(
        LINES, vocab_size=110, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.enable_padding(length=50)  # ours to do: the file's is switched off
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(params=["spiece.model", "tokenizer.json"])
def folder(request, tmp_path):
    write = write_spiece if request.param == "spiece.model" else write_tokenizer_json
    write(tmp_path)
    config = {"eos_token": "</s>", "unk_token": {"content": "<unk>"}, "model_max_length": 20}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(params=[ReformerTokenizer, ReformerTokenizerFast])
def tokenizer(request, folder):
    return request.param.from_pretrained(folder)


def test_text_comes_back(tokenizer):
    for line in LINES[:4]:
        ids = tokenizer.encode(line)
        assert ids.dtype == np.int64
        assert ids.ndim == 1
        assert 3 < len(ids) < len(line)
        assert tokenizer.decode(ids) == line
    assert tokenizer.batch_decode([ids, ids[:0]]) == [line, ""]
    assert tokenizer.encode("").shape == (0,)


def test_special_tokens_stay_whole(tokenizer):
    end = tokenizer.eos_token_id
    ids = tokenizer.encode("To be</s>that is</s>")
    assert ids.tolist().count(end) == 2
    assert ids[-1] == end
    assert tokenizer.decode(ids) == "To be</s>that is</s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "To bethat is"
    beginning = [*tokenizer.encode("To be").tolist(), end]
    assert ids.tolist()[: len(beginning)] == beginning
    assert tokenizer.encode("</s>").tolist() == [end]
    assert tokenizer.all_special_tokens == ["</s>", "<unk>"]
    assert tokenizer.all_special_ids == [end, tokenizer.unk_token_id]


def test_what_no_piece_holds_is_unknown(tokenizer):
    assert tokenizer.unk_token_id in tokenizer.encode("\N{SNOWMAN}")
    assert tokenizer.convert_tokens_to_ids(["</s>", "no such piece"]) == [
        tokenizer.eos_token_id, tokenizer.unk_token_id,
    ]  # fmt: skip


def test_the_text_around_what_is_unknown_comes_back(tokenizer):
    for text in ("was \N{SNOWMAN} the", "was\N{SNOWMAN}the", "\N{SNOWMAN} the", "was \N{SNOWMAN}"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text.replace("\N{SNOWMAN}", "<unk>")
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("\N{SNOWMAN}", "")


def test_pieces_and_ids_answer_each_other(tokenizer):
    text = LINES[0]
    pieces = tokenizer.tokenize(text)
    assert tokenizer.convert_tokens_to_ids(pieces) == tokenizer.encode(text).tolist()
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "</s>"
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())
    assert tokenizer.get_vocab()["</s>"] == tokenizer.eos_token_id


def test_a_batch_needs_a_pad_token(tokenizer):
    with pytest.raises(ValueError, match=r"^pad_token: .*tokenizer\.pad_token = tokenizer\.eos"):
        tokenizer(["To be", "To be, or not to be"], padding=True)
    assert tokenizer.pad_token_id is None
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(["To be", "To be, or not to be"], padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape
    assert (ids[mask == 0] == tokenizer.eos_token_id).all()
    assert tokenizer.decode(ids[0][mask[0] == 1]) == "To be"
    left = tokenizer(["To be", "To be, or not to be"], padding="longest", padding_side="left")
    np.testing.assert_array_equal(left["attention_mask"], mask[:, ::-1])


def test_lengths_are_cut_and_filled(tokenizer):
    assert tokenizer.model_max_length == 20
    assert tokenizer(LINES[3], truncation=True)["input_ids"].shape == (1, 20)
    tokenizer.pad_token = "</s>"
    batch = tokenizer("To be", padding="max_length", truncation=True, max_length=15)
    assert batch["input_ids"].shape == (1, 15)
    # the file's own settings are off
    assert len(tokenizer.encode(LINES[3])) > 20
    assert len(tokenizer.encode("To be")) < 20


def test_a_tokenizer_is_saved_with_its_file(tmp_path, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "again")
    back = type(tokenizer).from_pretrained(tmp_path / "again")
    assert back.pad_token == "</s>"
    assert back.model_max_length == 20
    assert back.encode(LINES[0]).tolist() == tokenizer.encode(LINES[0]).tolist()


def test_options_take_the_place_of_the_folders(folder):
    tokenizer = ReformerTokenizer.from_pretrained(folder, model_max_length=5, pad_token="<unk>")
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (5, "<unk>")


def test_added_tokens_have_ids_behind_the_pieces(folder):
    count = len(ReformerTokenizer.from_pretrained(folder))
    config = {
        "eos_token": "</s>", "pad_token": "<pad>",
        "added_tokens_decoder": {str(count): {"content": "<pad>", "special": True}},
        "model_max_length": 10**30,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == count
    assert (len(tokenizer), tokenizer.vocab_size) == (count + 1, count)
    assert tokenizer.model_max_length is None
    assert tokenizer.encode("To be<pad>")[-1] == count
    assert tokenizer.decode(tokenizer.encode("To be<pad>")) == "To be<pad>"


@pytest.mark.parametrize("named", [False, True])
def test_special_tokens_without_a_usual_name_are_kept_whole(folder, named):
    count = len(ReformerTokenizer.from_pretrained(folder))
    config = {
        "extra_special_tokens": {"speaker": "<A>"} if named else ["<A>"],
        "added_tokens_decoder": {str(count): {"content": "<A>", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    assert tokenizer.additional_special_tokens == ["<A>"]
    assert tokenizer.decode(tokenizer.encode("<A>To be"), skip_special_tokens=True) == "To be"
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^additional_special_tokens: .*'<A>'"):
        ReformerTokenizer.from_pretrained(folder)


def test_each_class_takes_its_own_file_first_and_else_the_other(tmp_path):
    write_spiece(tmp_path)
    write_tokenizer_json(tmp_path)
    assert "spiece.model" in repr(ReformerTokenizer.from_pretrained(tmp_path))
    assert "tokenizer.json" in repr(ReformerTokenizerFast.from_pretrained(tmp_path))


def test_what_is_wrong_is_named(tokenizer, folder):
    with pytest.raises(TypeError, match=r"^text: expected str, got bytes"):
        tokenizer.encode(b"bytes")
    with pytest.raises(ValueError, match=r"^ids: "):
        tokenizer.decode([10**6])
    with pytest.raises(ValueError, match=r"^pad_token: expected a token of the vocabulary"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(ValueError, match=r"^return_tensors: "):
        tokenizer("a", return_tensors="pt")
    with pytest.raises(TypeError, match=r"^colour: "):
        type(tokenizer).from_pretrained(folder, colour=3)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        type(tokenizer).from_pretrained(folder)


def test_folders_without_a_tokenizer_and_damaged_files_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither spiece\.model nor tokenizer\.json"):
        ReformerTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ReformerTokenizer.from_pretrained(tmp_path / "nowhere")
    for name, library in (("spiece.model", "sentencepiece"), ("tokenizer.json", "tokenizers")):
        pytest.importorskip(library, reason=WHY.format(library))
        path = tmp_path / name
        path.write_bytes(b"{}")
        with pytest.raises(ValueError, match=f"{name} is no "):
            ReformerTokenizer(path)


@pytest.mark.parametrize(
    ("name", "library"), [("spiece.model", "sentencepiece"), ("tokenizer.json", "tokenizers")]
)
def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImportError, match=rf"{library} library: pip install 'reformer_c\[hf\]'"):
        ReformerTokenizer.from_pretrained(tmp_path)
