"""An encoder and a decoder: a Reformer that reads a text, and one that writes another about it.

The encoder is a bidirectional `ReformerModel`. The decoder is a causal Reformer whose layers have a
third part between attention and feed-forward: full attention to the encoder's final states (Vaswani
et al. 2017, section 3.2.3). The three take turns on the two streams, so the decoder is reversible
too (as in the Reformer's machine translation, Kitaev et al. 2020, section 5): memory does not grow
with the depth of either.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import numpy as np

from .attention import CrossAttention, Memory
from .body import Pass, StepMemory, heap_gaps, norm_shapes
from .checkpoint import load_into, local_folder, read_folder, save_model, what_does_not_fit
from .checks import flag, integer, names_keywords, refuse_unknown
from .config import ReformerConfig
from .generation_config import GENERATION_CONFIG, GenerationConfig
from .heads import LanguageModel, blocks_bytes
from .inputs import IGNORE, Inputs, check_ids, rows_of
from .model import Reformer, ReformerModel, ReformerModelWithLMHead
from .nn import Joined, Parameters, draw_seed, random_key
from .outputs import EncoderDecoderOutput, Loss, ReformerOutput
from .runtime import available_memory, reuse_memory
from .weights import HUB_WEIGHTS, Model

__all__ = ["EncoderDecoderOutput", "ReformerEncoderDecoder"]

SIDES = ("encoder", "decoder")


class DecoderPass(Pass):
    """The body of a decoder, whose layers also attend to the encoder's states."""

    side = "decoder_"

    def __init__(
        self, *args: Any, memory: Memory, began: np.ndarray | None = None, **rest: Any
    ) -> None:
        self._memory, self._began = memory, began
        super().__init__(*args, **rest)

    def _layer(self, i: int, kind: str, weights: Any, common: dict, hashing: Any) -> tuple:
        attention, feed_forward = super()._layer(i, kind, weights, common, hashing)
        cross = CrossAttention(
            weights.below("cross_attention."), memory=self._memory, texts=self._began,
            num_heads=self.config.num_attention_heads,
            attention_dropout=attention.rules["dropout"], softcap=self.config.softcap,
            key=partial(self.key, "layer", i, "cross attention"), **common,
        )  # fmt: skip
        return attention, cross, feed_forward

    def forward(self, *, attentions: bool = False, **rest: Any) -> list[np.ndarray]:
        for _, cross, _ in self.layers:
            cross.record = attentions
        return super().forward(attentions=attentions, **rest)

    @property
    def cross_attentions(self) -> tuple[np.ndarray, ...]:
        """What the layers recorded."""
        t = self.inputs.t
        recorded = (cross.probabilities for _, cross, _ in self.layers)
        return tuple(p[:, :, :t] for p in recorded if p is not None)


class TextDecoder(ReformerModelWithLMHead):
    """A causal language model that attends to an encoder's states: see `with_states`."""

    side = DecoderPass.side
    head: ClassVar[LanguageModel] = LanguageModel(causal=True, ahead=0)
    _width: int
    _memory: Memory | None = None
    # of each row that is read, what tells it from others
    _read: Sequence[str] = ()

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

    def with_states(self, memory: Memory) -> TextDecoder:
        """The same decoder, with the same weights, that looks at this memory."""
        twin = copy.copy(self)
        twin._memory = memory
        return twin

    def _text_key(self, row: int, prompt: np.ndarray) -> str:
        return self._read[row] + " " + super()._text_key(row, prompt)

    def _pass(self, inputs: Inputs, began: np.ndarray | None = None, **rest: Any) -> DecoderPass:
        if self._memory is None:
            raise TypeError("a decoder alone has nothing to look at: call ReformerEncoderDecoder")
        parameters = {**self.parameters, **self.buffers}
        return DecoderPass(
            self.config, parameters, self.prefix, inputs, memory=self._memory, began=began, **rest
        )


class ReformerEncoderDecoder(Model):
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

    encoder: ReformerModel
    decoder: TextDecoder

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
        for name, side in zip(SIDES, (self.encoder, self.decoder), strict=True):
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

    def __repr__(self) -> str:
        count = self.num_parameters()
        kinds = (", ".join(side.config.layer_types) for side in (self.encoder, self.decoder))
        layers = " | ".join(kinds)
        return f"<{type(self).__name__}: {count:,} parameters, {self.dtype}, layers {layers}>"

    @property
    def dtype(self) -> np.dtype:
        return self.encoder.dtype

    @property
    def sides(self) -> dict[str, Reformer]:
        """Both models by their names."""
        return {name: getattr(self, name) for name in SIDES}

    @property
    def start_token_id(self) -> int:
        """What every text of the decoder begins with."""
        return self._start_token(self.generation_config, {})

    def _start_token(self, defaults: GenerationConfig, options: dict) -> int:
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
        config = self.decoder.config
        hidden_states = bool(config.output_hidden_states)
        record = flag("output_hidden_states", output_hidden_states, hidden_states)
        attentions = flag("output_attentions", output_attentions, bool(config.output_attentions))
        buckets = flag("output_buckets", output_buckets, False)
        return_dict = flag("return_dict", return_dict, bool(config.return_dict))
        read, memory, run, wanted = self._begin(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, labels,
            inputs_embeds, num_hashes, rotations, decoder_rotations, draw_seed(rng),
            training=False, attentions=attentions,
        )  # fmt: skip
        encoder = ReformerOutput()
        read.choose_num_buckets_by_row()
        states = read.forward(record=record, attentions=attentions)
        encoder.last_hidden_state = self._remember(read, memory)
        written = run.forward(record=record, attentions=attentions)
        head = self.decoder.head
        output = EncoderDecoderOutput(**head.outputs(run), encoder=encoder)
        if wanted is not None:
            output.loss = Loss(head.loss(run, wanted, differentiate=False))
        if record:
            encoder.hidden_states, output.hidden_states = tuple(states), tuple(written)
        if attentions:
            encoder.attentions, output.attentions = read.attentions, run.attentions
            output.cross_attentions = run.cross_attentions
        encoder.cut_shares, output.cut_shares = read.cut_shares, run.cut_shares
        if buckets:
            encoder.buckets, output.buckets = read.buckets, run.buckets
        return output if return_dict else output.to_tuple()  # type: ignore[return-value]

    def _begin(
        self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any,
        decoder_attention_mask: Any, labels: Any, inputs_embeds: Any, num_hashes: Any,
        rotations: Any, decoder_rotations: Any, seed: int, *, training: bool,
        attentions: bool = False, needs_loss: bool = False,
    ) -> tuple[Pass, Memory, DecoderPass, Any]:  # fmt: skip
        """Check everything; both passes, the memory between them, not filled yet, and labels."""
        read, memory = self._begin_encoder(
            input_ids, attention_mask, inputs_embeds, num_hashes, rotations, seed,
            training=training, attentions=attentions,
        )  # fmt: skip
        if needs_loss:
            self._check_labels(labels)
        if labels is None and decoder_input_ids is None:
            raise TypeError("decoder_input_ids: expected them, or labels that are to be written")
        if decoder_input_ids is None:
            labels, decoder_input_ids, real = self._moved(labels, read.inputs.b)
            if decoder_attention_mask is None:
                decoder_attention_mask = real
        run, wanted = self.decoder.with_states(memory)._begin(
            decoder_input_ids, decoder_attention_mask, None, None, num_hashes, decoder_rotations,
            random_key(seed, "decoder"), training, {"labels": labels}, needs_loss, attentions,
        )  # fmt: skip
        assert isinstance(run, DecoderPass)
        if run.inputs.b != read.inputs.b:
            raise ValueError(
                f"decoder_input_ids: expected {read.inputs.b} rows, as input_ids has, "
                f"got {run.inputs.b}"
            )
        run.take_rows_alone()
        return read, memory, run, wanted

    def _begin_encoder(
        self, input_ids: Any, attention_mask: Any, inputs_embeds: Any, num_hashes: Any,
        rotations: Any, seed: int, *, training: bool, attentions: bool = False,
    ) -> tuple[Pass, Memory]:  # fmt: skip
        read, _ = self.encoder._begin(
            input_ids, attention_mask, None, inputs_embeds, num_hashes, rotations,
            random_key(seed, "encoder"), training, {}, False, attentions,
        )  # fmt: skip
        inputs = read.inputs
        states = np.empty((inputs.b, inputs.t, 2 * self.encoder.config.hidden_size), self.dtype)
        mask = None if inputs.mask is None else inputs.mask[:, : inputs.t]
        return read, Memory(states, None if mask is None or mask.all() else mask)

    def _moved(self, labels: Any, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checked labels, what the decoder reads to write them (they themselves, one place later),
        and which of that is real: not what the tail of ignored labels would follow."""
        config = self.decoder.config
        labels = check_ids("labels", labels, config.vocab_size, ignore=IGNORE)
        rows, t = labels.shape
        if rows != b:
            raise ValueError(f"labels: expected {b} rows, as input_ids has, got {rows}")
        if not 0 < t <= config.num_positions:
            raise ValueError(
                f"labels: expected 1 to {config.num_positions} tokens (positions), got {t}"
            )
        moved = np.insert(labels[:, :-1], 0, self.start_token_id, axis=1)
        counts = labels != IGNORE
        counts[:, 0] = True  # a row has one token at least
        real = np.logical_or.accumulate(counts[:, ::-1], axis=1)[:, ::-1]
        return labels, np.where(moved == IGNORE, config.padding_id, moved), real

    @staticmethod
    def _remember(read: Pass, memory: Memory) -> np.ndarray:
        """Fill the memory from a pass that has run forward; the encoder's states."""
        memory.states[...] = read.map_final(memory.states.shape[-1], lambda h: h)
        return memory.states

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
        read, memory, run, wanted = self._begin(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, labels,
            inputs_embeds, num_hashes, rotations, decoder_rotations, draw_seed(rng),
            training=False, needs_loss=True,
        )  # fmt: skip
        read.choose_num_buckets_by_row()
        read.forward()
        self._remember(read, memory)
        run.forward()
        return self.decoder.head.loss(run, wanted, differentiate=False)

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
        read, memory, run, wanted = self._begin(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, labels,
            inputs_embeds, num_hashes, rotations, decoder_rotations, draw_seed(rng),
            training=training, needs_loss=True,
        )  # fmt: skip
        free = available_memory()
        needed = self._plan(read, memory, run, memory_budget, free)
        if free is not None and needed.total > free:
            raise MemoryError(
                f"a step of {read.inputs.b} x {read.inputs.t} tokens and {run.inputs.t} to write "
                f"takes {needed}, and {free / 1e9:.3g} GB are free"
            )
        self.encoder._keep_num_buckets(read)
        read.forward(differentiate=True)
        self._remember(read, memory)
        memory.gradient = np.zeros_like(memory.states)
        loss, written = self.decoder._differentiate(run, wanted)
        # the encoder's states are its final ones, a block of rows after another
        dstates = memory.gradient
        if read.inputs.n > read.inputs.t:  # padded in evaluation
            dstates = np.pad(dstates, ((0, 0), (0, read.inputs.n - read.inputs.t), (0, 0)))
        dstates = dstates.reshape(-1, dstates.shape[-1])
        del memory.states, memory.gradient
        for rows in read.blocks():
            _, normed = read.final(rows)
            read.final_backward(rows, dstates[rows], normed)
        del dstates
        read.backward()
        for name, array in self.encoder.parameters.items():
            if name not in read.gradients:
                read.gradients[name] = np.zeros_like(array)
        gradients = {f"encoder.{name}": read.gradients[name] for name in self.encoder.parameters}
        return loss, gradients | {f"decoder.{name}": array for name, array in written.items()}

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
        self, read: Pass, memory: Memory, run: Pass, budget: float | None, free: int | None
    ) -> StepMemory:
        """Let layers keep their activations, the decoder's first; what a step takes then.

        `budget` is that of both sides, None: each its own; `free` bytes are there.
        """
        given = self.decoder._budget(budget, free)
        writing = run.plan(given, self.decoder.head.loss_bytes(run))
        if budget is None:
            left = self.encoder._budget(None, None if free is None else free - int(writing.kept))
        else:
            left = given - writing.kept
        reading = read.plan(left, blocks_bytes(read, 0))
        return StepMemory(
            # and the encoder's states, and their gradient
            streams=reading.streams + writing.streams + 2 * memory.states.nbytes,
            gradients=reading.gradients + writing.gradients,
            kept=reading.kept + writing.kept,
            working=max(reading.working, writing.working + heap_gaps(memory.states.nbytes)),
        )

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
        lengths = {"length": length, "decoder_length": decoder_length}
        if decoder_length is None:
            lengths["decoder_length"] = length
        batch, passes = integer("batch", batch, 1), []
        for (name, t), side in zip(lengths.items(), (self.encoder, self.decoder), strict=True):
            t = integer(name, t, 1)
            if t > side.config.num_positions:
                raise ValueError(
                    f"{name}: expected at most {side.config.num_positions} (positions), got {t}"
                )
            inputs = Inputs(None, None, np.empty((1, 0)), None, batch, t, t)
            if side is self.encoder:
                # as large as the states, and no memory of its own
                shape = (batch, t, 2 * side.config.hidden_size)
                states = Memory(np.broadcast_to(self.dtype.type(0), shape))
            else:
                side = self.decoder.with_states(states)
            passes.append(side._pass(inputs, seed=0, training=True, num_hashes=num_hashes))
        return self._plan(passes[0], states, passes[1], memory_budget, available_memory())

    # ---- writing ----

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
        """Write a text for each row that is read: greedily, by sampling, or by beam search.

        Each row is read and written as it would be alone, without the padding at its end.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds, num_hashes, rotations, decoder_rotations
            As in a call; ids and masks of one text may have the shape (s,).
        decoder_input_ids : array_like of int, (b, t) or (t,), optional
            What is written already; by default the token that begins every text.
        decoder_attention_mask : array_like, (b, t) or (t,), optional
            Nonzero for a real token of it.
        rng, generation_config, streamer, **options
            As in ``ReformerModelWithLMHead.generate``: max_new_tokens, num_beams, eos_token_id ...
            `decoder_start_token_id` begins every text.

        Returns
        -------
        ndarray of int64, (b * num_return_sequences, t + new)
            What was written already, and the new tokens.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        """
        seed = draw_seed(rng)
        read, memory = self._begin_encoder(
            rows_of("input_ids", input_ids), rows_of("attention_mask", attention_mask),
            inputs_embeds, num_hashes, rotations, seed, training=False,
        )  # fmt: skip
        if decoder_input_ids is None:
            defaults = self.generation_config
            if isinstance(generation_config, GenerationConfig):
                defaults = generation_config.over(defaults)
            first = self._start_token(defaults, options)
            decoder_input_ids = np.full((read.inputs.b, 1), first)
        elif options.get("decoder_start_token_id") is not None:
            raise TypeError("decoder_start_token_id: expected it, or decoder_input_ids")
        decoder = self.decoder.with_states(memory)
        decoder._read = _keys_of_rows(read.inputs)
        read.take_rows_alone()
        # what is wrong shows before any work
        prepared = decoder._prepare(
            decoder_input_ids, decoder_attention_mask, generation_config, num_hashes,
            decoder_rotations, random_key(seed, "decoder"), options,
        )  # fmt: skip
        decoder._check_streamer(streamer, prepared[3].options)
        if len(prepared[0]) != read.inputs.b:
            raise ValueError(
                f"decoder_input_ids: expected {read.inputs.b} rows, as input_ids has, "
                f"got {len(prepared[0])}"
            )
        read.forward()
        self._remember(read, memory)
        return decoder._write(streamer, *prepared)

    # ---- files ----

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json, with both sides' configurations, and model.safetensors; atomically.

        Raises
        ------
        ImportError
            The safetensors library is not installed (extra ``cli``).
        """
        config = {
            "architectures": [type(self).__name__],
            "is_encoder_decoder": True,
            "model_type": "encoder-decoder",
            "encoder": self.encoder.config.to_dict(),
            "decoder": self.decoder.config.to_dict(),
        }
        tensors = {**self.parameters, **self.buffers}
        save_model(folder, config, tensors, self.decoder._texts_of_folder())

    @classmethod
    @names_keywords
    def from_pretrained(
        cls, folder: str | os.PathLike, *, dtype: Any = np.float32, revision: str | None = None
    ) -> ReformerEncoderDecoder:
        """The model of a folder that `save_pretrained` wrote.

        Parameters
        ----------
        folder : path or str
            Or the name of such a model on the Hugging Face hub.
        dtype : float32 or float64
            What the weights are cast to.
        revision : str, optional
            Branch, tag or commit on the hub.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files is not there.
        ValueError
            The folder holds another model; names the tensors that do not fit.
        ImportError
            The safetensors library, or huggingface_hub for a name on the hub, is not installed
            (extra ``hf``).
        """
        always = ["config.json", GENERATION_CONFIG]
        folder = local_folder(folder, revision, HUB_WEIGHTS, always=always)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sides = [config.get(name) if isinstance(config, dict) else None for name in SIDES]
        encoder, decoder = (
            ReformerConfig.from_dict(side) if isinstance(side, dict) else None for side in sides
        )
        if encoder is None or decoder is None:
            raise ValueError(
                f"folder: the config.json in {os.fspath(folder)!r} has no encoder and decoder"
            )
        model = cls.__new__(cls)
        model._allocate(encoder, decoder, dtype)
        arrays = {**model.parameters, **model.buffers}
        message = what_does_not_fit(*load_into(arrays, read_folder(folder), lambda name: name))
        if message:
            raise ValueError(
                f"the weights in {os.fspath(folder)!r} are not those of this {cls.__name__} "
                f"({message})"
            )
        model.decoder._read_texts(folder, {})
        return model


def _keys_of_rows(inputs: Inputs) -> list[str]:
    """What tells each row that is read from others: its tokens or vectors, without padding."""
    rows = inputs.input_ids if inputs.inputs_embeds is None else inputs.inputs_embeds
    assert rows is not None
    mask = np.ones(rows.shape[:2], bool) if inputs.mask is None else inputs.mask
    digest = partial(hashlib.blake2b, digest_size=16)
    return [digest(row[real].tobytes()).hexdigest() for row, real in zip(rows, mask, strict=True)]
