"""Freeze a few cases with transformers' answers, for where torch is not installed.

    PYTHONPATH=tests python -m parity.make_fixtures

writes tests/parity/fixtures/*.npz: the configuration as JSON, weights, inputs, rotations, and
transformers' outputs, loss and gradients in float32.
"""

import json
from pathlib import Path

import numpy as np

from . import live, ours
from .cases import draw_case

FIXTURES = Path(__file__).parent / "fixtures"
# every model, length, kind of mask and of layer, and both kinds of positions
SEEDS = (0, 3, 4, 5, 6, 9, 13, 16, 17, 21, 22)


def freeze(seed):
    case = draw_case(seed)
    model = ours.our_model(case, np.float32)
    theirs = live.their_model(case, model)
    evaluated, rotations = live.evaluate(theirs, case, np.float32)
    # attention probabilities are large; the live tests compare them
    arrays = {f"evaluated.{k}": v for k, v in evaluated.items() if not k.startswith("attentions.")}
    arrays |= {f"evaluated_rotations.{i}": r for i, r in enumerate(rotations)}
    if case.trains and case.targets:
        trained, rotations = live.train(theirs, case, np.float32)
        arrays |= {f"trained.{name}": value for name, value in trained.items()}
        arrays |= {f"trained_rotations.{i}": r for i, r in enumerate(rotations)}
    arrays |= {f"weights.{name}": array for name, array in model.parameters.items()}
    for group in ("inputs", "targets", "extras"):
        arrays |= {f"{group}.{name}": value for name, value in getattr(case, group).items()}
    fields = {"seed": seed, "model": case.model, "config": case.config, "trains": case.trains}
    fields |= {"description": case.description, "transformers": live.transformers.__version__}
    np.savez_compressed(FIXTURES / f"{seed:02}.npz", case=json.dumps(fields), **arrays)
    return case


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for seed in SEEDS:
        print(freeze(seed).description)
