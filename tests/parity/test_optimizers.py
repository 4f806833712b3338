"""AdamW against torch's and Adafactor against transformers', over several steps."""

import numpy as np
import pytest
from tolerances import tolerance

from reformer_c.training.optim import Adafactor, AdamW

from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

import torch
from transformers.optimization import Adafactor as TransformersAdafactor

SHAPES = {"scalar": (), "bias": (7,), "weight": (33, 70), "axial": (5, 1, 6), "batch": (2, 3, 4, 5)}
STEPS = 12
LIMIT = tolerance("parity_optimizer", "float32")


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: np.array(scale * rng.standard_normal(s), np.float32) for name, s in SHAPES.items()
    }


def compare(ours, theirs, options):
    """The largest difference of any weight after the steps, as a share of the largest weight."""
    mine = draw(0)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(a.copy())) for name, a in mine.items()}
    optimizer = ours(mine, **options)
    reference = theirs(parameters.values(), **options)
    for step in range(1, STEPS + 1):
        # gradients of many sizes, so that clipping, eps and decay all matter at some step
        grads = draw(step, scale=10.0 ** (step % 5 - 3))
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        optimizer.step(grads)
        reference.step()
    return max(
        np.abs(array - parameters[name].detach().numpy()).max() / np.abs(array).max()
        for name, array in mine.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.0},
        {"lr": 3e-3, "betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_adamw_takes_torchs_steps(options):
    assert compare(AdamW, torch.optim.AdamW, options) < LIMIT


MANUAL = {"lr": 1e-2, "relative_step": False}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warmup_init": True},
        {"scale_parameter": False},
        {"beta1": 0.9},
        {"weight_decay": 0.1},
        {"clip_threshold": 0.3},
        {"decay_rate": -0.5},
        {"eps": (1e-3, 0.5)},
        MANUAL,
        MANUAL | {"scale_parameter": False, "beta1": 0.5, "weight_decay": 0.2},
        MANUAL | {"scale_parameter": False, "clip_threshold": 2.0, "eps": (1e-8, 1e-2)},
    ],
    ids=str,
)
def test_adafactor_takes_transformers_steps(options):
    assert compare(Adafactor, TransformersAdafactor, options) < LIMIT
