"""reversible=False: an ordinary pre-norm Transformer. Other tests compare it with the reference."""

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config

import reformer_c as rc

T = 24


def language_model(**changes):
    config = small_config(reversible=False, is_decoder=True, num_hashes=2, num_buckets=4, **changes)
    return randomise(rc.ReformerModelWithLMHead(config, rng=0))


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_what_is_kept_and_the_number_of_threads_change_no_bit(p):
    dropout = {
        "hidden_dropout_prob": p, "lsh_attention_probs_dropout_prob": p,
        "local_attention_probs_dropout_prob": p,
    }  # fmt: skip
    ids, model = random_ids((2, T)), language_model(**dropout)
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=1)
    for options in ({"memory_budget": 10**9}, {"memory_budget": 30_000}):
        other, others = model.loss_and_gradients(ids, labels=ids, rng=1, **options)
        assert other == loss
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(others[name], gradient, err_msg=name)
    with rc.num_threads(3):
        other, others = model.loss_and_gradients(ids, labels=ids, rng=1)
    assert other == loss
    assert all(np.array_equal(others[name], gradient) for name, gradient in gradients.items())


def test_the_parameters_are_those_of_reversible_layers():
    one, two = (
        language_model(),
        rc.ReformerModelWithLMHead(
            small_config(is_decoder=True, num_hashes=2, num_buckets=4), rng=0
        ),
    )
    shapes = [{name: w.shape for name, w in m.parameters.items()} for m in (one, two)]
    assert shapes[0] == shapes[1]


def test_memory_grows_with_depth():
    def bytes_of(layers, reversible):
        config = small_config(
            attn_layers=["local"], num_hidden_layers=layers, is_decoder=True, reversible=reversible
        )
        memory = rc.ReformerModelWithLMHead(config, rng=0).memory(T)
        return memory.streams + memory.kept

    assert bytes_of(1, True) == bytes_of(8, True)
    stream = 4 * T * small_config().hidden_size
    assert bytes_of(8, False) - bytes_of(1, False) == 2 * 7 * stream


def test_hidden_states_are_the_stream_after_each_layer():
    model, ids = language_model(attn_layers=["local", "local"]), random_ids((1, T))
    output = model(ids, output_hidden_states=True)
    first, *_, last = output.hidden_states
    assert len(output.hidden_states) == 3
    assert not np.array_equal(first, last)


def test_it_learns():
    model = language_model(attn_layers=["lsh", "local"])
    ids, optimizer = random_ids((2, T)), rc.AdamW(model.parameters, lr=0.01)
    losses = []
    for step in range(20):
        loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=step)
        optimizer.step(gradients)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]
