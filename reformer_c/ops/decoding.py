"""Attention of one new token of each text to a cache of the tokens before it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from .. import _core
from ..checks import integer
from ..runtime import resolve_workers, underflow_to_zero
from .attention import AttentionSpec
from .bfloat16 import to_bfloat16
from .lsh import cut_of_sizes
from .quantized import QuantizedWeight

__all__ = ["AttentionCache"]

Matrix = np.ndarray | QuantizedWeight


def oldest_kept(t: int, length: int, drop: int) -> int:
    """The oldest token that a cache of `length` tokens keeps of a text of t: whenever a token does
    not fit, it forgets the `drop` oldest. 0 means that it never is full.

    Examples
    --------
    >>> [oldest_kept(t, 6, 2) for t in range(4, 12)]
    [0, 0, 0, 2, 2, 4, 4, 6]
    """
    return 0 if drop == 0 or t <= length else -(-(t - length) // drop) * drop


class AttentionCache:
    """Keys, values and buckets of one layer's past tokens, for b texts of different lengths.

    A layer of scope "local" keeps the keys and values of its window. The others keep all of them,
    or with `drop` the newest. One that hashes keeps for each hash round the bucket lists too: each
    bucket's newest token and size, and for each token the one that joined its bucket before it.
    Token t is in slot t % n of n slots.

    Parameters
    ----------
    b, h, d : int
        Texts, heads, depth of a head.
    scope : {"full", "local", "chunk", "bucket"}
        "full": a token attends to all tokens before it.
        "bucket": a token attends to the tokens of its bucket that came before it, as
        `lsh_attention` with ``scope="bucket", is_causal=True``. "chunk": to the chunk of the
        sorted tokens that it falls into when it is hashed, and `num_chunks_before` more, as Hugging
        Face's cache; while it fits into one chunk, to the whole text. "local": to its chunk of the
        text and those before it.
    longest : int
        The most tokens of a text or, with `drop`, the most that are kept of it.
    drop : int, optional
        When a text exceeds `longest`, its `drop` oldest tokens are forgotten: what is left is
        attended to as if the text began there, with unchanged positions. At most `longest`. A
        layer of scope "local" forgets what leaves its window, and nothing else.
    rotations : (h, d, num_hashes, sum(num_buckets) // 2), optional
        Of a layer that hashes.
    num_buckets : tuple of int
        Factors of the number of buckets.
    chunk_length, num_chunks_before, bucket_cap, softcap
        As in `lsh_attention` and `local_attention`.
    attend_across_buckets, allow_duplicate_attention
        As in `lsh_attention`.
    shared_qk : bool
        As in `full_attention` and `local_attention`. A layer that hashes always shares them.
    num_key_value_heads : int, optional
        Heads of the values and, unless shared, of the keys; h by default.
    eps : float
        Of the layer norm.
    rope_theta : float, optional
        Rotate queries and keys as `rotary_positions` with this theta; None: not.
    dtype : float32 or float64
        Of the tokens and the weights.
    cache_dtype : {"bfloat16"}, optional
        Keep keys and values as bfloat16, in uint16 arrays; None: in `dtype`.

    Notes
    -----
    The arrays are read and written by the extension, which trusts the bucket lists: let only this
    class change them.

    Examples
    --------
    >>> cache = AttentionCache(1, 2, 4, scope="local", longest=100, chunk_length=8)
    >>> cache.keys.shape, cache.nbytes
    ((1, 2, 16, 4), 1024)
    """

    def __init__(
        self,
        b: int,
        h: int,
        d: int,
        *,
        scope: str,
        longest: int,
        drop: int | None = None,
        rotations: np.ndarray | None = None,
        num_buckets: tuple[int, ...] = (2,),
        chunk_length: int = 64,
        num_chunks_before: int = 1,
        bucket_cap: int | None = None,
        softcap: float | None = None,
        attend_across_buckets: bool = True,
        allow_duplicate_attention: bool = True,
        shared_qk: bool = False,
        num_key_value_heads: int | None = None,
        eps: float = 1e-12,
        rope_theta: float | None = None,
        dtype: type = np.float32,
        cache_dtype: str | None = None,
    ) -> None:
        self.longest, self.rotations, self.num_buckets = longest, rotations, num_buckets
        self.hashes = rotations is not None
        self.spec = AttentionSpec(
            "lsh" if self.hashes else scope, chunk_length=chunk_length,
            num_chunks_before=num_chunks_before, scope=scope if self.hashes else "chunk",
            bucket_cap=bucket_cap, softcap=softcap,
            shared_qk=shared_qk or self.hashes,
            attend_across_buckets=attend_across_buckets,
            allow_duplicate_attention=allow_duplicate_attention,
        )  # fmt: skip
        local = scope == "local"
        self._drop = 0 if drop is None or local else integer("drop", drop, 1, longest)
        self.scale, self.eps = 1 / math.sqrt(d), eps
        self.rope_theta = 0.0 if rope_theta is None else rope_theta
        # fresh zeros take no memory until they are written
        room = (num_chunks_before + 1) * chunk_length if local else longest
        hk = h if num_key_value_heads is None else num_key_value_heads
        kept = dtype if cache_dtype is None else np.uint16
        self.keys: np.ndarray = np.zeros((b, h if self.spec.shared_qk else hk, room, d), kept)
        self.values: np.ndarray = np.zeros((b, hk, room, d), kept)
        self.buckets: np.ndarray | None = None
        self.previous: np.ndarray | None = None
        if rotations is not None:
            rounds = rotations.shape[2]
            self.buckets = np.zeros((b, h, rounds, math.prod(num_buckets), 2), np.int32)
            self.buckets[..., 0] = -1
            self.previous = np.zeros((b, h, rounds, room), np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._arrays())

    @property
    def cut_share(self) -> float:
        """The share of pairs in one bucket that `bucket_cap` leaves out: see `ops.cut_share`."""
        cap = self.spec.bucket_cap
        if self.buckets is None or not cap:
            return 0.0
        n = self.buckets[..., 1].astype(np.int64).ravel()
        return cut_of_sizes(n, cap) / max(1, int((n * (n - 1) // 2).sum()))

    @property
    def steps_uncut(self) -> float:
        """Steps that are sure to cut nothing: a step adds at most one token to a bucket, and two
        segments are whole. Negative where something is cut already."""
        if self.buckets is None or not self.spec.bucket_cap:
            return math.inf
        return 2 * self.spec.bucket_cap - int(self.buckets[..., 1].max(initial=0))

    # attributes that hold a text's state: which axis counts its tokens, None: it has no such axis
    _state: ClassVar[dict[str, int | None]] = {
        "keys": 2, "values": 2, "buckets": None, "previous": 3,
    }  # fmt: skip

    def _held(self) -> dict[str, np.ndarray]:
        """The arrays of `_state` that there are."""
        arrays = {name: getattr(self, name) for name in self._state}
        return {name: array for name, array in arrays.items() if array is not None}

    def _arrays(self) -> list[np.ndarray]:
        return [*self._held().values()]

    @underflow_to_zero()
    def fill(
        self, rows: np.ndarray, k: np.ndarray, v: np.ndarray, buckets: np.ndarray | None
    ) -> None:
        """Begin the texts `rows` (n,) with the keys or shared queries k and the values v
        (n, h or hk, t, d), and their bucket ids (n, h, num_hashes, t).

        Parameters
        ----------
        rows : (n,) int64
            Which texts of the cache.
        k : (n, hk, t, d), or (n, h, t, d) with shared queries
            Their keys, or shared queries.
        v : (n, hk, t, d)
            Their values.
        buckets : (n, h, num_hashes, t) int32, or None
            Their bucket ids.
        """
        oldest = self._oldest_kept(k.shape[2])
        for at, slots in self._slots(oldest, k.shape[2]):
            for row, key, value in zip(rows, k[:, :, at], v[:, :, at], strict=True):
                self.keys[row, :, slots] = self._stored(key * self._key_scale(key))
                self.values[row, :, slots] = self._stored(value)
        if buckets is not None:
            self._fill_buckets(rows, buckets[..., oldest:], oldest)

    def _key_scale(self, k: np.ndarray) -> Any:
        """What keys or shared queries (h, t, d) are multiplied by: a number, or one for each."""
        scale = k.dtype.type(self.scale)
        if not self.spec.shared_qk:
            return scale
        square = np.einsum("htd,htd->ht", k, k) / k.shape[2]
        return (scale / np.sqrt(square + k.dtype.type(1e-6)))[..., None]

    def _stored(self, x: np.ndarray) -> np.ndarray:
        """Keys or values as the cache keeps them."""
        return to_bfloat16(x) if self.keys.dtype == np.uint16 else x

    def _oldest_kept(self, t: int) -> int:
        """The oldest token that is kept of a text of t tokens, see `oldest_kept`."""
        room = self.keys.shape[2]
        return max(0, t - room) if self.spec.kind == "local" else oldest_kept(t, room, self._drop)

    def _slots(self, start: int, end: int) -> list[tuple[slice, slice]]:
        """Cut tokens [start, end), at most as many as there are slots, where the slots begin again:
        slices of tokens, and their slots."""
        room = self.keys.shape[2]
        cut = max(start, end // room * room)
        parts = [(a, b) for a, b in ((start, cut), (cut, end)) if a < b]
        return [(slice(a, b), slice(a % room, a % room + b - a)) for a, b in parts]

    def _fill_buckets(self, rows: np.ndarray, buckets: np.ndarray, oldest: int) -> None:
        """The bucket lists of tokens (n, h, num_hashes, t) from the token `oldest` on."""
        assert self.buckets is not None
        assert self.previous is not None
        for at in np.ndindex(buckets.shape[:-1]):
            to = (rows[at[0]], *at[1:])
            order = np.argsort(buckets[at], kind="stable")
            ids = buckets[at][order]
            slots = ((order + oldest) % self.previous.shape[-1]).astype(np.int32)
            first = np.r_[True, ids[1:] != ids[:-1]]
            self.previous[to][slots] = np.where(first, -1, np.r_[-1, slots[:-1]])
            last = np.r_[first[1:], True]
            lists = self.buckets[to]
            lists[:, 0], lists[:, 1] = -1, 0
            lists[ids[last], 0] = slots[last]
            lists[ids[last], 1] = np.diff(np.flatnonzero(np.r_[first, True]))

    def take(self, parents: np.ndarray, start: int = 0, end: int | None = None) -> None:
        """Make text i a copy of text parents[i]: of its tokens [start, end), where the ones before
        `start` are the same already.

        Parameters
        ----------
        parents : (n,) int64
            For each text, the one whose tokens it gets.
        start, end : int
            The tokens that are copied: those before `start` are the same already.
        """
        if len(parents) != len(self.keys):
            for name, array in self._held().items():
                setattr(self, name, array[parents])
            return
        changed = np.flatnonzero(parents != np.arange(len(parents)))
        if len(changed) == 0:
            return
        ring = end is None or end > self.keys.shape[2]  # the oldest slots hold new tokens
        parents, tokens = parents[changed], slice(None) if ring else slice(start, end)
        for name, array in self._held().items():
            axis = self._state[name]
            part = () if axis is None else (*(axis - 1) * (slice(None),), tokens)
            array[changed, *part] = array[parents, *part]

    def step(
        self,
        y: np.ndarray,
        x: np.ndarray,
        norm: tuple[np.ndarray, np.ndarray],
        projections: tuple[Matrix, Matrix | None, Matrix, Matrix],
        rows: np.ndarray,
        positions: np.ndarray,
        workers: int | None = None,
    ) -> None:
        """Add the attention of one new token of each text to y (n, c).

        Parameters
        ----------
        y, x : (n, c)
            The stream to add to, and the one to read.
        norm : pair of (c,)
            Weight and bias of the layer norm.
        projections : (wq, wk, wv, wo)
            wq (h d, c), wk and wv (hk d, c), wo (c, h d), arrays or `QuantizedWeight`; wk None with
            shared queries and keys.
        rows, positions : (n,) int64
            Which texts of the cache, all different, and their lengths so far: the new tokens'
            positions.
        workers : int, optional
            Threads, see `reformer_c.set_num_threads`.
        """
        (weight, bias), (wq, wk, wv, wo) = norm, projections
        _core.decode_attention(
            self.spec, self.eps, self.rope_theta, self._drop, x, weight, bias, wq, wk, wv, wo,
            self.num_buckets, self.rotations, self.keys, self.values, self.buckets, self.previous,
            rows, positions, y, resolve_workers(workers),
        )  # fmt: skip
