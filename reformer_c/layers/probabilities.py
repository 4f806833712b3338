"""Attention probabilities of a layer: one number for each pair of a query and a key it attends to.

The kernels never store them. They are recomputed here in NumPy from a layer's queries, keys and
buckets, with the shapes and the rounding of Hugging Face's `output_attentions`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "cross_probabilities", "full_probabilities", "hash_probabilities", "local_probabilities",
    "lsh_probabilities",
]  # fmt: skip

# Hugging Face's scores of hidden keys, and of a token's own key if queries and keys are shared
HIDDEN, ITSELF = -1e9, -1e5

# position of the tokens that pad a chunk
ABSENT = -1


def local_probabilities(
    q: np.ndarray,
    k: np.ndarray | None,
    *,
    chunk_length: int,
    num_chunks_before: int,
    num_chunks_after: int,
    is_causal: bool,
    attention_mask: np.ndarray | None,
    wrap: bool = True,
    softcap: float | None = None,
    **_: Any,
) -> np.ndarray:
    """Probabilities of local attention, softmax(q k' / sqrt(d)); k is None with shared_qk.

    Parameters
    ----------
    q : (b, h, t, d)
    k : (b, hk, t, d)
    attention_mask : (b, t) of bool, or None
    wrap : bool
        Whether the chunks form a circle, as in `reformer_c.local_attention`.
    softcap : float, optional
        Soft cap of the scores.

    Returns
    -------
    ndarray, of the dtype of q
        (b, h, n/m, m, window), for chunks of m, n = t rounded up to whole chunks and a window of
        (1 + before + after) m keys; (b, h, t, t) if t <= m. Positions from t on, and chunks beyond
        the ends without `wrap`, have probability 0 as keys and rows of zeros as queries.
    """
    b, _, t, _ = q.shape
    keys = _keys(q, k)
    positions = np.broadcast_to(np.arange(t), (b, 1, t))
    neighbours = (0, 0)
    if t > chunk_length:
        neighbours = (num_chunks_before, num_chunks_after)
        q, keys, positions = (
            _chunks(_whole_chunks(x, chunk_length, fill), chunk_length)
            for x, fill in ((q, 0), (keys, 0), (positions, ABSENT))
        )
    return _probabilities(
        q, keys, positions, neighbours, is_causal, attention_mask, softcap, shared_qk=k is None,
        wrap=wrap,
    )  # fmt: skip


def lsh_probabilities(
    qk: np.ndarray,
    buckets: np.ndarray | None,
    *,
    scope: str,
    chunk_length: int,
    num_chunks_before: int,
    num_chunks_after: int,
    is_causal: bool,
    attention_mask: np.ndarray | None,
    bucket_cap: int | None = None,
    softcap: float | None = None,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
    **_: Any,
) -> np.ndarray:
    """Probabilities of LSH attention, softmax(q k') with k = q / |q|.

    Parameters
    ----------
    qk : (b, h, t, d)
    buckets : (b, h, r, t) of int
        None if t <= m in scope "chunk".

    Returns
    -------
    ndarray, of the dtype of qk
        In scope "chunk" (b, h, r t/m, m, window): a softmax for each round, with queries and keys
        in the sorted order of the round; (b, h, t, t) if t <= m. In scope "bucket" (b, h, t, t),
        over all rounds.
    """
    k = _shared_keys(qk)
    if scope == "bucket" and buckets is not None:
        return _bucket_probabilities(
            qk, k, buckets, bucket_cap, is_causal, attention_mask, softcap,
            allow_duplicate_attention,
        )  # fmt: skip
    b, h, t, _ = qk.shape
    positions = np.broadcast_to(np.arange(t), (b, h, t))
    neighbours = (0, 0)
    elsewhere = met = None
    if buckets is not None:
        # rounds are concatenated, each sorted by bucket and then by position
        positions = np.argsort(buckets, axis=-1, kind="stable").reshape(b, h, -1)
        q, k = (np.take_along_axis(x, positions[..., None], axis=2) for x in (qk, k))
        qk, k, positions = (_chunks(x, chunk_length) for x in (q, k, positions))
        neighbours = (num_chunks_before, num_chunks_after)
        pairs = _Pairs(positions, buckets, neighbours)
        elsewhere = None if attend_across_buckets else pairs.in_other_buckets()
        met = None if allow_duplicate_attention else pairs.met_before(elsewhere)
    return _probabilities(
        qk, k, positions, neighbours, is_causal, attention_mask, softcap, shared_qk=True,
        elsewhere=elsewhere, met=met,
    )  # fmt: skip


def full_probabilities(
    q: np.ndarray,
    k: np.ndarray | None,
    *,
    is_causal: bool,
    attention_mask: np.ndarray | None,
    softcap: float | None = None,
    **_: Any,
) -> np.ndarray:
    """Probabilities of full attention, softmax(q k' / sqrt(d)); k is None with shared_qk.

    Parameters
    ----------
    q : (b, h, t, d)
    k : (b, hk, t, d)

    Returns
    -------
    ndarray, of the dtype of q
        (b, h, t, t)
    """
    keys = _keys(q, k)
    positions = np.broadcast_to(np.arange(q.shape[2]), q.shape[:3])
    return _probabilities(
        q, keys, positions, (0, 0), is_causal, attention_mask, softcap, shared_qk=k is None
    )


def _keys(q: np.ndarray, k: np.ndarray | None) -> np.ndarray:
    """The keys (b, h, t, d) of k (b, hk, t, d) or of shared queries, divided by sqrt(d)."""
    return _shared_keys(q) if k is None else _for_each(q, k) * k.dtype.type(k.shape[-1] ** -0.5)


def _for_each(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The keys (b, hk, t, d), for each head of q (b, h, t, d)."""
    return k if k.shape[1] == q.shape[1] else np.repeat(k, q.shape[1] // k.shape[1], axis=1)


def _shared_keys(qk: np.ndarray) -> np.ndarray:
    """Queries divided by their root mean square, and by sqrt(d)."""
    norm = np.sqrt((qk * qk).mean(axis=-1, keepdims=True) + qk.dtype.type(1e-6))
    keys: np.ndarray = qk / norm * qk.dtype.type(qk.shape[-1] ** -0.5)
    return keys


def cross_probabilities(
    q: np.ndarray, k: np.ndarray, attention_mask: np.ndarray | None, softcap: float | None = None
) -> np.ndarray:
    """Probabilities of full attention to another sequence, softmax(q k' / sqrt(d)).

    Parameters
    ----------
    q : (b, h, t, d)
    k : (b, hk, s, d)
    attention_mask : (b, s) of bool, or None

    Returns
    -------
    ndarray, of the dtype of q
        (b, h, t, s)
    """
    k = _for_each(q, k)
    scores = _capped(q @ k.swapaxes(-1, -2) * q.dtype.type(q.shape[-1] ** -0.5), softcap)
    if attention_mask is not None:
        hidden = ~attention_mask[:, None, None, :]
        scores = np.where(hidden, scores.dtype.type(HIDDEN), scores)
    return _softmax(scores)


def _whole_chunks(x: np.ndarray, m: int, fill: int) -> np.ndarray:
    """(b, h, t, ...) -> (b, h, n, ...), with `fill` from t to n, a multiple of m."""
    widths = [(0, -x.shape[2] % m if axis == 2 else 0) for axis in range(x.ndim)]
    return np.pad(x, widths, constant_values=fill)


def _chunks(x: np.ndarray, m: int) -> np.ndarray:
    """(b, h, t, ...) -> (b, h, t/m, m, ...)."""
    return x.reshape(*x.shape[:2], -1, m, *x.shape[3:])


def _windows(x: np.ndarray, before: int, after: int) -> np.ndarray:
    """Chunks (b, h, n, m, ...), each with its neighbours on the circle: (b, h, n, window, ...)."""
    n = x.shape[2]
    # Hugging Face's slices leave out a step of more than the number of chunks
    steps = [o if abs(o) <= n else 0 for o in range(-before, after + 1)]
    return np.concatenate([np.roll(x, -o, axis=2) for o in steps], axis=3)


def _probabilities(
    q: np.ndarray,
    k: np.ndarray,
    positions: np.ndarray,
    neighbours: tuple[int, int],
    is_causal: bool,
    attention_mask: np.ndarray | None,
    softcap: float | None,
    *,
    shared_qk: bool,
    wrap: bool = True,
    elsewhere: np.ndarray | None = None,
    met: np.ndarray | None = None,
) -> np.ndarray:
    """q, k (b, h, [n,] m, d) and positions (b, 1 or h, [n,] m) -> (b, h, [n,] m, window).

    `elsewhere` and `met` (b, h, n, m, window): keys of other buckets, which are masked, and keys
    that count where they were met first.
    """
    positions_k = positions
    if q.ndim == 5:
        k, positions_k = (_windows(x, *neighbours) for x in (k, positions))
        if not wrap:
            positions_k = np.where(_past_the_ends(q, neighbours), ABSENT, positions_k)
    scores = _capped(q @ k.swapaxes(-1, -2), softcap)
    hidden = np.zeros((), bool)
    if attention_mask is not None:
        rows = np.arange(len(q)).reshape(-1, *[1] * (positions_k.ndim - 1))
        hidden = ~attention_mask[rows, positions_k][..., None, :]
    if is_causal:
        hidden = hidden | (positions_k[..., None, :] > positions[..., :, None])
    if elsewhere is not None:
        hidden = hidden | elsewhere
    scores = np.where(hidden, scores.dtype.type(HIDDEN), scores)
    itself = np.zeros((), bool)
    if shared_qk:
        itself = positions_k[..., None, :] == positions[..., :, None]
        scores = np.where(itself, scores.dtype.type(ITSELF), scores)
    if met is not None:
        # a row that has met all its visible keys before, itself among them, is 0
        left = np.where(met, -np.inf, scores)
        none = (met | (hidden & ~itself)).all(axis=-1, keepdims=True)
        return np.where(none, scores.dtype.type(0), _softmax(np.where(none, 0, left)))
    if (positions_k >= 0).all():
        return _softmax(scores)
    present = positions[..., :, None] >= 0
    # a padding row could have no key in its window: its scores stay finite, the row is zeroed
    absent = (positions_k < 0)[..., None, :] & present
    return np.where(present, _softmax(np.where(absent, -np.inf, scores)), scores.dtype.type(0))


class _Pairs:
    """The queries and keys of all rounds' windows: positions (b, h, n, m) in chunks of the hash
    order, of all rounds together."""

    def __init__(
        self, positions: np.ndarray, buckets: np.ndarray, neighbours: tuple[int, int]
    ) -> None:
        self.buckets, (b, h, self.rounds, t) = buckets, buckets.shape
        n, m = positions.shape[2:]
        before, after = neighbours
        self.steps = [o if abs(o) <= n else 0 for o in range(-before, after + 1)]
        self.chunk = np.arange(n)[:, None, None]
        self.slot = np.repeat(np.arange(len(self.steps)), m)
        self.queries, self.keys = (
            positions[..., None],
            _windows(positions, *neighbours)[..., None, :],
        )
        # (r, b, h, t): the chunk of each token in each round, numbered through all rounds
        self.homes = np.zeros((self.rounds, b, h, t), int)
        chunks = np.broadcast_to(self.chunk[..., 0], positions.shape).reshape(b, h, self.rounds, t)
        np.put_along_axis(
            self.homes, np.moveaxis(positions.reshape(b, h, self.rounds, t), 2, 0),
            np.moveaxis(chunks, 2, 0), axis=3,
        )  # fmt: skip
        self.per_round = n // self.rounds

    def _of(self, values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """values (b, h, t) of tokens (b, h, ...)."""
        flat = tokens.reshape(*tokens.shape[:2], -1)
        return np.take_along_axis(values, flat, axis=2).reshape(tokens.shape)

    def in_other_buckets(self) -> np.ndarray:
        """Keys of another round's bucket, or of another bucket of the round."""
        n = self.chunk.size
        other = np.zeros(np.broadcast_shapes(self.queries.shape, self.keys.shape), bool)
        for r in range(self.rounds):
            own = slice(r * self.per_round, (r + 1) * self.per_round)
            ids = self.buckets[:, :, r]
            other[:, :, own] = self._of(ids, self.queries[:, :, own]) != self._of(
                ids, self.keys[:, :, own]
            )
        key_chunk = (self.chunk + np.take(self.steps, self.slot)) % n
        other_chunk: np.ndarray = other | (
            key_chunk // self.per_round != self.chunk // self.per_round
        )
        return other_chunk

    def met_before(self, elsewhere: np.ndarray | None) -> np.ndarray:
        """Keys that the query has met in an earlier round, or earlier in its window."""
        n = self.chunk.size
        met = np.zeros(np.broadcast_shapes(self.queries.shape, self.keys.shape), bool)
        for r in range(self.rounds):
            home = self._of(self.homes[r], self.queries)
            for slot, step in enumerate(self.steps):
                to = (home + step) % n
                found = np.zeros(met.shape, bool)
                for other in range(self.rounds):
                    found |= self._of(self.homes[other], self.keys) == to
                if elsewhere is not None:
                    ids = self.buckets[:, :, r]
                    found &= self._of(ids, self.queries) == self._of(ids, self.keys)
                    found &= to // self.per_round == r
                round_of = self.chunk // self.per_round
                earlier = (r < round_of) | ((r == round_of) & (slot < self.slot))
                met |= found & earlier
        return met


def _past_the_ends(q: np.ndarray, neighbours: tuple[int, int]) -> np.ndarray:
    """Which keys in the windows of `q` (b, h, n, m, d) are in chunks before the first or after the
    last: booleans (n, window)."""
    n, m = q.shape[2:4]
    before, after = neighbours
    chunk = np.arange(n)[:, None] + np.repeat(np.arange(-before, after + 1), m)
    outside: np.ndarray = (chunk < 0) | (chunk >= n)
    return outside


def _capped(scores: np.ndarray, softcap: float | None) -> np.ndarray:
    return scores if softcap is None else softcap * np.tanh(scores / softcap)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """exp(scores - logsumexp(scores)), with Hugging Face's rounding: in float32, if all keys are
    hidden, every probability is 1."""
    highest = scores.max(axis=-1, keepdims=True)
    total = highest + np.log(np.exp(scores - highest).sum(axis=-1, keepdims=True))
    shares: np.ndarray = np.exp(scores - total)
    return shares


def _bucket_probabilities(
    q: np.ndarray,
    k: np.ndarray,
    buckets: np.ndarray,
    bucket_cap: int | None,
    is_causal: bool,
    attention_mask: np.ndarray | None,
    softcap: float | None,
    allow_duplicate_attention: bool,
) -> np.ndarray:
    """One softmax over the keys of all rounds. A pair that shares a bucket in several rounds counts
    once for each, or with allow_duplicate_attention=False once."""
    t = q.shape[2]
    scores = _capped((q @ k.swapaxes(-1, -2)).astype(np.float64), softcap)
    itself = np.eye(t, dtype=bool)
    scores[..., itself] = ITSELF
    shared = buckets[..., :, None] == buckets[..., None, :]
    if bucket_cap is not None:
        # a token's rank in its bucket is the number of earlier tokens in it
        segments = np.tril(shared, -1).sum(axis=-1) // bucket_cap
        shared &= np.abs(segments[..., :, None] - segments[..., None, :]) <= 1
    counts = shared.sum(axis=2) if allow_duplicate_attention else shared.any(axis=2).astype(int)
    visible = np.ones((1, 1, t, t), bool) if attention_mask is None else (
        attention_mask[:, None, None, :]
    )  # fmt: skip
    if is_causal:
        visible = visible & np.tri(t, dtype=bool)
    counts = counts * (visible | itself)
    scores = np.where(counts > 0, scores, -np.inf)
    weights = counts * np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = (weights / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)
    return shares


def hash_probabilities(
    q: np.ndarray,
    k: np.ndarray,
    buckets: np.ndarray | None,
    key_buckets: np.ndarray | None,
    *,
    attention_mask: np.ndarray | None,
    local_window: int | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    **_: Any,
) -> np.ndarray:
    """Probabilities of attention to keys that are hashed apart from the queries: to those in a
    bucket of the query in any round and those near it, or to all where there are none.

    Parameters
    ----------
    q : (b, h, t, d)
    k : (b, hk, s, d)
    buckets, key_buckets : (b, h, r, t) and (b, h, r, s) of int
    attention_mask : (b, s) of bool, or None
    local_window : int, optional
        As in `reformer_c.lsh_attention`, where the queries are the last positions.

    Returns
    -------
    ndarray, of the dtype of q
        (b, h, t, s)
    """
    assert buckets is not None
    assert key_buckets is not None
    scores = (q @ _for_each(q, k).swapaxes(-1, -2)).astype(np.float64) * q.shape[-1] ** -0.5
    scores = _capped(scores, softcap)
    t, s = scores.shape[-2:]
    ahead = np.arange(s) - np.arange(s - t, s)[:, None]
    visible = np.ones((1, 1, t, s), bool)
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :]
    if is_causal:
        visible = visible & (ahead <= 0)
    found = (buckets[..., :, None] == key_buckets[..., None, :]).any(axis=2)
    if local_window is not None:
        found |= np.abs(ahead) <= local_window
    found &= visible
    found = np.where(found.any(axis=-1, keepdims=True), found, visible)
    scores = np.where(found, scores, -np.inf)
    highest = scores.max(axis=-1, keepdims=True)
    weights = found * np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    shares: np.ndarray = (weights / np.where(total > 0, total, 1.0)).astype(q.dtype)
    return shares
