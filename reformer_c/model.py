"""The Reformer models, under Hugging Face's names and with their numbers.

A model is a configuration, its weights and a head. Each call runs a `Pass` over them and keeps no
state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .body import Pass, StepMemory
from .checks import did_you_mean, flag, integer, names_keywords, refuse_unknown
from .config import ReformerConfig, check_memory_budget  # noqa: F401 (the examples use it)
from .generation import Generation
from .heads import Classifier, Head, LanguageModel, QuestionAnswering
from .inputs import Inputs, check_inputs
from .nn import draw_seed
from .outputs import Loss, ReformerOutput
from .runtime import available_memory, reuse_memory
from .weights import Weighted

__all__ = [
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerOutput",
]

# arguments of a call or of a loss that are not the head's
CALLED_WITH = (
    "input_ids", "attention_mask", "position_ids", "inputs_embeds", "num_hashes", "rotations",
    "rng", "output_hidden_states", "output_attentions", "output_buckets", "return_dict",
    "training", "memory_budget",
)  # fmt: skip


class Reformer(Weighted):
    """A Reformer with a head: the base of the models.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises them. The same integer gives the same
        weights, whatever the head and the dtype.
    dtype : float32 or float64
        Dtype of weights, activations and gradients.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        Live, under Hugging Face's ``state_dict`` names: edit an array in place, or assign another
        of the same shape and dtype.
    buffers : dict of str to ndarray
        Constants that are saved with the weights and not trained (activation "xielu").
    """

    # ---- calls ----

    @reuse_memory()
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_buckets: bool = False,
        return_dict: bool | None = None,
        **targets: Any,
    ) -> ReformerOutput:
        """Evaluate the model: no dropout.

        Parameters
        ----------
        input_ids : array_like of int, (b, t)
            Any length up to ``config.num_positions``.
        attention_mask : array_like, (b, t), optional
            Nonzero for a real token.
        position_ids : array_like of int, (b, t) or (t,), optional
            0, 1, 2 ... by default.
        inputs_embeds : ndarray, (b, t, hidden_size), optional
            Word vectors, in place of `input_ids`.
        num_hashes : int, optional
            Rounds of LSH attention, in place of ``config.num_hashes``.
        rotations : sequence of ndarray, optional
            For each LSH layer (h, d, num_hashes, sum of num_buckets' factors / 2).
        rng : int, numpy Generator or None
            Draws the rotations if they are not given and ``config.hash_seed`` is None: an
            integer reproduces them, None draws new ones.
        output_hidden_states, output_attentions, output_buckets : bool
            Fill these fields of the output; the first two default to the configuration's values.
            Probabilities have Hugging Face's shapes: with n the length padded to whole chunks of
            m, and a window of (1 + before + after) m keys, (b, h, n/m, m, window) for a local
            layer, (b, h, r n/m, m, window) for an LSH layer, in sorted order, and (b, h, n, n) if
            n <= m or ``config.attention_scope`` is "bucket". The kernels never store them, so they
            are computed separately in NumPy: arrays of these sizes for each layer, and several
            times the time of a call.
        return_dict : bool, optional
            False returns the tuple of the output's values; None: ``config.return_dict``.
        **targets
            `labels`, or the other targets of the model's loss: see the model. With them, the output
            has a loss.

        Returns
        -------
        ReformerOutput, or tuple

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        """
        config = self.config
        hidden_states = bool(config.output_hidden_states)
        record = flag("output_hidden_states", output_hidden_states, hidden_states)
        attentions = flag("output_attentions", output_attentions, bool(config.output_attentions))
        buckets = flag("output_buckets", output_buckets, False)
        return_dict = flag("return_dict", return_dict, bool(config.return_dict))
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            False, targets, False, attentions,
        )  # fmt: skip
        run.choose_num_buckets_by_row()
        states = run.forward(record=record, attentions=attentions)
        output = ReformerOutput(**self.head.outputs(run))
        if wanted is not None:
            output.loss = Loss(self.head.loss(run, wanted, differentiate=False))
        if record:
            output.hidden_states = tuple(states)
        if attentions:
            output.attentions = run.attentions
        output.cut_shares = run.cut_shares
        if buckets:
            output.buckets = run.buckets
        return output if return_dict else output.to_tuple()  # type: ignore[return-value]

    def _begin(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any,
        num_hashes: Any, rotations: Any, rng: Any, training: bool, targets: dict, needs_loss: bool,
        whole_chunks: bool = False,
    ) -> tuple[Pass, Any]:  # fmt: skip
        """Check all arguments. Returns the pass, and the targets in the form the head expects."""
        head, name = self.head, type(self).__name__
        known = {*head.targets, *head.options}
        for unknown in targets.keys() - known:
            others = {*known, *CALLED_WITH} - {unknown}
            raise TypeError(
                f"{unknown}: {name} has no such argument{did_you_mean(unknown, others)}"
            )
        training = flag("training", training)
        given = {target: value for target, value in targets.items() if value is not None}
        if given or needs_loss:
            self._check_given(targets)
        inputs = check_inputs(
            self.config, self.dtype, self._pad_vector, input_ids, inputs_embeds, attention_mask,
            position_ids, training, whole_chunks, self.side,
        )  # fmt: skip
        head.check_inputs(inputs)
        wanted = head.check_targets(self.config, inputs, given) if given else None
        run = self._pass(
            inputs, seed=draw_seed(rng), training=training, num_hashes=num_hashes,
            rotations=rotations,
        )  # fmt: skip
        return run, wanted

    def _check_given(self, targets: Mapping[str, Any]) -> None:
        names = self.head.targets
        if any(targets.get(name) is None for name in names):
            raise TypeError(f"{' and '.join(names)}: needed for a loss of {type(self).__name__}")

    def _keep_num_buckets(self, run: Pass) -> None:
        """Keep the number of buckets that the first training step chose."""
        chosen = run.chosen_num_buckets
        if self.config.num_buckets is None and chosen is not None:
            # the caller's configuration stays as it is
            self.config = replace(self.config, num_buckets=chosen)  # type: ignore[arg-type]

    @property
    def sides(self) -> dict[str, Reformer]:
        """The models that this one consists of, by their keys in config.json."""
        return {"": self}

    def _budget(self, memory_budget: float | None, free: int | None) -> float:
        """The budget in bytes; a float up to 1 is a share of the free memory."""
        if memory_budget is None:
            memory_budget = self.config.memory_budget or 0
        else:
            check_memory_budget(memory_budget)
        if isinstance(memory_budget, float) and memory_budget <= 1.0:
            # if the free memory is unknown, nothing is kept
            return memory_budget * (free or 0)
        return memory_budget


class ReformerModel(Reformer):
    """The bare Reformer (Kitaev et al. 2020): its output is `last_hidden_state` (b, t, 2 c).

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
    >>> model = ReformerModel(config, rng=0)
    >>> model(np.arange(100)[None], rng=0).last_hidden_state.shape
    (1, 100, 512)
    """

    prefix = ""
    head = Head()


class _WithLoss(Reformer):
    """A model whose head has a loss."""

    def loss(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        **targets: Any,
    ) -> float:
        """The loss only: the logits of all tokens are never in memory at once.

        The parameters are those of a call, and the result is its ``.loss``.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            False, targets, True,
        )  # fmt: skip
        run.choose_num_buckets_by_row()
        run.forward()
        return self.head.loss(run, wanted, differentiate=False)

    @reuse_memory()
    def loss_and_gradients(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        training: bool = True,
        memory_budget: float | None = None,
        **targets: Any,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss, and its gradient with respect to every parameter.

        Activations are recomputed in the backward pass (Kitaev et al. 2020, section 3): memory does
        not grow with the number of layers, except for what `memory_budget` allows to be kept. The
        gradients are exact for the dropout and the buckets that were drawn.

        If ``config.num_buckets`` is None, the first step that hashes (more than one chunk, or any
        length with ``attention_scope="bucket"``) chooses it from the length of its batch for all
        later calls: the model's configuration is replaced by one with that number, which is saved
        with the model.

        Parameters
        ----------
        memory_budget : int or float, optional
            In place of ``config.memory_budget``: bytes for keeping activations, layer by layer from
            the last, instead of recomputing them; a float up to 1 is a share of the memory that is
            free now. Recomputed activations differ from kept ones by rounding.
        rng : int, numpy Generator or None
            Draws dropout and rotations: an integer reproduces them, bit for bit.
        training : bool
            False: without dropout.
        **targets
            The targets of the loss: see the model.

        The other parameters are those of a call.

        Returns
        -------
        loss : float
            nan if all targets are ignored.
        gradients : dict of str to ndarray
            By the names of `parameters`.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        MemoryError
            The step would take more memory than is free; raised before it starts, with the numbers.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            training, targets, True,
        )  # fmt: skip
        free = available_memory()
        needed = run.plan(self._budget(memory_budget, free), self.head.loss_bytes(run))
        if free is not None and needed.total > free:
            raise MemoryError(
                f"a step of {run.inputs.b} x {run.inputs.t} tokens takes {needed}, and "
                f"{free / 1e9:.3g} GB are free"
            )
        return self._differentiate(run, wanted)

    def count_targets(
        self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any
    ) -> int | tuple[int, ...]:
        """The number of targets that the loss of these arguments averages over.

        Losses and gradients of several batches, averaged with these weights, equal those of one
        batch of all their rows. The loss of question answering is made of two means, of the starts
        and of the ends, whose numbers can differ: it takes `counts` in place of a weight.

        The parameters are those of `loss_and_gradients`; the targets among them are counted.

        Returns
        -------
        int or tuple of int
            For a language model, the labels other than -100 (if causal, except those of the first
            tokens); for a classifier, the rows whose label is not -100; for question answering,
            two numbers: the starts and the ends that are in the text. If one is 0, the loss is nan.

        Raises
        ------
        TypeError
            A target is missing.

        Examples
        --------
        >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> model.count_targets(labels=[[5, 6, 7, -100], [5, 6, 7, 8]])
        5
        """
        known = [*self.head.targets, *self.head.options, *CALLED_WITH]
        refuse_unknown(arguments, known, "count_targets")
        self._check_given(arguments)
        return self.head.count(self.config, {"input_ids": input_ids, **arguments})

    def _differentiate(self, run: Pass, wanted: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The rest of `loss_and_gradients`, for a planned pass."""
        self._keep_num_buckets(run)
        run.forward(differentiate=True)
        loss = self.head.loss(run, wanted, differentiate=True)
        run.backward()
        gradients = run.gradients
        for name, array in self.parameters.items():
            if name not in gradients:
                gradients[name] = np.zeros_like(array)
        return loss, {name: gradients[name] for name in self.parameters}

    @names_keywords
    def memory(
        self,
        length: int,
        batch: int = 1,
        *,
        num_hashes: int | None = None,
        memory_budget: float | None = None,
    ) -> StepMemory:
        """Predict the memory of a training step: `loss_and_gradients` of (batch, length).

        Parameters
        ----------
        length, batch : int
            Tokens per sequence, and number of sequences.
        num_hashes : int, optional
            Rounds of LSH attention, in place of ``config.num_hashes``.
        memory_budget : int or float, optional
            In place of ``config.memory_budget``.

        Returns
        -------
        StepMemory
            Bytes by part, and their `total`. Weights and the optimiser's state are not included:
            they exist already and are updated in place.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.

        Examples
        --------
        >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
        >>> deeper = ReformerConfig(attn_layers=["local", "lsh"] * 4, num_attention_heads=2)
        >>> shallow, deep = (ReformerForMaskedLM(c, rng=0).memory(4096) for c in (config, deeper))
        >>> deep.working <= shallow.working, deep.total < 1.5 * shallow.total
        (True, True)
        """
        length, batch = integer("length", length, 1), integer("batch", batch, 1)
        if length > self.config.num_positions:
            raise ValueError(
                f"length: expected at most {self.config.num_positions} (positions), got {length}"
            )
        inputs = Inputs(None, None, np.empty((1, 0)), None, batch, length, length)
        run = self._pass(inputs, seed=0, training=True, num_hashes=num_hashes)
        return run.plan(self._budget(memory_budget, available_memory()), self.head.loss_bytes(run))


class ReformerModelWithLMHead(Generation, _WithLoss):
    """A causal language model: logits (b, t, v) for the next token.

    `labels` (b, t) are the tokens themselves; they are shifted here, as in Hugging Face's model.
    -100 is ignored by the loss only: padding is defined by `attention_mask`. ``lm_head.bias`` is
    added to the logits, as in the original and in transformers except versions 5.0 to 5.23;
    ``config.apply_lm_head_bias=False`` leaves it out.

    Examples
    --------
    >>> config = ReformerConfig(
    ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
    ... )
    >>> model = ReformerModelWithLMHead(config, rng=0)
    >>> ids = np.arange(100)[None]
    >>> loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    >>> 5.5 < loss < 6.0, len(gradients) == len(model.parameters)
    (True, True)
    >>> model.generate(ids, max_new_tokens=5, rng=0).shape
    (1, 105)
    """

    head: ClassVar[LanguageModel] = LanguageModel(causal=True)


class ReformerForMaskedLM(_WithLoss):
    """A bidirectional language model: logits (b, t, v) for the tokens at their own positions.

    `labels` (b, t); -100, usually at the tokens that are not masked out, is ignored.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForMaskedLM(config, rng=0)
    >>> model(np.arange(10)[None]).logits.shape
    (1, 10, 320)
    """

    head = LanguageModel(causal=False)


class ReformerForSequenceClassification(_WithLoss):
    """A classifier of whole texts, from the state of the first token: logits (b, num_labels).

    `labels` depend on ``config.problem_type``: classes (b,) for "single_label_classification",
    zeros and ones (b, num_labels) for "multi_label_classification", numbers (b,) or
    (b, num_labels) for "regression". None means regression if num_labels is 1; otherwise the
    labels' dtype decides, and integers are classes.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, num_labels=3)
    >>> model = ReformerForSequenceClassification(config, rng=0)
    >>> output = model(np.arange(20).reshape(2, 10), labels=[0, 2])
    >>> output.logits.shape, 0.5 < output.loss < 1.5
    ((2, 3), True)
    """

    head = Classifier()


class ReformerForQuestionAnswering(_WithLoss):
    """Finds the start and the end of an answer in a text: start_logits and end_logits (b, t).

    `start_positions` and `end_positions` are integers (b,). Positions beyond the end of the text
    are ignored and negative ones count as its first token, as in Hugging Face's model. The loss is
    the mean of two means, over the starts and over the ends that are left.

    `counts` (2,), optional, are what these two sums are divided by, in place of the numbers of
    starts and of ends in this batch: with those of a larger batch, which ``count_targets`` tells,
    the losses and gradients of its parts add up to its own.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForQuestionAnswering(config, rng=0)
    >>> output = model(np.arange(10)[None], start_positions=[2], end_positions=[4])
    >>> output.start_logits.shape, 2.0 < output.loss < 2.6
    ((1, 10), True)
    """

    head = QuestionAnswering()
