"""Names that transformers writes into a config.json: keys of several versions, and activations."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from ..checks import did_you_mean
from ..layers.activations import WEIGHTED

__all__ = ["ACTIVATIONS", "misspelling", "split_keys"]

# transformers' names of activations, some of them synonyms, and ours
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

# keys of configurations from 2020, and the fields that replaced them
LEGACY_KEYS = {
    "attention_probs_dropout_prob": (
        "local_attention_probs_dropout_prob",
        "lsh_attention_probs_dropout_prob",
    ),
    "num_chunks_before": ("local_num_chunks_before", "lsh_num_chunks_before"),
    "num_chunks_after": ("local_num_chunks_after", "lsh_num_chunks_after"),
    "seed": ("hash_seed",),
}

# further keys in configurations of transformers since version 2.9
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

# difflib's similarity from which an unknown name counts as a misspelt field
MISSPELT = 0.65


def split_keys(
    values: Mapping[str, Any], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split into the fields `names` and other keys.

    Keys of 2020 set the fields that replaced them, and stay among the others.
    """
    if (kind := values.get("model_type", "reformer")) != "reformer":
        raise ValueError(f"model_type must be 'reformer', got {kind!r}")
    own = {name: value for name, value in values.items() if name in names}
    for old, new in LEGACY_KEYS.items():
        for name in new if values.get(old) is not None else ():
            own.setdefault(name, values[old])
    if own.get("memory_budget") == "inf":
        own["memory_budget"] = math.inf  # JSON has no infinity
    return own, {k: v for k, v in values.items() if k not in names and k != "model_type"}


def misspelling(name: str, names: Collection[str]) -> str:
    """The end of a message that suggests one of the fields `names` for an unknown name, or an
    empty str if none is similar."""
    if name in THEIRS or name in names:
        return ""
    return did_you_mean(name, difflib.get_close_matches(name.lower(), names, 1, MISSPELT))
