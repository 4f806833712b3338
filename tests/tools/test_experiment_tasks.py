"""The paper's experiments on pictures, translation, expressions and series: what they compute."""

import gettext
import json
import struct
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close, tolerance

import reformer_c as rc

pytest.importorskip("experiments", reason="needs the sources")
pytest.importorskip("safetensors", reason="runs save models")

enwik8, figure4, forecasting, listops, pictures, table4, program = (
    import_module(f"experiments.{name}")
    for name in (
        "enwik8", "figure4", "forecasting", "listops", "pictures", "table4", "__main__"
    )
)  # fmt: skip


def run(capsys, *arguments):
    with rc.num_threads(1):
        program.main([*map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        program.main([*map(str, arguments)])
    return capsys.readouterr().err


# ---- forecasting ----

SETTINGS = forecasting.SIZE | forecasting.QUICK | {"horizon": 8, "seed": 0}


@pytest.fixture(scope="module")
def hours():
    return forecasting.prepare([], SETTINGS)


def test_parts_are_twelve_four_and_four_months_and_later_ones_know_earlier_hours():
    settings = {"months": [12, 4, 4], "known": 96}
    first, second, third = (forecasting.windows(part, 192, settings) for part in range(3))
    assert (first[0], first[-1]) == (0, 8640 - 96 - 192)
    assert (second[0] + 96, second[-1] + 96 + 192) == (8640, 11520)
    assert (third[0] + 96, third[-1] + 96 + 192) == (11520, 14400)
    assert len(third) == 2880 - 192 + 1


def test_the_calendar_and_the_values_are_those_of_the_file(tmp_path):
    file = tmp_path / "series.csv"
    rows = [f"2016-07-{1 + i // 24:02} {i % 24:02}:00:00,{i},{-i * i}" for i in range(48)]
    file.write_text("\n".join(["date,a,b", *rows]))
    dates, values = forecasting.read(file, 30)
    assert (dates[29].day, dates[29].hour) == (2, 5)
    np.testing.assert_array_equal(values[:, 1], -(np.arange(30.0) ** 2))
    with pytest.raises(ValueError, match="must have at least 49 hours, got 48"):
        forecasting.read(file, 49)


def test_least_squares_find_a_linear_rule(hours):
    # the next value of a sine is a linear function of the last two
    t = np.arange(len(hours.values))[:, None]
    waves = np.sin(2 * np.pi * t / np.array([24, 10])).astype(np.float32)
    hours = forecasting.Hours(waves, hours.calendar, {})
    model = forecasting.Linear(hours, SETTINGS)
    found = forecasting.errors(model.forecast, hours, forecasting.windows(2, 8, SETTINGS), SETTINGS)
    assert found["mae"] < tolerance("four_places")


@pytest.mark.parametrize("name", ["values", "changes"])
def test_the_gradient_of_a_forecaster_is_the_derivative_of_its_loss(name, hours):
    model = forecasting.Forecaster(hours, SETTINGS | {"model": name})
    batch = forecasting.Batches(hours, SETTINGS).batch(0)
    starts = batch["inputs_embeds"][:, 0]
    known, ahead = forecasting.parts(hours.values, starts, SETTINGS)
    np.testing.assert_array_equal(ahead, batch["labels"])
    loss, gradients = model.loss_and_gradients(**batch, rng=0)
    assert set(gradients) == set(model.parameters)
    # the loss is that of the forecasts
    errors = model.forecast(starts, known) - ahead
    assert loss == pytest.approx(float((errors**2).mean()))
    # the head's gradient, which is that of a linear map of the states: exact for its bias
    expected = 2 * errors.sum((0, 1)) / errors.size
    assert_close(gradients["output.bias"], expected, "model_backward", "float32")
    # all others: a small step along the gradient changes the loss as much as its norm says
    norm = np.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
    weights = {name: array.copy() for name, array in model.parameters.items()}
    for step in (1e-2, -1e-2):
        for name, array in model.parameters.items():
            array[...] = weights[name] + np.float32(step / norm) * gradients[name]
        moved, _ = model.loss_and_gradients(**batch, rng=0)
        assert (moved - loss) / step == pytest.approx(norm, rel=tolerance("deviation"))


def test_changes_do_not_depend_on_the_level_of_a_series(hours):
    model = forecasting.Forecaster(hours, SETTINGS | {"model": "changes"})
    starts = np.arange(3)
    known, _ = forecasting.parts(hours.values, starts, SETTINGS)
    found = model.forecast(starts, known + np.float32(4))
    assert_close(found - 4, model.forecast(starts, known), "large_mean", "float32")


# ---- listops ----


def value_of(symbols):
    """The value of an expression, by a stack."""
    stack = []
    for symbol in symbols:
        if symbol != "]":
            stack.append(symbol if symbol.startswith("[") else int(symbol))
            continue
        values = []
        while not isinstance(stack[-1], str):
            values.append(stack.pop())
        ordered = sorted(values)
        middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2
        by = {"[MIN": ordered[0], "[MAX": ordered[-1], "[MED": middle, "[SM": sum(values) % 10}
        stack.append(by[stack.pop()])
    (value,) = stack
    return value


def test_expressions_have_their_value_and_the_lengths_depths_and_arguments_of_the_arena():
    assert value_of("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 ] ]".split()) == 6
    train, test = listops.expressions(3, 60, 20, 50, 300)
    assert (len(train), len(test)) == (60, 20)
    assert len({tuple(x.ids) for x in (*train, *test)}) == 80
    names = {i: name for name, i in listops.IDS.items()}
    depths, most = set(), set()
    for example in (*train, *test):
        first, *symbols = (names[i] for i in example.ids)
        assert first == listops.FIRST
        assert 50 <= len(symbols) <= 300
        assert value_of(symbols) == example.targets["labels"]
        counts = [0]
        for symbol in symbols:
            if symbol == "]":
                most.add(counts.pop())
                continue
            counts[-1] += 1
            if symbol.startswith("["):
                counts.append(0)
            depths.add(len(counts) - 1)
        assert counts == [1]
    assert max(depths) == listops.MAX_DEPTH
    assert (min(most), max(most)) == (2, listops.MAX_ARGUMENTS)


def test_guesses_are_the_most_frequent_values_of_the_training_part():
    rows = [("[MIN", 1), ("[MIN", 1), ("[MAX", 8), ("[MAX", 9), ("[MAX", 9), ("[MAX", 9)]
    train = [
        listops.Example([0, listops.IDS[name], 5, value], {"labels": value}) for name, value in rows
    ]
    assert listops.guessed(train, train, 1) == 3 / 6
    assert listops.guessed(train, train, 2) == 5 / 6
    assert listops.guessed(train, train, 4) == 1
    assert listops.guessed(train[:2], train, 2) == 2 / 6


# ---- pictures ----


def test_a_model_evaluated_as_it_was_trained_is_as_at_the_end_of_its_training(capsys, tmp_path):
    image = pytest.importorskip("PIL.Image")
    run(capsys, "figure4", "--quick", "--set", "completed=2", "--save", tmp_path)
    data = figure4.prepare([], figure4.SIZE | figure4.QUICK)
    lines = json.loads((tmp_path / "figure4.json").read_text())["runs"]
    assert len(lines) == 5
    for line in lines:
        result = line["result"]
        name = figure4.name_of(line["settings"]["trained"], line["settings"]["count"])
        assert result["evaluated"][name] == result["held_out"][-1][1]
        assert len(set(result["evaluated"].values())) > 2
    # rows of the kept half, a completion and the picture, enlarged
    scale = figure4.SCALE
    with image.open(tmp_path / "full-seed-0" / "completions.png") as file:
        whole = np.asarray(file)[::scale]
    side = 8 * scale
    kept, made, original = (whole[:8, i * (side + 2) :][:, :side:scale] for i in range(3))
    np.testing.assert_array_equal(original, data.held_out[0])
    np.testing.assert_array_equal(made[:4], original[:4])
    np.testing.assert_array_equal(kept[:4], original[:4])
    assert (kept[4:] == 128).all()


def test_pictures_are_those_of_files_of_which_a_tenth_is_held_out(tmp_path):
    some = np.stack(figure4.discs(30))
    np.save(tmp_path / "discs.npy", some)
    data = figure4.prepare([tmp_path / "discs.npy"], figure4.QUICK)
    assert len(data.train) == 27
    assert len(data.held_out) == 2  # of three
    assert data.about["shape"] == [8, 8, 3]


def test_letters_of_a_font_are_no_pictures():
    pytest.importorskip("PIL", reason="needs Pillow")
    from PIL import ImageFont

    texts = [*pictures.characters()]
    assert len(set(texts)) == len(texts)
    assert "\N{GRINNING FACE}" in texts
    assert "\N{REGIONAL INDICATOR SYMBOL LETTER D}\N{REGIONAL INDICATOR SYMBOL LETTER E}" in texts
    assert "\N{ZERO WIDTH JOINER}" not in texts
    font = ImageFont.load_default()
    assert pictures.draw(font, "A", 16) is None
    assert pictures.draw(font, "A" * 100, 16) is None


# ---- translation ----


def write_catalogue(file, messages):
    """A catalogue of gettext: a table of its sorted messages, and one of their translations."""
    sides = [[text.encode() for text in side] for side in zip(*sorted(messages.items()))]
    count, place = len(messages), 28 + 16 * len(messages)
    table, texts = b"", b""
    for text in [*sides[0], *sides[1]]:
        table += struct.pack("<2I", len(text), place + len(texts))
        texts += text + b"\0"
    file.write_bytes(
        struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + table + texts
    )


def test_pairs_are_the_messages_of_catalogues(tmp_path):
    messages = {f"Open {i}": f"Öffne {i}" for i in range(20)}
    header = {"": "Content-Type: text/plain; charset=UTF-8\n"}
    write_catalogue(tmp_path / "a.mo", header | messages | {"two\nlines": "zwei\nZeilen"})
    with open(tmp_path / "a.mo", "rb") as file:
        assert gettext.GNUTranslations(file).gettext("Open 3") == "Öffne 3"
    train, test = table4.read([tmp_path / "a.mo"])
    assert dict([*train, *test]) == messages
    assert len(test) == 2


def test_numbers_in_words_are_tested_on_other_numbers():
    train, test = table4.numbers()
    assert not set(train) & set(test)
    assert len({*train, *test}) == 6**3
    assert train[0] == ("one one two", "eins eins zwei")


def test_byte_pairs_spell_every_sentence():
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    train, test = table4.numbers()
    tokenizer = table4.make_tokenizer(train, 300)
    assert len(tokenizer) == 300
    for text in (test[0].target, "Übermorgen \N{SNOWMAN}"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    words = table4.make_tokenizer([pair[::-1] for pair in train], 300)
    assert words.encode(test[0].target).tolist() == tokenizer.encode(test[0].target).tolist()


def test_resampled_scores_are_those_of_the_same_sentences_for_each_model():
    targets = [f"this is the sentence number {i} of all" for i in range(8)]
    wrong = ["something else that is of another kind"] * 4
    perfect = table4.resampled(targets, targets, 5)
    assert perfect == [100.0] * 5
    half = table4.resampled([*targets[:4], *wrong], targets, 5)
    assert half == table4.resampled([*targets[:4], *wrong], targets, 5)
    assert len(set(half)) > 1
    assert max(half) < 100
    assert table4.interval(np.arange(101)) == "2.5 to 97.5"


# ---- enwik8 ----


def test_a_power_of_the_weights_is_found_and_what_is_not_measured_is_named(capsys, tmp_path):
    command = ["enwik8", "--quick", "--set", "measured=false", "--save", tmp_path]
    printed = run(capsys, *command)
    assert "| not measured |" in printed
    assert "by the measured step" not in printed
    runs = json.loads((tmp_path / "enwik8.json").read_text())["runs"]
    # 4 operations of a multiplication and an addition for each weight and byte
    weights = runs[0]["result"]["weights"]
    assert f"{4 * 2 * weights * 1024 * 8 * 20_000:.1e} operations" in printed
    for line in runs[1:]:
        line["result"]["held_out"][-1][1] = 3 * line["result"]["weights"] ** -0.25
    *_, law, slope = enwik8.sizes(runs)
    assert slope == pytest.approx(-0.25)
    assert law(10**8) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["listops", "{file}"], "listops reads none"),
        (["forecasting", "{file}", "{file}"], "reads one file, got 2"),
        (["forecasting", "--set", "months=[1]"], "months must be three numbers >= 1, got [1]"),
        (["table4", "{file}"], "four aligned files, or .mo, got 1 files"),
        (["table4", "--quick", "--set", "validated=1000"], "more than 1000 pairs, got 194"),
        (["figure4", "{file}"], "must be a picture"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, words, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("no data")
    arguments = [word.format(file=tmp_path / "a.txt") for word in arguments]
    assert words in refused(capsys, *arguments)
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "a.txt"]
