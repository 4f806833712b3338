"""The decoder of an encoder-decoder: a causal Reformer whose layers also attend to an encoder."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from .attention import CrossAttention
from .body import Pass, norm_shapes
from .config import ReformerConfig
from .heads import LanguageModel
from .inputs import Call, Inputs
from .model import ReformerModelWithLMHead
from .nn import Weights
from .observers import Probabilities
from .outputs import EncoderDecoderOutput, ReformerOutput

__all__ = ["TextDecoder"]


class DecoderPass(Pass):
    """The body of a decoder: three branches per layer, cross-attention between the others."""

    def __init__(self, *arguments: Any) -> None:
        self._cross_probabilities = Probabilities()
        super().__init__(*arguments)

    def _layer(self, i: int, kind: str, weights: Weights, common: dict) -> tuple[Any, ...]:
        attention, feed_forward = super()._layer(i, kind, weights, common)
        encoder = self.call.encoder_states
        assert encoder is not None
        cross = CrossAttention(
            weights.below("cross_attention."), encoder=encoder, texts=self.call.prompt_index,
            num_heads=self.config.num_attention_heads, shape=attention.shape,
            observers=(self._cross_probabilities,) * self.call.requested.attentions,
            attention_dropout=attention.rules["dropout"], softcap=self.config.softcap,
            key=partial(self.key, "layer", i, "cross attention"), **common,
        )  # fmt: skip
        return attention, cross, feed_forward

    def describe(self, output: ReformerOutput) -> None:
        super().describe(output)
        if self.call.requested.attentions:
            assert isinstance(output, EncoderDecoderOutput)
            found = self._cross_probabilities.layers()
            output.cross_attentions = tuple(p[:, :, : self.inputs.t] for p in found)


class TextDecoder(ReformerModelWithLMHead):
    """A causal language model that attends to the states of an encoder, given in the `Call`."""

    head: ClassVar[LanguageModel] = LanguageModel(causal=True, ahead=0)
    _width: int

    def __init__(self, config: ReformerConfig, width: int, dtype: Any) -> None:
        self._width = width  # of the encoder's final states
        self._allocate(config, dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        config, c, shapes = self.config, self.config.hidden_size, super()._shapes()
        heads = config.num_attention_heads * config.attention_head_size
        for i in range(len(config.layer_types)):
            name = f"{self.prefix}encoder.layers.{i}.cross_attention."
            shapes |= norm_shapes(f"{name}layer_norm", c)
            for projection in CrossAttention.projections:
                width = c if projection in CrossAttention.own_projections else self._width
                shapes[f"{name}{CrossAttention.inner}.{projection}.weight"] = (heads, width)
            shapes[f"{name}output.dense.weight"] = (c, heads)
        return shapes

    def _pass(self, inputs: Inputs, call: Call) -> DecoderPass:
        if call.encoder_states is None:
            raise TypeError("a decoder alone has nothing to attend to: call ReformerEncoderDecoder")
        parameters = {**self.parameters, **self.buffers}
        return DecoderPass(self.config, parameters, self.prefix, inputs, call)
