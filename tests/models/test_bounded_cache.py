"""Texts longer than the cache: `cache_length` and `cache_drop`."""

import itertools
from functools import partial

import numpy as np
import pytest
from reference.decoding import oldest_kept
from small_models import POSITIONS, decoded, language_model, random_ids, randomise, small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c import num_threads, ops
from reformer_c.models.decoder import Decoder, cache_bytes
from reformer_c.models.inputs import Call
from reformer_c.models.rules import Rules
from reformer_c.models.sources import UncachedSource
from reformer_c.models.strategies import beam_search
from reformer_c.ops import decoding

# positions and the kinds of layers that may be alone with them
ENDLESS = [
    *itertools.product(["sinusoidal", "none"], ["local", "full", "full_shared", "lsh"]),
    ("rotary", "local"),
    ("rotary", "full"),
]
MIXED = ["local", "lsh", "full", "full_shared"]
BOUND = {"cache_length": 12, "cache_drop": 5}


def endless_model(kinds=("lsh",), positions="sinusoidal", dtype=np.float64, **changes):
    fields = {"attn_layers": list(kinds), "attention_scope": "bucket", **POSITIONS[positions]}
    return language_model(dtype, **fields | changes)


def decoder_of(model, length, drop, **changes):
    begin = model._beginning(Call(seed=5, num_buckets=4, **changes))
    return Decoder(begin, model.head, length, drop=drop)


def test_the_oldest_token_is_that_of_a_list_that_forgets():
    for length, drop in itertools.product(range(1, 8), range(1, 8)):
        expected = oldest_kept(40, length, min(drop, length))
        found = [decoding.oldest_kept(t + 1, length, min(drop, length)) for t in range(40)]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("positions", "kind"), ENDLESS)
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("prompt", [1, 7, 12, 30])
def test_a_layer_attends_to_what_is_kept_at_its_positions(positions, kind, reversible, prompt):
    """The keys and values of a model's only layer depend on no other tokens: each step is the
    forward pass over the tokens that are kept, with their positions in the whole text."""
    model = endless_model([kind], positions, reversible=reversible, local_attn_chunk_length=3)
    ids = random_ids((1, 61))
    found = decoded(model, ids, prompt, rng=5, **BOUND)
    whole = decoded(model, ids, prompt, rng=5)
    # the prompt is processed as a whole
    np.testing.assert_array_equal(found[:, 0], whole[:, 0])
    if kind == "local":
        np.testing.assert_array_equal(found, whole)
        return
    oldest = oldest_kept(61, *BOUND.values())
    for t in range(prompt, 61):
        kept = np.arange(oldest[t], t + 1)
        expected = model(ids[:, kept], position_ids=kept, rng=5).logits[:, -1]
        assert_close(found[:, t - prompt + 1], expected, "replay")
    assert not np.allclose(found[:, -1], whole[:, -1])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"attention_mask": np.arange(20) >= [[0], [13]]},
        {"weights": "int8", "cache_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_text_that_fits_is_what_it_is_without_a_bound(positions, scope, options):
    model = endless_model(MIXED, positions, attention_scope=scope)
    texts = partial(model.generate, random_ids((2, 20)), max_new_tokens=12, rng=0, **options)
    expected = texts()
    for length in (32, 33, 1000):
        np.testing.assert_array_equal(texts(cache_length=length), expected)
    np.testing.assert_array_equal(texts(cache_length=31)[:, :31], expected[:, :31])


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_a_row_is_what_it_is_alone(scope, duplicates, options):
    model = endless_model(
        MIXED, attention_scope=scope, lsh_allow_duplicate_attention=duplicates, num_buckets=None
    )
    ids, mask = random_ids((3, 30)), np.ones((3, 30), int)
    mask[0, :23], mask[1, :9] = 0, 0
    texts = partial(model.generate, rng=0, max_new_tokens=60, eos_token_id=None, **BOUND, **options)
    together = texts(ids, mask)
    for row, own in enumerate(mask):
        alone = texts(ids[row, own == 1])
        np.testing.assert_array_equal(alone[0, own.sum() :], together[row, 30:])
    with num_threads(3):
        np.testing.assert_array_equal(texts(ids, mask), together)
    if "num_beams" not in options:
        shorter = texts(ids, mask, max_new_tokens=31)
        np.testing.assert_array_equal(shorter, together[:, :61])
        steps = model.stream(
            ids, mask, rng=0, max_new_tokens=10**15, eos_token_id=None, **BOUND, **options
        )
        found = np.stack(list(itertools.islice(steps, 60)), axis=1)
        np.testing.assert_array_equal(found, together[:, 30:])


@pytest.mark.parametrize("kind", ["full", "full_shared", "lsh"])
def test_beams_have_caches_of_their_own(kind):
    """A search whose logits are forward passes over the tokens that each beam keeps."""
    model = endless_model([kind])
    oldest = oldest_kept(80, *BOUND.values())

    def next_logits(ids, prompt_index):
        kept = np.arange(oldest[ids.shape[1] - 1], ids.shape[1])
        return model(ids[:, kept], position_ids=kept, rng=5).logits[:, -1]

    options = {"num_beams": 4, "max_new_tokens": 60, "eos_token_id": None}
    ids = random_ids((1, 9))
    rules = Rules(model.generation_config.resolved(options, 9, 1000, 13))
    (expected,) = beam_search(UncachedSource(next_logits), ids, rules, [np.random.default_rng(0)])
    found = model.generate(ids, rng=5, **options, **BOUND)
    np.testing.assert_array_equal(found[0, 9:], expected[0])


@pytest.mark.parametrize("kind", ["full", "lsh"])
def test_quantized_weights_give_what_the_rounded_weights_give(kind):
    model = endless_model([kind])
    ids = random_ids((2, 50))
    quantized = decoded(model, ids, 7, rng=5, weights="int8", **BOUND)
    for name, weight in model.parameters.items():
        if weight.ndim == 2 and "embeddings" not in name:
            weight[...] = ops.dequantize(ops.quantize(weight, "int8"), weight.dtype)
    rounded = decoded(model, ids, 7, rng=5, **BOUND)
    # the prompt has the model's own weights, and what is kept of it is forgotten in time
    assert_close(quantized[:, 20:], rounded[:, 20:], "replay")


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_the_cache_does_not_grow(scope):
    model = endless_model(MIXED, attention_scope=scope)
    decoder = decoder_of(model, 100, 30)
    decoder.start(list(random_ids((2, 7))))
    expected = model.cache_bytes(10**9, batch=2, cache_length=100)
    arrays = [array for cache in decoder.caches for array in cache._arrays()]
    for _ in range(300):
        decoder.step(np.arange(2), np.array([3, 4]))
    assert decoder.nbytes == expected == sum(array.nbytes for array in arrays)
    again = [array for cache in decoder.caches for array in cache._arrays()]
    assert all(one is other for one, other in zip(arrays, again, strict=True))
    assert expected == 2 * cache_bytes(model.config, 100, itemsize=8)
    assert model.cache_bytes(50, cache_length=100) == model.cache_bytes(50)


@pytest.mark.parametrize("prompt", [1, 150, 450])
def test_a_cap_cuts_the_tokens_that_are_kept(isa, dtype, rng, prompt):
    """As if the text began with the oldest of them: segments are counted from there."""
    t, h, d, c, length, drop = 700, 2, 5, 12, 300, 90
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    x, norm = draw(1, t, c), (1 + 0.1 * draw(c), 0.1 * draw(c))
    weights = draw(h * d, c), None, draw(h * d, c), draw(c, h * d)
    cache = partial(
        ops.AttentionCache, 1, h, d, scope="bucket", rotations=draw(h, d, 2, 1), num_buckets=(2,),
        bucket_cap=64, dtype=dtype,
    )  # fmt: skip

    def filled(cache, first, last):
        n = ops.layer_norm(x[:, first:last], *norm, eps=1e-12)
        q, v = (
            ops.linear(n, w).reshape(1, -1, h, d).swapaxes(1, 2) for w in (weights[0], weights[2])
        )
        buckets = ops.lsh_hash(q, num_hashes=2, num_buckets=2, rotations=cache.rotations)
        cache.fill(np.arange(1), q, v, buckets)
        return cache

    def after(cache, at, position):
        y = np.zeros((1, c), dtype)
        cache.step(y, x[:, at].copy(), norm, weights, np.arange(1), np.array([position]))
        return y

    bounded = filled(cache(longest=length, drop=drop), 0, prompt)
    oldest, shares = oldest_kept(t, length, drop), []
    for at in range(prompt, t):
        found = after(bounded, at, at)
        if at % 97 in (0, 1) or oldest[at] != oldest[at - 1]:
            own = filled(cache(longest=length), oldest[at], at)
            assert_close(found, after(own, at, at - oldest[at]), "replay")
            assert bounded.cut_share == own.cut_share
            shares.append(own.cut_share)
    assert max(shares) > 0.0


def test_positions_may_be_larger_than_a_32_bit_number(rng):
    """What is kept depends on the length only through what does not fit."""
    c, h, d = 6, 1, 4
    x, norm = rng.standard_normal((40, 1, c)), (np.ones(c), np.zeros(c))
    w, wo = rng.standard_normal((h * d, c)), rng.standard_normal((c, h * d))
    rotations = rng.standard_normal((h, d, 2, 1))
    for scope in ("local", "full", "bucket"):
        hashing = {"rotations": rotations} if scope == "bucket" else {}
        outputs = []
        for start in (12, 12 * 2**40):
            cache = ops.AttentionCache(
                1, h, d, scope=scope, longest=6, drop=4, chunk_length=3, dtype=np.float64, **hashing
            )
            y = np.zeros((40, 1, c))
            for i, token in enumerate(x):
                at = np.array([start + i])
                wk = None if hashing else w
                cache.step(y[i], token, norm, (w, wk, w, wo), np.array([0]), at)
            outputs.append(y[12:])
        np.testing.assert_array_equal(*outputs)


def test_the_decoder_of_an_encoder_decoder_writes_without_end():
    fields = {"attn_layers": ["full"], **POSITIONS["none"]}
    config = small_config(is_decoder=False, **fields)
    model = randomise(rc.ReformerEncoderDecoder(config, rng=0, dtype=np.float64))
    ids = random_ids((3, 11))
    texts = partial(model.generate, ids, max_new_tokens=50, eos_token_id=None, rng=4)
    for extra in ({}, {"num_beams": 3}):
        found = texts(**BOUND, **extra)
        np.testing.assert_array_equal(texts(cache_length=51, **extra), texts(**extra))
        for row in range(3):
            alone = model.generate(
                ids[row : row + 1], max_new_tokens=50, eos_token_id=None, rng=4, **BOUND, **extra
            )
            np.testing.assert_array_equal(alone[0], found[row])
    written = texts(**BOUND)
    oldest = oldest_kept(51, *BOUND.values())
    for t in range(50):
        kept = written[:, oldest[t] : t + 1]
        logits = model(ids, decoder_input_ids=kept).logits[:, -1]
        np.testing.assert_array_equal(logits.argmax(axis=-1), written[:, t + 1])


def test_options_are_kept_in_the_folder_and_a_new_length_has_its_own_drop(tmp_path):
    pytest.importorskip("safetensors")
    model = endless_model(["full"])
    model.generation_config.cache_length, model.generation_config.cache_drop = 12, 5
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path, dtype=np.float64)
    texts = partial(opened.generate, [[3, 4]], max_new_tokens=50, eos_token_id=None)
    np.testing.assert_array_equal(texts(), texts(**BOUND))
    np.testing.assert_array_equal(texts(cache_length=None), texts(cache_length=1000))
    np.testing.assert_array_equal(texts(cache_length=24), texts(cache_length=24, cache_drop=3))
    np.testing.assert_array_equal(texts(cache_length=4), texts(cache_length=4, cache_drop=1))


@pytest.mark.parametrize("positions", ["two axes", "one axis", "three axes", "table"])
def test_learned_positions_end_where_they_end(monkeypatch, positions):
    model = endless_model(["lsh"], positions)
    monkeypatch.setattr("reformer_c.models.body.Pass.forward", lambda *_: pytest.fail("it began"))
    for extra in ({}, BOUND):
        with pytest.raises(ValueError, match=r"^max_new_tokens must be at most 39 \(positions\)"):
            model.generate([[1, 2, 3]], max_new_tokens=40, **extra)


def test_what_does_not_fit_is_refused_before_any_work(monkeypatch):
    model = endless_model(["lsh"])
    monkeypatch.setattr("reformer_c.models.body.Pass.forward", lambda *_: pytest.fail("it began"))
    for options, error, words in [
        ({"cache_length": 0}, ValueError, "cache_length must be an integer >= 1, got 0"),
        ({"cache_length": 2.5}, TypeError, "cache_length must be an integer"),
        ({"cache_length": 8, "cache_drop": 0}, ValueError,
         "cache_drop must be an integer >= 1, got 0"),
        ({"cache_length": 8, "cache_drop": 9}, ValueError,
         "cache_drop must be at most cache_length=8, got 9"),
        ({"cache_drop": 9}, ValueError, "cache_drop must be None without cache_length, got 9"),
        ({"cache_length": 8, "use_cache": False}, ValueError,
         "cache_length must be None with use_cache=False"),
    ]:  # fmt: skip
        with pytest.raises(error, match=f"^{words}"):
            model.generate([[1, 2]], **options)
    for drop, error in ((0, ValueError), (9, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^drop must be"):
            ops.AttentionCache(1, 1, 4, scope="full", longest=8, drop=drop)
