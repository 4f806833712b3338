"""Configurations and inputs that are small, but use every part of a model."""

import numpy as np

from reformer_c.models.config import ReformerConfig
from reformer_c.models.model import ReformerModelWithLMHead

# fields of the kinds of positions, for `small_config`
POSITIONS = {
    "two axes": {},
    "one axis": {"axial_pos_shape": [42], "axial_pos_embds_dim": [16]},
    "three axes": {"axial_pos_shape": [3, 7, 2], "axial_pos_embds_dim": [1, 10, 5]},
    "table": {"axial_pos_embds": False},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "axial_norm_std": 0.5},
    "rotary": {"position_embedding_type": "rotary", "rope_theta": 50.0},
    "none": {"position_embedding_type": "none"},
}


def small_config(**changes):
    """Local and LSH layers, two rounds, chunks of 4, axial positions 6 x 7, no dropout."""
    fields = {
        "attn_layers": ["local", "lsh", "lsh"],
        "attention_head_size": 6,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "axial_pos_shape": [6, 7],
        "axial_pos_embds_dim": [6, 10],
        "max_position_embeddings": 42,
        "feed_forward_size": 20,
        "hidden_act": "gelu",
        "vocab_size": 13,
        "num_hashes": 2,
        "num_buckets": 4,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        # larger than the usual initial weights, so that attention is not uniform
        "initializer_range": 0.3,
    }
    return ReformerConfig(**fields | changes)


DROPOUT = {
    "hidden_dropout_prob": 0.2,
    "local_attention_probs_dropout_prob": 0.1,
    "lsh_attention_probs_dropout_prob": 0.15,
    "full_attention_probs_dropout_prob": 0.12,
}


def rotations_for(config, r=None, factors=None, seed=3):
    """One random array for each layer that hashes, for the factors of config.num_buckets."""
    factors = np.atleast_1d(config.num_buckets if factors is None else factors)
    shape = (config.num_attention_heads, config.attention_head_size)
    shape += (r or config.num_hashes, int(factors.sum()) // 2)
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for kind in config.layer_types if kind in ("lsh", "hash")]


def padding_mask(b, t):
    """A mask (b, t) of rows that are padded on the right, on the left, and in the middle."""
    mask = np.ones((b, t), int)
    mask[0, -(t // 4) :] = 0
    mask[1 % b, : t // 5] = 0
    mask[2 % b, t // 2] = 0
    return mask


def random_ids(shape, seed=0, v=13):
    return np.random.default_rng(seed).integers(0, v, shape)


def randomise(model, seed=0):
    """Give biases and norms random values too."""
    rng = np.random.default_rng(seed)
    for name, array in model.parameters.items():
        if name.endswith("bias") or "layer_norm" in name:
            array += (0.3 * rng.standard_normal(array.shape)).astype(array.dtype)
    return model


def largest_difference(a, b):
    """The largest error anywhere, as a share of the largest magnitude, of two sets of gradients."""
    assert a.keys() == b.keys()
    return max(np.abs(a[k] - b[k]).max() / max(np.abs(b[k]).max(), 1e-30) for k in a)


def language_model(dtype=np.float64, **changes):
    return randomise(ReformerModelWithLMHead(small_config(**changes), rng=0, dtype=dtype))


def long_config(t, **changes):
    """Chunks of 16, three rounds, as many positions as t."""
    return {
        "axial_pos_shape": [-(-t // 64), 64], "max_position_embeddings": t, "num_hashes": 3,
        "num_buckets": [4, 8], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16,
    } | changes  # fmt: skip


def decoded(model, ids, prompt, **options):
    """Logits (b, t - prompt, v) of each step, for ids (b, t) appended one at a time."""
    seen, ids = [], np.asarray(ids)

    def force(text, z):
        seen.append(z)
        return np.eye(model.config.vocab_size)[row[len(text)]] if len(text) < len(row) else z

    rows = []
    for row in ids:
        seen.clear()
        model.generate(row[None, :prompt], max_new_tokens=len(row) - prompt + 1,
                       logits_processor=force, eos_token_id=None, **options)  # fmt: skip
        rows.append(np.stack(seen))
    return np.stack(rows)
