"""The weights of models: names, initial values, and files."""

from __future__ import annotations

import json
import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..checks import NamedAttributes, flag, integer, names_keywords, refuse_unknown
from ..files.checkpoint import describe_mismatch, load_into, local_folder, read_folder, save_model
from ..layers.activations import WEIGHTED
from ..layers.halves import computed, is_half, weights_dtype, widened
from ..layers.parameters import Joined, Parameters
from ..layers.randomness import draw_seed, random_key
from ..runtime import underflow_to_zero
from ..text.tables import html_pairs
from .body import WORDS, Pass, body_constants, body_shapes
from .config import ReformerConfig
from .generation_config import GENERATION_CONFIG
from .heads import Head
from .inputs import Call, Inputs

__all__ = ["HUB_WEIGHTS", "Model", "TwoSided", "Weighted"]

# constants that old checkpoints hold in addition to the weights
MASK_CONSTANTS = tuple(
    f"{kind}_value_float{bits}" for kind in ("self_mask", "mask") for bits in (16, 32)
)

# transformers has both, and adds one or none of them: see docs/from_transformers.md
HEAD_BIAS, HEAD_BIAS_APPLIED = "lm_head.bias", "lm_head.decoder.bias"

# ends of names in reformer_pytorch's checkpoints
LUCIDRAINS = (".toqk.weight", ".tov.weight", "token_emb.weight")

# ends of the names of tables
TABLES = (WORDS, "position_embeddings.embedding.weight")

# beginnings of the names of heads' weights
HEADS = ("lm_head", "classifier", "qa_outputs")

# weights on the hub; the second kind of files is used only without the first
HUB_WEIGHTS = (
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)


class Model(NamedAttributes):
    """A model: weights by name, and calls."""

    buffers: dict[str, np.ndarray]
    _parameters: Parameters

    @property
    def parameters(self) -> Parameters:
        """Live arrays by transformers' names."""
        return self._parameters

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of activations: float32 for weights of half precision."""
        return computed(self._weights_dtype)

    @property
    def _weights_dtype(self) -> np.dtype:
        return next(iter(self.parameters.values())).dtype

    def _check_trained(self) -> None:
        """Raise TypeError if the weights cannot be trained."""
        if is_half(self._weights_dtype):
            raise TypeError(
                f"dtype must be float32 or float64 to train, got {self._weights_dtype}: an update "
                "may be smaller than its rounding; from_pretrained(folder) opens a model in float32"
            )

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of elements of all weights.

        Parameters
        ----------
        only_trainable : bool
            As in transformers; all weights of a model are trainable.
        exclude_embeddings : bool
            Leave out the tables of words and of positions, but not axial positions, as in
            transformers.

        Raises
        ------
        TypeError
            An argument is not True or False.
        """
        flag("only_trainable", only_trainable)
        tables = TABLES if flag("exclude_embeddings", exclude_embeddings) else ()
        counted = [a.size for name, a in self.parameters.items() if not name.endswith(tables)]
        return sum(counted)

    def _facts(self) -> dict[str, Any]:
        """What a notebook shows of a model's weights."""
        size = sum(array.nbytes for array in self.parameters.values())
        weights = f"{size / 1e6:,.1f} MB of {self._weights_dtype}"
        return {"parameters": f"{self.num_parameters():,}", "weights": weights}

    def eval(self) -> Self:
        """The model itself: every call is an evaluation, without dropout."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The model itself, for ``train(False)``.

        Parameters
        ----------
        mode : False
            Of training.

        Raises
        ------
        TypeError
            `mode` is True: a call never trains. `loss_and_gradients` does, by default with dropout.
        """
        if mode is not False:
            raise TypeError(
                f"mode must be False, got {mode!r}: a call is always an evaluation; dropout is "
                "applied in loss_and_gradients(..., training=True), the default"
            )
        return self

    def _no_such(self, name: str) -> AttributeError:
        if name in ("forward", "backward"):
            kind = type(self).__name__
            return AttributeError(f"{name}: only a ReformerModel has this method, got a {kind}")
        return super()._no_such(name)


class Weighted(Model):
    """The weights of a Reformer: allocated, initialised, resized, saved and loaded."""

    # the names of the body's weights begin with it
    prefix: ClassVar[str] = "reformer."
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

    def _repr_html_(self) -> str:
        return html_pairs(type(self).__name__, self._facts() | _facts_of(self.config))

    @classmethod
    def _without_numbers(cls, config: ReformerConfig, dtype: Any) -> Self:
        """A model whose weights have no values yet."""
        model = cls.__new__(cls)
        model._allocate(config, dtype)
        return model

    def _allocate(self, config: ReformerConfig, dtype: Any) -> None:
        if not isinstance(config, ReformerConfig):
            raise TypeError(f"config must be a ReformerConfig, got {type(config).__name__}")
        config.check()
        self.head.check_config(config)
        self.config, self.dtype = config, weights_dtype(dtype)
        arrays = {name: np.empty(shape, self.dtype) for name, shape in self._shapes().items()}
        self._parameters = Parameters(arrays)
        constants = body_constants(config)
        self.buffers = {
            self.prefix + name: np.array(value, self.compute_dtype)
            for name, value in constants.items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        shapes = {self.prefix + name: shape for name, shape in body_shapes(self.config).items()}
        return shapes | self.head.shapes(self.config)

    @underflow_to_zero()
    def _initialise(self, names: Iterable[str], rng: Any) -> None:
        """Initialise weights as Hugging Face does, each array from its own key."""
        seed = draw_seed(rng)
        for name in names:
            self._draw(name, self.parameters[name], seed)

    def _draw(self, name: str, array: np.ndarray, seed: int) -> None:
        """Initialise a weight. A longer array begins with the values of a shorter one."""
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
            # drawn in float32, so that the values do not depend on the dtype
            array[...] = scale * draw.standard_normal(array.shape, np.float32)

    def _pass(self, inputs: Inputs, call: Call) -> Pass:
        parameters = {**self.parameters, **self.buffers}
        return Pass(self.config, parameters, self.prefix, inputs, call)

    def _pad_vector(self) -> np.ndarray:
        words = self.parameters[self.prefix + WORDS]
        return widened(words[self.config.padding_id])

    @names_keywords
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        *,
        rng: Any = None,
    ) -> np.ndarray:
        """Change the vocabulary size: of the word vectors, of a language model's logits, and of
        `config`.

        The first words keep their weights. An optimiser created before does not fit the new weights
        and raises at its next step: create another one.

        Parameters
        ----------
        new_num_tokens : int, optional
            None: the present number.
        pad_to_multiple_of : int, optional
            Round up to a multiple of it.
        rng : int, numpy Generator or None
            Draws the weights of new words, as those of a new model.

        Returns
        -------
        ndarray, (new_num_tokens, hidden_size)
            The word vectors, live.

        Raises
        ------
        TypeError
            A number is not an integer, or `rng` is not a source of random numbers.
        ValueError
            A number is below 1.

        Examples
        --------
        >>> from reformer_c import ReformerModelWithLMHead
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
        # a copy: other models may share the configuration
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

    # ---- files ----

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which transformers can load too, atomically.

        Parameters
        ----------
        folder : path or str
            Created if it does not exist.

        Raises
        ------
        ImportError
            The safetensors library is not installed (extra ``cli``).
        """
        config = {**_config_of(self), "architectures": [type(self).__name__]}
        tensors = {**self.parameters, **self.buffers}
        if HEAD_BIAS in tensors:
            tensors[HEAD_BIAS_APPLIED] = tensors[HEAD_BIAS]
        save_model(folder, config, tensors, self._texts_of_folder())

    def _texts_of_folder(self) -> dict[str, str]:
        """Further text files of a model's folder: their names and contents."""
        return {}

    def _read_texts(self, folder: Path, changes: Mapping[str, Any]) -> None:
        """Read the text files that exist; `changes` of the configuration take precedence."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        config: ReformerConfig | None = None,
        dtype: Any = np.float32,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        rng: Any = None,
        revision: str | None = None,
        **changes: Any,
    ) -> Self:
        """Load a model from a folder that `save_pretrained` or transformers wrote.

        The folder may hold a model with another head: then this model's head is drawn from `rng`,
        and a warning names the weights that are missing and those that are not used. Names may have
        the prefixes that other programs add (``module.``, ``_orig_mod.``, ``model.``), and a
        pytorch_model.bin may hold the weights under ``state_dict``, next to other objects.

        Parameters
        ----------
        folder : path or str
            With config.json, and model.safetensors or the older pytorch_model.bin, or shards of
            either with their index. Or the name of such a model on the Hugging Face hub, from which
            it is downloaded once. A pytorch_model.bin is read by `reformer_c.files.pickled`, which
            executes no code from the file.
        config : ReformerConfig, optional
            In place of config.json.
        dtype : float32 or float64, "bfloat16" or float16
            The dtype that weights are converted to, and saved in. Weights of half precision are for
            inference: activations, sums and results are float32, see docs/from_transformers.md.
        strict : bool
            False also draws weights of the body that are missing, ignores those that the model does
            not have, and warns about both.
        ignore_mismatched_sizes : bool
            True draws the head's weights if their shape in the files is another one, for example
            that of another number of classes.
        rng : int, numpy Generator or None
            Draws the missing weights.
        revision : str, optional
            Branch, tag or commit on the hub.
        **changes
            Fields of the configuration, in place of those of config.json: ``num_labels=3``.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files does not exist.
        TypeError
            A keyword is not a field of the configuration; names the closest field.
        ValueError
            Names the tensors that are missing, unexpected, of another shape or too large for the
            dtype, or says why a file is rejected.
        ImportError
            The safetensors library, or huggingface_hub for a name on the hub, is not installed
            (extra ``hf``); or ml_dtypes, for bfloat16 (extra ``bfloat16``).
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
        if message := describe_mismatch(missing, unexpected, []):
            message += "; missing weights were drawn and need training" if missing else ""
            message += "; unexpected ones are not used" if unexpected else ""
            warnings.warn(f"{cls.__name__}.from_pretrained: {message}", stacklevel=2)
            model._initialise((name for name in missing if name in model.parameters), rng)
        model._read_texts(folder, changes)
        return model

    def _load(
        self, folder: Path, strict: bool, ignore_mismatched_sizes: bool
    ) -> tuple[list[str], list[str]]:
        """Read the weights of a folder. Returns the names of missing and of unused ones."""
        missing, unexpected, mismatched = load_into(
            {**self.parameters, **self.buffers}, read_folder(folder), self._own_name
        )
        for name in unexpected:
            if name.endswith(LUCIDRAINS):
                raise ValueError(
                    f"the weights in {os.fspath(folder)!r} are those of reformer_pytorch ({name}), "
                    "which is another model: its output layer reads the mean of both streams. "
                    "reformer_c.torch.patch makes that model faster in PyTorch"
                )
        sized = [bad.name for bad in mismatched if bad.kind == "shape" and _is_of_head(bad.name)]
        drawn = sized if ignore_mismatched_sizes else []
        mismatched = [bad for bad in mismatched if bad.name not in drawn]
        wrong = describe_mismatch(*self._not_of_heads(missing, unexpected), mismatched)
        nothing = {*missing} >= self.parameters.keys()
        hint = "" if nothing or mismatched else "; strict=False loads what fits"
        if any(bad.name.endswith(WORDS) for bad in mismatched):
            hint = "; resize_token_embeddings changes the number of words"
        elif sized and not drawn:
            hint = "; ignore_mismatched_sizes=True draws a head of another size"
        if mismatched or (wrong and (strict or nothing)):
            raise ValueError(
                f"the weights in {os.fspath(folder)!r} are not those of this {type(self).__name__} "
                f"({wrong}){hint}"
            )
        return missing + drawn, unexpected

    def _not_of_heads(
        self, missing: list[str], unexpected: list[str]
    ) -> tuple[list[str], list[str]]:
        """Without the weights of a head that is missing entirely, and of other heads."""
        head = {name for name in self.parameters if _is_of_head(name)}
        others = set(HEADS) - {name.partition(".")[0] for name in head}
        fresh = head if head <= set(missing) else set()
        return (
            [name for name in missing if name not in fresh],
            [name for name in unexpected if others.isdisjoint(name.split("."))],
        )

    def _own_name(self, name: str) -> str | None:
        """This model's name for a tensor of a file; None if it is not a weight.

        A model without a head can load the files of one with a head, and the reverse.
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


class TwoSided(Model):
    """The weights of an encoder and a decoder, saved and loaded together."""

    @property
    @abstractmethod
    def sides(self) -> Mapping[str, Weighted]:
        """Both models by their names."""

    @abstractmethod
    def _make_sides(self, config: ReformerConfig, decoder: ReformerConfig, dtype: Any) -> None:
        """Make both models, without values of the weights."""

    def _allocate(self, config: ReformerConfig, decoder: ReformerConfig, dtype: Any) -> None:
        for name, given in (("config", config), ("decoder", decoder)):
            if not isinstance(given, ReformerConfig):
                raise TypeError(f"{name} must be a ReformerConfig, got {type(given).__name__}")
        self._make_sides(config, decoder, dtype)
        sides = {f"{name}.": side for name, side in self.sides.items()}
        self._parameters = Parameters(Joined({p: side.parameters for p, side in sides.items()}))
        self.buffers = dict(Joined({p: side.buffers for p, side in sides.items()}))

    def __repr__(self) -> str:
        kinds = (", ".join(side.config.layer_types) for side in self.sides.values())
        count, layers = self.num_parameters(), " | ".join(kinds)
        return f"<{type(self).__name__}: {count:,} parameters, {self.dtype}, layers {layers}>"

    def _repr_html_(self) -> str:
        facts = self._facts()
        for side, model in self.sides.items():
            of_side = _facts_of(model.config).items()
            facts |= {f"{side}: {name}": value for name, value in of_side}
        return html_pairs(type(self).__name__, facts)

    @property
    def dtype(self) -> np.dtype:
        """Of the weights, activations and gradients."""
        return self.sides["encoder"].dtype

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, with both configurations, and model.safetensors, atomically.

        Parameters
        ----------
        folder : path or str
            Created if it does not exist.

        Raises
        ------
        ImportError
            The safetensors library is not installed (extra ``cli``).
        """
        config = {
            "architectures": [type(self).__name__],
            "is_encoder_decoder": True,
            "model_type": "encoder-decoder",
            **{name: _config_of(side) for name, side in self.sides.items()},
        }
        tensors = {**self.parameters, **self.buffers}
        save_model(folder, config, tensors, self.sides["decoder"]._texts_of_folder())

    @classmethod
    @names_keywords
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: Any = np.float32, revision: str | None = None
    ) -> Self:
        """Load a model from a folder that `save_pretrained` wrote.

        Parameters
        ----------
        folder : path or str
            Or the name of such a model on the Hugging Face hub.
        dtype : float32 or float64, "bfloat16" or float16
            The dtype that weights are converted to, and saved in. Weights of half precision are for
            inference: activations, sums and results are float32, see docs/from_transformers.md.
        revision : str, optional
            Branch, tag or commit on the hub.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files does not exist.
        ValueError
            The folder holds another model; names the tensors that do not fit.
        ImportError
            The safetensors library, or huggingface_hub for a name on the hub, is not installed
            (extra ``hf``); or ml_dtypes, for bfloat16 (extra ``bfloat16``).
        """
        always = ["config.json", GENERATION_CONFIG]
        folder = local_folder(folder, revision, HUB_WEIGHTS, always=always)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sides = [
            config.get(name) if isinstance(config, dict) else None
            for name in ("encoder", "decoder")
        ]
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
        message = describe_mismatch(*load_into(arrays, read_folder(folder), lambda name: name))
        if message:
            raise ValueError(
                f"the weights in {os.fspath(folder)!r} are not those of this {cls.__name__} "
                f"({message})"
            )
        model.sides["decoder"]._read_texts(folder, {})
        return model


def _facts_of(config: ReformerConfig) -> dict[str, Any]:
    """What a notebook shows of a model's configuration."""
    kinds = [f"{n} {kind}" for kind, n in Counter(config.layer_types).items()]
    learned = config.position_embedding_type == "absolute"
    return {
        "layers": f"{len(config.layer_types)}: {', '.join(kinds)}",
        "width": f"{config.hidden_size}, feed-forward {config.feed_forward_size}",
        "heads": f"{config.num_attention_heads} of {config.attention_head_size}",
        "longest sequence": f"{config.num_positions:,} tokens" if learned else "any",
        "vocabulary": f"{config.vocab_size:,}",
    }


def _config_of(model: Weighted) -> dict[str, Any]:
    """The configuration of a model, in a file. If it names a dtype, it is that of the weights:
    transformers opens them in that dtype."""
    config = model.config.to_dict()
    named = "dtype" in config or is_half(model.dtype)
    return config | ({"dtype": model.dtype.name} if named else {})


def _is_of_head(name: str) -> bool:
    return name.partition(".")[0] in HEADS
