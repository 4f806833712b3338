"""Probabilities of LSH attention where keys count once in all rounds, or only own buckets do."""

import numpy as np
import pytest
from reference import attention
from tolerances import assert_close

from reformer_c.layers.probabilities import lsh_probabilities

M, BEFORE, ROUNDS = 4, 1, 3


@pytest.mark.parametrize(
    ("across", "duplicates", "after", "is_causal"),
    [
        (*kind, after, is_causal)
        for kind in [(True, False), (False, True), (False, False)]
        for after, is_causal in [(0, True), (0, False), (1, False)]
    ],
)
def test_a_round_s_probabilities_are_those_of_the_reference(
    rng, across, duplicates, after, is_causal
):
    """Each round's row is a share of the reference's row, and with duplicates=False no key of a row
    has a probability in two rounds."""
    b, h, t = 2, 2, 24
    qk, mask = rng.standard_normal((b, h, t, 6)), rng.random((b, t)) > 0.2
    buckets = rng.integers(0, 4, (b, h, ROUNDS, t))
    rules = {
        "num_chunks_before": BEFORE, "num_chunks_after": after, "is_causal": is_causal,
        "attention_mask": mask, "attend_across_buckets": across,
        "allow_duplicate_attention": duplicates, "scope": "chunk",
    }  # fmt: skip
    found = lsh_probabilities(qk, buckets, chunk_length=M, **rules)
    weights = attention.lsh(qk, buckets, chunk_length=M, **rules).weights
    order = np.argsort(buckets, axis=-1, kind="stable").reshape(b, h, -1, M)
    chunks = order.shape[2]
    total = np.zeros((b, h, t, t))
    for at in np.ndindex(b, h, chunks, M):
        head, (chunk, place) = at[:2], at[2:]
        query = order[at]
        keys = np.concatenate(
            [order[(*head, (chunk + o) % chunks)] for o in range(-BEFORE, after + 1)]
        )
        row = found[(*head, chunk, place)]
        np.add.at(total[(*head, query)], keys, row > 0)
        others = (keys != query) & mask[at[0], keys] & (row > 0)
        if others.sum() < 2:
            continue
        expected = weights[(*head, query)][keys][others]
        if not duplicates:
            assert_close(row[others] / row[others].sum(), expected / expected.sum(), "attention")
        assert (expected > 0).all()
    if not duplicates:
        real = np.broadcast_to(mask[:, None, None, :], total.shape)
        assert total[real].max() <= 1
        seen = real & ~np.eye(t, dtype=bool) & (weights > 0)
        rows = (seen.sum(axis=-1) > 0)[..., None]
        assert (total[seen & rows] == 1).all()
