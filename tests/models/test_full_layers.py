"""Layers of full attention: what local and LSH layers are where everything is one chunk."""

import numpy as np
import pytest
from gradients import slope
from small_models import random_ids, randomise, small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c.layers.self_attention import WholeSequences

T = 20
PAIRS = {"full": ("local", {}), "full_shared": ("lsh", {})}
SHARED = {"full_shared": ("local", {"local_shared_qk": True})}


def language_model(kind, **changes):
    config = small_config(attn_layers=[kind], num_hidden_layers=2, **changes)
    return randomise(rc.ReformerModelWithLMHead(config, rng=0))


def copy_weights(model, other):
    for name, weight in model.parameters.items():
        other.parameters[name][...] = weight


@pytest.mark.parametrize(("kind", "pair"), [*PAIRS.items(), *SHARED.items()])
@pytest.mark.parametrize("changes", [{}, {"softcap": 0.5}, {"memory_budget": 10**9}])
def test_one_chunk_is_full_attention_bit_for_bit(kind, pair, changes):
    full = language_model(kind, is_decoder=True, **changes)
    other, own = pair
    other = language_model(
        other, is_decoder=True, lsh_attn_chunk_length=T, local_attn_chunk_length=T,
        local_num_chunks_before=0, **changes, **own,
    )  # fmt: skip
    copy_weights(full, other)
    ids, mask = random_ids((2, T)), np.ones((2, T), int)
    mask[1, :5] = 0
    results = [
        model.loss_and_gradients(ids, labels=ids, attention_mask=mask, rng=1)
        for model in (full, other)
    ]
    (loss, gradients), (expected, others) = results
    assert loss == expected
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, others[name], err_msg=name)
    call = {"attention_mask": mask, "output_attentions": True}
    one, two = (model(ids, **call) for model in (full, other))
    np.testing.assert_array_equal(one.logits, two.logits)
    for found, probabilities in zip(one.attentions, two.attentions, strict=True):
        np.testing.assert_array_equal(found, probabilities.reshape(found.shape))
    options = {"max_new_tokens": 1, "do_sample": False}
    np.testing.assert_array_equal(
        full.generate(ids[:, :10], **options), other.generate(ids[:, :10], **options)
    )


@pytest.mark.parametrize("kind", [*PAIRS, "local"])
def test_a_checkpoint_keeps_the_kinds_of_its_layers(kind, tmp_path):
    model = language_model(
        kind, is_decoder=True, full_attention_probs_dropout_prob=0.3, local_shared_qk=True
    )
    model.save_pretrained(tmp_path)
    same = rc.ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert same.config.layer_types == model.config.layer_types
    assert same.config.full_attention_probs_dropout_prob == 0.3
    ids = random_ids((1, T))
    np.testing.assert_array_equal(same(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", PAIRS)
def test_dropout_is_that_of_the_layer_and_the_same_in_both_passes(kind):
    """A directional derivative of the loss with a fixed seed is that of its gradients."""
    config = small_config(attn_layers=[kind], is_decoder=True, hidden_dropout_prob=0.0,
                          full_attention_probs_dropout_prob=0.5)  # fmt: skip
    model = randomise(rc.ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((1, T))
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=3)
    without = rc.ReformerModelWithLMHead(
        small_config(attn_layers=[kind], is_decoder=True, hidden_dropout_prob=0.0),
        rng=0, dtype=np.float64,
    )  # fmt: skip
    copy_weights(model, without)
    assert loss != without.loss_and_gradients(ids, labels=ids, rng=3)[0]
    name = next(name for name in gradients if name.endswith("value.weight"))
    weight = model.parameters[name]
    direction = np.random.default_rng(0).standard_normal(weight.shape)

    def loss_at(values):
        weight[...] = values
        return model.loss_and_gradients(ids, labels=ids, rng=3)[0]

    expected = slope(loss_at, [weight.copy()], [direction], 1e-4)
    assert_close(np.sum(gradients[name] * direction), expected, "derivative")


@pytest.mark.parametrize("kind", ["full", "full_shared", "lsh"])
@pytest.mark.parametrize("hk", [4, 2, 1])
def test_heads_that_share_values_may_be_computed_in_parts(kind, hk, monkeypatch):
    """Whole groups of heads at a time, or some heads of one group."""
    config = small_config(
        attn_layers=[kind], is_decoder=True, num_attention_heads=4, num_key_value_heads=hk
    )
    model = randomise(rc.ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((2, T))
    call = {"rng": 1, "output_attentions": True}
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=1)
    whole = model(ids, **call)
    head = T * config.attention_head_size * 8
    for fitting in (1, 2, 3):
        monkeypatch.setattr(WholeSequences, "max_bytes", fitting * head)
        other, others = model.loss_and_gradients(ids, labels=ids, rng=1)
        assert_close(other, loss, "replay")
        for name, gradient in gradients.items():
            assert_close(others[name], gradient, "model_backward")
        parts = model(ids, **call)
        assert_close(parts.logits, whole.logits, "replay")
        assert_close(parts.attentions[0], whole.attentions[0], "replay")
        texts = [model.generate(ids[:, :10], max_new_tokens=5, do_sample=False, rng=1)]
        monkeypatch.undo()
        texts.append(model.generate(ids[:, :10], max_new_tokens=5, do_sample=False, rng=1))
        np.testing.assert_array_equal(*texts)
