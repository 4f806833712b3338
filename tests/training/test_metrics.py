"""Metrics, compared with their definitions: counts of rows, classes and words, one at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import tolerance

from reformer_c.training import metrics

CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)
SETS = st.lists(
    st.tuples(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))), min_size=1, max_size=8
)
ROUNDING = tolerance("rounding", np.float64) * 10


def f1_of(pairs, which):
    """From precision and recall, of the pairs (predicted, label)."""
    found = sum(which(p) and which(y) for p, y in pairs)
    predicted, labels = sum(which(p) for p, _ in pairs), sum(which(y) for _, y in pairs)
    if not found:
        return 0.0
    precision, recall = found / predicted, found / labels
    return 2 / (1 / precision + 1 / recall)


@given(CLASSES)
def test_one_label(pairs):
    predicted, labels = np.array(pairs).T
    assert metrics.accuracy(predicted, labels) == sum(p == y for p, y in pairs) / len(pairs)
    classes = {one for pair in pairs for one in pair}
    expected = np.mean([f1_of(pairs, lambda x, one=one: x == one) for one in classes])
    assert metrics.macro_f1(predicted, labels) == pytest.approx(expected, rel=ROUNDING)


@given(SETS)
def test_several_labels(pairs):
    predicted, labels = (
        np.array([[i in row for i in range(4)] for row in side]) for side in zip(*pairs)
    )
    assert metrics.accuracy(predicted, labels) == sum(p == y for p, y in pairs) / len(pairs)
    flat = [(i in p, i in y) for p, y in pairs for i in range(4)]
    expected = f1_of(flat, bool) if any(map(any, flat)) else 1.0
    assert metrics.micro_f1(predicted, labels) == pytest.approx(expected, rel=ROUNDING)


def test_numbers():
    x, y = np.random.default_rng(0).standard_normal((2, 50, 1))
    assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1], rel=ROUNDING)
    assert metrics.pearson(x, np.ones((50, 1))) == 0.0
    assert metrics.mean_absolute_error(x, y) == np.abs(x - y).mean()


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("The Nile.", ["nile"], 1, 1),
        ("in 1999", ["1999", "the year 1999"], 0, 2 / 3),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 1),
        ("a b b c", ["b b d"], 0, 2 * 2 / (3 + 3)),
        ("U.S.A.", ["usa"], 1, 1),
    ],
)
def test_answers(predicted, answers, exact, f1):
    assert metrics.exact_match(predicted, answers) == exact
    assert metrics.answer_f1(predicted, answers) == pytest.approx(f1)
