"""feed_forward_gated: models whose feed-forward layers are gated."""

import numpy as np
import pytest
from gradients import slope
from small_models import DROPOUT, decoded, language_model, random_ids
from tolerances import assert_close

import reformer_c as rc

IDS = random_ids((2, 30))
FIELDS = {"feed_forward_gated": True, "hidden_act": "silu", "attention_scope": "bucket"}


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("dropout", [{}, DROPOUT])
def test_gradients_are_the_derivative_and_threads_and_budgets_change_no_bit(reversible, dropout):
    model = language_model(reversible=reversible, **FIELDS, **dropout)
    loss, gradients = model.loss_and_gradients(IDS, labels=IDS, rng=1)
    names = [name for name in gradients if "feed_forward" in name]
    assert any("up_proj" in name for name in names)
    rng = np.random.default_rng(0)
    start = [model.parameters[name].copy() for name in names]
    directions = [rng.standard_normal(x.shape) for x in start]

    def at(*values):
        for name, value in zip(names, values, strict=True):
            model.parameters[name][...] = value
        return model.loss_and_gradients(IDS, labels=IDS, rng=1)[0]

    expected = slope(at, start, directions, 1e-6)
    actual = sum((gradients[name] * d).sum() for name, d in zip(names, directions, strict=True))
    assert_close(actual, expected, "derivative")
    assert at(*start) == loss
    for options in ({"memory_budget": 10**9}, {"memory_budget": 30_000}):
        other, others = model.loss_and_gradients(IDS, labels=IDS, rng=1, **options)
        assert other == loss
        if not reversible:  # a reversible layer rebuilds its input with a rounding error
            assert all(np.array_equal(others[name], gradients[name]) for name in gradients)
    with rc.num_threads(3):
        other, others = model.loss_and_gradients(IDS, labels=IDS, rng=1)
    assert other == loss
    assert all(np.array_equal(others[name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("activation", ["silu", "sigmoid", "prelu"])
def test_decoding_gives_the_logits_of_the_forward_pass(activation):
    model = language_model(**FIELDS | {"hidden_act": activation, "attn_layers": ["local"]})
    logits = decoded(model, IDS, 5)
    assert_close(logits, model(IDS).logits[:, 4:], "replay")


def test_a_checkpoint_keeps_the_gate(tmp_path):
    model = language_model(np.float32, **FIELDS)
    model.save_pretrained(tmp_path)
    same = rc.ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert same.config.feed_forward_gated
    np.testing.assert_array_equal(same(IDS, rng=0).logits, model(IDS, rng=0).logits)


def test_a_gate_of_ones_is_a_plain_layer():
    gated, plain = (
        language_model(feed_forward_gated=on, hidden_act="silu") for on in (True, False)
    )
    for name, weight in gated.parameters.items():
        if "up_proj" in name:
            weight[...] = name.endswith("bias")
        else:
            weight[...] = plain.parameters[name]
    np.testing.assert_array_equal(gated(IDS, rng=0).logits, plain(IDS, rng=0).logits)
