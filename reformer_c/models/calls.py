"""Calls of a model: evaluation, loss, gradients, and the memory of a training step.

A model is a configuration, its weights and a head. Each call runs a `Pass` over them and keeps no
state; only `ReformerModel.forward` holds its pass, for `backward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..checks import did_you_mean, flag, integer, names_keywords, refuse_unknown
from ..layers.randomness import draw_seed
from ..runtime import available_memory, reuse_memory
from .body import Pass, Plan, StepMemory
from .config_checks import check_memory_budget
from .inputs import Call, Inputs, check_inputs
from .outputs import Loss, ReformerOutput, Requested
from .summary import ModelSummary, longest_of, summarize
from .weights import Weighted

__all__ = ["Reformer", "ReformerWithLoss"]

# arguments of a call or of a loss that do not belong to the head
CALLED_WITH = (
    "input_ids", "attention_mask", "position_ids", "inputs_embeds", "num_hashes", "rotations",
    "rng", "output_hidden_states", "output_attentions", "output_buckets", "return_dict",
    "training", "memory_budget",
)  # fmt: skip


Output = TypeVar("Output", bound=ReformerOutput)


class Reformer(Weighted):
    """A Reformer with a head: the base of the models.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises them. The same integer gives the same
        weights, whatever the head and the dtype.
    dtype : float32 or float64, "bfloat16" or float16
        Dtype of weights, activations and gradients; with half precision activations are float32,
        and training is refused.

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
        TypeError
            An argument has another type or dtype, or there is no such argument.
        ValueError
            A shape, a length or a value does not fit the configuration or the other arguments.
        """
        requested = Requested.of(
            self.config, output_hidden_states, output_attentions, output_buckets, return_dict
        )
        call = Call(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations,
            draw_seed(rng), requested=requested, rows_alone=None,
        )  # fmt: skip
        run, checked = self._begin(call, targets)
        run.forward()
        output = self._describe(run, checked, ReformerOutput())
        return output if requested.return_dict else output.to_tuple()  # type: ignore[return-value]

    def _begin(
        self, call: Call, targets: dict[str, Any], *, needs_loss: bool = False
    ) -> tuple[Pass, Any]:
        """Check all arguments. Returns the pass, and the targets in the form the head expects."""
        head, name = self.head, type(self).__name__
        known = {*head.targets, *head.options}
        for unknown in targets.keys() - known:
            others = {*known, *CALLED_WITH} - {unknown}
            raise TypeError(
                f"{unknown}: {name} has no such argument{did_you_mean(unknown, others)}"
            )
        given = {target: value for target, value in targets.items() if value is not None}
        if given or needs_loss:
            self._check_given(targets)
        inputs = check_inputs(self.config, self.compute_dtype, self._pad_vector, call)
        head.check_inputs(inputs)
        checked = head.check_targets(self.config, inputs, given) if given else None
        return self._pass(inputs, call), checked

    def _pass_of_length(self, name: str, length: Any, batch: int, call: Call) -> Pass:
        """A pass without tokens, for planning."""
        length, longest = integer(name, length, 1), self.config.num_positions
        if length > longest:
            raise ValueError(f"{name} must be at most {longest} (positions), got {length}")
        return self._pass(Inputs.of_length(batch, length), call)

    def _describe(self, run: Pass, targets: Any, output: Output) -> Output:
        """Fill the output of a pass that has run forward."""
        for name, value in self.head.outputs(run).items():
            setattr(output, name, value)
        if targets is not None:
            output.loss = Loss(self.head.loss(run, targets, differentiate=False))
        run.describe(output)
        return output

    def _gradients(self, run: Pass) -> dict[str, np.ndarray]:
        """The gradients of all parameters, after the backward pass: 0 for those it did not use."""
        return {
            name: run.gradients[name] if name in run.gradients else np.zeros_like(array)
            for name, array in self.parameters.items()
        }

    def _check_given(self, targets: Mapping[str, Any]) -> None:
        names = self.head.targets
        if any(targets.get(name) is None for name in names):
            raise TypeError(
                f"{' and '.join(names)} must be given for a loss of {type(self).__name__}"
            )

    def _keep_num_buckets(self, run: Pass) -> None:
        """Keep the number of buckets that the first training step chose."""
        chosen = run.chosen_num_buckets
        if self.config.num_buckets is None and chosen is not None:
            # the caller's configuration is not changed
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

    # ---- memory ----

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
        TypeError
            A size is not an integer, or the budget is not a number.
        ValueError
            A size or the budget is too small, or `length` exceeds the model's positions.

        Examples
        --------
        >>> from reformer_c import ReformerConfig, ReformerForMaskedLM
        >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
        >>> deeper = ReformerConfig(attn_layers=["local", "lsh"] * 4, num_attention_heads=2)
        >>> shallow, deep = (ReformerForMaskedLM(c, rng=0).memory(4096) for c in (config, deeper))
        >>> deep.working <= shallow.working, deep.total < 1.5 * shallow.total
        (True, True)
        """
        call = Call(num_hashes=num_hashes, training=True)
        run = self._pass_of_length("length", length, integer("batch", batch, 1), call)
        return self._plan(run, memory_budget, available_memory()).memory

    @names_keywords
    def summary(self, length: int | None = None, batch: int = 1) -> ModelSummary:
        """Parameters by layer, and the memory that a training step of (batch, length) takes.

        Parameters
        ----------
        length, batch : int
            Tokens per sequence, by default ``config.max_position_embeddings`` or the model's
            positions if they are fewer; and number of sequences.

        Returns
        -------
        ModelSummary
            Prints as a table.

        Raises
        ------
        TypeError, ValueError
            As `memory`.

        Examples
        --------
        >>> from reformer_c import ReformerConfig, ReformerModelWithLMHead
        >>> config = ReformerConfig(
        ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
        ... )
        >>> for part in ReformerModelWithLMHead(config, rng=0).summary(4096).parts:
        ...     print(part.name, part.layer_type, part.parameters)
        reformer.embeddings  98304
        reformer.encoder.layers.0 local 395008
        reformer.encoder.layers.1 lsh 362240
        reformer.encoder  1024
        lm_head.decoder  163840
        lm_head.bias  320
        """
        length = longest_of(self.config) if length is None else length
        run = self._pass_of_length(
            "length", length, integer("batch", batch, 1), Call(training=True)
        )
        title = f"{type(self).__name__}, a training step of {batch} x {length:,} tokens"
        step = self._plan(run, None, available_memory()).memory
        return summarize(title, self.parameters, {self.prefix: run}, step)

    def _plan(self, run: Pass, memory_budget: float | None, free: int | None) -> Plan:
        """Plan a training step, if `free` bytes are available."""
        self._check_trained()
        return run.plan(self._budget(memory_budget, free), self.head.loss_bytes(run))

    def _kept_layers(self, run: Pass, memory_budget: float | None) -> int:
        """The number of layers that keep their activations in a training step; MemoryError if it
        does not fit into memory."""
        free = available_memory()
        plan = self._plan(run, memory_budget, free)
        plan.memory.check(free, f"{run.inputs.b} x {run.inputs.t} tokens")
        return plan.kept_layers


class ReformerWithLoss(Reformer):
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

        It is the ``.loss`` of a call.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations
            As in a call.
        rng, **targets
            As in a call.
        """
        call = Call(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations,
            draw_seed(rng), rows_alone=None,
        )  # fmt: skip
        run, checked = self._begin(call, targets, needs_loss=True)
        run.forward()
        return self.head.loss(run, checked, differentiate=False)

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
        gradients are exact for the given dropout masks and buckets.

        If ``config.num_buckets`` is None, the first step that hashes (more than one chunk, or any
        length with ``attention_scope="bucket"``) chooses it from the length of its batch for all
        later calls: the model's configuration is replaced by one with that number, which is saved
        with the model.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations
            As in a call.
        rng : int, numpy Generator or None
            Draws dropout and rotations: an integer reproduces them, bit for bit.
        training : bool
            False: without dropout and label smoothing.
        memory_budget : int or float, optional
            In place of ``config.memory_budget``: bytes for keeping activations, layer by layer from
            the last, instead of recomputing them; a float up to 1 is a share of the memory that is
            free now. Recomputed activations differ from kept ones by rounding.
        **targets
            The targets of the loss: see the model.

        Returns
        -------
        loss : float
            nan if all targets are ignored.
        gradients : dict of str to ndarray
            By the names of `parameters`.

        Raises
        ------
        TypeError
            An argument has another type or dtype; a target is missing or unknown.
        ValueError
            A shape, a length or a value does not fit the configuration or the other arguments.
        MemoryError
            The step would take more memory than is free; raised before it starts, with the numbers.
        """
        call = Call(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations,
            draw_seed(rng), flag("training", training),
        )  # fmt: skip
        run, checked = self._begin(call, targets, needs_loss=True)
        loss = self._differentiate(run, checked, self._kept_layers(run, memory_budget))
        return loss, self._gradients(run)

    def count_targets(
        self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any
    ) -> int | tuple[int, ...]:
        """The number of targets that the loss of these arguments averages over.

        Losses and gradients of several batches, averaged with these weights, equal those of one
        batch of all their rows. The loss of question answering is the mean of two means, over the
        starts and over the ends, whose numbers can differ: pass `counts` instead of a weight.

        Parameters
        ----------
        input_ids, attention_mask, **arguments
            As in `loss_and_gradients`.

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
        >>> from reformer_c import ReformerConfig, ReformerModelWithLMHead
        >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> model.count_targets(labels=[[5, 6, 7, -100], [5, 6, 7, 8]])
        5
        """
        known = [*self.head.targets, *self.head.options, *CALLED_WITH]
        refuse_unknown(arguments, known, "count_targets")
        self._check_given(arguments)
        return self.head.count(self.config, {"input_ids": input_ids, **arguments})

    def _differentiate(self, run: Pass, targets: Any, kept_layers: int) -> float:
        """Run a pass forward and backward; its loss."""
        self._keep_num_buckets(run)
        run.forward(differentiate=True, kept_layers=kept_layers)
        loss = self.head.loss(run, targets, differentiate=True)
        run.backward()
        return loss
