"""The models: the reference's numbers, exact gradients, Hugging Face's rules, named errors."""

import copy
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from gradients import assert_is_the_derivative, slope
from reference import model as reference
from small_models import (
    DROPOUT,
    POSITIONS,
    padding_mask,
    random_ids,
    randomise,
    rotations_for,
    small_config,
)
from tolerances import assert_close, assert_each_close, tolerance

from reformer_c import ops
from reformer_c.models.config import ReformerConfig
from reformer_c.models.model import (
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
)
from reformer_c.runtime import num_threads
from reformer_c.training.optim import AdamW

BIDIRECTIONAL = {"is_decoder": False, "local_num_chunks_after": 1, "lsh_num_chunks_after": 1}


# ---- the numbers ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [1, 3, 4, 5, 16, 23])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        BIDIRECTIONAL,
        {"axial_pos_embds": False, "hidden_act": "relu"},
        {"num_buckets": [2, 4], "num_hashes": 3, "lsh_num_chunks_before": 2},
        {"attention_scope": "bucket"},
        {"attn_layers": ["lsh", "local"], "local_attn_chunk_length": 2, "hidden_act": "silu"},
    ],
    ids=["causal", "both sides", "plain positions", "factors", "bucket scope", "two lengths"],
)
def test_a_language_model_gives_the_numbers_of_the_reference(changes, t, dtype):
    config = small_config(**changes)
    kind = ReformerModelWithLMHead if config.is_decoder else ReformerForMaskedLM
    model = randomise(kind(config, rng=0, dtype=dtype))
    rotations = rotations_for(model.config)
    ids = random_ids((2, t))
    expected = reference.language_model_logits(model.parameters, config, ids, hashing=rotations)
    output = model(ids, labels=ids, rotations=rotations)
    assert output.logits.dtype == dtype
    assert_close(output.logits, expected, "model_forward")
    loss = reference.language_model_loss(model.parameters, config, ids, ids, hashing=rotations)
    assert_close(output.loss, loss, "model_forward", dtype)
    np.testing.assert_equal(model.loss(ids, labels=ids, rotations=rotations), output.loss)


@pytest.mark.parametrize("changes", [{}, BIDIRECTIONAL, {"attention_scope": "bucket"}])
def test_masked_tokens_are_hidden_as_in_the_reference(changes):
    config = small_config(**changes)
    model = randomise(ReformerModel(config, rng=0, dtype=np.float64))
    rotations, ids, mask = rotations_for(model.config), random_ids((3, 20)), padding_mask(3, 20)
    expected = reference.body(model.parameters, config, ids, attention_mask=mask, hashing=rotations)
    actual = model(ids, mask, rotations=rotations).last_hidden_state
    assert_close(actual[mask == 1], expected[mask == 1], "model_forward")
    # ids at masked positions do not affect the others
    other = np.where(mask == 1, ids, (ids + 1) % 13)
    moved = model(other, mask, rotations=rotations).last_hidden_state
    np.testing.assert_array_equal(moved[mask == 1], actual[mask == 1])
    assert np.isfinite(actual).all()


def test_position_ids_move_the_words():
    model = randomise(ReformerModel(small_config(), rng=0, dtype=np.float64))
    ids, rotations = random_ids((2, 9)), rotations_for(model.config)
    for positions in (np.arange(9)[::-1], np.stack([np.arange(9) + 33, np.arange(9) * 2])):
        expected = reference.body(
            model.parameters, model.config, ids, position_ids=positions, hashing=rotations
        )
        actual = model(ids, position_ids=positions, rotations=rotations).last_hidden_state
        assert_close(actual, expected, "model_forward")


def test_word_vectors_may_be_given_in_place_of_ids():
    model = randomise(ReformerModel(small_config(local_attn_chunk_length=8), rng=0))
    ids = random_ids((2, 13))
    vectors = model.parameters["embeddings.word_embeddings.weight"][ids]
    before = vectors.copy()
    a = model(ids, rng=0).last_hidden_state
    b = model(inputs_embeds=vectors, rng=0).last_hidden_state
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("changes", [{}, BIDIRECTIONAL])
@pytest.mark.parametrize("lengths", [(4, 8), (8, 4), (4, 6)])
@pytest.mark.parametrize("t", [5, 9, 13, 17])
def test_ragged_lengths_are_evaluated_as_if_padded_to_a_common_multiple(changes, lengths, t):
    local, lsh = lengths
    changes |= {"local_attn_chunk_length": local, "lsh_attn_chunk_length": lsh}
    model = randomise(ReformerModel(small_config(num_buckets=None, **changes), rng=0))
    n = -(-t // math.lcm(*lengths)) * math.lcm(*lengths)
    ids, mask = random_ids((2, n)), np.zeros((2, n))
    ids[:, t:], mask[:, :t] = 0, 1
    k = ops.choose_num_buckets(n, lsh, 42)
    rotations = rotations_for(model.config, factors=k)
    padded = model(ids, mask, rotations=rotations).last_hidden_state[:, :t]
    output = model(ids[:, :t], rotations=rotations, output_buckets=True)
    assert_close(output.last_hidden_state, padded, "model_forward")
    assert output.last_hidden_state.shape[1] == t
    assert all(ids is None or ids.shape == (2, 2, 2, t) for ids in output.buckets)
    # with a mask passed to the call, masked rows are equal too
    own = padding_mask(2, t)
    mask[:, :t] = own
    padded = model(ids, mask, rotations=rotations).last_hidden_state[:, :t]
    assert_close(
        model(ids[:, :t], own, rotations=rotations).last_hidden_state, padded, "model_forward"
    )


def test_one_model_takes_any_length_one_after_the_other():
    model = randomise(ReformerModelWithLMHead(small_config(num_buckets=None), rng=0))
    for t in (42, 1, 7, 33, 4):
        ids = random_ids((2, t))
        output = model(ids, rng=0, output_buckets=True)
        assert output.logits.shape == (2, t, 13)
        if t > 4:
            assert output.buckets[0].max() < np.prod(ops.choose_num_buckets(t, 4, 42))
    assert model.config.num_buckets is None
    for t in (42, 1, 7, 33, 4):
        ids = random_ids((2, t))
        _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
        assert gradients.keys() == model.parameters.keys()
    assert model.config.num_buckets == [4, 4]


def test_each_calls_mask_is_its_own():
    model = randomise(ReformerModel(small_config(), rng=0))
    ids = random_ids((2, 10))
    plain = model(ids, rng=0).last_hidden_state
    assert not np.array_equal(model(ids, padding_mask(2, 10), rng=0).last_hidden_state, plain)
    np.testing.assert_array_equal(model(ids, rng=0).last_hidden_state, plain)


def test_with_exact_buckets_the_future_does_not_change_the_past():
    config = small_config(attention_scope="bucket", num_hashes=3)
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((1, 40))
    rotations = rotations_for(model.config)
    whole = model(ids, rotations=rotations).logits
    for t in (1, 5, 22, 39):
        beginning = model(ids[:, :t], rotations=rotations).logits
        assert_close(beginning, whole[:, :t], "model_forward")


# ---- outputs ----


def test_outputs_that_were_not_asked_for_are_none():
    model = ReformerModelWithLMHead(small_config(), rng=0)
    ids = random_ids((2, 21))
    output = model(ids)
    assert output.loss is output.hidden_states is output.buckets is output.start_logits is None
    output = model(ids, output_hidden_states=True, output_buckets=True, labels=ids)
    assert output.last_hidden_state.shape == (2, 21, 32)
    assert [state.shape for state in output.hidden_states] == [(2, 21, 16)] * 4
    assert [ids.shape for ids in output.buckets] == [(2, 2, 2, 21)] * 2
    assert output.buckets[0].dtype == np.int32
    assert isinstance(output.loss, float)
    assert model(ids[:, :4], output_buckets=True).buckets == (None, None)


def test_recorded_states_are_the_second_stream():
    config = small_config(attn_layers=["local"])
    model = randomise(ReformerModel(config, rng=0, dtype=np.float64))
    ids = random_ids((1, 9))
    first, last = model(ids, output_hidden_states=True).hidden_states
    words = model.parameters["embeddings.word_embeddings.weight"][ids]
    places = reference.position_vectors(model.parameters, config, np.arange(9)[None])
    np.testing.assert_allclose(first, words + places)
    # the final norm's second half is made of it
    config.num_hidden_layers = 1
    assert not np.allclose(last, first)


def test_rounds_of_hashing_may_change_from_call_to_call():
    model = randomise(ReformerModelWithLMHead(small_config(), rng=0, dtype=np.float64))
    ids = random_ids((2, 23))
    rotations = rotations_for(model.config, r=5)
    output = model(ids, num_hashes=5, rotations=rotations, output_buckets=True)
    expected = reference.language_model_logits(
        model.parameters, model.config, ids, hashing=rotations
    )
    assert output.buckets[0].shape == (2, 2, 5, 23)
    assert_close(output.logits, expected, "model_forward")
    loss, gradients = model.loss_and_gradients(ids, labels=ids, num_hashes=5, rotations=rotations)
    assert loss == pytest.approx(model.loss(ids, labels=ids, num_hashes=5, rotations=rotations))
    assert gradients.keys() == model.parameters.keys()


def meetings(probabilities, places, t):
    """Probabilities (n, m, window) of one head, summed by query and key: (t, t)."""
    dense = np.zeros((t, t))
    n, m, window = probabilities.shape
    chunks = places.reshape(n, m)
    keys = np.concatenate([np.roll(chunks, 1, axis=0), chunks], axis=1)  # one chunk of look-back
    assert keys.shape == (n, window)
    np.add.at(dense, (chunks[:, :, None], keys[:, None, :]), probabilities)
    return dense


def test_attention_probabilities_have_hugging_faces_shapes_and_add_up_to_one():
    model = randomise(ReformerModel(small_config(), rng=0, dtype=np.float64))
    ids, mask = random_ids((2, 22)), np.ones((2, 22))
    mask[1, :3] = 0
    output = model(ids, mask, rng=0, output_attentions=True, output_buckets=True)
    # 22 tokens go into 6 chunks of 4; there are 2 heads and 2 rounds
    assert [p.shape for p in output.attentions] == [(2, 2, 6, 4, 8)] + [(2, 2, 12, 4, 8)] * 2
    for p in output.attentions:
        rows = p[0].sum(axis=-1)
        assert_close(rows, np.ones_like(rows), "forward")
    # local: in the order of the text, and never ahead
    places = np.arange(24)
    dense = meetings(output.attentions[0][0, 0], places, 24)
    assert not np.triu(dense, 1).any()
    assert dense[5, 4] > 0
    # LSH: in the order of the sort, where a token avoids itself if it can
    buckets = np.pad(output.buckets[0][0, 0], ((0, 0), (0, 2)), constant_values=4)
    places = np.argsort(buckets, axis=-1, kind="stable")
    dense = meetings(output.attentions[1][0, 0], places, 24)[:22, :22]
    assert not np.triu(dense, 1).any()
    assert (np.diag(dense)[8:] < 1e-3).mean() > 0.5
    # recording does not change the numbers
    plain = model(ids, mask, rng=0).last_hidden_state
    np.testing.assert_array_equal(plain, output.last_hidden_state)


def test_attention_probabilities_of_one_chunk_are_square():
    model = randomise(ReformerModel(small_config(), rng=0, dtype=np.float64))
    output = model(random_ids((1, 4)), output_attentions=True)
    assert [p.shape for p in output.attentions] == [(1, 2, 4, 4)] * 3
    for p in output.attentions:
        np.testing.assert_allclose(p.sum(axis=-1), 1)
        assert not np.triu(p, 1).any()


def test_attention_probabilities_of_exact_buckets_are_those_of_the_reference():
    config = small_config(attention_scope="bucket", attn_layers=["lsh"])
    model = randomise(ReformerModel(config, rng=0, dtype=np.float64))
    ids, mask = random_ids((1, 9)), np.ones((1, 9))
    mask[0, 2] = 0
    output = model(ids, mask, rng=0, output_attentions=True, output_buckets=True)
    (p,), (buckets,) = output.attentions, output.buckets
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    same = (buckets[..., :, None] == buckets[..., None, :]).any(axis=2)
    assert not p[~(same & np.tri(9, dtype=bool))].any()
    assert not p[0, :, np.arange(9) != 2, 2].any()


def test_the_configuration_may_ask_for_states_and_probabilities():
    model = ReformerModel(small_config(output_attentions=True, output_hidden_states=True), rng=0)
    output = model(random_ids((1, 9)))
    assert len(output.attentions) == 3
    assert len(output.hidden_states) == 4
    assert model(random_ids((1, 9)), output_attentions=False).attentions is None


# ---- gradients ----


def reference_gradients_case(changes, t, mask=None, labels=None):
    config = small_config(**changes)
    kind = ReformerModelWithLMHead if config.is_decoder else ReformerForMaskedLM
    model = randomise(kind(config, rng=0, dtype=np.float64))
    ids = random_ids((2, t))
    labels = ids if labels is None else labels
    rotations = rotations_for(model.config)
    _, gradients = model.loss_and_gradients(ids, mask, labels=labels, rotations=rotations)
    # buckets do not move with the weights: the derivative is that of fixed buckets
    buckets = model(ids, mask, rotations=rotations, output_buckets=True).buckets
    names = list(model.parameters)

    def loss(*arrays):
        return reference.language_model_loss(
            dict(zip(names, arrays, strict=True)), config, ids, labels, attention_mask=mask,
            hashing=[b if b is not None else np.zeros((2, 2, 2, t), int) for b in buckets],
        )  # fmt: skip

    arrays = [model.parameters[name] for name in names]
    return loss, arrays, [gradients[name] for name in names]


@pytest.mark.parametrize(
    "changes",
    [{}, BIDIRECTIONAL, {"axial_pos_embds": False}, {"attention_scope": "bucket"}],
    ids=["causal", "both sides", "plain positions", "bucket scope"],
)
def test_gradients_are_the_derivative_of_the_reference(changes):
    changes |= {"attn_layers": ["local", "lsh"]}
    assert_is_the_derivative(*reference_gradients_case(changes, 9), np.random.default_rng(0))


def test_gradients_with_a_mask_and_ignored_labels_are_the_derivative_of_the_reference():
    changes = {"attn_layers": ["local", "lsh"]}
    mask = np.ones((2, 9), int)
    mask[0, 6:], mask[1, :2] = 0, 0
    labels = np.where(mask == 1, random_ids((2, 9)), -100)
    case = reference_gradients_case(changes, 9, mask, labels)
    assert_is_the_derivative(*case, np.random.default_rng(0))


HEADS = {
    ReformerModelWithLMHead: {"labels": random_ids((2, 23))},
    ReformerForMaskedLM: {"labels": np.where(random_ids((2, 23)) < 5, -100, random_ids((2, 23)))},
    ReformerForSequenceClassification: {"labels": [2, 0]},
    ReformerForQuestionAnswering: {"start_positions": [3, 22], "end_positions": [7, 30]},
}


def check_slope(model, ids, mask, **rest):
    """The gradient along one random direction of all weights, against differences of the loss."""
    loss, gradients = model.loss_and_gradients(ids, mask, **rest)
    direction = {
        name: np.random.default_rng(i).standard_normal(array.shape)
        for i, (name, array) in enumerate(model.parameters.items())
    }
    start = {name: array.copy() for name, array in model.parameters.items()}

    def loss_at(distance):
        for name, array in model.parameters.items():
            array[...] = start[name] + distance * direction[name]
        return model.loss_and_gradients(ids, mask, **rest)[0]

    expected = slope(loss_at, [0.0], [1.0], 1e-6)
    loss_at(0.0)
    actual = sum((gradients[name] * direction[name]).sum() for name in gradients)
    assert np.isfinite(loss)
    assert_close(actual, expected, "derivative")


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_gradients_are_exact_for_the_dropout_that_was_drawn(kind, positions):
    causal = kind is ReformerModelWithLMHead
    labels = 3 if kind is ReformerForSequenceClassification else 2
    config = small_config(
        **DROPOUT, is_decoder=causal, **POSITIONS[positions], num_labels=labels,
        chunk_size_feed_forward=5, chunk_size_lm_head=4, classifier_dropout=0.3,
        local_attn_chunk_length=5,
    )  # fmt: skip
    model = randomise(kind(config, rng=0, dtype=np.float64))
    mask = np.ones((2, 23))
    mask[0, 20:], mask[1, :3] = 0, 0
    check_slope(model, random_ids((2, 23)), mask, rng=1, **HEADS[kind])


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_reach_every_weight_without_dropout_and_with_padding_of_our_own(kind):
    causal = kind is ReformerModelWithLMHead
    labels = 3 if kind is ReformerForSequenceClassification else 2
    config = small_config(is_decoder=causal, local_attn_chunk_length=6, num_labels=labels)
    model = randomise(kind(config, rng=0, dtype=np.float64))
    positions = np.stack([np.arange(23), np.arange(23) + 9])
    rest = {"rng": 1, "training": False, "position_ids": positions} | HEADS[kind]
    check_slope(model, random_ids((2, 23)), None, **rest)
    _, gradients = model.loss_and_gradients(random_ids((2, 23)), **rest)
    assert all(gradient.any() for gradient in gradients.values())
    assert all(gradient.flags.c_contiguous for gradient in gradients.values())


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_classifier_has_three_kinds_of_loss(problem):
    config = small_config(is_decoder=False, num_labels=3, problem_type=problem)
    model = randomise(ReformerForSequenceClassification(config, rng=0, dtype=np.float64))
    ids, labels = random_ids((2, 9)), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    output = model(ids, labels=labels, rng=0)
    z = output.logits
    if problem == "regression":
        expected = ((z - labels) ** 2).mean()
    else:
        expected = -(labels * np.log(1 / (1 + np.exp(-z)))
                     + (1 - labels) * np.log(1 / (1 + np.exp(z)))).mean()  # fmt: skip
    assert output.loss == pytest.approx(expected)
    check_slope(model, ids, None, labels=labels, rng=0)


def test_the_problem_follows_from_the_labels():
    config = small_config(is_decoder=False, num_labels=1)
    model = ReformerForSequenceClassification(config, rng=0)
    ids = random_ids((2, 9))
    z = model(ids, rng=0).logits[:, 0]
    expected = ((z - [1, 2]) ** 2).mean()
    assert_close(model.loss(ids, labels=[1, 2], rng=0), expected, "model_forward", "float32")
    config = small_config(is_decoder=False, num_labels=3)
    model = ReformerForSequenceClassification(config, rng=0)
    assert_close(model.loss(ids, labels=[0, 1], rng=0), math.log(3), "untrained")
    assert_close(model.loss(ids, labels=np.zeros((2, 3)), rng=0), math.log(2), "untrained")


def test_positions_outside_the_text_are_ignored_in_question_answering():
    config = small_config(is_decoder=False)
    model = randomise(ReformerForQuestionAnswering(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 9))
    start = model(ids, rng=0).start_logits
    log_p = start - np.log(np.exp(start).sum(axis=1, keepdims=True))
    both = model.loss(ids, start_positions=[4, 100], end_positions=[4, 100], rng=0)
    end = model(ids, rng=0).end_logits
    log_q = end - np.log(np.exp(end).sum(axis=1, keepdims=True))
    assert both == pytest.approx(-(log_p[0, 4] + log_q[0, 4]) / 2)


# ---- labels ----


def test_labels_are_shifted_in_a_causal_model_and_minus_100_is_ignored():
    model = randomise(ReformerModelWithLMHead(small_config(), rng=0, dtype=np.float64))
    ids = random_ids((2, 9))
    labels = ids.copy()
    labels[0, :5] = -100
    logits = model(ids, rng=0).logits
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    parts = [-log_p[i, j - 1, ids[i, j]] for i, j in np.ndindex(2, 9) if j and labels[i, j] >= 0]
    assert model.loss(ids, labels=labels, rng=0) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize("labels", [np.full((1, 9), -100), [[3] + [-100] * 8]])
def test_without_labels_that_count_the_loss_is_nan_and_the_gradients_are_zero(labels):
    model = ReformerModelWithLMHead(small_config(), rng=0)
    loss, gradients = model.loss_and_gradients(random_ids((1, 9)), labels=labels)
    assert math.isnan(loss)
    assert not any(gradient.any() for gradient in gradients.values())


def test_chunks_of_feed_forward_and_head_change_nothing_but_rounding():
    ids = random_ids((2, 31))
    results = []
    for chunk in (0, 1, 3, 100):
        config = small_config(chunk_size_feed_forward=chunk, chunk_size_lm_head=chunk, **DROPOUT)
        model = randomise(ReformerModelWithLMHead(config, rng=0))
        results.append((*model.loss_and_gradients(ids, labels=ids, rng=1), model(ids, rng=0)))
    for loss, gradients, output in results[1:]:
        assert_close(loss, results[0][0], "rounding", "float32")
        assert_each_close(gradients, results[0][1], "model_backward")
        assert_close(output.logits, results[0][2].logits, "model_forward")


def test_the_head_goes_through_long_texts_in_blocks(monkeypatch):
    config = small_config(axial_pos_shape=[64, 64], max_position_embeddings=4096)
    config.attn_layers, config.num_hidden_layers = ["local"], 1
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 1500))
    whole = model.loss_and_gradients(ids, labels=ids, rng=0, training=False)
    logits = model(ids).logits
    monkeypatch.setattr("reformer_c.models.body.HEAD_BLOCK", 1)
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0, training=False)
    assert_close(loss, whole[0], "replay")
    assert_each_close(gradients, whole[1], "replay")
    assert_close(model(ids).logits, logits, "replay")


def test_the_heads_bias_may_be_left_out_as_transformers_5_does():
    config = small_config()
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    ids = random_ids((1, 9))
    with_bias = model(ids, rng=0).logits
    config.apply_lm_head_bias = False
    without = model(ids, rng=0).logits
    assert_close(with_bias, without + model.parameters["lm_head.bias"], "rounding")
    _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    assert not gradients["lm_head.bias"].any()


# ---- randomness ----


def test_an_integer_repeats_a_call_and_none_draws_anew():
    model = randomise(ReformerModel(small_config(), rng=0))
    ids = random_ids((1, 40))

    def buckets(rng):
        return model(ids, rng=rng, output_buckets=True).buckets[0]

    np.testing.assert_array_equal(buckets(3), buckets(3))
    assert not np.array_equal(buckets(3), buckets(4))
    assert not np.array_equal(buckets(None), buckets(None))
    generator = np.random.default_rng(0)
    assert not np.array_equal(buckets(generator), buckets(generator))


def test_hash_seed_decides_the_rotations_of_every_call():
    model = randomise(ReformerModel(small_config(hash_seed=1), rng=0))
    ids = random_ids((1, 40))
    one, two = (model(ids, rng=rng, output_buckets=True).buckets for rng in (0, None))
    np.testing.assert_array_equal(one, two)
    model.config.hash_seed = 2
    assert not np.array_equal(model(ids, output_buckets=True).buckets, one)


def test_layers_have_rotations_of_their_own():
    model = ReformerModel(small_config(attn_layers=["lsh", "lsh"]), rng=0)
    a = "encoder.layers.0.", "encoder.layers.1."
    for name in [name for name in model.parameters if name.startswith(a[0])]:
        model.parameters[name.replace(*a)] = model.parameters[name]
    first, second = model(random_ids((1, 40)), rng=0, output_buckets=True).buckets
    assert not np.array_equal(first, second)


def test_the_global_random_state_is_left_alone():
    model = ReformerModelWithLMHead(small_config(hash_seed=0, **DROPOUT), rng=0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ids = random_ids((1, 20))
    model.loss_and_gradients(ids, labels=ids)
    model.generate(ids, max_new_tokens=2, do_sample=True)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_evaluation_has_no_dropout():
    model = randomise(ReformerModelWithLMHead(small_config(), rng=0))
    ids = random_ids((2, 20))
    plain = model.loss(ids, labels=ids, rng=0)
    for name, p in DROPOUT.items():
        setattr(model.config, name, p)
    assert model.loss(ids, labels=ids, rng=0) == plain
    assert model.loss_and_gradients(ids, labels=ids, rng=0, training=False)[0] == plain
    assert model.loss_and_gradients(ids, labels=ids, rng=0)[0] != plain


@pytest.mark.parametrize("more", [[], [3]])
def test_axial_positions_drop_whole_columns_of_their_rectangle(more):
    shape = [5, 8, *more]
    widths, t = [6, 10 - sum(more), *more], int(np.prod(shape))
    config = small_config(
        axial_pos_shape=shape, axial_pos_embds_dim=widths, max_position_embeddings=t, **DROPOUT
    )
    config.hidden_dropout_prob = 0.4
    model = ReformerModel(config, rng=0)
    model.parameters["embeddings.word_embeddings.weight"][...] = 0
    for i in range(len(shape)):
        model.parameters[f"embeddings.position_embeddings.weights.{i}"][...] = 1
    from reformer_c.models.inputs import Call, check_inputs

    ids = np.zeros((200, t), int)
    call = Call(ids, training=True)
    inputs = check_inputs(config, model.dtype, None, call)
    run = model._pass(inputs, call)
    x = run.embeddings.forward(ids, None, inputs.positions)
    kept = x.reshape(200, 5, 8, -1)
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.6)}
    assert (kept == kept[:, :1, :, :1]).all()
    assert 0.35 < (kept[:, 0, :, 0] == 0).mean() < 0.45
    assert not (kept[0] == kept[1]).all()


def test_results_do_not_depend_on_the_number_of_threads():
    model = randomise(ReformerModelWithLMHead(small_config(**DROPOUT), rng=0))
    ids = random_ids((2, 42))
    with num_threads(1):
        loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    for workers in (2, 3, 7):
        with num_threads(workers):
            again, same = model.loss_and_gradients(ids, labels=ids, rng=0)
        assert again == loss
        assert all(np.array_equal(same[name], gradients[name]) for name in gradients)


def test_one_model_serves_many_threads_at_once():
    model = randomise(ReformerModelWithLMHead(small_config(**DROPOUT), rng=0))
    batches = [random_ids((2, t), seed=t) for t in range(5, 25)]
    alone = [model.loss_and_gradients(ids, labels=ids, rng=0)[0] for ids in batches]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(
            lambda ids: model.loss_and_gradients(ids, labels=ids, rng=0)[0], batches
        )
    assert list(together) == alone


# ---- weights ----


def test_first_weights_are_drawn_as_hugging_face_draws_them():
    config = ReformerConfig(num_attention_heads=2, is_decoder=True, axial_norm_std=0.5)
    model = ReformerModelWithLMHead(config, rng=0)
    for name, array in model.parameters.items():
        if name.endswith("bias"):
            assert not array.any()
        elif "layer_norm" in name:
            assert (array == 1).all()
        else:
            expected = 0.5 if "position" in name else 0.02
            assert_close(array.std(), expected, "deviation")
            assert abs(array.mean()) < tolerance("deviation") * expected


def test_a_seed_gives_the_same_weights_under_every_head_and_in_every_dtype():
    config = small_config()
    model = ReformerModelWithLMHead(config, rng=1)
    bare, wide = ReformerModel(config, rng=1), ReformerModel(config, rng=1, dtype=np.float64)
    for name in bare.parameters:
        np.testing.assert_array_equal(bare.parameters[name], model.parameters[f"reformer.{name}"])
        np.testing.assert_allclose(
            bare.parameters[name], wide.parameters[name], rtol=tolerance("rounding", "float32")
        )
    other = ReformerModel(config, rng=2).parameters["embeddings.word_embeddings.weight"]
    assert not np.array_equal(other, bare.parameters["embeddings.word_embeddings.weight"])


def test_weights_are_live():
    model = ReformerModel(small_config(), rng=0)
    ids = random_ids((1, 9))
    held = model.parameters["encoder.layer_norm.bias"]
    before = model(ids, rng=0).last_hidden_state
    model.parameters["encoder.layer_norm.bias"] = np.ones(32, np.float32)
    assert_close(model(ids, rng=0).last_hidden_state, before + 1, "rounding")
    assert (held == 1).all()
    held += 1
    assert_close(model(ids, rng=0).last_hidden_state, before + 2, "rounding")
    model.parameters.update({"encoder.layer_norm.bias": np.zeros(32, np.float32)})
    np.testing.assert_array_equal(model(ids, rng=0).last_hidden_state, before)


def test_weights_keep_their_names_shapes_and_dtypes():
    parameters = ReformerModel(small_config(), rng=0).parameters
    name = "encoder.layer_norm.bias"
    for wrong, error in (
        (np.ones(31, np.float32), ValueError),
        (np.ones(32), TypeError),
        ([1.0] * 32, TypeError),
    ):
        with pytest.raises(error, match=r"encoder\.layer_norm\.bias"):
            parameters[name] = wrong
    with pytest.raises(KeyError, match=r"encoder\.norm"):
        parameters["encoder.norm"] = np.ones(32, np.float32)
    with pytest.raises(TypeError, match="cannot be removed"):
        del parameters[name]


# ---- errors ----


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"input_ids": None}, "input_ids or inputs_embeds"),
        ({"inputs_embeds": np.zeros((1, 5, 16), np.float32)}, "input_ids or inputs_embeds"),
        ({"input_ids": [[0.0]]}, "input_ids"),
        ({"input_ids": [[True]]}, "input_ids"),
        ({"input_ids": [1, 2]}, "input_ids"),
        ({"input_ids": [[13]]}, "input_ids"),
        ({"input_ids": [[-1]]}, "input_ids"),
        ({"input_ids": np.zeros((1, 0), int)}, "input_ids"),
        ({"input_ids": np.zeros((0, 3), int)}, "input_ids"),
        ({"input_ids": np.zeros((1, 43), int)}, "input_ids"),
        ({"attention_mask": np.ones((1, 4))}, "attention_mask"),
        ({"attention_mask": [["a"] * 5]}, "attention_mask"),
        ({"attention_mask": [[0, 0, 0, -1e9, -1e9]]}, "attention_mask"),
        ({"attention_mask": [[1, 1, np.nan, 0, 0]]}, "attention_mask"),
        ({"position_ids": np.arange(4)}, "position_ids"),
        ({"position_ids": np.arange(5) + 40}, "position_ids"),
        ({"position_ids": np.arange(5.0)}, "position_ids"),
        ({"labels": np.zeros((1, 4), int)}, "labels"),
        ({"labels": np.full((1, 5), 13)}, "labels"),
        ({"labels": np.zeros((1, 5))}, "labels"),
        ({"num_hashes": 0}, "num_hashes"),
        ({"num_hashes": 1.5}, "num_hashes"),
        ({"num_hashes": True}, "num_hashes"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids"),
        ({"attention_mask": [[1, 2], [3]]}, "attention_mask"),
        ({"labels": [[1, 2], [3]]}, "labels"),
        ({"rotations": 3}, "rotations"),
        ({"rotations": [["a"]] * 2}, r"rotations\[0\]"),
        ({"rotations": []}, "rotations"),
        ({"rotations": [np.zeros((2, 6, 2, 3))] * 2}, r"rotations\[0\]"),
        ({"rng": "seed"}, "rng"),
        ({"output_attentions": "no"}, "output_attentions"),
        ({"output_hidden_states": 1}, "output_hidden_states"),
        ({"output_buckets": []}, "output_buckets"),
        ({"return_dict": 0}, "return_dict"),
        ({"rng": -1}, "rng"),
    ],
)
def test_bad_arguments_are_named(changes, name):
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must "):
        model(**{"input_ids": np.zeros((1, 5), int)} | changes)


@pytest.mark.parametrize("name", ["start_positions", "head_mask"])
def test_arguments_of_other_models_are_refused(name):
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(TypeError, match=rf"^{name}: ReformerModelWithLMHead has no such argument"):
        model([[1]], **{name: [1]})


@pytest.mark.parametrize("positions", [np.arange(5)[None], np.arange(2.0, 7.0)[None]])
def test_position_ids_are_no_mask(positions):
    """They are the second argument of some models of transformers."""
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(ValueError, match=r"^attention_mask must .* pass them as position_ids"):
        model(np.zeros((1, 5), int), positions)
    model(np.zeros((1, 2), int), np.arange(2)[None])  # a mask of 0 and 1


def test_training_is_true_or_false():
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(TypeError, match=r"^training must be True or False, got 'no'"):
        model.loss_and_gradients([[1, 2]], labels=[[1, 2]], training="no")


def test_rounds_of_hashing_are_checked_where_nothing_is_hashed():
    model = ReformerModelWithLMHead(small_config(attn_layers=["local"]), rng=0)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"^num_hashes must be an integer >= 1, got 0"):
            call([[1]], num_hashes=0)


def test_bad_word_vectors_are_named():
    model = ReformerModel(small_config(), rng=0)
    for vectors in (np.zeros((1, 5, 16)), np.zeros((1, 5, 15), np.float32), np.float32(1)):
        with pytest.raises((TypeError, ValueError), match=r"^inputs_embeds must"):
            model(inputs_embeds=vectors)


@pytest.mark.parametrize(
    ("kind", "changes", "name"),
    [
        (ReformerModelWithLMHead, {"is_decoder": False}, "is_decoder"),
        (ReformerModelWithLMHead, {"lsh_num_chunks_after": 1}, "lsh_num_chunks_after"),
        (ReformerModelWithLMHead, {"tie_word_embeddings": True}, "tie_word_embeddings"),
        (ReformerForMaskedLM, {"is_decoder": True}, "is_decoder"),
        (ReformerForQuestionAnswering, {"is_decoder": False, "num_labels": 3}, "num_labels"),
    ],
)
def test_configurations_that_do_not_fit_a_head_are_refused(kind, changes, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        kind(small_config(**changes))


def test_a_causal_classifier_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"^is_decoder: ") as made:
        model = ReformerForSequenceClassification(small_config(is_decoder=True), rng=0)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"^is_decoder: ") as opened:
        ReformerForSequenceClassification.from_pretrained(tmp_path)
    assert {warning.filename for warning in [*made, *opened]} == {__file__}


def test_wrong_models_and_losses_are_refused():
    with pytest.raises(TypeError, match=r"^config must be"):
        ReformerModel({"hidden_size": 16})
    with pytest.raises(TypeError, match=r"^dtype must be"):
        ReformerModel(small_config(), dtype=np.int16)
    with pytest.raises(TypeError, match=r"^dtype must be"):
        ReformerModel(small_config(), dtype="single precision")
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(TypeError, match=r"^labels must be given"):
        model.loss_and_gradients(random_ids((1, 5)))
    answering = ReformerForQuestionAnswering(small_config(is_decoder=False), rng=0)
    with pytest.raises(TypeError, match=r"^start_positions and end_positions must be given"):
        answering(random_ids((1, 5)), start_positions=[1])
    with pytest.raises(TypeError, match=r"^labels: ReformerModel has no such argument"):
        ReformerModel(small_config(), rng=0)(random_ids((1, 5)), labels=random_ids((1, 5)))


@pytest.mark.parametrize(
    "labels", [[[0, 1]], [0, 3], [0], ["a", "b"], np.zeros((2, 2)), np.zeros((2, 4)), 0, [0, -1]]
)
def test_bad_labels_of_a_classifier_are_named(labels):
    model = ReformerForSequenceClassification(small_config(is_decoder=False, num_labels=3), rng=0)
    with pytest.raises((TypeError, ValueError), match=r"^labels must be"):
        model(random_ids((2, 5)), labels=labels)


CLASSES, FLOATS = r"integers of shape \(2,\), the classes", r"numbers of shape \(2, {}\)"


@pytest.mark.parametrize(
    ("problem", "count", "labels", "expected"),
    [
        # classes, if they are integers
        (None, 3, [0.0, 2.0], rf"{CLASSES}, or floats of shape \(2, 3\), .* got float64 of"),
        (None, 3, [[0.0], [2.0]], rf"{CLASSES}, or floats of shape \(2, 3\)"),
        (None, 3, [True, False], rf"{CLASSES}, or floats of shape \(2, 3\), .* got bool of"),
        (None, 3, ["a", "b"], CLASSES),
        (
            None,
            3,
            [[0, 1, 1], [1, 0, 0]],
            rf"{CLASSES}, or floats of .* got int64 of shape \(2, 3\)",
        ),
        ("single_label_classification", 3, [0.0, 2.0], rf"{CLASSES}, got float64"),
        ("single_label_classification", 3, [True, False], rf"{CLASSES}, got bool"),
        ("single_label_classification", 3, np.zeros((2, 3), int), rf"{CLASSES}, got int64"),
        ("multi_label_classification", 3, [0, 1], FLOATS.format(3)),
        ("multi_label_classification", 3, ["a", "b"], FLOATS.format(3)),
        ("regression", 3, [0.5, 1.5], FLOATS.format(3)),
        ("regression", 1, [[0.5, 1.5]], FLOATS.format(1)),
        (None, 1, ["a", "b"], FLOATS.format(1)),
        (None, 1, [0.5], FLOATS.format(1)),
    ],
)
def test_labels_of_a_classifier_are_named_with_what_is_expected(problem, count, labels, expected):
    config = small_config(is_decoder=False, num_labels=count, problem_type=problem)
    model = ReformerForSequenceClassification(config, rng=0)
    for call in (model, model.loss, model.loss_and_gradients):
        with pytest.raises((TypeError, ValueError), match=f"^labels must be {expected}"):
            call(random_ids((2, 5)), labels=labels)


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "expected"),
    [
        (ReformerForQuestionAnswering, "start_positions", [1.0, 2.0], "integers, got float64"),
        (ReformerForQuestionAnswering, "end_positions", [True, False], "integers, got bool"),
        (ReformerForQuestionAnswering, "end_positions", ["a", "b"], "integers, got <U1"),
        (ReformerForQuestionAnswering, "start_positions", [1], r"shape \(2,\), got \(1,\)"),
        (ReformerForQuestionAnswering, "start_positions", [[1, 2]], r"shape \(2,\), got \(1, 2\)"),
        (ReformerForMaskedLM, "labels", np.zeros((2, 21)), "integers, got float64"),
        (ReformerForMaskedLM, "labels", np.zeros((2, 21), bool), "integers, got bool"),
        (ReformerForMaskedLM, "labels", np.full((2, 21), "a"), "integers, got <U1"),
        (ReformerForMaskedLM, "labels", np.zeros((2, 20), int), r"shape \(2, 21\), got \(2, 20\)"),
        (ReformerModelWithLMHead, "labels", np.zeros((1, 21), int), r"shape \(2, 21\)"),
    ],
)
def test_targets_are_named_with_what_is_expected(kind, name, wrong, expected):
    model, call = one_call(kind)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must (be|have) {expected}"):
        model(**call | {name: wrong})


def test_labels_are_taken_for_what_they_are():
    """One call does not affect the next, as it does in transformers."""
    model, call = one_call(ReformerForSequenceClassification)
    classes = model(**call).loss
    several = model(**call | {"labels": [[1.0, 1.0], [0.0, 1.0]]}).loss
    assert model(**call).loss == classes != several
    assert model.config.problem_type is None


def test_targets_may_be_columns():
    """One number per row, as in transformers."""
    model, call = one_call(ReformerForSequenceClassification)
    assert model(**call | {"labels": [[0], [1]]}).loss == model(**call).loss
    one = {"input_ids": call["input_ids"][:1], "rng": 0}
    assert model(**one, labels=1).loss == model(**one, labels=[1]).loss
    model, call = one_call(ReformerForQuestionAnswering)
    columns = {name: np.array(call[name])[:, None] for name in ("start_positions", "end_positions")}
    assert model(**call | columns).loss == model(**call).loss


@pytest.mark.parametrize("mask", [[0, 1, 1], [0, 0, 0], [0, 1, 0]])
def test_a_class_read_from_padding_is_warned_of(mask):
    model, call = one_call(ReformerForSequenceClassification)
    call["attention_mask"] = np.ones((2, 21), int)
    call["attention_mask"][1, :3] = mask
    for act in (model, model.loss, model.loss_and_gradients):
        with pytest.warns(UserWarning, match=r"^attention_mask: row 1 begins with padding"):
            act(**call)
    call["attention_mask"][1] = np.arange(21) < 18
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**call)  # padding on the right changes no other token


def test_a_text_without_tokens_in_which_an_answer_could_be_is_warned_of():
    model, call = one_call(ReformerForQuestionAnswering)
    mask = np.ones((2, 21), int)
    mask[1, :20] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**call, attention_mask=mask)
    mask[1] = 0
    with pytest.warns(UserWarning, match=r"^attention_mask: row 1 has no token"):
        model(**call, attention_mask=mask)


# ---- outputs, as transformers' ----


def one_call(kind, **changes):
    """A model, and arguments that give it a loss."""
    model = kind(small_config(is_decoder=kind is ReformerModelWithLMHead), rng=0)
    ids = random_ids((2, 21))
    targets = {
        ReformerModel: {},
        ReformerForSequenceClassification: {"labels": [0, 1]},
        ReformerForQuestionAnswering: {"start_positions": [1, 2], "end_positions": [3, 4]},
    }.get(kind, {"labels": ids})
    return model, {"input_ids": ids, "rng": 0, **targets, **changes}


# in transformers' order, but for the buckets of its cache
FIELDS = {
    ReformerModel: ["last_hidden_state"],
    ReformerModelWithLMHead: ["loss", "logits"],
    ReformerForMaskedLM: ["loss", "logits"],
    ReformerForSequenceClassification: ["loss", "logits"],
    ReformerForQuestionAnswering: ["loss", "start_logits", "end_logits"],
}


@pytest.mark.parametrize("kind", FIELDS)
def test_an_output_is_a_mapping_and_a_sequence(kind):
    model, call = one_call(kind)
    output = model(**call, output_hidden_states=True, output_attentions=True)
    names = [*FIELDS[kind], "hidden_states", "attentions"]
    # fields that transformers' outputs do not have come last
    more = ["last_hidden_state"] if "LM" in kind.__name__ else []
    assert list(output) == list(output.keys()) == [*names, *more]
    assert len(output) == len(names + more)
    for i, name in enumerate(output):
        value = getattr(output, name)
        assert output[i] is output[name] is output.get(name) is output.to_tuple()[i] is value
        assert name in output
    assert [*output.values()] == [*output.to_tuple()] == [v for _, v in output.items()]
    assert output[-1] is output.to_tuple()[-1]
    assert output[:2] == output.to_tuple()[:2]
    assert dict(**output).keys() == output.keys()
    first, *_ = output.to_tuple()
    assert first is output[0]
    assert "buckets" not in output
    assert 0 not in output
    with pytest.raises(KeyError, match="buckets"):
        output["buckets"]
    with pytest.raises(IndexError):
        output[len(output)]
    assert [*reversed(output)] == [*output][::-1]
    with pytest.raises(TypeError, match="cannot be deleted from an output"):
        del output[next(iter(output))]
    # without fields that were not requested
    assert [*model(**call)] == [*FIELDS[kind], *more]


@pytest.mark.parametrize("kind", FIELDS)
def test_a_call_gives_a_tuple_where_it_is_told(kind):
    model, call = one_call(kind)
    output = model(**call)
    told = model(**call, return_dict=False)
    model.config.return_dict = False
    by_configuration = model(**call)
    for values in (told, by_configuration):
        assert type(values) is tuple
        assert len(values) == len(output)
        for value, name in zip(values, output, strict=True):
            np.testing.assert_array_equal(value, output[name])
    assert [*model(**call, return_dict=True)] == [*output]
    with pytest.raises(TypeError, match=r"^return_dict must be True or False"):
        model(**call, return_dict="no")


def test_the_first_field_is_the_loss():
    model, call = one_call(ReformerModelWithLMHead)
    loss, logits = model(**call)[:2]
    assert loss == loss.item() == model.loss(**call)
    np.testing.assert_array_equal(logits, model(**call).logits)
    del call["labels"]
    np.testing.assert_array_equal(model(**call)[0], logits)


def test_fields_of_an_output_may_be_assigned_by_their_names():
    model, call = one_call(ReformerModelWithLMHead)
    output = model(**call)
    output.loss = 1.5
    assert output["loss"] == output[0] == 1.5
    output["loss"] = None
    assert "loss" not in output
    misspelt = (
        lambda: setattr(output, "logit", 1),
        lambda: output.__setitem__("logit", 1),
        lambda: output.logit,
    )
    for act in misspelt:
        with pytest.raises(AttributeError, match=r"^logit: .* did you mean logits\?"):
            act()
    with pytest.raises(KeyError, match=r"logit: .* did you mean logits\?"):
        output["logit"]


def test_an_output_is_copied_and_pickled():
    model, call = one_call(ReformerModelWithLMHead)
    output = model(**call)
    for twin in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert [*twin] == [*output]
        np.testing.assert_array_equal(twin.logits, output.logits)


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        (ReformerModelWithLMHead, "label", "labels"),
        (ReformerModel, "atention_mask", "attention_mask"),
        (ReformerForQuestionAnswering, "start_position", "start_positions"),
        (ReformerForMaskedLM, "num_hash", "num_hashes"),
    ],
)
def test_a_misspelt_argument_of_a_call_is_refused(kind, wrong, right):
    model, call = one_call(kind)
    for act in (model, *([] if kind is ReformerModel else [model.loss, model.loss_and_gradients])):
        with pytest.raises(TypeError, match=f"^{wrong}: .*did you mean {right}\\?"):
            act(**call, **{wrong: 1})


@pytest.mark.parametrize("name", ["return_dict", "output_attentions", "training", "memory_budget"])
def test_a_loss_alone_has_no_output_to_choose(name):
    model, call = one_call(ReformerModelWithLMHead)
    with pytest.raises(TypeError, match=f"^{name}: ReformerModelWithLMHead has no such argument"):
        model.loss(**call, **{name: True})


def test_misspelt_arguments_of_what_is_no_call_are_refused():
    model = ReformerModelWithLMHead(small_config(), rng=0)
    for call, wrong, right in (
        (partial(model.memory, 5), "btach", "batch"),
        (partial(model.cache_bytes, 5), "promt", "prompt"),
        (model.resize_token_embeddings, "new_num_token", "new_num_tokens"),
        (partial(model.count_targets, labels=[[1, 2]]), "attention_maks", "attention_mask"),
    ):
        with pytest.raises(TypeError, match=f"^{wrong}: .* no such argument; did you mean {right}"):
            call(**{wrong: 1})


# ---- a model as an object ----


def test_a_model_evaluates_and_says_where_it_trains():
    model = ReformerModelWithLMHead(small_config(**DROPOUT), rng=0)
    assert model.eval() is model
    assert model.train(False) is model
    for call in (model.train, lambda: model.train(True), lambda: model.train(mode=1)):
        with pytest.raises(TypeError, match=r"^mode must be False.*loss_and_gradients"):
            call()
    assert model.num_parameters() == sum(array.size for array in model.parameters.values())


def test_a_misspelt_attribute_of_a_model_is_refused():
    model = ReformerModelWithLMHead(small_config(), rng=0)
    with pytest.raises(AttributeError, match=r"^confg: .*did you mean config\?"):
        model.confg = small_config()
    with pytest.raises(AttributeError, match=r"^confg: .*did you mean config\?"):
        model.confg  # noqa: B018
    with pytest.raises(AttributeError, match=r"^hiden_size: .*did you mean hidden_size\?"):
        model.config.hiden_size  # noqa: B018
    with pytest.raises(AttributeError, match=r"^temprature: .*did you mean temperature\?"):
        model.generation_config.temprature  # noqa: B018
    with pytest.raises(KeyError, match=r"no 'lm_head\.bais'; did you mean lm_head\.bias\?"):
        model.parameters["lm_head.bais"]
    assert "lm_head.bais" not in model.parameters
    assert not hasattr(model, "confg")
    with pytest.raises(AttributeError, match=r"^training: a ReformerModelWithLMHead has no such"):
        model.training = True

    class Named(ReformerModelWithLMHead):
        note: str

    named = Named(small_config(), rng=0)
    named.note = "mine"
    assert named.note == "mine"


# ---- the number of buckets that training chooses ----


LONG = {"num_buckets": None, "axial_pos_shape": [16, 16], "max_position_embeddings": 256,
        "attn_layers": ["local", "lsh"]}  # fmt: skip


def test_the_first_training_step_chooses_the_number_of_buckets(tmp_path):
    config = small_config(**LONG)
    model = ReformerModelWithLMHead(config, rng=0)

    def buckets(model, t):
        found = model(random_ids((1, t)), rng=0, output_buckets=True).buckets
        return 1 + found[0].max()

    # before training, the number follows from the length, as in transformers
    assert [buckets(model, t) for t in (40, 100)] == [16, 32]
    model.loss_and_gradients(random_ids((2, 4)), labels=random_ids((2, 4)), rng=0)
    assert model.config is config  # one chunk: nothing was hashed
    model.loss_and_gradients(random_ids((2, 40)), labels=random_ids((2, 40)), rng=0)
    assert model.config.num_buckets == 16 and config.num_buckets is None
    model.loss_and_gradients(random_ids((2, 100)), labels=random_ids((2, 100)), rng=0)
    model.generate(random_ids((1, 200)), max_new_tokens=2, rng=0)
    model.save_pretrained(tmp_path)
    for trained in (model, ReformerModelWithLMHead.from_pretrained(tmp_path)):
        assert trained.config.num_buckets == 16
        assert [buckets(trained, t) for t in (40, 100, 256)] == [16] * 3


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("t", [3, 20, 40])
def test_a_number_of_buckets_does_not_depend_on_the_other_rows(t, causal, scope):
    """An untrained model chooses it for each row, from that row's own length."""
    kind = ReformerModelWithLMHead if causal else ReformerForMaskedLM
    model = randomise(kind(small_config(**LONG, is_decoder=causal, attention_scope=scope), rng=0))
    ids, mask = random_ids((3, 150)), np.ones((3, 150), int)
    mask[0, t:] = mask[2, 40:] = 0
    together = model(ids, mask, rng=0)
    alone = [model(ids[i : i + 1, :n], rng=0) for i, n in enumerate((t, 150, 40))]
    for i, row in enumerate(alone):
        logits = together.logits[i : i + 1, : row.logits.shape[1]]
        assert_close(logits, row.logits, "model_forward")
    labels = np.where(mask, ids, -100)
    loss = model(ids, mask, labels=labels, rng=0).loss
    assert model.loss(ids, mask, labels=labels, rng=0) == pytest.approx(loss)


def test_a_short_step_over_whole_buckets_chooses_the_number_too():
    model = ReformerModelWithLMHead(small_config(**LONG, attention_scope="bucket"), rng=0)
    for t, expected in ((3, 2), (40, 2)):  # these are hashed at every length
        model.loss_and_gradients(random_ids((2, t)), labels=random_ids((2, t)), rng=0)
        assert model.config.num_buckets == expected
        assert model(random_ids((1, 100)), rng=0, output_buckets=True).buckets[0].max() == 1


def test_a_step_that_does_not_begin_chooses_nothing(monkeypatch):
    model = ReformerModelWithLMHead(small_config(**LONG), rng=0)
    ids = random_ids((2, 40))
    with pytest.raises(TypeError):
        model.loss_and_gradients(ids, rng=0)
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: 1)
    with pytest.raises(MemoryError):
        model.loss_and_gradients(ids, labels=ids, rng=0)
    assert model.config.num_buckets is None


def test_local_layers_choose_no_number_of_buckets():
    model = ReformerModelWithLMHead(small_config(**LONG | {"attn_layers": ["local"]}), rng=0)
    ids = random_ids((1, 40))
    model.loss_and_gradients(ids, labels=ids, rng=0)
    assert model.config.num_buckets is None


# ---- resizing the vocabulary ----


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("count", [20, 9, 13])
def test_the_vocabulary_is_resized(kind, count):
    model, _ = one_call(kind)
    randomise(model)
    config, before = model.config, {name: a.copy() for name, a in model.parameters.items()}
    word = f"{model.prefix}embeddings.word_embeddings.weight"
    vectors = model.resize_token_embeddings(count, rng=3)
    assert vectors is model.parameters[word]
    assert vectors.shape == (count, 16)
    assert model.config.vocab_size == count
    assert config.vocab_size == 13  # others may use it
    fresh = kind(model.config, rng=3)
    for name, array in model.parameters.items():
        assert array.shape == fresh.parameters[name].shape
        rows = min(len(array), len(before[name])) if array.ndim else None
        np.testing.assert_array_equal(array[:rows], before[name][:rows])
    sized = {word, "lm_head.decoder.weight", "lm_head.bias"} & model.parameters.keys()
    for name in sized:
        np.testing.assert_array_equal(model.parameters[name][13:], fresh.parameters[name][13:])
    assert {n for n, a in model.parameters.items() if a.shape != before[n].shape} == (
        sized if count != 13 else set()
    )
    ids = random_ids((1, 9), v=count)
    output = model(ids, rng=0)
    if "LM" in kind.__name__:
        assert output.logits.shape == (1, 9, count)
    with pytest.raises(ValueError, match=rf"^input_ids must be in \[0, {count}\)"):
        model([[count]])


def test_a_larger_vocabulary_changes_no_logits_of_the_smaller():
    model, call = one_call(ReformerModelWithLMHead)
    before = model(**call).logits
    model.resize_token_embeddings(40, rng=0)
    np.testing.assert_array_equal(model(**call).logits[..., :13], before)
    model.resize_token_embeddings(13)
    np.testing.assert_array_equal(model(**call).logits, before)


def test_an_optimiser_of_another_vocabulary_is_refused():
    model, call = one_call(ReformerModelWithLMHead)
    optimizer = AdamW(model.parameters)
    model.resize_token_embeddings(20, rng=0)
    _, gradients = model.loss_and_gradients(**call)
    before = {name: array.copy() for name, array in model.parameters.items()}
    with pytest.raises(ValueError, match=r"word_embeddings.weight'\] must have shape \(13, 16\)"):
        optimizer.step(gradients)
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    AdamW(model.parameters).step(gradients)
    assert not np.array_equal(model.parameters["lm_head.bias"], before["lm_head.bias"])


def test_a_vocabulary_is_rounded_up():
    model, _ = one_call(ReformerModel)
    assert len(model.resize_token_embeddings()) == 13
    assert len(model.resize_token_embeddings(pad_to_multiple_of=8)) == 16
    assert len(model.resize_token_embeddings(17, pad_to_multiple_of=8)) == 24
    assert len(model.resize_token_embeddings(16, 8)) == 16
    for wrong in ({"new_num_tokens": 0}, {"new_num_tokens": 2.5}, {"pad_to_multiple_of": 0}):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))} must "):
            model.resize_token_embeddings(**wrong)
    with pytest.raises(TypeError, match=r"^rng must be"):
        model.resize_token_embeddings(20, rng="seed")
    assert (
        model.config.vocab_size == len(model.parameters["embeddings.word_embeddings.weight"]) == 16
    )


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "labels", "position_ids"])
def test_a_masked_array_is_refused(name):
    """Its mask would be dropped."""
    model = ReformerModelWithLMHead(small_config(), rng=0)
    ids = random_ids((1, 5))
    arguments = {"input_ids": ids, "labels": ids, name: np.ma.array(ids, mask=ids > 6)}
    for call in (model, model.loss, model.loss_and_gradients):
        with pytest.raises(TypeError, match=f"^{name} must be an array without a mask"):
            call(**arguments)


def test_the_mask_of_one_row_is_not_dropped_either():
    model = ReformerModelWithLMHead(small_config(), rng=0)
    rows = [np.ma.array(row, mask=row > 6) for row in random_ids((2, 5))]
    for name in ("input_ids", "labels"):
        with pytest.raises(TypeError, match=f"^{name} must be an array without a mask"):
            model.loss(**({"input_ids": random_ids((2, 5)), "labels": rows} | {name: rows}))
    bias = model.parameters["lm_head.bias"]
    with pytest.raises(TypeError, match=r"lm_head.bias.* must be an array, got MaskedArray"):
        model.parameters["lm_head.bias"] = np.ma.masked_array(bias)


def test_no_dtype_is_no_dtype():
    for make in (ReformerModel, ReformerModelWithLMHead):
        with pytest.raises(TypeError, match=r"^dtype must be float32 .* float16, got None"):
            make(small_config(), dtype=None)
