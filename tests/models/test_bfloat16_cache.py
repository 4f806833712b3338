"""Decoding with keys and values that are kept as bfloat16 numbers."""

import numpy as np
import pytest
from reference.bfloat16 import rounded
from small_models import (
    decoded,
    language_model,
    long_config,
    padding_mask,
    random_ids,
    randomise,
    small_config,
)
from tolerances import assert_close, tolerance

from reformer_c import num_threads, ops
from reformer_c.models.decoder import Decoder
from reformer_c.models.encoder_decoder import ReformerEncoderDecoder
from reformer_c.models.inputs import Call
from reformer_c.models.text_decoder import decoder_call_of, encode

KINDS = [
    {},
    {"attention_scope": "bucket", "softcap": 1.0},
    {"attention_scope": "bucket", "lsh_allow_duplicate_attention": False},
    {"attn_layers": ["full", "full_shared", "lsh"], "softcap": 1.0},
    {"attn_layers": ["local", "full"], "position_embedding_type": "rotary"},
    {"reversible": False, "matmul_precision": "medium", "local_shared_qk": True},
    {"attn_layers": ["hash", "local"], "hash_local_window": 40},
]


@pytest.mark.parametrize("d", [1, 15, 16, 17, 64, 65, 130])
@pytest.mark.parametrize("shared", [True, False])
def test_what_is_appended_is_rounded(isa, dtype, rng, d, shared):
    """In vectors of every width: keys and values are the other cache's, rounded."""
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    whole, halves = (
        ops.AttentionCache(2, 2, d, scope="full", longest=9, shared_qk=shared, dtype=dtype,
                           cache_dtype=cache_dtype)
        for cache_dtype in (None, "bfloat16")
    )  # fmt: skip
    prompt, norm = draw(2, 2, 2, 4, d), (draw(12), draw(12))
    weights = draw(2 * d, 12), None if shared else draw(2 * d, 12), draw(2 * d, 12), draw(12, 2 * d)
    rows = np.arange(2)
    for cache in (whole, halves):
        cache.fill(rows, *prompt, None)
    for i in range(4, 9):
        x, outputs = draw(2, 12), np.zeros((2, 2, 12), dtype)
        for cache, y in zip((whole, halves), outputs, strict=True):
            cache.step(y, x, norm, weights, rows, np.full(2, i))
        for name in ("keys", "values"):
            exact, kept = getattr(whole, name), getattr(halves, name)
            assert kept.dtype == np.uint16
            np.testing.assert_array_equal(ops.from_bfloat16(kept, dtype=dtype), rounded(exact))
        assert_close(outputs[1], outputs[0], "bfloat16_cache")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_cache_of_bfloat16_is_as_exact_as_stated(isa, dtype, changes, weights):
    model = language_model(dtype, **changes)
    ids = random_ids((2, 28))
    exact, found = (
        decoded(model, ids, 7, rng=5, weights=weights, cache_dtype=cache_dtype)
        for cache_dtype in (None, "bfloat16")
    )
    np.testing.assert_array_equal(found[:, 0], exact[:, 0])  # the prompt's
    assert (found[:, 1:] != exact[:, 1:]).any(axis=-1).all()
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < tolerance("model_bfloat16_cache")


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 2}, {}], ids=str)
def test_beams_and_batches_with_a_cache_of_bfloat16_are_those_of_texts_alone(changes, options):
    model = language_model(np.float32, **changes)
    ids, mask = random_ids((3, 20)), np.ones((3, 20), int)
    mask[0, :7] = 0
    options = options | {"max_new_tokens": 9, "cache_dtype": "bfloat16", "rng": 1}
    options["eos_token_id"] = None
    found = []
    for n in (1, 3):
        with num_threads(n):
            found.append(model.generate(ids, mask, **options))
    np.testing.assert_array_equal(*found)
    alone = [model.generate(ids[i : i + 1, mask[i] > 0], **options)[:, -9:] for i in range(3)]
    np.testing.assert_array_equal(found[0][:, -9:], np.concatenate(alone))


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_threads_do_not_change_the_bits_of_a_cache_of_bfloat16(isa, changes):
    model = language_model(np.float32, **changes)
    ids, found = random_ids((2, 30)), []
    for n in (1, 3):
        with num_threads(n):
            found.append(decoded(model, ids, 7, rng=5, cache_dtype="bfloat16"))
    np.testing.assert_array_equal(*found)


def test_a_cache_of_bfloat16_takes_the_memory_stated():
    model = language_model(**long_config(1000, attn_layers=["local", "lsh", "full"]))
    decoder = Decoder(model._beginning(Call()), model.head, 700, cache_dtype="bfloat16")
    decoder.start([np.arange(9)])
    assert decoder.nbytes == model.cache_bytes(700, prompt=9, cache_dtype="bfloat16")
    assert decoder.nbytes < model.cache_bytes(700, prompt=9) / 2
    with pytest.raises(ValueError, match=r"^cache_dtype must be 'bfloat16' or None, got 'int8'"):
        model.cache_bytes(700, cache_dtype="int8")


def test_another_cache_dtype_is_refused_before_any_work(monkeypatch):
    model = language_model()
    monkeypatch.setattr("reformer_c.models.body.Pass.forward", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match=r"^cache_dtype must be 'bfloat16' or None, got 'float16'"):
        model.generate([[1, 2]], cache_dtype="float16")
    with pytest.raises(ValueError, match=r"^cache_dtype must be None with use_cache=False"):
        model.generate([[1, 2]], cache_dtype="bfloat16", use_cache=False)


# ---- encoder-decoders ----


def encoder_decoder(dtype=np.float64, **changes):
    config = small_config(is_decoder=False, **changes)
    return randomise(ReformerEncoderDecoder(config, rng=0, dtype=dtype))


def test_a_cache_of_bfloat16_holds_the_keys_and_values_of_both_sides():
    model = encoder_decoder(attn_layers=["local", "lsh", "full"], attention_scope="bucket")
    ids, mask = random_ids((3, 13)), padding_mask(3, 13)

    def logits(cache_dtype, **more):
        seen = []

        def forced(text, z):
            seen.append(z)
            return np.arange(len(z))

        options = more | {"cache_dtype": cache_dtype, "logits_processor": forced}
        model.generate(ids, mask, eos_token_id=None, rng=4, max_new_tokens=12, **options)
        return np.array(seen)

    exact, rounded = logits(None), logits("bfloat16")
    first = len(ids)  # the prompt's own
    np.testing.assert_array_equal(rounded[:first], exact[:first])
    assert (rounded[first:] != exact[first:]).any(axis=-1).all()
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert error < tolerance("model_bfloat16_cache")
    for n in (1, 3):
        with num_threads(n):
            np.testing.assert_array_equal(logits("bfloat16"), rounded)
    assert logits("bfloat16", num_beams=3).shape[1] == exact.shape[1]


def test_encoder_states_are_cached_in_half_the_memory():
    model = encoder_decoder(dtype=np.float32)
    ids, sizes = random_ids((3, 13)), []
    for cache_dtype in (None, "bfloat16"):
        encoder_pass, states = model._begin_encoder(Call(input_ids=ids))
        states.row_keys = ["0", "1", "2"]
        encode(encoder_pass, states)
        call = decoder_call_of(Call(input_ids=np.ones((3, 1), int)), 0, states)
        prepared = model.decoder._prepare(
            call, None, {"max_new_tokens": 3, "eos_token_id": None, "cache_dtype": cache_dtype}
        )
        model.decoder._write(prepared, None)
        sizes.append(sum(head.nbytes for heads in states.heads.values() for head in heads))
    assert sizes[0] == 2 * sizes[1] > 0
