"""An independent reference: the same attention as Hugging Face computes it, in whole arrays.

Sort, cut into chunks, roll the chunks to look around, one softmax a round by its log-sum-exp, merge
the rounds, all in the precision of the input. A length that is no multiple of the chunk is padded
on the right with masked tokens, as evaluation of their models does.
"""

import numpy as np


def log_sum_exp(s, axis):
    top = s.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(s - top).sum(axis=axis, keepdims=True))


def look_around(x, before, after):
    """x (b, h, chunks, m, ...) -> (b, h, chunks, (before + 1 + after) m, ...)."""
    rolled = [
        np.concatenate([x[:, :, o:], x[:, :, :o]], axis=2) if o else x
        for o in range(-before, after + 1)
    ]
    return np.concatenate(rolled, axis=3)


def softmax_in_chunks(q, k, v, pos, real, *, m, before, after, is_causal, avoid_self):
    """q, k, v (b, h, n, d), pos and real (b, h, n) -> out (b, h, n, d), lse (b, h, n, 1)."""
    b, h, n, d = q.shape
    q, k, v = (x.reshape(b, h, n // m, m, d) for x in (q, k, v))
    pos, real = pos.reshape(b, h, n // m, m), real.reshape(b, h, n // m, m)
    k, v, pos_k, real = (look_around(x, before, after) for x in (k, v, pos, real))
    s = q @ k.swapaxes(-1, -2)
    later = pos_k[..., None, :] > pos[..., :, None]
    keep = real[..., None, :] & ~(later & is_causal)
    s = np.where(keep, s, s.dtype.type(-1e9))
    if avoid_self:
        s = np.where(pos_k[..., None, :] == pos[..., :, None], s.dtype.type(-1e5), s)
    lse = log_sum_exp(s, axis=-1)
    out = np.exp(s - lse) @ v
    return out.reshape(b, h, n, d), lse.reshape(b, h, n, 1)


def padded(x, n, value=0):
    """x (b, h, t, ...) with `value` up to length n."""
    widths = [(0, n - x.shape[2]) if axis == 2 else (0, 0) for axis in range(x.ndim)]
    return np.pad(x, widths, constant_values=value)


def positions_and_mask(q, attention_mask, n):
    b, h, t, _ = q.shape
    real = np.ones((b, t), bool) if attention_mask is None else np.asarray(attention_mask) != 0
    real = padded(np.broadcast_to(real[:, None, :], (b, h, t)), n, value=False)
    return np.broadcast_to(np.arange(n), (b, h, n)), real


def chunk_and_length(t, chunk_length):
    """The chunk and the padded length: up to one chunk is one chunk of its own length."""
    m = t if t <= chunk_length else chunk_length
    return m, -(-t // m) * m


def local(q, k, v, *, chunk_length, num_chunks_before, num_chunks_after, is_causal, attention_mask):
    t, d = q.shape[2:]
    m, n = chunk_and_length(t, chunk_length)
    before, after = (num_chunks_before, num_chunks_after) if t > chunk_length else (0, 0)
    pos, real = positions_and_mask(q, attention_mask, n)
    k = k / q.dtype.type(np.sqrt(d))
    q, k, v = (padded(x, n) for x in (q, k, v))
    out, _ = softmax_in_chunks(
        q, k, v, pos, real, m=m, before=before, after=after, is_causal=is_causal, avoid_self=False
    )
    return out[:, :, :t]


def lsh(
    qk, v, buckets, *, chunk_length, num_chunks_before, num_chunks_after, is_causal, attention_mask
):
    """buckets (b, h, r, t), masked positions included: they and the padding come last."""
    b, h, t, d = qk.shape
    m, n = chunk_and_length(t, chunk_length)
    before, after = (num_chunks_before, num_chunks_after) if t > chunk_length else (0, 0)
    if t <= chunk_length:
        buckets = np.zeros((b, h, 1, t), int)
    r = buckets.shape[2]
    _, real = positions_and_mask(qk, attention_mask, n)
    qk, v = padded(qk, n), padded(v, n)
    mean_square = (qk**2).mean(axis=-1, keepdims=True)
    k = qk / np.sqrt(mean_square + qk.dtype.type(1e-6)) / qk.dtype.type(np.sqrt(d))

    # one sort of all rounds, each with its own range of bucket ids
    last = buckets.max(initial=0) + 1
    ids = padded(buckets.swapaxes(2, 3), n, value=last).swapaxes(2, 3)
    ids = ids + (last + 1) * np.arange(r)[:, None]
    order = np.argsort(ids.reshape(b, h, r * n), axis=-1, kind="stable")
    gather = order % n

    def sorted_(x):
        index = gather.reshape(b, h, r * n, *[1] * (x.ndim - 3))
        return np.take_along_axis(x, index, axis=2)

    out, lse = softmax_in_chunks(
        sorted_(qk), sorted_(k), sorted_(v), gather, sorted_(real), m=m, before=before, after=after,
        is_causal=is_causal, avoid_self=True,
    )  # fmt: skip
    undo = np.argsort(order, axis=-1)[..., None]
    out = np.take_along_axis(out, undo, axis=2).reshape(b, h, r, n, d)
    lse = np.take_along_axis(lse, undo, axis=2).reshape(b, h, r, n, 1)
    if r > 1:
        out = out * np.exp(lse - log_sum_exp(lse, axis=2))
    return out.sum(axis=2)[:, :, :t]
