"""The mean of several models' weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .state import config_differences

__all__ = ["average_models"]


def average_models(models: Iterable[Any]) -> Any:
    """The first of several models, with the mean of all their parameters.

    The mean of a run's last checkpoints is often better than each of them (Vaswani et al. 2017,
    section 6.1); ``Trainer(..., keep=N)`` keeps them.

    Parameters
    ----------
    models : iterable of models
        With equal configurations. An iterator is read one model at a time: in memory are the first
        model, the one that is added, and the sum of all weights in float64, which takes as much as
        two models of float32.

    Returns
    -------
    model
        The first one: its parameters are overwritten.

    Raises
    ------
    ValueError
        There are no models, or they differ in class or configuration.

    Examples
    --------
    >>> from reformer_c import ReformerConfig, ReformerModel
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = average_models(ReformerModel(config, rng=seed) for seed in range(3))
    """
    iterator = iter(models)
    try:
        mean = next(iterator)
    except StopIteration:
        raise ValueError("models must be at least one, got none") from None
    totals = {name: array.astype(np.float64) for name, array in mean.parameters.items()}
    count = 1
    for model in iterator:
        _check_alike(mean, model, count)
        for name, total in totals.items():
            total += model.parameters[name]
        count += 1
    for name, total in totals.items():
        mean.parameters[name][...] = total / count
    return mean


def _check_alike(first: Any, other: Any, i: int) -> None:
    kinds = type(first).__name__, type(other).__name__
    if kinds[0] != kinds[1]:
        raise ValueError(f"models[{i}] must be a {kinds[0]}, as models[0], got a {kinds[1]}")
    for name, side in first.sides.items():
        prefix = f"{name}." if name else ""
        if found := config_differences(side.config, other.sides[name].config, prefix):
            raise ValueError(f"models[{i}] must be like models[0]: {'; '.join(found)} in it")
