"""Language models of several sizes, for any length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

from ..checks import did_you_mean
from ..text.byte_tokenizer import ByteTokenizer
from .config import ReformerConfig

__all__ = ["DROPOUTS", "PRESETS", "Preset", "preset_config"]


# the configuration's dropout probabilities
DROPOUTS = (
    "hidden_dropout_prob",
    "local_attention_probs_dropout_prob",
    "lsh_attention_probs_dropout_prob",
)


@dataclass(frozen=True)
class Preset:
    """The size of a model: a layer pattern, fields of its configuration, and training settings.

    `lr` is AdamW's peak; `rows` is the fraction of `hidden_size` that encodes the row of a token in
    the axial grid of a text, the rest encodes the column. `image_shape` is that of the pictures
    that a preset is meant for: height, width and channels.
    """

    layers: tuple[str, ...]
    lr: float
    optimizer: str = "adamw"
    rows: float = 0.5
    image_shape: tuple[int, int, int] | None = None
    fields: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    # learns words within minutes on a laptop: local layers see two to four bytes, a narrow window
    # that is learned quickly, and LSH attention covers longer distances
    "tiny": Preset(
        layers=("local", "lsh", "local"),
        lr=2e-3,
        fields={
            "vocab_size": ByteTokenizer.vocab_size,
            "hidden_size": 64,
            "feed_forward_size": 256,
            "num_attention_heads": 2,
            "attention_head_size": 32,
            "local_attn_chunk_length": 2,
            "hidden_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
        },
    ),
    # the model that the paper's authors trained on a novel as one sequence of half a million tokens
    "book": Preset(
        layers=("local", "lsh") * 3,
        lr=1e-3,
        optimizer="adafactor",
        rows=0.25,
        fields={
            "vocab_size": 320,
            "hidden_size": 256,
            "feed_forward_size": 512,
            "num_attention_heads": 2,
            "attention_head_size": 64,
            "local_attn_chunk_length": 64,
            "lsh_attn_chunk_length": 64,
            "num_hashes": 1,
            "num_buckets": [64, 128],
        },
    ),
    # the 12 layers of the paper, for 64k bytes of Wikipedia
    "enwik8": Preset(
        layers=("local", "local", "lsh", "local") * 3,
        lr=7e-4,
        optimizer="adafactor",
        rows=0.25,
        fields={
            "vocab_size": ByteTokenizer.vocab_size,
            "hidden_size": 1024,
            "feed_forward_size": 4096,
            "num_attention_heads": 8,
            "attention_head_size": 128,
            "local_attn_chunk_length": 128,
            "lsh_attn_chunk_length": 256,
            "num_hashes": 4,
            "num_buckets": 512,
            "hidden_dropout_prob": 0.2,
            "local_attention_probs_dropout_prob": 0.2,
            "lsh_attention_probs_dropout_prob": 0.1,
        },
    ),
    # the model of the paper's experiment on pictures, as its authors published it in trax
    "imagenet64": Preset(
        layers=("lsh",) * 6,
        lr=3.5e-4,
        image_shape=(64, 64, 3),
        fields={
            "vocab_size": 256,
            "eos_token_id": None,
            "hidden_size": 1024,
            "feed_forward_size": 4096,
            "num_attention_heads": 8,
            "attention_head_size": 64,
            "lsh_attn_chunk_length": 128,
            "num_hashes": 2,
            "num_buckets": 192,
            "hidden_act": "gelu_new",
            "hidden_dropout_prob": 0.0,
            "lsh_attention_probs_dropout_prob": 0.2,
        },
    ),
    # trax's nine layers with LSH attention; its buckets there, 192 for 12,288 values, in proportion
    "cifar10": Preset(
        layers=("lsh",) * 9,
        lr=3.5e-4,
        optimizer="adafactor",
        image_shape=(32, 32, 3),
        fields={
            "vocab_size": 256,
            "eos_token_id": None,
            "hidden_size": 1024,
            "feed_forward_size": 4096,
            "num_attention_heads": 8,
            "attention_head_size": 64,
            "lsh_attn_chunk_length": 128,
            "num_hashes": 2,
            "num_buckets": 48,
            "hidden_act": "gelu_new",
            "hidden_dropout_prob": 0.1,
            "lsh_attention_probs_dropout_prob": 0.0,
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
    **fields: Any,
) -> ReformerConfig:
    """The configuration of a preset for sequences of `length` tokens.

    Parameters
    ----------
    name : str
        One of `PRESETS`.
    length : int
        Maximum sequence length. That of the pictures that the preset is meant for sets their
        `image_shape`.
    layers : int, optional
        Number of layers, repeating the preset's pattern.
    width : int, optional
        `hidden_size`; the feed-forward layers keep their ratio to it.
    num_hashes : int, optional
        Rounds of LSH attention.
    **fields
        Fields of `ReformerConfig`, which override all of these.

    Raises
    ------
    TypeError, ValueError
        A preset or field is unknown, or the configuration is inconsistent.

    Examples
    --------
    >>> config = preset_config("book", 8192, layers=4, hidden_dropout_prob=0.0)
    >>> config.attn_layers, config.axial_pos_shape, config.hidden_dropout_prob
    (['local', 'lsh', 'local', 'lsh'], [64, 128], 0.0)
    """
    if name not in PRESETS:
        raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
    known = {f.name for f in dataclass_fields(ReformerConfig)}
    for unknown in fields.keys() - known:
        nearest = did_you_mean(unknown, known)
        raise ValueError(f"{unknown}: ReformerConfig has no such field{nearest}")
    preset = PRESETS[name]
    values = dict(preset.fields)
    if width is not None:
        ratio = values["feed_forward_size"] / values["hidden_size"]
        values |= {"hidden_size": width, "feed_forward_size": math.ceil(ratio * width)}
    if num_hashes is not None:
        values["num_hashes"] = num_hashes
    if preset.image_shape is not None and length == math.prod(preset.image_shape):
        values["image_shape"] = list(preset.image_shape)
    grid, shares = _axes(preset, length, fields.get("image_shape", values.get("image_shape")))
    count = len(preset.layers) if layers is None else layers
    values |= {
        "attn_layers": [preset.layers[i % len(preset.layers)] for i in range(count)],
        "axial_pos_shape": grid,
        # positions initialised with the deviation of words (0.02) would dominate the first steps
        "axial_norm_std": 0.005,
        "max_position_embeddings": length,
        "is_decoder": True,
    }
    values |= fields
    if values.get("axial_pos_embds", True) and isinstance(values["hidden_size"], int):
        widths = [max(1, int(share * values["hidden_size"])) for share in shares]
        values.setdefault("axial_pos_embds_dim", [*widths, values["hidden_size"] - sum(widths)])
    return ReformerConfig(**values)


def _axes(preset: Preset, length: int, image_shape: Any) -> tuple[list[int], list[float]]:
    """The axial grid of `length` positions, almost a square or that of a picture; and the fraction
    of `hidden_size` that encodes each axis but the last."""
    if not isinstance(image_shape, (list, tuple)) or len(image_shape) != 3:
        columns = 2 ** math.ceil(math.log2(length) / 2)
        return [-(-length // columns), columns], [preset.rows]
    if image_shape[2] == 1:
        return list(image_shape[:2]), [0.5]
    return list(image_shape), [0.375, 0.375]
