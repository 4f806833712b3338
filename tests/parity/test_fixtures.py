"""Against transformers' answers that make_fixtures.py froze: no torch needed."""

import json
from pathlib import Path

import numpy as np
import pytest

from reformer_c.layers.activations import WEIGHTED

from . import ours
from .cases import LENGTHS, MASKS, MODELS, Case

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("[0-9]*.npz"))
# those with a loss, and not of a ragged length, which transformers cannot train on
TRAINED = [path for path in FIXTURES if any(k.startswith("trained.") for k in np.load(path))]


def below(arrays, prefix):
    found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return {name: value.item() if value.ndim == 0 else value for name, value in found.items()}


def thaw(path):
    """The case, its arrays, and our model with its weights."""
    with np.load(path) as file:
        arrays = dict(file)
    fields = json.loads(str(arrays.pop("case")))
    fields.pop("transformers")
    groups = {group: below(arrays, f"{group}.") for group in ("inputs", "targets", "extras")}
    case = Case(**fields, **groups)
    model = ours.our_model(case, np.float32)
    for name, array in below(arrays, "weights.").items():
        model.parameters[name] = array
    return case, arrays, model


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_outputs_and_losses(path):
    case, arrays, model = thaw(path)
    rotations = list(below(arrays, "evaluated_rotations.").values())
    actual = ours.evaluate(model, case, rotations)
    ours.assert_same(actual, below(arrays, "evaluated."), np.float32)


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_gradients_of_every_weight(path):
    case, arrays, model = thaw(path)
    rotations = list(below(arrays, "trained_rotations.").values())
    actual = ours.train(model, case, rotations)
    ours.assert_same(actual, below(arrays, "trained."), np.float32)


def test_the_fixtures_cover_what_they_should():
    cases = [thaw(path)[0] for path in FIXTURES]
    texts = " | ".join(case.description for case in cases)
    for word in (*MODELS, *LENGTHS, *(f"mask {side}" for side in MASKS)):
        assert f" {word} " in texts
    assert {*WEIGHTED} <= {case.config["hidden_act"] for case in cases}
    assert {kind for case in cases for kind in case.config["attn_layers"]} == {"local", "lsh"}
    assert {case.config["axial_pos_embds"] for case in cases} == {True, False}
    assert len(TRAINED) >= 6
