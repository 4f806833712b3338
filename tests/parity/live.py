"""A case computed by transformers, with its rotations recorded."""

import contextlib
import os
import warnings

import numpy as np

from . import ours
from .ours import evaluation_arguments, training_arguments

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    # deprecations inside other projects are no failures here
    warnings.simplefilter("ignore")
    import torch
    import transformers

    transformers.ReformerModel  # noqa: B018 - imports the model's own file now

# activations by name
ACT2FN = transformers.activations.ACT2FN
# versions 5.0 to 5.23 have the head's bias, and do not add it; 5.24 adds a second one
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
APPLIES_BIAS = not (5, 0) <= VERSION < (5, 24)

# the head's by another name, or in 5.24 the one that counts
SECOND_BIAS = "lm_head.decoder.bias"

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


@contextlib.contextmanager
def recorded_rotations(seed):
    """The list receives the rotations that the hashing layers draw, the same in each run.

    In training the layers seed torch from the machine's entropy: the draws get a generator.
    """
    original, drawn = torch.randn, []
    generator = torch.Generator().manual_seed(seed)

    def randn(*args, **kwargs):
        result = original(*args, generator=generator, **kwargs)
        drawn.append(result.detach().numpy().copy())
        return result

    torch.randn = randn
    try:
        yield drawn
    finally:
        torch.randn = original


def our_model(case, dtype):
    """As the installed version treats the head's bias."""
    return ours.our_model(case, dtype, apply_lm_head_bias=APPLIES_BIAS)


def their_model(case, model):
    """transformers' model of the case, with the weights of ours."""
    theirs = getattr(transformers, case.model)(transformers.ReformerConfig(**case.config))
    theirs = theirs.to(torch.float64 if model.dtype == np.float64 else torch.float32)
    load(theirs, {**model.parameters, **model.buffers})
    return theirs


def load(theirs, arrays):
    weights = {name: torch.tensor(array) for name, array in arrays.items()}
    second = (
        "lm_head.decoder.bias"  # the head's bias by another name, or for 5.24 the one that counts
    )
    if second in theirs.state_dict():
        weights[second] = weights["lm_head.bias"]
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys, result
    assert all("mask_value" in name for name in result.missing_keys), result  # constants


def tensors(arrays):
    return {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}


def evaluate(theirs, case, dtype):
    """Every number of a call, and the rotations."""
    theirs.eval()
    arguments = tensors(evaluation_arguments(case, dtype))
    with recorded_rotations(case.seed) as rotations, torch.no_grad():
        output = theirs(**arguments, output_hidden_states=True, output_attentions=True)
    numbers = numbers_of(output)
    if case.model in ("ReformerModelWithLMHead", "ReformerForMaskedLM"):
        numbers["loss"] = float(language_model_loss(output.logits, arguments["labels"], case))
    t = case.inputs["input_ids"].shape[1]
    # theirs have the length that they pad to
    numbers |= {
        f"hidden_states.{i}": state.numpy()[:, :t] for i, state in enumerate(output.hidden_states)
    }
    numbers |= {f"attentions.{i}": p.numpy() for i, p in enumerate(output.attentions)}
    return numbers, rotations


def numbers_of(output):
    names = ("last_hidden_state", "logits", "start_logits", "end_logits", "loss")
    found = {name: getattr(output, name, None) for name in names}
    found = {k: v.detach().numpy() for k, v in found.items() if v is not None}
    if "loss" in found:
        found["loss"] = float(found["loss"])
    return found


def language_model_loss(logits, labels, case):
    """Their own, but in the precision of the logits: theirs goes to float32 in between."""
    ahead = int(case.config["is_decoder"])
    logits, labels = logits[:, : logits.shape[1] - ahead], labels[:, ahead:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def train(theirs, case, dtype):
    """The loss and all gradients, and the rotations."""
    theirs.train()
    theirs.zero_grad()
    arguments = tensors(training_arguments(case, dtype))
    with recorded_rotations(case.seed) as rotations:
        output = theirs(**arguments)
    loss = output.loss
    if dtype == np.float64 and "labels" in arguments and "LM" in case.model:
        loss = language_model_loss(output.logits, arguments["labels"], case)
    loss.backward()
    gradients = {
        f"gradient.{name}": np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        for name, p in theirs.named_parameters()
    }
    if f"gradient.{SECOND_BIAS}" in gradients:
        gradients["gradient.lm_head.bias"] = gradients.pop(f"gradient.{SECOND_BIAS}")
    return {"loss": float(loss.detach())} | gradients, rotations
