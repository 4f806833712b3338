"""Masked language modelling: which tokens are masked, the metrics, and what fills a mask."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import random_ids, small_config
from tolerances import TOLERANCES

import reformer_c as rc
from reformer_c.models.inputs import IGNORE
from reformer_c.training.data import Sequences, Windows
from reformer_c.training.masking import Masked, MaskedLanguageModel, mask_tokens
from reformer_c.training.records import Record
from reformer_c.training.train import Trainer

TASK = MaskedLanguageModel(rc.ByteTokenizer(), length=42)
TEXT = random_ids((1000,), v=20) + 97


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 9))
def test_labels_are_the_tokens_that_were_chosen(b, t, seed):
    ids = random_ids((b, t), seed) + 2
    masked, labels = mask_tokens(ids, 1, np.arange(2, 15), np.random.default_rng(seed))
    chosen = labels != IGNORE
    assert chosen.any()
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(masked[~chosen], ids[~chosen])
    assert masked.min() >= 1


def test_shares_of_masked_replaced_and_unchanged_tokens():
    ids = np.full((10, 10_000), 5)
    masked, labels = mask_tokens(ids, 1, np.arange(100, 200), np.random.default_rng(0))
    chosen = masked[labels != IGNORE]
    share = TOLERANCES["share"]
    assert len(chosen) / ids.size == pytest.approx(0.15, abs=share)
    for kind, expected in ((chosen == 1, 0.8), (chosen >= 100, 0.1), (chosen == 5, 0.1)):
        assert kind.mean() == pytest.approx(expected, abs=share)


def test_bytes_are_replaced_by_bytes():
    assert TASK.replacements.tolist() == [*range(2, 258)]


@pytest.mark.parametrize(
    "data",
    [Windows(TEXT, 40, batch=3, seed=4), Windows(TEXT, 30, batch=2, offset=9),
     Sequences([TEXT[:30], TEXT[30:35]])],
)  # fmt: skip
def test_batches_are_a_function_of_the_step(data):
    masked = Masked(data, TASK)
    again = masked.batch(5)
    assert all(np.array_equal(again[name], value) for name, value in masked.batch(5).items())
    ids = data.batch(5)
    arguments = ids if isinstance(ids, dict) else {"input_ids": ids}
    labels = again["labels"]
    restored = np.where(labels == IGNORE, again["input_ids"], labels)
    assert np.array_equal(restored, arguments["input_ids"])
    assert ("position_ids" in again) == bool(data.offset)
    assert masked.describe()["kind"] == type(data).__name__


@pytest.fixture(scope="module")
def model():
    return rc.ReformerForMaskedLM(small_config(is_decoder=False, vocab_size=258), rng=0)


def test_metrics_are_those_of_the_masked_tokens(model):
    texts = [TEXT[:42], TEXT[50:60]]
    found = TASK.evaluate(model, texts, seed=3)
    losses, right, count = [], 0, []
    for text in texts:
        rng = np.random.default_rng((3, zlib.crc32(text.astype(np.int64).tobytes())))
        masked, labels = mask_tokens(text[None], 1, TASK.replacements, rng)
        output = model(masked, labels=labels, rng=3)
        losses.append(output.loss)
        count.append(np.count_nonzero(labels != IGNORE))
        right += np.count_nonzero(output.logits.argmax(-1) == labels)
    loss = np.average(losses, weights=count)
    assert found["loss"] == pytest.approx(loss)
    assert found["accuracy"] == right / sum(count)
    assert found["perplexity"] == pytest.approx(np.exp(loss))
    for threads in (1, 3):
        with rc.num_threads(threads):
            assert TASK.evaluate(model, texts, seed=3) == found


def test_masks_of_a_text_depend_neither_on_other_texts_nor_on_the_model():
    seen = []

    class Spy:
        def __init__(self, vocab_size):
            self.config = SimpleNamespace(vocab_size=vocab_size)

        def __call__(self, ids, rng):
            seen.extend(row.tolist() for row in ids)
            return SimpleNamespace(logits=np.zeros((*ids.shape, 258)))

    text = TEXT[:42]
    for vocab_size, texts in ((258, [text]), (2**21, [TEXT[60:102], text])):
        seen.clear()
        TASK.evaluate(Spy(vocab_size), texts)
        if len(texts) == 1:
            alone = list(seen)
    assert all(row in seen for row in alone)


def test_a_model_learns_masked_tokens(model):
    text = np.tile(TEXT[:8], 40)
    trainer = Trainer(
        model, Masked(Windows(text, 40, batch=4), TASK), rc.AdamW(model.parameters, lr=1e-2),
        steps=60, held_out=lambda model, *, seed: TASK.evaluate(model, [text], seed=seed),
    )  # fmt: skip
    before = trainer.measure_held_out()
    reports = list(trainer)
    assert reports[0].bits_per_byte is None
    assert trainer.measure_held_out()["loss"] < before["loss"] / 2


def test_masks_are_filled(model):
    records = [Record("x:1", {"text": "a[MASK]c[MASK]"}), Record("x:2", {"text": "[MASK]\u00e9"})]
    first, second = TASK.predict(model, records, seed=0)
    ids = TASK.encode(records[0])
    assert ids.tolist() == [99, 1, 101, 1]
    logits = model(ids[None], rng=0).logits[0, [1, 3], 2:].astype(float)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [len(each) for each in first["masks"]] == [5, 5]
    scores = [[one["score"] for one in each] for each in first["masks"]]
    assert scores == np.round(-np.sort(-p, axis=1)[:, :5], 6).tolist()
    filled = ids.copy()
    filled[[1, 3]] = p.argmax(axis=1) + 2
    assert first["prediction"] == rc.ByteTokenizer().decode(filled)
    assert second["prediction"].endswith("\u00e9")


@pytest.mark.parametrize(
    ("text", "words"),
    [("none", r"x:1: text must contain \[MASK\], got 'none'"),
     ("[MASK]" * 43, "x:1: text must have at most 42 tokens, got 43")],
)  # fmt: skip
def test_a_text_that_cannot_be_filled_is_named(text, words, model):
    with pytest.raises(ValueError, match=words):
        TASK.predict(model, [Record("x:1", {"text": text})])


def test_a_tokenizer_needs_a_mask():
    with pytest.raises(ValueError, match="tokenizer must have a mask_token, got"):
        MaskedLanguageModel(SimpleNamespace(mask_token_id=None), 4)


def test_subwords_have_their_own_mask(tmp_path):
    library = pytest.importorskip("tokenizers", reason="needs the tokenizers library: .[hf]")
    pieces = library.ByteLevelBPETokenizer()
    pieces.train_from_iterator(["a bc d " * 40], vocab_size=260, show_progress=False)
    pieces.save(str(tmp_path / "tokenizer.json"))
    tokenizer = rc.ReformerTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    task = MaskedLanguageModel(tokenizer, length=42)
    assert task.mask_token_id not in task.replacements
    config = small_config(is_decoder=False, vocab_size=len(tokenizer))
    model = rc.ReformerForMaskedLM(config, rng=0)
    [found] = task.predict(model, [Record("x:1", {"text": "a <mask>"})])
    assert found["prediction"].startswith("a")
    assert "<mask>" not in found["prediction"]
