"""Comparison of LSH attention with the full attention that it approximates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..checks import names_keywords
from ..runtime import underflow_to_zero
from ..text.tables import html_table, text_table

__all__ = [
    "LSHReport",
    "Pattern",
    "RoundsReport",
    "attention_inputs",
    "attention_weights",
    "lsh_report",
]

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
        Distance of the output from that of full attention, divided by the latter's norm.
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
    num_hashes: Sequence[int] = (1, 2, 4, 8, 16),
    num_buckets: int | Sequence[int] | None = None,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    scope: str = "chunk",
    allow_duplicate_attention: bool = True,
    queries: int | None = 1024,
    rng: int | np.random.Generator | None = 0,
) -> LSHReport:
    """Compare LSH attention with the full shared-QK attention that it approximates.

    As in Reformer (Kitaev et al. 2020), section 2 and figure 5: with more rounds, the share of full
    attention's mass that is found approaches 1, and the output that of full attention.

    Parameters
    ----------
    qk : ndarray (b, h, t, d), (h, t, d) or (t, d)
        Shared queries and keys, float32 or float64.
    v : ndarray of the same shape, optional
        Values; without them, outputs are not compared.
    num_hashes : sequence of int
        Numbers of rounds; a smaller number uses the first rotations of a larger.
    num_buckets, chunk_length, num_chunks_before, num_chunks_after, is_causal, scope
        As in `lsh_attention`.
    allow_duplicate_attention : bool
        As in `lsh_attention`. False, the paper's equation, counts a key found in several rounds
        once: only then does the output converge to that of full attention.
    queries : int or None
        Number of evenly spaced queries for which mass and duplicates are measured, against all
        keys; None takes all.
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
    """
    qk = _four_axes("qk", qk)
    v = None if v is None else _four_axes("v", v)
    if v is not None and v.shape != qk.shape:
        raise ValueError(f"v must have the shape of qk, {qk.shape}, got {v.shape}")
    rounds = [int(r) for r in np.atleast_1d(num_hashes)]
    if not rounds or min(rounds) < 1:
        raise ValueError(f"num_hashes must be numbers >= 1, got {num_hashes!r}")
    if queries is not None and queries < 1:
        raise ValueError(f"queries must be a number >= 1 or None, got {queries!r}")
    pattern = Pattern(scope, chunk_length, num_chunks_before, num_chunks_after)
    _, h, t, d = qk.shape
    if num_buckets is None:
        num_buckets = ops.choose_num_buckets(t, chunk_length)
    rotations = ops.lsh_rotations(
        h, d, num_hashes=max(rounds), num_buckets=num_buckets, rng=rng, dtype=qk.dtype
    )
    buckets = ops.lsh_hash(qk, num_hashes=max(rounds), num_buckets=num_buckets, rotations=rotations)
    rows = np.arange(t) if queries is None else np.unique(np.linspace(0, t - 1, queries, dtype=int))
    found = _found(qk, buckets, rounds, pattern, rows, is_causal)
    rules = {
        "num_buckets": num_buckets,
        "chunk_length": chunk_length,
        "num_chunks_before": num_chunks_before,
        "num_chunks_after": num_chunks_after,
        "is_causal": is_causal,
        "scope": scope,
        "allow_duplicate_attention": allow_duplicate_attention,
    }
    errors = _output_errors(qk, v, rounds, rotations, rules)
    sizes = _bucket_sizes(buckets, int(np.prod(num_buckets)))
    number = num_buckets if isinstance(num_buckets, int) else tuple(num_buckets)
    return LSHReport(
        RoundsReport(r, number, keys, seen, recall, error, duplicates, sizes[:, :, :r])
        for r, (keys, seen, recall, duplicates), error in zip(rounds, found, errors, strict=True)
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
class Pattern:
    """Which keys a query attends to: neighbouring chunks of the sorted order, or whole buckets."""

    scope: str = "chunk"
    chunk_length: int = 64
    before: int = 1
    after: int = 0

    def __post_init__(self) -> None:
        if self.scope not in ("chunk", "bucket"):
            raise ValueError(f"scope must be 'chunk' or 'bucket', got {self.scope!r}")

    def groups(self, buckets: np.ndarray) -> np.ndarray:
        """The chunk or bucket of each position in each round, (r, t)."""
        return buckets if self.scope == "bucket" else _chunks(buckets, self.chunk_length)

    def count_pairs(self, groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How often each query in `rows` attends to each key, over all rounds: (rows, t).

        The chunks of all rounds form one circle: the chunk before a round's first chunk is the last
        chunk of the previous round.
        """
        r, t = groups.shape
        counts = np.zeros((len(rows), t), np.uint16)
        if self.scope == "bucket":
            for own in range(r):
                counts += groups[own, rows, None] == groups[own]
            return counts
        per_round = -(-t // self.chunk_length)
        if per_round <= 1:
            all_pairs: np.ndarray = counts + np.uint16(1)
            return all_pairs
        for offset in range(-self.before, self.after + 1):
            if abs(offset) > r * per_round:
                offset = 0  # as in Hugging Face's model, which concatenates slices
            for own in range(r):
                target = (own * per_round + groups[own, rows] + offset) % (r * per_round)
                target_round, target_chunk = np.divmod(target, per_round)
                for other in np.unique(target_round):
                    here = target_round == other
                    counts[here] += groups[other] == target_chunk[here, None]
        return counts


def _found(
    qk: np.ndarray,
    buckets: np.ndarray,
    rounds: Sequence[int],
    pattern: Pattern,
    rows: np.ndarray,
    is_causal: bool,
) -> list[tuple[float, float, float, float]]:
    """(keys, seen, recall, duplicates) for each number of rounds, over the given query rows."""
    b, h, t, _ = qk.shape
    mass, pairs, unique = np.zeros((3, len(rounds)))
    all_pairs = 0
    for i, j in np.ndindex(b, h):
        groups = pattern.groups(buckets[i, j])
        for block in np.array_split(rows, -(-len(rows) // _BLOCK)):
            probability = attention_weights(qk[i, j], block, is_causal)
            countable = np.arange(t) != block[:, None]
            if is_causal:
                countable &= np.arange(t) < block[:, None]
            all_pairs += int(np.count_nonzero(countable))
            for n, r in enumerate(rounds):
                counts = pattern.count_pairs(groups[:r], block)
                mass[n] += probability[counts > 0].sum(dtype=np.float64)
                pairs[n] += counts[countable].sum()
                unique[n] += np.count_nonzero(counts[countable])
    duplicates = 1.0 - np.divide(unique, pairs, out=np.ones_like(pairs), where=pairs > 0)
    seen = unique / max(1, all_pairs)
    keys, recall = pairs / (b * h * len(rows)), mass / (b * h * len(rows))
    figures = np.stack([keys, seen, recall, duplicates], axis=-1)
    return [tuple(row) for row in figures.tolist()]


def _output_errors(
    qk: np.ndarray,
    v: np.ndarray | None,
    rounds: Sequence[int],
    rotations: np.ndarray,
    rules: dict[str, Any],
) -> list[float | None]:
    """Relative distance of the output from that of full attention, for each number of rounds."""
    if v is None:
        return [None] * len(rounds)
    full = ops.full_attention(qk, None, v, is_causal=rules["is_causal"], shared_qk=True)
    errors: list[float | None] = []
    for r in rounds:
        some = np.ascontiguousarray(rotations[:, :, :r])
        out = ops.lsh_attention(qk, v, num_hashes=r, rotations=some, **rules)
        errors.append(_relative_distance(out, full))
    return errors


def _relative_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|x - y| / |y|; 0 where both are 0."""
    _, exponent = np.frexp(np.abs(y).max())
    # scale by a power of two, which is exact, so that squares neither underflow nor overflow
    distance = np.linalg.norm(np.ldexp(x - y, -exponent))
    return float(distance / np.linalg.norm(np.ldexp(y, -exponent))) if distance else 0.0


@underflow_to_zero()
def attention_weights(qk: np.ndarray, rows: np.ndarray, is_causal: bool) -> np.ndarray:
    """Rows of the softmax of full shared-QK attention of qk (t, d): (rows, t)."""
    t, d = qk.shape
    keys = qk / np.sqrt(np.mean(qk * qk, axis=-1, keepdims=True) + 1e-6)
    scores = qk[rows] @ keys.T / np.sqrt(np.asarray(d, qk.dtype))
    if is_causal:
        scores[np.arange(t) > rows[:, None]] = -1e9
    scores[np.arange(len(rows)), rows] = -1e5  # self-mask: only if nothing else is visible
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    shares: np.ndarray = scores / scores.sum(axis=-1, keepdims=True)
    return shares


def _chunks(buckets: np.ndarray, chunk_length: int) -> np.ndarray:
    """The chunk of each position in each round's stable order by bucket, (r, t)."""
    order = np.argsort(buckets, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[-1])[None], axis=-1)
    return (rank // chunk_length).astype(np.int32)


def _bucket_sizes(buckets: np.ndarray, k: int) -> np.ndarray:
    """Positions in each bucket: (b, h, r, k)."""
    rows = buckets.reshape(-1, buckets.shape[-1])
    sizes = [np.bincount(row, minlength=k) for row in rows]
    return np.reshape(sizes, (*buckets.shape[:-1], k))


def _four_axes(name: str, x: np.ndarray) -> np.ndarray:
    if isinstance(x, np.ma.MaskedArray) or not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a float32 or float64 array, got {type(x).__name__}")
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be a float32 or float64 array, got {x.dtype}")
    if not 2 <= x.ndim <= 4 or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape (b, h, t, d), (h, t, d) or (t, d), not empty, got {x.shape}"
        )
    return x[(None,) * (4 - x.ndim)]
