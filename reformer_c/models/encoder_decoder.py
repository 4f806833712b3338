"""An encoder-decoder: a Reformer that reads a text, and one that generates another from it.

The encoder is a bidirectional `ReformerModel`. The decoder is a causal Reformer whose layers have a
third branch between attention and feed-forward: full attention to the encoder's final states
(Vaswani et al. 2017, section 3.2.3). The three branches add to the two streams alternately, so the
decoder is reversible too (as in Kitaev et al. 2020, section 5, machine translation): memory does
not grow with the depth of either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from ..checks import flag, integer, names_keywords, refuse_unknown
from ..layers.cross_attention import EncoderStates
from ..layers.randomness import draw_seed, random_key
from ..runtime import available_memory, reuse_memory
from .body import WORDS, Pass, StepMemory
from .calls import Reformer
from .config import ReformerConfig
from .inputs import Call
from .outputs import EncoderDecoderOutput, ReformerOutput, Requested
from .summary import ModelSummary, longest_of, summarize
from .text_decoder import (
    TextDecoder,
    TextEncoder,
    TextGeneration,
    check_rows,
    decoder_call_of,
    encode,
    plan_both,
)  # fmt: skip

__all__ = ["EncoderDecoderOutput", "ReformerEncoderDecoder"]


class ReformerEncoderDecoder(TextGeneration):
    """A sequence-to-sequence Reformer, for example for translation or summaries.

    Parameters
    ----------
    config : ReformerConfig
        The configuration of both sides; `is_decoder` is set for each.
    decoder : ReformerConfig, optional
        The decoder's own configuration.
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises them.
    dtype : float32 or float64, "bfloat16" or float16
        Dtype of weights, activations and gradients; with half precision activations are float32,
        and training is refused.

    Attributes
    ----------
    encoder : ReformerModel
        A model that can be called by itself, and shares the weights.
    parameters : mapping of str to ndarray
        Live, under the names of both sides, which begin with ``encoder.`` and ``decoder.``.

    Notes
    -----
    `labels` (b, t) are the tokens that the decoder is to predict, including the end token; -100 is
    ignored. The decoder's input is the labels shifted right, after the decoder's
    ``config.bos_token_id``, or its pad token if that is None. Trailing labels of -100 are padding
    and masked.

    The decoder computes each row as if it were alone: padding at the end, masked by
    `decoder_attention_mask` or by labels, does not change the other tokens, and its own states,
    logits, buckets and probabilities are meaningless. The encoder is a `ReformerModel`: in a call,
    padding takes part in the circle of chunks as in Hugging Face's layers, so the first chunk of a
    padded row sees padding in place of the end of the row. `generate` encodes each row as if it
    were alone.

    Each side has its own ``config.memory_budget``; a share is of the free memory, for the encoder
    of what the decoder has left.

    Examples
    --------
    A model that learns to copy:

    >>> import reformer_c as rc
    >>> config = rc.ReformerConfig(
    ...     vocab_size=12, hidden_size=32, feed_forward_size=32, num_attention_heads=2,
    ...     attention_head_size=16, attn_layers=["local"], axial_pos_embds=False,
    ...     max_position_embeddings=16, hidden_dropout_prob=0.0)
    >>> model = ReformerEncoderDecoder(config, rng=0)
    >>> ids = np.random.default_rng(0).integers(3, 12, (16, 6))
    >>> optimizer = rc.AdamW(model.parameters, lr=5e-3)
    >>> losses = []
    >>> for step in range(60):
    ...     loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=step)
    ...     optimizer.step(gradients)
    ...     losses.append(loss)
    >>> losses[-1] < losses[0] / 10
    True
    >>> written = model.generate(ids, max_new_tokens=6)
    >>> float((written[:, 1:] == ids).mean()) > 0.9
    True
    """

    @names_keywords
    def __init__(
        self,
        config: ReformerConfig,
        *,
        decoder: ReformerConfig | None = None,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        self._allocate(config, config if decoder is None else decoder, dtype)
        seed = draw_seed(rng)
        for name, side in self.sides.items():
            side._initialise(side.parameters, random_key(seed, name))

    def _make_sides(self, config: ReformerConfig, decoder: ReformerConfig, dtype: Any) -> None:
        self.encoder = TextEncoder._without_numbers(replace(config, is_decoder=False), dtype)
        if config.shared_embeddings or decoder.shared_embeddings:
            for name in ("shared_embeddings", "vocab_size", "hidden_size"):
                expected, found = getattr(config, name), getattr(decoder, name)
                if expected != found:
                    raise ValueError(
                        f"decoder.{name} must be {expected} as the encoder's to share embeddings, "
                        f"got {found}"
                    )
        self.decoder = TextDecoder(replace(decoder, is_decoder=True), self.encoder, dtype)

    @property
    def sides(self) -> dict[str, Reformer]:
        """Both models by their names."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    # ---- calls ----

    @names_keywords
    @reuse_memory()
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        labels: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        decoder_rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_buckets: bool = False,
        return_dict: bool | None = None,
    ) -> EncoderDecoderOutput:
        """Evaluate the model: no dropout.

        Parameters
        ----------
        input_ids : array_like of int, (b, s)
            The encoder's input.
        attention_mask : array_like, (b, s), optional
            Nonzero for a real token; the decoder attends to these only.
        decoder_input_ids : array_like of int, (b, t), optional
            The decoder's input; by default `labels` shifted right.
        decoder_attention_mask : array_like, (b, t), optional
            Nonzero for a real token. By default all of `decoder_input_ids` are, or with `labels`
            those up to the last label that is not -100.
        labels : array_like of int, (b, t), optional
            The tokens to predict. With them, the output has a loss.
        inputs_embeds : ndarray, (b, s, hidden_size), optional
            Word vectors, in place of `input_ids`.
        num_hashes, rng, output_hidden_states, output_attentions, output_buckets
            As in a call of `ReformerModel`, for both sides.
        return_dict : bool, optional
            False returns the tuple of the output's values; None: the value of the decoder's
            configuration.
        rotations, decoder_rotations : sequence of ndarray, optional
            One for each LSH layer of the encoder, and of the decoder.

        Returns
        -------
        EncoderDecoderOutput, or tuple
            The fields of the decoder's `ReformerOutput`, its `cross_attentions`, and the encoder's
            output as `encoder`.

        Raises
        ------
        TypeError
            An argument has another type or dtype, or the decoder has no input.
        ValueError
            A shape, a length or a value does not fit the configuration or the other arguments.
        """
        requested = Requested.of(
            self.decoder.config, output_hidden_states, output_attentions, output_buckets,
            return_dict,
        )  # fmt: skip
        call = Call(
            input_ids, attention_mask, None, inputs_embeds, num_hashes, rotations, draw_seed(rng),
            requested=requested, rows_alone=None,
        )  # fmt: skip
        decoder_call = Call(
            decoder_input_ids, decoder_attention_mask, None, None, num_hashes, decoder_rotations,
            requested=requested,
        )  # fmt: skip
        encoder_pass, states, decoder_pass, targets = self._begin(call, decoder_call, labels)
        encoder = ReformerOutput(last_hidden_state=encode(encoder_pass, states))
        encoder_pass.describe(encoder)
        decoder_pass.forward()
        output = EncoderDecoderOutput(encoder=encoder)
        self.decoder._describe(decoder_pass, targets, output)
        return output if requested.return_dict else output.to_tuple()  # type: ignore[return-value]

    def _begin(
        self, call: Call, decoder_call: Call, labels: Any, *, needs_loss: bool = False
    ) -> tuple[Pass, EncoderStates, Pass, Any]:
        """Check all arguments. Returns the encoder's pass, the states that it is to fill, the
        decoder's pass, and the targets in the form that its head expects."""
        encoder_pass, states = self._begin_encoder(call)
        b = encoder_pass.inputs.b
        if needs_loss:
            self._check_labels(labels)
        if decoder_call.input_ids is None:
            if labels is None:
                raise TypeError("decoder_input_ids or labels must be given")
            labels, shifted, real = self.decoder.shift_right(labels, b, self.start_token_id)
            mask = decoder_call.attention_mask
            decoder_call = replace(
                decoder_call, input_ids=shifted, attention_mask=real if mask is None else mask
            )
        decoder_call = decoder_call_of(decoder_call, call.seed, states, rows_alone=True)
        decoder_pass, targets = self.decoder._begin(
            decoder_call, {"labels": labels}, needs_loss=needs_loss
        )
        check_rows(decoder_pass.inputs.b, b)
        return encoder_pass, states, decoder_pass, targets

    @names_keywords
    def loss(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        labels: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        decoder_rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
    ) -> float:
        """The loss only: the logits of all tokens are never in memory at once.

        Parameters
        ----------
        input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, labels, inputs_embeds
            As in a call.
        num_hashes, rotations, decoder_rotations, rng
            As in a call.
        """
        call = Call(
            input_ids, attention_mask, None, inputs_embeds, num_hashes, rotations, draw_seed(rng),
            rows_alone=None,
        )  # fmt: skip
        decoder_call = Call(
            decoder_input_ids, decoder_attention_mask, None, None, num_hashes, decoder_rotations
        )
        encoder_pass, states, decoder_pass, targets = self._begin(
            call, decoder_call, labels, needs_loss=True
        )
        encode(encoder_pass, states)
        decoder_pass.forward()
        return self.decoder.head.loss(decoder_pass, targets, differentiate=False)

    @names_keywords
    @reuse_memory()
    def loss_and_gradients(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        labels: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        decoder_rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        training: bool = True,
        memory_budget: float | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss, and its gradient with respect to every parameter of both sides.

        Parameters
        ----------
        input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, labels, inputs_embeds
            As in a call.
        num_hashes, rotations, decoder_rotations
            As in a call.
        rng, training
            As in ``ReformerModelWithLMHead.loss_and_gradients``.
        memory_budget : int or float, optional
            For both sides together, used for the decoder's layers first.

        Returns
        -------
        loss : float
            nan if all labels are ignored.
        gradients : dict of str to ndarray
            By the names of `parameters`.

        Raises
        ------
        TypeError
            An argument has another type or dtype, or `labels` are missing.
        ValueError
            A shape, a length or a value does not fit the configuration or the other arguments.
        MemoryError
            The step would take more memory than is free; raised before it starts, with the numbers.
        """
        training = flag("training", training)
        call = Call(
            input_ids, attention_mask, None, inputs_embeds, num_hashes, rotations, draw_seed(rng),
            training,
        )  # fmt: skip
        decoder_call = Call(
            decoder_input_ids, decoder_attention_mask, None, None, num_hashes, decoder_rotations,
            training=training,
        )  # fmt: skip
        encoder_pass, states, decoder_pass, targets = self._begin(
            call, decoder_call, labels, needs_loss=True
        )
        free, inputs = available_memory(), encoder_pass.inputs
        passes = encoder_pass, decoder_pass
        needed, kept = plan_both(self.encoder, self.decoder, passes, memory_budget, free)
        tokens = f"{inputs.b} x {inputs.t} tokens and {decoder_pass.inputs.t} to write"
        needed.check(free, tokens)
        self.encoder._keep_num_buckets(encoder_pass)
        encode(encoder_pass, states, differentiate=True, kept_layers=kept[0])
        states.gradient = np.zeros_like(states.states)
        loss = self.decoder._differentiate(decoder_pass, targets, kept[1])
        if self.decoder.config.shared_embeddings:
            words = decoder_pass.gradients.pop(self.decoder.prefix + WORDS)
            encoder_pass.body.add_gradient(WORDS, words)
        encoder_pass.states_backward(states.take_gradient())
        encoder_pass.backward()
        sides = {"encoder": encoder_pass, "decoder": decoder_pass}
        return loss, {
            f"{name}.{parameter}": gradient
            for name, side in self.sides.items()
            for parameter, gradient in side._gradients(sides[name]).items()
        }

    def count_targets(
        self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any
    ) -> int:
        """The number of labels that the loss of these arguments averages over: all except -100.

        Parameters
        ----------
        input_ids, attention_mask, **arguments
            As in `loss_and_gradients`.
        """
        refuse_unknown(arguments, signature(self.loss_and_gradients).parameters, "count_targets")
        self._check_labels(arguments.get("labels"))
        return self.decoder.head.count(self.decoder.config, arguments)

    def _check_labels(self, labels: Any) -> None:
        if labels is None:
            raise TypeError(f"labels must be given for a loss of {type(self).__name__}")

    @names_keywords
    def memory(
        self,
        length: int,
        decoder_length: int | None = None,
        batch: int = 1,
        *,
        num_hashes: int | None = None,
        memory_budget: float | None = None,
    ) -> StepMemory:
        """Predict the memory of a training step.

        Parameters
        ----------
        length, decoder_length : int
            Tokens per sequence of the encoder, and of the decoder (`length` by default).
        batch, num_hashes, memory_budget
            As in ``ReformerModelWithLMHead.memory``.

        Returns
        -------
        StepMemory

        Raises
        ------
        TypeError
            A size is not an integer, or the budget is not a number.
        ValueError
            A size or the budget is too small, or a length exceeds the model's positions.
        """
        call = Call(num_hashes=num_hashes, training=True)
        decoder_length = length if decoder_length is None else decoder_length
        passes = self._passes_of_length(length, decoder_length, integer("batch", batch, 1), call)
        return plan_both(self.encoder, self.decoder, passes, memory_budget, available_memory())[0]

    def _passes_of_length(
        self, length: int, decoder_length: int, batch: int, call: Call
    ) -> tuple[Pass, Pass]:
        """Passes of both sides without tokens, for planning."""
        c = self.encoder.config.hidden_size
        encoder_pass = self.encoder._pass_of_length("length", length, batch, call)
        # has the shape of the states for the size queries, without allocating them
        states = np.broadcast_to(self.dtype.type(0), (batch, encoder_pass.inputs.t, 2 * c))
        call = replace(call, encoder_states=EncoderStates(states))
        decoder_pass = self.decoder._pass_of_length("decoder_length", decoder_length, batch, call)
        return encoder_pass, decoder_pass

    @names_keywords
    def summary(
        self, length: int | None = None, decoder_length: int | None = None, batch: int = 1
    ) -> ModelSummary:
        """Parameters by layer, and the memory that a training step takes.

        Parameters
        ----------
        length, decoder_length, batch : int
            As in `memory`; by default each side's ``config.max_position_embeddings``, or its
            positions if they are fewer.

        Returns
        -------
        ModelSummary
            Prints as a table.

        Raises
        ------
        TypeError, ValueError
            As `memory`.
        """
        source = longest_of(self.encoder.config) if length is None else length
        if decoder_length is None:
            decoder_length = longest_of(self.decoder.config) if length is None else source
        call = Call(training=True)
        passes = self._passes_of_length(source, decoder_length, integer("batch", batch, 1), call)
        step = plan_both(self.encoder, self.decoder, passes, None, available_memory())[0]
        lengths = f"{batch} x {source:,} tokens to {decoder_length:,}"
        title = f"{type(self).__name__}, a training step of {lengths}"
        prefixes = (f"{name}.{side.prefix}" for name, side in self.sides.items())
        of_sides = dict(zip(prefixes, passes, strict=True))
        return summarize(title, self.parameters, of_sides, step)
