"""Byte-level language models of a few sizes, for any length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .config import ReformerConfig
from .tokenizer import ByteTokenizer

__all__ = ["PRESETS", "Preset", "preset_config"]


@dataclass(frozen=True)
class Preset:
    """The size of a model: a pattern of layers, fields of its configuration, AdamW's peak `lr`."""

    layers: tuple[str, ...]
    lr: float
    fields: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    # learns words within minutes on a laptop: the local layers look at two to four bytes, a narrow
    # window that they learn to use at once, and LSH attention is what looks further
    "tiny": Preset(
        layers=("local", "lsh", "local"),
        lr=2e-3,
        fields={
            "hidden_size": 64,
            "feed_forward_size": 256,
            "num_attention_heads": 2,
            "attention_head_size": 32,
            "local_attn_chunk_length": 2,
            "hidden_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
        },
    ),
    # the model that the paper's authors trained on a novel as one sequence
    "book": Preset(
        layers=("local", "lsh") * 3,
        lr=1e-3,
        fields={
            "hidden_size": 256,
            "feed_forward_size": 512,
            "num_attention_heads": 2,
        },
    ),
    # 12 layers for 64k bytes of Wikipedia
    "enwik8": Preset(
        layers=("local", "local", "lsh") * 4,
        lr=7e-4,
        fields={
            "hidden_size": 768,
            "feed_forward_size": 2048,
            "num_attention_heads": 8,
            "local_attn_chunk_length": 128,
            "lsh_attn_chunk_length": 256,
            "num_hashes": 2,
            "hidden_dropout_prob": 0.2,
            "local_attention_probs_dropout_prob": 0.2,
            "lsh_attention_probs_dropout_prob": 0.2,
        },
    ),
}


def preset_config(
    name: str,
    length: int,
    *,
    layers: int | None = None,
    width: int | None = None,
    num_hashes: int | None = None,
) -> ReformerConfig:
    """The configuration of a preset for sequences of `length` bytes.

    Parameters
    ----------
    name : str
        One of `PRESETS`.
    length : int
        The longest sequence.
    layers : int, optional
        That many layers, in the preset's pattern.
    width : int, optional
        `hidden_size`; the feed-forward layers keep their ratio to it.
    num_hashes : int, optional
        Rounds of LSH attention.

    Raises
    ------
    ValueError
        There is no such preset, or the configuration does not go together.

    Examples
    --------
    >>> config = preset_config("book", 8192, layers=4)
    >>> config.attn_layers, config.axial_pos_shape
    (['local', 'lsh', 'local', 'lsh'], [64, 128])
    """
    if name not in PRESETS:
        raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    fields = dict(preset.fields)
    if width is not None:
        ratio = fields["feed_forward_size"] / fields["hidden_size"]
        fields |= {"hidden_size": width, "feed_forward_size": math.ceil(ratio * width)}
    if num_hashes is not None:
        fields["num_hashes"] = num_hashes
    count = len(preset.layers) if layers is None else layers
    columns = 2 ** math.ceil(math.log2(length) / 2)
    return ReformerConfig(
        vocab_size=ByteTokenizer.vocab_size,
        attn_layers=[preset.layers[i % len(preset.layers)] for i in range(count)],
        axial_pos_shape=[-(-length // columns), columns],
        axial_pos_embds_dim=[fields["hidden_size"] // 2, -(-fields["hidden_size"] // 2)],
        # positions as loud as the words (0.02) would drown them in the first steps
        axial_norm_std=0.005,
        max_position_embeddings=length,
        is_decoder=True,
        **fields,
    )
