"""Ids and types of texts and pairs, and the files of folders, compared with transformers."""

import io
import json
import re

import pytest

import reformer_c

from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

from . import live

LINES = [
    "It was the best of times, it was the worst of times.",
    "A few months later Raskolnikov walked down the stairs, and out into the street.",
    "To be, or not to be: that is the question.",
    "The quick brown fox jumps over the lazy dog 0123456789 times!",
] * 5
TEXTS = [
    *LINES[:4], "", " ", "To be ", "To be\n", "tab\tend\t", "  two   spaces ", "a</s>b", "a </s> b",
    " </s> ", "x</s></s>", "<unk> x", "snow \N{SNOWMAN}\N{SNOWMAN} man", "newest new",
    "of \N{LATIN SMALL LIGATURE FI}", "a\N{ZERO WIDTH SPACE}b", "the words, word by word",
    "<new> word<new>brand new the x", "the\N{LOWER ONE EIGHTH BLOCK}", "\x7f", "be\x7f \x7f",
]  # fmt: skip
PAIRS = [("To be, or not", "that is"), ("that", "To be, or not to"), ("to be", "to be")]


@pytest.fixture(scope="module")
def pieces():
    library = pytest.importorskip("sentencepiece", reason="needs sentencepiece: the extra [hf]")
    pytest.importorskip("google.protobuf", reason="theirs needs protobuf: the extra [parity]")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=90, model_type="bpe",
        character_coverage=1.0, bos_id=-1, unk_id=0, eos_id=1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def their_tokenizer(folder):
    return live.transformers.ReformerTokenizer.from_pretrained(folder)


def compare(ours, theirs):
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.padding_side == theirs.padding_side
    assert ours.truncation_side == theirs.truncation_side
    assert set(ours.all_special_tokens) >= set(theirs.all_special_tokens)
    named = ours.special_tokens_map
    # they lose those of a name of their own where another one is called *_token
    assert {name: named[name] for name in theirs.special_tokens_map} == theirs.special_tokens_map
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text).tolist() == ids, text
        plain = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False).tolist() == plain, text
        # after a special token theirs adds a space that may not have been there
        tokens = theirs.added_tokens_decoder.values()
        special = "|".join(re.escape(token.content) for token in tokens if token.special)
        expected = re.sub(f"({special}) +", r"\1", theirs.decode(ids))
        assert re.sub(f"({special}) +", r"\1", ours.decode(ids)) == expected, text
    for first, second in PAIRS:
        for options in ({}, {"return_token_type_ids": True}):
            assert as_lists(ours(first, second, **options)) == dict(
                theirs(first, second, **options)
            )
        batch = {"padding": True, "return_tensors": "np", "return_token_type_ids": True}
        if ours.pad_token is not None:
            mine = ours([first, second], [second, ""], **batch)
            assert as_lists(mine) == as_lists(theirs([first, second], [second, ""], **batch))


def as_lists(batch):
    return {name: rows.tolist() if len(rows) > 1 else rows[0].tolist()
            for name, rows in batch.items()}  # fmt: skip


def token(text, **flags):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "rstrip": False,
            "single_word": False, "normalized": False, **flags}  # fmt: skip


FOLDERS = [
    {},
    {"do_lower_case": True, "clean_up_tokenization_spaces": True},
    {"padding_side": "left", "truncation_side": "left", "pad_token": "<pad>"},
    {"add_eos_token": True, "pad_token": "</s>"},
    {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>"},
    {"add_bos_token": True},
    {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    {"extra_special_tokens": ["<new>"], "cls_token": token("fox", lstrip=True, rstrip=True)},
    {"additional_special_tokens": ["<new>"], "mask_token": token("word", single_word=True)},
    {"extra_special_tokens": {"speaker": "<new>"}},
    {"image_token": "<new>"},
    {"eos_token": None},
    {"split_special_tokens": True},
    {"pad_token": "<unk>", "special_tokens_map": {"pad_token": "</s>", "sep_token": "<sep>"}},
    {"added_tokens_decoder": {}, "special_tokens_map": {"pad_token": "</s>"}},
    {"pad_token": "<pad>", "added_tokens": {"<pad>": 90, "<new>": 91}},
    {"added_tokens_decoder": {"90": {"content": "new", "single_word": True}}},
]


@pytest.mark.parametrize("config", FOLDERS, ids=lambda config: ",".join(config) or "no fields")
def test_folders_are_read_and_saved_as_theirs(tmp_path, pieces, config):
    config = dict(config)
    (tmp_path / "spiece.model").write_bytes(pieces)
    for name in ("special_tokens_map", "added_tokens"):
        if name in config:
            (tmp_path / f"{name}.json").write_text(json.dumps(config.pop(name)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = reformer_c.ReformerTokenizer.from_pretrained(tmp_path)
    compare(ours, their_tokenizer(tmp_path))
    # what each writes, both read
    their_tokenizer(tmp_path).save_pretrained(tmp_path / "theirs")
    fast = reformer_c.ReformerTokenizerFast.from_pretrained(tmp_path / "theirs")
    compare(fast, their_tokenizer(tmp_path / "theirs"))
    for name, tokenizer in (("ours", ours), ("fast", fast)):
        tokenizer.save_pretrained(tmp_path / name)
        back = type(tokenizer).from_pretrained(tmp_path / name)
        compare(back, their_tokenizer(tmp_path / name))


@pytest.mark.parametrize("special", [False, True])
def test_texts_and_pairs_are_cut_as_theirs(tmp_path, pieces, special):
    (tmp_path / "spiece.model").write_bytes(pieces)
    config = {"add_eos_token": special, "pad_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = reformer_c.ReformerTokenizer.from_pretrained(tmp_path)
    theirs = their_tokenizer(tmp_path)
    types = {"return_token_type_ids": True}
    for side in ("right", "left"):
        ours.truncation_side = theirs.truncation_side = side
        for length in range(3, 14):
            for strategy in (True, "longest_first", "only_first", "only_second"):
                options = {"truncation": strategy, "max_length": length, **types}
                for first, second in PAIRS:
                    try:
                        expected = dict(theirs(first, second, **options))
                    except Exception:  # "too short", of no class of its own
                        with pytest.raises(
                            ValueError, match=r"^truncation must leave at least one token"
                        ):
                            ours(first, second, **options)
                    else:
                        assert as_lists(ours(first, second, **options)) == expected
            options = {"truncation": True, "padding": "max_length", "max_length": length}
            assert as_lists(ours(TEXTS[0], **options)) == dict(theirs(TEXTS[0], **options))


@pytest.mark.parametrize("fast", [False, True])
def test_tokens_are_added_as_theirs(tmp_path, pieces, fast):
    library = pytest.importorskip("tokenizers", reason="needs tokenizers: the extra [hf]")
    (tmp_path / "spiece.model").write_bytes(pieces)
    theirs = their_tokenizer(tmp_path)
    if fast:
        theirs.save_pretrained(tmp_path)
    name = "ReformerTokenizerFast" if fast else "ReformerTokenizer"
    ours = getattr(reformer_c, name).from_pretrained(tmp_path)
    for add in (
        lambda tokenizer: tokenizer.add_tokens(["<new>", "brand new", "word"]),
        lambda tokenizer: tokenizer.add_tokens(["<new>"]),
        lambda tokenizer: tokenizer.add_special_tokens(
            {"pad_token": "<pad>", "additional_special_tokens": ["the", "<A>"]}
        ),
        lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["<B>"]}),
        lambda tokenizer: tokenizer.add_tokens("<C>", special_tokens=True),
        lambda tokenizer: tokenizer.add_tokens(
            library.AddedToken("fox", lstrip=True, single_word=True)
        ),
    ):
        assert add(ours) == add(theirs)
        compare(ours, theirs)
        assert ours.additional_special_tokens == theirs.extra_special_tokens
        ids = theirs.encode("<A>To <B>be<C>word")
        assert (
            ours.decode(ids, skip_special_tokens=True).split()
            == theirs.decode(ids, skip_special_tokens=True).split()
        )
    # of a piece that there is, theirs counts it, too; the ids are the same
    count = len(theirs)
    ours.add_tokens("\N{LOWER ONE EIGHTH BLOCK}be")
    theirs.add_tokens("\N{LOWER ONE EIGHTH BLOCK}be")
    assert len(ours) == len(theirs) == count


def test_sections_of_their_tokenizer_json_are_read(tmp_path, pieces):
    (tmp_path / "spiece.model").write_bytes(pieces)
    theirs = their_tokenizer(tmp_path)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.padding_side = theirs.truncation_side = "left"
    theirs(["To", LINES[0]], padding=True, truncation=True, max_length=5)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    ours = reformer_c.ReformerTokenizerFast.from_pretrained(tmp_path)
    theirs = their_tokenizer(tmp_path)
    assert ours.padding_side == ours.truncation_side == "left"
    assert ours.pad_token == "<pad>"
    compare(ours, theirs)
