"""The Reformer models, under Hugging Face's names and with their numbers.

A model is a configuration, its weights and a head. Each call runs a `Pass` over them and remembers
nothing.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .activations import WEIGHTED
from .body import WORDS, Pass, StepMemory, body_constants, body_shapes
from .checkpoint import load_into, local_folder, read_folder, save_model, what_does_not_fit
from .checks import NamedAttributes, did_you_mean, flag, integer, names_keywords, refuse_unknown
from .config import ReformerConfig, check_memory_budget
from .decode import Decoder, cache_bytes, num_buckets_of
from .generate import Grouped, Recomputed, Rules, Source, beam_search, stream_tokens
from .generation_config import GENERATION_CONFIG, GenerationConfig
from .heads import Classifier, Head, LanguageModel, QuestionAnswering
from .inputs import Inputs, check_ids, check_inputs, check_mask, rows_of
from .nn import Parameters, draw_seed, random_key
from .outputs import Loss, ReformerOutput
from .runtime import available_memory, memory_used_again, underflow_to_zero

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerOutput",
]

# constants that old checkpoints carry beside the weights
MASK_CONSTANTS = tuple(
    f"{kind}_value_float{bits}" for kind in ("self_mask", "mask") for bits in (16, 32)
)

# transformers has two of them, and adds one, none or the other: see docs/from_transformers.md
HEAD_BIAS, HEAD_BIAS_APPLIED = "lm_head.bias", "lm_head.decoder.bias"

# ends of names in reformer_pytorch's checkpoints
LUCIDRAINS = (".toqk.weight", ".tov.weight", "token_emb.weight")

# what begins the names of each head's weights
HEADS = ("lm_head", "classifier", "qa_outputs")

# arguments of a call or of a loss that are not the head's
CALLED_WITH = (
    "input_ids", "attention_mask", "position_ids", "inputs_embeds", "num_hashes", "rotations",
    "rng", "output_hidden_states", "output_attentions", "output_buckets", "return_dict",
    "training", "memory_budget",
)  # fmt: skip

# weights on the hub; the older file only where there is no newer one
HUB_WEIGHTS = (
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)


class Model(NamedAttributes):
    """What has weights by name, and is called."""

    buffers: dict[str, np.ndarray]
    _parameters: Parameters

    @property
    def parameters(self) -> Parameters:
        return self._parameters

    def num_parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(array.size for array in self.parameters.values())

    def eval(self) -> Self:
        """The model itself: every call is an evaluation, without dropout."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The model itself, of ``train(False)`` alone.

        Raises
        ------
        TypeError
            `mode` is True: no call trains. `loss_and_gradients` does, and has dropout by default.
        """
        if mode is not False:
            raise TypeError(
                f"mode: expected False, got {mode!r}: a call is always an evaluation, and dropout "
                "is in loss_and_gradients(..., training=True), its default"
            )
        return self


# what `generate` takes beside the options of a GenerationConfig
FUNCTIONS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
ARGUMENTS = ("input_ids", "attention_mask", "generation_config", "num_hashes", "rotations", "rng")
GENERATION_FIELDS = GenerationConfig.__dataclass_fields__.keys() - {"extra"}
OPTIONS = [*ARGUMENTS, *FUNCTIONS, *GENERATION_FIELDS]


class Reformer(Model):
    """A Reformer with a head: the base of the models.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises them. The same integer gives the same
        weights, whatever the head and the dtype.
    dtype : float32 or float64
        Of weights, activations and gradients.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        Live, under Hugging Face's ``state_dict`` names: edit an array in place, or assign another
        of the same shape and dtype.
    buffers : dict of str to ndarray
        Numbers that are saved with the weights and not trained: of the activation "xielu".
    """

    # names of the body's weights begin with it
    prefix: ClassVar[str] = "reformer."
    # the same of a call's arguments
    side: ClassVar[str] = ""
    head: ClassVar[Head]
    config: ReformerConfig
    dtype: np.dtype

    @names_keywords
    def __init__(self, config: ReformerConfig, *, rng: Any = None, dtype: Any = np.float32) -> None:
        self._allocate(config, dtype)
        self._initialise(self.parameters, rng)

    def __repr__(self) -> str:
        kinds = ", ".join(self.config.layer_types)
        count = self.num_parameters()
        return f"<{type(self).__name__}: {count:,} parameters, {self.dtype}, layers {kinds}>"

    @classmethod
    def _without_numbers(cls, config: ReformerConfig, dtype: Any) -> Self:
        """A model whose weights have no values yet."""
        model = cls.__new__(cls)
        model._allocate(config, dtype)
        return model

    def _allocate(self, config: ReformerConfig, dtype: Any) -> None:
        if not isinstance(config, ReformerConfig):
            raise TypeError(f"config: expected a ReformerConfig, got {type(config).__name__}")
        config.check()
        self.head.check_config(config)
        try:
            self.config, self.dtype = config, np.dtype(dtype)
        except TypeError as error:
            raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from error
        if dtype is None or self.dtype not in (np.float32, np.float64):
            got = dtype if dtype is None else self.dtype
            raise TypeError(f"dtype: expected float32 or float64, got {got}")
        arrays = {name: np.empty(shape, self.dtype) for name, shape in self._shapes().items()}
        self._parameters = Parameters(arrays)
        constants = body_constants(config)
        self.buffers = {
            self.prefix + name: np.array(value, dtype) for name, value in constants.items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        shapes = {self.prefix + name: shape for name, shape in body_shapes(self.config).items()}
        return shapes | self.head.shapes(self.config)

    @underflow_to_zero()
    def _initialise(self, names: Iterable[str], rng: Any) -> None:
        """Hugging Face's initialisation, each array from a key of its own."""
        seed = draw_seed(rng)
        for name in names:
            self._draw(name, self.parameters[name], seed)

    def _draw(self, name: str, array: np.ndarray, seed: int) -> None:
        """The first values of a weight. A longer one begins with those of a shorter one."""
        name = name.removeprefix(self.prefix)
        if name.endswith("bias"):
            array[...] = 0.0
        elif "layer_norm" in name:
            array[...] = 1.0
        elif ".act_fn." in name:
            array[...] = WEIGHTED[self.config.activation].weights[name.rpartition(".")[2]]
        else:
            axial = name.startswith("embeddings.position_embeddings.weights")
            scale = self.config.axial_norm_std if axial else self.config.initializer_range
            draw = np.random.default_rng(random_key(seed, "initialise", name))
            # float32 in every dtype: the values are the same
            array[...] = scale * draw.standard_normal(array.shape, np.float32)

    @names_keywords
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        *,
        rng: Any = None,
    ) -> np.ndarray:
        """Another number of words: of word vectors, of a language model's logits, and in `config`.

        The first words keep their numbers. An optimiser that was made before does not fit the new
        weights, and refuses its next step: make another one.

        Parameters
        ----------
        new_num_tokens : int, optional
            How many; None: as many as there are.
        pad_to_multiple_of : int, optional
            Round up to a multiple of it.
        rng : int, numpy Generator or None
            Draws the weights of new words, as for a new model.

        Returns
        -------
        ndarray, (new_num_tokens, hidden_size)
            The word vectors, live.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.

        Examples
        --------
        >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> model.resize_token_embeddings(325, rng=1).shape
        (325, 256)
        >>> model.config.vocab_size, model([[324]]).logits.shape
        (325, (1, 1, 325))
        """
        count = self.config.vocab_size
        if new_num_tokens is not None:
            count = integer("new_num_tokens", new_num_tokens, 1)
        if pad_to_multiple_of is not None:
            count += -count % integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        seed = draw_seed(rng)
        # a copy: other models may have been made of the same configuration
        self.config = self.config.changed({"vocab_size": count})
        resized = {}
        for name, shape in self._shapes().items():
            old = self.parameters[name]
            if old.shape != shape:
                resized[name] = np.empty(shape, self.dtype)
                self._draw(name, resized[name], seed)
                rows = min(len(old), count)
                resized[name][:rows] = old[:rows]
        self._parameters.replace(resized)
        return self.parameters[self.prefix + WORDS]

    # ---- calls ----

    @memory_used_again()
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
            Of any length up to ``config.num_positions``.
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
            Draws the rotations where they are not given and ``config.hash_seed`` is None: an
            integer repeats them, None draws new ones.
        output_hidden_states, output_attentions, output_buckets : bool
            Ask for those fields of the output; the configuration has the first two's defaults.
            Probabilities have Hugging Face's shapes: with n the length padded to whole chunks of
            m, and a window of (1 + before + after) m keys, (b, h, n/m, m, window) of a local
            layer, (b, h, r n/m, m, window) of an LSH layer in the order of its sorts, and
            (b, h, n, n) where n <= m or ``config.attention_scope`` is "bucket". They are computed
            in NumPy beside the kernels, which never hold them: that many numbers of memory for
            each layer, and several times the time of a call.
        return_dict : bool, optional
            False gives the tuple of the output's values; None: ``config.return_dict``.
        **targets
            `labels`, or what else the model's loss is measured against: see the model. With them,
            the output has a loss.

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
        """Check everything; the pass, and the targets as the head wants them."""
        head, name = self.head, type(self).__name__
        for unknown in targets.keys() - {*head.targets}:
            others = {*head.targets, *CALLED_WITH} - {unknown}
            raise TypeError(
                f"{unknown}: {name} has no such argument{did_you_mean(unknown, others)}"
            )
        training = flag("training", training)
        given = [targets[target] for target in head.targets if targets.get(target) is not None]
        if given or needs_loss:
            self._check_given(targets)
        inputs = check_inputs(
            self.config, self.dtype, self._pad_vector, input_ids, inputs_embeds, attention_mask,
            position_ids, training, whole_chunks, self.side,
        )  # fmt: skip
        head.check_inputs(inputs)
        wanted = head.check_targets(self.config, inputs, *given) if given else None
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
        """Let the number of buckets that the first training step chose be the model's."""
        chosen = run.chosen_num_buckets
        if self.config.num_buckets is None and chosen is not None:
            # the caller's configuration stays as it is
            self.config = replace(self.config, num_buckets=chosen)  # type: ignore[arg-type]

    @property
    def sides(self) -> dict[str, Reformer]:
        """The models of which this one is made, by the names of their parts in config.json."""
        return {"": self}

    def _pass(self, inputs: Inputs, began: np.ndarray | None = None, **rest: Any) -> Pass:
        """`began` (b,): the numbers of the texts with which the inputs began, if they grow."""
        return Pass(self.config, {**self.parameters, **self.buffers}, self.prefix, inputs, **rest)

    def _budget(self, memory_budget: float | None, free: int | None) -> float:
        """Bytes, of a budget that may be a share of those that are free."""
        if memory_budget is None:
            memory_budget = self.config.memory_budget or 0
        else:
            check_memory_budget(memory_budget)
        if isinstance(memory_budget, float) and memory_budget <= 1.0:
            # where nobody knows what is free, nothing is kept
            return memory_budget * (free or 0)
        return memory_budget

    def _pad_vector(self) -> np.ndarray:
        words = self.parameters[self.prefix + WORDS]
        return words[self.config.padding_id]

    # ---- files ----

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, which transformers opens too; atomically.

        Raises
        ------
        ImportError
            The safetensors library is not installed (extra ``cli``).
        """
        config = self.config.to_dict() | {"architectures": [type(self).__name__]}
        tensors = {**self.parameters, **self.buffers}
        if HEAD_BIAS in tensors:
            tensors[HEAD_BIAS_APPLIED] = tensors[HEAD_BIAS]
        save_model(folder, config, tensors, self._texts_of_folder())

    def _texts_of_folder(self) -> dict[str, str]:
        """More files of a model's folder, and what is in them."""
        return {}

    def _read_texts(self, folder: Path, changes: Mapping[str, Any]) -> None:
        """Read them, where they are; `changes` of the configuration go before them."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        config: ReformerConfig | None = None,
        dtype: Any = np.float32,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        rng: Any = None,
        revision: str | None = None,
        **changes: Any,
    ) -> Self:
        """A model with the weights of a folder that `save_pretrained`, or transformers, wrote.

        The folder may be that of a model with another head: this one's is drawn from `rng` then,
        and a warning names its weights, and those of the folder that are not used. Names may begin
        with what programs put there (``module.``, ``_orig_mod.``, ``model.``), and a
        pytorch_model.bin may have the weights under ``state_dict``, beside what else was saved.

        Parameters
        ----------
        folder : path or str
            With config.json, and model.safetensors or the older pytorch_model.bin, or shards of
            either and their index. Or the name of such a model on the Hugging Face hub, from where
            it is downloaded once. A pytorch_model.bin is read by `reformer_c.pickled`, which runs
            nothing of what it says.
        config : ReformerConfig, optional
            In place of config.json.
        dtype : float32 or float64
            What the weights are cast to.
        strict : bool
            False draws what the body lacks in the files too, passes over all that the model lacks,
            and warns of both.
        ignore_mismatched_sizes : bool
            True draws the head's weights where the files have them in another shape, as of another
            number of classes.
        rng : int, numpy Generator or None
            Draws what the files do not have.
        revision : str, optional
            Branch, tag or commit on the hub.
        **changes
            Fields of the configuration, in place of the folder's: ``num_labels=3``.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files is not there.
        TypeError
            A keyword is not a field of the configuration; names the nearest.
        ValueError
            Names the tensors that are missing, unexpected or of another shape, or says why a file
            is refused.
        ImportError
            The safetensors library, or huggingface_hub for a name on the hub, is not installed
            (extra ``hf``).
        """
        own = ("config", "dtype", "strict", "ignore_mismatched_sizes", "rng", "revision")
        refuse_unknown(
            changes, [*own, *ReformerConfig.__dataclass_fields__], f"{cls.__name__}.from_pretrained"
        )
        always = ["config.json", GENERATION_CONFIG]
        folder = local_folder(folder, revision, HUB_WEIGHTS, always=always)
        config = ReformerConfig.from_json(folder) if config is None else config
        if changes and isinstance(config, ReformerConfig):
            config = config.changed(changes)
        model = cls._without_numbers(config, dtype)
        missing, unexpected = model._load(
            folder, flag("strict", strict),
            flag("ignore_mismatched_sizes", ignore_mismatched_sizes),
        )  # fmt: skip
        if message := what_does_not_fit(missing, unexpected, []):
            message += "; what is missing was drawn, and is to be trained" if missing else ""
            message += "; what is unexpected is not used" if unexpected else ""
            warnings.warn(f"{cls.__name__}.from_pretrained: {message}", stacklevel=2)
            model._initialise((name for name in missing if name in model.parameters), rng)
        model._read_texts(folder, changes)
        return model

    def _load(
        self, folder: Path, strict: bool, ignore_mismatched_sizes: bool
    ) -> tuple[list[str], list[str]]:
        """Read the weights of a folder; those that it does not have, and those not used."""
        missing, unexpected, misshapen = load_into(
            {**self.parameters, **self.buffers}, read_folder(folder), self._own_name
        )
        for name in unexpected:
            if name.endswith(LUCIDRAINS):
                raise ValueError(
                    f"the weights in {os.fspath(folder)!r} are those of reformer_pytorch ({name}), "
                    "whose model is another one: its output layer reads the mean of both streams. "
                    "reformer_c.torch.patch makes that model faster in PyTorch"
                )
        sized = [bad.name for bad in misshapen if bad.kind == "shape" and _is_of_head(bad.name)]
        drawn = sized if ignore_mismatched_sizes else []
        misshapen = [bad for bad in misshapen if bad.name not in drawn]
        wrong = what_does_not_fit(*self._not_of_heads(missing, unexpected), misshapen)
        nothing = {*missing} >= self.parameters.keys()
        hint = "" if nothing or misshapen else "; strict=False loads what fits"
        if any(bad.name.endswith(WORDS) for bad in misshapen):
            hint = "; resize_token_embeddings changes the number of words"
        elif sized and not drawn:
            hint = "; ignore_mismatched_sizes=True draws a head of another size"
        if misshapen or (wrong and (strict or nothing)):
            raise ValueError(
                f"the weights in {os.fspath(folder)!r} are not those of this {type(self).__name__} "
                f"({wrong}){hint}"
            )
        return missing + drawn, unexpected

    def _not_of_heads(
        self, missing: list[str], unexpected: list[str]
    ) -> tuple[list[str], list[str]]:
        """What is wrong with the body, or with a head of which a part is there."""
        head = {name for name in self.parameters if _is_of_head(name)}
        others = set(HEADS) - {name.partition(".")[0] for name in head}
        fresh = head if head <= set(missing) else set()
        return (
            [name for name in missing if name not in fresh],
            [name for name in unexpected if others.isdisjoint(name.split("."))],
        )

    def _own_name(self, name: str) -> str | None:
        """This model's name for a tensor of a file; None for what is no weight.

        A bare body loads from a model with a head, and the other way round.
        """
        if name.endswith(MASK_CONSTANTS):
            return None
        if name == HEAD_BIAS_APPLIED:
            return HEAD_BIAS
        if self.prefix == "":
            return name.removeprefix("reformer.")
        if name.startswith(("embeddings.", "encoder.")):
            return self.prefix + name
        return name


def _is_of_head(name: str) -> bool:
    return name.partition(".")[0] in HEADS


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
        """The loss of a call alone: no array of the logits of all tokens is made.

        The parameters are those of a call, and the result is its ``.loss``.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            False, targets, True,
        )  # fmt: skip
        run.forward()
        return self.head.loss(run, wanted, differentiate=False)

    @memory_used_again()
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

        Activations are rebuilt on the way back (Kitaev et al. 2020, section 3): memory does not
        grow with the number of layers, except for what `memory_budget` lets it keep. The gradients
        are exact for the dropout and the buckets that were drawn.

        Where ``config.num_buckets`` is None, the first step that hashes (over more than one chunk,
        or of any length with ``attention_scope="bucket"``) chooses it from the length of its batch,
        for all calls after it: the model gets a configuration with that number, which is saved with
        it.

        Parameters
        ----------
        memory_budget : int or float, optional
            In place of ``config.memory_budget``: bytes in which activations are kept, layer by
            layer from the last, instead of being rebuilt; a float up to 1 is a share of the memory
            that is free now. What is rebuilt differs from what was kept by rounding.
        rng : int, numpy Generator or None
            Draws dropout and rotations: an integer repeats them, bit for bit.
        training : bool
            False: without dropout.
        **targets
            What the loss is measured against: see the model.

        The other parameters are those of a call.

        Returns
        -------
        loss : float
            nan where no target counts.
        gradients : dict of str to ndarray
            By the names of `parameters`.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        MemoryError
            The step takes more memory than is free: with the numbers, and before it starts.
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
    ) -> int:
        """How many targets the loss of these arguments is a mean over.

        Losses and gradients of several batches, weighted by it, add up to those of one batch of
        all their rows.

        The parameters are those of `loss_and_gradients`; the targets among them are counted.

        Returns
        -------
        int
            Of a language model, the labels other than -100, in a causal one without those of the
            first tokens; of a classifier, the rows whose label is not -100; of question answering,
            the rows whose start and end are in the text. The loss is nan where it is 0.

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
        refuse_unknown(arguments, [*self.head.targets, *CALLED_WITH], "count_targets")
        self._check_given(arguments)
        return self.head.count(self.config, {"input_ids": input_ids, **arguments})

    def _differentiate(self, run: Pass, wanted: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The rest of `loss_and_gradients`, of a planned pass."""
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
        """What a training step takes, before it is taken: `loss_and_gradients` of (batch, length).

        Parameters
        ----------
        length, batch : int
            Tokens of a sequence, and sequences.
        num_hashes : int, optional
            Rounds of LSH attention, in place of ``config.num_hashes``.
        memory_budget : int or float, optional
            In place of ``config.memory_budget``.

        Returns
        -------
        StepMemory
            Bytes by part, and their `total`. The weights are there already, and so is the state of
            an optimiser, which steps in place.

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


class ReformerModelWithLMHead(_WithLoss):
    """A causal language model: logits (b, t, v) for the next token.

    `labels` (b, t) are the tokens themselves: they are shifted here, as Hugging Face does, and
    -100 is ignored, in the loss alone: padding is what `attention_mask` says. ``lm_head.bias`` is
    added to the logits, as the original does and transformers but for versions 5.0 to 5.23;
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
    _generation_config: GenerationConfig

    def _allocate(self, config: ReformerConfig, dtype: Any) -> None:
        super()._allocate(config, dtype)
        self.generation_config = GenerationConfig.from_model_config(config.extra | vars(config))

    @property
    def generation_config(self) -> GenerationConfig:
        """The options that `generate` has by default: edit its fields, or assign another."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self._generation_config = _options("generation_config", config)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        generation_config: GenerationConfig | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        streamer: Callable[[np.ndarray], Any] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Continue texts, token by token: greedily, by sampling, or by beam search.

        The prompts go through one forward pass; then a token costs as much as its bucket and
        window, whatever the length of the text. `reformer_c.decode` says how that compares with a
        forward pass over the text so far. Each row is computed as it would be alone, without its
        padding: its rotations, number of buckets and draws depend on its prompt and `rng` only.
        Where ``config.num_buckets`` is None the number follows from the prompt's length, and stays.

        An option that is not given is what `generation_config` says, else what the model's
        ``generation_config`` says, else the default that stands here. One that is given as None is
        off.

        Parameters
        ----------
        input_ids : array_like of int, (b, t) or (t,)
            The prompts. One without tokens is begun with the `bos_token_id`, or with the pad token
            where there is none; that token is not part of the result. None is one prompt of the
            `bos_token_id` alone.
        attention_mask : array_like, (b, t) or (t,), optional
            Nonzero for a real token: prompts of several lengths, padded on any side.
        generation_config : GenerationConfig, optional
            Options of several calls.
        num_hashes, rotations
            As in a call; rotations for the number of buckets of the prompts.
        rng : int, numpy Generator or None
            An integer repeats rotations and draws.
        streamer : callable, optional
            Called with the new tokens (b * num_return_sequences,) of each step; not with beams.
        max_new_tokens : int, 100
            Together with the prompt at most ``config.num_positions``; the default gives way to it.
        max_length : int, optional
            The same with the prompt and its padding counted; `max_new_tokens` goes before it.
        min_new_tokens, min_length : int, 0
            Before that many, `eos_token_id` is not chosen.
        do_sample : bool, False
            Draw from the distribution. False takes the likeliest token, which the options from
            temperature to eta_cutoff do not change.
        temperature : float, 1.0
            Logits are divided by it, > 0.
        top_k : int, 50
            Draw from the k likeliest tokens; 0: from all.
        top_p : float, 1.0
            Draw from the likeliest tokens that together have this probability, in (0, 1].
        min_p : float, 0.0
            Draw from tokens that are at least this many times as likely as the likeliest.
        typical_p : float, 1.0
            Draw from the tokens whose information is nearest to the entropy, that together have
            this probability, in (0, 1].
        epsilon_cutoff, eta_cutoff : float, 0.0
            Draw from tokens of at least this probability; eta_cutoff is lowered where the entropy
            is high: `reformer_c.generate.probabilities`.
        repetition_penalty : float, 1.0
            Logits of tokens that are in the text are divided by it where they are positive, and
            multiplied where they are negative, > 0 (Keskar et al. 2019, section 4.1).
        no_repeat_ngram_size : int, 0
            That many tokens in a row occur only once in a text.
        bad_words_ids : list of lists of int, optional
            Sequences of tokens that do not occur in what is new.
        suppress_tokens, begin_suppress_tokens : list of int, optional
            Tokens that are not chosen, and not as the first new one.
        forced_bos_token_id, forced_eos_token_id : int, optional
            The token after a prompt of one token, and the last of `max_new_tokens`.
        renormalize_logits : bool, False
            Make log-probabilities of a beam's processed logits again.
        num_beams : int, 1
            More than one: beam search, which keeps that many texts at a time; with do_sample their
            continuations are drawn, without replacement.
        length_penalty : float, 1.0
            A beam's score is divided by its new tokens' number to this power.
        early_stopping : bool or "never", False
            True ends a search with `num_beams` ended texts; False where no beam can become better
            at its present length; "never" where none can at any.
        num_return_sequences : int, 1
            Texts for each prompt, side by side: draws, or the n best of `num_beams`.
        eos_token_id : int or sequence of int, optional
            A row ends with one of them; all rows' end ends the generation.
        pad_token_id : int, optional
            Follows the end of a row; where there is none, the first `eos_token_id` does.
        bos_token_id, decoder_start_token_id : int, optional
            Begins a prompt without tokens, and what a `ReformerEncoderDecoder` writes.
        use_cache : bool, True
            False takes every token from a forward pass over all tokens before it.
        logits_processor, stopping_criteria : callable or list of them, optional
            ``processor(ids, logits)`` gives the logits (v,) to choose from; ``criterion(ids,
            logits)`` says after each token whether the row has ended. `ids` (t,) are the row's
            tokens so far without padding. Logits are log-probabilities in a beam search.
        prefix_allowed_tokens_fn : callable, optional
            ``function(row, ids)`` gives the tokens that may follow `ids` (t,) of prompt `row`.

        Returns
        -------
        ndarray of int64, (b * num_return_sequences, t + new)
            The prompts as they came, and the new tokens.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.

        See Also
        --------
        stream : an iterator over the new tokens.

        Examples
        --------
        >>> config = ReformerConfig(
        ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
        ... )
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> model.generate([[3, 4, 5]], max_new_tokens=4, num_beams=3, rng=0).shape
        (1, 7)
        """
        prepared = self._prepare(
            input_ids, attention_mask, generation_config, num_hashes, rotations, rng, options
        )
        self._check_streamer(streamer, prepared[3].options)
        return self._write(streamer, *prepared)

    def _write(
        self, streamer: Callable[[np.ndarray], Any] | None, ids: np.ndarray,
        prompts: list[np.ndarray], source: Source, rules: Rules, draws: list[np.random.Generator],
    ) -> np.ndarray:  # fmt: skip
        """The rest of `generate`, of what `_prepare` gives."""
        chosen = rules.options
        if chosen.num_beams > 1:
            found = [row for rows in beam_search(source, prompts, rules, draws) for row in rows]
            new = np.full((len(found), max(map(len, found))), chosen.pad_token_id, np.int64)
            for row, tokens in zip(new, found, strict=True):
                row[: len(tokens)] = tokens
        else:
            steps = []
            for step in stream_tokens(source, prompts, rules, draws):
                steps.append(step)
                if streamer is not None:
                    streamer(step.copy())
            new = np.array(steps, np.int64).reshape(-1, len(draws)).T
        return np.concatenate([np.repeat(ids, chosen.num_return_sequences, axis=0), new], axis=1)

    def stream(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        generation_config: GenerationConfig | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """The new tokens of `generate` one step after another: an iterator over (b,) int64.

        The parameters are those of `generate`, without beams. Arguments are checked at once.

        Examples
        --------
        >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> len(list(model.stream([[3, 4, 5]], max_new_tokens=4, rng=0)))
        4
        """
        _, prompts, source, rules, draws = self._prepare(
            input_ids, attention_mask, generation_config, num_hashes, rotations, rng, options
        )
        if rules.options.num_beams > 1:
            raise ValueError("num_beams: expected 1 for a stream: beams change to the end")
        return stream_tokens(source, prompts, rules, draws)

    @names_keywords
    def cache_bytes(self, t: int, *, prompt: int | None = None, batch: int = 1) -> int:
        """Bytes of the cache of `generate` for `batch` texts of t tokens.

        With t the prompt and all new tokens it is what `generate` sets aside; pages that are not
        written yet take no memory. A local layer's share does not grow with t. Where
        ``config.num_buckets`` is None, the `prompt`'s length (t by default) decides how many
        buckets there are.
        """
        size = self.dtype.itemsize
        return cache_bytes(self.config, t, prompt=prompt, batch=batch, itemsize=size)

    def _prepare(
        self, input_ids: Any, attention_mask: Any, generation_config: Any, num_hashes: Any,
        rotations: Any, rng: Any, options: dict,
    ) -> tuple[np.ndarray, list[np.ndarray], Source, Rules, list[np.random.Generator]]:  # fmt: skip
        """Check everything: the ids, the prompts without padding, what continues them, and each
        text's draws."""
        refuse_unknown(options, OPTIONS, "generate")
        if not self.side and options.get("decoder_start_token_id") is not None:
            raise TypeError("decoder_start_token_id: belongs to a ReformerEncoderDecoder")
        functions = {name: options.pop(name) for name in FUNCTIONS if name in options}
        defaults = self.generation_config
        if generation_config is not None:
            defaults = _options("generation_config", generation_config).over(defaults)
        first = defaults.token("bos_token_id", options, self.config.vocab_size)
        ids = self._prompt_ids(input_ids, first)
        mask = rows_of(f"{self.side}attention_mask", attention_mask)
        mask = check_mask(mask, len(ids), ids.shape[1], self.side)
        prompts = [row if mask is None else row[mask[i]] for i, row in enumerate(ids)]
        begin = np.array([self.config.padding_id if first is None else first], np.int64)
        prompts = [row if len(row) else begin for row in prompts]
        longest, most = max(map(len, prompts)), self.config.num_positions
        if longest > most:
            raise ValueError(
                f"{self.side}input_ids: expected at most {most} tokens (positions), got {longest}"
            )
        chosen = defaults.resolved(options, ids.shape[1], most - longest, self.config.vocab_size)
        if chosen.pad_token_id is None:
            chosen.pad_token_id = self.config.padding_id
        rules = Rules(chosen, **functions)
        seed = draw_seed(rng)
        source = self._source(prompts, chosen, seed, num_hashes, rotations)
        # beams draw together
        copies = 1 if chosen.num_beams > 1 else chosen.num_return_sequences
        return ids, prompts, source, rules, self._draws(seed, prompts, copies)

    def _prompt_ids(self, input_ids: Any, first: int | None) -> np.ndarray:
        """Checked ids (b, t) of prompts, or of the token `first` where there are none."""
        name, v = f"{self.side}input_ids", self.config.vocab_size
        if input_ids is None:
            if first is None:
                raise TypeError(f"{name}: expected them, or a bos_token_id to begin with")
            input_ids = [[first]]
        ids = rows_of(name, input_ids)
        assert ids is not None
        if ids.size == 0:
            ids = ids.astype(np.int64)  # an empty list has no integers
        ids = check_ids(name, ids, v)
        if len(ids) == 0:
            raise ValueError(f"{name}: expected at least one row, got shape {ids.shape}")
        return ids

    @staticmethod
    def _check_streamer(streamer: Any, chosen: GenerationConfig) -> None:
        if streamer is not None and not callable(streamer):
            raise TypeError(f"streamer: expected a function of the new tokens, got {streamer!r}")
        if streamer is not None and chosen.num_beams > 1:
            raise ValueError("streamer: expected None with num_beams: beams change to the end")

    def _source(
        self, prompts: Sequence[np.ndarray], chosen: GenerationConfig, seed: int, num_hashes: Any,
        rotations: Any,
    ) -> Source:  # fmt: skip
        """What continues the prompts: texts of one number of buckets together."""
        counts = [num_buckets_of(self.config, len(prompt)) for prompt in prompts]
        kinds = [count for i, count in enumerate(counts) if count not in counts[:i]]
        groups = np.array([kinds.index(count) for count in counts])
        sources: dict[int, Source] = {}
        for group, num_buckets in enumerate(kinds):
            numbers = np.flatnonzero(groups == group)
            begin = self._beginning(seed, num_buckets, num_hashes, rotations)
            longest = max(len(prompts[int(i)]) for i in numbers) + chosen.max_new_tokens
            sources[group] = (
                Decoder(begin, self.head, longest, numbers) if chosen.use_cache
                else Recomputed(partial(self._recompute, begin, numbers))
            )  # fmt: skip
        return sources[0] if len(sources) == 1 else Grouped(groups, sources)

    def _draws(
        self, seed: int, prompts: Sequence[np.ndarray], copies: int
    ) -> list[np.random.Generator]:
        """A generator for each of `copies` texts of each prompt.

        It follows from the prompt, and from the number of the same prompts before it alone: a row
        is drawn as it would be without the others.
        """
        draws, before = [], Counter[str]()
        for i, prompt in enumerate(prompts):
            text = self._text_key(i, prompt)
            for _ in range(copies):
                key = random_key(seed, "sampling", text, before[text])
                draws.append(np.random.default_rng(key))
                before[text] += 1
        return draws

    def _text_key(self, row: int, prompt: np.ndarray) -> str:
        """What the draws of a row depend on."""
        return prompt.tobytes().hex()

    def _recompute(
        self, begin: Callable[..., Pass], numbers: np.ndarray, ids: np.ndarray, began: np.ndarray
    ) -> np.ndarray:
        """Logits (b, v) of what follows ids, by a forward pass."""
        run = begin(ids, numbers[began])
        run.forward()
        return self.head.next_logits(run)

    def _beginning(
        self, seed: int, num_buckets: Any, num_hashes: Any, rotations: Any
    ) -> Callable[..., Pass]:
        """A function of ids (b, t), and of the numbers (b,) of the texts with which they began,
        that gives a pass over them."""
        config = self.config

        def begin(ids: np.ndarray, began: np.ndarray | None = None) -> Pass:
            inputs = check_inputs(
                config, self.dtype, self._pad_vector, ids, None, None, None, False
            )
            return self._pass(
                inputs, began, seed=seed, training=False, num_hashes=num_hashes,
                num_buckets=num_buckets, rotations=rotations,
            )  # fmt: skip

        begin(np.zeros((1, 1), np.int64))  # what is wrong with the hashing shows before any work
        return begin

    # ---- files ----

    def _texts_of_folder(self) -> dict[str, str]:
        return {GENERATION_CONFIG: self.generation_config.to_json_string()}

    def _read_texts(self, folder: Path, changes: Mapping[str, Any]) -> None:
        if (folder / GENERATION_CONFIG).is_file():
            self.generation_config = GenerationConfig.from_json(folder)
        for name in changes.keys() & GENERATION_FIELDS:
            setattr(self.generation_config, name, changes[name])


def _options(name: str, config: Any) -> GenerationConfig:
    if not isinstance(config, GenerationConfig):
        kind = f"{type(config).__module__}.{type(config).__name__}".removeprefix("builtins.")
        raise TypeError(
            f"{name}: expected a reformer_c.GenerationConfig, got {kind}: "
            "GenerationConfig.from_dict makes one of a dictionary"
        )
    return config


class ReformerForMaskedLM(_WithLoss):
    """A bidirectional language model: logits (b, t, v) for the tokens in their own places.

    `labels` (b, t); -100, usually at the tokens that are not hidden, is ignored.

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

    `labels` are, by ``config.problem_type``, classes (b,) of "single_label_classification", zeros
    and ones (b, num_labels) of "multi_label_classification", or numbers (b,) or (b, num_labels) of
    "regression". None: regression if num_labels is 1, else by the labels' dtype, integers being
    classes.

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
    """Finds where an answer starts and ends in a text: start_logits and end_logits (b, t).

    `start_positions` and `end_positions` are integers (b,); those outside the text are ignored
    (beyond its end) or taken as its first token (negative), as Hugging Face does.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForQuestionAnswering(config, rng=0)
    >>> output = model(np.arange(10)[None], start_positions=[2], end_positions=[4])
    >>> output.start_logits.shape, 2.0 < output.loss < 2.6
    ((1, 10), True)
    """

    head = QuestionAnswering()
