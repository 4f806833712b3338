"""generate: the rules of choosing a token, and texts that can be repeated."""

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config

from reformer_c.generate import generate_tokens, probabilities
from reformer_c.model import ReformerModelWithLMHead


@pytest.fixture(scope="module")
def model():
    return randomise(ReformerModelWithLMHead(small_config(num_buckets=None), rng=0))


def decode(next_logits, ids, mask=None, **changes):
    options = {
        "max_new_tokens": 4, "do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
        "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": 0, "streamer": None,
        "draws": np.random.default_rng(0),
    }  # fmt: skip
    return generate_tokens(next_logits, np.array(ids), mask, **options | changes)


# ---- which tokens may come ----


def test_probabilities_are_a_softmax_at_a_temperature():
    logits = np.array([1.0, 2.0, -1.0])
    p = probabilities(logits, temperature=0.5)
    np.testing.assert_allclose(p, np.exp(2 * logits) / np.exp(2 * logits).sum())


def test_top_k_keeps_the_likeliest():
    p = probabilities(np.log([0.1, 0.4, 0.2, 0.3]), top_k=2)
    np.testing.assert_allclose(p, [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(probabilities(np.log([0.1, 0.9]), top_k=5), [0.1, 0.9])


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
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.2, 0.3], atol=0.03)


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


def test_the_streamer_sees_each_step():
    steps = []
    ids = decode(count_up, [[3], [6]], streamer=lambda new: steps.append(new.tolist()))
    assert steps == [[4, 7], [5, 8], [6, 9], [7, 0]]
    assert ids[:, 1:].T.tolist() == steps


def test_padding_does_not_go_through_the_model():
    seen = []

    def recording(ids):
        seen.append(ids.tolist())
        return count_up(ids)

    mask = np.array([[False, True], [True, True], [True, False]])
    ids = decode(recording, [[9, 1], [2, 3], [4, 9]], mask, max_new_tokens=2)
    assert ids.tolist() == [[9, 1, 2, 3], [2, 3, 4, 5], [4, 9, 5, 6]]
    assert seen == [[[1], [4]], [[2, 3]], [[1, 2], [4, 5]], [[2, 3, 4]]]


# ---- with a model ----


def test_greedy_generation_takes_the_likeliest_token_of_the_full_forward_pass():
    config = small_config(attn_layers=["local", "local"])
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    ids = random_ids((2, 9))
    out = model.generate(ids, max_new_tokens=12)
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


def test_rotations_stay_the_same_during_a_generation(model, monkeypatch):
    from reformer_c import ops

    keys = []
    original = ops.lsh_attention_forward

    def recording(*heads, **rules):
        keys.append((rules["rng"], rules["num_buckets"]))
        return original(*heads, **rules)

    monkeypatch.setattr(ops, "lsh_attention_forward", recording)
    model.generate(random_ids((1, 3)), max_new_tokens=20, rng=0)
    assert len(keys) == 2 * 20
    assert len(set(keys)) == 2


def test_injected_rotations_decide(model):
    rng = np.random.default_rng(0)
    # 3 + 20 tokens: 6 chunks of 4, 8 buckets
    rotations = [rng.standard_normal((2, 6, 2, 4)) for _ in range(2)]
    ids = random_ids((1, 3))
    one = model.generate(ids, max_new_tokens=20, rotations=rotations, rng=0)
    assert np.array_equal(one, model.generate(ids, max_new_tokens=20, rotations=rotations, rng=1))
    with pytest.raises(ValueError, match=r"^rotations\[0\]: expected shape \(2, 6, 2, 4\)"):
        model.generate(ids, max_new_tokens=20, rotations=[r[..., :2] for r in rotations])


def test_a_row_comes_out_as_it_does_alone(model):
    ids, mask = random_ids((3, 7)), np.ones((3, 7), int)
    mask[0, :4], mask[1, 5:] = 0, 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, rng=0)
    for row in range(3):
        prompt = ids[row][mask[row] == 1][None]
        # the number of buckets follows from the longest row: 7 + 8
        alone = model.generate(prompt, max_new_tokens=15 - prompt.shape[1], rng=0)
        new = together[row, 7:]
        assert np.array_equal(alone[0, prompt.shape[1] :][: len(new)], new)


def test_a_prompt_of_one_token_and_no_new_tokens_are_fine(model):
    assert model.generate([[3]], max_new_tokens=41, rng=0).shape == (1, 42)
    assert model.generate([[3]], max_new_tokens=0).tolist() == [[3]]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"input_ids": np.zeros((1, 0), int)}, "input_ids"),
        ({"input_ids": [3]}, "input_ids"),
        ({"input_ids": [[13]]}, "input_ids"),
        ({"input_ids": [[0.5]]}, "input_ids"),
        ({"max_new_tokens": 42}, "max_new_tokens"),
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
        ({"attention_mask": [[0]]}, "attention_mask"),
        ({"attention_mask": [[1, 1]]}, "attention_mask"),
        ({"rotations": []}, "rotations"),
        ({"num_hashes": 0}, "num_hashes"),
        ({"streamer": 3}, "streamer"),
        ({"rng": "a"}, "rng"),
    ],
)
def test_bad_arguments_are_named(model, changes, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b.*: "):
        model.generate(**{"input_ids": [[3]], "max_new_tokens": 2, "do_sample": True} | changes)
