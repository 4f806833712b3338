"""ByteTokenizer: every byte string comes back as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_c.tokenizer import ByteTokenizer

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
        (lambda: ByteTokenizer("long"), "model_max_length"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        call()
