"""Residual streams in fixed point: rebuilt bit for bit, in half the memory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import DROPOUT, POSITIONS, random_ids, randomise, small_config
from tolerances import assert_close, tolerance

import reformer_c as rc
from reformer_c import num_threads
from reformer_c.layers.reversible import alternating_backward, alternating_forward
from reformer_c.layers.sublayer import Sublayer
from reformer_c.models.inputs import Call
from reformer_c.training.data import Windows

INTEGERS = ["int16", "int32"]
KINDS = [
    {},
    {"attn_layers": ["full", "full_shared", "local"], "softcap": 1.0},
    {"attention_scope": "bucket", "hidden_act": "prelu", "feed_forward_gated": True},
    {"attn_layers": ["local", "full"], "position_embedding_type": "rotary"},
    {"attn_layers": ["hash", "local"], "hash_local_window": 2},
    {"local_shared_qk": True, "hidden_act": "xielu", "chunk_size_feed_forward": 3},
    {"matmul_precision": "medium", "feed_forward_gated": True},
]


def model_of(dtype=np.float32, kind=rc.ReformerModelWithLMHead, **changes):
    return randomise(kind(small_config(**DROPOUT | changes), rng=0, dtype=dtype))


def step(model, t=26, **arguments):
    ids = random_ids((2, t))
    return model.loss_and_gradients(ids, labels=ids, rng=3, **arguments)


def error(gradients, expected):
    """The norm of the difference of all gradients, as a share of their norm."""
    far = sum(float(((gradients[name] - x) ** 2).sum()) for name, x in expected.items())
    return np.sqrt(far / sum(float((x * x).sum()) for x in expected.values()))


def assert_same(one, other):
    assert one[0] == other[0]
    for name, x in other[1].items():
        np.testing.assert_array_equal(one[1][name], x)


def there_and_back(model, ids, threads=(None, None)):
    """The streams before the first layer, and as the backward pass rebuilds them."""
    run, _ = model._begin(Call(ids, training=True), {})
    x = run.embeddings.forward(run.inputs.input_ids, None, run.inputs.positions)
    dtype = run.weights.dtype
    with num_threads(threads[0]):
        y = alternating_forward([f.forward_add for f in run.branches], x.copy(), x.copy())
    moved = y[0].copy()
    dy = [np.ones(x.shape, np.uint16 if x.dtype == np.int16 else dtype) for _ in y]
    with num_threads(threads[1]):
        found = alternating_backward(run.branches, *y, *dy)
    return x, found[:2], moved


@pytest.mark.parametrize("integer", [*INTEGERS, None])
@pytest.mark.parametrize("t", [1, 5, 7, 42])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_forty_layers_are_rebuilt_bit_for_bit(isa, monkeypatch, integer, t, changes):
    kinds = changes.get("attn_layers", ["local", "lsh"])
    kinds = [kinds[i % len(kinds)] for i in range(40)]
    # steep layers would leave the range of 16 bits
    model = model_of(**changes | {"attn_layers": kinds, "initializer_range": 0.1},
                     residual_dtype=integer)  # fmt: skip
    if t == 42:  # blocks of rows, the last one short
        monkeypatch.setattr(Sublayer, "rows_at_a_time", staticmethod(lambda c: 11))
    x, rebuilt, moved = there_and_back(model, random_ids((2, t)), (1, 3))
    assert not np.array_equal(moved, x)
    exact = all(np.array_equal(y, x) for y in rebuilt)
    assert exact == (integer is not None)


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("t", [3, 26])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_kept_and_rebuilt_activations_give_the_same_bits(isa, integer, t, changes):
    model = model_of(residual_dtype=integer, **changes)
    rebuilt = step(model, t)
    assert_same(step(model, t, memory_budget=np.inf), rebuilt)
    assert_same(step(model, t, memory_budget=20_000), rebuilt)
    assert all(x.dtype == np.float32 for x in rebuilt[1].values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("integer", INTEGERS)
def test_losses_and_gradients_are_near_those_of_real_streams(isa, dtype, integer):
    kinds = ["local", "full", "full_shared"]  # a hashed token may change its bucket
    plain = step(model_of(dtype, attn_layers=kinds))
    found = step(model_of(dtype, attn_layers=kinds, residual_dtype=integer))
    bound = tolerance(f"residual_{integer}")
    assert 0 < abs(found[0] - plain[0]) < bound * plain[0]
    assert 0 < error(found[1], plain[1]) < bound


@pytest.mark.parametrize("integer", INTEGERS)
def test_threads_do_not_change_the_bits(integer):
    model, found = model_of(residual_dtype=integer), []
    for n in (1, 2, 3):
        with num_threads(n):
            found.append(step(model))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["local", "lsh", "full", "full_shared"]), min_size=1, max_size=4
    ),
    positions=st.sampled_from([*POSITIONS.values()]),
    scope=st.sampled_from(["chunk", "bucket"]),
    activation=st.sampled_from(["relu", "gelu", "xielu"]),
    gated=st.booleans(),
    shared=st.booleans(),
    integer=st.sampled_from(INTEGERS),
    kept_dtype=st.sampled_from([None, "bfloat16"]),
    budget=st.integers(0, 150_000),
    training=st.booleans(),
    masked=st.booleans(),
    t=st.integers(2, 26),
)
def test_other_options_meet_streams_in_fixed_point(
    kinds, positions, scope, activation, gated, shared, integer, kept_dtype, budget, training,
    masked, t,
):  # fmt: skip
    if positions.get("position_embedding_type") == "rotary":
        kinds = ["full", *kinds]
    model = model_of(
        np.float64, attn_layers=kinds, attention_scope=scope, hidden_act=activation,
        feed_forward_gated=gated, shared_embeddings=shared, residual_dtype=integer,
        initializer_range=0.1, **positions,
    )  # fmt: skip
    mask = np.arange(t) < [[t], [max(1, t - 9)]] if masked else None
    arguments = {"attention_mask": mask, "training": training}
    exact = step(model, t, **arguments)
    assert_same(step(model, t, memory_budget=budget, **arguments), exact)
    model.config = replace(model.config, kept_dtype=kept_dtype)
    loss, rounded = step(model, t, memory_budget=budget, **arguments)
    assert loss == exact[0]
    assert error(rounded, exact[1]) <= tolerance("kept_bfloat16")
    assert model.memory(t, 2, memory_budget=budget).kept <= budget


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("changes", KINDS[:4], ids=str)
def test_decoded_tokens_have_the_logits_of_a_forward_pass(isa, integer, changes):
    # in float32 a number that is halfway between two steps may be rounded to either
    strictly_causal = {"attention_scope": "bucket"} | changes
    model = model_of(np.float64, residual_dtype=integer, hash_seed=5, **strictly_causal)
    ids, seen = random_ids((1, 6)), []

    def note(texts, scores):
        seen.append(np.array(scores))
        return np.where(np.arange(13) == model.config.eos_token_id, -np.inf, scores)

    texts = model.generate(ids, max_new_tokens=20, rng=0, logits_processor=[note])
    for t, scores in enumerate(seen, 6):
        assert_close(scores.reshape(-1), model(texts[:, :t], rng=0).logits[0, -1], "replay")
    assert len(seen) == 20


@pytest.mark.parametrize("integer", INTEGERS)
def test_hidden_states_are_numbers(integer):
    output = model_of(residual_dtype=integer)(random_ids((2, 9)), output_hidden_states=True)
    for states in output.hidden_states:
        assert states.dtype == np.float32 and states.shape == (2, 9, 16)
        steps = states * 2.0 ** {"int16": 8, "int32": 20}[integer]
        np.testing.assert_array_equal(steps, np.rint(steps))


@pytest.mark.parametrize("integer", INTEGERS)
def test_other_models_have_such_streams(integer):
    config = small_config(is_decoder=False, residual_dtype=integer)
    ids = random_ids((3, 21))
    found = []
    for one in (config, replace(config, residual_dtype=None)):
        classifier = randomise(rc.ReformerForSequenceClassification(one, rng=0))
        found.append(classifier.loss_and_gradients(ids, labels=[0, 1, 1], rng=0))
        reader = randomise(rc.ReformerForQuestionAnswering(one, rng=0))
        found.append(
            reader.loss_and_gradients(
                ids, start_positions=[1, 2, 3], end_positions=[4, 5, 20], rng=0
            )
        )
        pair = randomise(rc.ReformerEncoderDecoder(one, rng=0))
        found.append(pair.loss_and_gradients(ids, labels=ids, rng=0))
        assert_same(pair.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=10**9),
                    found[-1]) if one.residual_dtype else None  # fmt: skip
    for rounded, plain in zip(found[:3], found[3:], strict=True):
        assert abs(rounded[0] - plain[0]) < 0.05 * plain[0]
        assert 0 < error(rounded[1], plain[1]) < 0.3


@pytest.mark.parametrize("integer", INTEGERS)
def test_a_loss_of_the_users_and_vectors_have_such_streams(integer):
    model, found = model_of(kind=rc.ReformerModel, attn_layers=["local", "full"]), []
    vectors = np.random.default_rng(0).standard_normal((2, 26, 16), np.float32)
    for residual_dtype in (None, integer):
        model.config = replace(model.config, residual_dtype=residual_dtype)
        states = model.forward(inputs_embeds=vectors, rng=3)
        gradients, dvectors = model.backward(np.cos(states))
        assert dvectors.dtype == np.float32 and dvectors.shape == vectors.shape
        found.append(gradients | {"vectors": dvectors})
    assert 0 < error(found[1], found[0]) < tolerance(f"residual_{integer}")


# ---- memory ----


def test_streams_and_their_gradients_take_half_the_memory():
    streams = {
        integer: model_of(residual_dtype=integer, attn_layers=["local"]).memory(42, 3).streams
        for integer in (None, *INTEGERS)
    }
    stream = 3 * 42 * 16 * 4
    assert streams[None] - streams["int16"] == 2 * stream
    assert streams[None] == streams["int32"]


# ---- numbers that do not fit ----


def large(name, factor, **changes):
    model = model_of(hidden_dropout_prob=0.0, **changes)
    model.parameters[name] *= np.float32(factor)
    return model


WORDS = "reformer.embeddings.word_embeddings.weight"
OUTPUT = "reformer.encoder.layers.1.feed_forward.output.dense.weight"


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize(
    ("name", "layer"), [(WORDS, "embeddings"), (OUTPUT, "encoder.layers.1.feed_forward")]
)
def test_numbers_that_do_not_fit_are_refused_with_the_layers_name(integer, name, layer):
    model = large(name, 1e5, residual_dtype=integer)
    limit, other = {"int16": (128, "'int32'"), "int32": (2048, "None")}[integer]
    words = rf"^the residual stream after .*{layer}: y must stay below {limit} in {integer}, got .*"
    ids = random_ids((1, 9))
    for call in (
        lambda: model(ids),
        lambda: model.loss_and_gradients(ids, labels=ids, rng=0),
        lambda: model.generate(ids, max_new_tokens=3),
    ):
        with pytest.raises(OverflowError, match=words + f"residual_dtype={other}"):
            call()
    model.config = replace(model.config, residual_dtype=None)
    assert np.isfinite(model(ids).logits).all()


def test_of_a_nan_no_other_dtype_is_advised():
    model = large(WORDS, np.nan, residual_dtype="int16")
    with pytest.raises(OverflowError, match=r"after embeddings: .* got inf or nan$"):
        model(random_ids((1, 9)))


def test_a_decoded_token_that_does_not_fit_is_refused():
    model = model_of(hidden_dropout_prob=0.0, residual_dtype="int16")
    model.parameters[WORDS][12] = 1000.0
    ids = random_ids((1, 5)) % 12
    with pytest.raises(OverflowError, match="after embeddings"):
        model.generate(ids, max_new_tokens=4, logits_processor=[lambda *_: np.eye(13)[12]])


def test_a_run_whose_streams_overflow_saves_its_last_state(tmp_path):
    model = model_of(residual_dtype="int16")
    tokens = np.arange(500) % 13
    trainer = rc.Trainer(
        model, Windows(tokens, 20), rc.AdamW(model.parameters, lr=1e-3), steps=9, folder=tmp_path
    )
    steps = iter(trainer)
    for _ in range(2):
        next(steps)
    model.parameters[OUTPUT] *= np.float32(1e6)
    with pytest.raises(OverflowError, match=r"after reformer\.encoder\.layers\.1"):
        next(steps)
    assert rc.ReformerModelWithLMHead.from_pretrained(tmp_path).config.residual_dtype == "int16"


def test_a_run_is_resumed_bit_for_bit(tmp_path):
    def trainer(folder):
        model = model_of(residual_dtype="int16")
        data = Windows(np.arange(500) % 13, 20)
        optimizer = rc.AdamW(model.parameters, lr=1e-3)
        return rc.Trainer(model, data, optimizer, steps=6, folder=folder, save_every=3)

    whole = trainer(tmp_path / "whole")
    losses = [report.loss for report in whole]
    first = trainer(tmp_path / "parts")
    found = [report.loss for report, _ in zip(first, range(3), strict=False)]
    second = trainer(tmp_path / "parts")
    second.resume(tmp_path / "parts")
    found += [report.loss for report in second]
    assert found == losses
    for name, x in whole.model.parameters.items():
        np.testing.assert_array_equal(second.model.parameters[name], x)


def test_one_stream_is_not_in_fixed_point():
    with pytest.raises(ValueError, match="residual_dtype must be None with reversible=False, got"):
        small_config(reversible=False, residual_dtype="int16")


def test_weights_of_half_precision_decode_with_such_streams():
    half = rc.ReformerModelWithLMHead(small_config(residual_dtype="int16"), rng=0, dtype="float16")
    whole = rc.ReformerModelWithLMHead(half.config, rng=0)
    for name, x in half.parameters.items():
        whole.parameters[name] = x.astype(np.float32)
    ids = random_ids((1, 5))
    np.testing.assert_array_equal(half(ids, rng=0).logits, whole(ids, rng=0).logits)
    found = [m.generate(ids, max_new_tokens=4, rng=0) for m in (half, whole)]
    np.testing.assert_array_equal(*found)
