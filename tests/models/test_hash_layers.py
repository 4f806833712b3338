"""Layers that hash keys of their own, and cross-attention that does."""

import numpy as np
import pytest
from gradients import slope
from small_models import (
    decoded,
    long_config,
    padding_mask,
    random_ids,
    randomise,
    small_config,
)
from tolerances import assert_close, tolerance

import reformer_c as rc
from reformer_c.layers.hash_attention import HashCrossAttention
from reformer_c.layers.self_attention import WholeSequences
from reformer_c.models.decoder import Decoder, cache_bytes
from reformer_c.models.inputs import Call

T = 40
KIND = {True: rc.ReformerModelWithLMHead, False: rc.ReformerForMaskedLM}
KINDS = [
    {},
    {"attn_layers": ["hash", "local", "lsh"], "attention_scope": "bucket"},
    {"hash_local_window": 0, "softcap": 0.5},
    {"num_buckets": None},
    {"num_buckets": [2, 4], "num_hashes": 3},
    {"num_attention_heads": 4, "num_key_value_heads": 2},
    {"position_embedding_type": "rotary"},
    {"reversible": False},
    {"feed_forward_gated": True, "memory_budget": 10**9},
]


def hash_model(dtype=np.float64, **changes):
    fields = {"attn_layers": ["hash"] * 2, "hash_local_window": 2} | changes
    kind = KIND[fields.get("is_decoder", True)]
    return randomise(kind(small_config(**fields), rng=0, dtype=dtype))


def same_weights(model, **changes):
    """A model of another configuration with the weights of this one."""
    other = type(model)(model.config.changed(changes), dtype=model.dtype)
    for name, weight in model.parameters.items():
        other.parameters[name] = weight
    return other


# ---- what a token sees ----


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_window_of_all_keys_is_full_attention(is_decoder):
    model = hash_model(hash_local_window=T, is_decoder=is_decoder)
    full = same_weights(model, attn_layers=["full", "full"])
    ids = random_ids((3, T))
    call = {"attention_mask": padding_mask(3, T), "rng": 1}
    requested = {"output_attentions": True, "output_buckets": True}
    found, expected = (x(ids, **call, **requested) for x in (model, full))
    real = call["attention_mask"] != 0
    assert_close(found.logits[real], expected.logits[real], "model_forward")
    for one, two in zip(found.attentions, expected.attentions, strict=True):
        assert_close(one.swapaxes(1, 2)[real], two.swapaxes(1, 2)[real], "model_forward")
    assert found.buckets[0].shape == (2, 3, 2, 2, T)
    # what is predicted at a masked position has no meaning
    counts = np.pad(real[:, :-1], ((0, 0), (1, 0))) if is_decoder else real
    labels = np.where(counts, ids, -100)
    results = [x.loss_and_gradients(ids, labels=labels, **call) for x in (model, full)]
    assert_close(results[0][0], results[1][0], "model_forward")
    for name, gradient in results[0][1].items():
        assert_close(gradient, results[1][1][name], "model_backward")


@pytest.mark.parametrize("changes", KINDS)
def test_later_tokens_change_nothing_before_them(changes):
    model = hash_model(hash_seed=3, **{"num_buckets": 4} | changes)
    if model.config.num_buckets is None:
        model = same_weights(model, num_buckets=8)
    ids = random_ids((2, T))
    other = ids.copy()
    other[:, 25:] = random_ids((2, T - 25), 9)
    before = [model(x, rng=1, output_buckets=True) for x in (ids, other)]
    assert_close(before[0].logits[:, :25], before[1].logits[:, :25], "replay")
    if model.config.layer_types == ["hash", "hash"]:
        for one, two in zip(*(x.buckets for x in before), strict=True):
            np.testing.assert_array_equal(one[..., :25], two[..., :25])


def test_a_query_sees_the_keys_of_its_buckets_and_those_near_it():
    model = hash_model(attn_layers=["hash"])
    output = model(random_ids((2, T)), rng=1, output_attentions=True, output_buckets=True)
    queries, keys = output.buckets[0]
    found = (queries[..., :, None] == keys[..., None, :]).any(axis=2)
    near = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) <= 2
    expected = (found | near) & np.tri(T, dtype=bool)
    assert found.any() and not found.all()
    np.testing.assert_array_equal(output.attentions[0] > 0, expected)
    assert_close(output.attentions[0].sum(axis=-1), np.ones((2, 2, T)), "model_forward")


def test_probabilities_give_the_output():
    """The last layer's output is its probabilities times its values: the observed parts agree."""
    seen = []

    def observe(layer, part, heads, saved):
        groups = layer.num_heads // layer.num_key_value_heads
        v = np.repeat(heads[2], groups, axis=1)
        seen.append((layer.probabilities(part, heads, saved) @ v, saved.out))

    for changes in ({}, {"num_key_value_heads": 1}, {"is_decoder": False}, {"softcap": 0.5}):
        call = Call(random_ids((2, T)), seed=3, observers=(observe,))
        run, _ = hash_model(attn_layers=["hash"], **changes)._begin(call, {})
        run.forward()
    assert len(seen) >= 4
    for found, out in seen:
        assert_close(found, out, "model_forward")


# ---- decoding ----


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("prompt", [1, 7, 30])
def test_decoding_equals_a_forward_pass(changes, prompt):
    model = hash_model(hash_seed=3, **changes)
    ids = random_ids((2, T))
    steps = decoded(model, ids, prompt)
    if model.config.num_buckets is None:
        model = same_weights(model, num_buckets=rc.choose_num_buckets(prompt, 4, 42))
    expected = model(ids).logits[:, prompt - 1 :]
    assert_close(steps, expected, "model_forward")


def test_rows_of_several_lengths_beams_and_copies():
    model = hash_model(hash_seed=3, attn_layers=["hash", "lsh"], attention_scope="bucket")
    ids, mask = random_ids((3, 12)), np.ones((3, 12), int)
    mask[0, :5], mask[1, 9:] = 0, 0
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        options |= {"max_new_tokens": 12, "rng": 2, "eos_token_id": None}
        texts = model.generate(ids, mask, **options)
        copies = options.get("num_return_sequences", 1)
        for i in range(3):
            alone = model.generate(ids[i][mask[i] != 0][None], **options)
            np.testing.assert_array_equal(
                texts[i * copies : (i + 1) * copies, 12:], alone[:, mask[i].sum() :]
            )


@pytest.mark.parametrize("weights", [None, "int8", "bfloat16"])
def test_weights_and_caches_of_fewer_bits(weights):
    model = hash_model(np.float32, num_key_value_heads=1, hash_seed=1)
    ids = random_ids((1, 20))
    exact, rounded = (
        decoded(model, ids, 5, **options)
        for options in ({}, {"cache_dtype": "bfloat16", "weights": weights})
    )
    # of most tokens: some may fall into other buckets
    assert (
        0
        < np.median(np.abs(exact - rounded))
        < tolerance("model_bfloat16_cache") * np.abs(exact).max()
    )


def test_a_bounded_cache_forgets_the_oldest():
    """One layer, which sees no more than a window: forgetting what is outside changes nothing."""
    changes = {"position_embedding_type": "none", "num_buckets": [32, 32], "num_hashes": 1}
    model = hash_model(attn_layers=["hash"], hash_local_window=3, hash_seed=1, **changes)
    ids = random_ids((1, 60))
    whole = decoded(model, ids, 4)
    bounded = decoded(model, ids, 4, cache_length=20, cache_drop=5)
    assert_close(bounded[:, :16], whole[:, :16], "replay")
    output = model(ids, output_buckets=True)
    queries, keys = output.buckets[0]
    far = np.subtract.outer(np.arange(60), np.arange(60)) > 14
    found = ((queries[..., :, None] == keys[..., None, :]).any(axis=2) & far).any(axis=(0, 1, 3))
    same = ~found[4 - 1 :]
    assert same[16:].any() and not same[16:].all()
    assert_close(bounded[0][same], whole[0][same], "replay")
    assert not np.allclose(bounded[0][~same], whole[0][~same])


def test_the_bytes_of_a_cache_are_predicted(monkeypatch):
    model = hash_model(np.float32, attn_layers=["hash", "full"], num_key_value_heads=1)
    caches, original = [], Decoder.start
    monkeypatch.setattr(
        Decoder, "start", lambda self, texts: caches.append(self) or original(self, texts)
    )
    for bound in ({}, {"cache_length": 12, "cache_drop": 4}):
        model.generate(random_ids((2, 10)), max_new_tokens=5, eos_token_id=None, **bound)
        expected = cache_bytes(
            model.config, 15, prompt=10, batch=2, cache_length=bound.get("cache_length")
        )
        assert caches.pop().nbytes == expected


# ---- parts, memory, files ----


@pytest.mark.parametrize("hk", [4, 2, 1])
def test_a_long_sequence_is_computed_in_parts(hk, monkeypatch):
    fields = {"num_attention_heads": 4, "num_key_value_heads": hk}
    model, ids = hash_model(**fields), random_ids((2, T))
    call = {"rng": 1, "output_attentions": True, "output_buckets": True}
    whole = model(ids, **call)
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=1)
    for fitting in (1, 2, 3):
        monkeypatch.setattr(WholeSequences, "max_bytes", fitting * T * 6 * 8)
        parts = model(ids, **call)
        other, others = model.loss_and_gradients(ids, labels=ids, rng=1)
        assert_close(parts.logits, whole.logits, "replay")
        np.testing.assert_array_equal(parts.buckets[0], whole.buckets[0])
        assert_close(other, loss, "replay")
        for name, gradient in gradients.items():
            assert_close(others[name], gradient, "model_backward")


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_is_the_same_in_both_passes(dropout):
    model = hash_model(hidden_dropout_prob=0.0, full_attention_probs_dropout_prob=dropout)
    ids = random_ids((1, T))
    _, gradients = model.loss_and_gradients(ids, labels=ids, rng=3)
    name = next(name for name in gradients if name.endswith("key.weight"))
    weight = model.parameters[name]
    direction = np.random.default_rng(0).standard_normal(weight.shape)

    def loss_at(values):
        weight[...] = values
        return model.loss_and_gradients(ids, labels=ids, rng=3)[0]

    expected = slope(loss_at, [weight.copy()], [direction], 1e-7)
    assert_close(np.sum(gradients[name] * direction), expected, "derivative")


def test_a_checkpoint_keeps_its_layers(tmp_path):
    model = hash_model(np.float32, hash_local_window=5, hash_seed=2)
    model.save_pretrained(tmp_path)
    same = rc.ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert same.config == model.config.changed({"architectures": same.config.architectures})
    ids = random_ids((1, T))
    np.testing.assert_array_equal(same(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"hash_local_window": -1}, "hash_local_window must be an integer >= 0 .*, got -1"),
        ({"hash_local_window": 0.5}, "hash_local_window must be an integer >= 0 .*, got 0.5"),
        ({"hash_local_window": 2**31}, r"hash_local_window must be an integer .* < 2\*\*31, got"),
        ({"num_hashes": None}, "num_hashes must be an integer >= 1, got None"),
        ({"num_buckets": 3}, "num_buckets must be even numbers, got 3"),
        ({"cross_num_buckets": [2, 3]}, r"cross_num_buckets must be even numbers, got \[2, 3\]"),
        ({"cross_num_buckets": []}, r"cross_num_buckets must have at least one factor, got \[\]"),
        ({"lsh_attn_chunk_length": None}, "lsh_attn_chunk_length must be an integer >= 1"),
        ({"cross_attention": "local"}, "cross_attention must be one of full, lsh, got 'local'"),
    ],
)
def test_fields_are_checked(fields, error):
    with pytest.raises((TypeError, ValueError), match=error):
        small_config(attn_layers=["hash"], **fields)


def test_rotations_are_given_for_each_layer_that_hashes():
    model, ids = hash_model(), random_ids((1, T))
    rotations = [np.random.default_rng(i).standard_normal((2, 6, 2, 2)) for i in range(2)]
    output = model(ids, rotations=rotations, output_buckets=True)
    assert (output.logits != model(ids, rotations=rotations[::-1]).logits).any()
    assert output.buckets[0].max() < 4
    with pytest.raises(ValueError, match="rotations must be 2 arrays, one for each LSH layer"):
        model(ids, rotations=rotations[:1])


# ---- cross-attention ----


def encoder_decoder(dtype=np.float64, **changes):
    fields = {"attn_layers": ["local"], "cross_attention": "lsh", "cross_num_buckets": 4}
    config = small_config(**fields | changes)
    return randomise(rc.ReformerEncoderDecoder(config, rng=0, dtype=dtype))


def with_full(model):
    changes = {"cross_attention": "full"}
    configs = (model.encoder.config.changed(changes), model.decoder.config.changed(changes))
    other = rc.ReformerEncoderDecoder(configs[0], decoder=configs[1], dtype=model.dtype)
    for name, weight in model.parameters.items():
        other.parameters[name] = weight
    return other


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reversible", [False, True])
def test_with_many_rounds_cross_attention_finds_every_key(masked, reversible):
    model = encoder_decoder(num_hashes=60, cross_num_buckets=2, reversible=reversible)
    ids, labels = random_ids((3, 20)), random_ids((3, 9), 1)
    mask = padding_mask(3, 20) if masked else None
    found, expected = (
        x(ids, mask, labels=labels, output_attentions=True, rng=1)
        for x in (model, with_full(model))
    )
    assert_close(found.logits, expected.logits, "model_forward")
    for one, two in zip(found.cross_attentions, expected.cross_attentions, strict=True):
        assert_close(one, two, "model_forward")
    (loss, gradients), (other, others) = (
        x.loss_and_gradients(ids, mask, labels=labels, rng=1) for x in (model, with_full(model))
    )
    assert_close(loss, other, "model_forward")
    for name, gradient in gradients.items():
        assert_close(gradient, others[name], "model_backward")


@pytest.mark.parametrize(
    "changes",
    [{}, {"cross_num_buckets": None}, {"num_attention_heads": 4, "num_key_value_heads": 2},
     {"softcap": 0.5, "hash_seed": 3}, {"memory_budget": 10**9}],
)  # fmt: skip
def test_cross_attention_sees_a_part_of_the_keys_and_its_gradients_are_exact(changes):
    model = encoder_decoder(**changes)
    ids, labels, mask = random_ids((3, 30)), random_ids((3, 9), 1), padding_mask(3, 30)
    call = {"labels": labels, "rng": 1}
    output = model(ids, mask, **call, output_attentions=True)
    shares = output.cross_attentions[0]
    assert 0.1 < (shares > 0).mean() < 0.9
    assert_close(shares.sum(axis=-1), np.ones(shares.shape[:3]), "model_forward")
    assert (shares[mask[:, None, None, :].repeat(shares.shape[1], 1).repeat(9, 2) == 0] == 0).all()
    _, gradients = model.loss_and_gradients(ids, mask, **call)
    rng, w = np.random.default_rng(1), model.parameters
    directions = {name: rng.standard_normal(x.shape) for name, x in w.items()}
    start = {name: x.copy() for name, x in w.items()}

    def at(distance):
        for name, x in start.items():
            w[name][...] = x + distance * directions[name]
        return model.loss_and_gradients(ids, mask, **call)[0]

    expected = slope(at, [0.0], [1.0], 1e-7)
    actual = sum(float((g * directions[name]).sum()) for name, g in gradients.items())
    assert_close(actual, expected, "derivative")


@pytest.mark.parametrize("changes", [{}, {"cross_num_buckets": None}, {"num_key_value_heads": 1}])
def test_texts_are_those_of_forward_passes(changes):
    """Greedy texts of padded rows: each token is the best of a pass over the text so far, and each
    row is what it is alone."""
    model = encoder_decoder(hash_seed=3, **changes)
    ids, mask = random_ids((3, 20)), np.ones((3, 20), int)
    mask[1, 12:], mask[2, 5:] = 0, 0
    options = {"max_new_tokens": 8, "rng": 1, "eos_token_id": None}
    texts = model.generate(ids, mask, **options)
    for i, row in enumerate(texts):
        source = ids[i : i + 1, mask[i] != 0]
        np.testing.assert_array_equal(model.generate(source, **options)[0], row)
        logits = model(source, decoder_input_ids=row[None, :-1], rng=1).logits[0]
        np.testing.assert_array_equal(logits.argmax(axis=-1), row[1:])
    uncached = model.generate(ids, mask, use_cache=False, **options)
    np.testing.assert_array_equal(uncached, texts)
    beams = model.generate(ids, mask, num_beams=3, **options)
    alone = model.generate(ids[:1], num_beams=3, **options)
    np.testing.assert_array_equal(beams[:1], alone)
    rounded = model.generate(ids, mask, cache_dtype="bfloat16", **options)
    assert rounded.shape == texts.shape


def test_an_encoder_decoder_keeps_how_it_attends(tmp_path):
    model = encoder_decoder(np.float32)
    model.save_pretrained(tmp_path)
    same = rc.ReformerEncoderDecoder.from_pretrained(tmp_path)
    assert same.decoder.config.cross_attention == "lsh"
    ids, labels = random_ids((1, 30)), random_ids((1, 5), 1)
    found = [x.loss(ids, labels=labels, rng=1) for x in (model, same, with_full(model))]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("kind", ["hash", "lsh"])
def test_the_buckets_of_sources_do_not_become_those_of_the_first_targets(kind):
    fields = {"attn_layers": [kind], "lsh_attn_chunk_length": 4, "num_buckets": None}
    model = encoder_decoder(cross_num_buckets=None, **fields)
    ids, labels = random_ids((2, 40)), random_ids((2, 9), 1)
    steps = [model.loss_and_gradients(ids, labels=labels, rng=1) for _ in range(2)]
    assert model.decoder.config.num_buckets == rc.choose_num_buckets(12, 4, 42)
    assert steps[0][0] == steps[1][0]
    for name, gradient in steps[0][1].items():
        np.testing.assert_array_equal(gradient, steps[1][1][name])


def test_memory_is_planned_for_the_text_of_most_buckets():
    layer = object.__new__(HashCrossAttention)
    layer._num_hashes, layer._numbers = 1, [(128,), (8, 32)]
    assert layer._scratch_spec().num_buckets == (8, 32)


def test_the_memory_of_hashed_layers_is_planned():
    model = hash_model(np.float32, **long_config(1000))
    full = same_weights(model, attn_layers=["full", "full"])
    one, two = (x.memory(1000, 2) for x in (model, full))
    ids = 2 * 4 * 2 * model.config.num_attention_heads * 3 * 1000
    assert one.streams - two.streams == 2 * ids
