"""Against live transformers: outputs, losses and every gradient of all five models."""

import numpy as np
import pytest

from . import ours
from .cases import COUNT, LENGTHS, MASKS, MODELS, draw_case
from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

from . import live

CASES = [draw_case(seed) for seed in range(COUNT)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description)
def test_outputs_and_losses(case, dtype):
    model = ours.our_model(case, dtype)
    theirs, rotations = live.evaluate(live.their_model(case, model), case, dtype)
    ours.assert_same(ours.evaluate(model, case, rotations), theirs, dtype)


TRAINABLE = [case for case in CASES if case.trains and case.targets]
# a causal language model has nothing to say about a text of one token
TRAINABLE = [
    case
    for case in TRAINABLE
    if case.model != "ReformerModelWithLMHead" or case.inputs["input_ids"].shape[1] > 1
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.description)
def test_gradients_of_every_weight(case, dtype):
    model = ours.our_model(case, dtype)
    theirs, rotations = live.train(live.their_model(case, model), case, dtype)
    ours.assert_same(ours.train(model, case, rotations), theirs, dtype)


def test_the_cases_cover_what_they_should():
    assert len(CASES) >= 40
    assert len(TRAINABLE) >= 20
    descriptions = " | ".join(case.description for case in CASES)
    for kind in (*MODELS, *LENGTHS, *(f"mask {side}" for side in MASKS)):
        assert kind in descriptions
