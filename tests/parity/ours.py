"""A case computed by reformer_c, and the comparison of its numbers."""

import numpy as np
from tolerances import tolerance

import reformer_c.models.model
from reformer_c.models.config import ReformerConfig

# a gradient whose terms cancel, such as the bias before a softmax, carries their rounding: it is
# compared with the largest of all
NOISE = 1e-3


def our_model(case, dtype, *, apply_lm_head_bias=False):
    """With random weights, biases and norms too."""
    config = ReformerConfig(**case.config, apply_lm_head_bias=apply_lm_head_bias)
    model = getattr(reformer_c.models.model, case.model)(config, rng=case.seed, dtype=dtype)
    rng = np.random.default_rng(case.seed)
    for name, array in model.parameters.items():
        if name.endswith("bias") or "layer_norm" in name or "act_fn" in name:
            array += 0.1 * rng.standard_normal(array.shape).astype(array.dtype)
    return model


def evaluation_arguments(case, dtype):
    """What a call in evaluation is given, targets too."""
    return call_arguments(case, case.extras, dtype)


def training_arguments(case, dtype):
    """What a training step is given.

    In the backward pass transformers ignores num_hashes, and in training its axial positions do not
    read position_ids.
    """
    names = ["inputs_embeds"] + ["position_ids"] * (not case.config["axial_pos_embds"])
    extras = {name: case.extras[name] for name in names if name in case.extras}
    return call_arguments(case, extras, dtype)


def call_arguments(case, extras, dtype):
    arguments = {**case.inputs, **extras}
    if "inputs_embeds" in arguments:
        del arguments["input_ids"]
        arguments["inputs_embeds"] = arguments["inputs_embeds"].astype(dtype)
    return arguments | targets_of(case, dtype)


def targets_of(case, dtype):
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in case.targets.items()}


def evaluate(model, case, rotations):
    """Every number of a call."""
    output = model(
        **evaluation_arguments(case, model.dtype), rotations=rotations or None,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    numbers = {
        name: getattr(output, name)
        for name in ("logits", "start_logits", "end_logits", "loss")
        if getattr(output, name) is not None
    }
    if case.model == "ReformerModel":
        numbers["last_hidden_state"] = output.last_hidden_state
    numbers |= {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    return numbers | {f"attentions.{i}": p for i, p in enumerate(output.attentions)}


def train(model, case, rotations):
    """The loss and all gradients, without dropout."""
    arguments = training_arguments(case, model.dtype)
    loss, gradients = model.loss_and_gradients(**arguments, rotations=rotations or None)
    return {"loss": loss} | {f"gradient.{name}": array for name, array in gradients.items()}


def assert_same(actual, expected, dtype):
    """Both have the same numbers; the message names the first that differs."""
    largest_gradient = max(
        (np.abs(x).max() for name, x in expected.items() if name.startswith("gradient.")), default=0
    )
    for name, theirs in expected.items():
        mine = actual[name]
        theirs = np.asarray(theirs)
        assert np.shape(mine) == theirs.shape, name
        size, kind = np.abs(theirs).max(), "output"
        if name == "loss":
            size, kind = max(1.0, abs(float(theirs))), "loss"
        elif name.startswith("gradient."):
            size, kind = max(size, NOISE * largest_gradient), "gradient"
        # a causal loss of texts of one token is the mean of nothing
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs), err_msg=name)
        if np.isnan(theirs).any():
            continue
        error = float(np.abs(np.float64(mine) - np.float64(theirs)).max())
        allowed = tolerance(f"parity_{kind}", dtype) * size + 1e-30
        assert error <= allowed, f"{name}: {error / size:.2g} of {size:.2g}"
