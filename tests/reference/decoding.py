"""Attention of a text that grows token by token, computed anew for each from the definitions."""

import numpy as np

from reference import attention, hashing


def projections(x, norm, wq, wk, wv, rotations, num_buckets, h):
    """Keys or shared queries, values (b, h, t, d), and bucket ids (b, h, r, t) or None."""
    n = normed(x, norm)
    k, v = heads(n @ (wq if wk is None or rotations is not None else wk).T, h), heads(n @ wv.T, h)
    if rotations is None:
        return k.astype(wv.dtype), v.astype(wv.dtype), None
    ids = hashing.lsh_hash(k, rotations, num_buckets)
    return k.astype(wv.dtype), v.astype(wv.dtype), ids.astype(np.int32)


def normed(x, norm):
    x = np.float64(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12) * norm[0] + norm[1]


def heads(y, h):
    b, t, width = y.shape
    return y.reshape(b, t, h, width // h).transpose(0, 2, 1, 3)


def window(ids, i, m, before):
    """The sorted tokens around token i, the newest: its chunk and those before, on a circle."""
    order = np.argsort(ids[: i + 1], kind="stable")
    first = (int(np.flatnonzero(order == i)[0]) // m - before) * m
    return order[np.arange(first, first + (1 + before) * m) % (i + 1)]


def outputs(
    x, norm, weights, rotations, num_buckets, *, scope, h, m, before, softcap=None, across=True,
    duplicates=True, cached=lambda x: x,
):  # fmt: skip
    """(b, t, c): row i is what a cache that holds the tokens before gives for token i.

    The cache keeps cached(k / sqrt(d)) and cached(v). A token of a layer that hashes, which attends
    to itself alone, has its own value, not the cache's.
    """
    wq, wk, wv, wo = (None if w is None else np.float64(w) for w in weights)
    n = normed(x, norm)
    q, v = heads(n @ wq.T, h), heads(n @ wv.T, h)
    k = attention.normalised(q) if wk is None else heads(n @ wk.T, h)
    ids = None if rotations is None else hashing.lsh_hash(q, np.float64(rotations), num_buckets)
    b, _, t, d = q.shape
    own, k, v = v, cached(k / np.sqrt(d)), cached(v)
    out = np.zeros(q.shape)
    for at in np.ndindex(b, h):
        for i in range(t):
            if scope == "full":
                met = np.arange(i + 1)
            elif scope == "local":
                met = np.arange(max(0, i // m - before) * m, i + 1)
            elif scope == "chunk" and i < m:
                met = np.arange(i + 1)
            elif scope == "chunk":
                met = np.concatenate([window(round_, i, m, before) for round_ in ids[at]])
            else:
                met = np.concatenate(
                    [np.flatnonzero(round_[: i + 1] == round_[i]) for round_ in ids[at]]
                )
            if scope == "chunk" and i >= m and not across:
                seen = [(round_, np.unique(window(round_, i, m, before))) for round_ in ids[at]]
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
