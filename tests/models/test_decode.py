"""Decoding with a cache, compared with a forward pass over the whole text."""

import numpy as np
import pytest
from reference import decoding as reference
from reference.bfloat16 import rounded
from small_models import decoded, language_model, long_config, random_ids
from tolerances import assert_close, tolerance

from reformer_c import num_threads, ops
from reformer_c.layers.randomness import draw_seed
from reformer_c.models.decoder import Decoder, cache_bytes, num_buckets_of
from reformer_c.models.inputs import Call


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prompt", [1, 900, 2000])
def test_with_whole_buckets_every_step_is_the_full_forward_pass(dtype, prompt):
    """A ragged length; a causal model's forward pass gives the logits of all steps."""
    t = 4100
    model = language_model(dtype, **long_config(t, attention_scope="bucket"))
    ids = random_ids((1, t - 1))
    logits = decoded(model, ids, prompt, rng=5)
    _, rotations = rotations_of(model, t, 5)
    whole = model(ids, rotations=rotations).logits[:, prompt - 1 :]
    assert_close(logits, whole, "model_forward", dtype)
    assert np.abs(whole).max() > 1


def rotations_of(model, longest, seed):
    """The rotations that generate draws from a seed."""
    call = Call(seed=draw_seed(seed), num_buckets=num_buckets_of(model.config, 1))
    begin = model._beginning(call)
    decoder = Decoder(begin, model.head, longest)
    decoder.start([np.array([0])])
    found = [cache.rotations for cache in decoder.caches if cache.hashes]
    return decoder, found


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 11, 12])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_prompts_around_a_chunk_s_length(prompt, before):
    model = language_model(attention_scope="bucket", local_num_chunks_before=before)
    ids = random_ids((2, 30))
    logits = decoded(model, ids, prompt, rng=5)
    _, rotations = rotations_of(model, 31, 5)
    whole = model(ids, rotations=rotations).logits[:, prompt - 1 :]
    assert_close(logits, whole, "replay")


def test_a_longer_text_never_changes_its_beginning():
    model = language_model(**long_config(1000, attention_scope="bucket"))
    _, rotations = rotations_of(model, 1000, 0)
    ids = random_ids((1, 1000))
    whole = model(ids, rotations=rotations).logits
    for t in [1, 15, 16, 17, 500, 999]:
        edited = ids.copy()
        edited[:, t:] = (edited[:, t:] + 1) % 13
        for other in (model(edited, rotations=rotations), model(ids[:, :t], rotations=rotations)):
            assert_close(other.logits[:, :t], whole[:, :t], "replay")


def test_fixed_chunks_do_change_their_beginning():
    """The test above would fail with scope="chunk"."""
    model = language_model(**long_config(1000))
    _, rotations = rotations_of(model, 1000, 0)
    ids = random_ids((1, 1000))
    edited = ids.copy()
    edited[:, 500:] = (edited[:, 500:] + 1) % 13
    one, two = (model(x, rotations=rotations).logits[:, :500] for x in (ids, edited))
    assert (np.abs(one - two).max(axis=-1) > 1e-3).mean() > 0.5


@pytest.mark.parametrize(
    "kinds", [["local"], ["local", "local", "local"], ["full", "full_shared", "local"]]
)
@pytest.mark.parametrize("changes", [{}, {"reversible": False}, {"local_shared_qk": True}], ids=str)
def test_layers_that_do_not_hash_give_what_the_full_forward_gives(kinds, changes):
    model = language_model(**long_config(400, attn_layers=kinds, **changes))
    ids = random_ids((2, 399))
    for prompt in [1, 16, 40]:
        logits = decoded(model, ids, prompt)
        assert_close(logits, model(ids).logits[:, prompt - 1 :], "replay")


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_beams_and_batches_are_those_without_a_cache(scope, options):
    # in scope "chunk" the same only while the text is one chunk
    fields = long_config(200, attention_scope=scope, lsh_attn_chunk_length=64)
    model = language_model(**fields)
    ids, mask = random_ids((3, 20)), np.ones((3, 20), int)
    mask[0, :7] = 0
    if scope == "bucket":
        ids, mask = random_ids((3, 90)), np.ones((3, 90), int)
        mask[0, :40] = mask[1, :7] = 0
    options = options | {"attention_mask": mask, "max_new_tokens": 40, "rng": 0}
    cached = model.generate(ids, **options)
    assert np.array_equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize(
    "scope", ["local", "local_shared", "chunk", "bucket", "full", "full_shared"]
)
@pytest.mark.parametrize(("prompt", "sharing"), [(1, 4), (5, 2), (8, 1), (30, 2)])
@pytest.mark.parametrize(
    ("softcap", "across", "duplicates"),
    [(None, True, True), (0.5, True, False), (None, False, True), (None, False, False)],
)
@pytest.mark.parametrize(
    ("cache_dtype", "longest", "drop"),
    [(None, 70, None), ("bfloat16", 20, 5), (None, 9, 9), ("bfloat16", 70, None)],
)
def test_one_layer_matches_the_reference(
    isa, dtype, rng, scope, prompt, sharing, softcap, across, duplicates, cache_dtype, longest, drop
):
    t, b, h, hk, d, c, m, before, rounds = 70, 2, 4, sharing, 5, 12, 8, 1, 3
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    x, norm = draw(b, t, c), (1 + 0.1 * draw(c), 0.1 * draw(c))
    wq, wk, wv, wo = draw(h * d, c), draw(hk * d, c), draw(hk * d, c), draw(c, h * d)
    scope, shared = scope.removesuffix("_shared"), scope not in ("local", "full")
    rotations = draw(h, d, rounds, 3) if scope in ("chunk", "bucket") else None
    expected = reference.outputs(
        x, norm, (wq, None if shared else wk, wv, wo), rotations, (2, 4), scope=scope,
        h=h, m=m, before=before, softcap=softcap, across=across, duplicates=duplicates,
        length=longest, drop=drop,
        cached=np.asarray if cache_dtype is None else lambda x: np.float64(rounded(x)),
    )  # fmt: skip
    cache = ops.AttentionCache(
        b, h, d, num_key_value_heads=hk, scope=scope, longest=longest, drop=drop,
        rotations=rotations, num_buckets=(2, 4), chunk_length=m, num_chunks_before=before,
        softcap=softcap, dtype=dtype, attend_across_buckets=across,
        allow_duplicate_attention=duplicates, shared_qk=shared and rotations is None,
        cache_dtype=cache_dtype,
    )  # fmt: skip
    rows = np.arange(b)
    # in float32 the numbers that are rounded differ by an ulp, and some on the other side of a tie
    kind = "bfloat16_cache" if cache_dtype and dtype == np.float32 else "replay"
    key = None if shared else wk
    filled = reference.projections(x[:, :prompt], norm, wq, key, wv, rotations, (2, 4), h)
    cache.fill(rows, *filled)
    for i in range(prompt, t):
        y = np.zeros((b, c), dtype)
        weights = (wq, None if shared else wk, wv, wo)
        cache.step(y, x[:, i].copy(), norm, weights, rows, np.full(b, i))
        assert_close(y, expected[:, i], kind)


def test_one_bucket_is_the_same_within_and_across_buckets(isa, rng):
    """The window reaches tokens of the own bucket around the circle, too."""
    t, c, d = 9, 3, 2
    x, norm = rng.standard_normal((1, t, c)), (np.ones(c), np.zeros(c))
    weights = (rng.standard_normal((d, c)), None, rng.standard_normal((d, c)), np.ones((c, d)))
    results = []
    for across in (True, False):
        cache = ops.AttentionCache(
            1, 1, d, scope="chunk", longest=t, rotations=np.zeros((1, d, 1, 1)), num_buckets=(2,),
            chunk_length=3, num_chunks_before=0, attend_across_buckets=across,
            allow_duplicate_attention=False, dtype=np.float64,
        )  # fmt: skip
        y = np.zeros((t, 1, c))
        for i in range(t):
            cache.step(y[i], x[:, i].copy(), norm, weights, np.arange(1), np.full(1, i))
        results.append(y)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_a_token_alone_in_its_buckets_is_its_value(isa, rng, rounds):
    """Equal to the forward pass bit for bit, in float32 too."""
    d = 8
    wv = rng.standard_normal((d, d)).astype(np.float32)
    x, one, zero = rng.standard_normal((1, d)).astype(np.float32), np.ones(d), np.zeros(d)
    norm = (one.astype(np.float32), zero.astype(np.float32))
    eye = np.eye(d, dtype=np.float32)
    cache = ops.AttentionCache(
        1, 1, d, scope="bucket", longest=4, num_buckets=(4,), chunk_length=4, dtype=np.float32,
        rotations=rng.standard_normal((1, d, rounds, 2)).astype(np.float32),
    )  # fmt: skip
    y = np.zeros((1, d), np.float32)
    cache.step(y, x, norm, (eye, None, wv, eye), np.arange(1), np.zeros(1, int))
    np.testing.assert_array_equal(y, ops.linear(ops.layer_norm(x, *norm, eps=1e-12), wv))


def test_workers_and_other_rows_do_not_change_a_row(isa, rng):
    model = language_model(np.float32, **long_config(300, attention_scope="bucket"))
    ids = random_ids((6, 200))
    one, more = [], []
    for n, found in [(1, one), (3, more)]:
        with num_threads(n):
            list(model.stream(ids, max_new_tokens=20, rng=0,
                              logits_processor=lambda ids, z: found.append(z) or z))  # noqa: B023 # fmt: skip
    assert np.array_equal(one, more)


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_the_cache_is_as_large_as_stated(scope):
    model = language_model(**long_config(1000, attention_scope=scope))
    decoder, _ = rotations_of(model, 700, 0)
    assert decoder.nbytes == model.cache_bytes(700) == cache_bytes(model.config, 700, itemsize=8)
    assert 3 * decoder.nbytes == model.cache_bytes(700, batch=3)
    local = language_model(**long_config(1000, attn_layers=["local"]))
    assert local.cache_bytes(50) == local.cache_bytes(1000) == 2 * 2 * 32 * 6 * 8


@pytest.mark.parametrize("kind", ["local", "local_shared", "lsh", "full", "full_shared", "hash"])
def test_heads_that_share_values_make_the_cache_smaller(kind):
    shared = kind == "local_shared"
    fields = {"attn_layers": ["local" if shared else kind], "local_shared_qk": shared}
    fields |= {"num_attention_heads": 4}
    sizes = []
    for hk in (4, 1):
        model = language_model(**long_config(500, num_key_value_heads=hk, **fields))
        decoder, _ = rotations_of(model, 300, 0)
        assert decoder.nbytes == model.cache_bytes(300)
        sizes.append(decoder.nbytes)
    room = 32 if "local" in kind else 300
    arrays = 2 if kind in ("local", "full", "hash") else 1  # shared queries have all heads
    sums = 8 * 3 * 6 * (kind == "hash")
    assert sizes[0] - sizes[1] == 3 * arrays * room * 6 * 8 + sums


def test_a_cache_names_what_does_not_fit(rng):
    cache = ops.AttentionCache(1, 2, 3, scope="local", longest=9, chunk_length=4, dtype=np.float64)
    x, norm = np.zeros((1, 5)), (np.ones(5), np.zeros(5))
    w, wo, at = np.zeros((6, 5)), np.zeros((5, 6)), np.array([0])
    with pytest.raises(TypeError, match="wk belongs to layers without shared_qk"):
        cache.step(np.zeros((1, 5)), x, norm, (w, None, w, wo), at, at)
    with pytest.raises(ValueError, match="wq must have as many rows"):
        cache.step(np.zeros((1, 5)), x, norm, (w[:4], w, w, wo[:, :4]), at, at)
    with pytest.raises(ValueError, match="wv must have as many rows"):
        cache.step(np.zeros((1, 5)), x, norm, (w, w[:4], w[:4], wo), at, at)
    with pytest.raises(ValueError, match="keys must have hk that divides h = 3 of wq, got 2"):
        cache.step(np.zeros((1, 5)), x, norm, (np.zeros((9, 5)), w, w, np.zeros((5, 9))), at, at)
    with pytest.raises(IndexError, match="rows"):
        cache.step(np.zeros((1, 5)), x, norm, (w, w, w, wo), at + 1, at)


def test_a_cap_bounds_a_skewed_bucket_the_same_way_and_says_so():
    fields = long_config(700, attention_scope="bucket", bucket_cap=64, num_buckets=2)
    model = language_model(**fields)
    ids = random_ids((1, 699))
    with pytest.warns(UserWarning, match="bucket_cap=64 leaves out up to"):
        logits = decoded(model, ids, 300, rng=5)
    decoder, rotations = rotations_of(model, 700, 5)
    with pytest.warns(UserWarning, match="bucket_cap=64 leaves out up to"):
        whole = model(ids, rotations=rotations)
    assert_close(logits, whole.logits[:, 299:], "replay")
    assert min(whole.cut_shares) > 0.1
    with pytest.warns(UserWarning, match="leaves out"):
        decoder.start([ids[0]])
    np.testing.assert_allclose(decoder.cut_shares, whole.cut_shares)


def test_a_short_continuation_says_when_the_cap_begins_to_cut():
    fields = long_config(200, attention_scope="bucket", bucket_cap=64, num_buckets=2)
    model = language_model(**fields)
    ids = random_ids((1, 170))
    decoder, rotations = rotations_of(model, 200, 5)

    def largest(t):
        found = model(ids[:, :t], rotations=rotations, output_buckets=True).buckets
        return max(np.bincount(row).max() for layer in found for row in layer.reshape(-1, t))

    t = next(t for t in range(128, 170) if largest(t) == 128)  # two whole segments
    decoder.start([ids[0, :t]])
    assert max(decoder.cut_shares) == 0.0

    def go_on_until_cut():
        for token in ids[0, t:]:
            decoder.step(np.array([0]), np.array([token]))
            if max(decoder.cut_shares) > 0.0:
                return

    with pytest.warns(UserWarning, match="bucket_cap=64 leaves out up to"):
        go_on_until_cut()
    assert max(decoder.cut_shares) > 0.0


# ---- weights in fewer bits ----


@pytest.fixture(params=["int8", "bfloat16"])
def storage(request):
    return request.param


def round_weights(model, storage):
    """Replace the matrices by their dequantized values."""
    for name, weight in model.parameters.items():
        if weight.ndim == 2 and "embeddings" not in name:
            weight[...] = ops.dequantize(ops.quantize(weight, storage), weight.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_scope": "bucket", "softcap": 1.0},
        {"attention_scope": "bucket", "lsh_allow_duplicate_attention": False},
        {"attn_layers": ["full", "full_shared", "lsh"], "softcap": 1.0},
        {"attn_layers": ["local", "lsh"], "local_shared_qk": True},
        {"attn_layers": ["local", "lsh", "full"], "num_key_value_heads": 1},
        {"lsh_allow_duplicate_attention": False, "lsh_attend_across_buckets": False},
        {"attn_layers": ["local"], "hidden_act": "gelu", "apply_lm_head_bias": False},
        {"hidden_act": "prelu"},
        {"feed_forward_gated": True},
        {"feed_forward_gated": True, "hidden_act": "xielu"},
        {"matmul_precision": "medium"},
        {"attn_layers": ["hash", "hash"], "num_key_value_heads": 1, "hash_local_window": 30},
    ],
    ids=str,
)
def test_quantized_weights_give_what_the_rounded_weights_give(isa, dtype, storage, changes):
    model = language_model(dtype, **changes)
    ids = random_ids((2, 25))
    exact = decoded(model, ids, 7, rng=5)
    round_weights(model, storage)
    rounded = decoded(model, ids, 7, rng=5)
    quantized = decoded(model, ids, 7, rng=5, weights=storage)
    assert_close(quantized, rounded, "replay", dtype)
    # the option does something
    assert np.abs(exact - rounded).max() > 1e-3 * np.abs(rounded).max()


def test_the_prompt_has_the_models_own_weights(storage):
    model = language_model(np.float32)
    ids = random_ids((1, 12))
    plain, quantized = (decoded(model, ids, 9, rng=5, weights=w) for w in (None, storage))
    np.testing.assert_array_equal(plain[:, 0], quantized[:, 0])
    assert (plain[:, 1:] != quantized[:, 1:]).any(axis=-1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "attention_mask": np.arange(9) >= [[0], [4]]},
    ],
    ids=str,
)
def test_quantized_weights_in_batches_and_beams(storage, options):
    model = language_model(attention_scope="bucket")
    round_weights(model, storage)
    ids = random_ids((2, 9))
    for threads in (1, 3):
        with num_threads(threads):
            plain, quantized = (
                model.generate(ids, max_new_tokens=9, rng=1, weights=w, **options)
                for w in (None, storage)
            )
        np.testing.assert_array_equal(plain, quantized)


def test_quantized_weights_follow_the_models(storage):
    """They are rounded anew in every call."""
    model = language_model(np.float32)
    ids = random_ids((1, 9))
    before = decoded(model, ids, 4, rng=5, weights=storage)
    model.parameters["lm_head.decoder.weight"][:] *= 2
    bias = model.parameters["lm_head.bias"]
    after = decoded(model, ids, 4, rng=5, weights=storage)
    limit = tolerance("rounding", "float32")
    np.testing.assert_allclose(after - bias, 2 * (before - bias), rtol=limit, atol=limit)


def test_what_cannot_be_quantized_is_refused_before_any_work(monkeypatch, storage):
    model = language_model()
    with pytest.raises(ValueError, match=r"^weights.*'int8', 'bfloat16' or None, got 'int4'"):
        model.generate([[1, 2]], weights="int4")
    monkeypatch.setattr("reformer_c.models.body.Pass.forward", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match=r"^weights.* None with use_cache=False"):
        model.generate([[1, 2]], weights=storage, use_cache=False)
