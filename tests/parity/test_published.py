"""The numbers of Hugging Face's own integration tests, without torch.

They are from tests/models/reformer/test_modeling_reformer.py of transformers, which had them from
its port of the original in 2020. Its models are random: torch's generator and the order in which
the models draw from it are rebuilt here, so that the weights are the same.
"""

import numpy as np
import pytest
from tolerances import tolerance

from reformer_c.models.config import ReformerConfig
from reformer_c.models.model import ReformerForMaskedLM, ReformerModel, ReformerModelWithLMHead

from .torch_random import TorchGenerator

CONFIG = {
    "vocab_size": 320, "attention_head_size": 8, "hidden_size": 16, "num_attention_heads": 2,
    "num_buckets": 2, "num_hashes": 4, "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4,
    "lsh_num_chunks_before": 1, "lsh_num_chunks_after": 0, "local_num_chunks_before": 1,
    "local_num_chunks_after": 0, "chunk_size_lm_head": 0, "chunk_size_feed_forward": 0,
    "feed_forward_size": 32, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 32, "initializer_range": 0.02, "axial_norm_std": 1.0,
    "layer_norm_eps": 1e-12, "axial_pos_embds": True, "axial_pos_shape": [4, 8],
    "axial_pos_embds_dim": [8, 8], "hash_seed": 0, "is_decoder": True,
}  # fmt: skip

HIDDEN_STATES = np.array("""
 1.90826353e00 -1.45999730e00 -6.20405462e-01  1.52503433e00 -3.64464232e-01 -8.27359235e-01
 8.39670803e-01  2.44492178e-01  4.98332758e-01  2.69175139e00 -7.08081422e-03  1.04915401e00
-1.83476661e00  7.67220476e-01  2.98580543e-01  2.84803992e-02
-2.66374286e-02  4.33497576e-01  3.10386309e-01  5.46039944e-01 -2.47292666e-04 -7.52305019e-01
 2.39162103e-01  7.25216186e-01 -7.58357372e-01  4.20635998e-01 -4.04739919e-02  1.59924145e-01
 2.05135748e00 -1.15997978e00  5.37166397e-01  2.62873606e-01
 1.85247482e-01  7.07046037e-01 -6.77089715e-01 -2.24209655e00 -3.75307980e-02 -8.59380874e-01
-2.81027884e00  1.01276376e00 -1.69438001e00  4.17574660e-01 -1.49196962e00 -1.76483717e00
-1.94566312e-01 -1.71183858e00  7.72903565e-01 -1.11557056e00
 9.46069193e-01  1.53417623e-01 -9.58686996e-01  1.18126669e-01  1.75967724e00  1.62194590e00
-5.74108159e-01  6.79920443e-01  5.44028163e-01  2.05466114e-01 -3.63045868e-01  2.41865062e-01
 3.20348382e-01 -9.05611176e-01 -1.92690727e-01 -1.19917547e00
""".split(), np.float32).reshape(1, 4, 16)  # fmt: skip

INPUT_IDS = np.array([
    [89, 279, 286, 84, 194, 316, 182, 28, 283, 37, 169, 7, 253, 267, 107, 250, 44, 7, 102, 62, 3,
     243, 171, 265, 302, 48, 164, 264, 148, 229, 280, 150],
    [9, 192, 66, 112, 163, 83, 135, 70, 224, 96, 31, 80, 196, 80, 63, 22, 85, 100, 47, 283, 0, 163,
     126, 143, 195, 82, 53, 82, 18, 27, 182, 52],
])  # fmt: skip

ATTENTION_MASK = np.array([
    [int(c) for c in "10011000101010010110110011001111"],
    [int(c) for c in "00000111111010011110010101100010"],
])  # fmt: skip


# ---- the order in which transformers draws ----


def linear_layers(config, i):
    """Names, shapes and whether there is a bias, in the order of construction."""
    c, f = config.hidden_size, config.feed_forward_size
    width = config.num_attention_heads * config.attention_head_size
    layer = f"encoder.layers.{i}."
    kinds = {"lsh": ("query_key", "value"), "local": ("query", "key", "value")}
    for name in kinds[config.attn_layers[i]]:
        yield f"{layer}attention.self_attention.{name}", (width, c), False
    yield f"{layer}attention.output.dense", (c, width), False
    yield f"{layer}feed_forward.dense.dense", (f, c), True
    yield f"{layer}feed_forward.output.dense", (c, f), True


def construct_layer(random, config, i):
    """torch.nn.Linear's first weights: uniform within 1 / sqrt(columns)."""
    weights = {}
    for name, shape, has_bias in linear_layers(config, i):
        limit = shape[1] ** -0.5
        weights[f"{name}.weight"] = random.uniform(shape, -limit, limit)
        if has_bias:
            weights[f"{name}.bias"] = random.uniform(shape[:1], -limit, limit)
    return weights


def initialised_body(random, config):
    """The weights of a ReformerModel: everything is constructed, and then initialised."""
    words, std = (config.vocab_size, config.hidden_size), config.initializer_range
    random.normal(words)
    for i in range(len(config.attn_layers)):
        construct_layer(random, config, i)
    weights = {"embeddings.word_embeddings.weight": random.normal(words, std)}
    (n1, n2), (d1, d2) = config.axial_pos_shape, config.axial_pos_embds_dim
    for i, shape in enumerate([(n1, 1, d1), (1, n2, d2)]):
        name = f"embeddings.position_embeddings.weights.{i}"
        weights[name] = random.normal(shape, config.axial_norm_std)
    for i in range(len(config.attn_layers)):
        for name, shape, _ in linear_layers(config, i):
            weights[f"{name}.weight"] = random.normal(shape, std)
    return weights


def model_after_seed_0(kind, **changes):
    config = ReformerConfig(**CONFIG | changes)
    model = kind(config, rng=0)
    random = TorchGenerator(0)
    for name, array in initialised_body(random, config).items():
        model.parameters[model.prefix + name] = array
    if model.prefix:
        shape = model.parameters["lm_head.decoder.weight"].shape
        random.uniform(shape)
        model.parameters["lm_head.decoder.weight"] = random.normal(shape, config.initializer_range)
    return model


def rotations(config):
    """hash_seed = 0: every LSH layer seeds torch anew."""
    factors = int(np.sum(config.num_buckets))
    heads = (config.num_attention_heads, config.attention_head_size)
    shape = (*heads, config.num_hashes, factors // 2)
    return [TorchGenerator(0).normal(shape) for kind in config.attn_layers if kind == "lsh"]


def assert_to_four_places(actual, *expected):
    """Tighter than transformers' own test: what it prints, to its last digit."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance("four_places"))


# ---- the tests, under transformers' names ----


def layer_output(kind, attention_mask=None, **changes):
    """The second stream behind one layer, both of whose inputs are HIDDEN_STATES."""
    changes |= {f"{kind}_num_chunks_before": 0, "attn_layers": [kind]}
    model = ReformerModel(ReformerConfig(**CONFIG | changes), rng=0)
    for name, array in construct_layer(TorchGenerator(0), model.config, 0).items():
        model.parameters[name] = array
    for i in range(2):  # vectors come in as they are
        model.parameters[f"embeddings.position_embeddings.weights.{i}"][...] = 0
    output = model(
        inputs_embeds=HIDDEN_STATES, attention_mask=attention_mask, output_hidden_states=True
    )
    return output.hidden_states[-1][0, 0, :5]


MASK = [[0, 1, 0, 0]]


def test_lsh_layer_forward():
    out = layer_output("lsh", is_decoder=False)
    assert_to_four_places(out, 1.6879, -1.3083, -0.4708, 1.3555, -0.6292)


def test_lsh_layer_forward_complex():
    out = layer_output("lsh", MASK, num_buckets=[2, 4])
    assert_to_four_places(out, 1.6439, -1.2306, -0.5108, 1.3006, -0.6537)


def test_local_layer_forward():
    out = layer_output("local", is_decoder=False)
    assert_to_four_places(out, 1.4212, -2.0576, -0.9688, 1.4599, -0.1344)


def test_local_layer_forward_complex():
    """Row 0 sees nothing: in float32 it is the sum of all values, and not their mean."""
    out = layer_output("local", MASK)
    assert_to_four_places(out, 1.4750, -2.0235, -0.9743, 1.4463, -0.1269)


def test_lsh_model_forward():
    model = model_after_seed_0(ReformerModel, attn_layers=["lsh"] * 4, num_buckets=[2, 4])
    out = model(INPUT_IDS, ATTENTION_MASK, rotations=rotations(model.config)).last_hidden_state
    assert_to_four_places(out[0, 0, :5], -0.9896, -0.9396, -1.0831, -0.0597, 0.2456)


def test_local_model_forward():
    model = model_after_seed_0(ReformerModel, attn_layers=["local"] * 4)
    out = model(INPUT_IDS, ATTENTION_MASK).last_hidden_state
    assert_to_four_places(out[0, 0, :5], -1.6791, 0.7171, 0.1594, 0.4063, 1.2584)


def test_lm_model_forward():
    model = model_after_seed_0(
        ReformerForMaskedLM, attn_layers=["local", "lsh"] * 3, num_buckets=[2, 4], is_decoder=False
    )
    out = model(INPUT_IDS, ATTENTION_MASK, rotations=rotations(model.config)).logits
    assert_to_four_places(out[1, -1, :5], 0.1018, -0.2026, 0.2116, 0.0270, -0.1233)


@pytest.mark.parametrize(
    ("kind", "loss", "words", "rows", "columns"),
    [
        (
            "local", 5.8019, [-0.0005, -0.0001, -0.0002, -0.0006, -0.0006],
            [-0.5235, 0.5704, 0.0922, -0.3140, 0.9928], [1.7960, 1.7668, 0.5593, 0.0907, 1.8342],
        ),
        (
            "lsh", 5.7854, [0.0004, 0.0003, 0.0006, -0.0004, 0.0002],
            [-0.3792, 0.5593, -1.6993, 0.2033, 0.4131], [-1.4212, -0.3201, -1.1944, 0.1258, 0.2856],
        ),
    ],
    ids=["test_local_lm_model_grad", "test_lsh_lm_model_grad"],
)  # fmt: skip
def test_lm_model_grad(kind, loss, words, rows, columns):
    changes = {"num_buckets": [2, 4], "num_hashes": 6} if kind == "lsh" else {}
    model = model_after_seed_0(ReformerModelWithLMHead, attn_layers=[kind] * 4, **changes)
    drawn = rotations(model.config) or None
    actual, gradients = model.loss_and_gradients(INPUT_IDS, labels=INPUT_IDS, rotations=drawn)
    assert_to_four_places(actual, loss)
    word_gradient = gradients["reformer.embeddings.word_embeddings.weight"][0, :5]
    assert_to_four_places(word_gradient, *words)
    # these two are weights, in transformers' test too
    positions = "reformer.embeddings.position_embeddings.weights."
    assert_to_four_places(model.parameters[positions + "0"][1, 0, -5:], *rows)
    assert_to_four_places(model.parameters[positions + "1"][0, 1, :5], *columns)
