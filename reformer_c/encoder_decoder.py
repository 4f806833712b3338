"""An encoder and a decoder: a Reformer that reads a text, and one that writes another about it.

The encoder is a bidirectional `ReformerModel`. The decoder is a causal Reformer whose layers have a
third part between attention and feed-forward: full attention to the encoder's final states (Vaswani
et al. 2017, section 3.2.3). The three take turns on the two streams, so the decoder is reversible
too (as in the Reformer's machine translation, Kitaev et al. 2020, section 5): memory does not grow
with the depth of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from .attention import EncoderStates
from .body import Pass, StepMemory, heap_gaps
from .calls import Reformer
from .checks import flag, integer, names_keywords, refuse_unknown
from .config import ReformerConfig
from .heads import blocks_bytes
from .inputs import IGNORE, Call, check_ids
from .model import ReformerModel
from .nn import Joined, Parameters, draw_seed, random_key
from .outputs import EncoderDecoderOutput, ReformerOutput, Requested
from .runtime import available_memory, reuse_memory
from .text_decoder import TextDecoder, TextGeneration, check_rows, decoder_call_of, encode

__all__ = ["EncoderDecoderOutput", "ReformerEncoderDecoder"]


class ReformerEncoderDecoder(TextGeneration):
    """A Reformer from text to text: translation, summaries, answers.

    Parameters
    ----------
    config : ReformerConfig
        Of both sides; `is_decoder` does not matter.
    decoder : ReformerConfig, optional
        Of the decoder; the encoder's by default.
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises a Reformer's.
    dtype : float32 or float64
        Of weights, activations and gradients.

    Attributes
    ----------
    encoder : ReformerModel
        A model of its own, with the same live weights.
    parameters : mapping of str to ndarray
        Live: the encoder's names below ``encoder.``, the decoder's below ``decoder.``.

    Notes
    -----
    `labels` (b, t) are what the decoder is to write, ended as it is to end; -100 is ignored. It
    reads them one place later, after a token that begins every text: ``config.bos_token_id`` of the
    decoder, or its pad token if that is None. A tail of -100 is padding, and masked.

    The decoder computes each row as it would alone: padding at its end, masked by
    `decoder_attention_mask` or by labels, changes nothing, and its own states, logits, buckets and
    probabilities mean nothing. The encoder is a `ReformerModel`: in a call its layers have padding
    on their circle of chunks, as Hugging Face's have, so the first chunk of a row with padding sees
    that in place of the row's end. `generate` reads each row as it would alone.

    Each side's ``config.memory_budget`` is that side's own: bytes, or a share of the memory that is
    free and that the decoder, whose layers come first, has left.

    Examples
    --------
    Learn to copy:

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

    def _allocate(self, config: ReformerConfig, decoder: ReformerConfig, dtype: Any) -> None:
        for name, given in (("config", config), ("decoder", decoder)):
            if not isinstance(given, ReformerConfig):
                raise TypeError(f"{name}: expected a ReformerConfig, got {type(given).__name__}")
        self.encoder = ReformerModel._without_numbers(replace(config, is_decoder=False), dtype)
        self.decoder = TextDecoder(replace(decoder, is_decoder=True), 2 * config.hidden_size, dtype)
        sides = {"encoder.": self.encoder, "decoder.": self.decoder}
        self._parameters = Parameters(Joined({p: side.parameters for p, side in sides.items()}))
        self.buffers = {
            prefix + name: array
            for prefix, side in sides.items()
            for name, array in side.buffers.items()
        }

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
            What the encoder reads.
        attention_mask : array_like, (b, s), optional
            Nonzero for a real token of it: the decoder does not look at the others.
        decoder_input_ids : array_like of int, (b, t), optional
            What the decoder has written so far; from `labels` by default.
        decoder_attention_mask : array_like, (b, t), optional
            Nonzero for a real token of it. By default all are real in `decoder_input_ids`, and in
            labels those up to the last that is not -100.
        labels : array_like of int, (b, t), optional
            What it is to write. With them, the output has a loss.
        inputs_embeds : ndarray, (b, s, hidden_size), optional
            Word vectors, in place of `input_ids`.
        num_hashes, rng, output_hidden_states, output_attentions, output_buckets
            As in a call of `ReformerModel`, for both sides.
        return_dict : bool, optional
            False gives the tuple of the output's values; None: the decoder's configuration's.
        rotations, decoder_rotations : sequence of ndarray, optional
            For each LSH layer of the encoder, and of the decoder.

        Returns
        -------
        EncoderDecoderOutput, or tuple
            The fields of a `ReformerOutput` of the decoder, `cross_attentions`, and `encoder`: the
            encoder's own output.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
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
                raise TypeError("decoder_input_ids: expected them, or labels to predict")
            labels, shifted, real = self._shift_right(labels, b)
            mask = decoder_call.attention_mask
            decoder_call = replace(
                decoder_call, input_ids=shifted, attention_mask=real if mask is None else mask
            )
        decoder_call = replace(decoder_call_of(decoder_call, call.seed, states), rows_alone=True)
        decoder_pass, targets = self.decoder._begin(
            decoder_call, {"labels": labels}, needs_loss=needs_loss
        )
        check_rows(decoder_pass.inputs.b, b)
        return encoder_pass, states, decoder_pass, targets

    def _shift_right(self, labels: Any, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checked labels; the decoder's input, which is the labels one position later; and which
        of its tokens are real: those up to the last label that is not ignored."""
        config = self.decoder.config
        labels = check_ids("labels", labels, config.vocab_size, ignore=IGNORE)
        rows, t = labels.shape
        if rows != b:
            raise ValueError(f"labels: expected {b} rows, as input_ids has, got {rows}")
        if not 0 < t <= config.num_positions:
            raise ValueError(
                f"labels: expected 1 to {config.num_positions} tokens (positions), got {t}"
            )
        shifted = np.insert(labels[:, :-1], 0, self.start_token_id, axis=1)
        counts = labels != IGNORE
        counts[:, 0] = True  # a row has one token at least
        real = np.logical_or.accumulate(counts[:, ::-1], axis=1)[:, ::-1]
        return labels, np.where(shifted == IGNORE, config.padding_id, shifted), real

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
        """The loss of a call alone: no array of the logits of all tokens is made.

        The parameters are those of a call, but for what its output is to have.
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

        The parameters are those of a call, and of ``ReformerModelWithLMHead.loss_and_gradients``:
        `memory_budget` is in place of both sides' own, and serves the decoder first.

        Returns
        -------
        loss : float
            nan where no label counts.
        gradients : dict of str to ndarray
            By the names of `parameters`.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        MemoryError
            The step takes more memory than is free: with the numbers, and before it starts.
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
        needed, kept = self._plan(encoder_pass, decoder_pass, memory_budget, free)
        tokens = f"{inputs.b} x {inputs.t} tokens and {decoder_pass.inputs.t} to write"
        needed.check(free, tokens)
        self.encoder._keep_num_buckets(encoder_pass)
        encode(encoder_pass, states, differentiate=True, kept_layers=kept[0])
        states.gradient = np.zeros_like(states.states)
        loss = self.decoder._differentiate(decoder_pass, targets, kept[1])
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
        """How many labels the loss of these arguments is a mean over: those other than -100.

        The parameters are those of `loss_and_gradients`.
        """
        refuse_unknown(arguments, signature(self.loss_and_gradients).parameters, "count_targets")
        self._check_labels(arguments.get("labels"))
        return self.decoder.head.count(self.decoder.config, arguments)

    def _check_labels(self, labels: Any) -> None:
        if labels is None:
            raise TypeError(f"labels: needed for a loss of {type(self).__name__}")

    def _plan(
        self, encoder_pass: Pass, decoder_pass: Pass, budget: float | None, free: int | None
    ) -> tuple[StepMemory, tuple[int, int]]:
        """The memory of a step, and how many layers of the encoder and of the decoder keep their
        activations; the decoder's come first.

        `budget` is that of both sides; None: each has its own. `free` bytes are available.
        """
        own = self.decoder._budget(budget, free)
        decoder, of_decoder = decoder_pass.plan(own, self.decoder.head.loss_bytes(decoder_pass))
        if budget is None:
            left = self.encoder._budget(None, None if free is None else free - int(decoder.kept))
        else:
            left = own - decoder.kept
        encoder, of_encoder = encoder_pass.plan(left, blocks_bytes(encoder_pass, 0))
        assert decoder_pass.call.encoder_states is not None
        states = decoder_pass.call.encoder_states.states.nbytes
        memory = StepMemory(
            # and the encoder's states, and their gradient
            streams=encoder.streams + decoder.streams + 2 * states,
            gradients=encoder.gradients + decoder.gradients,
            kept=encoder.kept + decoder.kept,
            working=max(encoder.working, decoder.working + heap_gaps(states)),
        )
        return memory, (of_encoder, of_decoder)

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
        """What a training step takes, before it is taken.

        Parameters
        ----------
        length, decoder_length : int
            Tokens to read, and to write (by default as many).
        batch, num_hashes, memory_budget
            As in ``ReformerModelWithLMHead.memory``.

        Returns
        -------
        StepMemory

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        """
        batch, c = integer("batch", batch, 1), self.encoder.config.hidden_size
        call = Call(num_hashes=num_hashes, training=True)
        encoder_pass = self.encoder._pass_of_length("length", length, batch, call)
        if decoder_length is None:
            decoder_length = length
        # as large as the states, without memory of its own
        states = np.broadcast_to(self.dtype.type(0), (batch, encoder_pass.inputs.t, 2 * c))
        call = replace(call, encoder_states=EncoderStates(states))
        decoder_pass = self.decoder._pass_of_length("decoder_length", decoder_length, batch, call)
        return self._plan(encoder_pass, decoder_pass, memory_budget, available_memory())[0]
