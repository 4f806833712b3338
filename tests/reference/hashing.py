"""Angular locality-sensitive hashing (the paper, section 2; Andoni et al. 2015)."""

from math import isqrt, prod

import numpy as np


def factors_of(num_buckets):
    """num_buckets as a list of factors: one integer counts as one factor."""
    return [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)


def projections(x, rotations):
    """u (b, h, r, t, s): x (b, h, t, d) along the random directions (h, d, r, s)."""
    return np.einsum("bhtd,hdrs->bhrts", np.float64(x), np.float64(rotations))


def lsh_hash(x, rotations, num_buckets, attention_mask=None):
    """Bucket ids (b, h, r, t) of x (b, h, t, d); rotations (h, d, r, sum(factors) / 2).

    The s axis of the projections is cut into one piece of f / 2 for each factor f. A piece's hash
    is the direction that is nearest among the random ones and their opposites; the first wins a
    tie. The pieces' hashes are the digits of the bucket id, the first digit counting ones. A
    masked position gets one more id, past all others.
    """
    factors = factors_of(num_buckets)
    u = projections(x, rotations)
    buckets, place, start = 0, 1, 0
    for factor in factors:
        piece = u[..., start : start + factor // 2]
        digit = np.argmax(np.concatenate([piece, -piece], axis=-1), axis=-1)
        buckets = buckets + place * digit
        place, start = place * factor, start + factor // 2
    if attention_mask is not None:
        real = np.asarray(attention_mask) != 0
        buckets = np.where(real[:, None, None, :], buckets, prod(factors))
    return buckets


def choose_num_buckets(t, chunk_length, max_position_embeddings=None):
    """A power of two of about twice the number of chunks; in two factors where that is many."""
    longest = t if max_position_embeddings is None else max_position_embeddings
    chunks = max(1, -(-t // chunk_length))
    power = (2 * chunks).bit_length() - 1
    limit = 2 * max(isqrt(longest // chunk_length), chunk_length)
    if 2**power > limit:
        return (2 ** (power // 2), 2 ** (power - power // 2))
    return 2**power
