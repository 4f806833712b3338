"""ByteTokenizer: every byte string comes back as it was. What all tokenizers do with batches."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reformer_c as rc
from reformer_c.text.byte_tokenizer import ByteTokenizer

tokenizer = ByteTokenizer()


@given(st.binary())
def test_bytes_come_back_as_they_were(data):
    ids = tokenizer.encode(data)
    assert ids.dtype == np.int64
    assert ids.tolist() == [byte + 2 for byte in data]
    assert tokenizer.decode_bytes(ids) == data


@given(st.text())
def test_text_comes_back_as_it_was(text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_no_text_show_as_replacement_characters():
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\N{REPLACEMENT CHARACTER}b"


def test_undecodable_names_keep_their_bytes():
    name = b"a\xff".decode("utf-8", errors="surrogateescape")
    assert tokenizer.decode_bytes(tokenizer.encode(name)) == b"a\xff"


@given(st.text(st.characters(categories=["Cs", "L"])))
def test_a_lone_surrogate_is_named_with_its_place_or_keeps_its_byte(text):
    wrong = [i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"]
    wrong = [i for i in wrong if not "\udc80" <= text[i] <= "\udcff"]
    if not wrong:
        bytes_of = text.encode("utf-8", errors="surrogateescape")
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == bytes_of
        return
    message = rf"^text .* lone surrogate '\\u{ord(text[wrong[0]]):x}' at position {wrong[0]}$"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(text)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda text: tokenizer(text), "text"),
        (lambda text: tokenizer(["a", text], padding=True), "text: item 1"),
        (lambda text: tokenizer("a", text), "text_pair"),
        (lambda text: tokenizer([("a", "b"), ("a", text)], padding=True), "text_pair: item 1"),
    ],
)
def test_a_lone_surrogate_is_named_wherever_texts_go(call, name):
    with pytest.raises(ValueError, match=rf"^{name} .* lone surrogate '\\ud800' at position 1$"):
        call("a\ud800")


def test_one_id_is_a_row():
    assert tokenizer.decode(99) == "a"
    assert tokenizer.batch_decode(np.array([99, 100])) == ["a", "b"]


def test_special_ids_have_no_bytes():
    assert tokenizer.decode_bytes([0, 1, 67, 0]) == b"A"
    assert tokenizer.decode([]) == ""
    assert len(tokenizer) == tokenizer.vocab_size == 258
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_and_masked(side):
    batch = tokenizer(["abc", b"d", ""], padding=True, padding_side=side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (3, 3)
    assert mask.sum(axis=1).tolist() == [3, 1, 0]
    assert (ids[mask == 0] == 0).all()
    assert mask[1].tolist() == ([1, 0, 0] if side == "right" else [0, 0, 1])
    assert tokenizer.batch_decode(ids) == ["abc", "d", ""]


def test_padding_may_go_to_a_multiple():
    assert tokenizer.pad([[5] * 5, [6]], pad_to_multiple_of=4)["input_ids"].shape == (2, 8)


def test_one_text_is_a_batch_of_one():
    assert tokenizer("abc")["input_ids"].tolist() == [[99, 100, 101]]


def test_one_array_is_a_batch_where_that_is_wanted():
    assert tokenizer.encode("abc").tolist() == [99, 100, 101]
    for text in ("abc", b"abc"):
        assert tokenizer.encode(text, return_tensors="np").tolist() == [[99, 100, 101]]
        assert tokenizer(text, return_tensors="np")["input_ids"].tolist() == [[99, 100, 101]]
    assert tokenizer("abc", return_tensors=None).input_ids.tolist() == [[99, 100, 101]]
    padded = tokenizer.encode("abc", padding="max_length", max_length=4, return_tensors="np")
    assert padded.tolist() == [[99, 100, 101, 0]]
    assert tokenizer.pad([[5]], return_tensors="np")["input_ids"].tolist() == [[5]]


def test_a_batch_has_its_arrays_as_attributes_too():
    batch = tokenizer("abc", return_token_type_ids=True)
    assert list(batch) == ["input_ids", "token_type_ids", "attention_mask"]
    assert batch.input_ids is batch["input_ids"]
    assert list(tokenizer("abc", return_attention_mask=False)) == ["input_ids"]
    with pytest.raises(AttributeError, match=r"^input_id: .*; did you mean input_ids\?$"):
        batch.input_id  # noqa: B018
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert again.input_ids.tolist() == batch.input_ids.tolist()


def test_pairs_follow_one_another_and_have_types():
    for call in (
        lambda **options: tokenizer(["ab", "c"], ["d", "ef"], **options),
        lambda **options: tokenizer([("ab", "d"), ("c", "ef")], **options),
        lambda **options: tokenizer.batch_encode_plus([["ab", "d"], [b"c", b"ef"]], **options),
    ):
        batch = call(return_token_type_ids=True)
        assert tokenizer.batch_decode(batch.input_ids) == ["abd", "cef"]
        assert batch.token_type_ids.tolist() == [[0, 0, 1], [0, 1, 1]]
        assert "token_type_ids" not in call()
    padded = tokenizer(["ab", "c"], ["d", ""], padding=True, return_token_type_ids=True)
    assert padded.token_type_ids.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert padded.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokenizer.decode(tokenizer.encode("ab", "d")) == "abd"


@pytest.mark.parametrize(
    ("strategy", "length", "right", "left"),
    [
        (True, 4, "abxy", "cdyz"),
        (True, 5, "abcxy", "bcdyz"),
        ("longest_first", 6, "abcxyz", "bcdxyz"),
        ("only_first", 4, "axyz", "dxyz"),
        ("only_second", 5, "abcdx", "abcdz"),
        ("do_not_truncate", None, "abcdxyz", "abcdxyz"),
    ],
)
def test_pairs_are_cut_where_the_strategy_says(strategy, length, right, left):
    first, second = "abcd", "xyz"
    options = {"truncation": strategy, "max_length": length}
    assert tokenizer.decode(tokenizer(first, second, **options).input_ids[0]) == right
    other = ByteTokenizer(truncation_side="left")
    assert other.decode(other(first, second, **options).input_ids[0]) == left
    options["truncation_side"] = "left"
    assert tokenizer.decode(tokenizer.encode(first, second, **options)) == left


def test_a_pair_is_what_a_model_answers_questions_about():
    config = rc.ReformerConfig(
        attn_layers=["local"], vocab_size=258, hidden_size=8, num_attention_heads=2,
        attention_head_size=4, feed_forward_size=8, axial_pos_embds=False,
        max_position_embeddings=64, is_decoder=False, local_attn_chunk_length=16,
    )  # fmt: skip
    model = rc.ReformerForQuestionAnswering(config, rng=0)
    inputs = tokenizer("Who?", "Nobody.", return_tensors="np")
    outputs = model(**inputs)
    assert outputs.start_logits.shape == inputs.input_ids.shape == (1, 11)
    assert tokenizer.decode(inputs.input_ids[0, 4:11], skip_special_tokens=True) == "Nobody."


def test_sides_and_length_are_attributes():
    one = ByteTokenizer()
    one.padding_side = "left"
    assert one.pad([[5], [6, 7]])["input_ids"].tolist() == [[0, 5], [6, 7]]
    one = ByteTokenizer(padding_side="left")
    assert one.pad([[5], [6, 7]])["input_ids"].tolist() == [[0, 5], [6, 7]]
    assert one(["a", "bc"], padding=True).input_ids[0].tolist() == [0, 99]
    assert one(["a", "bc"], padding=True, padding_side="right").input_ids[0].tolist() == [99, 0]
    one.padding_side = "right"
    one.truncation_side = "left"
    one.model_max_length = 2
    assert one("abc", truncation=True).input_ids.tolist() == [[100, 101]]
    assert one("a", padding="max_length").input_ids.tolist() == [[99, 0]]
    one.model_max_length = int(1e30)  # what transformers has for: none
    assert one.model_max_length is None
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again.truncation_side == "left"


def test_what_a_call_returns_is_an_attribute():
    one = ByteTokenizer()
    assert one.model_input_names == ["input_ids", "attention_mask"]
    one.model_input_names = ["input_ids", "token_type_ids"]
    assert list(one("a", "b")) == ["input_ids", "token_type_ids"]
    assert list(one("a", return_token_type_ids=False)) == ["input_ids"]


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: tokenizer("a", paddding=True), "padding"),
        (lambda: tokenizer.encode("a", truncate=True, max_length=1), "truncation"),
        (lambda: tokenizer.pad([[5]], pad_side="left"), "padding_side"),
        (lambda: tokenizer.decode([5], skip_special_token=True), "skip_special_tokens"),
        (lambda: tokenizer.batch_decode([[5]], skip_specials=True), "skip_special_tokens"),
        (lambda: ByteTokenizer(pading_side="left"), "padding_side"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest_name(call, meant):
    with pytest.raises(TypeError, match=rf"has no such argument; did you mean {meant}\?$"):
        call()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("padding_side", "both", ValueError),
        ("truncation_side", None, ValueError),
        ("model_max_length", 0, ValueError),
        ("model_max_length", 2.5, TypeError),
        ("model_max_length", True, TypeError),
        ("model_input_names", ["attention_mask"], ValueError),
        ("model_input_names", ["input_ids", "labels"], ValueError),
        ("vocab_size", 300, AttributeError),
        ("pad_token_id", 3, AttributeError),
    ],
)
def test_what_an_attribute_cannot_be_is_refused(name, value, error):
    one = ByteTokenizer()
    with pytest.raises(error, match=rf"^{name}[: ]"):
        setattr(one, name, value)
    assert one.padding_side == one.truncation_side == "right"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("pading_side", "padding_side"), ("truncationside", "truncation_side"),
     ("model_max_lenght", "model_max_length"), ("encod", "encode")],
)  # fmt: skip
def test_a_misspelt_attribute_is_refused_with_the_nearest_name(name, meant):
    one = ByteTokenizer()
    message = rf"^{name}: a ByteTokenizer has no such attribute; did you mean {meant}\?$"
    with pytest.raises(AttributeError, match=message):
        setattr(one, name, "left")
    with pytest.raises(AttributeError, match=message):
        getattr(one, name)


@pytest.mark.parametrize("name", ["add_tokens", "add_special_tokens"])
def test_bytes_take_no_more_tokens(name):
    with pytest.raises(AttributeError, match=f"^{name}: a ByteTokenizer cannot be extended"):
        getattr(tokenizer, name)


def test_rows_are_padded_as_calls_return_them():
    rows = [tokenizer("ab", return_token_type_ids=True), tokenizer("c", return_token_type_ids=True)]
    flat = [{name: row[name][0].tolist() for name in row} for row in rows]
    expected = tokenizer(["ab", "c"], padding=True, return_token_type_ids=True)
    for kind in (rows, flat, {name: [row[name] for row in flat] for name in flat[0]}):
        batch = tokenizer.pad(kind)
        assert sorted(batch) == sorted(expected)
        assert all((batch[name] == expected[name]).all() for name in batch)
    assert tokenizer.pad({"input_ids": [5, 6]})["input_ids"].tolist() == [[5, 6]]
    assert tokenizer.pad({"input_ids": np.zeros((0, 3), int)})["input_ids"].shape == (0, 0)
    masked = tokenizer.pad({"input_ids": [[5, 6], [7]], "attention_mask": [[0, 1], [1]]})
    assert masked["attention_mask"].tolist() == [[0, 1], [1, 0]]
    long = tokenizer.pad([[5]], padding="max_length", max_length=3, return_attention_mask=False)
    assert {name: array.tolist() for name, array in long.items()} == {"input_ids": [[5, 0, 0]]}


MASKED = np.ma.array([5, 6], mask=[False, True])


def test_truncation_cuts_to_the_length_that_was_asked_for_or_the_models():
    short = ByteTokenizer(model_max_length=2)
    assert short.model_max_length == 2
    assert short("abc", truncation=True)["input_ids"].shape == (1, 2)
    assert short("abc", truncation=True, max_length=1)["input_ids"].shape == (1, 1)
    assert short("abc")["input_ids"].shape == (1, 3)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: tokenizer.encode(3), "text"),
        (lambda: tokenizer(["a", 3]), "text"),
        (lambda: tokenizer(["a", "bc"]), "padding"),
        (lambda: tokenizer("a", truncation=True), "truncation"),
        (lambda: tokenizer("a", max_length=3), "max_length"),
        (lambda: tokenizer("abc", truncation=True, max_length=-1), "max_length"),
        (lambda: tokenizer.decode([258]), "ids"),
        (lambda: tokenizer.decode([-1]), "ids"),
        (lambda: tokenizer.decode([2.0]), "ids"),
        (lambda: tokenizer.decode([[2]]), "ids"),
        (lambda: tokenizer.pad([[1]], padding_side="both"), "padding_side"),
        (lambda: tokenizer.pad([[1]], pad_to_multiple_of=0), "pad_to_multiple_of"),
        (lambda: tokenizer.pad([[[1]]]), "rows"),
        (lambda: ByteTokenizer(0), "model_max_length"),
        (lambda: ByteTokenizer(padding_side="up"), "padding_side"),
        (lambda: tokenizer.pad([[5.7]]), "rows"),
        (lambda: tokenizer.pad([[True]]), "rows"),
        (lambda: tokenizer.pad([["5"]]), "rows"),
        (lambda: tokenizer.pad([[None]]), "rows"),
        (lambda: tokenizer.pad([[-1]]), "rows"),
        (lambda: tokenizer.pad([[2**63]]), "rows"),
        (lambda: tokenizer.pad([[2**64]]), "rows"),
        (lambda: tokenizer.pad([MASKED]), "rows"),
        (lambda: tokenizer.pad([[1], [2, [3]]]), "rows"),
        (lambda: tokenizer.pad("abc"), "rows"),
        (lambda: tokenizer.pad(5), "rows"),
        (lambda: tokenizer.pad(None), "rows"),
        (lambda: tokenizer.pad([{"input_ids": [1]}, {}]), "rows"),
        (lambda: tokenizer.pad({"attention_mask": [[1]]}), "rows"),
        (lambda: tokenizer.pad({"input_ids": [[5.7]]}), "input_ids"),
        (lambda: tokenizer.pad({"input_ids": [[5]], "attention_mask": [[1, 1]]}), "attention_mask"),
        (lambda: tokenizer.pad({"input_ids": [[5]], "labels": [[1]]}), "labels"),
        (lambda: tokenizer.pad([[5], [6, 7]], padding=False), "padding"),
        (lambda: tokenizer.pad([[5]], padding="max_length"), "padding"),
        (lambda: tokenizer.pad([[5]], length=-1), "length"),
        (lambda: tokenizer.pad([[5]], return_tensors="pt"), "return_tensors"),
        (lambda: tokenizer.decode([5.7]), "ids"),
        (lambda: tokenizer.decode([True]), "ids"),
        (lambda: tokenizer.decode("5"), "ids"),
        (lambda: tokenizer.decode([2**63]), "ids"),
        (lambda: tokenizer.decode([[1], [2, 3]]), "ids"),
        (lambda: tokenizer.decode(MASKED), "ids"),
        (lambda: tokenizer.batch_decode([[5], [5.7]]), "ids"),
        (lambda: tokenizer.batch_decode(None), "rows"),
        (lambda: tokenizer.batch_decode("5"), "rows"),
        (lambda: tokenizer.pad({"input_ids": MASKED}), "input_ids"),
        (lambda: tokenizer.pad({"input_ids": 5}), "input_ids"),
        (lambda: tokenizer.pad([{"input_ids": [5]}, [5]]), "rows"),
        (lambda: tokenizer.decode([5], skip_special_tokens="no"), "skip_special_tokens"),
        (lambda: tokenizer("a", return_tensors="pt"), "return_tensors"),
        (lambda: tokenizer.encode("a", return_tensors="tf"), "return_tensors"),
        (lambda: tokenizer("a", return_tensor="np"), "return_tensor"),
        (lambda: tokenizer.encode("a", truncate=True), "truncate"),
        (lambda: tokenizer("a", stride=2), "stride"),
        (lambda: tokenizer("a", return_overflowing_tokens=True), "return_overflowing_tokens"),
        (lambda: tokenizer("a", add_special_tokens="no"), "add_special_tokens"),
        (lambda: tokenizer("a", return_token_type_ids=1), "return_token_type_ids"),
        (lambda: tokenizer("a", padding="left"), "padding"),
        (lambda: tokenizer("a", padding=1), "padding"),
        (lambda: tokenizer("a", truncation="first", max_length=3), "truncation"),
        (lambda: tokenizer("a", truncation="only_second", max_length=3), "truncation"),
        (lambda: tokenizer("a", "bcd", truncation="only_first", max_length=2), "truncation"),
        (lambda: tokenizer("a", padding_side="up"), "padding_side"),
        (lambda: tokenizer("a", truncation_side="up"), "truncation_side"),
        (lambda: tokenizer("a", pad_to_multiple_of=4), "pad_to_multiple_of"),
        (
            lambda: tokenizer(
                "a", padding=True, truncation=True, max_length=6, pad_to_multiple_of=4
            ),
            "pad_to_multiple_of",
        ),
        (lambda: tokenizer(None), "text"),
        (lambda: tokenizer(5), "text"),
        (lambda: tokenizer(np.array("a")), "text"),
        (lambda: tokenizer({"text": "a"}), "text"),
        (lambda: tokenizer({"a", "b"}), "text"),
        (lambda: tokenizer([("a", "b", "c")]), "text"),
        (lambda: tokenizer(["a", ("b", "c")]), "text"),
        (lambda: tokenizer.encode(["a"]), "text"),
        (lambda: tokenizer("a", ["b"]), "text_pair"),
        (lambda: tokenizer(["a"], "b"), "text_pair"),
        (lambda: tokenizer(["a"], ["b", "c"]), "text_pair"),
        (lambda: tokenizer("a", 3), "text_pair"),
        (lambda: ByteTokenizer("long"), "model_max_length"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}[: ]"):
        call()
