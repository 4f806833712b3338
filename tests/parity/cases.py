"""Random configurations and inputs, of every kind that changes what a Reformer computes."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reformer_c.models.config_keys import ACTIVATIONS

MODELS = (
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerForMaskedLM",
    "ReformerForSequenceClassification",
    "ReformerForQuestionAnswering",
)
LENGTHS = ("multiple", "ragged", "shorter than a chunk", "one")
MASKS = ("none", "right", "left", "both")
# configurations; each is combined with every length and every mask
COUNT = 40
VOCABULARY = 19


@dataclass
class Case:
    """One model on one batch; arrays are NumPy's."""

    seed: int
    model: str
    config: dict[str, Any]
    # arguments of a call, and what the loss is measured against
    inputs: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    # more arguments of a call in evaluation, some of which transformers trains with
    extras: dict[str, Any] = field(default_factory=dict)
    # whether transformers can train on it: a ragged length it refuses
    trains: bool = True
    description: str = ""


def draw_cases(seed: int, length: str) -> list[Case]:
    """A configuration, drawn from `seed`, at a length: a batch with each kind of mask.

    The cases share one configuration, but for what has to fit the length.
    """
    rng = np.random.default_rng(seed)
    model = MODELS[seed % len(MODELS)]
    config = draw_config(rng, picker(rng), seed, model)
    rng = np.random.default_rng([seed, LENGTHS.index(length)])
    t, trains = draw_length(rng, config, length)
    fit_to_length(rng, picker(rng), config, t, trains)
    cases = []
    # there is only one token
    for masked in MASKS if t > 1 else MASKS[:1]:
        rng = np.random.default_rng([seed, LENGTHS.index(length), MASKS.index(masked)])
        b = int(rng.integers(1, 4))
        inputs = {"input_ids": rng.integers(0, VOCABULARY, (b, t))}
        if masked != "none":
            inputs["attention_mask"] = draw_mask(rng, b, t, masked)
        targets = draw_targets(rng, model, config, inputs["input_ids"])
        extras = draw_extras(rng, picker(rng), config, b, t)
        description = f"{seed} {model} {length} t={t} mask {masked} {config['attn_layers']}"
        cases.append(Case(seed, model, config, inputs, targets, extras, trains, description))
    return cases


def picker(rng):
    return lambda *choices: choices[rng.integers(len(choices))]


def draw_config(rng, pick, seed, model):
    causal = model == MODELS[1] or (model == MODELS[0] and bool(rng.integers(2)))
    problem = pick(None, "multi_label_classification")
    labels = pick(1, 3) if "Classification" in model else 2
    after = 0 if causal else pick(0, 1, 1, 2)
    layers = pick(["local"], ["lsh"], ["local", "lsh"], ["lsh", "lsh"], ["local", "lsh", "local"])
    return {
        "attn_layers": layers,
        "num_attention_heads": pick(1, 2, 3),
        "attention_head_size": pick(4, 8),
        "hidden_size": 16,
        "feed_forward_size": pick(8, 24),
        "vocab_size": VOCABULARY,
        "local_attn_chunk_length": pick(4, 8),
        "lsh_attn_chunk_length": pick(4, 8, 16),
        "num_hashes": pick(1, 2, 3),
        "num_buckets": pick(None, 2, 4, [2, 4]),
        "is_decoder": causal,
        "local_num_chunks_before": pick(1, 1, 2, 3, 0),
        "lsh_num_chunks_before": pick(1, 1, 2, 3, 0),
        "local_num_chunks_after": after,
        "lsh_num_chunks_after": after,
        "hidden_act": sorted(ACTIVATIONS)[seed % len(ACTIVATIONS)],
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "axial_pos_embds": bool(rng.integers(2)),
        "axial_pos_embds_dim": pick([4, 12], [9, 7]),
        "num_labels": labels,
        "problem_type": problem if labels == 3 else None,
        # larger than the usual initial weights, so that attention is not uniform
        "initializer_range": pick(0.02, 0.3),
        "layer_norm_eps": pick(1e-12, 1e-5),
        "eos_token_id": 2,
        "use_cache": False,
    }


def chunk_lengths(config):
    return [config[f"{kind}_attn_chunk_length"] for kind in set(config["attn_layers"])]


def draw_length(rng, config, length):
    shortest, common = min(chunk_lengths(config)), math.lcm(*chunk_lengths(config))
    if length == "multiple":
        return common * int(rng.integers(2, 5)), True
    if length == "ragged":
        # between two multiples, and longer than the shortest chunk
        t = int(rng.integers(shortest + 1, 3 * common))
        return (t + 1, False) if t % common == 0 else (t, False)
    if length == "shorter than a chunk":
        return int(rng.integers(2, shortest + 1)), True
    return 1, True


def fit_to_length(rng, pick, config, t, trains):
    """Tables and chunks: to train, transformers wants an axial rectangle of just the length, and
    chunks of a size that divides it."""
    common = math.lcm(*chunk_lengths(config))
    n = t if trains else -(-t // common) * common

    def divisor(n):
        return pick(*(i for i in range(1, n + 1) if n % i == 0))

    n2 = divisor(n)
    config["axial_pos_shape"] = [n // n2, n2]
    config["max_position_embeddings"] = n
    config["chunk_size_feed_forward"] = pick(0, divisor(n))
    config["chunk_size_lm_head"] = pick(0, divisor(t))


def draw_mask(rng, b, t, side):
    mask = np.ones((b, t), np.int64)
    for i, row in enumerate(mask):
        count = int(rng.integers(0, t // 2 + 1))
        if side == "left" or (side == "both" and i % 2):
            row[:count] = 0
        elif count:
            row[-count:] = 0
    return mask


def draw_targets(rng, model, config, ids):
    b, t = ids.shape
    if model in MODELS[1:3]:
        labels = np.where(rng.random(ids.shape) < 0.3, -100, ids)
        labels[:, -1] = ids[:, -1]  # at least one counts
        return {"labels": labels}
    if "Classification" in model:
        if config["num_labels"] == 1:
            return {"labels": rng.standard_normal(b)}
        if config["problem_type"] is not None:
            return {"labels": rng.integers(0, 2, (b, 3)).astype(float)}
        return {"labels": rng.integers(0, 3, b)}
    if "Question" in model:
        start = rng.integers(0, t + 2, b)
        start[0] = rng.integers(0, t)  # at least one counts
        return {"start_positions": start, "end_positions": rng.integers(0, t, b)}
    return {}


def draw_extras(rng, pick, config, b, t):
    extras = {}
    if rng.integers(3) == 0:
        extras["num_hashes"] = pick(1, 2, 4)
    if rng.integers(3) == 0:
        extras["inputs_embeds"] = rng.standard_normal((b, t, config["hidden_size"]))
    # transformers cannot pad position ids
    if rng.integers(3) == 0 and config["max_position_embeddings"] == t:
        extras["position_ids"] = rng.permuted(np.tile(np.arange(t), (b, 1)), axis=1)
    return extras
