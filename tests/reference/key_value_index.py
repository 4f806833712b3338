"""Attention of the newest tokens of a text to the keys that an index finds for them."""

import numpy as np


def found(ids_q, ids_k, *, window, sinks, real=None):
    """Which keys (b, h, t, tk) the t newest tokens see: buckets (b, h, r, t) and (b, hk, r, tk)."""
    b, h, _, t = ids_q.shape
    hk, tk = ids_k.shape[1], ids_k.shape[3]
    real = np.ones((b, tk), bool) if real is None else real
    seen = np.zeros((b, h, t, tk), bool)
    for n, head, i in np.ndindex(b, h, t):
        own = tk - t + i
        first = [j for j in range(tk) if real[n, j]][:sinks]
        for j in range(own + 1):
            meets = (ids_q[n, head, :, i] == ids_k[n, head // (h // hk), :, j]).any()
            near = own - j <= window
            seen[n, head, i, j] = real[n, j] and (meets or near or j in first)
    return seen


def attend(q, k, v, seen, scale, softcap=None):
    """The output, and the logarithm of each softmax's denominator; 0 and -inf without a key."""
    q, k, v = np.float64(q), np.float64(k), np.float64(v)
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for at in np.ndindex(q.shape[:3]):
        keys = seen[at].nonzero()[0]
        if not len(keys):
            continue
        s = scale * k[at[:2]][keys] @ q[at]
        if softcap is not None:
            s = softcap * np.tanh(s / softcap)
        lse[at] = s.max() + np.log(np.exp(s - s.max()).sum())
        out[at] = np.exp(s - lse[at]) @ v[at[:2]][keys]
    return out, lse
