"""The configuration of a Reformer: Hugging Face's fields under their names, and a few of ours."""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from .activations import WEIGHTED
from .checkpoint import local_folder, write_atomically
from .checks import NamedAttributes, did_you_mean, flag, integer, refuse_unknown
from .precision import PRECISIONS

__all__ = ["ReformerConfig"]

LAYER_TYPES = ("local", "lsh")
SCOPES = ("chunk", "bucket")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# transformers' names of activations, and ours: it has several for one function; those with weights
# keep their names
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_10": "gelu_10",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "hardswish": "hardswish",
    "mish": "mish",
    "leaky_relu": "leaky_relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "laplace": "laplace",
    "sqrtsoftplus": "sqrtsoftplus",
    "linear": "linear",
} | {name: name for name in WEIGHTED}

# keys of configurations from 2020, and the fields that took their place
LEGACY_KEYS = {
    "attention_probs_dropout_prob": (
        "local_attention_probs_dropout_prob",
        "lsh_attention_probs_dropout_prob",
    ),
    "num_chunks_before": ("local_num_chunks_before", "lsh_num_chunks_before"),
    "num_chunks_after": ("local_num_chunks_after", "lsh_num_chunks_after"),
    "seed": ("hash_seed",),
}

# what transformers' configurations, from version 2.9 on, may hold in addition to our fields
THEIRS = frozenset(LEGACY_KEYS) | {
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_commit_hash", "_experts_implementation", "_experts_implementation_internal", "_name_or_path",
    "_output_attentions", "add_cross_attention", "assistant_confidence_threshold",
    "assistant_lookbehind", "attn_implementation", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "cls_token_id", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "experts_implementation", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "intermediate_size",
    "length_penalty", "mask_token_id", "max_length", "min_length", "name_or_path",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_past", "output_scores",
    "per_layer_config", "prefix", "pruned_heads", "quantization_config", "remove_invalid_values",
    "repetition_penalty", "return_dict_in_generate", "sep_token_id", "sinusoidal_pos_embds",
    "suppress_tokens", "target_lookbehind", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_last_hidden_states", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "typical_p", "unk_token_id", "use_bfloat16", "xla_device",
}  # fmt: skip

# how alike an unknown name and a field are from which it is taken for the field, misspelt
ALIKE = 0.65

OURS = ("attention_scope", "bucket_cap", "softcap", "matmul_precision", "memory_budget",
        "apply_lm_head_bias")  # fmt: skip


def _with_other_fields(initialise: Callable[..., None]) -> Callable[..., None]:
    """Let `__init__` take what a config.json may hold; a field's name that is misspelt is not."""

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        own, others = _sorted_out(values)
        for name in others:
            if hint := _misspelling(name):
                raise TypeError(
                    f"{name}: ReformerConfig has no such field{hint} extra={{{name!r}: ...}} keeps "
                    "a field that is not its own"
                )
        if others and isinstance(extra := own.get("extra", {}), dict):
            own["extra"] = others | extra
        initialise(self, *args, **own)

    return __init__


def _sorted_out(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the fields, and those of other names; keys of 2020 are both."""
    names = {f.name for f in fields(ReformerConfig)}
    own = {name: value for name, value in values.items() if name in names}
    if (kind := values.get("model_type", "reformer")) != "reformer":
        raise ValueError(f"model_type: expected 'reformer', got {kind!r}")
    for old, new in LEGACY_KEYS.items():
        for name in new if values.get(old) is not None else ():
            own.setdefault(name, values[old])
    if own.get("memory_budget") == "inf":
        own["memory_budget"] = math.inf  # JSON has no infinity
    return own, {k: v for k, v in values.items() if k not in names and k != "model_type"}


def _misspelling(name: str) -> str:
    """What an unknown name was probably to be, in words; nothing where it is like no field."""
    names = [f.name for f in fields(ReformerConfig)]
    if name in THEIRS or name in names:
        return ""
    near = difflib.get_close_matches(name.lower(), names, 1, ALIKE)
    return did_you_mean(name, near)


@dataclass
class ReformerConfig(NamedAttributes):
    """What a Reformer is made of.

    The fields, their names and defaults are those of Hugging Face's ``ReformerConfig``; six more
    are ours: ``attention_scope``, ``bucket_cap``, ``softcap``, ``matmul_precision`` and
    ``memory_budget`` change nothing by default, and ``apply_lm_head_bias`` is True. A field whose
    layer type does not occur may be None.
    Anything that transformers writes is taken: what is not a field is kept in `extra`.

    Attributes
    ----------
    attention_head_size : int
        Depth of a head; heads times depth need not equal hidden_size.
    attn_layers : list of str
        Type of each layer's attention: "local" or "lsh". Where all are of one type, as many layers
        as num_hidden_layers have it.
    axial_norm_std : float
        Standard deviation of fresh axial position tables.
    axial_pos_embds : bool
        Positions as two small tables (True) or one row for each position (False).
    axial_pos_shape : list of int
        Rows and columns of the rectangle that the positions fill, row by row.
    axial_pos_embds_dim : list of int
        Widths of the row's and of the column's vector; their sum is hidden_size.
    chunk_size_lm_head : int
        Rows of logits in memory at a time; 0: chosen for the machine.
    chunk_size_feed_forward : int
        Rows of the feed-forward layer's hidden units in memory at a time; 0: chosen for the
        machine.
    classifier_dropout : float, optional
        Dropout before and inside the classification head; None: hidden_dropout_prob.
    bos_token_id : int, optional
        Id that begins a text, where there is nothing else to begin with.
    eos_token_id : int or list of int, optional
        Id that ends a text.
    feed_forward_size : int
        Width of the feed-forward layer's hidden units.
    hash_seed : int, optional
        Not None: every call draws the same rotations, from this seed.
    hidden_act : str
        Activation of the feed-forward layer.
    hidden_dropout_prob : float
        Dropout of embeddings, sublayers and the final states, in training.
    hidden_size : int
        Width of each residual stream.
    initializer_range : float
        Standard deviation of fresh weights.
    is_decoder : bool
        Causal: a token sees itself and what is before it.
    layer_norm_eps : float
        Added to the variance in layer norms.
    local_num_chunks_before, local_num_chunks_after : int, optional
        Local attention: chunks of look-back and of look-ahead.
    local_attention_probs_dropout_prob : float, optional
        Local attention: dropout of the probabilities, in training.
    local_attn_chunk_length : int, optional
        Local attention: length of a chunk.
    lsh_attn_chunk_length : int, optional
        LSH attention: length of a chunk of the sorted tokens.
    lsh_attention_probs_dropout_prob : float, optional
        LSH attention: dropout of the probabilities, in training.
    lsh_num_chunks_before, lsh_num_chunks_after : int, optional
        LSH attention: chunks of look-back and of look-ahead.
    max_position_embeddings : int
        Longest sequence; the automatic num_buckets depends on it too.
    num_attention_heads : int
        Heads of every attention layer.
    num_buckets : int or list of int, optional
        Buckets of a hash round: an even number, a list of even factors, or None: from the length,
        until a model's first training step chooses one for good.
    num_hashes : int, optional
        Hash rounds of LSH attention.
    num_labels : int
        Outputs of the classification and question-answering heads; None: the length of id2label,
        or 2.
    id2label, label2id : dict, optional
        Names of the classes by number, and the numbers by name. None, or another num_labels than
        there are names, makes them LABEL_0, LABEL_1 ...
    output_attentions, output_hidden_states : bool, optional
        What a call gives where it is not told.
    pad_token_id : int, optional
        Id that pads short rows; 0 if it is outside the vocabulary.
    problem_type : str, optional
        Loss of the classification head; None: from num_labels and the labels' dtype.
    vocab_size : int
        Number of distinct ids.
    tie_word_embeddings : bool
        Kept for the round trip: the output has twice the input's width and cannot be tied to it.
    use_cache : bool
        What `generate` does where nobody else says.
    return_dict : bool, optional
        False: a call gives a tuple where it is not told.
    architectures, transformers_version, dtype, is_encoder_decoder
        Kept for the round trip: what transformers notes about itself and the model's class.
    num_hidden_layers : int
        Layers that are built, of the first types in attn_layers; None: all.
    attention_scope : str
        "chunk": fixed-size chunks as in Hugging Face; "bucket": the exact buckets of the paper.
    bucket_cap : int, optional
        With "bucket": tokens of the segments that large buckets are cut into, a multiple of 64,
        see lsh_attention; None: buckets of any size are whole.
    softcap : float, optional
        Attention scores s become ``softcap * tanh(s / softcap)`` in every layer (Gemma Team 2024,
        section 2); None: they stay as they are.
    matmul_precision : {"highest", "high", "medium"}, optional
        How precisely float32 matrix products are computed, see `reformer_c.set_matmul_precision`;
        None: as set for the process, or by the ``with`` block around a call.
    memory_budget : int or float, optional
        Bytes in which training may keep activations that it would rebuild, or as a float up to 1
        a share of the memory that is free; None: always rebuild.
    apply_lm_head_bias : bool
        False gives what transformers 5.0 to 5.23 compute: lm_head.bias is not added.
    extra : dict
        Fields that are not ours, kept unchanged.

    Raises
    ------
    TypeError, ValueError
        Name the field and say what was expected, or the field that a misspelt one is nearest to.
    AttributeError
        An attribute is assigned that is not a field.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local", "lsh"], is_decoder=True)
    >>> config.num_hidden_layers
    2
    >>> ReformerConfig(hidden_size=100)
    Traceback (most recent call last):
    ValueError: axial_pos_embds_dim: its parts [64, 192] have to add up to hidden_size=100
    >>> ReformerConfig(**config.to_dict()) == config
    True
    >>> ReformerConfig(temperature=0.7).extra
    {'temperature': 0.7}
    """

    attention_head_size: int = 64
    attn_layers: list[str] = field(default_factory=lambda: ["local", "lsh"] * 3)
    axial_norm_std: float = 1.0
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] = field(default_factory=lambda: [64, 64])
    axial_pos_embds_dim: list[int] = field(default_factory=lambda: [64, 192])
    chunk_size_lm_head: int = 0
    chunk_size_feed_forward: int = 0
    classifier_dropout: float | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    feed_forward_size: int = 512
    hash_seed: int | None = None
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.05
    hidden_size: int = 256
    initializer_range: float = 0.02
    is_decoder: bool = False
    layer_norm_eps: float = 1e-12
    local_num_chunks_before: int | None = 1
    local_num_chunks_after: int | None = 0
    local_attention_probs_dropout_prob: float | None = 0.05
    local_attn_chunk_length: int | None = 64
    lsh_attn_chunk_length: int | None = 64
    lsh_attention_probs_dropout_prob: float | None = 0.0
    lsh_num_chunks_before: int | None = 1
    lsh_num_chunks_after: int | None = 0
    max_position_embeddings: int = 4096
    num_attention_heads: int = 12
    num_buckets: int | list[int] | None = None
    num_hashes: int | None = 1
    num_labels: int = None  # type: ignore[assignment]
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    output_attentions: bool | None = False
    output_hidden_states: bool | None = False
    pad_token_id: int | None = 0
    problem_type: str | None = None
    vocab_size: int = 320
    tie_word_embeddings: bool = False
    use_cache: bool = True
    architectures: list[str] | None = None
    transformers_version: str | None = None
    dtype: str | None = None
    return_dict: bool | None = True
    is_encoder_decoder: bool = False
    num_hidden_layers: int = None  # type: ignore[assignment]

    # ours
    attention_scope: str = "chunk"
    bucket_cap: int | None = None
    softcap: float | None = None
    matmul_precision: str | None = None
    memory_budget: int | float | None = None
    apply_lm_head_bias: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_hidden_layers is None and isinstance(self.attn_layers, (list, tuple)):
            self.num_hidden_layers = len(self.attn_layers)
        if self.num_labels is None:
            self.num_labels = len(self.id2label) if isinstance(self.id2label, dict) else 2
        # past what an assignment does to other fields
        vars(self).update({name: _plain(value) for name, value in vars(self).items()})
        if isinstance(self.id2label, dict):
            vars(self)["id2label"] = _by_number(self.id2label)
        self._name_labels()
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "extra" not in self.__dict__:
            return  # the last field: not all are there yet
        if name == "id2label" and isinstance(value, dict):
            self.num_labels = len(value)
            if self.label2id is not None:
                self.label2id = _numbers(_by_number(value))
        elif name == "num_labels":
            self._name_labels()

    def _name_labels(self) -> None:
        """Names for the classes, where there are none or not as many as classes."""
        names, count = self.id2label, self.num_labels
        # what is no dictionary is refused where all is checked
        known = all(isinstance(given, (dict, NoneType)) for given in (names, self.label2id))
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if known and whole and (names is None or len(names) != count):
            self.id2label = _label_names(int(count))
            self.label2id = _numbers(self.id2label)

    # ---- reading and writing ----

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReformerConfig:
        """A configuration from the contents of a config.json.

        Unknown keys are kept in `extra`, with a warning where one is like a field's name. Keys of
        2020 (``num_chunks_before``, ``seed`` ...) fill the fields that took their place where those
        are absent.

        Examples
        --------
        >>> config = ReformerConfig.from_dict({"num_chunks_after": 1, "task": "prose"})
        >>> config.local_num_chunks_after, config.extra
        (1, {'num_chunks_after': 1, 'task': 'prose'})
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values: expected a dictionary, got {type(values).__name__}")
        own, others = _sorted_out(values)
        if "extra" in own:  # a key of the file like any other
            others["extra"] = own.pop("extra")
        for name in others:
            if hint := _misspelling(name):
                warnings.warn(
                    f"{name}: kept, but ReformerConfig has no such field{hint}", stacklevel=2
                )
        return cls(**own, extra=others)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json that `from_dict` and transformers read.

        Our own fields are left out while they are off.
        """
        defaults = {f.name: f.default for f in fields(self) if f.name in OURS}
        values: dict[str, Any] = {"model_type": "reformer"} | self.extra
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "extra" or (f.name in OURS and value == defaults[f.name]):
                continue
            values[f.name] = list(value) if isinstance(value, list) else value
        if self.id2label == _label_names(2):  # as where nobody has named them
            values |= {"id2label": None, "label2id": None}
        elif self.id2label is not None:
            values["id2label"] = {str(key): label for key, label in self.id2label.items()}
        for name in ("id2label", "label2id", "architectures", "transformers_version", "dtype"):
            if values[name] is None:
                del values[name]
        if self.memory_budget == math.inf:
            values["memory_budget"] = "inf"
        return values

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> ReformerConfig:
        """Read a JSON file, or the config.json of a folder."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        with open(path, encoding="utf-8") as file:
            try:
                values = json.load(file)
            except ValueError as error:
                raise ValueError(f"path: {os.fspath(path)!r} is not JSON: {error}") from error
        return cls.from_dict(values)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write a JSON file, or the config.json of a folder that exists; atomically.

        Examples
        --------
        >>> import tempfile
        >>> config = ReformerConfig(vocab_size=258)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.to_json(folder)
        ...     ReformerConfig.from_json(folder) == config
        True
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, revision: str | None = None, **changes: Any
    ) -> ReformerConfig:
        """The config.json of a folder, or of a name on the Hugging Face hub (extra ``[hf]``).

        Keywords replace fields of the file.
        """
        names = [f.name for f in fields(cls)]
        refuse_unknown(changes, [*names, "revision"], "ReformerConfig.from_pretrained")
        config = cls.from_json(local_folder(folder, revision, [["config.json"]]))
        return config.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> ReformerConfig:
        """A copy with other values of some fields, as if they were assigned.

        Examples
        --------
        >>> ReformerConfig(id2label={0: "a", 1: "b"}).changed({"num_labels": 1}).id2label
        {0: 'LABEL_0'}
        """
        config = replace(self)
        # names of classes after their number, which makes new ones
        for name in sorted(changes, key=lambda name: {"id2label": 1, "label2id": 2}.get(name, 0)):
            setattr(config, name, changes[name])
        count = changes.get("num_labels")
        if count is not None and count != config.num_labels:
            raise ValueError(f"id2label: expected num_labels={count} names, got {config.id2label}")
        config.__post_init__()
        return config

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the config.json of a folder, which is made if it is not there; atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.to_json(folder)

    # ---- what follows from the fields ----

    @property
    def layer_types(self) -> list[str]:
        """The types of the layers that are built."""
        if len(set(self.attn_layers)) == 1:
            return self.attn_layers[:1] * self.num_hidden_layers
        return self.attn_layers[: self.num_hidden_layers]

    @property
    def activation(self) -> str:
        """`hidden_act` by the name that ``reformer_c.feed_forward``, or `WEIGHTED`, knows it by."""
        return ACTIVATIONS[self.hidden_act]

    @property
    def use_return_dict(self) -> bool:
        """`return_dict` by the name that transformers has for reading it."""
        return bool(self.return_dict)

    @property
    def padding_id(self) -> int:
        """What fills up a row: `pad_token_id`, or 0 where the vocabulary does not have it."""
        has = self.pad_token_id is not None and 0 <= self.pad_token_id < self.vocab_size
        return self.pad_token_id if has else 0  # type: ignore[return-value]

    @property
    def num_positions(self) -> int:
        """How many positions there are: no sequence can be longer."""
        if self.axial_pos_embds:
            return min(self.max_position_embeddings, math.prod(self.axial_pos_shape))
        return self.max_position_embeddings

    # ---- checks ----

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the field, where a value cannot be used."""
        self._check_layers()
        self._check_sizes()
        self._check_positions()
        for layer_type in set(self.layer_types):
            self._check_attention(layer_type)
        if "lsh" in self.layer_types:
            self._check_hashing()
        self._check_choices()

    def _check_layers(self) -> None:
        if not isinstance(self.attn_layers, list) or not self.attn_layers:
            raise TypeError(
                f"attn_layers: expected a list of layer types, got {self.attn_layers!r}"
            )
        for layer_type in self.attn_layers:
            _choice("attn_layers", layer_type, LAYER_TYPES)
        integer("num_hidden_layers", self.num_hidden_layers, 1)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers: expected at most the {len(self.attn_layers)} of attn_layers, "
                f"which are of two types, got {self.num_hidden_layers}"
            )

    def _check_sizes(self) -> None:
        for name in (
            "attention_head_size", "feed_forward_size", "hidden_size", "max_position_embeddings",
            "num_attention_heads", "num_labels", "vocab_size",
        ):  # fmt: skip
            integer(name, getattr(self, name), 1)
        for name in ("chunk_size_lm_head", "chunk_size_feed_forward"):
            integer(name, getattr(self, name), 0)
        for name in ("axial_norm_std", "initializer_range", "layer_norm_eps"):
            _real(name, getattr(self, name), 0.0)
        _real("hidden_dropout_prob", self.hidden_dropout_prob, 0.0, below=1.0)
        if self.classifier_dropout is not None:
            _real("classifier_dropout", self.classifier_dropout, 0.0, below=1.0)
        for name in ("id2label", "label2id"):
            labels = getattr(self, name)
            if labels is not None and not isinstance(labels, dict):
                raise TypeError(f"{name}: expected a dictionary, got {type(labels).__name__}")
        if self.id2label is not None and len(self.id2label) != self.num_labels:
            raise ValueError(f"id2label: expected num_labels={self.num_labels} names")

    def _check_positions(self) -> None:
        flag("axial_pos_embds", self.axial_pos_embds)
        if not self.axial_pos_embds:
            return
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            value = getattr(self, name)
            if not isinstance(value, list) or len(value) != 2:
                raise TypeError(f"{name}: expected a list of two integers, got {value!r}")
            for part in value:
                integer(name, part, 1)
        if sum(self.axial_pos_embds_dim) != self.hidden_size:
            raise ValueError(
                f"axial_pos_embds_dim: its parts {self.axial_pos_embds_dim} have to add up to "
                f"hidden_size={self.hidden_size}"
            )

    def _check_attention(self, layer_type: str) -> None:
        for name, least in (
            ("attn_chunk_length", 1), ("num_chunks_before", 0), ("num_chunks_after", 0),
        ):  # fmt: skip
            integer(f"{layer_type}_{name}", self.attention(layer_type, name), least)
        name = "attention_probs_dropout_prob"
        _real(f"{layer_type}_{name}", self.attention(layer_type, name), 0.0, below=1.0)

    def attention(self, layer_type: str, name: str) -> Any:
        """The field `name` of one type of attention: ``attention("lsh", "attn_chunk_length")``."""
        return getattr(self, f"{layer_type}_{name}")

    def _check_hashing(self) -> None:
        integer("num_hashes", self.num_hashes, 1)
        if self.hash_seed is not None:
            integer("hash_seed", self.hash_seed)
        if self.num_buckets is None:
            return
        factors = self.num_buckets if isinstance(self.num_buckets, list) else [self.num_buckets]
        if not factors:
            raise ValueError("num_buckets: expected at least one factor, got []")
        for factor in factors:
            integer("num_buckets", factor, 2)
            if factor % 2:
                raise ValueError(f"num_buckets: expected even numbers, got {self.num_buckets}")

    def _check_choices(self) -> None:
        _choice("hidden_act", self.hidden_act, ACTIVATIONS)
        _choice("attention_scope", self.attention_scope, SCOPES)
        if self.bucket_cap is not None:
            integer("bucket_cap", self.bucket_cap, 64)
            if self.bucket_cap % 64 or self.attention_scope != "bucket":
                raise ValueError(
                    f"bucket_cap: expected a multiple of 64 with attention_scope='bucket', got "
                    f"{self.bucket_cap} with attention_scope={self.attention_scope!r}"
                )
        if self.softcap is not None:
            _real("softcap", self.softcap, 0.0)
            if self.softcap == 0:
                raise ValueError("softcap: expected a number above 0, or None, got 0")
        if self.matmul_precision is not None:
            _choice("matmul_precision", self.matmul_precision, PRECISIONS)
        if self.problem_type is not None:
            _choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ValueError(
                "problem_type: expected num_labels > 1 for 'single_label_classification'; "
                "one label is a 'regression', and yes or no are two"
            )
        for name in (
            "is_decoder", "tie_word_embeddings", "use_cache", "apply_lm_head_bias",
            "is_encoder_decoder",
        ):  # fmt: skip
            flag(name, getattr(self, name))
        for name in ("output_attentions", "output_hidden_states", "return_dict"):
            if getattr(self, name) is not None:
                flag(name, getattr(self, name))
        for name in ("transformers_version", "dtype"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise TypeError(f"{name}: expected text or None, got {getattr(self, name)!r}")
        names = self.architectures or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"architectures: expected a list of names, got {names!r}")
        # checkpoints have -1 for none, and ids that a tokenizer added
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name))
        if self.eos_token_id is not None:
            ids = self.eos_token_id
            for i in ids if isinstance(ids, list) else [ids]:
                integer("eos_token_id", i)
        if self.memory_budget is not None:
            check_memory_budget(self.memory_budget)
        if not isinstance(self.extra, dict):
            raise TypeError(f"extra: expected a dictionary, got {type(self.extra).__name__}")


# the one that dataclass wrote knows no other names than those of fields
ReformerConfig.__init__ = _with_other_fields(ReformerConfig.__init__)  # type: ignore[method-assign]


def check_memory_budget(value: Any) -> None:
    """Raise TypeError or ValueError unless it is bytes, or a share of the free memory."""
    _real("memory_budget", value, 0.0, finite=False)


def _plain(value: Any) -> Any:
    """What JSON would give back: tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, (bool, int)):
        return float(value)
    return value


def _label_names(count: int) -> dict[int, str]:
    return {i: f"LABEL_{i}" for i in range(count)}


def _by_number(names: Mapping[Any, str]) -> dict[Any, str]:
    """Names of classes by number: JSON knows no numbers as keys."""
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: name
        for key, name in names.items()
    }


def _numbers(names: Mapping[Any, str]) -> dict[str, Any]:
    return {name: i for i, name in names.items()}


def _real(
    name: str, value: Any, least: float, *, below: float = math.inf, finite: bool = True
) -> None:
    expected = f"a number >= {least:g}" + (f" and < {below:g}" if below < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not (least <= float(value) < below or (value == math.inf and not finite)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
