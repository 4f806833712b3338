"""Question answering: where answers are, in windows and in texts, and the metrics."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_config

import reformer_c as rc
from reformer_c.training.examples import Examples
from reformer_c.training.metrics import answer_f1, exact_match
from reformer_c.training.question_answering import QuestionAnswering, Window, _span
from reformer_c.training.records import Record
from reformer_c.training.train import Trainer

BYTES = rc.ByteTokenizer()
TEXTS = st.text(st.sampled_from("ab \u00e9\u20ac\n"), min_size=1, max_size=30)


def record(context, answers, question="q?", **more):
    return Record("x:1", {"question": question, "context": context, "answers": answers} | more)


def squad(text, start):
    return {"text": [text], "answer_start": [start]}


@given(TEXTS, st.data())
def test_positions_are_those_of_the_answer(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    answer = context[start:end]
    if not answer.strip():
        return
    length = data.draw(st.integers(4, 60))
    task = QuestionAnswering(BYTES, length)
    [question] = task.questions([record(context, squad(answer, start))])
    size = len(answer.encode())
    found = 0
    for window in question.windows:
        assert len(window.ids) <= length
        if window.start_position:
            found += 1
            ids = window.ids[window.start_position : window.end_position + 1]
            assert BYTES.decode(ids) == answer
            part = window.context
            first, last = window.start_position - window.first, window.end_position - window.first
            assert (part.starts[first], part.ends[last]) == (start, end)
    # windows overlap by half of the room that the question leaves
    assert found or size > (length - 3) // 2
    whole = np.concatenate([window.context.starts for window in question.windows])
    assert {*whole.tolist()} == {*range(len(context))}


def learn_pieces(folder):
    library = pytest.importorskip("tokenizers", reason="needs the tokenizers library: .[hf]")
    pieces = library.ByteLevelBPETokenizer()
    pieces.train_from_iterator(["the cat sat on the mat. " * 40], vocab_size=280,
                               show_progress=False)  # fmt: skip
    pieces.save(str(folder / "tokenizer.json"))
    return rc.ReformerTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("separator", [None, "</s>"])
def test_subwords_give_whole_words(separator, tmp_path):
    tokenizer = learn_pieces(tmp_path)
    if separator:
        tokenizer.add_special_tokens({"sep_token": separator})
    task = QuestionAnswering(tokenizer, 100)
    context = " The cat\u00e9 sat,\n on  a mat. "
    [question] = task.questions([record(context, ["cat\u00e9 sat"])])
    [window] = question.windows
    first, last = window.start_position - window.first, window.end_position - window.first
    start, end = window.context.starts[first], window.context.ends[last]
    assert context[start:end] == "cat\u00e9 sat,"
    text = tokenizer.decode(window.ids[window.start_position : window.end_position + 1])
    assert text.strip() == "cat\u00e9 sat,"
    before = tokenizer.decode(window.ids[: window.first])
    assert before == ("q?</s>" if separator else "q?\n")


@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 99))
def test_the_best_span_is_the_best_of_all(n, first, seed):
    starts, ends = np.random.default_rng(seed).standard_normal((2, first + n))
    task = QuestionAnswering(BYTES, 99)
    [window] = task.questions([record("x" * n, ["x"], question="q" * (first - 1) or "q")])[
        0
    ].windows
    window = Window(window.ids, first, window.context, 0, 0)
    pairs = {(i, j): starts[first + i] + ends[first + j] for i in range(n) for j in range(i, n)}
    best = max(pairs, key=pairs.get)
    found = _span(starts, ends, window)
    assert (found.start, found.end) == (best[0], best[1] + 1)
    assert found.odds == pytest.approx(pairs[best] - starts[0] - ends[0])
    p = np.exp(starts[first:]) / np.exp(starts[first:]).sum()
    q = np.exp(ends[first:]) / np.exp(ends[first:]).sum()
    assert found.probability == pytest.approx(p[best[0]] * q[best[1]])


CONTEXT = "Rome is old. Rome is big."


@pytest.mark.parametrize(
    ("values", "answers", "start"),
    [
        ({"answers": "Rome"}, ["Rome"], 0),
        ({"answers": ["is big", "Rome"]}, ["is big", "Rome"], 18),
        ({"answers": squad("Rome", 13)}, ["Rome"], 13),
        ({"answers": [{"text": "Rome", "answer_start": 13}]}, ["Rome"], 13),
        ({"answers": [{"text": "Rome"}]}, ["Rome"], 0),
        ({"answer": "Rome", "answer_start": "13"}, ["Rome"], 13),
        ({"answer": "Rome", "answer_start": ""}, ["Rome"], 0),
        ({"answers": "Rome", "is_impossible": False}, ["Rome"], 0),
        ({"answers": "Rome", "is_impossible": None}, ["Rome"], 0),
        ({"answer": "Rome", "is_impossible": "0"}, ["Rome"], 0),
    ],
)
def test_forms_of_answers(values, answers, start):
    row = Record("x:1", {"question": "q", "context": CONTEXT, **values})
    [question] = QuestionAnswering(BYTES, 99).questions([row])
    assert question.answers == answers
    assert question.windows[0].start_position - question.windows[0].first == start


@pytest.mark.parametrize(
    "values",
    [
        {"answers": []},
        {"answers": {"text": [], "answer_start": []}},
        {"answers": [], "is_impossible": True, "plausible_answers": [squad("Rome", 0)]},
        {"is_impossible": True},
        {"is_impossible": "True", "answer": "", "answer_start": ""},
    ],
)
def test_forms_of_no_answer(values):
    row = Record("x:1", {"question": "q", "context": CONTEXT, **values})
    [question] = QuestionAnswering(BYTES, 20).questions([row])
    assert question.answers == []
    assert len(question.windows) == 2
    for window in question.windows:
        assert (window.start_position, window.end_position) == (0, 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"answers": [], "is_impossible": False},
            "x:1: answers must be at least one without is_impossible, got 0",
        ),
        (
            {"answers": "Rome", "is_impossible": True},
            "x:1: answers must be none with is_impossible, got 1",
        ),
        ({"answer": "Rome", "is_impossible": "true"}, "x:1: answers must be none with"),
        ({"answer": "", "is_impossible": ""}, "x:1: an answer must be a text, got ''"),
        (
            {"answers": "Rome", "is_impossible": 3},
            "x:1: is_impossible must be true or false, got 3",
        ),
        ({"answers": squad("Rome", 12)}, "answer_start must be the place of 'Rome' in the context"),
        ({"answers": squad("Rome", "x")}, "in the context, got 'x'"),
        ({"answers": "Oslo"}, "x:1: an answer must be a part of the context, got 'Oslo'"),
        ({"answers": [3]}, "x:1: an answer must be a text, got 3"),
        ({"answers": " "}, "x:1: an answer must be a text, got ' '"),
        ({"answers": 3}, "x:1: answers must be texts, or 'text' and 'answer_start' of SQuAD"),
        ({"answers": {"text": ["a"]}}, "x:1: answers must be texts, or"),
        ({}, "x:1: columns must include 'answers'"),
        ({"answers": "Rome", "question": "q" * 99}, "x:1: question must have fewer than 99 tokens"),
        ({"answers": "Rome", "question": ""}, "x:1: question must be a text, got ''"),
    ],
)
def test_a_wrong_answer_is_named_with_its_place(values, words):
    row = Record("x:1", {"question": "q", "context": CONTEXT, **values})
    with pytest.raises(ValueError, match=r".") as raised:
        QuestionAnswering(BYTES, 99).questions([row])
    assert words in str(raised.value)


RECORDS = [
    record("ab cd ab cd ab cd ab cd ab cd xy", ["xy"]),
    record("ab xy cd", ["xy", "cd"]),
    record("xy", ["xy"]),
]


@pytest.fixture
def model():
    config = small_config(is_decoder=False, vocab_size=258, num_labels=2)
    return rc.ReformerForQuestionAnswering(config, rng=0)


def test_metrics_are_those_of_the_predictions(model):
    task = QuestionAnswering(BYTES, 20)
    questions = task.questions(RECORDS)
    assert [len(question.windows) for question in questions] == [3, 1, 1]
    found = task.evaluate(model, questions, seed=1)
    predicted = [one["prediction"] for one in task.predict(model, RECORDS, seed=1)]
    for metric, name in ((exact_match, "exact match"), (answer_f1, "f1")):
        expected = [metric(one, question.answers) for one, question in zip(predicted, questions)]
        assert found[name] == pytest.approx(np.mean(expected))
    losses = [
        model(example.ids[None], start_positions=[example.targets["start_positions"]],
              end_positions=[example.targets["end_positions"]], rng=1).loss
        for example in task.examples(questions)
    ]  # fmt: skip
    assert found["loss"] == pytest.approx(np.mean(losses))
    for threads in (1, 3):
        with rc.num_threads(threads):
            assert task.evaluate(model, questions, seed=1) == found
    # a prediction needs no answer, and is the same for a question alone
    alone = task.predict(model, [record(RECORDS[1]["context"], None)], seed=1)
    assert json.dumps(alone[0]) == json.dumps(task.predict(model, RECORDS, seed=1)[1])
    start, end = alone[0]["start"], alone[0]["end"]
    assert alone[0]["prediction"] == RECORDS[1]["context"][start:end]


def test_a_model_learns_answers(model):
    task = QuestionAnswering(BYTES, 20)
    questions = task.questions(RECORDS)
    trainer = Trainer(
        model, Examples(task.examples(questions), batch=5),
        rc.AdamW(model.parameters, lr=1e-2), steps=60,
        held_out=lambda model, *, seed: task.evaluate(model, questions, seed=seed),
    )  # fmt: skip
    before = trainer.measure_held_out()
    assert len([*trainer]) == 60
    after = trainer.measure_held_out()
    assert after["loss"] < before["loss"] / 2
    assert after["exact match"] == 1.0


UNANSWERED = [record("ab cd", []), record("ab cd ab cd ab cd ab cd ab cd", [])]


def test_no_answer_is_predicted_where_it_is_likelier(model):
    records = RECORDS + UNANSWERED
    spans = QuestionAnswering(BYTES, 20)
    task = QuestionAnswering(BYTES, 20, may_abstain=True)
    questions = task.questions(records)
    # a bias of the places that mean "none" decides
    logits, expected = spans._logits(model, questions, 1), spans.predict(model, records, seed=1)
    for bias, empty in ((50.0, True), (-50.0, False)):
        shifted = [[(s.copy(), e.copy()) for s, e in rows] for rows in logits]
        for rows in shifted:
            for starts, ends in rows:
                starts[0], ends[0] = bias, bias
        found = [task._best(one, rows) for one, rows in zip(questions, shifted, strict=True)]
        assert [one["prediction"] == "" for one in found] == [empty] * len(found)
        if empty:
            assert found[0] == {"prediction": "", "start": 0, "end": 0, "score": 1.0}
        else:
            assert found == [spans._best(one, rows) for one, rows in zip(questions, shifted)]
    assert all(one["prediction"] for one in expected)


def test_the_probability_of_no_answer_is_that_of_its_places():
    starts, ends = np.random.default_rng(0).standard_normal((2, 8))
    task = QuestionAnswering(BYTES, 20, may_abstain=True)
    [question] = task.questions([record("abcde", [])])
    starts[0] = ends[0] = 3.0
    found = task._best(question, [(starts, ends)])
    odds = np.exp([starts[3:].max() - 3.0, ends[3:].max() - 3.0])
    assert odds.max() < 1
    p, q = (np.exp(3.0) / np.exp(np.append(x[3:], 3.0)).sum() for x in (starts, ends))
    assert found["score"] == round(p * q, 6)


def test_metrics_of_questions_without_an_answer_are_apart(model):
    task = QuestionAnswering(BYTES, 20, may_abstain=True)
    alone = QuestionAnswering(BYTES, 20)
    together = task.evaluate(model, task.questions(RECORDS + UNANSWERED), seed=1)
    answered = task.evaluate(model, task.questions(RECORDS), seed=1)
    unanswered = task.evaluate(model, task.questions(UNANSWERED), seed=1)
    for name in ("exact match", "f1"):
        assert together[f"answerable {name}"] == pytest.approx(answered[name])
        assert together[name] == pytest.approx((3 * answered[name] + 2 * unanswered[name]) / 5)
    assert together["unanswerable exact match"] == unanswered["exact match"] == unanswered["f1"]
    # a model that has to answer is wrong about these
    assert alone.evaluate(model, alone.questions(UNANSWERED), seed=1)["exact match"] == 0.0


def test_a_model_learns_which_questions_have_no_answer(model):
    task = QuestionAnswering(BYTES, 20, may_abstain=True)
    questions = task.questions(RECORDS + UNANSWERED)
    data = Examples(task.examples(questions), batch=8)
    for _ in Trainer(model, data, rc.AdamW(model.parameters, lr=1e-2), steps=80):
        pass
    found = task.evaluate(model, questions)
    assert found["exact match"] == found["unanswerable exact match"] == 1.0
