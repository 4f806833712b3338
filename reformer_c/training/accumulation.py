"""Loss and gradients of a step that consists of several micro-batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..models.inputs import IGNORE
from ..runtime import underflow_to_zero

__all__ = ["Accumulated", "accumulate", "arguments_of"]


class Accumulated(NamedTuple):
    """The mean loss over all targets of a step, its gradients by name, and the numbers of targets
    and of tokens. Without targets, the loss is NaN and there are no gradients."""

    loss: float
    gradients: dict[str, np.ndarray]
    targets: int
    tokens: int


def accumulate(
    model: Any, data: Sequence[Any], seeds: Sequence[tuple[int, int]], names: Collection[str]
) -> Accumulated:
    """Loss and gradients as of one batch that contains all micro-batches.

    Parameters
    ----------
    model : a model with ``loss_and_gradients``
    data : sequence of arrays or mappings
        The micro-batches, as `Trainer`'s data gives them.
    seeds : sequence of (int, int)
        For each micro-batch, the seed of its dropout and LSH rotations.
    names : collection of str
        The parameters whose gradients are kept.
    """
    if getattr(getattr(model, "head", None), "causal", True) is False:
        _refuse_ids_alone(data)
    batches = [arguments_of(batch) for batch in data]
    tokens = sum(map(_count_tokens, batches))
    counts = [_count_targets(model, batch) for batch in batches]
    totals = np.sum(counts, axis=0)
    if not np.all(totals):  # the loss would be 0 / 0
        return Accumulated(math.nan, {}, 0, tokens)
    shared = {}
    if np.ndim(totals):
        # the loss is a sum of several means, so no single weight per micro-batch is right:
        # divide each mean by the average count per micro-batch instead
        counts = [int(any(count)) for count in counts]
        shared["counts"] = totals / sum(counts)
    reference = next(filter(None, counts))
    losses: list[float] = []
    total: dict[str, np.ndarray] = {}
    for batch, count, seed in zip(batches, counts, seeds, strict=True):
        if count == 0:
            continue
        key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        loss, grads = model.loss_and_gradients(**batch, rng=int(key), **shared)
        # relative to the first count, so that gradients of equal counts are added unscaled
        weight = count / reference
        losses.append(float(loss) * weight)
        grads = {name: grads[name] for name in names}
        if not total:
            total = grads
        else:
            for name, grad in grads.items():
                ops.add_scaled(total[name], grad, weight)
    weights = sum(counts) / reference
    if len(losses) > 1:
        with underflow_to_zero():
            for grad in total.values():
                np.multiply(grad, 1.0 / weights, out=grad)
    return Accumulated(math.fsum(losses) / weights, total, int(np.min(totals)), tokens)


def arguments_of(batch: Any) -> Mapping[str, Any]:
    """The arguments of `loss_and_gradients` for a batch of the data."""
    return batch if isinstance(batch, Mapping) else {"input_ids": batch, "labels": batch}


def _refuse_ids_alone(data: Sequence[Any]) -> None:
    for batch in data:
        if not isinstance(batch, Mapping):
            raise TypeError(
                "data must give a masked language model input_ids and labels, as "
                f"reformer_c.training.masking.Masked does, got {type(batch).__name__}: "
                "the labels would be tokens that the model sees"
            )


def _count_tokens(batch: Mapping[str, Any]) -> int:
    if batch.get("inputs_embeds") is not None:
        return int(np.prod(np.shape(batch["inputs_embeds"])[:2]))
    return np.size(batch.get("input_ids", ()))


def _count_targets(model: Any, batch: Mapping[str, Any]) -> Any:
    """The number of targets that the loss of a batch averages over; a tuple for several means."""
    if hasattr(model, "count_targets"):
        return model.count_targets(**batch)
    if callable(batch.get("loss")):  # the user's, as the mean over the rows
        name = "input_ids" if batch.get("inputs_embeds") is None else "inputs_embeds"
        return len(batch[name])
    # if labels are the input (causal language model), the first of each row is not predicted
    labels = np.asarray(batch["labels"])
    counts = labels != IGNORE
    ids = np.asarray(batch.get("input_ids"))
    if ids.shape == labels.shape and (ids == labels)[counts].all():
        counts = counts[..., 1:]
    return int(np.count_nonzero(counts))
