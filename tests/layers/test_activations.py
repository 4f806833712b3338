"""Activations with weights of their own: the numbers of the reference, and their derivatives."""

import numpy as np
import pytest
from gradients import assert_is_the_derivative
from reference import feed_forward as reference
from small_models import (
    DROPOUT,
    random_ids,
    randomise,
    small_config,
)
from tolerances import assert_close, assert_each_close

from reformer_c.layers.activations import WEIGHTED
from reformer_c.models.model import ReformerModelWithLMHead

NAMES = sorted(WEIGHTED)
LAYERS = ["local", "lsh"]


def draw_values(name, rng):
    """Weights other than the initial ones, and the constants."""
    activation = WEIGHTED[name]
    weights = {weight: float(rng.standard_normal()) for weight in activation.weights}
    return weights, weights | activation.constants


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_reference(name, dtype, rng):
    _, values = draw_values(name, rng)
    h = np.concatenate([rng.standard_normal(50) * 5, [0, -0.0, 1e-7, -1e-7, -1e-6, 80, -80, -1e4]])
    h = h.astype(dtype)
    a = WEIGHTED[name].forward(h, **values)
    assert a.dtype == dtype
    assert_close(a, reference.WEIGHTED[name](np.float64(h), **values), "forward", dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_is_the_derivative_of_the_reference(name, dtype, rng):
    weights, values = draw_values(name, rng)
    # a step does not cross the corner at 0
    h = rng.standard_normal((7, 5))
    h = (h + np.sign(h) * 0.1).astype(dtype)
    da = rng.standard_normal((7, 5)).astype(dtype)
    dh, slopes = WEIGHTED[name].backward(da, h, **values)
    assert dh.dtype == dtype
    assert slopes.keys() == weights.keys()

    def loss(h, *moved):
        moved = {key: float(value) for key, value in zip(weights, moved)}
        return float((np.float64(da) * reference.WEIGHTED[name](h, **values | moved)).sum())

    if dtype == np.float64:
        inputs = [h, *(np.array(value) for value in weights.values())]
        assert_is_the_derivative(loss, inputs, [dh, *map(np.array, slopes.values())], rng)
    else:
        exact, exact_slopes = WEIGHTED[name].backward(np.float64(da), np.float64(h), **values)
        assert_close(dh, exact, "backward", dtype)
        assert_each_close(slopes, exact_slopes, "backward", dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("gated", [False, True])
def test_a_models_gradients_are_the_slope_of_its_loss(name, chunk, gated):
    config = small_config(
        hidden_act=name, attn_layers=LAYERS, chunk_size_feed_forward=chunk,
        feed_forward_gated=gated, **DROPOUT,
    )  # fmt: skip
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 23))
    _, gradients = model.loss_and_gradients(ids, labels=ids, rng=1)
    assert all(gradient.any() for gradient in gradients.values())
    moved = [f"reformer.encoder.layers.{i}.feed_forward.dense.act_fn.{weight}"
             for i in range(2) for weight in WEIGHTED[name].weights]  # fmt: skip
    moved += ["reformer.encoder.layers.0.feed_forward.dense.dense.weight",
              "reformer.encoder.layers.1.feed_forward.output.dense.bias",
              "reformer.encoder.layers.1.feed_forward.layer_norm.weight"]  # fmt: skip
    if gated:
        up_proj = "reformer.encoder.layers.0.feed_forward.dense.up_proj"
        moved += [f"{up_proj}.weight", f"{up_proj}.bias"]

    def loss(*arrays):
        model.parameters.update(zip(moved, arrays))
        return model.loss_and_gradients(ids, labels=ids, rng=1)[0]

    inputs = [model.parameters[key].copy() for key in moved]
    # a step small enough that no bucket and few signs change, and large enough for slopes of 1e-5
    assert_is_the_derivative(
        loss, inputs, [gradients[key] for key in moved], np.random.default_rng(0), step=4e-6
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gated", [False, True])
def test_chunks_change_nothing_but_rounding(name, gated, monkeypatch):
    ids, results = random_ids((2, 23)), []
    for chunk, block in ((0, 2**18), (1, 2**18), (7, 2**18), (100, 2**18), (0, 50)):
        monkeypatch.setattr("reformer_c.layers.feed_forward.HIDDEN_BLOCK", block)
        config = small_config(
            hidden_act=name, attn_layers=LAYERS, chunk_size_feed_forward=chunk,
            feed_forward_gated=gated,
        )  # fmt: skip
        model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
        results.append((*model.loss_and_gradients(ids, labels=ids, rng=1), model(ids, rng=0)))
    for loss, gradients, output in results[1:]:
        assert_close(loss, results[0][0], "replay")
        assert_each_close(gradients, results[0][1], "model_backward")
        assert_close(output.logits, results[0][2].logits, "attention")


@pytest.mark.parametrize("gated", [False, True])
def test_a_prelu_of_weight_0_is_a_relu_also_where_activations_are_kept(gated):
    ids, fields = random_ids((2, 23)), {"attn_layers": LAYERS, "feed_forward_gated": gated}
    plain = randomise(ReformerModelWithLMHead(small_config(hidden_act="relu", **fields), rng=0))
    config = small_config(hidden_act="prelu", memory_budget=float("inf"), **fields)
    model = ReformerModelWithLMHead(config, rng=0)
    model.parameters.update(plain.parameters)
    for name, array in model.parameters.items():
        if "act_fn" in name:
            assert array == np.float32([0.25])
            array[...] = 0
    expected, theirs = plain.loss_and_gradients(ids, labels=ids, rng=1)
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=1)
    assert_close(loss, expected, "rounding", "float32")
    assert_each_close(
        {name: gradients[name] for name in theirs}, theirs, "attention_backward", "float32"
    )
