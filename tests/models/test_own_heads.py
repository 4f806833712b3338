"""Inputs and heads of the user: forward and backward as two calls, and functions as losses."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from gradients import assert_is_the_derivative
from reference import model as reference
from small_models import DROPOUT, padding_mask, random_ids, randomise, rotations_for, small_config
from tolerances import assert_close, assert_each_close

import reformer_c as rc
from reformer_c import ops
from reformer_c.models.model import (
    ReformerForMaskedLM,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
)
from reformer_c.runtime import num_threads

WORDS = "embeddings.word_embeddings.weight"
BIDIRECTIONAL = {"is_decoder": False, "local_num_chunks_after": 1, "lsh_num_chunks_after": 1}


def model_of(dtype=np.float32, **changes):
    return randomise(ReformerModel(small_config(**changes), rng=0, dtype=dtype))


def random_like(x, seed=9):
    return np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)


def step(model, *args, **arguments):
    """Forward, and backward of a random gradient of the final states."""
    states = model.forward(*args, **arguments)
    return states, *model.backward(random_like(states))


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def mean_square(states):
    return (states**2).mean(), 2 * states / states.dtype.type(states.size)


# ---- the numbers ----


@pytest.mark.parametrize("t", [1, 4, 9])
@pytest.mark.parametrize(
    "changes",
    [{}, BIDIRECTIONAL, {"axial_pos_embds": False}, {"attention_scope": "bucket"}],
    ids=["causal", "both sides", "plain positions", "bucket scope"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_weights_and_inputs_are_the_derivative_of_the_reference(changes, t, masked):
    model = model_of(np.float64, attn_layers=["local", "lsh"], **changes)
    rotations, mask = rotations_for(model.config), None
    if masked:
        mask = padding_mask(2, t) if t > 4 else np.array([[1] * t, [1] + [0] * (t - 1)])
    vectors = np.random.default_rng(1).standard_normal((2, t, 16))
    arguments = dict(inputs_embeds=vectors, attention_mask=mask, rotations=rotations)
    states, gradients, d_inputs_embeds = step(model, **arguments)
    real = np.ones((2, t), bool) if mask is None else mask != 0
    weights = random_like(states) * real[..., None]
    if masked:  # the states of masked tokens depend on the padding
        model.forward(**arguments)
        gradients, d_inputs_embeds = model.backward(weights)

    buckets = model(**arguments, output_buckets=True).buckets
    hashing = [np.zeros((2, 2, 2, t), int) if x is None else x for x in buckets]
    names = [name for name in model.parameters if name != WORDS]

    def loss(vectors, *arrays):
        w = dict(zip(names, arrays, strict=True), **{WORDS: vectors.reshape(-1, 16)})
        ids = np.arange(2 * t).reshape(2, t)
        h = reference.body(w, model.config, ids, attention_mask=mask, hashing=hashing)
        return float((h * weights).sum())

    arrays = [vectors, *(model.parameters[name] for name in names)]
    found = [d_inputs_embeds, *(gradients[name] for name in names)]
    assert_is_the_derivative(loss, arrays, found, np.random.default_rng(0))
    assert not gradients[WORDS].any()


@pytest.mark.parametrize("t", [1, 3, 4, 5, 16, 42])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_dropout_the_states_are_those_of_a_call(t, dtype):
    model = model_of(dtype, **DROPOUT)
    ids, mask = random_ids((3, t)), padding_mask(3, t) if t > 4 else None
    whole = model(ids, mask, rng=1).last_hidden_state
    states = model.forward(ids, mask, rng=1, training=False)
    np.testing.assert_array_equal(states, whole)
    dropped = model.forward(ids, mask, rng=1)
    assert dropped.dtype == dtype
    assert not np.array_equal(dropped, states)


def language_model_loss(model, labels):
    """The loss of a language model, as a function of the final states."""
    weight, bias = model.parameters["lm_head.decoder.weight"], model.parameters["lm_head.bias"]

    def loss(states):
        mean, saved = ops.cross_entropy_head_forward(states, weight, bias, labels)
        d_states, *_ = ops.cross_entropy_head_backward(1.0, saved)
        return mean, d_states

    return loss


@pytest.mark.parametrize("t", [1, 4, 5, 23, 42])
@pytest.mark.parametrize("budget", [None, 20_000, np.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_language_models_head_has_the_bits_of_a_language_model(t, budget, training, masked):
    config = small_config(**BIDIRECTIONAL, **DROPOUT)
    whole = randomise(ReformerForMaskedLM(config, rng=0))
    model = ReformerModel(config, rng=1)
    for name in model.parameters:
        model.parameters[name] = whole.parameters[f"reformer.{name}"]
    ids, mask = random_ids((3, t)), padding_mask(3, t) if masked and t > 4 else None
    labels = np.where(random_ids((3, t), 1) < 3, -100, ids)
    if mask is not None:  # masked tokens may see the padding of evaluation, which has a word too
        labels[mask == 0] = -100
    arguments = dict(attention_mask=mask, rng=5, training=training, memory_budget=budget)
    expected, gradients = whole.loss_and_gradients(ids, labels=labels, **arguments)
    body = {name: gradients[f"reformer.{name}"] for name in model.parameters}

    loss = language_model_loss(whole, labels)
    value, own = model.loss_and_gradients(ids, loss=loss, **arguments)
    assert isinstance(value, float)
    assert_close(value, expected, "rounding", "float32")
    assert_same_bits(own, body)
    own, nothing = model.backward(loss(model.forward(ids, **arguments))[1])
    assert_same_bits(own, body)
    assert nothing is None
    # vectors in place of ids: the gradient of each word's vector is a sum of those of the inputs
    vectors = whole.parameters[f"reformer.{WORDS}"][ids]
    states = model.forward(inputs_embeds=vectors, **arguments)
    own, d_inputs_embeds = model.backward(loss(states)[1])
    words = np.zeros_like(own[WORDS])
    np.add.at(words, ids, d_inputs_embeds)
    assert_same_bits(own, body | {WORDS: np.zeros_like(words)})
    assert_close(words, body[WORDS], "backward")
    assert d_inputs_embeds.flags.c_contiguous


def test_long_texts_go_through_the_final_norm_in_blocks(monkeypatch):
    changes = {"axial_pos_shape": [64, 64], "max_position_embeddings": 4096}
    model = model_of(np.float64, attn_layers=["local"], **changes)
    ids = random_ids((2, 1500))
    states, gradients, _ = step(model, ids, rng=0)
    monkeypatch.setattr("reformer_c.models.body.HEAD_BLOCK", 1)
    again, parts, _ = step(model, ids, rng=0)
    np.testing.assert_array_equal(again, states)
    assert_each_close(parts, gradients, "replay")


def test_results_do_not_depend_on_the_number_of_threads():
    model = model_of(**DROPOUT)
    vectors = random_like(np.zeros((2, 42, 16), np.float32))
    results = []
    for threads in (1, 2, 3, 7):
        with num_threads(threads):
            results.append(step(model, inputs_embeds=vectors, rng=0))
    for states, gradients, d_inputs_embeds in results[1:]:
        np.testing.assert_array_equal(states, results[0][0])
        assert_same_bits(gradients, results[0][1])
        np.testing.assert_array_equal(d_inputs_embeds, results[0][2])


def test_a_seed_repeats_both_passes():
    model, ids = model_of(**DROPOUT), random_ids((2, 23))
    states, gradients, _ = step(model, ids, rng=3)
    again, same, _ = step(model, ids, rng=3)
    np.testing.assert_array_equal(again, states)
    assert_same_bits(same, gradients)
    assert not np.array_equal(step(model, ids, rng=4)[0], states)
    assert not np.array_equal(step(model, ids)[0], states)


def test_the_backward_pass_has_the_precision_of_the_forward_pass():
    model, ids = model_of(), random_ids((2, 42))
    with rc.matmul_precision("medium"):
        _, expected, _ = step(model, ids, rng=0)
        states = model.forward(ids, rng=0)
    gradients, _ = model.backward(random_like(states))
    assert_same_bits(gradients, expected)


def test_numpys_error_state_is_the_programs():
    model, ids = model_of(**DROPOUT), random_ids((2, 23))
    found = []

    def loss(states):
        found.append(np.geterr()["under"])
        return mean_square(states)

    with np.errstate(all="raise"):
        step(model, ids, rng=0)
        model.loss_and_gradients(ids, loss=loss, rng=0)
    assert found == ["raise"]


def test_the_first_pass_chooses_the_number_of_buckets():
    model = model_of(num_buckets=None)
    model.forward(random_ids((1, 4)))
    assert model.config.num_buckets is None  # nothing was hashed
    model.forward(random_ids((1, 42)))
    assert model.config.num_buckets == [4, 4]


# ---- what is held between the two passes ----


def test_arrays_of_the_caller_may_be_reused_after_the_forward_pass():
    model, ids = model_of(np.float64), random_ids((2, 23))
    arguments = dict(
        input_ids=ids, attention_mask=padding_mask(2, 23), position_ids=np.arange(23) + 3,
        rotations=rotations_for(model.config),
    )  # fmt: skip
    states, expected, _ = step(model, **copy.deepcopy(arguments))
    held = model.forward(**arguments)
    held[...] = 0
    ids[...] = 1
    arguments["attention_mask"][...] = 1
    arguments["position_ids"][...] = 0
    for rotation in arguments["rotations"]:
        rotation[...] = 0
    assert_same_bits(model.backward(random_like(states))[0], expected)
    vectors = random_like(np.zeros((2, 23, 16)))
    states, expected, d_expected = step(model, inputs_embeds=vectors.copy(), rng=0)
    model.forward(inputs_embeds=vectors, rng=0)
    vectors[...] = 0
    gradients, d_inputs_embeds = model.backward(random_like(states))
    assert_same_bits(gradients, expected)
    np.testing.assert_array_equal(d_inputs_embeds, d_expected)


def test_a_backward_pass_needs_a_forward_pass_of_its_own():
    model, ids = model_of(), random_ids((2, 9))
    refused = partial(pytest.raises, RuntimeError, match=r"^backward must follow forward")
    with refused():
        model.backward(np.zeros((2, 9, 32), np.float32))
    states = model.forward(ids, rng=0)
    model.backward(states)
    with refused():
        model.backward(states)
    # other calls do not count
    model(ids)
    model.loss_and_gradients(ids, loss=mean_square)
    with refused():
        model.backward(states)


def test_the_last_forward_pass_counts():
    model, ids = model_of(**DROPOUT), random_ids((2, 9))
    states, expected, _ = step(model, ids, rng=1)
    model.forward(random_ids((1, 5)), rng=0)
    model.forward(ids, rng=1)
    # calls in between do not matter
    model(ids, rng=2)
    model.loss_and_gradients(ids, loss=mean_square, rng=3)
    assert_same_bits(model.backward(random_like(states))[0], expected)


def test_a_refused_forward_pass_leaves_the_last_one():
    model, ids = model_of(), random_ids((2, 9))
    states, expected, _ = step(model, ids, rng=1)
    model.forward(ids, rng=1)
    with pytest.raises(TypeError, match=r"^num_hashes must be"):
        model.forward(ids, num_hashes="two")
    with pytest.raises(ValueError, match=r"^d_hidden must have shape \(2, 9, 32\), got \(9, 32\)"):
        model.backward(states[0])
    assert_same_bits(model.backward(random_like(states))[0], expected)


@pytest.mark.parametrize("name", [WORDS, "encoder.layers.2.feed_forward.dense.dense.bias"])
def test_parameters_that_changed_since_the_forward_pass_are_named(name):
    model, ids = model_of(), random_ids((2, 9))
    states, expected, _ = step(model, ids, rng=1)
    model.forward(ids, rng=1)
    weight = model.parameters[name]
    before = weight.copy()
    for change in (lambda: np.negative(weight, out=weight), lambda: weight[::-1].copy()):
        model.parameters[name] = change()
        with pytest.raises(RuntimeError, match=rf"^parameters must be .*, got another {name}$"):
            model.backward(random_like(states))
        model.parameters[name] = before
    # with the values of the forward pass, its backward pass is right
    assert_same_bits(model.backward(random_like(states))[0], expected)


def test_an_optimizer_that_steps_too_early_is_noticed():
    model, ids = model_of(), random_ids((2, 9))
    optimizer = rc.AdamW(model.parameters, lr=1e-6)
    states, gradients, _ = step(model, ids, rng=1)
    model.forward(ids, rng=1)
    optimizer.step(gradients)
    with pytest.raises(RuntimeError, match=r"^parameters must be those of the forward pass"):
        model.backward(random_like(states))


def test_another_vocabulary_is_another_parameter():
    model, ids = model_of(), random_ids((2, 9))
    states = model.forward(ids)
    model.resize_token_embeddings(20, rng=0)
    with pytest.raises(RuntimeError, match=rf"got another {WORDS}"):
        model.backward(states)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_holds_no_forward_pass(duplicate):
    model, ids = model_of(), random_ids((2, 9))
    states = model.forward(ids, rng=0)
    other = duplicate(model)
    with pytest.raises(RuntimeError, match=r"^backward must follow forward"):
        other.backward(states)
    assert_same_bits(step(other, ids, rng=0)[1], step(model, ids, rng=0)[1])


# ---- losses that are functions ----


def test_a_loss_may_be_a_function_of_the_states():
    model = model_of(np.float64, **DROPOUT)
    ids, mask = random_ids((2, 23)), padding_mask(2, 23)
    loss, gradients = model.loss_and_gradients(ids, mask, loss=mean_square, rng=1)
    states = model.forward(ids, mask, rng=1)
    expected, d_hidden = mean_square(states)
    assert loss == expected
    assert_same_bits(gradients, model.backward(d_hidden)[0])


def test_a_loss_may_call_the_model():
    model, ids = model_of(**DROPOUT), random_ids((2, 23))

    def nested(states):
        model.forward(ids, rng=7)
        model(ids)
        return mean_square(states)

    _, expected = model.loss_and_gradients(ids, loss=mean_square, rng=1)
    assert_same_bits(model.loss_and_gradients(ids, loss=nested, rng=1)[1], expected)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("mse", "loss must be a function of the final states, got 'mse'"),
        (lambda h: 0.5, r"loss must return \(loss, d_hidden\), got float"),
        (lambda h: (0.5, h, h), r"loss must return \(loss, d_hidden\), got tuple"),
        (lambda h: (h, h), "loss must return a number first, got float32 of shape"),
        (lambda h: (None, h), "loss must return a number first, got object"),
        (lambda h: (0.5, h[:, :-1]), r"d_hidden must have shape \(2, 5, 32\), got \(2, 4, 32\)"),
        (lambda h: (0.5, h.astype(float)), "d_hidden must be float32, got float64"),
        (lambda h: (0.5, np.ma.array(h)), "d_hidden must be an array without a mask"),
    ],
)
def test_losses_that_are_no_such_functions_are_refused(loss, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        model_of().loss_and_gradients(random_ids((2, 5)), loss=loss)


def test_an_exception_of_a_loss_is_the_callers():
    def broken(states):
        raise KeyError("mine")

    model, ids = model_of(), random_ids((2, 5))
    with pytest.raises(KeyError, match="mine"):
        model.loss_and_gradients(ids, loss=broken)
    assert model.loss_and_gradients(ids, loss=mean_square)[0] > 0


# ---- arguments ----


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"input_ids": np.zeros((0, 3), int)}, "input_ids must have at least one row"),
        ({"input_ids": np.zeros((1, 0), int)}, "input_ids must have at least one row"),
        ({"input_ids": np.zeros((1, 43), int)}, "input_ids must have at most 42 tokens"),
        ({"input_ids": None}, "input_ids or inputs_embeds must be given"),
        ({"attention_mask": np.ones((1, 4))}, "attention_mask must"),
        ({"rotations": 3}, "rotations must"),
        ({"rng": "seed"}, "rng must"),
        ({"training": "no"}, "training must"),
        ({"memory_budget": -1}, "memory_budget must"),
        ({"labels": [[1]]}, "labels: "),
        ({"atention_mask": None}, "atention_mask: .* did you mean attention_mask"),
    ],
)
def test_bad_arguments_are_named(changes, name):
    model, arguments = model_of(), {"input_ids": np.zeros((1, 5), int)} | changes
    for call in (model.forward, partial(model.loss_and_gradients, loss=mean_square)):
        with pytest.raises((TypeError, ValueError), match=f"^{name}"):
            call(**arguments)


@pytest.mark.parametrize(
    "kind", [ReformerModelWithLMHead, ReformerForSequenceClassification, rc.ReformerEncoderDecoder]
)
def test_models_with_a_head_refuse_by_name(kind):
    model = kind(small_config(is_decoder=kind is ReformerModelWithLMHead), rng=0)
    for name in ("forward", "backward"):
        words = rf"^{name}: only a ReformerModel has this method, got a {kind.__name__}"
        with pytest.raises(AttributeError, match=words):
            getattr(model, name)
        assert not hasattr(model, name)


def test_an_encoder_can_be_trained_alone():
    model = rc.ReformerEncoderDecoder(small_config(), rng=0)
    _, gradients, _ = step(model.encoder, random_ids((2, 9)), rng=0)
    assert {f"encoder.{name}" for name in gradients} < set(model.parameters)


# ---- memory ----


def test_the_states_and_their_gradient_are_part_of_the_memory(monkeypatch):
    model, ids = model_of(), random_ids((2, 42))
    needed = model.memory(42, 2)
    classifier = ReformerForSequenceClassification(small_config(is_decoder=False), rng=0)
    states = 2 * (2 * 42 * 32) * 4
    assert needed.streams == classifier.memory(42, 2).streams + states
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: needed.total)
    step(model, ids, rng=0)
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: needed.total - 1)
    forward = "reformer_c.models.body.Pass.forward"
    monkeypatch.setattr(forward, lambda *_, **__: pytest.fail("it began"))
    for call in (model.forward, partial(model.loss_and_gradients, loss=mean_square)):
        with pytest.raises(MemoryError, match="2 x 42 tokens"):
            call(ids, rng=0)


# ---- training ----


class Rows:
    """Data: rows of vectors whose states are to be near zero."""

    def __init__(self, count):
        self.count = count

    def batch(self, i):
        rows = np.random.default_rng(i).standard_normal((self.count, 9, 16))
        return {"inputs_embeds": rows, "loss": mean_square}


def test_a_trainer_takes_a_loss():
    def trainer(**options):
        model = model_of(np.float64, attn_layers=["local"])
        return rc.Trainer(model, Rows(3), rc.AdamW(model.parameters, lr=1e-2), **options)

    reports = list(trainer(steps=10))
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert reports[0].targets == 3
    # micro-batches count as their rows
    first, second = (Rows(3).batch(i)["inputs_embeds"] for i in range(2))
    both = trainer(accumulate=2)
    whole, _ = both.model.loss_and_gradients(
        inputs_embeds=np.concatenate([first, second]), loss=mean_square, rng=0
    )
    assert_close(next(iter(both)).loss, whole, "model_forward")


def test_a_trainer_refuses_what_a_model_without_a_head_cannot_do():
    model = model_of()
    with pytest.raises(TypeError, match=r"^model must have a method loss, got ReformerModel"):
        rc.Trainer(model, Rows(3), held_out=np.arange(9))


def test_a_model_is_saved_and_opened_in_between(tmp_path):
    pytest.importorskip("safetensors")
    model, ids = model_of(), random_ids((2, 9))
    states, expected, _ = step(model, ids, rng=0)
    model.forward(ids, rng=0)
    model.save_pretrained(tmp_path)
    assert_same_bits(model.backward(random_like(states))[0], expected)
    again = ReformerModel.from_pretrained(tmp_path)
    assert_same_bits(step(again, ids, rng=0)[1], expected)
