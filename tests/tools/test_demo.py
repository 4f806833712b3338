"""The demo: its output is computed, and a seed reproduces it."""

import io

import numpy as np
import pytest
from tolerances import tolerance

import reformer_c as rc
from reformer_c.tools.demo import (
    ByteStream,
    bigram_bits_per_byte,
    encode,
    python_text,
    run_demo,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models here are too small for more."""
    with rc.num_threads(1):
        yield


@pytest.fixture(scope="module")
def result():
    screen = io.StringIO()
    return run_demo(quick=True, steps=6, length=1024, seed=1, stream=screen), screen.getvalue()


def test_the_text_is_real_and_long_enough():
    text, name = python_text()
    assert len(text) > 200_000
    assert b"the" in text
    assert name


def test_standard_library_sources_stand_in_where_the_reference_is_absent(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    text, name = python_text()
    assert name == "sources of Python's standard library"
    assert len(text) == 500_000
    assert b"import" in text


def test_the_demo_trains_compares_and_writes(result):
    measured, printed = result
    assert measured.steps == 6
    assert 0 < measured.bits_per_byte < 8
    assert len(measured.written) <= 200
    assert [row.num_hashes for row in measured.report] == [1, 2, 4, 8]
    for row in measured.report:
        assert 0.0 <= row.recall <= 1.0
        assert row.error >= 0.0
    for number in (measured.bits_per_byte, measured.bigram_bits_per_byte):
        assert f"{number:.3f}" in printed
    assert str(measured.report) in printed
    assert measured.written.decode(errors="replace") in printed


def test_a_seed_repeats_the_demo(result):
    again = run_demo(quick=True, steps=6, length=1024, seed=1, stream=io.StringIO())
    assert again.bits_per_byte == result[0].bits_per_byte
    assert again.written == result[0].written
    assert [row.recall for row in again.report] == [row.recall for row in result[0].report]


def test_steps_are_chosen_to_fit_the_time():
    measured = run_demo(quick=True, seconds=1e-6, length=1024, stream=io.StringIO())
    assert measured.steps == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"seconds": 0.0}, "seconds"),
        ({"length": 100}, "length"),
        ({"length": 10**6}, "length"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        run_demo(quick=True, stream=io.StringIO(), **arguments)


def test_bigrams_are_counted_on_the_training_text_alone():
    train, held_out = encode(b"ab" * 500), encode(b"abababab")
    # each count is 500 or 499, plus 0.1, of 500 + 25.8
    expected = -np.log2(500.1 / 525.8)
    found = bigram_bits_per_byte(train, held_out, length=8)
    assert abs(found - expected) < tolerance("three_digits")
    assert bigram_bits_per_byte(train, encode(b"zzzzzzzz"), length=8) == pytest.approx(np.log2(258))


def test_bigrams_do_not_predict_the_first_byte_of_a_window():
    train = encode(b"abcd" * 500)
    joined = encode(b"abcdabxd")
    assert bigram_bits_per_byte(train, joined[:6], length=6) < 0.1
    # x begins a window and is given; the next byte is not predicted
    expected = (5 * -np.log2(500.1 / 525.8) + np.log2(258)) / 6
    assert abs(bigram_bits_per_byte(train, joined, length=6) - expected) < tolerance("three_digits")


def test_a_stream_waits_for_the_end_of_a_character():
    screen = io.StringIO()
    stream = ByteStream(screen)
    seen = []
    for token in encode("a€".encode()):
        stream(np.array([token]))
        seen.append(screen.getvalue())
    assert seen == ["a", "a", "a", "a€"]
    stream(encode(b"\xe2"))
    stream.end()
    assert screen.getvalue() == "a€\N{REPLACEMENT CHARACTER}"
    assert stream.bytes == "a€".encode() + b"\xe2"
