"""Against transformers' answers that make_fixtures.py froze: no torch needed."""

import json
from pathlib import Path

import numpy as np
import pytest

from . import ours
from .cases import Case

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.npz"))


def below(arrays, prefix):
    found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return {name: value.item() if value.ndim == 0 else value for name, value in found.items()}


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def frozen(request):
    """The case, its arrays, and our model with its weights."""
    with np.load(request.param) as file:
        arrays = dict(file)
    fields = json.loads(str(arrays.pop("case")))
    fields.pop("transformers")
    groups = {group: below(arrays, f"{group}.") for group in ("inputs", "targets", "extras")}
    case = Case(**fields, **groups)
    model = ours.our_model(case, np.float32)
    for name, array in below(arrays, "weights.").items():
        model.parameters[name] = array
    return case, arrays, model


def test_outputs_and_losses(frozen):
    case, arrays, model = frozen
    rotations = list(below(arrays, "evaluated_rotations.").values())
    actual = ours.evaluate(model, case, rotations)
    ours.assert_same(actual, below(arrays, "evaluated."), np.float32)


def test_gradients_of_every_weight(frozen):
    case, arrays, model = frozen
    if not below(arrays, "trained."):
        pytest.skip("transformers cannot train on this case: no loss, or a ragged length")
    rotations = list(below(arrays, "trained_rotations.").values())
    actual = ours.train(model, case, rotations)
    ours.assert_same(actual, below(arrays, "trained."), np.float32)


def test_the_fixtures_are_there():
    assert len(FIXTURES) == 11
