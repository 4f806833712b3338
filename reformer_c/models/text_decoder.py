"""The decoder of an encoder-decoder, whose layers also attend to an encoder, and generation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..layers.cross_attention import CrossAttention, EncoderStates
from ..layers.halves import widened
from ..layers.hash_attention import HashCrossAttention
from ..layers.observers import Probabilities
from ..layers.parameters import Parameters, Weights
from ..layers.randomness import Key, draw_seed, random_key
from ..runtime import reuse_memory
from .body import WORDS, Pass, StepMemory, heap_gaps, norm_shapes
from .calls import Reformer
from .config import ReformerConfig
from .generation_config import GenerationConfig
from .heads import LanguageModel
from .inputs import IGNORE, Call, Inputs, as_rows, check_ids
from .model import ReformerModel, ReformerModelWithLMHead
from .outputs import EncoderDecoderOutput, ReformerOutput
from .weights import TwoSided

__all__ = ["TextDecoder", "TextGeneration", "check_rows", "decoder_call_of", "encode", "plan_both"]


class DecoderPass(Pass):
    """The body of a decoder: three branches per layer, cross-attention between the others."""

    def __init__(self, *arguments: Any) -> None:
        self._cross_probabilities = Probabilities()
        super().__init__(*arguments)

    def _layer(
        self, i: int, kind: str, weights: Weights, common: dict[str, Any]
    ) -> tuple[Any, ...]:
        attention, feed_forward = super()._layer(i, kind, weights, common)
        encoder, key = self.call.encoder_states, partial(self.key, "layer", i, "cross attention")
        assert encoder is not None
        hashed = self.config.cross_attention == "lsh"
        hashing = self._cross_hashing(i, key) if hashed else {}
        kind_of = HashCrossAttention if hashed else CrossAttention
        cross = kind_of(
            weights.below("cross_attention."), encoder=encoder, prompt_index=self.call.prompt_index,
            num_heads=attention.num_heads, num_key_value_heads=attention.num_key_value_heads,
            shape=attention.shape,
            observers=(self._cross_probabilities,) * self.call.requested.attentions,
            attention_dropout=attention.rules["dropout"], softcap=self.config.softcap,
            key=key, **hashing, **common,
        )  # fmt: skip
        return attention, cross, feed_forward

    def _cross_hashing(self, i: int, key: Key) -> dict[str, Any]:
        """The hashing arguments of cross-attention in layer i."""
        config, num_hashes = self.config, self.call.num_hashes
        if config.hash_seed is not None:
            key = partial(random_key, config.hash_seed, i, "cross attention")
        return {
            "num_hashes": config.num_hashes if num_hashes is None else num_hashes,
            "num_buckets": config.cross_num_buckets,
            "choose_num_buckets": partial(
                ops.choose_num_buckets, chunk_length=config.attention("lsh", "attn_chunk_length"),
                max_position_embeddings=config.max_position_embeddings,
            ),
            "rotations_key": key("rotations"),
        }  # fmt: skip

    def describe(self, output: ReformerOutput) -> None:
        super().describe(output)
        if self.call.requested.attentions:
            assert isinstance(output, EncoderDecoderOutput)
            found = self._cross_probabilities.layers()
            output.cross_attentions = tuple(p[:, :, : self.inputs.t] for p in found)


class OneSide(Reformer):
    """A side of an encoder-decoder."""

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> np.ndarray:
        if self.config.shared_embeddings:
            raise ValueError("shared_embeddings must be False to resize one side's word vectors")
        return super().resize_token_embeddings(*arguments, **options)


class TextEncoder(OneSide, ReformerModel):
    """A model of the text that is read."""


class TextDecoder(OneSide, ReformerModelWithLMHead):
    """A causal language model that attends to the states of an encoder, given in the `Call`.

    With ``config.shared_embeddings``, the word vectors are the encoder's: see `words`.
    """

    head: ClassVar[LanguageModel] = LanguageModel(causal=True, shift=0)  # pyright: ignore
    # of the encoder's final states
    _width: int
    _encoder_parameters: Parameters

    def __init__(self, config: ReformerConfig, encoder: ReformerModel, dtype: Any) -> None:
        self._width = 2 * encoder.config.hidden_size
        self._encoder_parameters = encoder.parameters
        self._allocate(config, dtype)

    @property
    def words(self) -> np.ndarray:
        """The word vectors (v, c)."""
        if self.config.shared_embeddings:
            return self._encoder_parameters[WORDS]
        return self.parameters[self.prefix + WORDS]

    def _pad_vector(self) -> np.ndarray:
        return widened(self.words[self.config.padding_id])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        config, c, shapes = self.config, self.config.hidden_size, super()._shapes()
        for i in range(len(config.layer_types)):
            name = f"{self.prefix}encoder.layers.{i}.cross_attention."
            shapes |= norm_shapes(f"{name}layer_norm", c)
            for projection in CrossAttention.projections:
                width = c if projection in CrossAttention.own_projections else self._width
                rows = config.projection_width(projection)
                shapes[f"{name}{CrossAttention.inner}.{projection}.weight"] = (rows, width)
            shapes[f"{name}output.dense.weight"] = (c, config.projection_width("query"))
        if config.shared_embeddings:
            del shapes[self.prefix + WORDS]
        return shapes

    def shift_right(
        self, labels: Any, b: int, start_token_id: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checked labels; the decoder's input, which is the labels one position later; and which
        of its tokens are real: those up to the last label that is not ignored."""
        config = self.config
        labels = check_ids("labels", labels, config.vocab_size, ignore=IGNORE)
        rows, t = labels.shape
        if rows != b:
            raise ValueError(f"labels must have {b} rows, as input_ids has, got {rows}")
        if not 0 < t <= config.num_positions:
            raise ValueError(
                f"labels must have 1 to {config.num_positions} tokens (positions), got {t}"
            )
        shifted = np.insert(labels[:, :-1], 0, start_token_id, axis=1)
        counts = labels != IGNORE
        counts[:, 0] = True  # a row has at least one token
        real = np.logical_or.accumulate(counts[:, ::-1], axis=1)[:, ::-1]
        return labels, np.where(shifted == IGNORE, config.padding_id, shifted), real

    def _pass(self, inputs: Inputs, call: Call) -> DecoderPass:
        if call.encoder_states is None:
            raise TypeError("the decoder needs encoder states: call the ReformerEncoderDecoder")
        parameters = {**self.parameters, **self.buffers, self.prefix + WORDS: self.words}
        return DecoderPass(self.config, parameters, self.prefix, inputs, call)


class TextGeneration(TwoSided):
    """The texts of an encoder-decoder: `generate`, and its default options."""

    encoder: ReformerModel
    decoder: TextDecoder

    @property
    def start_token_id(self) -> int:
        """The first token of the decoder's input."""
        return self._start_token(self.generation_config, {})

    def _start_token(self, defaults: GenerationConfig, options: dict[str, Any]) -> int:
        config = self.decoder.config
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = defaults.token(name, options, config.vocab_size)
            if token is not None:
                return token
        return config.padding_id

    @property
    def generation_config(self) -> GenerationConfig:
        """The options that `generate` has by default: edit its fields, or assign another."""
        return self.decoder.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.decoder.generation_config = config

    def _begin_encoder(self, call: Call) -> tuple[Pass, EncoderStates]:
        """The encoder's pass, and the states that it is to fill."""
        seed = draw_seed(random_key(call.seed, "encoder"))
        encoder_pass, _ = self.encoder._begin(replace(call, seed=seed), {})
        inputs = encoder_pass.inputs
        states = np.empty(
            (inputs.b, inputs.t, 2 * self.encoder.config.hidden_size), self.compute_dtype
        )
        mask = None if inputs.mask is None else inputs.mask[:, : inputs.t]
        return encoder_pass, EncoderStates(states, None if mask is None or mask.all() else mask)

    @reuse_memory()
    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        decoder_rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        generation_config: GenerationConfig | None = None,
        streamer: Callable[[np.ndarray], Any] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Generate a text for each row: greedily, by sampling, or by beam search.

        Each row is computed as if it were alone, without the padding at its end.

        Parameters
        ----------
        input_ids, attention_mask
            As in a call; those of one text may have the shape (s,).
        decoder_input_ids : array_like of int, (b, t) or (t,), optional
            The beginnings of the texts; by default the start token.
        decoder_attention_mask : array_like, (b, t) or (t,), optional
            Nonzero for a real token of them.
        inputs_embeds, num_hashes, rotations, decoder_rotations
            As in a call.
        rng, generation_config, streamer, **options
            As in ``ReformerModelWithLMHead.generate``: max_new_tokens, num_beams, eos_token_id ...
            and `decoder_start_token_id`, the start token.

        Returns
        -------
        ndarray of int64, (b * num_return_sequences, t + new)
            The beginnings and the new tokens.

        Raises
        ------
        TypeError
            An argument or option has another type, or there is no such option.
        ValueError
            An option is out of range or contradicts another one, or there are too few positions for
            the texts.
        """
        call = Call(
            as_rows("input_ids", input_ids), as_rows("attention_mask", attention_mask), None,
            inputs_embeds, num_hashes, rotations, draw_seed(rng), rows_alone=True,
        )  # fmt: skip
        encoder_pass, states = self._begin_encoder(call)
        states.row_keys = _row_keys(encoder_pass.inputs)
        b = encoder_pass.inputs.b
        if decoder_input_ids is None:
            defaults = self.generation_config
            if isinstance(generation_config, GenerationConfig):
                defaults = generation_config.over(defaults)
            decoder_input_ids = np.full((b, 1), self._start_token(defaults, options))
        elif options.get("decoder_start_token_id") is not None:
            raise TypeError("decoder_start_token_id must be None with decoder_input_ids")
        decoder_call = Call(
            decoder_input_ids, decoder_attention_mask, None, None, num_hashes, decoder_rotations
        )
        prepared = self.decoder._prepare(
            decoder_call_of(decoder_call, call.seed, states), generation_config, options
        )
        self.decoder._check_streamer(streamer, prepared)
        check_rows(len(prepared.ids), b)
        encode(encoder_pass, states)
        return self.decoder._write(prepared, streamer)


def decoder_call_of(call: Call, seed: int, states: EncoderStates, **changes: Any) -> Call:
    """The call of a decoder that attends to these states, with its own seed and changes."""
    seed = draw_seed(random_key(seed, "decoder"))
    return replace(call, seed=seed, argument_prefix="decoder_", encoder_states=states, **changes)


def check_rows(rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(
            f"decoder_input_ids must have {expected} rows, as input_ids has, got {rows}"
        )


def encode(encoder_pass: Pass, states: EncoderStates, **options: Any) -> np.ndarray:
    """Run the encoder and store its final states. Returns them."""
    encoder_pass.forward(**options)
    states.states[...] = encoder_pass.map_final(states.states.shape[-1], lambda h: h)
    return states.states


def plan_both(
    encoder: ReformerModel,
    decoder: TextDecoder,
    passes: tuple[Pass, Pass],
    budget: float | None,
    free: int | None,
) -> tuple[StepMemory, tuple[int, int]]:
    """The memory of a step, and the numbers of layers of the encoder and of the decoder that keep
    their activations.

    `budget` is for both sides together; if None, each has its own. `free` bytes are available.
    """
    encoder._check_trained()
    encoder_pass, decoder_pass = passes
    own = decoder._budget(budget, free)
    late, of_decoder = decoder_pass.plan(own, decoder.head.loss_bytes(decoder_pass))
    if budget is None:
        left = encoder._budget(None, None if free is None else free - int(late.kept))
    else:
        left = own - late.kept
    early, of_encoder = encoder_pass.plan(left, encoder.head.loss_bytes(encoder_pass))
    assert decoder_pass.call.encoder_states is not None
    states = decoder_pass.call.encoder_states.states.nbytes
    memory = StepMemory(
        # 2 * states: the encoder's states, and their gradient
        streams=early.streams + late.streams + 2 * states,
        gradients=early.gradients + late.gradients,
        kept=early.kept + late.kept,
        working=max(early.working, late.working + heap_gaps(states)),
    )
    return memory, (of_encoder, of_decoder)


def _row_keys(inputs: Inputs) -> list[str]:
    """A digest of each row's tokens or vectors, without padding."""
    rows = inputs.input_ids if inputs.inputs_embeds is None else inputs.inputs_embeds
    assert rows is not None
    mask = np.ones(rows.shape[:2], bool) if inputs.mask is None else inputs.mask
    digest = partial(hashlib.blake2b, digest_size=16)
    return [digest(row[real].tobytes()).hexdigest() for row, real in zip(rows, mask, strict=True)]
