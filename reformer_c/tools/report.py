"""Comparison of LSH attention with the full attention that it approximates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import ops
from ..checks import bucket_factors, count, integer, names_keywords, number
from ..ops.separate_keys import check_center, key_buckets_of
from ..runtime import underflow_to_zero
from ..text.tables import html_table, text_table
from .pairs import (
    Pattern,
    attention_weights,
    four_axes,
    keys_and_mask,
    sampled_rows,
    visible_keys,
    window,
)

__all__ = ["LSHReport", "RoundsReport", "attention_inputs", "lsh_report"]

COLUMNS = ("buckets", "rounds", "keys a query", "keys seen", "mass found", "output error",
           "duplicates", "largest bucket")  # fmt: skip
_BLOCK = 128  # query rows per block of the score matrix


@dataclass(frozen=True)
class RoundsReport:
    """LSH attention with one number of rounds, compared with full attention.

    Attributes
    ----------
    num_hashes : int
        Rounds.
    num_buckets : int or tuple of int
        Buckets per round.
    keys : float
        Keys that a query attends to, mean over queries; a key found twice counts twice, since it is
        computed twice.
    seen : float
        Share of all visible keys that LSH attention attends to.
    recall : float
        Share of full attention's probability mass on those keys, mean over queries.
    error : float or None
        Distance of the output from that of full attention, divided by the latter's norm, over the
        queries that count: masked ones do not, nor do those that may see no key of `k`.
    duplicates : float
        Share of the computed (query, key) pairs that repeat one of another round or of a wrapped
        window.
    bucket_sizes : ndarray (b, h, num_hashes, k)
        Positions in each bucket.
    """

    num_hashes: int
    num_buckets: int | tuple[int, ...]
    keys: float
    seen: float
    recall: float
    error: float | None
    duplicates: float
    bucket_sizes: np.ndarray


class LSHReport(tuple[RoundsReport, ...]):
    """One `RoundsReport` per number of rounds; prints as a table, and is one in a notebook."""

    def _cells(self) -> Iterator[list[str]]:
        for row in self:
            yield [
                f"{np.prod(row.num_buckets):,}",
                f"{row.num_hashes}",
                f"{row.keys:,.1f}",
                f"{row.seen:.1%}",
                f"{row.recall:.1%}",
                "-" if row.error is None else f"{row.error:.4f}",
                f"{row.duplicates:.1%}",
                f"{row.bucket_sizes.max():,}",
            ]

    def __str__(self) -> str:
        return text_table(COLUMNS, self._cells())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table("LSH attention compared with full attention", COLUMNS, self._cells())


@names_keywords
@underflow_to_zero()
def lsh_report(
    qk: np.ndarray,
    v: np.ndarray | None = None,
    *,
    k: np.ndarray | None = None,
    num_hashes: Sequence[int] = (1, 2, 4, 8, 16),
    num_buckets: int | Sequence[int] | None = None,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    scope: str = "chunk",
    local_window: int | None = None,
    center: Any = "keys",
    scale: float | None = None,
    allow_duplicate_attention: bool = True,
    queries: int | None = 1024,
    rng: int | np.random.Generator | None = 0,
) -> LSHReport:
    """Compare LSH attention with the full attention that it approximates.

    As in Reformer (Kitaev et al. 2020), section 2 and figure 5: with more rounds, the share of full
    attention's mass that is found approaches 1, and the output that of full attention.

    Parameters
    ----------
    qk : ndarray (b, h, t, d), (h, t, d) or (t, d)
        Shared queries and keys, or queries; float32 or float64.
    v : ndarray of the same shape, or of that of `k`, optional
        Values; without them, outputs are not compared.
    k : ndarray (b, hk, tk, d), optional
        Keys of their own, as in `lsh_attention`.
    num_hashes : sequence of int
        Numbers of rounds; a smaller number uses the first rotations of a larger.
    num_buckets, chunk_length, num_chunks_before, num_chunks_after, is_causal, attention_mask, \
scope, local_window, center, scale
        As in `lsh_attention`.
    allow_duplicate_attention : bool
        As in `lsh_attention`. False, the paper's equation, counts a key found in several rounds
        once: only then does the output converge to that of full attention.
    queries : int or None
        Number of evenly spaced queries for which mass and duplicates are measured, against all
        keys; None takes all. Masked ones are left out, and those that may see no key of `k`.
    rng : int, Generator or None
        Draws the rotations.

    Returns
    -------
    LSHReport
        A tuple of one `RoundsReport` per number of rounds. ``print`` shows a table.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid.

    See Also
    --------
    tune_lsh

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> qk, v = rng.standard_normal((2, 1, 1, 512, 16))
    >>> report = lsh_report(qk, v, chunk_length=32, num_hashes=(1, 8))
    >>> bool(report[0].recall < report[1].recall < 1.0)
    True
    >>> bool(report[0].error > report[1].error > 0.0)
    True

    With whole buckets, the number of buckets determines how much is found and the cost. Reports for
    several numbers in one table:

    >>> table = LSHReport(
    ...     row
    ...     for k in (4, 16, 64)
    ...     for row in lsh_report(qk, num_buckets=k, num_hashes=(1, 8), scope="bucket")
    ... )
    >>> len(str(table).splitlines())
    7
    >>> bool(table[0].keys > table[2].keys > table[4].keys)
    True

    With keys of their own, as in a network that was trained with exact attention:

    >>> k = rng.standard_normal((1, 1, 512, 16))
    >>> few, many = lsh_report(qk, k=k, scope="bucket", local_window=8, num_hashes=(1, 8))
    >>> bool(few.recall < many.recall < 1.0)
    True
    """
    q = four_axes("qk" if k is None else "q", qk)
    keys, mask = keys_and_mask(q, k, attention_mask)
    v = None if v is None else four_axes("v", v)
    if v is not None and v.shape != (q if keys is None else keys).shape:
        owner, shape = ("qk", q.shape) if keys is None else ("k", keys.shape)
        raise ValueError(f"v must have the shape of {owner}, {shape}, got {v.shape}")
    rounds = [count("num_hashes", r, 1) for r in np.atleast_1d(num_hashes).tolist()]
    if not rounds:
        raise ValueError(f"num_hashes must be numbers >= 1, got {num_hashes!r}")
    queries = None if queries is None else count("queries", queries, 1)
    if local_window is not None:
        local_window = integer("local_window", local_window, 0)
    scale = None if scale is None else number("scale", scale)
    check_center(center, keys)
    pattern = Pattern(scope, chunk_length, num_chunks_before, num_chunks_after)
    _, h, t, d = q.shape
    if num_buckets is None:
        longest = t if keys is None else max(t, keys.shape[2])
        num_buckets = ops.choose_num_buckets(longest, chunk_length)
    rotations = ops.lsh_rotations(
        h, d, num_hashes=max(rounds), num_buckets=num_buckets, rng=rng, dtype=q.dtype
    )
    heads = _Heads(
        q, keys, mask, is_causal, scale, pattern, local_window,
        *_hash(q, keys, mask, max(rounds), num_buckets, rotations, center, is_causal),
    )  # fmt: skip
    found = _found(heads, rounds, sampled_rows(t, queries))
    rules = {
        "num_buckets": num_buckets,
        "chunk_length": chunk_length,
        "num_chunks_before": num_chunks_before,
        "num_chunks_after": num_chunks_after,
        "is_causal": is_causal,
        "attention_mask": mask,
        "scope": scope,
        "local_window": local_window,
        "scale": scale,
        "allow_duplicate_attention": allow_duplicate_attention,
    }
    if keys is not None:
        rules |= {"k": keys, "center": center}
    errors = _output_errors(q, v, heads.counted, rounds, rotations, rules)
    sizes = _bucket_sizes(heads.key_buckets, int(np.prod(num_buckets)))
    number_of = num_buckets if isinstance(num_buckets, int) else tuple(num_buckets)
    return LSHReport(
        RoundsReport(r, number_of, keys_seen, seen, recall, error, duplicates, sizes[:, :, :r])
        for r, (keys_seen, seen, recall, duplicates), error in zip(
            rounds, found, errors, strict=True
        )
    )


@names_keywords
def attention_inputs(
    model: Any, input_ids: np.ndarray, layer: int, *, rng: int | np.random.Generator | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The shared queries and keys, and the values, of an LSH layer: input for `lsh_report`.

    Parameters
    ----------
    model : a model of `reformer_c`
    input_ids : array_like of int, (b, t)
    layer : int
        Index of the layer, which must be an LSH layer.
    rng : int, Generator or None
        Draws the rotations of the LSH layers before it.

    Returns
    -------
    qk, v : ndarray (b, h, t, d)

    Raises
    ------
    ValueError
        There is no such layer, or it is not an LSH layer.

    Examples
    --------
    >>> from reformer_c import ReformerModelWithLMHead
    >>> from reformer_c.models.presets import preset_config
    >>> model = ReformerModelWithLMHead(preset_config("tiny", 256), rng=0)
    >>> qk, v = attention_inputs(model, np.arange(256)[None], layer=1)
    >>> qk.shape, v.shape
    ((1, 2, 256, 32), (1, 2, 256, 32))
    """
    config = model.config
    kinds = config.layer_types
    if not 0 <= layer < len(kinds) or kinds[layer] != "lsh":
        raise ValueError(f"layer must be the index of an LSH layer of {kinds}, got {layer!r}")
    output = model(input_ids, rng=rng, output_hidden_states=True, return_dict=True)
    prefix = f"layers.{layer}.attention."
    weights = {
        name.rpartition(prefix)[2]: array
        for name, array in model.parameters.items()
        if prefix in name
    }
    states = ops.layer_norm(
        output.hidden_states[layer],
        weights["layer_norm.weight"],
        weights["layer_norm.bias"],
        eps=config.layer_norm_eps,
    )
    b, t, _ = states.shape
    qk, v = (
        ops.linear(states, weights[f"self_attention.{name}.weight"])
        .reshape(b, t, config.num_attention_heads, -1)
        .transpose(0, 2, 1, 3)
        for name in ("query_key", "value")
    )
    return qk, v


@dataclass(frozen=True)
class _Heads:
    """Queries (b, h, t, d), keys of their own or None, and their buckets (b, h, r, t)."""

    q: np.ndarray
    k: np.ndarray | None
    mask: np.ndarray | None
    is_causal: bool
    scale: float | None
    pattern: Pattern
    local_window: int | None
    buckets: np.ndarray
    key_buckets: np.ndarray

    @property
    def width(self) -> int | None:
        """Of the window, which one chunk of everything does not need."""
        one = self.pattern.scope == "chunk" and self.q.shape[2] <= self.pattern.chunk_length
        return None if one else self.local_window

    def groups(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        own = None if self.k is None else self.key_buckets[i, j]
        return self.pattern.groups(self.buckets[i, j], own)

    def keys_of(self, i: int, j: int) -> np.ndarray | None:
        return None if self.k is None else self.k[i, j // (self.q.shape[1] // self.k.shape[1])]

    def visible(self, i: int, rows: np.ndarray) -> np.ndarray:
        return visible_keys(
            rows, self.q.shape[2], self.key_buckets.shape[3], is_causal=self.is_causal,
            real=None if self.mask is None else self.mask[i], shared=self.k is None,
        )  # fmt: skip

    @cached_property
    def counted(self) -> np.ndarray:
        """The queries that count, (b, t) bool: real shared ones, or those that may see a key."""
        (b, _, t, _), tk = self.q.shape, self.key_buckets.shape[3]
        real = np.ones((b, tk), bool) if self.mask is None else self.mask
        if self.k is None:
            return real
        if not self.is_causal:
            return np.repeat(real.any(axis=1, keepdims=True), t, axis=1)
        up_to = np.logical_or.accumulate(real, axis=1)
        # queries before the first key see none
        return np.pad(up_to, ((0, 0), (max(0, t - tk), 0)))[:, max(0, tk - t) :]


def _hash(
    q: np.ndarray,
    k: np.ndarray | None,
    mask: np.ndarray | None,
    rounds: int,
    num_buckets: int | Sequence[int],
    rotations: np.ndarray,
    center: Any,
    is_causal: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of queries and of keys."""
    rules: dict[str, Any] = {
        "num_hashes": rounds, "num_buckets": num_buckets, "rotations": rotations,
    }  # fmt: skip
    if k is None:
        buckets = ops.lsh_hash(q, attention_mask=mask, **rules)
        return buckets, buckets
    of_keys = key_buckets_of(
        k, rounds, bucket_factors(num_buckets), rotations, center, mask, is_causal, None
    )
    return ops.lsh_hash(q, **rules), of_keys


def _found(
    heads: _Heads, rounds: Sequence[int], rows: np.ndarray
) -> list[tuple[float, float, float, float]]:
    """(keys, seen, recall, duplicates) for each number of rounds, over the given query rows."""
    b, h, t, _ = heads.q.shape
    mass, pairs, unique = np.zeros((3, len(rounds)))
    all_pairs = count = 0
    for i, j in np.ndindex(b, h):
        groups = heads.groups(i, j)
        some = rows[heads.counted[i, rows]]
        count += len(some)
        for start in range(0, len(some), _BLOCK):
            block = some[start : start + _BLOCK]
            probability = attention_weights(
                heads.q[i, j], block, heads.is_causal, k=heads.keys_of(i, j),
                real=None if heads.mask is None else heads.mask[i], scale=heads.scale,
            )  # fmt: skip
            countable = heads.visible(i, block)
            all_pairs += int(np.count_nonzero(countable))
            near = window(block, t, groups[1].shape[1], heads.width)
            for n, r in enumerate(rounds):
                counts = heads.pattern.count_pairs((groups[0][:r], groups[1][:r]), block) + near
                if heads.k is not None:  # a query that finds no key attends to all
                    counts[~(countable & (counts > 0)).any(1)] += 1
                mass[n] += probability[counts > 0].sum(dtype=np.float64)
                pairs[n] += counts[countable].sum()
                unique[n] += np.count_nonzero(counts[countable])
    duplicates = 1.0 - np.divide(unique, pairs, out=np.ones_like(pairs), where=pairs > 0)
    seen = unique / max(1, all_pairs)
    keys, recall = pairs / max(1, count), mass / max(1, count)
    figures = np.stack([keys, seen, recall, duplicates], axis=-1)
    return [tuple(row) for row in figures.tolist()]


def _output_errors(
    q: np.ndarray,
    v: np.ndarray | None,
    counted: np.ndarray,
    rounds: Sequence[int],
    rotations: np.ndarray,
    rules: dict[str, Any],
) -> list[float | None]:
    """Relative distance of the outputs of the queries that count from those of full attention, for
    each number of rounds."""
    if v is None:
        return [None] * len(rounds)
    full = _full(q, rules.get("k"), v, rules)
    errors: list[float | None] = []
    for r in rounds:
        some = np.ascontiguousarray(rotations[:, :, :r])
        out = ops.lsh_attention(q, v, num_hashes=r, rotations=some, **rules)
        errors.append(_relative_distance(*(x.swapaxes(1, 2)[counted] for x in (out, full))))
    return errors


def _full(q: np.ndarray, k: np.ndarray | None, v: np.ndarray, rules: dict[str, Any]) -> np.ndarray:
    """Full attention, with the queries as the last positions."""
    same = {name: rules[name] for name in ("is_causal", "attention_mask", "scale")}
    if k is None:
        return ops.full_attention(q, None, v, shared_qk=True, **same)
    t, tk = q.shape[2], k.shape[2]
    if t == tk or not same["is_causal"]:
        return ops.full_attention(q, k, v, **same)
    n = min(t, tk)
    whole = np.zeros((*q.shape[:2], *k.shape[2:]), q.dtype)
    whole[:, :, tk - n :] = q[:, :, t - n :]
    out = np.zeros_like(q)  # a query before the first key sees none
    out[:, :, t - n :] = ops.full_attention(whole, k, v, **same)[:, :, tk - n :]
    return out


def _relative_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|x - y| / |y|; 0 where both are 0."""
    _, exponent = np.frexp(np.abs(y).max(initial=0))
    # scale by a power of two, which is exact, so that squares neither underflow nor overflow
    distance = np.linalg.norm(np.ldexp(x - y, -exponent))
    return float(distance / np.linalg.norm(np.ldexp(y, -exponent))) if distance else 0.0


def _bucket_sizes(buckets: np.ndarray, k: int) -> np.ndarray:
    """Positions in each bucket: (b, h, r, k). Masked ones are in none."""
    rows = buckets.reshape(-1, buckets.shape[-1])
    sizes = [np.bincount(row, minlength=k)[:k] for row in rows]
    return np.reshape(sizes, (*buckets.shape[:-1], k))
