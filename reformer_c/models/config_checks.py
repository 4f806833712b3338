"""Checks of a configuration's fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Real
from typing import Any

from ..checks import INT32_MAX, flag, integer, positive
from ..layers.streams import RESIDUAL_DTYPES
from ..precision import PRECISIONS
from .config_keys import ACTIVATIONS

__all__ = ["check_fields", "check_memory_budget"]

POSITION_TYPES = ("absolute", "sinusoidal", "rotary", "none")
LAYER_TYPES = ("local", "lsh", "full", "full_shared", "hash")
CROSS_TYPES = ("full", "lsh")
MAX_AXES = 8  # of the operation axial_positions
SCOPES = ("chunk", "bucket")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def check_fields(config: Any) -> None:
    """Raise TypeError or ValueError, naming the field, if a value is invalid."""
    _check_layers(config)
    _check_sizes(config)
    _check_labels(config)
    _check_positions(config)
    for layer_type in config.windows:
        _check_attention(config, layer_type)
    _real("full_attention_probs_dropout_prob", config.full_attention_probs_dropout_prob, 0.0,
          below=1.0)  # fmt: skip
    _choice("cross_attention", config.cross_attention, CROSS_TYPES)
    _each(config, "hash_local_window", integer, 0, INT32_MAX)
    if config.hashes or config.cross_attention == "lsh":
        _check_hashing(config)
    _check_options(config)
    _check_tokens(config)
    _check_stored(config)


def check_memory_budget(value: Any) -> None:
    """Raise TypeError or ValueError unless the value is a number >= 0, which may be infinite."""
    _real("memory_budget", value, 0.0, finite=False)


def _each(
    config: Any,
    names: str,
    check: Callable[..., Any],
    *bounds: Any,
    optional: bool = False,
    **options: Any,
) -> None:
    """Check each of the fields `names`; with `optional`, they may be None."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None or not optional:
            check(name, value, *bounds, **options)


def _check_layers(config: Any) -> None:
    if not isinstance(config.attn_layers, list) or not config.attn_layers:
        raise TypeError(f"attn_layers must be a list of layer types, got {config.attn_layers!r}")
    for layer_type in config.attn_layers:
        _choice("attn_layers", layer_type, LAYER_TYPES)
    integer("num_hidden_layers", config.num_hidden_layers, 1)
    if len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"num_hidden_layers must be at most {len(config.attn_layers)}, the length of "
            f"attn_layers, which are of several types, got {config.num_hidden_layers}"
        )


def _check_sizes(config: Any) -> None:
    sizes = (
        "attention_head_size feed_forward_size hidden_size max_position_embeddings "
        "num_attention_heads num_labels vocab_size"
    )
    _each(config, sizes, integer, 1)
    _each(config, "num_key_value_heads", integer, 1, optional=True)
    if config.num_attention_heads % config.key_value_heads:
        raise ValueError(
            "num_key_value_heads must divide num_attention_heads="
            f"{config.num_attention_heads}, got {config.num_key_value_heads}"
        )
    _each(config, "chunk_size_lm_head chunk_size_feed_forward", integer, 0)
    _each(config, "axial_norm_std initializer_range layer_norm_eps", _real, 0.0)
    _each(config, "hidden_dropout_prob label_smoothing", _real, 0.0, below=1.0)
    _each(config, "classifier_dropout", _real, 0.0, below=1.0, optional=True)


def _check_labels(config: Any) -> None:
    _each(config, "id2label label2id", _dictionary, optional=True)
    if config.id2label is not None and len(config.id2label) != config.num_labels:
        raise ValueError(
            f"id2label must have num_labels={config.num_labels} names, got {config.id2label}"
        )


def _check_positions(config: Any) -> None:
    _choice("position_embedding_type", config.position_embedding_type, POSITION_TYPES)
    positive("rope_theta", config.rope_theta)
    if config.position_embedding_type == "rotary" and all(
        map(config.shares_qk, config.layer_types)
    ):
        raise ValueError(
            "position_embedding_type must not be 'rotary' without a local, full or hash layer "
            f"whose queries and keys are not shared, got attn_layers={config.attn_layers} and "
            f"local_shared_qk={config.local_shared_qk}"
        )
    flag("axial_pos_embds", config.axial_pos_embds)
    if config.position_embedding_type != "absolute" or not config.axial_pos_embds:
        return
    names = "axial_pos_shape", "axial_pos_embds_dim"
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_AXES:
            raise TypeError(f"{name} must be a list of 1 to {MAX_AXES} integers, got {value!r}")
        for part in value:
            integer(name, part, 1)
    shorter, longer = sorted(names, key=lambda name: len(getattr(config, name)))
    if len(getattr(config, shorter)) != len(getattr(config, longer)):
        raise ValueError(
            f"{shorter} must have as many axes as {longer}={getattr(config, longer)}, "
            f"got {getattr(config, shorter)}"
        )
    if sum(config.axial_pos_embds_dim) != config.hidden_size:
        raise ValueError(
            f"axial_pos_embds_dim must add up to hidden_size={config.hidden_size}, "
            f"got {config.axial_pos_embds_dim}"
        )


def _check_attention(config: Any, layer_type: str) -> None:
    _each(config, f"{layer_type}_attn_chunk_length", integer, 1)
    _each(config, f"{layer_type}_num_chunks_before {layer_type}_num_chunks_after", integer, 0)
    _each(config, f"{layer_type}_attention_probs_dropout_prob", _real, 0.0, below=1.0)


def _check_hashing(config: Any) -> None:
    # of it depends the number of buckets that is chosen
    _each(config, "num_hashes lsh_attn_chunk_length", integer, 1)
    _each(config, "hash_seed", integer, optional=True)
    for name in ("num_buckets", "cross_num_buckets"):
        _check_factors(name, getattr(config, name))


def _check_factors(name: str, value: Any) -> None:
    if value is None:
        return
    factors = _listed(value)
    if not factors:
        raise ValueError(f"{name} must have at least one factor, got []")
    for factor in factors:
        integer(name, factor, 2)
        if factor % 2:
            raise ValueError(f"{name} must be even numbers, got {value}")


def _check_options(config: Any) -> None:
    _choice("hidden_act", config.hidden_act, ACTIVATIONS)
    _choice("attention_scope", config.attention_scope, SCOPES)
    if config.bucket_cap is not None:
        integer("bucket_cap", config.bucket_cap, 64)
        if config.bucket_cap % 64 or config.attention_scope != "bucket":
            raise ValueError(
                f"bucket_cap must be a multiple of 64 with attention_scope='bucket', got "
                f"{config.bucket_cap} with attention_scope={config.attention_scope!r}"
            )
    _each(config, "softcap", _real, 0.0, optional=True)
    if config.softcap == 0:
        raise ValueError("softcap must be a number > 0 or None, got 0")
    _each(config, "matmul_precision", _choice, PRECISIONS, optional=True)
    _each(config, "kept_dtype", _choice, ("bfloat16",), optional=True)
    _each(config, "residual_dtype", _choice, RESIDUAL_DTYPES, optional=True)
    if config.residual_dtype is not None and config.reversible is False:
        raise ValueError(
            f"residual_dtype must be None with reversible=False, got {config.residual_dtype!r}"
        )
    _each(config, "problem_type", _choice, PROBLEM_TYPES, optional=True)
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise ValueError(
            "problem_type must not be 'single_label_classification' with num_labels=1; one "
            "label is a 'regression', and a yes-or-no question has two"
        )
    _each(config, "is_decoder tie_word_embeddings use_cache apply_lm_head_bias", flag)
    _each(config, "reversible shared_embeddings local_shared_qk feed_forward_gated", flag)
    _each(config, "lsh_attend_across_buckets lsh_allow_duplicate_attention", flag)
    _each(config, "output_attentions output_hidden_states return_dict", flag, optional=True)
    if config.memory_budget is not None:
        check_memory_budget(config.memory_budget)
    if config.image_shape is not None:
        _check_pictures(config)


def _check_pictures(config: Any) -> None:
    shape = config.image_shape
    if not isinstance(shape, list) or len(shape) != 3:
        raise TypeError(f"image_shape must be a list of three integers or None, got {shape!r}")
    for part in shape:
        integer("image_shape", part, 1)
    if math.prod(shape) > config.num_positions:
        raise ValueError(
            f"image_shape must have at most {config.num_positions} values (positions), got {shape}"
        )
    if config.vocab_size != 256:
        raise ValueError(
            f"image_shape must be None, or vocab_size 256, got {shape} and {config.vocab_size}"
        )


def _check_tokens(config: Any) -> None:
    # not bounded by the vocabulary: checkpoints have -1 for "none", and ids of added tokens
    _each(config, "bos_token_id pad_token_id", integer, optional=True)
    if config.eos_token_id is not None:
        for token in _listed(config.eos_token_id):
            integer("eos_token_id", token)


def _check_stored(config: Any) -> None:
    """Check the fields that have no effect here."""
    flag("is_encoder_decoder", config.is_encoder_decoder)
    for name in ("transformers_version", "dtype"):
        if not isinstance(getattr(config, name), (str, type(None))):
            raise TypeError(f"{name} must be a str or None, got {getattr(config, name)!r}")
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"architectures must be a list of names, got {names!r}")
    _dictionary("extra", config.extra)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _dictionary(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dictionary, got {type(value).__name__}")


def _real(
    name: str, value: Any, minimum: float, *, below: float = math.inf, finite: bool = True
) -> None:
    expected = f"a number >= {minimum:g}" + (f" and < {below:g}" if below < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if not (minimum <= float(value) < below or (value == math.inf and not finite)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
