"""Rounds, buckets and window of LSH attention, chosen by what they find of full attention."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import ops
from ..checks import bucket_factors, count, flag, names_keywords, number
from ..ops.hashing import generator_of, halved_power
from ..ops.separate_keys import centered, check_center
from ..runtime import underflow_to_zero
from ..text.tables import html_table, text_table
from .pairs import attention_weights, four_axes, keys_and_mask, sampled_rows, visible_keys, window

__all__ = ["LSHCandidate", "LSHTuning", "tune_lsh"]

COLUMNS = ("", "buckets", "rounds", "window", "keys a query", "keys seen", "mass found",
           "least head", "of full's operations")  # fmt: skip
_ROWS = 16  # of a table
_BLOCK = 128  # query rows per block of the score matrix
_LARGEST = 128  # buckets of one factor: beyond, two cost fewer products


@dataclass(frozen=True)
class LSHCandidate:
    """One setting of LSH attention, with what it finds and what it costs.

    Attributes
    ----------
    num_hashes, num_buckets, local_window
        As in `lsh_attention`.
    recall : float
        Share of full attention's probability mass on the keys that are found: the mean over the
        sampled queries and heads.
    least_recall : float
        The mean over the queries of the sampled head for which it is least.
    keys : float
        Keys that are computed for a query, mean over queries; a key that several rounds, or a round
        and the window find, counts each time, since it is computed each time.
    seen : float
        Share of all visible pairs that are found.
    operations : float
        Estimated floating-point operations a query and head: 4 d for each key, and 2 d for each
        direction of each hash of the query and of its share of the keys.
    share : float
        The operations, divided by those of full attention: 4 d for each visible key.
    """

    num_hashes: int
    num_buckets: int | tuple[int, ...]
    local_window: int
    recall: float
    least_recall: float
    keys: float
    seen: float
    operations: float
    share: float

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `lsh_attention`: a key that is found several times counts once."""
        return {
            "num_hashes": self.num_hashes, "num_buckets": self.num_buckets,
            "local_window": self.local_window, "scope": "bucket",
            "allow_duplicate_attention": False,
        }  # fmt: skip


@dataclass(frozen=True)
class LSHTuning:
    """What `tune_lsh` measured, and the setting it chose; prints as a table.

    The table has candidates that no other one beats: none that finds as much has fewer operations.
    The chosen one is marked; of many others, some are left out.

    Attributes
    ----------
    target : float
        The share of the mass that was asked for.
    chosen : LSHCandidate
        The candidate of the fewest operations that finds it, or the one that finds most.
    candidates : tuple of LSHCandidate
        All that were measured, those of fewer operations first.
    heads : tuple of (int, int)
        The batch and head of each sampled head.
    """

    target: float
    chosen: LSHCandidate
    candidates: tuple[LSHCandidate, ...]
    heads: tuple[tuple[int, int], ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `lsh_attention`, see `LSHCandidate`."""
        return self.chosen.settings

    @property
    def reached(self) -> bool:
        """Whether the chosen candidate finds the share that was asked for."""
        return self.chosen.recall >= self.target

    def _cells(self) -> Iterator[list[str]]:
        best: list[LSHCandidate] = []
        for row in self.candidates:
            if not best or row.recall > best[-1].recall:
                best.append(row)
        some = {int(i) for i in np.linspace(0, len(best) - 1, _ROWS)}
        for i, row in enumerate(best):
            if i not in some and row is not self.chosen:
                continue
            factors = np.atleast_1d(row.num_buckets)
            yield [
                "chosen" if row is self.chosen else "",
                " x ".join(map(str, factors)),
                f"{row.num_hashes}",
                f"{row.local_window}",
                f"{row.keys:,.1f}",
                f"{row.seen:.1%}",
                f"{row.recall:.1%}",
                f"{row.least_recall:.1%}",
                f"{row.share:.1%}",
            ]

    def _title(self) -> str:
        said = "" if self.reached else ", which no candidate finds"
        return f"{self.target:.1%} of full attention's mass{said}"

    def __str__(self) -> str:
        return f"{self._title()}\n{text_table(COLUMNS, self._cells(), left=1)}"

    def _repr_html_(self) -> str:
        return html_table(self._title(), COLUMNS, self._cells(), left=1)


@names_keywords
@underflow_to_zero()
def tune_lsh(
    q: np.ndarray,
    k: np.ndarray | None = None,
    *,
    recall: float = 0.9,
    num_hashes: Sequence[int] = (1, 2, 4, 8),
    num_buckets: Sequence[int | Sequence[int]] | None = None,
    local_window: Sequence[int] = (0, 16, 32, 64, 128),
    is_causal: bool = False,
    attention_mask: np.ndarray | None = None,
    center: Any = "keys",
    scale: float | None = None,
    heads: int | None = 8,
    queries: int | None = 256,
    rng: int | np.random.Generator | None = 0,
) -> LSHTuning:
    """Choose rounds, buckets and window of `lsh_attention` by measurement.

    For sampled queries of sampled heads, full attention's probabilities are compared with the keys
    that each candidate finds: those of the query's bucket in any round, and those in the window; or
    all, where these are none. Of the candidates that find the share `recall`, the one of the fewest
    estimated operations is chosen.

    Parameters
    ----------
    q : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
        Queries, or shared queries and keys.
    k : (b, hk, tk, d) same dtype, optional
        Keys; hk divides h, and each of their heads serves h / hk successive ones of q. Without
        them, queries and keys are shared.
    recall : float
        The share of full attention's mass to find, in (0, 1]: the mean over sampled queries.
    num_hashes : sequence of int
        Numbers of rounds to try; a smaller number uses the first rotations of a larger.
    num_buckets : sequence of int or of sequences of int, optional
        Numbers of buckets to try, or their factors. By default, the powers of two with 16 to 512
        keys a bucket.
    local_window : sequence of int
        Windows to try, as in `lsh_attention`: how far a key may be to be found in any bucket.
    is_causal : bool
        As in `lsh_attention`: where lengths differ, the queries are the last positions.
    attention_mask : (b, tk) bool, int or float, optional
        Nonzero for a real token.
    center : {"keys"}, None or array
        What is subtracted from `k` before it is hashed, as in `lsh_attention`.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.
    heads : int or None
        Heads to sample, over the whole batch; None takes all.
    queries : int or None
        Evenly spaced queries to sample; None takes all.
    rng : int, Generator or None
        Draws the heads and the rotations.

    Returns
    -------
    LSHTuning
        ``tuning.settings`` are arguments of `lsh_attention`, and ``print`` shows a table.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or no sampled query sees a key.

    Warns
    -----
    UserWarning
        No candidate finds the share. The one that finds most is chosen.

    See Also
    --------
    lsh_report

    Notes
    -----
    Other queries find other shares, and so do other rotations than those drawn here: choose on
    inputs of the kind that will be attended to. Operations are no times.

    Examples
    --------
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 4, 512, 16))
    >>> tuning = tune_lsh(3 * q, k, recall=0.8, num_hashes=(1, 4), num_buckets=(4, 16))
    >>> bool(tuning.reached and tuning.chosen.share < 1)
    True
    >>> ops.lsh_attention(3 * q, k, k=k, **tuning.settings).shape
    (1, 4, 512, 16)
    """
    q = four_axes("q", q)
    keys, mask = keys_and_mask(q, k, attention_mask)
    target = number("recall", recall)
    if not 0.0 < target <= 1.0:
        raise ValueError(f"recall must be a number > 0 and <= 1, got {recall!r}")
    is_causal = flag("is_causal", is_causal)
    scale = None if scale is None else number("scale", scale)
    rounds = _listed("num_hashes", num_hashes, 1)
    windows = _listed("local_window", local_window, 0)
    options = _bucket_options(num_buckets, (q if keys is None else keys).shape[2])
    if heads is not None:
        heads = count("heads", heads, 1)
    if queries is not None:
        queries = count("queries", queries, 1)
    generator = generator_of(rng)
    b, h, t, _ = q.shape
    sampled = _sample_heads(b * h, heads, generator)
    places = tuple((int(i) // h, int(i) % h) for i in sampled)
    check_center(center, keys)
    hashed = None if keys is None else centered(keys, center, mask, is_causal)
    rows = sampled_rows(t, queries)
    figures = [
        _measure_head(
            _Head.of(place, q, keys, hashed, mask, rows, is_causal, scale),
            options, rounds, windows, generator,
        )
        for place in places
    ]  # fmt: skip
    candidates = _candidates(figures, q, keys, options, rounds, windows)
    candidates.sort(key=lambda row: (row.operations, -row.recall))
    enough = [row for row in candidates if row.recall >= target]
    chosen = enough[0] if enough else max(candidates, key=lambda row: row.recall)
    if not enough:
        warnings.warn(
            f"no candidate finds recall = {target:g} of full attention's mass: the chosen one "
            f"finds {chosen.recall:.3f}. Try more rounds, fewer buckets or a wider window",
            stacklevel=4,
        )
    return LSHTuning(target, chosen, tuple(candidates), places)


# ---- arguments ----


def _listed(name: str, values: Any, minimum: int) -> list[int]:
    """Different integers in increasing order; one integer is a list of one."""
    listed = values if isinstance(values, (tuple, list, np.ndarray)) else (values,)
    found = sorted({count(name, value, minimum) for value in listed})
    if not found:
        raise ValueError(f"{name} must be numbers >= {minimum}, got {values!r}")
    return found


def _bucket_options(num_buckets: Any, tk: int) -> list[tuple[int, ...]]:
    """Factors of each number of buckets to try."""
    if num_buckets is not None:
        several = isinstance(num_buckets, (tuple, list, np.ndarray))
        listed = num_buckets if several else (num_buckets,)
        if not len(listed):
            raise ValueError(f"num_buckets must be numbers of buckets to try, got {num_buckets!r}")
        return [bucket_factors(one) for one in listed]
    powers = range(1, max(2, (tk // 16).bit_length()))
    few = [p for p in powers if tk / 2**p <= 512] or [powers[-1]]
    return [factors_of_power(p) for p in few]


def factors_of_power(power: int) -> tuple[int, ...]:
    """The factors of 2**power buckets that cost few products.

    Examples
    --------
    >>> factors_of_power(7), factors_of_power(9)
    ((128,), (16, 32))
    """
    return (2**power,) if 2**power <= _LARGEST else halved_power(power)


def _sample_heads(all_heads: int, heads: int | None, rng: np.random.Generator) -> np.ndarray:
    if heads is None or heads >= all_heads:
        return np.arange(all_heads)
    return np.sort(rng.choice(all_heads, heads, replace=False))


# ---- measurement ----


@dataclass(frozen=True)
class _Head:
    """One head of one text, and the queries of it that are sampled."""

    q: np.ndarray
    k: np.ndarray | None
    hashed: np.ndarray
    real: np.ndarray | None
    rows: np.ndarray
    is_causal: bool
    scale: float | None

    @staticmethod
    def of(
        place: tuple[int, int],
        q: np.ndarray,
        k: np.ndarray | None,
        hashed: np.ndarray | None,
        mask: np.ndarray | None,
        rows: np.ndarray,
        is_causal: bool,
        scale: float | None,
    ) -> _Head:
        i, j = place
        real = None if mask is None else mask[i]
        if k is None or hashed is None:
            if real is not None:
                rows = rows[real[rows]]
            return _Head(q[i, j], None, q[i, j], real, rows, is_causal, scale)
        at = i, j // (q.shape[1] // k.shape[1])
        head = _Head(q[i, j], k[at], hashed[at], real, rows, is_causal, scale)
        return replace(head, rows=rows[head.visible(rows).any(1)])

    def visible(self, rows: np.ndarray) -> np.ndarray:
        return visible_keys(
            rows, len(self.q), len(self.hashed),
            is_causal=self.is_causal, real=self.real, shared=self.k is None,
        )  # fmt: skip


@dataclass(frozen=True)
class _Figures:
    """Sums over the queries of a head; arrays are (options, rounds, windows)."""

    queries: int
    visible: int
    mass: np.ndarray
    pairs: np.ndarray
    unique: np.ndarray


def _measure_head(
    head: _Head,
    options: list[tuple[int, ...]],
    rounds: list[int],
    windows: list[int],
    rng: np.random.Generator,
) -> _Figures:
    """What each candidate finds for one head."""
    t, tk, d = len(head.q), len(head.hashed), head.q.shape[1]
    ids = []
    for factors in options:
        hashing: dict[str, Any] = {"num_hashes": rounds[-1], "num_buckets": factors}
        rotations = ops.lsh_rotations(1, d, **hashing, rng=rng, dtype=head.q.dtype)
        both = [
            ops.lsh_hash(np.ascontiguousarray(x), **hashing, rotations=rotations)
            for x in (head.q[head.rows], head.hashed)
        ]
        ids.append(both)
    mass, pairs, unique = np.zeros((3, len(options), len(rounds), len(windows)))
    visible = 0
    for start in range(0, len(head.rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows = head.rows[part]
        weights = attention_weights(
            head.q, rows, head.is_causal, k=head.k, real=head.real, scale=head.scale
        )
        see = head.visible(rows)
        visible += int(np.count_nonzero(see))
        near = [window(rows, t, tk, width) for width in windows]
        for at, (of_queries, of_keys) in enumerate(ids):
            found, met = np.zeros_like(see), 0
            for r in range(rounds[-1]):
                meets = of_queries[r, part, None] == of_keys[r]
                found |= meets
                met += int(np.count_nonzero(meets & see))
                if r + 1 not in rounds:
                    continue
                for w, close in enumerate(near):
                    place = at, rounds.index(r + 1), w
                    either = found | close
                    pairs[place] += met + np.count_nonzero(close & see)
                    if head.k is not None:  # a query that finds no key attends to all
                        orphans = ~(either & see).any(1)
                        either[orphans] = True
                        pairs[place] += np.count_nonzero(see[orphans])
                    mass[place] += weights[either].sum(dtype=np.float64)
                    unique[place] += np.count_nonzero(either & see)
    return _Figures(len(head.rows), visible, mass, pairs, unique)


def _candidates(
    figures: list[_Figures],
    q: np.ndarray,
    k: np.ndarray | None,
    options: list[tuple[int, ...]],
    rounds: list[int],
    windows: list[int],
) -> list[LSHCandidate]:
    some = [x for x in figures if x.queries]
    queries = sum(x.queries for x in some)
    visible = sum(x.visible for x in some)
    if not visible:
        raise ValueError("q must have a sampled query that sees a key, got none")
    _, h, t, d = q.shape
    # hashed vectors a query and head
    vectors = 1.0 if k is None else 1 + k.shape[1] * k.shape[2] / (h * t)
    full = 4 * d * visible / queries
    mass, pairs, unique = (
        np.sum([getattr(x, name) for x in some], axis=0) for name in ("mass", "pairs", "unique")
    )
    least = np.min([x.mass / x.queries for x in some], axis=0)
    found = []
    for at in np.ndindex(len(options), len(rounds), len(windows)):
        factors, r, width = options[at[0]], rounds[at[1]], windows[at[2]]
        keys = float(pairs[at] / queries)
        operations = 4 * d * keys + 2 * d * r * (sum(factors) // 2) * vectors
        found.append(
            LSHCandidate(
                r, factors if len(factors) > 1 else factors[0], width,
                min(1.0, float(mass[at] / queries)), min(1.0, float(least[at])), keys,
                float(unique[at] / visible), operations, operations / full,
            )
        )  # fmt: skip
    return found
