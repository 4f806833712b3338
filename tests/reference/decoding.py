"""Attention of a text that grows token by token, computed anew for each from the definitions."""

import numpy as np

from reference import attention, hashing


def projections(x, norm, wq, wk, wv, rotations, num_buckets, h):
    """Keys (b, hk, t, d) or shared queries (b, h, t, d), values (b, hk, t, d), and bucket ids
    (b, h, r, t) or None."""
    n, d = normed(x, norm), len(wq) // h
    k = heads(n @ (wq if wk is None or rotations is not None else wk).T, d)
    v = heads(n @ wv.T, d)
    if rotations is None:
        return k.astype(wv.dtype), v.astype(wv.dtype), None
    ids = hashing.lsh_hash(k, rotations, num_buckets)
    return k.astype(wv.dtype), v.astype(wv.dtype), ids.astype(np.int32)


def normed(x, norm):
    x = np.float64(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12) * norm[0] + norm[1]


def heads(y, d):
    b, t, width = y.shape
    return y.reshape(b, t, width // d, d).transpose(0, 2, 1, 3)


def window(ids, i, m, before, oldest=0):
    """The sorted tokens from `oldest` to i, around i, the newest: its chunk and those before, on a
    circle."""
    order = oldest + np.argsort(ids[oldest : i + 1], kind="stable")
    first = (int(np.flatnonzero(order == i)[0]) // m - before) * m
    return order[np.arange(first, first + (1 + before) * m) % len(order)]


def oldest_kept(t, length, drop):
    """(t,): the oldest token that a cache of `length` tokens holds with each token: it forgets its
    `drop` oldest when one does not fit."""
    cache, found = [], []
    for i in range(t):
        if len(cache) == length:
            del cache[:drop]
        cache.append(i)
        found.append(cache[0])
    return np.array(found)


def outputs(
    x, norm, weights, rotations, num_buckets, *, scope, h, m, before, softcap=None, across=True,
    duplicates=True, length=None, drop=None, cached=lambda x: x,
):  # fmt: skip
    """(b, t, c): row i is what a cache that holds the tokens before, or what is kept of them,
    gives for token i.

    The cache keeps cached(k / sqrt(d)) and cached(v). A token of a layer that hashes, which attends
    to itself alone, has its own value, not the cache's.
    """
    wq, wk, wv, wo = (None if w is None else np.float64(w) for w in weights)
    n = normed(x, norm)
    d = len(wq) // h
    q, v = heads(n @ wq.T, d), attention.for_each_head(heads(n @ wv.T, d), h)
    k = attention.normalised(q) if wk is None else attention.for_each_head(heads(n @ wk.T, d), h)
    ids = None if rotations is None else hashing.lsh_hash(q, np.float64(rotations), num_buckets)
    b, _, t, d = q.shape
    own, k, v = v, cached(k / np.sqrt(d)), cached(v)
    out = np.zeros(q.shape)
    oldest = np.zeros(t, int) if length is None else oldest_kept(t, length, drop)
    for at in np.ndindex(b, h):
        for i, first in enumerate(oldest):
            if scope == "full":
                met = np.arange(first, i + 1)
            elif scope == "local":
                met = np.arange(max(0, i // m - before) * m, i + 1)
            elif scope == "chunk" and i - first < m:
                met = np.arange(first, i + 1)
            elif scope == "chunk":
                met = np.concatenate([window(round_, i, m, before, first) for round_ in ids[at]])
            else:
                met = np.concatenate(
                    [first + np.flatnonzero(x[first : i + 1] == x[i]) for x in ids[at]]
                )
            if scope == "chunk" and i - first >= m and not across:
                seen = [(x, np.unique(window(x, i, m, before, first))) for x in ids[at]]
                met = np.concatenate([own[round_[own] == round_[i]] for round_, own in seen])
            if scope != "local" and not duplicates:
                met = np.unique(met)
            s = k[at][met] @ q[at][i]
            if softcap is not None:
                s = softcap * np.tanh(s / softcap)
            if wk is None:
                s = np.where(met == i, attention.SELF, s)
            p = attention.softmax(s)
            if (
                scope == "chunk" and across and duplicates and (met == i).all()
            ):  # constants, as Hugging Face rounds them
                rounds = np.arange(len(met))
                p = attention.softmax_as_rounded(s.astype(np.asarray(x).dtype), rounds)
            elif rotations is not None and (met == i).all():
                out[at][i] = own[at][i]
                continue
            out[at][i] = p @ v[at][met]
    return out.transpose(0, 2, 1, 3).reshape(b, t, -1) @ wo.T
