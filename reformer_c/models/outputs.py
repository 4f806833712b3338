"""Outputs of models: fields by name, index and key, as in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..checks import NamedAttributes, did_you_mean, flag

__all__ = ["EncoderDecoderOutput", "Loss", "ReformerOutput", "Requested"]


@dataclass(frozen=True)
class Requested:
    """What the output of a call contains in addition to its result."""

    hidden_states: bool = False
    attentions: bool = False
    buckets: bool = False
    # whether the output is a ReformerOutput, or a tuple of its values
    return_dict: bool = True

    @classmethod
    def of(
        cls, config: Any, hidden_states: Any, attentions: Any, buckets: Any, return_dict: Any
    ) -> Requested:
        """From the arguments of a call; the configuration replaces those that are None."""
        return cls(
            flag("output_hidden_states", hidden_states, bool(config.output_hidden_states)),
            flag("output_attentions", attentions, bool(config.output_attentions)),
            flag("output_buckets", buckets, False),
            flag("return_dict", return_dict, bool(config.return_dict)),
        )


class Loss(float):
    """A float with the method `item`, for programs written for PyTorch."""

    __slots__ = ()

    def item(self) -> float:
        return float(self)


@dataclass(eq=False)
class ReformerOutput(NamedAttributes, Mapping[str, Any]):
    """The result of a call; fields that were not requested, or that the model lacks, are None.

    Like an output of transformers it is a mapping of the fields that are not None, and can be
    indexed like the tuple of their values: ``output["logits"]``, ``output[0]``,
    ``loss, logits = output[:2]``, ``function(**output)``. Iteration yields the names, in the order
    of transformers; fields that transformers does not have are last.

    Shapes: b batch, t length, c hidden_size, v vocab_size, h heads, r hash rounds.

    Examples
    --------
    >>> output = ReformerOutput(logits=np.zeros((1, 2)), loss=0.5)
    >>> list(output), output[0], output["logits"].shape, "buckets" in output
    (['loss', 'logits'], 0.5, (1, 2), False)
    >>> loss, logits = output.to_tuple()
    """

    # mean over the targets that are not ignored, if targets were given
    loss: float | None = None
    # (b, t, v), or (b, num_labels) of a classifier
    logits: np.ndarray | None = None
    # (b, t), of question answering
    start_logits: np.ndarray | None = None
    end_logits: np.ndarray | None = None
    # (b, t, 2 c): both streams, normed
    last_hidden_state: np.ndarray | None = None
    # (b, t, c) of the second stream, before the first layer and after each layer
    hidden_states: tuple[np.ndarray, ...] | None = None
    # attention probabilities of each layer: see `Reformer.__call__`
    attentions: tuple[np.ndarray, ...] | None = None
    # bucket ids (b, h, r, t) int32 of each LSH layer; None if the sequence is a single chunk
    buckets: tuple[np.ndarray | None, ...] | None = None
    # for each LSH layer, the share of pairs in a bucket that config.bucket_cap left out
    cut_shares: tuple[float, ...] | None = None

    def __iter__(self) -> Iterator[str]:
        # in transformers only models without a head return the final states
        ours = {"buckets", "cut_shares"} | (
            {"last_hidden_state"} if self.logits is not None else set()
        )
        names = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return iter(sorted(names, key=ours.__contains__))

    def __reversed__(self) -> Iterator[str]:
        return iter([*self][::-1])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(name == own for own in self)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            names = [f.name for f in fields(self)]
            raise KeyError(f"{key}: this output has no such field{did_you_mean(key, names)}")
        return getattr(self, key)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name} cannot be deleted from an output; set it to None")

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None."""
        return tuple(getattr(self, name) for name in self)


@dataclass(eq=False)
class EncoderDecoderOutput(ReformerOutput):
    """The result of a call: the decoder's fields, and the encoder's output."""

    # attention probabilities (b, h, t, s) of each decoder layer, over the encoder's tokens
    cross_attentions: tuple[np.ndarray, ...] | None = None
    encoder: ReformerOutput | None = None
