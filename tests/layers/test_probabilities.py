"""Attention probabilities written out: times the values, they are what the operations give."""

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config
from tolerances import assert_close

from reformer_c import ops
from reformer_c.layers.probabilities import local_probabilities
from reformer_c.models.model import ReformerModel

M = 4


def dense(probabilities, t, before, after):
    """Windows of chunks (b, h, n, m, window) -> (b, h, t, t), by the chunks' places on a circle."""
    b, h, n, m, _ = probabilities.shape
    out = np.zeros((b, h, n * m, n * m))
    for c in range(n):
        for j, offset in enumerate(range(-before, after + 1)):
            other = (c + offset) % n
            rows, keys = np.s_[c * m : (c + 1) * m], np.s_[other * m : (other + 1) * m]
            out[:, :, rows, keys] += probabilities[:, :, c, :, j * m : (j + 1) * m]
    assert not out[:, :, t:].any() and not out[:, :, :, t:].any()
    return out[:, :, :t, :t]


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("before", "after"), [(1, 0), (1, 1), (0, 0), (2, 1)])
@pytest.mark.parametrize("t", [5, 8, 9, 15, 22])
@pytest.mark.parametrize("shared", [True, False])
def test_local_probabilities_give_the_output_at_any_length(
    t, before, after, is_causal, wrap, shared
):
    rng = np.random.default_rng(t)
    q, k, v = rng.standard_normal((3, 2, 3, t, 5))
    k = None if shared else k
    mask = np.ones((2, t), bool)
    mask[1, 1] = False
    rules = dict(
        chunk_length=M, num_chunks_before=before, num_chunks_after=after, is_causal=is_causal,
        attention_mask=mask, wrap=wrap,
    )  # fmt: skip
    chunks = -(-t // M)
    if wrap and max(before, after) >= chunks:
        pytest.skip("on so short a circle a chunk meets one of its neighbours twice")
    p = local_probabilities(q, k, **rules)
    assert p.shape == (2, 3, chunks, M, (1 + before + after) * M)
    out = ops.local_attention(q, k, v, shared_qk=shared, **rules)
    assert_close(dense(p, t, before, after) @ v, out, "self_only" if shared else "attention")


@pytest.mark.parametrize("is_decoder", [True, False])
@pytest.mark.parametrize("t", [4, 16, 37, 41])
def test_exact_buckets_have_probabilities_at_any_length(t, is_decoder):
    config = small_config(
        attn_layers=["local", "lsh", "local", "lsh"], attention_scope="bucket",
        is_decoder=is_decoder,
    )  # fmt: skip
    model = randomise(ReformerModel(config, rng=0, dtype=np.float64))
    ids = random_ids((2, t))
    output = model(ids, rng=0, output_attentions=True)
    n = -(-t // M)
    local = (2, 2, t, t) if n == 1 else (2, 2, n, M, 2 * M)
    assert [p.shape for p in output.attentions] == [local, (2, 2, t, t)] * 2
    for p in output.attentions:
        rows = p.reshape(2, 2, -1, p.shape[-1]).sum(axis=-1)[:, :, :t]
        np.testing.assert_allclose(rows, 1)
    np.testing.assert_array_equal(model(ids, rng=0).last_hidden_state, output.last_hidden_state)
