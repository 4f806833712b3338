"""Defects of Hugging Face's Reformer that are not copied: each test fails on theirs.

Theirs is transformers 5.23 and what came before, read and run: see docs/from_transformers.md.
"""

import random

import numpy as np
import pytest
from gradients import slope
from small_models import DROPOUT, random_ids, randomise, small_config
from tolerances import assert_close, assert_each_close

from reformer_c.models.model import ReformerModelWithLMHead


def assert_gradients_are_the_slope(model, ids, **rest):
    """Along one random direction of all weights, against differences of the loss."""
    _, gradients = model.loss_and_gradients(ids, labels=ids, **rest)
    start = {name: array.copy() for name, array in model.parameters.items()}
    directions = {
        name: np.random.default_rng(i).standard_normal(array.shape)
        for i, (name, array) in enumerate(start.items())
    }

    def loss_at(distance):
        for name, array in model.parameters.items():
            array[...] = start[name] + distance * directions[name]
        return model.loss_and_gradients(ids, labels=ids, **rest)[0]

    expected = slope(loss_at, [0.0], [1.0], 1e-6)
    loss_at(0.0)
    actual = sum((gradients[name] * directions[name]).sum() for name in gradients)
    assert_close(actual, expected, "derivative")


def test_the_backward_pass_drops_what_the_forward_pass_dropped_in_lsh_layers_too():
    """Theirs draws rotations after seeding dropout in the forward pass, but not in the backward."""
    config = small_config(attn_layers=["lsh"] * 3, **DROPOUT)
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 24))
    assert_gradients_are_the_slope(model, ids, rng=1)
    # and with every activation kept nothing is dropped anew: the same gradients
    _, rebuilt = model.loss_and_gradients(ids, labels=ids, rng=1)
    config.memory_budget = float("inf")
    _, kept = model.loss_and_gradients(ids, labels=ids, rng=1)
    assert_each_close(rebuilt, kept, "model_backward")


def test_one_seed_repeats_a_training_step():
    """Theirs draws new seeds from the machine's entropy in each layer."""
    model = ReformerModelWithLMHead(small_config(**DROPOUT), rng=0)
    ids = random_ids((2, 24))
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=5)
    again, same = model.loss_and_gradients(ids, labels=ids, rng=5)
    assert loss == again
    assert all(np.array_equal(gradients[name], same[name]) for name in gradients)


@pytest.mark.parametrize("hash_seed", [None, 0])
def test_global_random_states_are_left_alone(hash_seed):
    """Theirs seeds the global generator with hash_seed in every call, and anew in each layer."""
    model = ReformerModelWithLMHead(small_config(hash_seed=hash_seed, **DROPOUT), rng=0)
    ids = random_ids((2, 24))
    np.random.seed(3)  # noqa: NPY002 - the global state is what is looked at
    random.seed(3)
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    model(ids)
    model.loss_and_gradients(ids, labels=ids)
    model.generate(ids, max_new_tokens=2, do_sample=True)
    after = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.testing.assert_equal(after, before)


def test_hash_seed_gives_each_layer_rotations_of_its_own():
    """Theirs gives all layers the same ones."""
    config = small_config(hash_seed=0, attn_layers=["lsh", "lsh"])
    model = ReformerModelWithLMHead(config, rng=0)
    body = "reformer.encoder.layers."
    for name in list(model.parameters):
        if name.startswith(f"{body}0.attention"):
            twin = name.replace(f"{body}0", f"{body}1")
            model.parameters[twin] = model.parameters[name]
        # both layers hash the same vectors
        if name.startswith(f"{body}0.feed_forward.output"):
            model.parameters[name][...] = 0
    ids = random_ids((1, 24))
    first, second = model(ids, output_buckets=True).buckets
    assert not np.array_equal(first, second)
    again, _ = model(ids, output_buckets=True).buckets
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("num_hashes", [1, 5])
def test_a_changed_number_of_hashes_is_that_of_the_backward_pass_too(num_hashes):
    """Theirs forgets the argument, and fails on the shape of the buckets."""
    config = small_config(attn_layers=["lsh", "local"])
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    assert_gradients_are_the_slope(model, random_ids((2, 24)), num_hashes=num_hashes, rng=1)


@pytest.mark.parametrize("layers", [["lsh", "lsh"], ["local", "lsh"]])
def test_every_row_of_a_batch_is_continued_from_its_own_text(layers):
    """Theirs looks up the states of batch row 0 for all rows, with a cache and LSH layers."""
    model = randomise(ReformerModelWithLMHead(small_config(attn_layers=layers), rng=0))
    ids = random_ids((3, 19))
    together = model.generate(ids, max_new_tokens=9, eos_token_id=None, rng=1)
    for i in range(3):
        alone = model.generate(ids[i : i + 1], max_new_tokens=9, eos_token_id=None, rng=1)
        np.testing.assert_array_equal(together[i : i + 1], alone)
    assert len({row[19:].tobytes() for row in together}) > 1


def test_padding_is_not_read_while_a_text_is_continued():
    """Theirs drops the attention mask on the way into generation."""
    model = randomise(ReformerModelWithLMHead(small_config(), rng=0))
    ids = random_ids((1, 12))
    options = {"max_new_tokens": 6, "eos_token_id": None, "rng": 1}
    alone = model.generate(ids, **options)
    for left, right in ((5, 0), (0, 5), (2, 3)):
        padded = np.pad(ids, ((0, 0), (left, right)), constant_values=7)
        mask = np.pad(np.ones_like(ids), ((0, 0), (left, right)))
        # the rotations are for the number of buckets of the text, which padding does not change
        found = model.generate(padded, mask, **options)
        np.testing.assert_array_equal(found[:, -6:], alone[:, -6:])


def test_any_length_trains():
    """Theirs wants multiples of all chunk lengths, and just the length of the axial rectangle."""
    model = randomise(ReformerModelWithLMHead(small_config(**DROPOUT), rng=0, dtype=np.float64))
    for t in (2, 3, 7, 23, 42):
        assert_gradients_are_the_slope(model, random_ids((1, t)), rng=1)
