"""Against live transformers: the texts that generate writes."""

import json
import warnings

import numpy as np
import pytest
from tolerances import assert_close

from reformer_c.models.config import ReformerConfig
from reformer_c.models.decoder import num_buckets_of
from reformer_c.models.generation_config import GenerationConfig
from reformer_c.models.model import ReformerModelWithLMHead
from reformer_c.models.rules import Rules
from reformer_c.models.sampling import softmax

from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

from . import live

FIELDS = {
    "attn_layers": ["local", "local"], "attention_head_size": 8, "num_attention_heads": 2,
    "hidden_size": 16, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [6, 10],
    "max_position_embeddings": 256, "feed_forward_size": 20, "vocab_size": 30, "num_hashes": 2,
    "num_buckets": 4, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "is_decoder": True,
    "initializer_range": 0.4, "hash_seed": 3, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def pair(**changes):
    """Our model and theirs, with the same weights."""
    fields = FIELDS | changes
    config = ReformerConfig(**fields, apply_lm_head_bias=live.APPLIES_BIAS)
    model = ReformerModelWithLMHead(config, rng=0)
    theirs = live.transformers.ReformerModelWithLMHead(live.transformers.ReformerConfig(**fields))
    live.load(theirs, model.parameters)
    return model, theirs.eval()


def both(model, theirs, ids, rotations=None, **options):
    """What both write after the prompts."""
    options = {"max_new_tokens": 40, "eos_token_id": 2, "pad_token_id": 0} | options
    defaults = {"use_cache": True, "do_sample": False}
    written = theirs.generate(live.torch.tensor(ids), **defaults | options).numpy()
    return model.generate(ids, rotations=rotations, **options), written


@pytest.mark.parametrize("t", [1, 5, 8, 9, 40])
def test_greedy_texts_of_local_models_are_theirs(t):
    model, theirs = pair()
    ids = np.random.default_rng(t).integers(3, 30, (3, t))
    ours, written = both(model, theirs, ids)
    assert np.array_equal(ours, written)


def only_even(row, ids):
    """Another set of tokens for each prompt, and for each newest token."""
    return [token for token in range(30) if (token + row + int(ids[-1])) % 2 == 0]


RULES = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"bad_words_ids": [[5], [7, 8], [9, 10, 11]]},
    # an end is no bad word
    {"bad_words_ids": [[2], [5, 2], [12]], "eos_token_id": [2, 4]},
    {"min_new_tokens": 20, "eos_token_id": [2, 3, 4, 5, 6, 7, 8, 9]},
    {"max_new_tokens": None, "max_length": 33},
    {"min_length": 30, "eos_token_id": [2, 3, 4, 5, 6, 7, 8, 9]},
    {"no_repeat_ngram_size": 1, "max_new_tokens": 9},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.5},
    {"suppress_tokens": [3, 5, 11, 17]},
    {"begin_suppress_tokens": list(range(3, 20))},
    {"forced_eos_token_id": 7},
    {"forced_eos_token_id": [7, 9], "max_new_tokens": 5},
    {"prefix_allowed_tokens_fn": only_even},
    # all allowed tokens are banned by other options
    {"prefix_allowed_tokens_fn": lambda row, ids: [5], "bad_words_ids": [[5]],
     "max_new_tokens": 3},
    {"renormalize_logits": True, "repetition_penalty": 1.7},
    # what does not count without do_sample
    {"temperature": 0.3, "top_k": 2, "top_p": 0.5, "typical_p": 0.2},
]  # fmt: skip
NAMES = [" ".join(map(str, rules)) for rules in RULES]


@pytest.mark.parametrize("options", RULES, ids=NAMES)
def test_rules_that_change_logits_are_theirs(options):
    model, theirs = pair()
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    ours, written = both(model, theirs, ids, **options)
    assert np.array_equal(ours, written)


@pytest.mark.parametrize("options", RULES, ids=NAMES)
def test_the_same_rules_in_a_beam_search_are_theirs(options):
    if options.get("forced_eos_token_id") == [7, 9]:
        pytest.skip("equal beams: theirs picks one of them by no rule")
    model, theirs = pair()
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    ours, written = both(model, theirs, ids, num_beams=3, num_return_sequences=2, **options)
    assert_same_until_the_end(ours, written, 12, options.get("eos_token_id", 2))


@pytest.mark.parametrize(
    "options",
    [{"forced_bos_token_id": 9}, {"forced_bos_token_id": 9, "begin_suppress_tokens": [8, 15, 22]}],
)
def test_a_forced_beginning_is_theirs(options):
    model, theirs = pair()
    ids = np.array([[4], [17]])
    for beams in (1, 3):
        ours, written = both(model, theirs, ids, num_beams=beams, max_new_tokens=9, **options)
        assert_same_until_the_end(ours, written, 1, 2)
        assert (ours[:, 1] == 9).all()


def assert_same_until_the_end(ours, written, t, ends):
    """Theirs fills up with the pad token, or with an end where that is 0."""
    ended = np.isin(written, [0, *np.ravel(ends)])
    ended[:, :t] = False
    shared = np.cumsum(ended, axis=1) <= 1
    width = min(ours.shape[1], written.shape[1])
    assert np.array_equal(ours[:, :width][shared[:, :width]], written[:, :width][shared[:, :width]])


# ---- the options of a folder ----


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({}, None),
        ({"repetition_penalty": 1.7, "max_length": 25}, None),
        ({}, {"max_new_tokens": 7, "repetition_penalty": 3.0}),
        ({}, {"max_new_tokens": 30, "eos_token_id": [4, 6, 8], "pad_token_id": 1}),
        # one file replaces the other
        ({"repetition_penalty": 1.7}, {"max_new_tokens": 30}),
        ({}, {"max_length": 40, "no_repeat_ngram_size": 2, "num_beams": 2, "eos_token_id": 5}),
    ],
)
def test_a_folder_s_options_are_read_as_theirs(tmp_path, config, generation):
    model, _ = pair()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = live.transformers.ReformerModelWithLMHead.from_pretrained(tmp_path).eval()
    ours = ReformerModelWithLMHead.from_pretrained(tmp_path)
    ours.config.apply_lm_head_bias = live.APPLIES_BIAS
    ids = np.random.default_rng(0).integers(3, 30, (3, 12))
    # without a length in the files, the defaults differ
    length = {} if "length" in str(config) + str(generation) or generation else {"max_length": 50}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = theirs.generate(live.torch.tensor(ids), **length).numpy()
    assert np.array_equal(ours.generate(ids, **length), written)
    # and theirs opens what ours saves
    ours.save_pretrained(tmp_path / "again")
    again = live.transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    for name, value in ours.generation_config.to_dict().items():
        assert getattr(again, name) == value


def test_what_theirs_writes_by_default_is_no_warning():
    defaults = live.transformers.GenerationConfig._get_default_generation_params()
    names = vars(live.transformers.GenerationConfig())
    for values in (defaults, dict.fromkeys(names), {**names, "max_cache_len": 3}):
        config = GenerationConfig.from_dict(values)
        assert {name for name in values if getattr(config, name, None) is not None} <= {*defaults}
    # with these, ours writes as by its own defaults
    model, theirs = pair()
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    model.generation_config = GenerationConfig.from_dict({**defaults, "max_length": 40})
    model.generation_config.eos_token_id = 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = theirs.generate(live.torch.tensor(ids), max_length=40).numpy()
    assert np.array_equal(model.generate(ids), written)


# ---- the number of buckets ----


def undecided(**changes):
    fields = {"attn_layers": ["local", "lsh"], "num_buckets": None, "axial_pos_embds": False,
              "hidden_dropout_prob": 0.0}  # fmt: skip
    return pair(**fields | changes)


@pytest.mark.parametrize("t", [9, 16, 20, 31, 100, 256])
@pytest.mark.parametrize("local", [8, 12])
def test_a_prompt_is_hashed_into_as_many_buckets_as_theirs(t, local):
    if t == 256 and local == 12:
        pytest.skip("padded, it is longer than their positions")
    model, theirs = undecided(local_attn_chunk_length=local)
    theirs(live.torch.full((1, t), 5))
    assert model.config.num_buckets is None
    found = num_buckets_of(model.config, t)
    assert (found if isinstance(found, int) else list(found)) == theirs.config.num_buckets


@pytest.mark.parametrize("t", [8, 16, 40, 104, 256])
def test_a_training_step_chooses_as_many_buckets_as_theirs(t):
    model, theirs = undecided()
    ids = np.full((1, t), 5)
    theirs.train()(live.torch.tensor(ids))
    model.loss_and_gradients(ids, labels=ids, rng=0)
    assert model.config.num_buckets == theirs.config.num_buckets


# ---- draws ----


WARPERS = [
    {},
    {"top_k": None},
    {"top_k": 0},
    {"top_k": 3},
    {"temperature": 0.4},
    {"temperature": 3.0, "top_k": 0},
    {"top_p": 0.7, "top_k": 0},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 1.5},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.3},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95,
     "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "top_p": 0.8,
     "renormalize_logits": True},
]  # fmt: skip


@pytest.mark.parametrize("options", WARPERS, ids=str)
def test_the_distribution_of_each_draw_is_theirs(monkeypatch, options):
    model, theirs = pair(vocab_size=60)
    ids = np.random.default_rng(0).integers(3, 60, (1, 12))
    options = {"max_new_tokens": 25, "eos_token_id": None, "pad_token_id": 0} | options
    with live.torch.random.fork_rng():
        live.torch.manual_seed(0)
        drawn = theirs.generate(
            live.torch.tensor(ids), do_sample=True, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
    tokens, seen = drawn.sequences[0].tolist(), []

    def choose(rules, z, text):
        seen.append(softmax(rules.warped(z)))
        return tokens[len(text.ids)]

    monkeypatch.setattr(Rules, "choose", choose)
    model.generate(ids, do_sample=True, **options)
    expected = [live.torch.softmax(z[0].double(), 0).numpy() for z in drawn.scores]
    assert_close(seen, expected, "replay", "float32")
    assert np.array_equal(np.array(seen) > 0, np.array(expected) > 0)


class Still:
    """A generator whose noise is 0."""

    def gumbel(self, size):
        return np.zeros(size)


def take_the_likeliest(monkeypatch):
    """In place of each draw among beams, in both."""
    monkeypatch.setattr(
        live.torch, "multinomial", lambda p, num_samples: live.torch.topk(p, num_samples)[1]
    )
    draws = lambda self, seed, prompts, copies: [Still()] * len(prompts)  # noqa: E731
    monkeypatch.setattr(ReformerModelWithLMHead, "_draws", draws)


@pytest.mark.parametrize("options", WARPERS, ids=str)
@pytest.mark.parametrize("ends", [2, [2, 3, 4, 5]])
def test_beams_are_drawn_from_their_distribution(monkeypatch, options, ends):
    """Both take the likeliest token instead of drawing."""
    model, theirs = pair(vocab_size=60)
    ids = np.random.default_rng(0).integers(3, 60, (2, 12))
    options = {"max_new_tokens": 15, "eos_token_id": ends, "pad_token_id": 0, "num_beams": 3,
               "num_return_sequences": 2, "do_sample": True} | options  # fmt: skip
    take_the_likeliest(monkeypatch)
    written = theirs.generate(live.torch.tensor(ids), **options).numpy()
    assert_same_until_the_end(model.generate(ids, **options), written, 12, ends)


# ---- beams ----


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("ends", [[2], [2, 3, 4, 5, 6, 7]])
def test_beams_of_local_models_are_theirs(early_stopping, length_penalty, ends):
    model, theirs = pair()
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    options = {"num_beams": 4, "num_return_sequences": 3, "early_stopping": early_stopping}
    ours, written = both(
        model, theirs, ids, length_penalty=length_penalty, eos_token_id=ends, max_new_tokens=25,
        **options,
    )  # fmt: skip
    assert_same_until_the_end(ours, written, 12, ends)


# ---- options that meet ----


MAY_MEET = {
    "repetition_penalty": [0.5, 1.3, 3.0],
    "no_repeat_ngram_size": [2, 3],
    "bad_words_ids": [[[5], [7, 8]], [[2], [9]], [[3, 4, 5], [6]]],
    "suppress_tokens": [[3, 8, 12]],
    "begin_suppress_tokens": [[4, 8, 15]],
    "forced_eos_token_id": [7],
    "forced_bos_token_id": [19],
    "renormalize_logits": [True],
}
MAY_MEET_IN_BEAMS = {
    "num_return_sequences": [1, 2],
    "length_penalty": [-1.0, 0.0, 0.5, 2.0],
    "early_stopping": [True, False, "never"],
}
MAY_MEET_IN_DRAWS = {
    "temperature": [0.5, 2.0],
    "top_k": [0, 2, 5, None],
    "top_p": [0.3, 0.9],
    "min_p": [0.05, 0.5],
    "typical_p": [0.3, 0.9],
    "epsilon_cutoff": [0.01, 0.2],
    "eta_cutoff": [0.05],
}


def some(rng, options, share):
    """A few options, each with one of its values."""
    return {
        name: values[rng.integers(len(values))]
        for name, values in options.items() if rng.random() < share
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_options_that_meet_are_theirs(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    model, theirs = pair(vocab_size=60)
    take_the_likeliest(monkeypatch)
    for beams in (1, 2, 5):
        t, rows = int(rng.choice([1, 2, 8, 20])), int(rng.integers(1, 4))
        options = {"max_new_tokens": int(rng.integers(3, 16)), "num_beams": beams}
        ends = [None, 2, [2, 3, 4]][rng.integers(3)]
        options |= some(rng, MAY_MEET, 0.3)
        options |= {"min_new_tokens": 3} if ends and rng.random() < 0.3 else {}
        options |= some(rng, MAY_MEET_IN_BEAMS, 0.5) if beams > 1 else {}
        if beams > 1 and rng.random() < 0.5:
            options |= {"do_sample": True} | some(rng, MAY_MEET_IN_DRAWS, 0.3)
        ids = rng.integers(3, 60, (rows, t))
        ours, written = both(model, theirs, ids, eos_token_id=ends, **options)
        assert_same_until_the_end(ours, written, t, [] if ends is None else ends)


@pytest.mark.parametrize("t", [3, 24, 64])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_fixed_chunks_are_decoded_as_their_cache_does(t, before):
    """One text of whole chunks, or shorter than one, and a hash_seed: where their cache is sound.

    After a padded prompt they guess from the largest id whether it was padded, and hash the new
    token into other buckets if the guess is wrong. And after exactly one chunk they attend to all.
    """
    model, theirs = pair(attn_layers=["lsh", "local", "lsh"], lsh_num_chunks_before=before)
    with live.torch.random.fork_rng():
        live.torch.manual_seed(3)
        rotations = [live.torch.randn(2, 8, 2, 2).numpy()] * 2
    ids = np.random.default_rng(t).integers(3, 30, (1, t))
    ours, written = both(model, theirs, ids, rotations, max_new_tokens=120, eos_token_id=None)
    assert np.array_equal(ours, written)
