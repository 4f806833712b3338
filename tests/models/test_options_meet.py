"""Combined options: configurations, lengths, masks and the options of a call, of training and of
generate are drawn together and compared with the references in float64."""

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from gradients import slope
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import generation
from reference import model as reference
from reference.cross_entropy import cross_entropy_head
from reference.decoding import oldest_kept
from small_models import DROPOUT, POSITIONS, random_ids, randomise, rotations_for, small_config
from tolerances import assert_close, tolerance

import reformer_c as rc
from reformer_c import ops
from reformer_c.models.model import ReformerForMaskedLM, ReformerModelWithLMHead

V = 13
WORDS = "reformer.embeddings.word_embeddings.weight"
REQUESTED = ("output_attentions", "output_hidden_states", "output_buckets")
LONGEST = 26
BOOLEANS = st.booleans()
HEADS = [
    {"num_attention_heads": h, "num_key_value_heads": hk}
    for h, hk in ((1, None), (2, None), (2, 1), (4, 2), (3, 1))
]
NUM_BUCKETS = st.sampled_from([None, 2, 4, [2, 2], [2, 4]])


@st.composite
def configurations(
    draw, activations=("relu", "gelu", "silu"), decoders=BOOLEANS, num_buckets=NUM_BUCKETS
):
    """Small configurations: every field that changes results or how they are computed."""
    is_decoder = draw(decoders)
    after = st.just(0) if is_decoder else st.integers(0, 1)
    fields = {
        "is_decoder": is_decoder,
        "attn_layers": draw(
            st.lists(
                st.sampled_from(["local", "lsh", "full", "full_shared", "hash"]),
                min_size=1,
                max_size=3,
            )
        ),
        "attention_scope": draw(st.sampled_from(["chunk", "bucket"])),
        "local_attn_chunk_length": draw(st.sampled_from([2, 3, 4, 8])),
        "lsh_attn_chunk_length": draw(st.sampled_from([2, 4, 5])),
        "local_num_chunks_before": draw(st.integers(0, 2)),
        "local_num_chunks_after": draw(after),
        "lsh_num_chunks_before": draw(st.integers(0, 2)),
        "lsh_num_chunks_after": draw(after),
        "num_hashes": draw(st.integers(1, 3)),
        "num_buckets": draw(num_buckets),
        "softcap": draw(st.sampled_from([None, 0.5])),
        "reversible": draw(st.booleans()),
        "local_shared_qk": draw(st.booleans()),
        "feed_forward_gated": draw(st.booleans()),
        "lsh_attend_across_buckets": draw(st.booleans()),
        "lsh_allow_duplicate_attention": draw(st.booleans()),
        # models of float64 are never rounded
        "matmul_precision": draw(st.sampled_from([None, "medium"])),
        "hash_seed": draw(st.sampled_from([None, 5])),
        "hash_local_window": draw(st.sampled_from([0, 1, 5])),
        "cross_attention": draw(st.sampled_from(["full", "lsh"])),
        "cross_num_buckets": draw(num_buckets),
        **draw(st.sampled_from(HEADS)),
        **draw(st.sampled_from([*POSITIONS.values()])),
        "hidden_act": draw(st.sampled_from(activations)),
        "chunk_size_feed_forward": draw(st.sampled_from([0, 1, 3])),
        "chunk_size_lm_head": draw(st.sampled_from([0, 2])),
        "apply_lm_head_bias": draw(st.booleans()),
        "shared_embeddings": draw(st.booleans()),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2])),
        "memory_budget": draw(st.sampled_from([None, 4000, 10**9])),
    }
    if fields.get("position_embedding_type") == "rotary":
        fields["attn_layers"][0] = draw(st.sampled_from(["local", "full", "hash"]))
        fields["local_shared_qk"] &= not {"full", "hash"}.isdisjoint(fields["attn_layers"])
    if fields["attention_scope"] == "bucket":
        fields["bucket_cap"] = draw(st.sampled_from([None, 64]))
    return small_config(**fields)


# fields that `configurations` does not draw: they are sizes, special tokens and names, or the tests
# draw them (dropout by DROPOUT, what a call asks for, the cache of generate)
SIZES = {
    "attention_head_size", "feed_forward_size", "hidden_size", "initializer_range",
    "layer_norm_eps", "max_position_embeddings", "num_labels", "vocab_size",
}  # fmt: skip
NAMES = {
    "architectures", "bos_token_id", "dtype", "eos_token_id", "extra", "id2label", "image_shape",
    "is_encoder_decoder", "label2id", "pad_token_id", "problem_type", "transformers_version",
}  # fmt: skip
DRAWN_BY_TESTS = {*DROPOUT, "output_attentions", "output_hidden_states", "return_dict", "use_cache"}
# of other heads; round gradients and streams; transformers' own, which has no effect in its model
ELSEWHERE = {"classifier_dropout", "kept_dtype", "residual_dtype", "tie_word_embeddings"}


def test_every_other_field_is_drawn():
    seen = defaultdict(set)

    @settings(max_examples=100)
    @given(config=configurations())
    def note(config):
        for name, value in vars(config).items():
            seen[name].add(repr(value))

    note()
    constant = {name for name, values in seen.items() if len(values) == 1}
    assert constant == SIZES | NAMES | DRAWN_BY_TESTS | ELSEWHERE


@st.composite
def masks(draw, b, t, kinds=("none", "ones", "right", "left", "any")):
    """None, or padding on either side and in the middle, with a real token in each row."""
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    mask = np.ones((b, t), int)
    for row in mask:
        many = draw(st.integers(0, t - 1))
        if kind == "right":
            row[t - many :] = 0
        elif kind == "left":
            row[:many] = 0
        elif kind == "any":
            row[:] = draw(st.lists(st.integers(0, 1), min_size=t, max_size=t))
            row[draw(st.integers(0, t - 1))] = 1
    return mask


def model_of(config):
    kind = ReformerModelWithLMHead if config.is_decoder else ReformerForMaskedLM
    return randomise(kind(config, rng=0, dtype=np.float64))


def with_buckets(config, n):
    """The configuration with the number of buckets of inputs that run at length n."""
    if config.num_buckets is not None:
        return config
    m, longest = config.lsh_attn_chunk_length, config.max_position_embeddings
    return replace(config, num_buckets=ops.choose_num_buckets(n, m, longest))


def chooses_num_buckets(config, n):
    """Whether inputs that run at length n are hashed into a number of buckets that is not fixed."""
    chunked = config.attention_scope == "chunk" and n <= config.lsh_attn_chunk_length
    hashes = "hash" in config.layer_types or ("lsh" in config.layer_types and not chunked)
    return config.num_buckets is None and hashes


def evaluated_length(config, t):
    """The length that Hugging Face pads to in evaluation: a common multiple of the chunks."""
    lengths = [config.attention(kind, "attn_chunk_length") for kind in config.windows]
    if config.attention_scope == "bucket" or t <= min(lengths, default=t):
        return t
    return -(-t // math.lcm(*lengths)) * math.lcm(*lengths)


def at_length(config, n, *, ids, mask, positions):
    """What the reference is called with, padded by masked tokens to length n."""
    b, t = ids.shape
    positions = np.broadcast_to(np.arange(t) if positions is None else positions, (b, t))
    if n > t:
        widths = ((0, 0), (0, n - t))
        mask = np.pad(np.ones((b, t), int) if mask is None else mask, widths)
        ids = np.pad(ids, widths)
        positions = np.pad(positions, widths)
    return ids, {"attention_mask": mask, "position_ids": positions}


def known_buckets(found, config, b, r, n):
    """Bucket ids (..., n) for the reference, of those (b, h, r, t) or (2, b, h, r, t) that a call
    reports."""
    if found is None:  # one chunk: nothing is hashed
        return np.zeros((b, config.num_attention_heads, r, n), int)
    widths = (*[(0, 0)] * (found.ndim - 1), (0, n - found.shape[-1]))
    return np.pad(found, widths, constant_values=int(np.prod(config.num_buckets)))


def head_of(model):
    """The weights as the reference takes them."""
    w = dict(model.parameters)
    if not model.config.apply_lm_head_bias:
        w["lm_head.bias"] = np.zeros_like(w["lm_head.bias"])
    return w


@st.composite
def inputs(draw, padded=False):
    """Ids (b, t), a mask, position ids and labels."""
    b, t = draw(st.integers(1, 2)), draw(st.integers(1, LONGEST))
    ids = random_ids((b, t), draw(st.integers(0, 3)))
    places = [None, np.arange(t)[::-1].copy(), (np.arange(b * t) % 42).reshape(b, t)]
    positions = draw(st.sampled_from(places))
    labels = draw(st.sampled_from([ids, np.where(ids % 3 == 0, -100, ids)]))
    mask = draw(masks(b, t, ["right", "any"]) if padded else masks(b, t))
    return ids, mask, positions, labels


CALL = dict(
    given_=inputs(),
    r=st.sampled_from([None, 1, 2]),
    vectors=st.booleans(),
    with_labels=st.booleans(),
    requested=st.fixed_dictionaries({name: st.booleans() for name in REQUESTED}),
)


@settings(max_examples=150)
@given(config=configurations(), draws=st.booleans(), **CALL)
def test_a_call_gives_the_numbers_of_the_reference_whatever_it_is_told(config, draws, **call):
    check_a_call(config, draws, **call)


@settings(max_examples=60)
@given(config=configurations(num_buckets=st.none()), **CALL | {"given_": inputs(padded=True)})
def test_padded_rows_have_numbers_of_buckets_of_their_own(config, **call):
    check_a_call(config, True, **call)


def check_a_call(config, draws, given_, r, vectors, with_labels, requested):
    ids, mask, positions, labels = given_
    b, t = ids.shape
    model, rounds = model_of(config), r or config.num_hashes
    hashed_at = with_buckets(config, evaluated_length(config, t))
    rotations = None if draws else rotations_for(hashed_at, rounds)
    words = {"inputs_embeds": model.parameters[WORDS][ids]} if vectors else {"input_ids": ids}
    arguments = words | dict(
        attention_mask=mask, position_ids=positions, num_hashes=r, rotations=rotations, rng=7,
        labels=labels if with_labels else None,
    )  # fmt: skip
    output = model(**arguments, **requested)

    hashing = model(**arguments, output_buckets=True).buckets if draws else rotations
    expected = expected_logits(model, rounds, ids, mask, positions, hashing, draws)
    real = np.ones((b, t), bool) if mask is None else mask != 0
    assert_close(output.logits[real], expected[real], "model_forward")
    if mask is None and with_labels:
        # the last token of a causal model has nothing to predict
        targets = labels[:, 1:] if config.is_decoder else labels
        identity = np.eye(V)
        h = expected[:, : targets.shape[1]]
        loss = cross_entropy_head(h, identity, np.zeros(V), targets)
        assert_close(output.loss, loss, "model_forward")
    for name in REQUESTED:
        values = getattr(output, name.removeprefix("output_"))
        assert (values is not None) == requested[name]
    for p in output.attentions or ():
        rows = p.reshape(-1, p.shape[-1])
        if mask is None:
            rows = rows[rows.sum(axis=-1) != 0]
            # rows that pad the inputs to whole chunks may see hidden keys only, all alike
            alike = (rows == rows[:, :1]).all(axis=-1)
            for some, kind in ((~alike, "self_only"), (alike, "hidden")):
                whole = rows[some].sum(axis=-1)
                assert_close(whole, np.ones_like(whole), kind)
    # a requested output may pad the inputs to whole chunks, which changes only rounding
    plain = model(**arguments)
    assert_close(plain.logits, output.logits, "replay")


def expected_logits(model, rounds, ids, mask, positions, hashing, draws):
    """The reference's logits (b, t, v).

    hashing holds rotations, or the bucket ids of a call that `draws` them. Where that call chooses
    the number of buckets too, each row is computed alone, without the padding at its end.
    """
    config, (b, t) = model.config, ids.shape
    positions = np.broadcast_to(np.arange(t) if positions is None else positions, (b, t))
    parts = [(slice(0, b), t)]
    if draws and mask is not None and chooses_num_buckets(config, evaluated_length(config, t)):
        parts = [(slice(i, i + 1), 1 + np.flatnonzero(row)[-1]) for i, row in enumerate(mask)]
    logits = np.zeros((b, t, V))
    for rows, end in parts:
        n = evaluated_length(config, end)
        known, part = with_buckets(config, n), (rows, slice(0, end))
        own = hashing
        if draws:
            own = [x if x is None else rows_of(x, rows, end) for x in hashing]
            own = [known_buckets(x, known, len(ids[rows]), rounds, n) for x in own]
        padded, rest = at_length(
            known, n, ids=ids[part], mask=None if mask is None else mask[part],
            positions=positions[part],
        )  # fmt: skip
        logits[part] = reference.language_model_logits(
            head_of(model), known, padded, hashing=own, **rest
        )[:, :end]
    return logits


def rows_of(ids, rows, end):
    """Bucket ids (b, h, r, t), or (2, b, h, r, t) of queries and keys, of some rows up to `end`."""
    return ids[rows, ..., :end] if ids.ndim == 4 else ids[:, rows, ..., :end]


def flat(arrays):
    """All numbers of a dictionary of arrays: a gradient that is 0 is rounding alone."""
    return np.concatenate([x.reshape(-1) for x in arrays.values()])


def moved(parameters, distance, directions):
    return {name: x + distance * directions[name] for name, x in parameters.items()}


@settings(max_examples=100)
@given(
    config=configurations(activations=["gelu", "silu"]),
    given_=inputs(),
    r=st.sampled_from([None, 1, 2]),
    training=st.booleans(),
    dropout=st.booleans(),
    vectors=st.booleans(),
    budget=st.sampled_from([None, 0, 3000, 0.5, 10**9]),
)
def test_gradients_are_the_derivative_whatever_training_is_told(
    config, given_, r, training, dropout, vectors, budget
):
    ids, mask, positions, labels = given_
    t = ids.shape[1]
    labels = counted(labels, mask, config.is_decoder)
    assume((labels[:, int(config.is_decoder) :] != -100).any())
    if dropout:
        config = replace(config, **DROPOUT)
    model, rounds = model_of(config), r or config.num_hashes
    n = t if training else evaluated_length(config, t)
    config = with_buckets(config, n)
    rotations = rotations_for(config, rounds)
    arguments = dict(
        attention_mask=mask, position_ids=positions, num_hashes=r, rotations=rotations, rng=7,
        labels=labels, training=training,
    )  # fmt: skip
    w = model.parameters
    words = {"input_ids": ids}
    if vectors:
        words = {"inputs_embeds": w[WORDS][ids]}
    loss, gradients = model.loss_and_gradients(**words, **arguments, memory_budget=budget)
    assert gradients.keys() == w.keys()
    # what is kept or rebuilt changes no number
    again, others = model.loss_and_gradients(**words, **arguments)
    assert loss == again
    together, others = flat(gradients), flat(others)
    assert_close(together, others, "model_forward")

    rng = np.random.default_rng(1)
    directions = {name: rng.standard_normal(x.shape) for name, x in w.items()}
    if vectors:  # they stay where they are
        directions[WORDS][...] = 0
    if dropout and training:
        start = {name: x.copy() for name, x in w.items()}

        def at(distance):
            for name, x in moved(start, distance, directions).items():
                w[name][...] = x
            return model.loss_and_gradients(**words, **arguments)[0]

    else:
        padded, rest = at_length(config, n, ids=ids, mask=mask, positions=positions)
        targets = np.pad(labels, ((0, 0), (0, n - t)), constant_values=-100)
        head = head_of(model)

        def at(distance):
            return reference.language_model_loss(
                moved(head, distance, directions), config, padded, targets, hashing=rotations,
                label_smoothing=config.label_smoothing if training else 0.0, **rest,
            )  # fmt: skip

        if not config.apply_lm_head_bias:
            directions["lm_head.bias"][...] = 0
        assert_close(loss, at(0.0), "model_forward")
    # a step so short that no token changes its bucket
    expected = slope(at, [0.0], [1.0], 1e-7)
    actual = sum(float((g * directions[name]).sum()) for name, g in gradients.items())
    typical = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    assert abs(actual - expected) < tolerance("derivative") * max(typical, abs(expected))


@settings(max_examples=60)
@given(
    config=configurations(),
    given_=inputs(),
    training=st.booleans(),
    dropout=st.booleans(),
    vectors=st.booleans(),
    budget=st.sampled_from([None, 0, 3000, 0.5, 10**9]),
)
def test_a_language_models_head_of_the_users_has_the_same_bits(
    config, given_, training, dropout, vectors, budget
):
    ids, mask, positions, labels = given_
    if dropout:
        config = replace(config, **DROPOUT)
    whole, body = model_of(config), rc.ReformerModel(config, dtype=np.float64)
    for name in body.parameters:
        body.parameters[name] = whole.parameters[f"reformer.{name}"]
    words = {"inputs_embeds": whole.parameters[WORDS][ids]} if vectors else {"input_ids": ids}
    arguments = words | dict(
        attention_mask=mask, position_ids=positions, rng=7, training=training, memory_budget=budget
    )
    ahead = int(config.is_decoder)
    targets = np.full(ids.shape, -100)
    targets[:, : ids.shape[1] - ahead] = labels[:, ahead:]
    assume((targets != -100).any())
    loss, gradients = whole.loss_and_gradients(**arguments, labels=labels)
    shared, of_matrix = config.shared_embeddings, []

    def head(states):
        c = config.hidden_size
        mean, saved = ops.cross_entropy_head_forward(
            states[..., :c] + states[..., c:] if shared else states,
            whole.parameters[WORDS if shared else "lm_head.decoder.weight"],
            head_of(whole)["lm_head.bias"], targets, chunk_length=config.chunk_size_lm_head,
            label_smoothing=config.label_smoothing if training else 0.0,
        )  # fmt: skip
        d_states, d_matrix, _ = ops.cross_entropy_head_backward(1.0, saved)
        of_matrix.append(d_matrix)
        return mean, np.concatenate([d_states] * 2, axis=-1) if shared else d_states

    own_loss, own = body.loss_and_gradients(**arguments, loss=head)
    assert_close(own_loss, loss, "model_forward")
    states = body.forward(**arguments)
    again, d_inputs_embeds = body.backward(head(states)[1])
    assert (d_inputs_embeds is not None) == vectors
    # the gradient of a word's vector is the sum of those of the inputs; in evaluation, masked
    # tokens may also see words that pad the inputs
    if vectors and (training or mask is None):
        ids_in_place = {"input_ids": ids, "inputs_embeds": None}
        _, by_ids = body.loss_and_gradients(**arguments | ids_in_place, loss=head)
        words = by_ids["embeddings.word_embeddings.weight"]
        summed = np.zeros_like(words)
        np.add.at(summed, ids, d_inputs_embeds)
        scale = float(np.abs(d_inputs_embeds).max())
        assert_close(summed, words, "model_backward", scale=scale)
    for name, gradient in own.items():
        np.testing.assert_array_equal(gradient, again[name])
        expected = gradients[f"reformer.{name}"]
        if shared and f"reformer.{name}" == WORDS:
            assert_close(gradient + of_matrix[0], expected, "replay")
        else:
            np.testing.assert_array_equal(gradient, expected)


@settings(max_examples=40)
@given(
    config=configurations(activations=["gelu", "silu"], decoders=st.just(False)),
    lengths=st.tuples(st.integers(1, LONGEST), st.integers(1, LONGEST)),
    training=st.booleans(),
    dropout=st.booleans(),
    padded=st.booleans(),
    budget=st.sampled_from([None, 3000, 10**9]),
)
def test_gradients_of_an_encoder_decoder_are_the_derivative(
    config, lengths, training, dropout, padded, budget
):
    s, t = lengths
    if dropout:
        config = replace(config, **DROPOUT)
    causal = {"local_num_chunks_after": 0, "lsh_num_chunks_after": 0}
    decoder = replace(config, **causal)
    model = rc.ReformerEncoderDecoder(config, decoder=decoder, rng=0, dtype=np.float64)
    randomise(model)
    ids, labels, mask = random_ids((2, s)), random_ids((2, t), 1), None
    if padded:
        mask = np.ones((2, s), int)
        mask[1, s // 2 + 1 :] = 0
        labels[0, t // 2 + 1 :] = -100
    arguments = dict(labels=labels, rng=7, training=training, memory_budget=budget)
    model.loss_and_gradients(ids, mask, **arguments)  # chooses the numbers of buckets
    _, gradients = model.loss_and_gradients(ids, mask, **arguments)
    assert list(gradients) == list(model.parameters)
    w, rng = model.parameters, np.random.default_rng(1)
    start = {name: x.copy() for name, x in w.items()}
    directions = {name: rng.standard_normal(x.shape) for name, x in w.items()}

    def at(distance):
        for name, x in moved(start, distance, directions).items():
            w[name][...] = x
        return model.loss_and_gradients(ids, mask, **arguments)[0]

    expected = slope(at, [0.0], [1.0], 1e-7)
    actual = sum(float((g * directions[name]).sum()) for name, g in gradients.items())
    typical = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    assert abs(actual - expected) < tolerance("derivative") * max(typical, abs(expected))


def counted(labels, mask, is_decoder):
    """The labels; -100 where they are predicted at a masked position."""
    if mask is None:
        return labels
    at = mask if not is_decoder else np.pad(mask[:, :-1], ((0, 0), (1, 0)))
    return np.where(at != 0, labels, -100)


OPTIONS = st.fixed_dictionaries(
    {
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 50]),
        "top_p": st.sampled_from([0.3, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 3.0]),
        "no_repeat_ngram_size": st.sampled_from([0, 1, 2, 3]),
        "bad_words_ids": st.sampled_from([None, [[3], [5, 6]], [[1, 2, 3]]]),
        "suppress_tokens": st.sampled_from([None, [2, 4]]),
        "min_new_tokens": st.sampled_from([0, 2]),
    }
)


@settings(max_examples=60)
@given(
    config=configurations(decoders=st.just(True)),
    prompts=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    options=OPTIONS,
    copies=st.sampled_from([1, 2]),
    beams=st.sampled_from([1, 1, 2]),
    eos=st.sampled_from([None, 7]),
    side=st.sampled_from(["left", "right"]),
    cache=st.sampled_from([{"use_cache": False}, {}, {"cache_dtype": "bfloat16"}]),
    bound=st.sampled_from([None, (1, 1), (4, 2), (7, 7), (12, 5)]),
    new=st.integers(2, 8),
)
def test_texts_follow_the_options_row_by_row(
    config, prompts, options, copies, beams, eos, side, cache, bound, new
):
    model = model_of(config)
    t, b = max(prompts), len(prompts)
    ids, mask = random_ids((b, t)), np.zeros((b, t), int)
    for row, length in zip(mask, prompts):
        row[t - length :] = side == "left"
        row[:length] |= side == "right"
    if not options["do_sample"]:
        copies = min(copies, beams)
    pad = 9
    arguments = options | dict(
        rng=7, eos_token_id=eos, pad_token_id=pad, num_return_sequences=copies, num_beams=beams,
        **cache,
    )  # fmt: skip
    if "use_cache" in cache:
        bound = None
    if bound:
        arguments |= {"cache_length": bound[0], "cache_drop": bound[1]}
    # local layers keep their windows
    forgets = bound if {*config.layer_types} != {"local"} else None
    try:
        whole = model.generate(ids, mask, max_new_tokens=new, **arguments)
    except ValueError as error:  # options that together leave no token
        if "no token is left" not in str(error):
            raise
        return
    assert whole.shape[0] == b * copies and t < whole.shape[1] <= t + new
    if beams == 1:
        steps = list(model.stream(ids, mask, max_new_tokens=new, **arguments))
        np.testing.assert_array_equal(np.stack(steps, axis=1), whole[:, t:])
        shorter = model.generate(ids, mask, max_new_tokens=2, **arguments)
        np.testing.assert_array_equal(shorter, whole[:, : t + 2])

    seen: dict = {}
    for i in range(b):
        prompt = ids[i][mask[i] == 1]
        rows = whole[i * copies : (i + 1) * copies]
        # the same prompt drawn again is the next of its copies
        before = seen.setdefault(tuple(prompt), 0)
        seen[tuple(prompt)] += copies
        many = dict(arguments, num_return_sequences=before + copies)
        if beams > 1 and before and options["do_sample"]:
            continue  # beams draw together: a second search of the same prompt is another
        if beams > 1 or not options["do_sample"]:
            many, before = arguments, 0
        alone = model.generate(prompt[None], max_new_tokens=new, **many)[before:]
        for row, own in zip(rows, alone, strict=True):
            text, own = np.append(prompt, row[t:]), own[: len(prompt) + new]
            n = min(len(text), len(own))
            np.testing.assert_array_equal(text[:n], own[:n])
            # the rest is padding: the row has ended, or others are longer
            assert (text[n:] == pad).all() and (own[n:] == pad).all()
            if beams > 1:
                continue
            circle = "lsh" in config.layer_types or config.local_num_chunks_before > 1
            if "cache_dtype" in cache:
                continue  # keys and values are rounded
            if not cache and config.attention_scope == "chunk" and circle:
                continue  # decoding in chunks approximates a forward pass
            if forgets and len(text) > bound[0] and len(config.layer_types) > 1:
                continue  # what is kept knows of what is forgotten
            if forgets and "hash" in config.layer_types:
                continue  # the mean of its keys knows of what is forgotten
            end = generation.check(
                text, len(prompt), partial(next_logits, model, len(prompt), forgets), options, eos
            )
            assert (text[end:] == pad).all()


def next_logits(model, prompt, bound, ids):
    """Logits (v,) of what follows ids (t,), by the reference: the number of buckets is the
    prompt's. After the prompt, only the tokens that a bounded cache keeps are seen."""
    config, places = model.config, np.arange(len(ids))
    if bound and len(ids) > prompt:
        places = places[oldest_kept(len(ids), *bound)[-1] :]
    ids, t = ids[places], len(places)
    m = config.lsh_attn_chunk_length
    if config.num_buckets is None:
        hashed = prompt if config.attention_scope == "bucket" else max(prompt, m + 1)
        n = evaluated_length(config, hashed)
        config = with_buckets(config, n)
    n = evaluated_length(config, t)
    # the same weights and rotations, and that number of buckets at every length
    found = model_of(config)(ids[None], position_ids=places, rng=7, output_buckets=True).buckets
    hashing = [known_buckets(x, config, 1, config.num_hashes, n) for x in found]
    padded, rest = at_length(config, n, ids=ids[None], mask=None, positions=places)
    logits = reference.language_model_logits(
        head_of(model), config, padded, hashing=hashing, **rest
    )
    return logits[0, t - 1]


QK = np.zeros((1, 1, 8, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: rc.full_attention(QK, None, QK, causal=True), "is_causal"),
        (lambda: rc.local_attention(QK, QK, QK, chunk_lenght=4), "chunk_length"),
        (lambda: rc.lsh_attention(QK, QK, num_hash=2), "num_hashes"),
        (lambda: rc.lsh_hash(QK, num_bucket=2, num_hashes=1), "num_buckets"),
        (lambda: rc.lsh_report(QK, QK, num_hash=2), "num_hashes"),
        (lambda: rc.tune_lsh(QK, QK, local_windows=2), "local_window"),
        (lambda: rc.ReformerModel(rc.ReformerConfig(), rgn=0), "rng"),
        (lambda: rc.ReformerEncoderDecoder(None, None, rgn=0), "rng"),
        (lambda: rc.AdamW({}, betass=0), "betas"),
        (lambda: rc.Adafactor({}, weight_deacy=0), "weight_decay"),
        (lambda: rc.schedules.linear(5, warmpu=3), "warmup"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest(call, nearest):
    with pytest.raises(TypeError, match=rf"has no such argument; did you mean {nearest}\?"):
        call()
