"""Attention of new tokens to a long text by an index of hash buckets, with keys of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ..checks import (
    as_array,
    bucket_factors,
    count,
    names_keywords,
    number,
    positive,
    real_tokens,
    real_type,
)
from ..runtime import resolve_workers, underflow_to_zero
from .full import full_attention_forward
from .hashing import choose_num_buckets, lsh_hash, lsh_rotations
from .separate_keys import broadcast_center, check_center, mean_of

__all__ = ["IndexReport", "KeyValueIndex"]

KEYS_PER_CHUNK = 64  # of `choose_num_buckets`: half as many keys a bucket


@dataclass(frozen=True)
class IndexReport:
    """What queries find of full attention, and what it costs.

    Parameters
    ----------
    recall : ndarray (b, h, t)
        Share of full attention's probability on the keys that each query found.
    keys : ndarray of int (b, h, t)
        How many keys it found.
    length : int
        Tokens of the index.
    operations, full_operations : float
        Estimated floating-point operations of a query and head, mean over them: 4 d a key, and for
        the index 2 d a direction of each hash.
    nbytes : int
        Bytes of the index.

    Examples
    --------
    >>> k, v = np.random.default_rng(0).standard_normal((2, 1, 1, 200, 8))
    >>> index = KeyValueIndex(k, v, num_buckets=4, local_window=8)
    >>> report = index.compare(k[:, :, -1:])
    >>> bool(0 < report.recall.mean() < 1), bool(report.operations < report.full_operations)
    (True, True)
    """

    recall: np.ndarray
    keys: np.ndarray
    length: int
    operations: float
    full_operations: float
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{self.recall.mean():.1%} of full attention's mass (least {self.recall.min():.1%}), "
            f"{self.keys.mean():,.1f} of {self.length:,} keys a query, "
            f"{self.operations / self.full_operations:.1%} of full attention's operations, "
            f"{self.nbytes / 1e6:,.1f} MB"
        )


class KeyValueIndex:
    """Keys and values of a text, of which a new token attends to those that its hash finds.

    Keys are hashed by angle, after their mean is subtracted, which changes no probability. A query
    sees the keys of its bucket in each round, those at most `local_window` before it, itself, and
    the first `sinks` tokens, on which networks put what weight they have to spare (Xiao et al.
    2023, "Efficient Streaming Language Models with Attention Sinks"): each once, in one softmax.

    Parameters
    ----------
    k, v : (b, hk, tk, d), float32 or float64
        Keys and values of the text so far, which are copied.
    num_hashes : int
        Rounds.
    num_buckets : int or sequence of int, optional
        Even, or even factors; by default for about 32 keys a bucket.
    local_window : int
        How far back keys are seen without a hash.
    sinks : int
        How many of the first real tokens are always seen.
    center : {"keys"}, None or array
        What is subtracted from keys before they are hashed: the mean of the real ones given here,
        also for those appended later; nothing; or an array of shape (d,), (hk, d) or one that
        broadcasts to (b, hk, 1, d).
    attention_mask : (b, tk) bool, int or float, optional
        Nonzero for a real token; others are never seen.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    softcap : float, optional
        As in `full_attention`.
    rotations : (hk, d, num_hashes, sum(factors) // 2) same dtype, optional
        Directions of the hash. Query heads that share a head of keys share its directions.
    rng : int, numpy Generator, or None
        Draws the rotations that are not given.
    workers : int, optional
        Threads for hashing, see `reformer_c.set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or range, naming the argument.

    See Also
    --------
    lsh_attention, tune_lsh

    Notes
    -----
    Of memory, the index takes the keys and values, 4 bytes for each token, round and head of keys,
    and 4 for each bucket of a round; room grows by a quarter. A query costs
    ``2 d num_hashes sum(factors) / 2`` operations for its hash and ``4 d`` for each key that it
    finds: as many however long the text is, if buckets grow in number and not in size. A token that
    is appended costs one hash, and two writes a round. `compare` measures all this, and the recall.

    Examples
    --------
    >>> k, v = np.random.default_rng(0).standard_normal((2, 1, 2, 500, 16))
    >>> index = KeyValueIndex(k, v, num_hashes=2, num_buckets=8, rng=1)
    >>> rng = np.random.default_rng(1)
    >>> q, new_k, new_v = rng.standard_normal((3, 1, 2, 1, 16))
    >>> index.append(new_k, new_v)
    >>> index.attend(q).shape, index.length
    ((1, 2, 1, 16), 501)
    """

    @names_keywords
    @underflow_to_zero()
    def __init__(
        self,
        k: np.ndarray,
        v: np.ndarray,
        *,
        num_hashes: int = 4,
        num_buckets: int | Sequence[int] | None = None,
        local_window: int = 128,
        sinks: int = 4,
        center: Any = "keys",
        attention_mask: np.ndarray | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        rotations: np.ndarray | None = None,
        rng: Any = None,
        workers: int | None = None,
    ) -> None:
        k = as_array("k", k)
        if k.ndim != 4:
            raise ValueError(f"k must have shape (b, hk, tk, d), got {k.shape}")
        b, hk, tk, d = k.shape
        dtype = real_type("k", k)
        rounds = count("num_hashes", num_hashes, 1)
        if num_buckets is None:
            num_buckets = choose_num_buckets(tk, KEYS_PER_CHUNK)
        self._factors = bucket_factors(num_buckets)
        self._window = count("local_window", local_window, 0)
        self._sinks = count("sinks", sinks, 0)
        self._scale = 1 / math.sqrt(max(1, d)) if scale is None else number("scale", scale)
        self._softcap = None if softcap is None else positive("softcap", softcap)
        if rotations is None:
            rotations = lsh_rotations(
                hk, d, num_hashes=rounds, num_buckets=self._factors, rng=rng, dtype=dtype
            )
        elif rng is not None:
            raise ValueError("rng draws rotations: pass one of them, not both")
        self._hashing: dict[str, Any] = {
            "num_hashes": rounds, "num_buckets": self._factors,
            "rotations": as_array("rotations", rotations),
        }  # fmt: skip
        shape = (hk, d, rounds, sum(self._factors) // 2)
        if self._hashing["rotations"].shape != shape:
            raise ValueError(
                f"rotations must have shape {shape}, got {self._hashing['rotations'].shape}"
            )
        self._length = 0
        self._keys = np.empty((b, hk, 0, d), dtype)
        self._values = np.empty((b, hk, 0, d), dtype)
        # the ids of buckets, and one for tokens that are not real
        self._newest = np.full((b, hk, rounds, math.prod(self._factors) + 1), -1, np.int32)
        self._previous = np.empty((b, hk, rounds, 0), np.int32)
        self._real: np.ndarray | None = None
        real = self._mask_of(attention_mask, tk)
        self._center = _center_of(k, center, real)
        self._append(k, self._checked("v", v, tk), real, workers)

    # ---- state ----

    @property
    def length(self) -> int:
        """Tokens of the index."""
        return self._length

    @property
    def num_buckets(self) -> tuple[int, ...]:
        """Factors of the number of buckets."""
        return self._factors

    @property
    def keys(self) -> np.ndarray:
        """The keys, (b, hk, length, d), to read."""
        return self._so_far(self._keys)

    @property
    def values(self) -> np.ndarray:
        """The values, (b, hk, length, d), to read."""
        return self._so_far(self._values)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, with the room for tokens to come."""
        arrays = (self._keys, self._values, self._newest, self._previous, self._real)
        return sum(array.nbytes for array in arrays if array is not None)

    def _so_far(self, array: np.ndarray) -> np.ndarray:
        view = array[:, :, : self._length]
        view.flags.writeable = False
        return view

    # ---- tokens ----

    @names_keywords
    @underflow_to_zero()
    def append(
        self,
        k: np.ndarray,
        v: np.ndarray,
        *,
        attention_mask: np.ndarray | None = None,
        workers: int | None = None,
    ) -> None:
        """Add the next tokens.

        Parameters
        ----------
        k, v : (b, hk, n, d)
            Their keys and values, of the dtype of the index.
        attention_mask : (b, n) bool, int or float, optional
            Nonzero for a real token.
        workers : int, optional
            Threads, see `reformer_c.set_num_threads`.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, naming the argument.
        """
        k = as_array("k", k)
        if k.ndim != 4:
            raise ValueError(f"k must have shape (b, hk, n, d), got {k.shape}")
        n = k.shape[2]
        k, v = self._checked("k", k, n), self._checked("v", v, n)
        self._append(k, v, self._mask_of(attention_mask, n), workers)

    @names_keywords
    def crop(self, length: int) -> None:
        """Forget all tokens but the first ones.

        Parameters
        ----------
        length : int
            How many to keep, at most as many as there are.

        Raises
        ------
        TypeError, ValueError
            It is not an integer, or out of range.
        """
        length = count("length", length, 0)
        if length > self._length:
            raise ValueError(f"length must be at most {self._length}, got {length}")
        while (late := self._newest >= length).any():
            at = np.nonzero(late)
            self._newest[at] = self._previous[(*at[:3], self._newest[at])]
        self._length = length

    def common_length(
        self, k: np.ndarray, v: np.ndarray, *, attention_mask: np.ndarray | None = None
    ) -> int:
        """How many first tokens of another cache are those of the index, bit for bit.

        All keys and values are compared: reading them costs less than attending to all.

        Parameters
        ----------
        k, v : (b, hk, tk, d)
            Keys and values of the cache.
        attention_mask : (b, tk), optional
            Nonzero for a real token.

        Returns
        -------
        int
            At most the smaller length; 0 if shapes or dtypes do not agree.
        """
        k, v = as_array("k", k), as_array("v", v)
        if k.ndim != 4 or v.shape != k.shape or not k.dtype == v.dtype == self._keys.dtype:
            return 0
        if (*k.shape[:2], k.shape[3]) != (*self._keys.shape[:2], self._keys.shape[3]):
            return 0
        n = min(self._length, k.shape[2])
        same = np.ones(n, bool)
        for mine, other in ((self._keys, k), (self._values, v)):
            # compared as bits, a NaN is itself
            bits = np.dtype(f"u{k.dtype.itemsize}")
            a, b = (np.ascontiguousarray(x[:, :, :n]).view(bits) for x in (mine, other))
            if not np.array_equal(a, b):
                same &= (a == b).all(axis=(0, 1, 3))
        real = self._mask_of(attention_mask, k.shape[2])
        if real is not None or self._real is not None:
            a, b = (
                np.ones((len(k), n), bool) if x is None else x[:, :n] for x in (real, self._real)
            )
            same &= (a == b).all(axis=0)
        return n if same.all() else int(same.argmin())

    def _checked(self, name: str, x: Any, n: int) -> np.ndarray:
        array, dtype = as_array(name, x), self._keys.dtype
        shape = (*self._keys.shape[:2], n, self._keys.shape[3])
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if array.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
        return array

    def _mask_of(self, attention_mask: Any, n: int) -> np.ndarray | None:
        if attention_mask is None:
            return None
        return real_tokens("attention_mask", attention_mask, (len(self._keys), n))

    def _append(
        self, k: np.ndarray, v: np.ndarray, real: np.ndarray | None, workers: int | None
    ) -> None:
        start, end = self._length, self._length + k.shape[2]
        hashed = k if self._center is None else k - self._center
        ids = lsh_hash(hashed, attention_mask=real, workers=workers, **self._hashing)
        self._make_room(end)
        self._keys[:, :, start:end], self._values[:, :, start:end] = k, v
        if real is not None and self._real is None:
            self._real = np.ones((len(k), self._keys.shape[2]), bool)
        if self._real is not None:
            self._real[:, start:end] = True if real is None else real
        self._join(ids, start, end)
        self._length = end

    def _make_room(self, length: int) -> None:
        room = self._keys.shape[2]
        if length <= room:
            return
        more = max(length, room + room // 4) - room
        self._keys, self._values = (
            np.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (self._keys, self._values)
        )
        self._previous = np.pad(self._previous, ((0, 0), (0, 0), (0, 0), (0, more)))
        if self._real is not None:
            self._real = np.pad(self._real, ((0, 0), (0, more)), constant_values=True)

    def _join(self, ids: np.ndarray, start: int, end: int) -> None:
        """Make tokens [start, end) the newest of their buckets: ids (b, hk, num_hashes, n)."""
        if start == end:
            return
        order = np.argsort(ids, axis=-1, kind="stable")
        buckets = np.take_along_axis(ids, order, -1)
        tokens = (order + start).astype(np.int32)
        first = np.ones(ids.shape, bool)
        first[..., 1:] = buckets[..., 1:] != buckets[..., :-1]
        before = np.take_along_axis(self._newest, buckets, -1)  # of a bucket's first new token
        before[..., 1:] = np.where(first[..., 1:], before[..., 1:], tokens[..., :-1])
        np.put_along_axis(self._previous, tokens, before, -1)
        last = np.roll(first, -1, axis=-1)
        last[..., -1] = True
        at = np.nonzero(last)
        self._newest[(*at[:3], buckets[at])] = tokens[at]

    # ---- attention ----

    @names_keywords
    def attend(self, q: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Attention of the newest tokens.

        Parameters
        ----------
        q : (b, h, t, d)
            Queries of the newest t tokens, whose keys are in the index; hk divides h, and each head
            of keys serves h / hk successive ones.
        workers : int, optional
            Threads, see `reformer_c.set_num_threads`.

        Returns
        -------
        (b, h, t, d)
            0 where a query finds no key.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, naming the argument.
        """
        return self._attend(self._queries(q), workers)[0]

    @names_keywords
    @underflow_to_zero()
    def compare(self, q: np.ndarray, *, workers: int | None = None) -> IndexReport:
        """Compare what queries find with full attention.

        Parameters
        ----------
        q : (b, h, t, d)
            As in `attend`, not empty.
        workers : int, optional
            Threads, see `reformer_c.set_num_threads`.

        Returns
        -------
        IndexReport
            A query that sees no key finds all of nothing: its recall is 1.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, naming the argument.
        """
        q = self._queries(q)
        if q.size == 0:
            raise ValueError(f"q must not be empty, got shape {q.shape}")
        _, lse, keys = self._attend(q, workers)
        b, _, t, d = q.shape
        full, visible = np.empty_like(lse), np.empty((b, 1, t))
        for i, end in enumerate(range(self._length - t + 1, self._length + 1)):
            real = None if self._real is None else self._real[:, :end]
            _, saved = full_attention_forward(
                q[:, :, i : i + 1], self._keys[:, :, :end], self._values[:, :, :end],
                attention_mask=real, scale=self._scale, softcap=self._softcap, workers=workers,
            )  # fmt: skip
            full[:, :, i] = saved.lse[:, :, 0]
            visible[:, :, i] = end if real is None else real.sum(1)[:, None]
        less = np.subtract(lse, full, where=keys > 0, out=np.zeros_like(lse))
        recall = np.where(keys > 0, np.exp(np.minimum(less, 0)), visible == 0)
        hashing = 2 * d * self._hashing["num_hashes"] * (sum(self._factors) // 2)
        return IndexReport(
            recall, keys, self._length, hashing + 4 * d * float(keys.mean()),
            4 * d * float(visible.mean()), self.nbytes,
        )  # fmt: skip

    def _queries(self, q: Any) -> np.ndarray:
        array = as_array("q", q)
        b, hk, _, d = self._keys.shape
        if (
            array.ndim != 4
            or array.shape[0] != b
            or array.shape[3] != d
            or (array.shape[1] % hk if hk else array.shape[1])
        ):
            raise ValueError(
                f"q must have shape (b, h, t, d) with b = {b}, d = {d} and h a multiple of {hk}, "
                f"got {array.shape}"
            )
        if array.dtype != self._keys.dtype:
            raise TypeError(f"q must be {self._keys.dtype}, got {array.dtype}")
        if array.shape[2] > self._length:
            raise ValueError(
                f"q must have at most as many tokens as the index, {self._length}, "
                f"got {array.shape[2]}"
            )
        return array

    def _attend(
        self, q: np.ndarray, workers: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """out, the logarithm of each softmax's denominator, and how many keys it has."""
        b, h, t, d = q.shape
        hk, rounds = self._keys.shape[1], self._hashing["num_hashes"]
        group = h // max(1, hk)
        # heads that share a head of keys are hashed as more queries of one head
        ids = lsh_hash(q.reshape(b, hk, group * t, d), workers=workers, **self._hashing)
        ids = ids.reshape(b, hk, rounds, group, t).swapaxes(2, 3).reshape(b, h, rounds, t)
        out, lse, keys = _core.index_attention(
            q * q.dtype.type(self._scale), self._keys, self._values, self._real, self._newest,
            self._previous, ids, self._length, self._window, self._sinks, self._softcap or 0.0,
            None, None, resolve_workers(workers),
        )  # fmt: skip
        return out, lse, keys


def _center_of(k: np.ndarray, center: Any, real: np.ndarray | None) -> np.ndarray | None:
    """What is subtracted from keys (b, hk, tk, d): (b, hk, 1, d), or None."""
    one: np.ndarray = k[:, :, :0].sum(2, keepdims=True)
    check_center(center, one)
    if center is None:
        return None
    if isinstance(center, str):
        return mean_of(k, None if real is None else real[:, None, :, None])
    return broadcast_center(center, one)
