"""generate: the rules of choosing a token, and reproducible texts."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config
from tolerances import assert_close, tolerance

from reformer_c.models.decoder import num_buckets_of
from reformer_c.models.generation_config import GenerationConfig
from reformer_c.models.model import ReformerModelWithLMHead
from reformer_c.models.rules import Rules
from reformer_c.models.sampling import probabilities
from reformer_c.models.sources import UncachedSource
from reformer_c.models.strategies import _largest, beam_search, stream_tokens


@pytest.fixture(scope="module")
def model():
    return randomise(ReformerModelWithLMHead(small_config(num_buckets=None), rng=0))


FUNCTIONS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


def make_rules(**options):
    """The rules of a call whose prompts have one token, of a vocabulary of any size."""
    functions = {name: options.pop(name) for name in FUNCTIONS if name in options}
    options = {"max_new_tokens": 4, "pad_token_id": 0, "top_k": 0} | options
    return Rules(GenerationConfig().resolved(options, 1, 100, 1000), **functions)


def generators(count):
    return [np.random.default_rng(i) for i in range(count)]


def decode(next_logits, prompts, **changes):
    """Prompts and new tokens (n, t + new) from a function of ids."""
    rules = make_rules(**changes)
    copies = rules.options.num_return_sequences
    prompts = [np.array(prompt) for prompt in prompts]
    source = UncachedSource(lambda ids, prompt_index: next_logits(ids))
    steps = stream_tokens(source, prompts, rules, generators(len(prompts) * copies))
    new = np.array(list(steps)).T
    prompts = np.repeat(np.stack(prompts), copies, axis=0)
    return np.concatenate([prompts, new], axis=1)


def search(next_logits, prompts, **options):
    """The new tokens of each prompt's best texts."""
    source = UncachedSource(lambda ids, prompt_index: next_logits(ids))
    found = beam_search(source, prompts, make_rules(**options), generators(len(prompts)))
    return [[ids.tolist() for ids in texts] for texts in found]


# ---- which tokens may come ----


def test_probabilities_are_a_softmax_at_a_temperature():
    logits = np.array([1.0, 2.0, -1.0])
    p = probabilities(logits, temperature=0.5)
    np.testing.assert_allclose(p, np.exp(2 * logits) / np.exp(2 * logits).sum())


@pytest.mark.parametrize("options", [
    {"temperature": 1e-310}, {"temperature": 5e-324}, {"top_p": 5e-324}, {"top_k": 1},
    {"min_p": 1.0}, {"epsilon_cutoff": 1.0}, {"temperature": 1e-310, "top_p": 0.5},
    {"temperature": 1e-300, "typical_p": 0.5, "eta_cutoff": 0.5, "min_p": 0.5},
])  # fmt: skip
@pytest.mark.parametrize("z", [
    [1.0, -2.0, 3.0, 2.999], [-1.0, -np.inf, 0.5, -3e2], [1e38, -3e38, 3e38, 1.0],
])  # fmt: skip
def test_at_the_limit_the_likeliest_is_left(options, z):
    with np.errstate(all="raise"):
        assert probabilities(np.array(z), **options).tolist() == [0, 0, 1, 0]
        assert probabilities(np.zeros(3), min_p=5e-324).tolist() == [1 / 3] * 3
    least = np.array([1e-38, -2e-38, 3e-38, 2.999e-38])
    if "temperature" in options:
        assert probabilities(least, **options).tolist() == [0, 0, 1, 0]


def test_something_is_always_left():
    with np.errstate(all="raise"):
        p = probabilities(np.array([1.0, -2.0, 3.0, -np.inf]), typical_p=5e-324)
    assert p.sum() == 1


def test_at_a_high_temperature_all_are_alike():
    with np.errstate(all="raise"):
        p = probabilities(np.array([1e38, -2.0, 3.0]), temperature=1e308)
    np.testing.assert_allclose(p, 1 / 3)
    assert np.isfinite(probabilities(np.array([1.0, -np.inf]), temperature=1e308)).all()


@pytest.mark.parametrize(("penalty", "token"), [(1e-310, 2), (5e-324, 2), (1e308, 1)])
@pytest.mark.parametrize("rules", [
    {}, {"do_sample": True, "temperature": 1e-310}, {"do_sample": True, "top_k": 1},
    {"num_beams": 2}, {"num_beams": 2, "do_sample": True, "temperature": 1e-310},
])  # fmt: skip
def test_the_repetition_penalty_has_a_limit_too(penalty, token, rules):
    """The likeliest of the earlier tokens is chosen; or none of them is."""
    logits = np.array([[2.0, 1.5, 2.5, 1.0]])
    if "num_beams" in rules:  # there they are log-probabilities: all are negative
        token = 2 if penalty < 1 else 1
        found = search(lambda ids: np.repeat(logits, len(ids), 0), [np.array([2, 0])],
                       max_new_tokens=1, repetition_penalty=penalty, **rules)  # fmt: skip
        assert found[0][0] == [token] or penalty < 1
        return
    found = decode(lambda ids: np.repeat(logits, len(ids), 0), [[2, 0]], max_new_tokens=1,
                   repetition_penalty=penalty, **rules)  # fmt: skip
    assert found[0, -1] == token


def test_top_k_keeps_the_likeliest():
    p = probabilities(np.log([0.1, 0.4, 0.2, 0.3]), top_k=2)
    np.testing.assert_allclose(p, [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(probabilities(np.log([0.1, 0.9]), top_k=5), [0.1, 0.9])


def test_min_p_keeps_tokens_with_that_share_of_the_highest_probability():
    p = probabilities(np.log([0.1, 0.4, 0.2, 0.3]), min_p=0.5)
    np.testing.assert_allclose(p, [0, 4 / 9, 2 / 9, 3 / 9])


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.91, 4), (1e-9, 1)]
)
def test_top_p_keeps_the_fewest_tokens_with_that_much_probability(top_p, kept):
    p = probabilities(np.log([0.1, 0.4, 0.2, 0.3]), top_p=top_p)
    likeliest = [1, 3, 2, 0][:kept]
    assert sorted(np.flatnonzero(p)) == sorted(likeliest)
    assert p.sum() == pytest.approx(1)


def test_draws_follow_the_probabilities():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    ids = np.zeros((4000, 1), np.int64)
    drawn = decode(
        lambda ids: np.tile(logits, (len(ids), 1)), ids, max_new_tokens=1, do_sample=True
    )
    shares = np.bincount(drawn[:, 1], minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.2, 0.3], rtol=0, atol=tolerance("share"))


def test_the_repetition_penalty_makes_what_was_said_less_likely():
    logits = np.array([[2.0, 1.5, -1.0]])
    assert decode(lambda ids: logits, [[0]], max_new_tokens=3).tolist() == [[0, 0, 0, 0]]
    said = decode(lambda ids: logits, [[0]], max_new_tokens=3, repetition_penalty=2.0)
    assert said.tolist() == [[0, 1, 0, 0]]
    # a negative logit is made more negative
    low = np.array([[-1.0, -1.5]])
    assert decode(lambda ids: low, [[0]], max_new_tokens=1, repetition_penalty=2.0)[0, 1] == 1


# ---- when a row ends ----


def count_up(ids):
    return np.eye(10)[(ids[:, -1] + 1) % 10]


def test_a_row_ends_with_its_end_token_and_is_padded():
    ids = decode(count_up, [[3], [6]], eos_token_id=[5, 8], pad_token_id=1)
    assert ids.tolist() == [[3, 4, 5], [6, 7, 8]]
    ids = decode(count_up, [[3], [6]], eos_token_id=5, pad_token_id=1)
    assert ids.tolist() == [[3, 4, 5, 1, 1], [6, 7, 8, 9, 0]]


def test_a_criterion_ends_a_row():
    ids = decode(count_up, [[3], [6]], stopping_criteria=lambda ids, z: len(ids) == 3 and z[5] > 0)
    assert ids.tolist() == [[3, 4, 5, 0, 0], [6, 7, 8, 9, 0]]


def test_no_end_before_the_least_number_of_tokens():
    flat = np.log([0.1, 0.7, 0.2])
    ids = decode(lambda ids: np.tile(flat, (len(ids), 1)), [[0]], eos_token_id=1, min_new_tokens=2)
    assert ids.tolist() == [[0, 2, 2, 1]]


def test_bad_words_do_not_occur():
    ids = decode(count_up, [[3]], bad_words_ids=[[4]], max_new_tokens=3)
    assert 4 not in ids
    # only the second token of a word is banned, and only after the first
    ids = decode(count_up, [[3], [4]], bad_words_ids=[[4, 5], [8, 6]], max_new_tokens=3)
    assert ids[0, :2].tolist() == [3, 4]
    assert [4, 5] not in [row[i : i + 2].tolist() for row in ids for i in range(3)]


def test_a_processor_sees_the_text_and_has_the_last_word():
    seen = []

    def at_length_three(ids, z):
        seen.append(ids.tolist())
        return np.eye(10)[0] if len(ids) == 3 else z

    assert decode(count_up, [[3]], logits_processor=[at_length_three]).tolist() == [[3, 4, 5, 0, 1]]
    assert seen == [[3], [3, 4], [3, 4, 5], [3, 4, 5, 0]]


def test_several_draws_of_a_prompt_stand_side_by_side():
    flat = np.zeros(10)
    ids = decode(lambda ids: np.tile(flat, (len(ids), 1)), [[3], [6]], do_sample=True,
                 num_return_sequences=3, max_new_tokens=8)  # fmt: skip
    assert ids[:, 0].tolist() == [3, 3, 3, 6, 6, 6]
    assert len({tuple(row) for row in ids[:, 1:].tolist()}) == 6


# ---- beam search ----


def best_texts(table, first, n, length):
    """All texts of n tokens, best first, by their mean log-probability."""
    scored = []
    for tokens in np.ndindex(*[len(table)] * n):
        path = [first, *tokens]
        total = sum(table[i, j] for i, j in itertools.pairwise(path))
        scored.append((-total / n**length, tokens))
    return [list(tokens) for _, tokens in sorted(scored)]


@pytest.mark.parametrize("k", [1, 2, 7, 39, 40])
def test_the_largest_are_those_of_a_stable_sort(k):
    rng = np.random.default_rng(k)
    for values in (rng.standard_normal(40), rng.integers(0, 4, 40) * 1.0, np.zeros(40),
                   np.where(rng.random(40) < 0.9, -np.inf, 1.0), np.full(40, -np.inf)):  # fmt: skip
        assert np.array_equal(_largest(values, k), np.argsort(-values, kind="stable")[:k])


def test_as_many_beams_as_texts_find_the_best_of_all():
    rng = np.random.default_rng(0)
    table = np.log(rng.dirichlet(np.ones(3), 3))
    found = search(lambda ids: table[ids[:, -1]], [np.array([0])],
                   num_beams=27, max_new_tokens=3, num_return_sequences=5)  # fmt: skip
    assert found[0] == best_texts(table, 0, 3, 1.0)[:5]


def short_or_long(**options):
    """The best text if 0, the end, has probability 0.4 at the first step, and continuing as long as
    possible 0.6 * 0.8 ** n."""
    table = np.log([[1.0, 1e-30], [0.2, 0.8]])
    first = np.log([[0.4, 0.6]])

    def next_logits(ids):
        return np.repeat(first, len(ids), 0) if ids.shape[1] == 1 else table[ids[:, -1]]

    rules = {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": 0}
    return search(next_logits, [np.array([1])], **rules | options)[0][0]


@pytest.mark.parametrize(("length_penalty", "text"), [
    (-1.0, [0]), (2.0, [1] * 5), (-1e308, [0]), (1e308, [1] * 5), (-400.0, [0]), (400.0, [1] * 5),
])  # fmt: skip
def test_the_length_penalty_decides_between_short_and_long(length_penalty, text):
    assert short_or_long(length_penalty=length_penalty) == text


def test_beams_of_a_batch_are_those_of_each_prompt_alone():
    table = np.log(np.random.default_rng(1).dirichlet(np.ones(7), 7))
    options = {"num_beams": 3, "max_new_tokens": 6, "num_return_sequences": 3,
               "eos_token_id": [2, 5]}  # fmt: skip
    prompts = [np.array([0]), np.array([1, 3]), np.array([6])]
    together = search(lambda ids: table[ids[:, -1]], prompts, **options)
    for prompt, rows in zip(prompts, together, strict=True):
        assert [rows] == search(lambda ids: table[ids[:, -1]], [prompt], **options)


# ---- with a model ----


def test_greedy_generation_takes_the_likeliest_token_of_the_full_forward_pass():
    config = small_config(attn_layers=["local", "local"])
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    ids = random_ids((2, 9))
    out = model.generate(ids, max_new_tokens=12, eos_token_id=None)
    assert out.dtype == np.int64
    assert out.shape == (2, 21)
    assert np.array_equal(out[:, :9], ids)
    for t in range(9, 21):
        logits = model(out[:, :t]).logits[:, -1]
        assert np.array_equal(logits.argmax(axis=-1), out[:, t])


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_seed_repeats_a_text(model, do_sample):
    options = {"max_new_tokens": 15, "do_sample": do_sample, "temperature": 1.5, "top_p": 0.95}
    ids = random_ids((2, 5))
    one = model.generate(ids, rng=3, **options)
    assert np.array_equal(one, model.generate(ids, rng=3, **options))
    if do_sample:
        assert not np.array_equal(one, model.generate(ids, rng=4, **options))


def test_the_streamer_and_the_iterator_see_each_step(model):
    steps, options = [], {"max_new_tokens": 5, "do_sample": True, "rng": 0}
    ids = model.generate(random_ids((2, 3)), streamer=lambda new: steps.append(new), **options)
    assert np.array_equal(ids[:, 3:].T, steps)
    assert np.array_equal(list(model.stream(random_ids((2, 3)), **options)), steps)


def test_who_writes_into_a_step_changes_no_text(model):
    options = {"max_new_tokens": 8, "eos_token_id": None, "rng": 0}
    plain = [step.tolist() for step in model.stream([[3, 4]], **options)]
    found = []
    for step in model.stream([[3, 4]], **options):
        found.append(step.tolist())
        step[:] = 0
    assert found == plain


def test_padding_does_not_go_through_the_model(model, monkeypatch):
    from reformer_c.models import decoder as decode

    seen = []
    start = decode.Decoder.start
    monkeypatch.setattr(decode.Decoder, "start", lambda self, texts: (
        seen.extend(text.tolist() for text in texts), start(self, texts))[1])  # fmt: skip
    mask = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    model.generate([[9, 1], [2, 3], [4, 9], [9, 9]], attention_mask=mask, max_new_tokens=1)
    assert seen == [[1], [2, 3], [4], [model.config.pad_token_id]]


def test_a_prompt_without_tokens_begins_with_the_start_token():
    for bos, first in [(None, 0), (7, 7)]:
        config = small_config(attn_layers=["local"], bos_token_id=bos)
        model = randomise(ReformerModelWithLMHead(config, rng=0))
        ids = model.generate([[]], max_new_tokens=5)
        assert np.array_equal(ids, model.generate([[first]], max_new_tokens=5)[:, 1:])


def test_injected_rotations_decide(model):
    rng = np.random.default_rng(0)
    # 13 tokens: 4 chunks of 4, 8 buckets
    rotations = [rng.standard_normal((2, 6, 2, 4)) for _ in range(2)]
    ids = random_ids((1, 13))
    one = model.generate(ids, max_new_tokens=20, rotations=rotations, rng=0)
    assert np.array_equal(one, model.generate(ids, max_new_tokens=20, rotations=rotations, rng=1))
    with pytest.raises(ValueError, match=r"^rotations\[0\] must have shape \(2, 6, 2, 4\)"):
        model.generate(ids, max_new_tokens=20, rotations=[r[..., :2] for r in rotations])


@pytest.mark.parametrize("options", [
    {}, {"num_beams": 3}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": True, "num_beams": 3, "num_return_sequences": 2}, {"use_cache": False},
])  # fmt: skip
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_a_row_comes_out_as_it_does_alone(scope, options):
    config = small_config(num_buckets=None, attention_scope=scope)
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    ids, mask = random_ids((4, 24)), np.ones((4, 24), int)
    mask[0, :4], mask[1, 5:], mask[3, 3:] = 0, 0, 0
    ids[3, :3] = ids[1, :3]
    options = options | {"max_new_tokens": 8, "rng": 0, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **options)
    copies = options.get("num_return_sequences", 1)
    for row in range(4):
        prompt = ids[row][mask[row] == 1][None]
        alone = model.generate(prompt, **options)
        own = together[row * copies : (row + 1) * copies]
        assert np.array_equal(alone[:, prompt.shape[1] :], own[:, 24:])
        longer = model.generate(prompt, **options | {"max_new_tokens": 12})
        if "num_beams" not in options:  # otherwise later tokens decide, too
            assert np.array_equal(longer[:, : alone.shape[1]], alone)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_same_prompt_again_is_another_draw_of_it(model, beams):
    options = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None, "rng": 0,
               "temperature": 3.0}  # fmt: skip
    prompt, other = [3, 4, 5], [6, 7, 8]
    rows = model.generate([prompt, other, prompt, prompt], num_beams=beams, **options)
    assert len({tuple(row) for row in rows[[0, 2, 3]].tolist()}) == 3
    if beams == 1:
        draws = model.generate([prompt], num_return_sequences=3, **options)
        assert np.array_equal(rows[[0, 2, 3]], draws)


def test_a_row_s_draws_do_not_depend_on_the_end_of_another(model):
    options = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None, "rng": 0}
    ends = lambda ids, z: ids[0] == 6  # noqa: E731
    plain = model.generate([[6, 4], [3, 4]], **options)
    ended = model.generate([[6, 4], [3, 4]], stopping_criteria=ends, **options)
    assert np.array_equal(ended[1], plain[1])
    assert (ended[0, 3:] == model.config.pad_token_id).all()


def test_the_number_of_buckets_follows_from_the_prompt_as_a_forward_pass_chooses_it():
    config = small_config(num_buckets=None, max_position_embeddings=36, axial_pos_shape=[6, 6])
    # chunks of 4: a prompt of up to 4 is hashed when it has 5 tokens, which are 2 chunks
    for t, expected in [(1, 4), (4, 4), (5, 4), (8, 4), (9, 4), (13, 8), (17, 8), (36, (4, 4))]:
        assert num_buckets_of(config, t) == expected, t
    # whole buckets are hashed at every length
    whole = replace(config, attention_scope="bucket")
    assert [num_buckets_of(whole, t) for t in (1, 4, 5)] == [2, 2, 4]
    # a forward pass has whole chunks of both kinds of layers
    odd = small_config(num_buckets=None, local_attn_chunk_length=6)
    assert num_buckets_of(odd, 1) == num_buckets_of(odd, 12) == 4  # of 3 chunks
    assert num_buckets_of(odd, 13) == 8
    assert num_buckets_of(small_config(num_buckets=[2, 4]), 9) == [2, 4]


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("t", [3, 18])
@pytest.mark.parametrize("cached", [True, False])
def test_the_prompt_s_first_forward_pass_is_the_call_s(cached, t, scope):
    config = small_config(num_buckets=None, hash_seed=1, attention_scope=scope)
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    seen = []
    ids = random_ids((1, t))
    model.generate(ids, max_new_tokens=1, use_cache=cached,
                   logits_processor=lambda ids, z: seen.append(z) or z)  # fmt: skip
    assert_close(seen[0], model(ids).logits[0, -1], "rounding", "float32")


def test_a_prompt_of_one_token_and_no_new_tokens_are_fine(model):
    options = {"eos_token_id": None, "rng": 0}
    assert model.generate([[3]], max_new_tokens=41, **options).shape == (1, 42)
    assert model.generate([[3]], **options).shape == (1, 42)  # the default of 100 is reduced
    assert model.generate([[3]], max_new_tokens=0).tolist() == [[3]]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"input_ids": np.zeros((0, 3), int)}, "input_ids"),
        ({"input_ids": 3}, "input_ids"),
        (
            {"input_ids": [[1, 2], [3]]},
            "input_ids must have rows of one length, got rows of several",
        ),
        ({"prefix_allowed_tokens_fn": lambda row, ids: None}, "prefix_allowed_tokens_fn"),
        ({"epsilon_cutoff": 1.0}, "epsilon_cutoff"),
        ({"logits_processr": None}, "logits_processr: .*did you mean logits_processor"),
        ({"input_ids": [[[3]]]}, "input_ids"),
        ({"input_ids": np.ma.array([[3]])}, "input_ids must be an array without a mask"),
        ({"attention_mask": np.ma.array([[1]])}, "attention_mask must be an array without"),
        (
            {"logits_processor": lambda ids, z: np.ma.masked_less(z, 0)},
            "logits_processor must be an array without",
        ),
        ({"input_ids": None}, "input_ids"),
        ({"attention_mask": [[1], [1, 1]]}, "attention_mask"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"do_sample": 1}, "do_sample"),
        ({"top_k": 2.0}, "top_k"),
        ({"temperature": "hot"}, "temperature"),
        ({"bad_words_ids": [3]}, r"bad_words_ids must be a list of lists of integers, got \[3"),
        ({"bad_words_ids": 3}, "bad_words_ids"),
        ({"suppress_tokens": 3.5}, "suppress_tokens"),
        ({"prefix_allowed_tokens_fn": 3}, "prefix_allowed_tokens_fn"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: []}, "prefix_allowed_tokens_fn"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [13]}, "prefix_allowed_tokens_fn"),
        ({"generation_config": {"top_k": 2}}, "generation_config"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id"),
        ({"max_length": 1, "max_new_tokens": None}, "max_length"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"input_ids": [[13]]}, "input_ids"),
        ({"input_ids": [[0.5]]}, "input_ids"),
        ({"max_new_tokens": 42}, "max_new_tokens must be at most 41 .positions., got 42"),
        (
            {"max_length": 43, "max_new_tokens": None},
            "max_length must be at most 42 .positions., got 43",
        ),
        ({"input_ids": [[3] * 43]}, "input_ids must have at most 42 tokens .positions., got 43"),
        ({"input_ids": [[3] * 42]}, "max_new_tokens must be at most 0"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": np.nan}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": [1, "a"]}, "eos_token_id"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"eos_token_id": 13}, "eos_token_id"),
        ({"bad_words_ids": [[13]]}, "bad_words_ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_new_tokens": 3}, "min_new_tokens must be at most max_new_tokens=2, got 3"),
        ({"min_length": 9}, "min_length must be at most 3, the prompt and max_new.*, got 9"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"do_sample": False, "num_return_sequences": 2}, "num_return_sequences"),
        ({"do_sample": False, "num_beams": 2, "streamer": print}, "streamer"),
        ({"length_penalty": np.inf}, "length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"logits_processor": 3}, "logits_processor"),
        ({"stopping_criteria": [3]}, "stopping_criteria"),
        (
            {"stopping_criteria": lambda ids, z: np.array([True, False]), "eos_token_id": None},
            "stopping_criteria must return True or False",
        ),
        ({"logits_processor": lambda ids, z: None}, "logits_processor must return real logits"),
        ({"logits_processor": lambda ids, z: "much"}, "logits_processor must return real logits"),
        (
            {"logits_processor": lambda ids, z: z[1:]},
            "logits_processor must return logits of shape",
        ),
        ({"num_beam": 2}, "num_beam"),
        ({"attention_mask": [[1, 1]]}, "attention_mask"),
        ({"rotations": []}, "rotations"),
        ({"num_hashes": 0}, "num_hashes"),
        ({"streamer": 3}, "streamer"),
        ({"rng": "a"}, "rng"),
    ],
)
def test_bad_arguments_are_named(model, changes, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        model.generate(**{"input_ids": [[3]], "max_new_tokens": 2, "do_sample": True} | changes)


@pytest.mark.parametrize("rules", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_logits_that_are_not_numbers_are_an_error_and_no_text(rules):
    model = ReformerModelWithLMHead(small_config(num_buckets=None), rng=0)
    model.parameters["lm_head.decoder.weight"][:] = np.nan
    with pytest.raises(FloatingPointError, match="the largest logit after 3 tokens is nan"):
        model.generate([[1, 2, 3]], max_new_tokens=2, rng=0, **rules)


@pytest.mark.parametrize("rules", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_words_that_leave_no_token_are_an_error(model, rules):
    every = [[token] for token in range(model.config.vocab_size)]
    with pytest.raises(ValueError, match=r"bad_words_ids.*no token is left after 3 tokens"):
        model.generate([[1, 2, 3]], max_new_tokens=2, bad_words_ids=every, rng=0,
                       eos_token_id=None, **rules)  # fmt: skip
