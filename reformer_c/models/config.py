"""The configuration of a Reformer: Hugging Face's fields, and a few of our own."""

from __future__ import annotations

import functools
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

from ..checks import NamedAttributes, refuse_unknown
from ..files.checkpoint import local_folder
from .config_checks import check_fields
from .config_keys import ACTIVATIONS, misspelling, split_keys
from .json_file import JsonFile

__all__ = ["ReformerConfig"]

OURS = ("reversible", "num_key_value_heads", "local_shared_qk", "feed_forward_gated",
        "rope_theta", "full_attention_probs_dropout_prob", "position_embedding_type",
        "attention_scope", "bucket_cap", "lsh_attend_across_buckets",
        "lsh_allow_duplicate_attention", "softcap", "matmul_precision", "memory_budget",
        "kept_dtype", "residual_dtype", "apply_lm_head_bias", "label_smoothing",
        "shared_embeddings", "image_shape", "hash_local_window", "cross_attention",
        "cross_num_buckets")  # fmt: skip

# the types of attention whose fields begin with another's name
PREFIXES = {"full_shared": "full", "hash": "full"}


def _with_other_fields(initialise: Callable[..., None]) -> Callable[..., None]:
    """Let `__init__` accept other keys of a config.json, but not misspelt names of fields."""

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        names = self.__dataclass_fields__
        own, others = split_keys(values, names)
        for name in others:
            if hint := misspelling(name, names):
                raise TypeError(
                    f"{name}: ReformerConfig has no such field{hint} extra={{{name!r}: ...}} keeps "
                    "an unknown field"
                )
        if others and isinstance(extra := own.get("extra", {}), dict):
            own["extra"] = others | extra
        initialise(self, *args, **own)

    return __init__


@dataclass
class ReformerConfig(NamedAttributes, JsonFile):
    """The configuration of a model.

    Fields and defaults are those of Hugging Face's ``ReformerConfig``. Those from ``reversible`` on
    are our own; by default they have no effect, except that
    ``apply_lm_head_bias`` is True. A field of a layer type that does not occur may be None. Other
    keys that transformers writes are accepted and kept in `extra`.

    Parameters
    ----------
    attention_head_size : int
        Depth of a head; heads times depth need not equal hidden_size.
    attn_layers : list of str
        Type of each layer's attention: "local", "lsh", "full" (to all tokens), "full_shared" (to
        all, with shared queries and keys as in "lsh") or "hash" (queries and keys of their own; a
        token attends to the keys in the buckets of its query and to those near it). If all are the
        same, num_hidden_layers may be larger than the list.
    axial_norm_std : float
        Standard deviation of axial position embeddings at initialisation, and the amplitude of
        sinusoidal ones.
    axial_pos_embds : bool
        Axial position embeddings, a small table for each axis of a grid (True), or one row per
        position (False).
    axial_pos_shape : list of int
        Sizes of the grid's axes; the positions fill it in row-major order. Hugging Face's models
        have two axes, here any number up to 8.
    axial_pos_embds_dim : list of int
        Width of each axis' embedding; their sum is hidden_size.
    chunk_size_lm_head : int
        Rows of logits in memory at a time; 0 chooses.
    chunk_size_feed_forward : int
        Rows of the feed-forward layer's hidden units in memory at a time; 0 chooses.
    classifier_dropout : float, optional
        Dropout before and inside the classification head; None: hidden_dropout_prob.
    bos_token_id : int, optional
        Beginning of a text, from which `generate` starts without a prompt.
    eos_token_id : int or list of int, optional
        End of a text.
    feed_forward_size : int
        Width of the feed-forward layer's hidden units.
    hash_seed : int, optional
        Every call draws the same rotations, from this seed; None: from the call's `rng`. Models in
        float32 and in float64 draw different ones.
    hidden_act : str
        Activation of the feed-forward layer.
    hidden_dropout_prob : float
        Dropout of embeddings, sublayers and the final states, in training.
    hidden_size : int
        Width of each residual stream.
    initializer_range : float
        Standard deviation of weights at initialisation.
    is_decoder : bool
        Causal attention.
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
        Maximum sequence length, if positions are learned; the automatic num_buckets depends on it
        too.
    num_attention_heads : int
        Heads of every attention layer.
    num_buckets : int or list of int, optional
        Buckets per hash round: an even number, or a list of even factors. None: chosen from the
        sequence length, until a model's first training step sets it.
    num_hashes : int, optional
        Hash rounds of LSH attention.
    num_labels : int
        Outputs of the classification and question-answering heads; None: the length of id2label,
        or 2.
    id2label, label2id : dict, optional
        Names of the classes by number, and the numbers by name. If None, or if their number is not
        num_labels, they become LABEL_0, LABEL_1 ...
    output_attentions, output_hidden_states : bool, optional
        Defaults of these arguments of a call.
    pad_token_id : int, optional
        Padding; 0 if it is outside the vocabulary.
    problem_type : str, optional
        Loss of the classification head; None: from num_labels and the labels' dtype.
    vocab_size : int
        Number of token ids.
    tie_word_embeddings : bool
        Only stored: the output layer has twice the embedding's width, so they cannot be tied.
    use_cache : bool
        Default of `generate`.
    architectures, transformers_version, dtype
        Only stored: transformers records itself and the model's class in them.
    return_dict : bool, optional
        Default of this argument of a call; False returns tuples.
    is_encoder_decoder : bool
        Only stored.
    num_hidden_layers : int
        Number of layers; their types are the first of attn_layers. None: all of them.
    reversible : bool
        False: one stream, ``x += f(x)`` for each branch, as in an ordinary pre-norm Transformer
        with the same parameters. Memory then grows with depth: training keeps the stream before
        each branch, and with memory_budget what the branches would recompute. The final states are
        the stream twice, as wide as two streams.
    num_key_value_heads : int, optional
        Heads of the keys and values of every attention layer, a divisor of num_attention_heads:
        each serves as many successive heads of the queries (grouped-query attention, Ainslie et al.
        2023; 1: multi-query, Shazeer 2019). Where queries and keys are shared, as in "lsh" layers,
        heads of the values alone. None: as many as num_attention_heads. Fewer make the cache of
        decoding smaller; transformers cannot open such a model.
    local_shared_qk : bool
        Local attention: one projection for queries and keys, by the rule of "lsh" and "full_shared"
        layers: a key is its query divided by its root mean square, and a token attends to itself
        only if nothing else is visible. transformers cannot open such a model.
    feed_forward_gated : bool
        The feed-forward layer is ``(act(x w1' + b1) * (x w3' + b3)) w2' + b2``, with a third matrix
        of feed_forward_size rows (GLU, Shazeer 2020; with hidden_act "silu" SwiGLU, with "sigmoid"
        the gated linear unit). Dropout drops the products. transformers cannot open such a model.
    position_embedding_type : {"absolute", "sinusoidal", "rotary", "none"}
        "absolute": learned, axial or a table; "sinusoidal": sines and cosines (Vaswani et al. 2017,
        section 3.5), in layers.positions; "rotary": queries and keys of "local", "full" and "hash"
        layers are rotated, see `reformer_c.rotary_positions`, unless they are shared; "none":
        causal attention alone tells the order. Only "absolute" has weights; with the others,
        sequences may be longer than max_position_embeddings.
    rope_theta : float
        theta of rotary positions.
    full_attention_probs_dropout_prob : float
        As local_attention_probs_dropout_prob, of "full", "full_shared" and "hash" layers.
    attention_scope : str
        "chunk": fixed-size chunks as in Hugging Face; "bucket": whole buckets, of any size. The
        attended set of the paper's section 2 is "bucket" with lsh_allow_duplicate_attention=False.
    bucket_cap : int, optional
        With "bucket": size of the segments that larger buckets are cut into, a multiple of 64, see
        lsh_attention; None: no limit.
    lsh_attend_across_buckets : bool
        False: with "chunk", keys of another bucket than the query's are not attended to, as in the
        paper. With "bucket" they never are.
    lsh_allow_duplicate_attention : bool
        False: a key that is met in several hash rounds counts once, as in the paper, where the
        attended keys are the union over rounds. True counts each meeting, as Hugging Face does.
    softcap : float, optional
        Attention scores s become ``softcap * tanh(s / softcap)`` in every layer (Gemma Team 2024,
        section 2); None: no soft cap.
    matmul_precision : {"highest", "high", "medium"}, optional
        How precisely float32 matrix products are computed, see `reformer_c.set_matmul_precision`;
        None: as set for the process, or by the ``with`` block around a call.
    memory_budget : int or float, optional
        Memory in which training may keep activations instead of recomputing them: bytes, or as a
        float up to 1 a share of the free memory; None: recompute all.
    kept_dtype : {"bfloat16"}, optional
        What `memory_budget` keeps is rounded to bfloat16, so that about twice as many layers fit;
        None: not. Losses are the same, and gradients differ by the rounding: see
        docs/how_it_works.md.
    residual_dtype : {"int16", "int32"}, optional
        Residual streams are kept in fixed point, in steps of 2**-8 below 128 or of 2**-20 below
        2048, and rebuilt bit for bit; a number beyond raises an OverflowError. With "int16" their
        gradients are bfloat16 numbers, so that streams and gradients take half the memory. Needs
        `reversible`. None: as they are computed.
    apply_lm_head_bias : bool
        False: lm_head.bias is not added, as in transformers 5.0 to 5.23.
    label_smoothing : float
        Language models, in training: the share of the target that is spread evenly over the
        vocabulary, see `reformer_c.cross_entropy_head`. Losses without `training` do not have it.
    shared_embeddings : bool
        Language models: the output layer has no weight of its own and uses the word vectors, once
        for each stream: logits are ``(h1 + h2) words' + bias``. In a `ReformerEncoderDecoder` both
        sides also have one table of word vectors. transformers cannot open such a model.
    image_shape : list of int, optional
        Height, width and channels of the pictures that a model's sequences are, with a vocabulary
        of 256 bytes; None: its sequences are not pictures.
    hash_local_window : int
        "hash" layers: a token also attends to the keys at most this far from it, in one softmax
        with those of its buckets. Each key counts once, and buckets are whole.
    cross_attention : {"full", "lsh"}
        How the decoder of a `ReformerEncoderDecoder` attends to the encoder's states: to all, or to
        the keys in the buckets of a query, by num_hashes, cross_num_buckets and hash_seed.
    cross_num_buckets : int or list of int, optional
        As num_buckets. None: chosen from the length of each text that the encoder reads.
    extra : dict
        Other keys, kept unchanged.

    Raises
    ------
    TypeError, ValueError
        A value is invalid, or a name is that of a field but for its spelling.
    AttributeError
        An attribute that is not a field is assigned.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local", "lsh"], is_decoder=True)
    >>> config.num_hidden_layers
    2
    >>> ReformerConfig(hidden_size=100)
    Traceback (most recent call last):
    ValueError: axial_pos_embds_dim must add up to hidden_size=100, got [64, 192]
    >>> ReformerConfig(**config.to_dict()) == config
    True
    >>> ReformerConfig(temperature=0.7).extra
    {'temperature': 0.7}
    """

    _file_name = "config.json"

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
    reversible: bool = True
    num_key_value_heads: int | None = None
    local_shared_qk: bool = False
    feed_forward_gated: bool = False
    position_embedding_type: str = "absolute"
    rope_theta: float = 10000.0
    full_attention_probs_dropout_prob: float = 0.0
    attention_scope: str = "chunk"
    bucket_cap: int | None = None
    lsh_attend_across_buckets: bool = True
    lsh_allow_duplicate_attention: bool = True
    softcap: float | None = None
    matmul_precision: str | None = None
    memory_budget: int | float | None = None
    kept_dtype: str | None = None
    residual_dtype: str | None = None
    apply_lm_head_bias: bool = True
    label_smoothing: float = 0.0
    shared_embeddings: bool = False
    image_shape: list[int] | None = None
    hash_local_window: int = 64
    cross_attention: str = "full"
    cross_num_buckets: int | list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_hidden_layers is None and isinstance(self.attn_layers, (list, tuple)):
            self.num_hidden_layers = len(self.attn_layers)
        if self.num_labels is None:
            self.num_labels = len(self.id2label) if isinstance(self.id2label, dict) else 2
        # not by assignment, which would update other fields too
        vars(self).update({name: _plain(value) for name, value in vars(self).items()})
        if isinstance(self.id2label, dict):
            vars(self)["id2label"] = _by_number(self.id2label)
        self._name_labels()
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "extra" not in self.__dict__:
            return  # called by __init__, which sets `extra` last
        if name == "id2label" and isinstance(value, dict):
            self.num_labels = len(value)
            if self.label2id is not None:
                self.label2id = _numbers(_by_number(value))
        elif name == "num_labels":
            self._name_labels()

    def _name_labels(self) -> None:
        """Set default names of the classes, unless there are as many names as classes."""
        names, count = self.id2label, self.num_labels
        # other types are rejected later, by `check`
        known = all(isinstance(given, (dict, NoneType)) for given in (names, self.label2id))
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if known and whole and (names is None or len(names) != count):
            self.id2label = _label_names(int(count))
            self.label2id = _numbers(self.id2label)

    # ---- reading and writing ----

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReformerConfig:
        """A configuration from the contents of a config.json.

        Unknown keys are kept in `extra`, with a warning if one resembles a field. Keys of 2020
        (``num_chunks_before``, ``seed`` ...) set the fields that replaced them, unless those are
        present.

        Parameters
        ----------
        values : mapping of str to object
            The fields by name.

        Examples
        --------
        >>> config = ReformerConfig.from_dict({"num_chunks_after": 1, "task": "prose"})
        >>> config.local_num_chunks_after, config.extra
        (1, {'num_chunks_after': 1, 'task': 'prose'})
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values must be a dictionary, got {type(values).__name__}")
        names = cls.__dataclass_fields__
        own, others = split_keys(values, names)
        if "extra" in own:  # in a file, not the field of this name
            others["extra"] = own.pop("extra")
        for name in others:
            if hint := misspelling(name, names):
                warnings.warn(
                    f"{name}: kept, but ReformerConfig has no such field{hint}", stacklevel=2
                )
        return cls(**own, extra=others)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json that `from_dict` and transformers read.

        Our own fields are omitted if they have their defaults.

        Examples
        --------
        >>> import tempfile
        >>> config = ReformerConfig(vocab_size=258)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.to_json(folder)
        ...     ReformerConfig.from_json(folder) == config
        True
        """
        values: dict[str, Any] = {"model_type": "reformer"} | self.extra
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "extra" and (f.name not in OURS or value != f.default):
                values[f.name] = list(value) if isinstance(value, list) else value
        if self.id2label == _label_names(2):  # the default
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
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, revision: str | None = None, **changes: Any
    ) -> ReformerConfig:
        """Read the config.json of a folder, or of a name on the Hugging Face hub (extra ``hf``).

        Keywords override fields of the file.

        Parameters
        ----------
        folder : path or str
            The folder, or the name on the hub.
        revision : str, optional
            Branch, tag or commit on the hub.
        **changes
            Fields to set in place of the file's.
        """
        known = [*cls.__dataclass_fields__, "revision"]
        refuse_unknown(changes, known, "ReformerConfig.from_pretrained")
        config = cls.from_json(local_folder(folder, revision, [["config.json"]]))
        return config.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> ReformerConfig:
        """A copy with some fields changed, as by assignment.

        Parameters
        ----------
        changes : mapping of str to object
            New values by field.

        Examples
        --------
        >>> ReformerConfig(id2label={0: "a", 1: "b"}).changed({"num_labels": 1}).id2label
        {0: 'LABEL_0'}
        """
        config = replace(self)
        # labels after num_labels, which resets them
        for name in sorted(changes, key=lambda name: {"id2label": 1, "label2id": 2}.get(name, 0)):
            setattr(config, name, changes[name])
        count = changes.get("num_labels")
        if count is not None and count != config.num_labels:
            raise ValueError(f"id2label must have num_labels={count} names, got {config.id2label}")
        config.__post_init__()
        return config

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the config.json of a folder, atomically; creates the folder if needed.

        Parameters
        ----------
        folder : path or str
            Created if it does not exist.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.to_json(folder)

    # ---- derived values ----

    @property
    def layer_types(self) -> list[str]:
        """The type of each of the num_hidden_layers layers."""
        if len(set(self.attn_layers)) == 1:
            return self.attn_layers[:1] * self.num_hidden_layers
        return self.attn_layers[: self.num_hidden_layers]

    @property
    def activation(self) -> str:
        """The name of `hidden_act` in ``reformer_c.feed_forward``, or in `WEIGHTED`."""
        return ACTIVATIONS[self.hidden_act]

    @property
    def use_return_dict(self) -> bool:
        """`return_dict`, under transformers' name for reading it."""
        return bool(self.return_dict)

    @property
    def padding_id(self) -> int:
        """The id that pads rows: `pad_token_id`, or 0 if that is outside the vocabulary."""
        has = self.pad_token_id is not None and 0 <= self.pad_token_id < self.vocab_size
        return self.pad_token_id if has else 0  # type: ignore[return-value]

    @property
    def num_positions(self) -> int:
        """Number of positions: the maximum sequence length. Only learned tables bound it."""
        if self.position_embedding_type != "absolute":
            return 2**53  # floating-point numbers hold all integers up to this one
        if self.axial_pos_embds:
            return min(self.max_position_embeddings, math.prod(self.axial_pos_shape))
        return self.max_position_embeddings

    @property
    def windows(self) -> list[str]:
        """The types among `layer_types` that attend to chunks, "local" and "lsh", each once."""
        return [kind for kind in ("local", "lsh") if kind in self.layer_types]

    @property
    def hashes(self) -> bool:
        """Whether a layer hashes: num_hashes and num_buckets have an effect."""
        return not {"lsh", "hash"}.isdisjoint(self.layer_types)

    @property
    def key_value_heads(self) -> int:
        """Heads of the values, and of the keys that are not shared with the queries."""
        heads = self.num_key_value_heads
        return self.num_attention_heads if heads is None else heads

    def projection_width(self, projection: str) -> int:
        """Rows of the weight of a projection.

        Parameters
        ----------
        projection : {"query", "key", "value", "query_key"}
            Its name.
        """
        grouped = projection in ("key", "value")
        heads = self.key_value_heads if grouped else self.num_attention_heads
        return heads * self.attention_head_size

    def shares_qk(self, layer_type: str) -> bool:
        """Whether queries and keys of a type of attention have one projection.

        Parameters
        ----------
        layer_type : {"local", "lsh", "full", "full_shared", "hash"}
            The type of attention.
        """
        return layer_type in ("lsh", "full_shared") or (
            layer_type == "local" and self.local_shared_qk
        )

    def attention(self, layer_type: str, name: str) -> Any:
        """The field `name` of one type of attention: ``attention("lsh", "attn_chunk_length")``.

        Parameters
        ----------
        layer_type : {"local", "lsh", "full", "full_shared", "hash"}
            The type of attention.
        name : str
            The field without the type's prefix.
        """
        return getattr(self, f"{PREFIXES.get(layer_type, layer_type)}_{name}")

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the field, if a value is invalid."""
        check_fields(self)


# the __init__ generated by dataclass accepts only fields
ReformerConfig.__init__ = _with_other_fields(ReformerConfig.__init__)  # type: ignore[method-assign]


def _plain(value: Any) -> Any:
    """Convert to JSON's types: tuples to lists, NumPy scalars to Python's."""
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
    """Names of classes by number; in JSON, numbers as keys are strings."""
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: name
        for key, name in names.items()
    }


def _numbers(names: Mapping[Any, str]) -> dict[str, Any]:
    return {name: i for i, name in names.items()}
