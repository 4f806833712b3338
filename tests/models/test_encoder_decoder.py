"""The encoder-decoder: against the reference, token by token, and its public methods."""

import copy
import dataclasses
import json
import types

import numpy as np
import pytest
from gradients import assert_is_the_derivative, slope
from reference import model as reference
from small_models import (
    DROPOUT,
    padding_mask,
    random_ids,
    randomise,
    rotations_for,
    small_config,
)
from tolerances import assert_close, assert_each_close

import reformer_c as rc
from reformer_c import ops, runtime
from reformer_c.layers.sublayer import Sublayer
from reformer_c.models.body import Pass
from reformer_c.models.encoder_decoder import ReformerEncoderDecoder

LAYERS = {
    "one layer": ["local"],
    "two layers": ["local", "lsh"],
    "three layers": ["lsh", "local", "lsh"],
    "full": ["full", "full_shared"],
}


def small_model(dtype=np.float64, decoder=None, **changes):
    config = small_config(is_decoder=False, **changes)
    decoder = config if decoder is None else dataclasses.replace(config, **decoder)
    return randomise(ReformerEncoderDecoder(config, decoder=decoder, rng=0, dtype=dtype))


def rotations_of_both(model):
    """For each side's LSH layers."""
    sides = {"rotations": model.encoder, "decoder_rotations": model.decoder}
    return {
        name: rotations_for(side.config, seed=i) for i, (name, side) in enumerate(sides.items())
    }


# ---- numbers ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("s", "t"), [(1, 1), (3, 9), (13, 4), (21, 22)])
def test_logits_and_loss_are_the_references(layers, s, t, masked, shared, dtype):
    model = small_model(
        dtype, attn_layers=layers, decoder={"feed_forward_size": 12}, shared_embeddings=shared
    )
    ids, written, labels = random_ids((2, s)), random_ids((2, t), 1), random_ids((2, t), 2)
    mask = padding_mask(2, s) if masked and s > 2 else None
    rotations = rotations_of_both(model)
    output = model(ids, mask, decoder_input_ids=written, labels=labels, **rotations)
    hashing = [*rotations["rotations"], *rotations["decoder_rotations"]]
    sides = model.encoder.config, model.decoder.config
    arguments = model.parameters, *sides, ids, written
    expected = reference.encoder_decoder_logits(*arguments, attention_mask=mask, hashing=hashing)
    assert_close(output.logits, expected, "model_forward")
    loss = reference.encoder_decoder_loss(*arguments, labels, attention_mask=mask, hashing=hashing)
    assert_close(output.loss, loss, "model_forward", dtype)
    alone = model.loss(ids, mask, decoder_input_ids=written, labels=labels, **rotations)
    assert_close(alone, loss, "model_forward", dtype)


@pytest.mark.parametrize(("smoothing", "shared"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_gradients_are_the_derivative_of_the_reference(
    layers, reversible, masked, smoothing, shared
):
    model = small_model(
        attn_layers=layers, label_smoothing=smoothing, shared_embeddings=shared,
        reversible=reversible,
    )  # fmt: skip
    ids, labels = random_ids((2, 11)), random_ids((2, 7), 1)
    labels[1, 4:] = -100
    mask = padding_mask(2, 11) if masked else None
    rotations = rotations_of_both(model)
    _, gradients = model.loss_and_gradients(ids, mask, labels=labels, **rotations)
    assert list(gradients) == list(model.parameters)
    # buckets do not move with the weights: the derivative is that of fixed buckets
    output = model(ids, mask, labels=labels, output_buckets=True, **rotations)
    buckets = [*output.encoder.buckets, *output.buckets]
    written = np.concatenate([np.zeros((2, 1), int), labels[:, :-1]], axis=1)
    written[written == -100] = 0
    names = list(model.parameters)

    def loss(*arrays):
        return reference.encoder_decoder_loss(
            dict(zip(names, arrays, strict=True)), model.encoder.config, model.decoder.config,
            ids, written, labels, attention_mask=mask, hashing=buckets, label_smoothing=smoothing,
        )  # fmt: skip

    arrays = [model.parameters[name] for name in names]
    found = [gradients[name] for name in names]
    assert_is_the_derivative(loss, arrays, found, np.random.default_rng(0))


def test_labels_are_smoothed_in_training_only():
    plain, smoothed = small_model(), small_model(label_smoothing=0.1)
    arguments = {"input_ids": random_ids((2, 11)), "labels": random_ids((2, 7), 1), "rng": 3}
    expected = plain.loss_and_gradients(**arguments)[0]
    assert smoothed.loss_and_gradients(**arguments)[0] != expected
    assert (
        smoothed.loss_and_gradients(**arguments, training=False)[0]
        == (plain.loss_and_gradients(**arguments, training=False)[0])
    )
    assert smoothed.loss(**arguments) == plain.loss(**arguments) == smoothed(**arguments).loss


def test_gradients_are_exact_for_the_dropout_that_was_drawn():
    model = small_model(attn_layers=["local", "lsh"], **DROPOUT)
    ids, labels = random_ids((2, 11)), random_ids((2, 7), 1)
    arguments = {"labels": labels, "rng": 5}
    loss, gradients = model.loss_and_gradients(ids, **arguments)
    again, _ = model.loss_and_gradients(ids, **arguments)
    assert again == loss != model.loss_and_gradients(ids, labels=labels, rng=6)[0]
    direction = {
        name: np.random.default_rng(1).standard_normal(array.shape)
        for name, array in model.parameters.items()
    }
    start = {name: array.copy() for name, array in model.parameters.items()}

    def at(distance):
        for name, array in model.parameters.items():
            array[...] = start[name] + distance * direction[name]
        return model.loss_and_gradients(ids, **arguments)[0]

    expected = slope(at, [0.0], [1.0], 1e-5)
    actual = sum((gradients[name] * direction[name]).sum() for name in gradients)
    assert_close(actual, expected, "derivative")


@pytest.mark.parametrize("training", [False, True])
def test_kept_activations_give_the_same_gradients(training):
    model = small_model(attn_layers=["local", "lsh"] * 2, **DROPOUT)
    arguments = {"labels": random_ids((2, 7), 1), "rng": 0, "training": training}
    ids, mask = random_ids((2, 13)), padding_mask(2, 13)
    loss, rebuilt = model.loss_and_gradients(ids, mask, **arguments)
    for budget in (10_000, 40_000, 10**9):
        same, kept = model.loss_and_gradients(ids, mask, memory_budget=budget, **arguments)
        assert same == loss
        assert_each_close(kept, rebuilt, "model_backward")


@pytest.mark.parametrize("dropout", [False, True])
def test_a_batch_in_parts_gives_the_same_gradients(monkeypatch, dropout):
    # dropout's bits depend on how many rows are processed at a time
    model = small_model(attn_layers=["local", "lsh"])
    if dropout:
        model.decoder.config.local_attention_probs_dropout_prob = 0.5
    arguments = {"labels": random_ids((5, 7), 1), "rng": 0}
    ids, mask = random_ids((5, 13)), padding_mask(5, 13)
    loss, whole = model.loss_and_gradients(ids, mask, **arguments)
    monkeypatch.setattr(Sublayer, "rows_at_a_time", staticmethod(lambda c: 30))
    in_parts, parts = model.loss_and_gradients(ids, mask, **arguments)
    if dropout:
        again, kept = model.loss_and_gradients(ids, mask, memory_budget=10**9, **arguments)
        assert again == in_parts
        assert_each_close(kept, parts, "model_backward")
    else:
        assert_close(in_parts, loss, "replay")
        assert_each_close(parts, whole, "model_backward")


def test_threads_do_not_matter():
    model = small_model(np.float32, attn_layers=["local", "lsh"])
    ids, labels = random_ids((3, 30)), random_ids((3, 20), 1)
    found = []
    for n in (1, 2, 3):
        with rc.num_threads(n):
            found.append(model.loss_and_gradients(ids, labels=labels, rng=0))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        assert all((gradients[name] == found[0][1][name]).all() for name in gradients)


def test_padding_that_is_masked_changes_nothing():
    # with a look back the first chunk would see the last, as in Hugging Face's models
    model = small_model(attn_layers=["local"], local_num_chunks_before=0)
    ids, labels = random_ids((1, 8)), random_ids((1, 6), 1)
    alone = model(ids, labels=labels)
    padded = np.concatenate([ids, random_ids((1, 12), 2)], axis=1)
    mask = np.arange(20)[None] < 8
    both = model(padded, mask, labels=labels)
    assert_close(both.logits, alone.logits, "replay")
    later = np.concatenate([labels, random_ids((1, 5), 3)], axis=1)
    longer = model(ids, decoder_input_ids=later, decoder_attention_mask=np.arange(11)[None] < 6)
    short = model(ids, decoder_input_ids=labels)
    assert_close(longer.logits[:, :6], short.logits, "replay")


ALONE = {
    "local": {"attn_layers": ["local"], "decoder": {"local_num_chunks_before": 2}},
    "both": {"attn_layers": ["local", "lsh"]},
    "lsh": {"attn_layers": ["lsh", "lsh"], "num_hashes": 3, "lsh_num_chunks_before": 2},
    "chunks of two lengths": {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 2},
    "open": {"attn_layers": ["local", "lsh"], "num_buckets": None},
    "buckets": {"attn_layers": ["lsh", "local"], "attention_scope": "bucket"},
    "open buckets": {"attn_layers": ["lsh"], "attention_scope": "bucket", "num_buckets": None},
}
ENDS = [21, 3, 9, 1, 21, 4, 13, 16]


def padded_labels():
    labels = random_ids((len(ENDS), 21), 1)
    labels[2, 4] = -100  # within a text
    for row, end in zip(labels, ENDS, strict=True):
        row[end:] = -100
    return labels


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("by", ["labels", "mask"])
def test_padding_of_targets_changes_nothing(changes, by):
    model = small_model(**changes)
    ids, labels = random_ids((len(ENDS), 9)), padded_labels()
    if by == "labels":
        arguments = {"labels": labels}
    else:
        mask = np.arange(21) < np.array(ENDS)[:, None]
        written = np.where(mask, labels, 7)
        written[2, 4] = 7
        arguments = {"decoder_input_ids": written, "decoder_attention_mask": mask, "labels": labels}
    more = {"output_attentions": True, "output_buckets": True, "output_hidden_states": True}
    together, plain = (model(ids, rng=3, **arguments, **x) for x in (more, {}))
    assert_close(together.logits, plain.logits, "replay")
    losses = []
    for i, end in enumerate(ENDS):
        row = {name: array[i : i + 1, :end] for name, array in arguments.items()}
        alone = model(ids[i : i + 1], rng=3, **row, **more)
        assert_close(together.logits[i, :end], alone.logits[0], "replay")
        for ours, its in zip(together.hidden_states, alone.hidden_states, strict=True):
            assert_close(ours[i, :end], its[0], "replay")
        for ours, its in zip(together.cross_attentions, alone.cross_attentions, strict=True):
            assert_close(ours[i, :, :end], its[0], "replay")
        for ours, its in zip(together.buckets, alone.buckets, strict=True):
            expected = np.zeros(ours[i, ..., :end].shape) if its is None else its[0]
            np.testing.assert_array_equal(ours[i, ..., :end], expected)
        kinds = model.decoder.config.layer_types
        for kind, ours, its in zip(kinds, together.attentions, alone.attentions, strict=True):
            if ours.ndim == its.ndim == 4:  # one chunk, or whole buckets
                assert_close(ours[i, :, :end, :end], its[0, :, :end, :end], "replay")
            else:  # a row of one chunk has it in every round
                rounds = model.decoder.config.num_hashes if kind == "lsh" else 1
                times = rounds if its.ndim == 4 else 1
                assert_close(ours[i].sum(), times * its.sum(), "replay")
        count = (row["labels"] != -100).sum()
        losses.append((alone.loss * count, count))
    total, count = np.sum(losses, axis=0)
    assert_close(together.loss, total / count, "replay")
    assert_close(model.loss(ids, rng=3, **arguments), total / count, "replay")


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("budget", [0, 10**9])
def test_padding_of_targets_changes_no_gradient(changes, budget):
    model = small_model(**changes)
    # if the number of buckets is not fixed, a training step chooses one for the whole batch
    training = model.decoder.config.num_buckets is not None
    arguments = {"rng": 3, "memory_budget": budget, "training": training}
    ids, labels = random_ids((len(ENDS), 9)), padded_labels()
    loss, gradients = copy.deepcopy(model).loss_and_gradients(ids, labels=labels, **arguments)
    total, count = 0.0, (labels != -100).sum()
    added = {name: np.zeros_like(array) for name, array in gradients.items()}
    for i, end in enumerate(ENDS):
        row = labels[i : i + 1, :end]
        share = (row != -100).sum() / count
        alone, found = copy.deepcopy(model).loss_and_gradients(
            ids[i : i + 1], labels=row, **arguments
        )
        total += share * alone
        for name, array in found.items():
            added[name] += share * array
    assert_close(loss, total, "replay")
    assert_each_close(gradients, added, "model_backward")


def test_padding_of_targets_changes_no_training_step():
    # one hash for all micro-batches; a large eps makes steps that are proportional to gradients
    models = [small_model(attn_layers=["local", "lsh"], hash_seed=3) for _ in range(2)]
    ids, labels = random_ids((len(ENDS), 9)), padded_labels()
    together = [{"input_ids": ids, "labels": labels}]
    apart = [
        {"input_ids": ids[i : i + 1], "labels": labels[i : i + 1, :end]}
        for i, end in enumerate(ENDS)
    ]
    reports = []
    for model, batches in zip(models, (together, apart), strict=True):
        data = types.SimpleNamespace(batch=batches.__getitem__)
        optimizer = rc.AdamW(model.parameters, lr=0.1, eps=1.0)
        trainer = rc.Trainer(model, data, optimizer, steps=1, accumulate=len(batches))
        reports += trainer
    assert_close(reports[0].loss, reports[1].loss, "replay")
    assert_each_close(models[0].parameters, models[1].parameters, "replay")


def test_padding_of_targets_with_dropout_has_exact_gradients():
    model = small_model(attn_layers=["local", "lsh"], **DROPOUT)
    ids, labels = random_ids((len(ENDS), 9)), padded_labels()
    losses = [
        model.loss_and_gradients(ids, labels=labels, rng=0, memory_budget=budget)
        for budget in (0, 10**9)
    ]
    assert losses[0][0] == losses[1][0]
    assert_each_close(losses[0][1], losses[1][1], "model_backward")


@pytest.mark.parametrize("training", [False, True])
def test_a_row_without_a_target_is_no_text(training):
    model = small_model(attn_layers=["local", "lsh"])
    ids, labels = random_ids((2, 9)), random_ids((2, 12), 1)
    labels[1] = -100
    loss, gradients = model.loss_and_gradients(ids, labels=labels, training=training, rng=0)
    alone, its = model.loss_and_gradients(ids[:1], labels=labels[:1], training=training, rng=0)
    assert_close(loss, alone, "replay")
    assert_each_close(gradients, its, "model_backward")
    assert np.isfinite(model(ids, labels=labels).logits).all()


def test_rotations_are_checked_where_nothing_is_hashed():
    ids, labels = random_ids((1, 3)), random_ids((1, 4), 1)
    for changes, shape in (({}, (2, 6, 2, 2)), ({"num_buckets": None}, (2, 6, 2, 5))):
        model = small_model(attn_layers=["lsh"], **changes)
        good, wrong = np.ones(shape), np.ones((2, 6, 3, shape[-1]))
        for name in ("rotations", "decoder_rotations"):
            model(ids, labels=labels, **{name: [good]})
            for bad in (wrong, np.ones(shape[:3])) + (() if changes else (np.ones((2, 6, 2, 5)),)):
                with pytest.raises(ValueError, match=rf"^{name}\[0\] must have shape \(2, 6, 2, "):
                    model(ids, labels=labels, **{name: [bad]})


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
def test_padding_of_what_is_read_changes_nothing_that_is_written(changes):
    model = small_model(np.float64, **changes)
    ids, ends = random_ids((4, 21)), [21, 5, 2, 13]
    mask = np.arange(21) < np.array(ends)[:, None]
    together = model.generate(ids, mask, max_new_tokens=9, rng=1)
    for i, end in enumerate(ends):
        alone = model.generate(ids[i : i + 1, :end], max_new_tokens=9, rng=1)
        np.testing.assert_array_equal(together[i, : alone.shape[1]], alone[0])


def test_what_a_call_can_give():
    model = small_model(
        attn_layers=["local", "lsh"],
        decoder={"attn_layers": ["lsh"] * 3, "num_hidden_layers": None},
    )
    ids, labels = random_ids((2, 13)), random_ids((2, 9), 1)
    mask = padding_mask(2, 13)
    output = model(
        ids, mask, labels=labels, rng=0, output_hidden_states=True,
        output_attentions=True, output_buckets=True,
    )  # fmt: skip
    assert output.logits.shape == (2, 9, 13)
    assert output.last_hidden_state.shape == (2, 9, 32)
    assert output.encoder.last_hidden_state.shape == (2, 13, 32)
    assert [len(x.hidden_states) for x in (output.encoder, output)] == [3, 4]
    assert all(state.shape == (2, 9, 16) for state in output.hidden_states)
    assert [len(x.attentions) for x in (output.encoder, output)] == [2, 3]
    assert [len(x.buckets) for x in (output.encoder, output)] == [1, 3]
    assert [p.shape for p in output.cross_attentions] == [(2, 2, 9, 13)] * 3
    for p in output.cross_attentions:
        np.testing.assert_allclose(p.sum(axis=-1), 1)
        assert not p.swapaxes(1, 3)[mask == 0].any()
    plain = model(ids, mask, labels=labels, rng=0)
    assert plain.loss == output.loss
    assert plain.hidden_states is plain.attentions is plain.cross_attentions is None
    # word vectors in place of words
    words = model.parameters["encoder.embeddings.word_embeddings.weight"]
    vectors = model(None, mask, inputs_embeds=words[ids], labels=labels, rng=0)
    assert vectors.loss == plain.loss


# ---- generation ----


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_quantized_weights_write_what_the_rounded_weights_write(storage):
    model = small_model(attn_layers=["local", "lsh"], attention_scope="bucket")
    ids, mask = random_ids((3, 13)), padding_mask(3, 13)
    options = {"max_new_tokens": 12, "eos_token_id": None, "rng": 4}
    exact = model.generate(ids, mask, **options)
    for name, weight in model.decoder.parameters.items():
        # keys and values of the encoder's states are computed before the steps
        states = ".cross_attention.self_attention.key", ".cross_attention.self_attention.value"
        if weight.ndim == 2 and "embeddings" not in name and not any(x in name for x in states):
            weight[...] = ops.dequantize(ops.quantize(weight, storage), weight.dtype)
    for extra in ({}, {"num_beams": 3}, {"do_sample": True}):
        rounded, quantized = (
            model.generate(ids, mask, weights=w, **options | extra) for w in (None, storage)
        )
        np.testing.assert_array_equal(rounded, quantized)
    assert exact.shape == quantized.shape


# chunk boundaries of LSH layers move as a text grows: docs/generation.md
@pytest.mark.parametrize(
    ("layers", "scope"),
    [(["local"], "chunk"), (["local"], "bucket"), (["local", "lsh"], "bucket"),
     (["lsh", "local", "lsh"], "bucket")],
)  # fmt: skip
def test_the_cache_gives_what_whole_passes_give(layers, scope):
    model = small_model(attn_layers=layers, attention_scope=scope)
    ids, mask = random_ids((3, 13)), padding_mask(3, 13)
    written = random_ids((3, 4), 1)
    written_mask = np.ones((3, 4), int)
    written_mask[1, :2] = 0  # prompts of two lengths
    arguments = {
        "decoder_input_ids": written, "decoder_attention_mask": written_mask, "rng": 4,
        "max_new_tokens": 12, "eos_token_id": None,
    }  # fmt: skip
    cached, whole = (
        model.generate(ids, mask, use_cache=use_cache, **arguments) for use_cache in (True, False)
    )
    assert cached.shape == (3, 16)
    np.testing.assert_array_equal(cached, whole)
    for extra in ({"num_beams": 3, "num_return_sequences": 2, "eos_token_id": 5},
                  {"do_sample": True, "num_return_sequences": 2}):  # fmt: skip
        cached, whole = (
            model.generate(ids, mask, use_cache=use_cache, **arguments | extra)
            for use_cache in (True, False)
        )
        assert len(cached) == 6
        np.testing.assert_array_equal(cached, whole)
    # each row as it would be alone
    for extra in ({}, {"do_sample": True}):
        together = model.generate(ids, mask, **arguments | extra)
        own = {"decoder_input_ids": written[1:2, 2:], "decoder_attention_mask": None}
        alone = model.generate(ids[1:2], mask[1:2], **arguments | extra | own)
        np.testing.assert_array_equal(alone[0, 2:], together[1, 4:])


@pytest.mark.parametrize(
    "choice",
    [{"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "eos_token_id": [3, 4, 5]},
     {"do_sample": True, "num_return_sequences": 3, "eos_token_id": [3, 4, 5]}],
)  # fmt: skip
def test_steps_use_the_encoders_keys_and_values_where_they_are(monkeypatch, choice):
    model = small_model(attn_layers=["local", "lsh"])
    used, attend = [], rc.ops.full_attention

    def attend_and_note(q, k, v, **rest):
        used.append((k, v))
        return attend(q, k, v, **rest)

    monkeypatch.setattr(rc.ops, "full_attention", attend_and_note)
    model.generate(random_ids((4, 13)), padding_mask(4, 13), max_new_tokens=10, rng=0, **choice)

    def owner(array):
        return id(array) if array.base is None else owner(array.base)

    assert len(used) > 10
    # for each layer one array of keys and one of values, the same in every step
    assert len({owner(array) for pair in used for array in pair}) == 4


def test_what_is_written_follows_from_the_logits():
    model = small_model(attn_layers=["local"])
    ids = random_ids((2, 9))
    written = model.generate(ids, max_new_tokens=6)
    assert (written[:, 0] == model.start_token_id).all()
    logits = model(ids, decoder_input_ids=written).logits
    np.testing.assert_array_equal(logits[:, :-1].argmax(axis=-1), written[:, 1:])
    # and from what was read
    assert (model.generate(random_ids((2, 9), 7), max_new_tokens=6) != written).any()
    steps = []
    model.generate(ids, max_new_tokens=6, streamer=steps.append)
    np.testing.assert_array_equal(np.stack(steps, axis=1), written[:, 1:])


def test_the_start_token_is_the_decoders():
    model = small_model(attn_layers=["local"], decoder={"bos_token_id": 7, "vocab_size": 20})
    assert model.start_token_id == 7
    assert (model.generate(random_ids((2, 5)), max_new_tokens=3)[:, 0] == 7).all()
    labels = random_ids((2, 6), v=20)
    given = np.concatenate([np.full((2, 1), 7), labels[:, :-1]], axis=1)
    ids = random_ids((2, 5))
    assert model.loss(ids, labels=labels) == model.loss(ids, labels=labels, decoder_input_ids=given)


def test_what_is_drawn_for_a_row_follows_from_what_it_reads():
    model = small_model(attn_layers=["local"], eos_token_id=None)
    options = {"do_sample": True, "max_new_tokens": 12, "rng": 0, "temperature": 3.0}
    ids = random_ids((3, 9))
    together = model.generate(ids, **options)
    for row in range(3):
        np.testing.assert_array_equal(model.generate(ids[row : row + 1], **options)[0],
                                      together[row])  # fmt: skip
    padded = np.pad(ids[:1], ((0, 0), (0, 2)))
    mask = np.arange(11)[None] < 9
    np.testing.assert_array_equal(model.generate(padded, mask, **options)[0], together[0])
    # the same again is another draw, as num_return_sequences has them
    twice = model.generate(ids[[0, 0]], **options)
    assert (twice[0] != twice[1]).any()
    copies = model.generate(ids[:1], num_return_sequences=2, **options)
    np.testing.assert_array_equal(twice, copies)


def test_the_options_of_writing_are_kept_in_the_folder(tmp_path):
    model = small_model(attn_layers=["local"], decoder={"bos_token_id": 7})
    model.generation_config.max_new_tokens = 3
    model.generation_config.decoder_start_token_id = 9
    model.generation_config.eos_token_id = None
    assert model.start_token_id == 9
    model.save_pretrained(tmp_path)
    opened = ReformerEncoderDecoder.from_pretrained(tmp_path, dtype=np.float64)
    assert opened.generation_config == model.generation_config
    ids = random_ids((2, 5))
    written = opened.generate(ids)
    assert written.shape == (2, 4) and (written[:, 0] == 9).all()
    np.testing.assert_array_equal(written, model.generate(ids))
    assert (opened.generate(ids, decoder_start_token_id=8)[:, 0] == 8).all()
    assert (opened.generate(ids, decoder_start_token_id=None)[:, 0] == 7).all()
    with pytest.raises(
        TypeError, match=r"^decoder_start_token_id must be None with decoder_input_ids"
    ):
        opened.generate(ids, decoder_input_ids=[[1], [1]], decoder_start_token_id=8)
    with pytest.raises(ValueError, match=r"^decoder_start_token_id must be in"):
        opened.generate(ids, decoder_start_token_id=13)
    with pytest.raises(AttributeError, match="did you mean top_k"):
        opened.generation_config.topk = 3


def test_the_first_training_step_chooses_both_sides_numbers_of_buckets():
    fields = {"num_buckets": None, "axial_pos_shape": [16, 16], "max_position_embeddings": 256}
    model = small_model(attn_layers=["local", "lsh"], **fields)
    model.loss_and_gradients(random_ids((2, 40)), labels=random_ids((2, 9)), rng=0)
    assert [side.config.num_buckets for side in model.sides.values()] == [16, 4]
    model.loss_and_gradients(random_ids((2, 9)), labels=random_ids((2, 40)), rng=0)
    assert [side.config.num_buckets for side in model.sides.values()] == [16, 4]


# ---- shared embeddings ----


def test_shared_embeddings_are_one_table_in_memory_and_in_files(tmp_path):
    model, separate = small_model(shared_embeddings=True), small_model()
    words = "encoder.embeddings.word_embeddings.weight"
    own = {"decoder.reformer.embeddings.word_embeddings.weight", "decoder.lm_head.decoder.weight"}
    assert separate.parameters.keys() - model.parameters.keys() == own
    assert model.decoder.words is model.parameters[words]
    model.save_pretrained(tmp_path)
    again = ReformerEncoderDecoder.from_pretrained(tmp_path, dtype=np.float64)
    assert again.decoder.config.shared_embeddings
    ids = random_ids((2, 9))
    written = model.generate(ids, max_new_tokens=5, num_beams=2, rng=0)
    np.testing.assert_array_equal(
        again.generate(ids, max_new_tokens=5, num_beams=2, rng=0), written
    )
    again.parameters[words] *= 2.0
    assert not np.array_equal(
        again(ids, labels=ids, rng=0).logits, model(ids, labels=ids, rng=0).logits
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_step_with_shared_embeddings_is_the_same_for_any_number_of_threads(training):
    model = small_model(np.float32, shared_embeddings=True, **DROPOUT)
    arguments = dict(labels=random_ids((2, 7), 1), rng=5, training=training)
    with rc.num_threads(1):
        loss, expected = model.loss_and_gradients(random_ids((2, 11)), **arguments)
    with rc.num_threads(3):
        again, found = model.loss_and_gradients(random_ids((2, 11)), **arguments)
    assert again == loss
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)


def test_embeddings_that_cannot_be_shared_are_refused():
    for changes in ({"vocab_size": 14}, {"shared_embeddings": False}):
        name, value = next(iter(changes.items()))
        with pytest.raises(ValueError, match=rf"^decoder\.{name} must be .* got {value}"):
            small_model(decoder=changes, shared_embeddings=True)
    for side in small_model(shared_embeddings=True).sides.values():
        with pytest.raises(ValueError, match=r"^shared_embeddings must be False"):
            side.resize_token_embeddings(20)


# ---- files, memory, errors ----


def test_a_decoder_alone_says_what_it_lacks():
    model = small_model()
    for call in (model.decoder, model.decoder.generate):
        with pytest.raises(TypeError, match=r"call the ReformerEncoderDecoder"):
            call([[1, 2]], **({"max_new_tokens": 1} if call != model.decoder else {}))


def test_the_configuration_may_ask_for_states_and_probabilities():
    model = small_model(output_hidden_states=True, output_attentions=True)
    ids = random_ids((1, 5))
    output = model(ids, labels=ids)
    assert len(output.hidden_states) == 4
    assert len(output.cross_attentions) == len(output.encoder.attentions) == 3
    assert model(ids, labels=ids, output_attentions=False).attentions is None


def test_folders_keep_both_sides(tmp_path):
    pytest.importorskip("safetensors")
    model = small_model(np.float32, attn_layers=["local", "lsh"], decoder={"vocab_size": 20})
    model.save_pretrained(tmp_path)
    back = ReformerEncoderDecoder.from_pretrained(tmp_path)
    assert back.decoder.config == model.decoder.config
    assert back.encoder.config == model.encoder.config
    ids, labels = random_ids((2, 9)), random_ids((2, 7), v=20)
    assert back.loss(ids, labels=labels, rng=0) == model.loss(ids, labels=labels, rng=0)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({k: v for k, v in config.items() if k != "decoder"}, [1]):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"^folder: .* has no encoder and decoder"):
            ReformerEncoderDecoder.from_pretrained(tmp_path)
    config["decoder"]["vocab_size"] = 21
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of another shape: .*decoder\.lm_head"):
        ReformerEncoderDecoder.from_pretrained(tmp_path)


def test_weights_are_live_and_drawn_alike():
    one, two = (small_model(rng_dtype) for rng_dtype in (np.float32, np.float64))
    for name, array in one.parameters.items():
        assert_close(array, two.parameters[name], "rounding")
    name = "encoder.embeddings.word_embeddings.weight"
    assert one.parameters[name] is one.encoder.parameters[name.removeprefix("encoder.")]
    assert (one.parameters[name] != one.parameters[f"decoder.reformer.{name[8:]}"]).any()
    assert "3 layers" not in repr(one)
    assert "local, lsh, lsh | local, lsh, lsh" in repr(one)


def test_what_a_step_takes_is_said_before_and_refused(monkeypatch):
    model = small_model(attn_layers=["local", "lsh"])
    plain, kept = model.memory(20, 10, 2), model.memory(20, 10, 2, memory_budget=10**9)
    assert plain.kept == 0 < kept.kept
    assert plain.gradients == sum(array.nbytes for array in model.parameters.values())
    assert model.memory(20, batch=2).total == model.memory(20, 20, 2).total > plain.total
    monkeypatch.setattr("reformer_c.models.encoder_decoder.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="2 x 20 tokens and 10 to write takes"):
        model.loss_and_gradients(random_ids((2, 20)), labels=random_ids((2, 10)))
    assert runtime.available_memory() != 1000


def test_a_step_is_planned_once(monkeypatch):
    model, readings = small_model(attn_layers=["local", "lsh"], memory_budget=0.5), []
    plan, planned = Pass.plan, []

    def note(self, *arguments):
        planned.append(self)
        return plan(self, *arguments)

    for module in ("encoder_decoder", "calls"):
        # each reading reports less free memory
        monkeypatch.setattr(
            f"reformer_c.models.{module}.available_memory",
            lambda: readings.append(1) or 10**9 // len(readings),
        )
    monkeypatch.setattr(Pass, "plan", note)
    model.loss_and_gradients(random_ids((2, 20)), labels=random_ids((2, 10)))
    assert len(readings) == 1
    assert len(planned) == len(set(map(id, planned))) == 2


def test_each_side_has_its_own_budget(monkeypatch):
    layers = {"attn_layers": ["local", "lsh"] * 2}
    budgets = [(None, None), (10**9, None), (None, 10**9), (10**9, 10**9), (0.9, 0.9)]
    kept, steps = {}, []
    monkeypatch.setattr("reformer_c.models.encoder_decoder.available_memory", lambda: 10**9)
    for reading, writing in budgets:
        model = small_model(memory_budget=reading, decoder={"memory_budget": writing}, **layers)
        kept[reading, writing] = model.memory(20, 10, 2).kept
        steps.append(
            model.loss_and_gradients(random_ids((2, 20)), labels=random_ids((2, 10)), rng=0)
        )
        # a call's budget replaces both
        assert model.memory(20, 10, 2, memory_budget=0).kept == 0
    assert kept[None, None] == 0
    assert 0 < kept[10**9, None] != kept[None, 10**9] > 0
    assert kept[10**9, 10**9] == kept[0.9, 0.9] == kept[10**9, None] + kept[None, 10**9]
    for loss, gradients in steps[1:]:
        assert_close(loss, steps[0][0], "replay")
        assert_each_close(gradients, steps[0][1], "model_backward")
    assert model.memory(20, 10, 2, memory_budget=10**9).kept == kept[10**9, 10**9]
    # shares of free memory; the encoder's is a share of what the decoder leaves
    free = int(1.5 * kept[None, 10**9])
    monkeypatch.setattr("reformer_c.models.encoder_decoder.available_memory", lambda: free)
    assert model.memory(20, 10, 2).kept <= free


BAD = [
    ({"input_ids": None}, TypeError, r"input_ids\b"),
    ({"input_ids": [[13]]}, ValueError, r"input_ids\b"),
    ({"attention_mask": np.ones((1, 4))}, ValueError, r"attention_mask\b"),
    ({"labels": None}, TypeError, "(labels|decoder_input_ids).* must be given"),
    ({"labels": [[20]]}, ValueError, r"labels\b"),
    ({"labels": np.ones((2, 5), int)}, ValueError, "labels must have 1 rows"),
    ({"decoder_input_ids": [[1, 2]]}, ValueError, r"labels\b"),
    ({"decoder_input_ids": [[0.5] * 5]}, TypeError, r"decoder_input_ids\b"),
    ({"decoder_attention_mask": [[1, 1]]}, ValueError, r"decoder_attention_mask\b"),
    ({"decoder_attention_mask": [[0, 0, 0, -1, -1]]}, ValueError, r"decoder_attention_mask\b"),
    ({"labels": np.ones((1, 50), int)}, ValueError, "labels must have 1 to 42 tokens"),
    ({"labels": np.ones((1, 0), int)}, ValueError, "labels must have 1 to 42 tokens .*, got 0"),
    ({"labels": [[1, 2], [3]]}, ValueError, "labels must have rows of one length"),
    ({"labels": [[1.5]]}, TypeError, "labels must be integers"),
    (
        {"decoder_input_ids": np.ones((1, 50), int), "labels": None},
        (ValueError, TypeError),
        "(labels must be given|decoder_input_ids must have at most 42)",
    ),
    ({"decoder_input_ids": [[1, 2], [3]]}, ValueError, "decoder_input_ids must have rows of one"),
    ({"decoder_attention_mask": [[1], [1, 1]]}, ValueError, "decoder_attention_mask must have"),
    ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids must have rows of one length"),
    ({"attention_mask": [[1], [1, 1]]}, ValueError, "attention_mask must have rows of one length"),
    ({"input_ids": None, "inputs_embeds": [[[1.0], [1.0, 2.0]]]}, ValueError, r"inputs_embeds\b"),
    ({"rotations": 3}, TypeError, "rotations must be a list"),
    ({"decoder_rotations": 3}, TypeError, "decoder_rotations must be a list"),
    ({"rotations": [[[1.0], [1.0, 2.0]]] * 2}, ValueError, r"rotations\[0\]"),
    ({"decoder_rotations": [[[1.0], [1.0, 2.0]]] * 2}, ValueError, r"decoder_rotations\[0\]"),
    ({"num_hashes": [2]}, TypeError, r"num_hashes\b"),
    ({"rotations": []}, ValueError, r"rotations\b"),
    ({"decoder_rotations": []}, ValueError, r"decoder_rotations\b"),
    ({"decoder_rotations": [["a"]] * 2}, TypeError, r"decoder_rotations\[0\]"),
    ({"rng": "a"}, TypeError, r"rng\b"),
]


def test_ids_and_a_mask_of_one_text_have_one_dimension():
    model = small_model()
    expected = model.generate([[3, 4, 5]], [[1, 1, 0]], decoder_input_ids=[[2, 6]], rng=0)
    found = model.generate([3, 4, 5], [1, 1, 0], decoder_input_ids=[2, 6], rng=0)
    assert np.array_equal(found, expected)


def test_misspelt_arguments_are_refused_with_the_nearest_name():
    model = small_model()
    ids = {"input_ids": [[3]], "labels": [[4]]}
    for call in (model, model.loss, model.loss_and_gradients, model.count_targets):
        with pytest.raises(TypeError, match=r"^num_hash: .* no such argument; did you mean num_ha"):
            call(**ids, num_hash=2)
    with pytest.raises(TypeError, match=r"^decoder_lenght: memory .* mean decoder_length"):
        model.memory(5, decoder_lenght=3)
    with pytest.raises(TypeError, match=r"^dtyp: from_pretrained .* mean dtype"):
        ReformerEncoderDecoder.from_pretrained("folder", dtyp=np.float64)
    with pytest.raises(
        TypeError, match=r"^labels must be given for a loss of ReformerEncoderDecoder"
    ):
        model.count_targets([[3]])


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_arguments_are_named(changes, error, words):
    model = small_model()
    good = {"input_ids": random_ids((1, 5)), "labels": random_ids((1, 5), 1)}
    for call in (model, model.loss, model.loss_and_gradients):
        with pytest.raises(error, match=f"^{words}"):
            call(**good | changes)


def test_bad_arguments_of_writing_are_named(monkeypatch):
    model, ids = small_model(), random_ids((2, 5))
    monkeypatch.setattr(Pass, "forward", None)  # before anything is computed
    for changes, error, words in [
        ({"max_new_tokens": 50}, ValueError, r"max_new_tokens\b"),
        ({"beams": 2}, TypeError, r"beams\b"),
        ({"decoder_input_ids": [[1]]}, ValueError, "decoder_input_ids must have 2 rows"),
        ({"decoder_input_ids": [[13], [1]]}, ValueError, r"decoder_input_ids\b"),
        ({"num_beams": 2, "streamer": print}, ValueError, r"streamer\b"),
        ({"decoder_input_ids": [[1, 2], [3]]}, ValueError, "decoder_input_ids must have rows of"),
        ({"decoder_input_ids": [[1.5], [3]]}, TypeError, "decoder_input_ids must be integers"),
        ({"decoder_input_ids": [["a"], ["b"]]}, TypeError, "decoder_input_ids must be integers"),
        ({"decoder_attention_mask": [[1], [1, 0]]}, ValueError, "decoder_attention_mask must have"),
        ({"decoder_attention_mask": [[1, 1]] * 2}, ValueError, "decoder_attention_mask must"),
        ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids must have rows of one length"),
        ({"attention_mask": [[1, 1], [1]]}, ValueError, "attention_mask must have rows of one"),
        ({"input_ids": None, "inputs_embeds": [[[1.0], []]]}, ValueError, r"inputs_embeds\b"),
        ({"rotations": [[[1.0], []]] * 2}, ValueError, r"rotations\[0\] must have rows of one"),
        ({"decoder_rotations": [[[1.0], []]] * 2}, ValueError, r"decoder_rotations\[0\]"),
        ({"num_hashes": "a"}, TypeError, r"num_hashes\b"),
        ({"rng": "a"}, TypeError, r"rng\b"),
        ({"bad_words_ids": [[1], 2]}, (TypeError, ValueError), "bad_words_ids"),
        ({"eos_token_id": [[1, 2], [3]]}, (TypeError, ValueError), "eos_token_id"),
        ({"streamer": 3}, TypeError, r"streamer\b"),
    ]:
        with pytest.raises(error, match=f"^{words}"):
            model.generate(**{"input_ids": ids, "max_new_tokens": 3} | changes)
    for config, name in ((None, "config"), (3, "config")):
        with pytest.raises(TypeError, match=f"^{name} must be a ReformerConfig"):
            ReformerEncoderDecoder(config)
    with pytest.raises(TypeError, match=r"^decoder must be a ReformerConfig"):
        ReformerEncoderDecoder(small_config(), decoder=3)
    with pytest.raises(ValueError, match=r"^lsh_num_chunks_after must be 0"):
        ReformerEncoderDecoder(small_config(is_decoder=False, lsh_num_chunks_after=1))


# ---- training ----


def test_it_learns_to_write_backwards():
    """A task that needs the whole input before the first output."""
    config = small_config(
        attn_layers=["local", "lsh"], hidden_size=32, axial_pos_embds=False, initializer_range=0.05,
        attention_head_size=16, num_buckets=2,
    )  # fmt: skip
    model = ReformerEncoderDecoder(config, rng=0)
    optimizer = rc.AdamW(model.parameters, lr=4e-3)
    rng = np.random.default_rng(0)
    for step in range(250):
        ids = rng.integers(2, 13, (24, 6))
        loss, gradients = model.loss_and_gradients(ids, labels=ids[:, ::-1], rng=step)
        rc.clip_gradients(gradients, 1.0)
        optimizer.step(gradients)
    ids = rng.integers(2, 13, (40, 6))
    written = model.generate(ids, max_new_tokens=6, eos_token_id=None, rng=0)[:, 1:]
    assert loss < 0.3
    assert (written == ids[:, ::-1]).mean() > 0.9


def test_an_output_is_a_mapping_and_a_sequence():
    model = small_model()
    read, written = random_ids((2, 9)), random_ids((2, 5), seed=1)
    call = {"input_ids": read, "labels": written, "rng": 0}
    output = model(**call, output_hidden_states=True, output_attentions=True)
    assert [*output] == [
        "loss", "logits", "hidden_states", "attentions", "cross_attentions", "encoder",
        "last_hidden_state",
    ]  # fmt: skip
    assert output[4] is output["cross_attentions"] is output.cross_attentions
    assert [*output.encoder] == ["last_hidden_state", "hidden_states", "attentions"]
    loss, logits = model(**call)[:2]
    values = model(**call, return_dict=False)
    assert type(values) is tuple
    assert values[0] == loss == output.loss
    np.testing.assert_array_equal(values[1], logits)
    model.decoder.config.return_dict = False
    assert type(model(**call)) is tuple
    with pytest.raises(AttributeError, match=r"did you mean cross_attentions\?"):
        output.cross_attention = None


def test_a_model_as_an_object():
    model = small_model()
    assert model.eval() is model
    with pytest.raises(TypeError, match=r"^mode must be False.*loss_and_gradients"):
        model.train()
    assert model.num_parameters() == sum(array.size for array in model.parameters.values())
    with pytest.raises(AttributeError, match=r"^encodr: .*did you mean encoder\?"):
        model.encodr = model.encoder


def test_a_side_may_have_another_vocabulary():
    model = small_model()
    ids, labels = random_ids((2, 9)), random_ids((2, 5), v=20)
    model.decoder.resize_token_embeddings(20, rng=0)
    weight = model.parameters["decoder.lm_head.decoder.weight"]
    assert weight is model.decoder.parameters["lm_head.decoder.weight"]
    assert weight.shape[0] == 20
    _, gradients = model.loss_and_gradients(ids, labels=labels, rng=0)
    assert {n: g.shape for n, g in gradients.items()} == {
        n: a.shape for n, a in model.parameters.items()
    }
    assert model(ids, labels=labels).logits.shape == (2, 5, 20)
