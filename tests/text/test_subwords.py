"""Tokenizers of checkpoint folders: text comes back, special tokens stay whole, files are named."""

import copy
import io
import json
import pickle
import sys

import numpy as np
import pytest

from reformer_c.text.subwords import ReformerTokenizer, ReformerTokenizerFast

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
    tokenizer.enable_padding(length=50)  # done here: the file's own is switched off
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
    with pytest.raises(
        ValueError, match=r"^pad_token must .*tokenizer\.pad_token = tokenizer\.eos"
    ):
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
@pytest.mark.parametrize("with_ids", [False, True])
def test_special_tokens_without_a_usual_name_are_kept_whole(folder, named, with_ids):
    count = len(ReformerTokenizer.from_pretrained(folder))
    config = {"extra_special_tokens": {"speaker": "<A>"} if named else ["<A>"]}
    if with_ids:  # without, they follow the pieces
        config["added_tokens_decoder"] = {str(count): {"content": "<A>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    for _ in range(2):
        assert "<A>" in tokenizer.all_special_tokens
        assert tokenizer.encode("<A>To be")[0] == count == len(tokenizer) - 1
        assert tokenizer.decode(tokenizer.encode("<A>To be"), skip_special_tokens=True) == "To be"
        if named:
            assert (tokenizer.speaker, tokenizer.speaker_id) == ("<A>", count)
        else:
            assert tokenizer.additional_special_tokens == ["<A>"]
        tokenizer.save_pretrained(folder)
        tokenizer = ReformerTokenizer.from_pretrained(folder)


def test_tokens_can_be_added(tokenizer):
    count = len(tokenizer)
    assert tokenizer.add_tokens(["<new>", "worst case"]) == 2
    assert tokenizer.add_tokens("<new>") == tokenizer.add_tokens(["</s>"]) == 0
    assert (len(tokenizer), tokenizer.vocab_size) == (count + 2, count)
    text = "the <new> times, the worst case of times"
    ids = tokenizer.encode(text)
    assert [i for i in ids.tolist() if i >= count] == [count, count + 1]
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert "worst case" in tokenizer.tokenize(text)
    assert tokenizer.get_vocab()["<new>"] == tokenizer.get_added_vocab()["<new>"] == count
    assert tokenizer.convert_ids_to_tokens([count, 0]) == ["<new>", "<unk>"]
    assert "</s>" not in tokenizer.decode(tokenizer.encode("To</s>"), skip_special_tokens=True)


def test_special_tokens_can_be_added(tokenizer):
    count = len(tokenizer)
    new = {"pad_token": "<pad>", "additional_special_tokens": ["<A>", "<B>"], "cls_token": "</s>"}
    assert tokenizer.add_special_tokens(new) == len(tokenizer) - count == 3
    assert (tokenizer.pad_token_id, tokenizer.cls_token) == (count, "</s>")
    assert tokenizer.extra_special_tokens == ["<A>", "<B>"]
    assert tokenizer.special_tokens_map["pad_token"] == "<pad>"
    assert tokenizer(["To be", "or"], padding=True).input_ids[1, -1] == count
    ids = tokenizer.encode("<A>To be<B>")
    assert ids[[0, -1]].tolist() == [count + 1, count + 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "To be"
    assert tokenizer.add_tokens(["<C>"], special_tokens=True) == 1
    assert tokenizer.decode([count + 3], skip_special_tokens=True) == ""
    more = {"extra_special_tokens": ["<C>"]}
    assert tokenizer.add_special_tokens(more, replace_extra_special_tokens=False) == 0
    assert tokenizer.additional_special_tokens == ["<A>", "<B>", "<C>"]
    tokenizer.additional_special_tokens = ["<C>"]
    assert tokenizer.all_special_tokens[-1] == "<C>"


def test_an_added_token_says_how_it_is_looked_for(tokenizer):
    library = pytest.importorskip("tokenizers", reason=WHY.format("tokenizers"))
    token = library.AddedToken("fox", single_word=True, lstrip=True, rstrip=True, normalized=False)
    plain = tokenizer.encode("foxes")
    assert tokenizer.add_tokens(token) == 1
    new = len(tokenizer) - 1
    assert tokenizer.encode("foxes").tolist() == plain.tolist()
    ids = tokenizer.encode("brown  fox jumps").tolist()
    assert ids == [*tokenizer.encode("brown"), new, *tokenizer.encode("jumps")]


def test_what_was_added_is_saved(tmp_path, tokenizer):
    tokenizer.add_tokens(["<new>"])
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 3
    tokenizer.pad_token_id = tokenizer.eos_token_id
    paths = tokenizer.save_pretrained(tmp_path / "again")
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "again").iterdir())
    text = "To be <new> or<mask>"
    reloaded = type(tokenizer).from_pretrained(tmp_path / "again")
    for back in (reloaded, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert back.get_vocab() == tokenizer.get_vocab()
        assert back.special_tokens_map == tokenizer.special_tokens_map
        assert back.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert back.decode(back.encode(text), skip_special_tokens=True) == "To be <new> or"
        batch = back(["To be or not", "To"], padding=True, truncation=True)
        assert batch.input_ids[0].tolist() == tokenizer.encode("To be or not").tolist()[-3:]
        assert batch.attention_mask[1, 0] == 0
        assert (back.model_max_length, back.pad_token) == (3, "</s>")


def test_fields_of_a_folder_are_honoured_or_kept(folder):
    config = {
        "padding_side": "left", "truncation_side": "left", "max_len": 9, "chat_template": "{{ x }}",
        "pad_token": {"__type": "AddedToken", "content": "</s>", "lstrip": True},
        "clean_up_tokenization_spaces": True, "eos_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"sep_token": {"content": "<sep>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    shorter = tokenizer(["To be or not", "To"], padding=True)["attention_mask"][1]
    assert shorter.tolist() == sorted(shorter)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (9, "</s>")
    assert (tokenizer.eos_token, tokenizer.sep_token_id) == (None, len(tokenizer) - 1)
    tokenizer.sep_token = None
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved["chat_template"] == "{{ x }}"
    assert saved["clean_up_tokenization_spaces"] is True
    back = ReformerTokenizer.from_pretrained(folder, padding_side="right")
    assert (back.padding_side, back.truncation_side) == ("right", "left")
    assert (back.eos_token, back.sep_token, back.model_max_length) == (None, None, 9)
    assert len(back) == len(tokenizer)


def test_sections_of_a_tokenizer_json_say_the_sides(tmp_path):
    library = pytest.importorskip("tokenizers", reason=WHY.format("tokenizers"))
    write_tokenizer_json(tmp_path)
    path = tmp_path / "tokenizer.json"
    model = library.Tokenizer.from_file(str(path))
    model.enable_padding(direction="left", pad_token="</s>", pad_id=1)
    model.enable_truncation(5, direction="left")
    model.save(str(path))
    tokenizer = ReformerTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert tokenizer.pad_token == "</s>"
    (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "right"}')
    assert ReformerTokenizerFast.from_pretrained(tmp_path).padding_side == "right"


def test_without_special_tokens_texts_keep_their_order_and_types(tmp_path):
    library = pytest.importorskip("tokenizers", reason=WHY.format("tokenizers"))
    write_tokenizer_json(tmp_path)
    path = tmp_path / "tokenizer.json"
    model = library.Tokenizer.from_file(str(path))
    model.post_processor = library.processors.TemplateProcessing(
        single="$A:1 </s>:0", pair="$B </s> $A:1", special_tokens=[("</s>", 1)]
    )
    model.save(str(path))
    tokenizer = ReformerTokenizerFast.from_pretrained(tmp_path)
    one, two = (tokenizer.encode(text, None, False).tolist() for text in ("To", "be that"))
    plain = {"add_special_tokens": False, "return_token_type_ids": True}
    alone = tokenizer("To", **plain)
    assert (alone.input_ids.tolist(), alone.token_type_ids.tolist()) == ([one], [[1] * len(one)])
    pair = tokenizer("To", "be that", **plain)
    assert pair.input_ids.tolist() == [two + one]
    assert pair.token_type_ids.tolist() == [[0] * len(two) + [1] * len(one)]


@pytest.mark.parametrize("name", ["add_bos_token", "add_eos_token"])
def test_a_folder_may_say_that_texts_begin_and_end_with_a_token(folder, name):
    config = {"bos_token": "<s>", "eos_token": "</s>", name: True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    plain = tokenizer.encode("To be", add_special_tokens=False).tolist()
    bos = [tokenizer.bos_token_id] * (name == "add_bos_token")
    eos = [tokenizer.eos_token_id] * (name == "add_eos_token")
    row = [*bos, *plain, *eos]
    assert tokenizer.encode("To be").tolist() == row
    batch = tokenizer("To be", "To be", return_token_type_ids=True)
    assert batch.input_ids.tolist() == [row * 2]
    assert batch.token_type_ids.tolist() == [[0] * len(row) + [1] * len(row)]
    cut = tokenizer("To be", "To be", truncation="only_first", max_length=2 * len(row) - 1)
    assert cut.input_ids.tolist() == [[*bos, *plain[:-1], *eos, *row]]
    assert tokenizer.num_special_tokens_to_add(pair=True) == 2
    with pytest.raises(ValueError, match=r"^max_length must be more than the 2 special tokens"):
        tokenizer("To be", "To be", truncation=True, max_length=2)
    assert tokenizer.tokenize("To be") == tokenizer.convert_ids_to_tokens(plain)
    tokenizer.save_pretrained(folder)
    assert ReformerTokenizer.from_pretrained(folder).encode("To be").tolist() == row


def test_a_tokenizer_json_may_add_tokens_to_texts(tmp_path):
    pytest.importorskip("tokenizers", reason=WHY.format("tokenizers"))
    write_tokenizer_json(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": [first, end], "pair": [first, end, second, end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    tokenizer = ReformerTokenizerFast.from_pretrained(tmp_path)
    # once for each text, wherever special tokens are in it
    plain = tokenizer.encode("To</s>be", add_special_tokens=False).tolist()
    assert plain.count(1) == 1
    assert tokenizer.encode("To</s>be").tolist() == [*plain, 1]
    batch = tokenizer("To</s>be", "To</s>be", return_token_type_ids=True)
    assert batch.input_ids.tolist() == [[*plain, 1, *plain, 1]]
    assert batch.token_type_ids.tolist() == [[0] * (len(plain) + 1) + [1] * len(plain) + [0]]


def test_the_pieces_alone_can_be_saved(tmp_path, folder):
    tokenizer = ReformerTokenizer.from_pretrained(folder)
    [file] = (folder / name for name in ("spiece.model", "tokenizer.json")
              if (folder / name).is_file())  # fmt: skip
    data = file.read_bytes()
    file.unlink()  # it is not needed any more
    assert tokenizer.save_vocabulary(tmp_path) == (str(tmp_path / file.name),)
    path = tmp_path / f"mine-{file.name}"
    assert tokenizer.save_vocabulary(str(tmp_path), "mine") == (str(path),)
    assert path.read_bytes() == (tmp_path / file.name).read_bytes() == data
    # a file of any name is saved under the one that is looked for
    ReformerTokenizer(path).save_pretrained(tmp_path / "again")
    again = ReformerTokenizer.from_pretrained(tmp_path / "again")
    assert again.encode(LINES[0]).tolist() == tokenizer.encode(LINES[0]).tolist()
    assert ReformerTokenizer.from_pretrained(path).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(NotADirectoryError, match=r"^save_directory: there is no folder"):
        tokenizer.save_vocabulary(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"^save_directory[: ]"):
        tokenizer.save_vocabulary(None)


def test_pairs_have_types(tokenizer):
    question, text = tokenizer.encode("To be?"), tokenizer.encode("that is the question")
    batch = tokenizer("To be?", "that is the question", return_token_type_ids=True)
    assert list(batch) == ["input_ids", "token_type_ids", "attention_mask"]
    assert batch.input_ids[0].tolist() == [*question, *text]
    assert batch.token_type_ids[0].tolist() == [0] * len(question) + [1] * len(text)
    assert list(tokenizer("To be?", "or not")) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("pading_side", "padding_side"), ("pad_tokn", "pad_token"), ("eos_token_ids", "eos_token_id"),
     ("add_token", "add_tokens")],
)  # fmt: skip
def test_a_misspelt_attribute_is_refused_with_the_nearest_name(tokenizer, name, meant):
    message = rf"^{name}: a ReformerTokenizer.* has no such attribute; did you mean {meant}\?$"
    with pytest.raises(AttributeError, match=message):
        setattr(tokenizer, name, "left")
    with pytest.raises(AttributeError, match=message):
        getattr(tokenizer, name)


def test_a_lone_surrogate_is_named_wherever_texts_go(tokenizer):
    bad, before = "a\ud800", tokenizer.get_vocab()
    for call, name in (
        (lambda: tokenizer.encode(bad), "text"),
        (lambda: tokenizer.tokenize(bad), "text"),
        (lambda: tokenizer("a", bad), "text_pair"),
        (lambda: tokenizer(["a", bad], padding=True), "text: item 1"),
        (lambda: tokenizer.add_tokens(["b", bad]), "new_tokens"),
        (lambda: tokenizer.add_special_tokens({"cls_token": "b", "pad_token": bad}), "pad_token"),
        (lambda: setattr(tokenizer, "pad_token", bad), "pad_token"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} .* lone surrogate '\\ud800' at position 1"):
            call()
    assert tokenizer.get_vocab() == before
    assert tokenizer.cls_token is None
    assert tokenizer.convert_tokens_to_ids(bad) == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t: t.add_tokens([3]), "new_tokens"),
        (lambda t: t.add_tokens([""]), "new_tokens"),
        (lambda t: t.add_tokens(None), "new_tokens"),
        (lambda t: t.add_tokens(["a"], special_tokens="yes"), "special_tokens"),
        (lambda t: t.add_special_tokens(["<pad>"]), "special_tokens_dict"),
        (lambda t: t.add_special_tokens({"padd_token": "<pad>"}), "padd_token"),
        (lambda t: t.add_special_tokens({"pad_token": 3}), "pad_token"),
        (lambda t: t.add_special_tokens({"extra_special_tokens": "<A>"}), "extra_special_tokens"),
        (lambda t: setattr(t, "pad_token", 3), "pad_token"),
        (lambda t: setattr(t, "pad_token_id", 10**6), "ids"),
        (lambda t: setattr(t, "extra_special_tokens", ["<A>"]), "additional_special_tokens"),
        (lambda t: t.decode([5.7]), "ids"),
        (lambda t: t.decode(np.ma.array([1], mask=[True])), "ids"),
        (lambda t: t.convert_ids_to_tokens([True]), "ids"),
        (lambda t: t.convert_tokens_to_ids([3]), "tokens"),
        (
            lambda t: t.decode([1], clean_up_tokenization_spaces=True),
            "clean_up_tokenization_spaces",
        ),
        (lambda t: t("a", return_tensors="pt"), "return_tensors"),
        (lambda t: t.encode("a", retrun_tensors="np"), "retrun_tensors"),
        (lambda t: t(b"a"), "text"),
    ],
)
def test_bad_arguments_are_named(tokenizer, call, name):
    before = len(tokenizer)
    with pytest.raises((TypeError, ValueError), match=rf"^{name}[: ]"):
        call(tokenizer)
    assert len(tokenizer) == before


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"padding_side": "both"}, "padding_side"),
        ({"padding_side": ""}, "padding_side"),
        ({"truncation_side": 3}, "truncation_side"),
        ({"add_eos_token": "yes"}, "add_eos_token"),
        ({"split_special_tokens": 1}, "split_special_tokens"),
        ({"model_input_names": ["labels"]}, "model_input_names"),
        ({"model_max_length": "long"}, "model_max_length"),
        ({"model_max_length": -4}, "model_max_length"),
        ({"eos_token": 3}, "eos_token"),
        ({"additional_special_tokens": "<A>"}, "additional_special_tokens"),
        ({"added_tokens_decoder": {"x": {"content": "<A>"}}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"0": {"content": "<A>"}}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"500": {"content": "</s>"}}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ({"pad_token": "a\ud800"}, "pad_token"),
    ],
)
def test_what_a_folder_cannot_say_is_named(folder, config, name):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises((TypeError, ValueError), match=rf"^{name}[: ]"):
        ReformerTokenizer.from_pretrained(folder)


def test_each_class_takes_its_own_file_first_and_else_the_other(tmp_path):
    write_spiece(tmp_path)
    write_tokenizer_json(tmp_path)
    assert "spiece.model" in repr(ReformerTokenizer.from_pretrained(tmp_path))
    assert "tokenizer.json" in repr(ReformerTokenizerFast.from_pretrained(tmp_path))


def test_what_is_wrong_is_named(tokenizer, folder):
    with pytest.raises(TypeError, match=r"^text must be a str, got bytes"):
        tokenizer.encode(b"bytes")
    with pytest.raises(ValueError, match=r"^ids[: ]"):
        tokenizer.decode([10**6])
    with pytest.raises(ValueError, match=r"^pad_token must be a token of the vocabulary"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(ValueError, match=r"^return_tensors[: ]"):
        tokenizer("a", return_tensors="pt")
    with pytest.raises(TypeError, match=r"^colour[: ]"):
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
        with pytest.raises(ValueError, match=f"{name} is not a "):
            ReformerTokenizer(path)


@pytest.mark.parametrize(
    ("name", "library"), [("spiece.model", "sentencepiece"), ("tokenizer.json", "tokenizers")]
)
def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ImportError, match=rf"^this tokenizer needs the {library} library: .*\[hf\]"
    ):
        ReformerTokenizer.from_pretrained(tmp_path)
