"""Softmax attention, one query at a time.

Full, local and LSH attention differ only in what a query sees: a list of key occurrences.
Each row of a query's `seen` (n, 3) is one occurrence: the query's round, the key's round, the key's
position. A key may occur often: once a round, and again where a window reaches round its circle. A
query's output is ONE softmax over all its occurrences, which is what weighting each round by its
log-sum-exp amounts to (the paper, section 2).

Scores are scale * q . k, or c tanh(scale * q . k / c) with a softcap c, and Hugging Face's rules:
 1. a hidden key (masked, later than a causal query, in another bucket): -1e9;
 2. with shared queries and keys, the query itself: -1e5, over rule 1;
 3. allow_duplicate_attention=False: minus log N, N counting how often the pair meets.

Keys of their own (`separate`) are not in Hugging Face's model: what is hidden has no weight at all.
"""

import numpy as np

HIDDEN = -1e9
SELF = -1e5


# ---- what a query sees ------------------------------------------------------------------------


def occurrences(round_q, round_k, keys):
    return np.array([(round_q, round_k, j) for j in keys], int).reshape(-1, 3)


def see_all(t, tk):
    """Every key, once."""
    return [occurrences(0, 0, range(tk))] * t


def see_chunks(orders, m, before, after, wrap):
    """Chunks of each round's order, the last one maybe short, with their neighbours.

    With wrap=True the chunks of all rounds stand on one circle, so that a round's first chunk
    looks back at the last chunk of the round before. Hugging Face makes the circle by slicing;
    an offset that is larger than the whole circle slices nothing off, and shows the own chunk.
    """
    t = len(orders[0])
    chunks = [(r, order[s : s + m]) for r, order in enumerate(orders) for s in range(0, t, m)]
    seen = [[] for _ in range(t)]
    for here, (round_q, queries) in enumerate(chunks):
        for offset in range(-before, after + 1):
            there = here + offset
            if wrap:
                there = there % len(chunks) if abs(offset) <= len(chunks) else here
            elif not 0 <= there < len(chunks) or chunks[there][0] != round_q:
                continue
            window = occurrences(round_q, *chunks[there])
            for i in queries:
                seen[i].append(window)
    return [np.concatenate(windows) for windows in seen]


def see_buckets(buckets, cap=None):
    """In each round, the keys of the query's own bucket: buckets is (r, t).

    A cap cuts buckets into segments of that many tokens: the query's own and its neighbours.
    """
    t = buckets.shape[1]
    seen = [[occurrences(0, 0, [])] for _ in range(t)]
    for r, of_round in enumerate(buckets):
        for bucket in set(of_round.tolist()):
            members = np.flatnonzero(of_round == bucket)
            for rank, i in enumerate(members):
                first, last = 0, len(members)
                if cap is not None:
                    first, last = max(0, rank // cap - 1) * cap, (rank // cap + 2) * cap
                seen[i].append(occurrences(r, r, members[first:last]))
    return [np.concatenate(windows) for windows in seen]


def see_separate_buckets(buckets, key_buckets):
    """In each round, the keys in the query's bucket: buckets is (r, t), key_buckets (r, tk)."""
    return [
        np.concatenate(
            [
                occurrences(r, r, np.flatnonzero(keys == of_round[i]))
                for r, (of_round, keys) in enumerate(zip(buckets, key_buckets, strict=True))
            ]
        )
        for i in range(buckets.shape[1])
    ]


def see_separate_chunks(orders, key_orders, m, before, after, wrap):
    """Chunks of queries see those of keys with the same number; of each there are as many."""
    t, tk = len(orders[0]), len(key_orders[0])
    per_round = max(1, -(-t // m))
    mk = max(1, -(-tk // per_round))
    cut = [
        [order[c * size : (c + 1) * size] for order in both for c in range(per_round)]
        for both, size in ((orders, m), (key_orders, mk))
    ]
    chunks = len(cut[0])
    seen = [[occurrences(0, 0, [])] for _ in range(t)]
    for here, queries in enumerate(cut[0]):
        for offset in range(-before, after + 1):
            there = here + offset
            if wrap:
                there = there % chunks if abs(offset) <= chunks else here
            elif not 0 <= there < chunks or there // per_round != here // per_round:
                continue
            window = occurrences(here // per_round, there // per_round, cut[1][there])
            for i in queries:
                seen[i].append(window)
    return [np.concatenate(windows) for windows in seen]


def with_window(seen, w, shift, tk):
    """The keys at most w from each query, once, in a round -1; and what else is seen."""
    joined = []
    for i, others in enumerate(seen):
        at = i + shift
        near = occurrences(-1, -1, range(max(0, at - w), min(tk, at + w + 1)))
        joined.append(np.concatenate([near, others[np.abs(others[:, 2] - at) > w]]))
    return joined


# ---- how much it sees of each -----------------------------------------------------------------


def softmax(s):
    e = np.exp(s - s.max())
    return e / e.sum()


def log_sum_exp(s):
    top = s.max()
    return top + np.log(np.exp(s - top).sum())


def softmax_as_rounded(s, rounds):
    """Hugging Face's arithmetic, in the precision of s: a softmax a round, weighted by its lse.

    It matters only if every score is a constant. In float32, -1e9 + log n is -1e9 again, every
    weight is exp(0) = 1, and the output is the sum of the values rather than their mean.
    """
    present = sorted(set(rounds.tolist()))
    lse = np.array([log_sum_exp(s[rounds == r]) for r in present], dtype=s.dtype)
    weight_of_round = dict(zip(present, np.exp(lse - log_sum_exp(lse)), strict=True))
    lse_of_round = dict(zip(present, lse, strict=True))
    return np.array(
        [np.exp(x - lse_of_round[r]) * weight_of_round[r] for x, r in zip(s, rounds, strict=True)]
    )


def weights_of_query(
    i, scores, seen, real, buckets, is_causal, shared_qk, duplicates, dtype, rounded, shift=0
):
    """Row i of the (tk,) weights, the share of it that moves with the scores, and the log-sum-exp.

    buckets: of queries and of keys; shift: the position of query 0.
    """
    visible, total = np.zeros(len(scores)), np.zeros(len(scores))
    if buckets is not None:  # a bucket is one of its round; -1 is that of the window
        seen = seen[(seen[:, 0] < 0) | (seen[:, 0] == seen[:, 1])]
    if len(seen) == 0:
        return total, visible, -np.inf
    round_q, _, j = seen.T
    elsewhere = np.zeros(len(j), bool)
    if buckets is not None:
        elsewhere = (round_q >= 0) & (buckets[0][round_q, i] != buckets[1][round_q, j])
    hidden = ~real[j] | elsewhere | (is_causal & (j > i + shift))
    if not shared_qk and not rounded and hidden.all():
        return total, visible, -np.inf
    itself = (j == i) & shared_qk
    s = np.where(itself, SELF, np.where(hidden, HIDDEN, scores[j]))
    if not duplicates:
        met = np.bincount(j[~elsewhere], minlength=len(scores))[j]
        s = np.where(itself | ~hidden, s - np.log(np.maximum(met, 1)), s)
    constant = hidden | itself
    as_rounded = rounded and constant.all()
    p = softmax_as_rounded(s.astype(dtype), round_q) if as_rounded else softmax(s)
    np.add.at(total, j, p)
    np.add.at(visible, j, np.where(constant, 0, p))
    return total, visible, log_sum_exp(s)


def normalised(qk):
    """The key that goes with a shared query: of root mean square 1."""
    return qk / np.sqrt((qk**2).mean(axis=-1, keepdims=True) + 1e-6)


def for_each_head(x, h):
    """Keys or values (b, hk, t, d), each head for h / hk successive heads of queries."""
    return x if x.shape[1] == h else np.repeat(x, h // x.shape[1], axis=1)


def over_heads(dx, hk):
    """Its gradient: the sums over the heads of queries that share a head."""
    b, h, t, d = dx.shape
    return dx if hk == h else dx.reshape(b, hk, h // hk, t, d).sum(axis=2)


class Attention:
    """Weights (b, h, t, tk), and through them the output and the gradients.

    q (b, h, t, d); k (b, hk, tk, d), or None: shared queries and keys; `seen(b, h)` lists each
    query's occurrences; `buckets` (b, h, r, t), where only the same bucket may be attended to.
    `rounded`: constant scores as Hugging Face rounds them, whose model has this attention.
    """

    def __init__(
        self, q, k, seen, *, is_causal, attention_mask, scale, softcap=None, buckets=None,
        duplicates=True, rounded=True, shift=0,
    ):  # fmt: skip
        dtype = np.asarray(q).dtype
        self.q, self.shared = np.float64(q), k is None
        b, h, t, d = self.q.shape
        self.scale = 1 / np.sqrt(d) if scale is None else scale
        self.hk = h if k is None else k.shape[1]
        self.k = normalised(self.q) if self.shared else for_each_head(np.float64(k), h)
        tk = self.k.shape[2]
        real = np.ones((b, tk), bool) if attention_mask is None else np.asarray(attention_mask) != 0
        scores = self.scale * self.q @ self.k.swapaxes(-1, -2)
        self.slope = 1.0  # of the scores, by what they are without a softcap
        if softcap is not None:
            capped = np.tanh(scores / softcap)
            scores, self.slope = softcap * capped, 1 - capped**2
        self.weights, self.moving = np.zeros((b, h, t, tk)), np.zeros((b, h, t, tk))
        self.lse = np.zeros((b, h, t))
        for at in np.ndindex(b, h):
            views = seen(*at)
            own = None if buckets is None else [side[at] for side in buckets]
            for i in range(t):
                self.weights[at][i], self.moving[at][i], self.lse[at][i] = weights_of_query(
                    i, scores[at][i], views[i], real[at[0]], own,
                    is_causal, self.shared, duplicates, dtype, rounded, shift,
                )  # fmt: skip

    def output(self, v):
        return self.weights @ for_each_head(np.float64(v), self.q.shape[1])

    def gradients(self, v, dout):
        """(dq, dk, dv), or (dqk, dv) where queries and keys are shared."""
        of_values, dout = v.shape[1], np.float64(dout)
        v = for_each_head(np.float64(v), self.q.shape[1])
        dp = dout @ v.swapaxes(-1, -2)
        ds = self.moving * (dp - (self.weights * dp).sum(axis=-1, keepdims=True)) * self.slope
        dq = self.scale * ds @ self.k
        dk = self.scale * ds.swapaxes(-1, -2) @ self.q
        dv = over_heads(self.weights.swapaxes(-1, -2) @ dout, of_values)
        if not self.shared:
            return dq, over_heads(dk, self.hk), dv
        size = np.sqrt((self.q**2).mean(axis=-1, keepdims=True) + 1e-6)
        along = (self.k * dk).mean(axis=-1, keepdims=True)
        return dq + (dk - along * self.k) / size, dv


# ---- the three kinds --------------------------------------------------------------------------


def full(q, k, *, is_causal=False, attention_mask=None, scale=None, softcap=None):
    """Every query sees every key; k=None shares queries and keys."""
    seen = see_all(q.shape[2], (q if k is None else k).shape[2])
    rules = {
        "is_causal": is_causal, "attention_mask": attention_mask, "scale": scale,
        "softcap": softcap,
    }  # fmt: skip
    return Attention(q, k, lambda b, h: seen, **rules)


def local(
    q, k, *, chunk_length=64, num_chunks_before=1, num_chunks_after=0,
    is_causal=False, attention_mask=None, scale=None, softcap=None, wrap=False,
):  # fmt: skip
    """A query sees its chunk of the sequence and the neighbours; one chunk is full attention."""
    rules = {
        "is_causal": is_causal, "attention_mask": attention_mask, "scale": scale,
        "softcap": softcap,
    }  # fmt: skip
    t = q.shape[2]
    if t <= chunk_length:
        return full(q, k, **rules)
    seen = see_chunks([range(t)], chunk_length, num_chunks_before, num_chunks_after, wrap)
    return Attention(q, k, lambda b, h: seen, **rules)


def lsh(
    qk, buckets, *, chunk_length=64, num_chunks_before=1, num_chunks_after=0, is_causal=False,
    attention_mask=None, scope="chunk", scale=None, softcap=None, attend_across_buckets=True,
    allow_duplicate_attention=True, wrap=True, bucket_cap=None, local_window=None,
):  # fmt: skip
    """A query sees, each round, its chunk of the sequence sorted by bucket, and the neighbours;
    or its whole bucket (scope="bucket"). buckets (b, h, r, t). One chunk is full attention."""
    rules = {
        "is_causal": is_causal, "attention_mask": attention_mask, "scale": scale,
        "softcap": softcap,
    }  # fmt: skip
    if scope == "chunk" and qk.shape[2] <= chunk_length:
        return full(qk, None, **rules)

    def seen(b, h):
        if scope == "bucket":
            found = see_buckets(buckets[b, h], bucket_cap)
        else:
            found = see_chunks(
                sorted_by(buckets[b, h]), chunk_length, num_chunks_before, num_chunks_after, wrap
            )
        if local_window is None:
            return found
        return with_window(found, local_window, 0, qk.shape[2])

    only = None if attend_across_buckets or scope == "bucket" else (buckets, buckets)
    rules.update(buckets=only, duplicates=allow_duplicate_attention)
    rules["rounded"] = (
        scope == "chunk" and attend_across_buckets and allow_duplicate_attention and wrap
        and local_window is None
    )  # fmt: skip
    return Attention(qk, None, seen, **rules)


def sorted_by(buckets):
    return [np.argsort(of_round, kind="stable") for of_round in buckets]


def separate(
    q, k, buckets, key_buckets, *, chunk_length=64, num_chunks_before=1, num_chunks_after=0,
    is_causal=False, attention_mask=None, scope="chunk", scale=None, softcap=None,
    attend_across_buckets=True, allow_duplicate_attention=True, wrap=True, local_window=None,
):  # fmt: skip
    """LSH attention with keys of their own: buckets (b, h, r, t), key_buckets (b, h, r, tk).

    Query i is at position i + tk - t. One that finds no key sees all keys.
    """
    t, tk = q.shape[2], k.shape[2]
    shift, one_chunk = tk - t, scope == "chunk" and t <= chunk_length
    real = (
        np.ones((len(q), tk), bool) if attention_mask is None else np.asarray(attention_mask) != 0
    )
    within = scope == "chunk" and not attend_across_buckets and not one_chunk

    def finds(b, h, i, seen):
        round_q, round_k, j = seen.T
        found = real[b][j] & ((not is_causal) | (j <= i + shift))
        if within:
            same = buckets[b, h][round_q, i] == key_buckets[b, h][round_k, j]
            found &= (round_q < 0) | ((round_q == round_k) & same)
        return found.any()

    def seen(b, h):
        if one_chunk:
            return see_all(t, tk)
        if scope == "bucket":
            found = see_separate_buckets(buckets[b, h], key_buckets[b, h])
        else:
            found = see_separate_chunks(
                sorted_by(buckets[b, h]), sorted_by(key_buckets[b, h]), chunk_length,
                num_chunks_before, num_chunks_after, wrap,
            )  # fmt: skip
        if local_window is not None:
            found = with_window(found, local_window, shift, tk)
        every = occurrences(-1, -1, range(tk))
        return [x if finds(b, h, i, x) else every for i, x in enumerate(found)]

    return Attention(
        q, k, seen, is_causal=is_causal, attention_mask=attention_mask, scale=scale,
        softcap=softcap, buckets=(buckets, key_buckets) if within else None,
        duplicates=allow_duplicate_attention, rounded=False, shift=shift,
    )  # fmt: skip
