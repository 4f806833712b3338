"""Checkpoints that a run keeps, and the mean of their weights."""

import numpy as np
import pytest
from small_models import random_ids, small_config

import reformer_c as rc
from reformer_c.cli.main import main
from reformer_c.text.byte_tokenizer import ByteTokenizer
from reformer_c.text.folders import folder_tokenizer
from reformer_c.training.averaging import average_models
from reformer_c.training.data import Windows
from reformer_c.training.state import kept_models

KINDS = {
    "lm": lambda seed, **changes: rc.ReformerModelWithLMHead(small_config(**changes), rng=seed),
    "encoder-decoder": lambda seed, **changes: rc.ReformerEncoderDecoder(
        small_config(is_decoder=False, **changes), rng=seed
    ),
}


# ---- the mean ----


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_parameter_is_the_mean(kind, count):
    models = [kind(seed) for seed in range(count)]
    expected = {
        name: np.mean([model.parameters[name] for model in models], axis=0, dtype=np.float64)
        for name in models[0].parameters
    }
    mean = average_models(iter(models))
    assert mean is models[0]
    for name, array in mean.parameters.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name].astype(np.float32))


def test_models_that_differ_are_refused():
    first = KINDS["lm"](0)
    with pytest.raises(ValueError, match=r"^models must be at least one, got none"):
        average_models([])
    with pytest.raises(ValueError, match=r"^models\[1\] must be like models\[0\]: num_hashes is 2"):
        average_models([first, KINDS["lm"](0, num_hashes=1)])
    with pytest.raises(ValueError, match=r"^models\[2\] must be a ReformerModelWithLMHead"):
        average_models([first, KINDS["lm"](1), KINDS["encoder-decoder"](0)])


# ---- a run ----


def trainer(folder, steps, **options):
    model = KINDS["lm"](0)
    data = Windows(random_ids((1, 200))[0], 20)
    optimizer = rc.AdamW(model.parameters, lr=1e-2)
    return rc.Trainer(model, data, optimizer, steps=steps, folder=folder, **options)


def steps_kept(folder):
    return [int(path.name.partition("-")[2]) for path in kept_models(folder)]


def test_a_run_keeps_the_models_of_its_last_checkpoints(tmp_path):
    pytest.importorskip("safetensors")
    run = trainer(tmp_path, 25, save_every=2, keep=3)
    expected = {}
    for report in run:
        expected[report.step] = {name: a.copy() for name, a in run.model.parameters.items()}
    # in the order of steps, not of names
    assert steps_kept(tmp_path) == [22, 24, 25]
    for path, step in zip(kept_models(tmp_path), (22, 24, 25)):
        model = rc.ReformerModelWithLMHead.from_pretrained(path)
        for name, array in model.parameters.items():
            np.testing.assert_array_equal(array, expected[step][name])
    resumed = trainer(tmp_path, 27, save_every=2, keep=3)
    resumed.resume(tmp_path)
    list(resumed)
    assert steps_kept(tmp_path) == [25, 26, 27]


def test_by_default_nothing_is_kept(tmp_path):
    pytest.importorskip("safetensors")
    list(trainer(tmp_path, 4, save_every=2))
    assert steps_kept(tmp_path) == []


def test_keep_needs_a_folder_and_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"^folder must be given with keep"):
        trainer(None, 1, keep=2)
    with pytest.raises(ValueError, match=r"^keep must be"):
        trainer(tmp_path, 1, keep=-1)


# ---- the command line ----


def test_the_command_averages_what_a_run_kept(tmp_path, capsys):
    pytest.importorskip("safetensors")
    text, run, out = tmp_path / "text.txt", str(tmp_path / "run"), str(tmp_path / "out")
    text.write_text("a text of some words " * 100)
    options = ["--layers", "1", "--width", "16", "--length", "32", "--steps", "6", "--threads", "1"]
    options += ["--save", run, "--save-every", "2", "--keep", "2"]
    assert main(["train", str(text), *options]) == 0
    assert main(["average", run, "--output", out]) == 0
    assert "mean of 2: " in capsys.readouterr().out
    four, six = (
        rc.ReformerModelWithLMHead.from_pretrained(f"{run}/checkpoint-{step}") for step in (4, 6)
    )
    mean = rc.ReformerModelWithLMHead.from_pretrained(out)
    expected = average_models([four, six])
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(mean.parameters[name], array)
    assert isinstance(folder_tokenizer(out), ByteTokenizer)
    assert main(["evaluate", out, str(text)]) == 0
    assert main(["average", run, "--output", out]) == 1
    assert "--output: there is a model in" in capsys.readouterr().err


def test_keep_needs_save(capsys):
    assert main(["train", "text.txt", "--keep", "2"]) == 1
    assert "--keep needs --save DIR" in capsys.readouterr().err
