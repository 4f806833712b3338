"""Freeze a few cases with transformers' answers, for where torch is not installed.

    PYTHONPATH=tests python -m parity.make_fixtures

writes tests/parity/fixtures/*.npz: the configuration as JSON, weights, inputs, rotations, and
transformers' outputs, loss and gradients in float32. It also writes two files of torch.save, one in
each of its formats, and what is in them.
"""

import json
from pathlib import Path

import numpy as np

from . import live, ours
from .cases import draw_cases

FIXTURES = Path(__file__).parent / "fixtures"
# a length and a kind of mask for some of the seeds: every model, length, mask and kind of layer,
# both kinds of positions, and the activations with weights
CHOSEN = {
    0: ("ragged", "left"),
    1: ("multiple", "none"),
    4: ("multiple", "both"),
    7: ("multiple", "right"),
    13: ("multiple", "left"),
    16: ("ragged", "both"),
    17: ("shorter than a chunk", "right"),
    20: ("one", "none"),
    23: ("multiple", "both"),
    26: ("multiple", "left"),
    28: ("shorter than a chunk", "none"),
    32: ("ragged", "right"),
}


def freeze(seed, length, masked):
    assert not live.APPLIES_BIAS, "the fixtures are of version 5"
    (case,) = (c for c in draw_cases(seed, length) if f"mask {masked} " in c.description)
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


def torch_files():
    """The dictionary of tensors that test_pickled.py expects in zip.bin and legacy.bin."""
    torch = live.torch
    grid = torch.arange(24.0).reshape(2, 3, 4)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.linspace(i, i + 1, parameter.numel()).reshape(parameter.shape))
    state = module.state_dict()  # an OrderedDict that has attributes
    return state | {
        "grid": grid,
        "transposed": grid.permute(2, 0, 1),
        "part": grid[1, ::2, 1:],
        "one row, twice": grid[0, 0].expand(2, 4),
        "scalar": torch.tensor(-1e9),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.tensor([0.5, -2.0])),
        "double": torch.tensor([1e-300], dtype=torch.float64),
        "half": torch.tensor([0.5, 65504], dtype=torch.float16),
        "bfloat16": torch.tensor([1.5, -3e38], dtype=torch.bfloat16),
        "long": torch.tensor([-(2**62), 7]),
        "int": torch.tensor([3], dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "byte": torch.tensor([255], dtype=torch.uint8),
    }


def freeze_torch_files():
    state = torch_files()
    live.torch.save(state, FIXTURES / "zip.bin")
    live.torch.save(state, FIXTURES / "legacy.bin", _use_new_zipfile_serialization=False)
    arrays = {
        name: (tensor.float() if name == "bfloat16" else tensor).detach().numpy()
        for name, tensor in state.items()
    }
    np.savez(FIXTURES / "torch_files.npz", **arrays)


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    freeze_torch_files()
    for seed, (length, masked) in CHOSEN.items():
        print(freeze(seed, length, masked).description)
