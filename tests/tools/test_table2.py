"""The duplication task: its texts, its loss, how it is evaluated, and how its runs go on."""

import json

import numpy as np
import pytest
from tolerances import assert_close

import reformer_c as rc

pytest.importorskip("experiments", reason="needs the sources")
pytest.importorskip("safetensors", reason="runs save models")

table2 = pytest.importorskip("experiments.table2")
main = pytest.importorskip("experiments.__main__").main


def test_a_duplication_is_twice_a_zero_and_random_symbols():
    data = table2.Duplication(20, 3, seed=1)
    for step in range(5):
        ids = data.batch(step)
        assert ids.shape == (3, 20)
        assert np.array_equal(ids[:, :10], ids[:, 10:])
        assert not ids[:, 0].any()
        assert ids[:, 1:10].min() >= 1
        assert ids.max() <= 127
    assert not np.array_equal(data.batch(0), data.batch(1))
    assert np.array_equal(data.batch(1), table2.Duplication(20, 3, seed=1).batch(1))


def test_the_loss_counts_the_second_word_alone():
    model = table2.make_model("full", 16, 4, 0)
    table2.attend(model, "full", 16)
    ids = table2.Duplication(16, 2).batch(0)
    loss, _ = table2.SecondHalf(model).loss_and_gradients(ids, labels=ids, rng=0)
    z = model(ids).logits.astype(float)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p[:, 8:-1], ids[:, 9:, None], -1).mean()
    assert_close(loss, expected, "forward", "float32")


def test_accuracy_is_the_share_of_the_second_word_that_is_right():
    class Copies:
        """Predicts all but the last symbol of each text."""

        config = table2.make_model("full", 16, 4, 0).config

        def __call__(self, ids, rng):
            after = np.roll(ids, -1, axis=1)
            after[:, -2] = 0
            return type("Output", (), {"logits": np.eye(128)[after]})

    assert table2.accuracy(Copies(), "LSH-4", 16, texts=3, seed=0) == pytest.approx(6 / 7)
    assert Copies.config.num_hashes == 4


def logits(model, name, ids):
    other, replaced = table2.evaluated_as(model, name, ids.shape[1])
    with replaced:
        return other(ids, rng=0).logits


@pytest.fixture
def ids():
    return table2.Duplication(32, 2).batch(0)


def test_full_attention_in_numpy_is_that_of_the_operation():
    q, v = np.random.default_rng(0).standard_normal((2, 1, 2, 24, 8))
    expected = rc.full_attention(q, None, v, shared_qk=True, is_causal=True)
    assert_close(table2.attention(q, v, True, False), expected, "attention")
    ordinary = rc.full_attention(q, q, v, is_causal=True)
    assert_close(table2.attention(q, v, False, True), ordinary, "attention")
    keys = q / np.sqrt(np.mean(q * q, -1, keepdims=True) + 1e-6)
    own = rc.full_attention(q, keys, v, is_causal=True)
    assert_close(table2.attention(q, v, True, True), own, "attention")


def test_a_layer_that_hashes_is_evaluated_with_each_attention(ids):
    model = table2.make_model("LSH-2", 32, 4, 0)
    found = {name: logits(model, name, ids) for name in table2.EVALUATED}
    shared = table2.converted(model, "full_shared")(ids).logits
    assert_close(found["full"], shared, "model_forward", "float32")
    ordinary = table2.converted(model, "full")(ids).logits
    assert_close(found["ordinary"], ordinary, "model_forward", "float32")
    different = [x for name, x in found.items() if name != "full"]
    for i, x in enumerate(different):
        assert not np.array_equal(x, shared)
        assert not any(np.array_equal(x, y) for y in different[:i])


def test_separate_keys_are_those_of_the_layer_and_otherwise_its_queries(ids):
    model = table2.make_model("separate", 32, 4, 0)
    np.testing.assert_array_equal(logits(model, "separate", ids), model(ids).logits)
    hashed = table2.make_model("LSH-2", 32, 4, 1)
    for name, array in hashed.parameters.items():
        array[...] = model.parameters[
            table2.QUERY if name == table2.QUERY.replace("query", "query_key") else name
        ]
    for name in table2.EVALUATED:
        np.testing.assert_array_equal(logits(model, name, ids), logits(hashed, name, ids))


def test_tied_queries_and_keys_stay_the_same_and_have_the_slope_of_both(ids):
    model = table2.make_model("ordinary", 32, 4, 0)
    assert np.array_equal(model.parameters[table2.QUERY], model.parameters[table2.KEY])
    _, apart = table2.SecondHalf(model).loss_and_gradients(ids, labels=ids, rng=0)
    _, tied = table2.SecondHalf(model, tied=True).loss_and_gradients(ids, labels=ids, rng=0)
    for name in (table2.QUERY, table2.KEY):
        np.testing.assert_array_equal(tied[name], apart[table2.QUERY] + apart[table2.KEY])
    assert all(
        np.array_equal(tied[name], apart[name])
        for name in tied
        if name not in (table2.QUERY, table2.KEY)
    )


def test_a_run_goes_on_from_the_lengths_that_it_finished(monkeypatch, capsys, tmp_path):
    changes = ['train=["LSH-2"]', "texts=1"]
    command = ["table2", "--quick", "--set", *changes, "--save", str(tmp_path)]
    main(command)
    printed = capsys.readouterr().out
    assert "steps 2 at 16, 2 at 32" in printed
    # the second length is missing: its model is trained, the first only read
    (tmp_path / "runs.jsonl").unlink()
    (tmp_path / "LSH-2-seed-0" / "32" / "done.json").unlink()
    monkeypatch.setattr(
        table2.SecondHalf, "loss_and_gradients", lambda *_, **__: pytest.fail("trained again")
    )
    main(command)  # from the checkpoint of its last step
    assert capsys.readouterr().out == printed
    done = json.loads((tmp_path / "LSH-2-seed-0" / "32" / "done.json").read_text())
    assert set(done["evaluated"]) == set(table2.EVALUATED)


@pytest.mark.parametrize(
    ("change", "words"),
    [("lengths=[15]", "must be even numbers"), ('train=["LSH-3"]', "train must be of")],
)
def test_bad_settings_are_refused(change, words, capsys):
    with pytest.raises(SystemExit):
        main(["table2", "--set", change])
    assert words in capsys.readouterr().err


def test_a_duplication_grows_from_what_was_learned_of_a_shorter_one():
    """A model that finds i + 1 - 4 from i in texts of 8 finds i + 1 - 12 in texts of 24."""
    short, long = (table2.make_model("full", t, 4, t).parameters for t in (8, 24))
    table = short[table2.POSITIONS]
    table[:] = 0
    # a position of the second half and the place that it looks at have one number
    table[np.arange(4), 0] = np.arange(4)
    table[np.arange(4) + 3, 1] = np.arange(4)
    table2.grow(short, long)
    grown = long[table2.POSITIONS]
    np.testing.assert_array_equal(grown[:12, 0], np.arange(12) // 3)
    np.testing.assert_array_equal(grown[12 - 1 + np.arange(1, 12), 1], np.arange(1, 12) // 3)
    for name in set(long) - {table2.POSITIONS}:
        np.testing.assert_array_equal(long[name], short[name])
