"""Kinds of positions without weights: sines and cosines, rotary ones, and none. Texts may be longer
than max_position_embeddings."""

import numpy as np
import pytest
from reference import embedding as reference_embedding
from reference import model as reference
from small_models import POSITIONS, random_ids, randomise, rotations_for, small_config
from tolerances import assert_close

from reformer_c import ReformerConfig, ReformerEncoderDecoder, num_threads
from reformer_c.layers.positions import SinusoidalPositions
from reformer_c.layers.randomness import Dropout
from reformer_c.layers.sublayer import Sublayer
from reformer_c.models.model import ReformerModel, ReformerModelWithLMHead

KINDS = ["sinusoidal", "rotary", "none"]
T = 100  # small_config has 42 positions


def language_model(kind, dtype=np.float64, **changes):
    config = small_config(**POSITIONS[kind] | changes)
    return randomise(ReformerModelWithLMHead(config, rng=0, dtype=dtype))


@pytest.mark.parametrize("c", [1, 2, 7, 256])
@pytest.mark.parametrize("t", [0, 1, 255, 256, 257, 600])
def test_sines_and_cosines_match_the_reference(dtype, rng, c, t):
    positions = rng.integers(0, 10**6, t)
    kind = SinusoidalPositions(Dropout(0.0, lambda purpose: 0), c, dtype, 0.5)
    vectors, _ = kind.forward(positions)
    assert vectors.shape == (t, c) and vectors.dtype == dtype
    expected = 0.5 * reference_embedding.sinusoidal_positions(positions, c)
    # angles are float64 in both
    assert_close(vectors, expected, "rounding", scale=10**6 if dtype == np.float64 else 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_longer_than_the_configurations_positions_matches_the_reference(kind, dtype):
    model = language_model(kind, dtype)
    ids, rotations = random_ids((2, T)), rotations_for(model.config, 2)
    logits = model(ids, rotations=rotations).logits
    expected = reference.language_model_logits(
        model.parameters, model.config, ids, hashing=rotations
    )
    assert_close(logits, expected, "model_forward", dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_no_weights_and_no_gradients_of_positions(kind):
    model = language_model(kind)
    ids = random_ids((2, T))
    _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    assert gradients.keys() == model.parameters.keys()
    assert not any("position" in name for name in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_gives_the_same_bits(kind):
    model = language_model(kind, np.float32, hidden_dropout_prob=0.2)
    ids, results = random_ids((2, T)), []
    for n in (1, 3):
        with num_threads(n):
            loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
        results.append((float(loss), {name: g.tobytes() for name, g in gradients.items()}))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_continued_past_the_configurations_positions(kind):
    model = language_model(kind, attention_scope="bucket")
    options = dict(max_new_tokens=60, eos_token_id=None, do_sample=True, rng=3)
    prompt = random_ids((2, 40))
    ids = model.generate(prompt, **options)
    assert ids.shape == (2, 100)
    np.testing.assert_array_equal(ids, model.generate(prompt, **options, use_cache=False))


@pytest.mark.parametrize("kind", [kind for kind in POSITIONS if kind not in KINDS])
def test_learned_positions_end_where_their_tables_do(kind):
    model = language_model(kind)
    with pytest.raises(ValueError, match=r"^input_ids must have at most 42 tokens \(positions\)"):
        model(random_ids((1, 43)))
    with pytest.raises(ValueError, match=r"^max_new_tokens must be at most 2 \(positions\)"):
        model.generate(random_ids((1, 40)), max_new_tokens=3)


def test_without_positions_position_ids_change_nothing():
    model = language_model("none")
    ids = random_ids((2, 30))
    moved = model(ids, position_ids=np.arange(30)[::-1] + 10**9, rng=0).logits
    np.testing.assert_array_equal(moved, model(ids, rng=0).logits)
    for kind in ("sinusoidal", "rotary"):
        model = language_model(kind)
        moved = model(ids, position_ids=np.arange(30)[::-1] + 10**9, rng=0).logits
        assert np.abs(moved - model(ids, rng=0).logits).max() > 0.01


def test_rotary_positions_tell_differences_only():
    model = language_model("rotary")
    ids = random_ids((2, 30))
    moved = model(ids, position_ids=np.arange(30) + 1000, rng=0).logits
    assert_close(moved, model(ids, rng=0).logits, "model_forward")


def test_position_ids_are_bounded_by_the_integers_that_floats_hold():
    model = language_model("sinusoidal")
    largest = np.full((1, 5), 2**53 - 1)
    assert np.isfinite(model(random_ids((1, 5)), position_ids=largest, rng=0).logits).all()
    for wrong in [largest + 1, -largest, np.full((1, 5), 2**64 - 1, np.uint64)]:
        with pytest.raises(ValueError, match=r"^position_ids must be in \[0, 9007199254740992\)"):
            model(random_ids((1, 5)), position_ids=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_planned_without_the_tables(kind):
    table, plain = (language_model(name).memory(42) for name in ("table", kind))
    # of float64
    assert table.gradients - plain.gradients == 42 * 16 * 8
    assert table.streams == plain.streams
    assert language_model(kind).memory(4200).streams > 50 * plain.streams


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_decoder_reads_and_writes_past_the_configurations_positions(kind):
    encoder = small_config(is_decoder=False, attn_layers=["local"], **POSITIONS[kind])
    decoder = small_config(attn_layers=["local"], **POSITIONS[kind])
    model = ReformerEncoderDecoder(encoder, decoder=decoder, rng=0)
    ids, labels = random_ids((2, 50)), random_ids((2, 60), 1)
    assert np.isfinite(model.loss(ids, labels=labels, rng=0))
    written = model.generate(ids, max_new_tokens=50, eos_token_id=None, rng=0)
    assert written.shape[1] > 50


def test_the_field_is_written_where_it_is_not_the_default():
    assert "position_embedding_type" not in ReformerConfig().to_dict()
    config = ReformerConfig(position_embedding_type="none", hidden_size=100)
    assert ReformerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"^position_embedding_type must be one of absolute, "):
        ReformerConfig(position_embedding_type="relative_key")


def test_rotary_positions_need_a_layer_that_they_rotate():
    message = r"^position_embedding_type must not be 'rotary' without a local, full or hash layer"
    with pytest.raises(ValueError, match=message):
        ReformerConfig(position_embedding_type="rotary", attn_layers=["lsh", "full_shared"])
    for wrong in (0, -1.0, "x"):
        with pytest.raises((TypeError, ValueError), match=r"^rope_theta must be "):
            ReformerConfig(rope_theta=wrong)


@pytest.mark.parametrize("prompt", [1, 3, 40])
@pytest.mark.parametrize("padded", [False, True])
def test_rotary_positions_are_those_of_the_text_in_every_step(prompt, padded):
    """Batches of prompts of different lengths, and a window that has wrapped around in its ring."""
    model = language_model("rotary", attn_layers=["local", "full", "full_shared", "hash"])
    ids, mask = random_ids((2, prompt)), np.ones((2, prompt), int)
    if padded:
        mask[0, : prompt // 2] = 0
    options = dict(attention_mask=mask, max_new_tokens=30, eos_token_id=None, rng=3)
    for more in ({"do_sample": True}, {"num_beams": 3}):
        found = model.generate(ids, **options, **more)
        expected = model.generate(ids, **options, **more, use_cache=False)
        np.testing.assert_array_equal(found, expected)


def test_rotary_positions_are_the_same_in_stretches_of_a_long_text(monkeypatch):
    """Local layers compute long texts in stretches, whose rows are not those of the whole text."""
    config = small_config(attn_layers=["local"] * 2, is_decoder=False, **POSITIONS["rotary"])
    model = randomise(ReformerModel(config, rng=0, dtype=np.float64))
    ids = random_ids((2, 602))
    whole = model(ids).last_hidden_state
    assert_close(whole, reference.body(model.parameters, config, ids), "model_forward")
    monkeypatch.setattr(Sublayer, "rows_at_a_time", staticmethod(lambda c: 16))
    assert_close(model(ids).last_hidden_state, whole, "replay")
