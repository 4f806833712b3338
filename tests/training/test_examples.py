"""Examples as batches: a function of the seed and the step; padding changes no prediction."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c.training.classification import Classification
from reformer_c.training.data import Windows
from reformer_c.training.examples import Example, Examples, batches_of, split_examples
from reformer_c.training.records import Record
from reformer_c.training.train import Trainer

TEXTS = ["ab", "cd cd cd cd", "e", "fg fg fg fg fg fg fg", "hij hij"]


def rows_of(*lengths):
    return [np.full(n, i + 1) for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=7), st.integers(1, 9), st.integers(0, 3))
def test_each_pass_has_every_example_once(lengths, batch, seed):
    rows = [Example(ids, {"labels": i}) for i, ids in enumerate(rows_of(*lengths))]
    data = Examples(rows, batch=batch, seed=seed)
    batches = [data.batch(step) for step in range(len(rows))]
    seen = np.concatenate([b["labels"] for b in batches])
    for start in range(0, len(seen) - len(rows) + 1, len(rows)):
        assert sorted(seen[start : start + len(rows)]) == [*range(len(rows))]
    for b in batches:
        assert b["input_ids"].shape[1] == max(lengths[i] for i in b["labels"])
        for ids, mask, i in zip(b["input_ids"], b["attention_mask"], b["labels"]):
            assert ids[mask == 1].tolist() == rows[i].ids.tolist()
            assert not ids[mask == 0].any()
    # another object, and any order of steps, gives the same batches
    again = Examples(rows, batch=batch, seed=seed)
    for step in (len(rows) - 1, 0):
        assert all(np.array_equal(again.batch(step)[name], value)
                   for name, value in batches[step].items())  # fmt: skip


def test_what_identifies_the_data():
    def checksum(*pairs):
        rows = [Example(np.array(ids), {"labels": label}) for ids, label in pairs]
        return Examples(rows).describe()["checksum"]

    first = checksum(([5, 6], 0), ([7], 1))
    assert first == checksum(([5, 6], 0), ([7], 1))
    others = [(([5], 0), ([6, 7], 1)), (([5, 6], 1), ([7], 1)), (([5, 6], 0), ([8], 1))]
    assert first not in {checksum(*pairs) for pairs in others}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch": 0}, "batch must be"), ({"order": "shuffled"}, "order must be"),
     ({"seed": -1}, "seed must be"), ({"bach": 2}, "did you mean batch?")],
)  # fmt: skip
def test_wrong_arguments_are_named(options, words):
    with pytest.raises((TypeError, ValueError), match=words.replace("?", r"\?")):
        Examples([Example(np.array([1]), {})], **options)
    with pytest.raises(ValueError, match="examples must have at least one"):
        Examples([])


@given(st.integers(0, 50), st.floats(0, 0.99))
def test_a_split_has_every_example_once(count, share):
    train, held = split_examples(count, share, seed=1)
    assert sorted([*train, *held]) == [*range(count)]
    assert len(held) == round(count * share)


def classifier(problem, labels, **changes):
    config = small_config(
        is_decoder=False, vocab_size=258, problem_type=problem, num_labels=len(labels),
        id2label=dict(enumerate(labels)), **changes,
    )  # fmt: skip
    task = Classification(rc.ByteTokenizer(), problem, labels, length=42)
    return rc.ReformerForSequenceClassification(config, rng=0), task


def records(labels):
    return [
        Record(f"x:{i}", {"text": t, "label": y}) for i, (t, y) in enumerate(zip(TEXTS, labels))
    ]


@pytest.mark.parametrize(("length", "cut"), [(20, 0), (11, 1), (7, 2), (6, 3)])
def test_texts_as_long_as_the_model_are_not_called_truncated(length, cut):
    _, task = classifier("single_label_classification", ["a", "b", "c"])
    task = replace(task, length=length)  # texts have 2, 11, 1, 20 and 7 bytes
    examples = task.examples(records("abcab"))
    assert sum(example.is_cut for example in examples) == cut
    note = f"{cut} texts of more than {length} tokens, truncated" if cut else ""
    assert task.note(example.is_cut for example in examples) == note


def test_predictions_are_those_of_each_text_alone(monkeypatch):
    model, task = classifier("single_label_classification", ["a", "b", "c"])
    rows = [task.encode(record) for record in records("abcab")]
    together = task.logits(model, rows, seed=0)
    alone = np.concatenate([model(row[None], rng=0).logits for row in rows])
    assert_close(together, alone, "replay")
    rows = rows * 2
    assert sorted(len(index) for index, _ in batches_of(rows)) == [2] * 5
    monkeypatch.setattr("reformer_c.training.examples.BATCH_TOKENS", 1)
    assert [len(index) for index, _ in batches_of(rows)] == [1] * 10
    assert_close(task.logits(model, rows, seed=0), np.concatenate([alone, alone]), "replay")


@pytest.mark.parametrize(
    ("problem", "labels", "values"),
    [
        ("single_label_classification", ["a", "b", "c"], "abcab"),
        ("multi_label_classification", ["a", "b", "c"], ["a", "a, b", "", ["c"], ["b", "c"]]),
        ("regression", ["label"], ["1", 2.5, "-3e-1", 0, "4"]),
    ],
)
def test_the_loss_of_an_evaluation_is_that_of_training(problem, labels, values):
    model, task = classifier(problem, labels)
    examples = task.examples(records(values))
    metrics = task.evaluate(model, examples, seed=0)
    for threads in (1, 3):
        with rc.num_threads(threads):
            assert task.evaluate(model, examples, seed=0) == metrics
    data = Examples(examples, order="sequential")
    losses = [model(**data.batch(i), rng=0).loss for i in range(5)]
    loss, _ = model.loss_and_gradients(**Examples(examples, batch=5).batch(0), rng=0)
    assert metrics["loss"] == pytest.approx(np.mean(losses))
    assert np.isfinite(loss)
    names = {"regression": ["mean absolute error", "pearson"]}.get(problem, ["accuracy", "f1"])
    assert [*metrics] == [*names, "loss"]
    found = task.predict(model, records(values), seed=0)
    assert task.predict(model, records([None] * 5), seed=0) == found  # without labels


def test_predicted_probabilities():
    model, task = classifier("multi_label_classification", ["a", "b"])
    logits = task.logits(model, [task.encode(r) for r in records("aaaaa")], seed=0)
    for row, found in zip(logits, task.predict(model, records("aaaaa"))):
        p = 1 / (1 + np.exp(-row.astype(float)))
        assert [*found["scores"].values()] == np.round(p, 6).tolist()
        assert found["prediction"] == [name for name, one in zip("ab", p) if one > 0.5]
    single = replace(task, problem="single_label_classification")
    for row, found in zip(logits, single.predict(model, records("aaaaa"))):
        p = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum()
        assert [*found["scores"].values()] == np.round(p, 6).tolist()
        assert found["prediction"] == "ab"[row.argmax()]


@pytest.mark.parametrize(
    ("problem", "value", "words"),
    [
        ("single_label_classification", "d", "x:1: label must be one of a, b, c, got 'd'"),
        ("single_label_classification", "", "x:1: label must be a text or an integer, got ''"),
        ("single_label_classification", 1.5, "x:1: label must be a text or an integer, got 1.5"),
        ("single_label_classification", ["a"], "x:1: label must be a text or an integer"),
        ("multi_label_classification", "a,d", "x:1: label must be one of a, b, c, got 'd'"),
        ("multi_label_classification", 3, "x:1: label must be a list of texts or integers, got 3"),
        ("regression", "high", "x:1: label must be a finite number, got 'high'"),
        ("regression", "nan", "x:1: label must be a finite number, got 'nan'"),
        ("regression", True, "x:1: label must be a finite number, got True"),
    ],
)
def test_a_wrong_label_is_named_with_its_place(problem, value, words):
    _, task = classifier(problem, ["a", "b", "c"])
    first = {"regression": 1}.get(problem, "a")
    with pytest.raises(ValueError, match=r".") as raised:
        task.examples(records([first, value, first, first, first]))
    assert words in str(raised.value)


def test_a_trainer_measures_with_a_function():
    model, task = classifier("single_label_classification", ["a", "b"])
    examples = task.examples(records("ababa"))
    trainer = Trainer(
        model, Examples(examples, batch=2), steps=2, evaluate_every=2,
        held_out=lambda model, *, seed: task.evaluate(model, examples, seed=seed),
    )  # fmt: skip
    first, second = trainer
    assert first.held_out is None
    assert second.bits_per_byte is None
    assert second.held_out == trainer.measure_held_out() == task.evaluate(model, examples)
    with pytest.raises(ValueError, match="held_out must be given to evaluate"):
        Trainer(model, Windows(np.arange(50) % 7, 10)).evaluate()
