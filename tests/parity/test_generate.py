"""Against live transformers: the texts that generate writes."""

import numpy as np
import pytest

from reformer_c.config import ReformerConfig
from reformer_c.model import ReformerModelWithLMHead

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
    written = theirs.generate(
        live.torch.tensor(ids), do_sample=False, **{"use_cache": True} | options
    ).numpy()
    return model.generate(ids, rotations=rotations, **options), written


@pytest.mark.parametrize("t", [1, 5, 8, 9, 40])
def test_greedy_texts_of_local_models_are_theirs(t):
    model, theirs = pair()
    ids = np.random.default_rng(t).integers(3, 30, (3, t))
    ours, written = both(model, theirs, ids)
    assert np.array_equal(ours, written)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"bad_words_ids": [[5], [7, 8], [9, 10, 11]]},
        {"min_new_tokens": 20, "eos_token_id": [2, 3, 4, 5, 6, 7, 8, 9]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_rules_that_change_logits_are_theirs(options):
    model, theirs = pair()
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    ours, written = both(model, theirs, ids, **options)
    assert np.array_equal(ours, written)


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
    # theirs fills up with the pad token, or with an end where that is 0
    ended = np.isin(written, [0, *ends])
    ended[:, : ids.shape[1]] = False
    shared = np.cumsum(ended, axis=1) <= 1
    width = min(ours.shape[1], written.shape[1])
    assert np.array_equal(ours[:, :width][shared[:, :width]], written[:, :width][shared[:, :width]])


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
