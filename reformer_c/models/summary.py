"""A model's summary: parameters and memory by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..text.tables import html_table, text_table
from .body import Pass, StepMemory
from .config import ReformerConfig

__all__ = ["ModelSummary", "PartSummary", "longest_of", "parameters_by_part", "part_of",
           "summarize"]  # fmt: skip

HEADER = ("part", "type", "parameters", "weights", "activations", "backward")


@dataclass(frozen=True)
class PartSummary:
    """A layer, the embeddings, the final norm or the head.

    Attributes
    ----------
    name : str
        The beginning of its parameters' names.
    layer_type : str
        Of its attention; empty for other parts.
    parameters, nbytes : int
        Elements and bytes of its weights.
    activations : int or None
        Bytes of a layer's activations in a training step, which a `memory_budget` may keep.
    backward : int or None
        Peak temporary memory of a layer's backward pass that recomputes them, in bytes.
    """

    name: str
    layer_type: str
    parameters: int
    nbytes: int
    activations: int | None = None
    backward: int | None = None

    def cells(self) -> list[str]:
        """The cells of a table, with sizes in MB."""
        sizes = (self.nbytes, self.activations, self.backward)
        mb = ["" if size is None else f"{size / 1e6:,.2f}" for size in sizes]
        return [self.name, self.layer_type, f"{self.parameters:,}", *mb]


@dataclass(frozen=True)
class ModelSummary:
    """Parameters and memory by layer; prints as a table, and is one in a notebook.

    Attributes
    ----------
    title : str
    parts : tuple of PartSummary
    step : StepMemory
        The whole training step, as `memory` predicts it.
    """

    title: str
    parts: tuple[PartSummary, ...]
    step: StepMemory

    def rows(self) -> list[list[str]]:
        """The cells of the table; the last row is the sum of weights."""
        total = PartSummary(
            "all", "", sum(x.parameters for x in self.parts), sum(x.nbytes for x in self.parts)
        )
        return [part.cells() for part in (*self.parts, total)]

    def __str__(self) -> str:
        return f"{self._title()}\n{text_table(HEADER, self.rows(), left=2)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._title(), HEADER, self.rows(), left=2)

    def _title(self) -> str:
        parts = [f"{name} {size / 1e6:,.2f}" for name, size in vars(self.step).items() if size]
        step = f"{self.step.total / 1e6:,.2f} ({', '.join(parts)})"
        return f"{self.title} takes {step}; sizes in MB"


def longest_of(config: ReformerConfig) -> int:
    """The length of a summary by default."""
    return min(config.num_positions, config.max_position_embeddings)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to.

    Examples
    --------
    >>> part_of("reformer.encoder.layers.3.attention.output.dense.weight")
    'reformer.encoder.layers.3'
    >>> part_of("lm_head.decoder.weight")
    'lm_head.decoder'
    """
    words = name.split(".")
    return ".".join(words[: words.index("layers") + 2 if "layers" in words else 2])


def parameters_by_part(parameters: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The number of parameters of each part."""
    parts: Counter[str] = Counter()
    for name, array in parameters.items():
        parts[part_of(name)] += array.size
    return dict(parts)


def summarize(
    title: str, parameters: Mapping[str, np.ndarray], passes: Mapping[str, Pass], step: StepMemory
) -> ModelSummary:
    """The summary of a model from its passes, by the beginnings of their parameters' names."""
    layers: dict[str, tuple[Any, ...]] = {}
    for prefix, run in passes.items():
        of_layers = zip(run.config.layer_types, run.layer_bytes(), strict=True)
        for i, (layer_type, of_layer) in enumerate(of_layers):
            layers[f"{prefix}encoder.layers.{i}"] = (layer_type, *of_layer)
    parts = []
    itemsize = next(iter(parameters.values())).itemsize
    for name, count in parameters_by_part(parameters).items():
        layer_type, *sizes = layers.get(name, ("",))
        parts.append(PartSummary(name, layer_type, count, itemsize * count, *sizes))
    return ModelSummary(title, tuple(parts), step)
