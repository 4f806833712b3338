"""The attention sublayers of a Reformer: layer norm, projections, attention, output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec, attention_scratch
from ..ops.layers import LinearSaved
from ..ops.machine import layer_scratch
from .nn import Key, Step, Sublayer, Weights, blocks, peaks
from .probabilities import cross_probabilities, local_probabilities, lsh_probabilities

__all__ = [
    "Attention",
    "CrossAttention",
    "EncoderStates",
    "LSHAttention",
    "LocalAttention",
    "Observer",
    "Part",
]

# the options that an op's scratch depends on, besides the sizes of its arrays
WINDOW = ("chunk_length", "num_chunks_before", "num_chunks_after")


class Part(NamedTuple):
    """A unit of attention work: whole sequences or a stretch of one, and a range of heads.

    Slices index the rows of the streams, (b t, c).
    """

    sequences: int
    # rows whose output is computed
    own: slice
    # own rows and the neighbours they attend to, in order: one stretch, or both ends of a sequence
    seen: tuple[slice, ...]
    heads: slice

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.seen)

    @property
    def length(self) -> int:
        """Rows per sequence, or rows that a stretch sees."""
        return self.rows // self.sequences

    @property
    def own_length(self) -> int:
        """Own rows per sequence."""
        return (self.own.stop - self.own.start) // self.sequences

    @property
    def lead(self) -> int:
        """Where the own rows begin among the rows seen."""
        at = lead = 0
        for piece in self.seen:
            if piece.start <= self.own.start < piece.stop:
                lead = at + self.own.start - piece.start
            at += piece.stop - piece.start
        return lead

    def place(self, whole: np.ndarray, values: np.ndarray) -> None:
        """Copy the own rows of `values` (b, h, t, ...), a part's, to their positions in an array
        (b, h, n, ...) of all sequences and heads."""
        first, start = divmod(self.own.start, whole.shape[2])
        rows, stop = slice(first, first + self.sequences), start + self.own_length
        own = values[:, :, self.lead : self.lead + self.own_length]
        whole[rows, self.heads, start:stop, ...] = own

    def moved(self, by: int) -> Part:
        """The same part, shifted by `by` rows."""
        own, *seen = (slice(s.start + by, s.stop + by) for s in (self.own, *self.seen))
        return self._replace(own=own, seen=tuple(seen))

    def blocks(self, size: int) -> Iterator[tuple[slice, slice]]:
        """All rows, at most `size` at a time: their slices within the part and in the streams."""
        at = 0
        for piece in self.seen:
            for rows in blocks(piece, size):
                yield slice(at, at + rows.stop - rows.start), rows
                at += rows.stop - rows.start

    def own_blocks(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Like `blocks`, for the own rows only."""
        shift = self.lead - self.own.start
        for rows in blocks(self.own, size):
            yield slice(rows.start + shift, rows.stop + shift), rows


def group_rows(lengths: np.ndarray, t: int) -> Iterator[tuple[slice, int]]:
    """Group consecutive rows that can be computed together: rows of length t, which leave no gap
    in the stream (b, t). Shorter rows come one at a time.

    Examples
    --------
    >>> [(rows.start, rows.stop, n) for rows, n in group_rows(np.array([5, 5, 3, 3, 5]), 5)]
    [(0, 2, 5), (2, 3, 3), (3, 4, 3), (4, 5, 5)]
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[start] < t or lengths[stop] < t:
            yield slice(start, stop), int(lengths[start])
            start = stop


# called with a part of a layer in the forward pass: with its heads (b, h, t, d), and what the
# operation saved
Observer = Callable[["Attention", Part, list[np.ndarray], AttentionSaved], None]


@dataclass
class Attended:
    """What the operation saved of a part."""

    attention: AttentionSaved


class Attention(Sublayer):
    """drop(attend(n w_q', n w_v', ...) w_o'), with heads concatenated along the channels.

    A subclass names its `projections` and implements `_split`, `_attend` and `_attend_backward`.
    Only the heads of a part are held in full: layer norm, projections and dropout run on a block
    of rows at a time.

    Parameters
    ----------
    weights : Weights
        The weights with the layer's prefix ``attention.``.
    num_heads : int
    shape : tuple of int
        (b, n) of the streams.
    attention_mask : ndarray or None
        (b, n), nonzero for a real token.
    attention_dropout : float
        Dropout of the attention probabilities.
    softcap : float or None
        Soft cap of the scores.
    lengths : ndarray or None
        (b,): length of each sequence, if some are shorter than the stream; see `_parts`.
    observers : sequence of callable
        See `Observer`.
    rules : keyword arguments
        Passed to the op: chunk_length, num_chunks_before, is_causal ...
    """

    projections: tuple[str, ...]
    # prefix of the projections' weights within the layer
    inner = "self_attention"
    # projections computed from the stream (cross-attention computes the others from the encoder)
    own_projections: tuple[str, ...]

    def __init__(
        self,
        weights: Weights,
        *,
        num_heads: int,
        shape: tuple[int, int],
        attention_mask: np.ndarray | None,
        attention_dropout: float,
        softcap: float | None,
        lengths: np.ndarray | None = None,
        observers: Sequence[Observer] = (),
        eps: float,
        dropout: float,
        key: Key,
        **rules: Any,
    ) -> None:
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self.num_heads, self.shape, self.mask = num_heads, shape, attention_mask
        self.lengths, self.observers = lengths, observers
        self.rules = rules | {"dropout": attention_dropout, "softcap": softcap}

    # ---- parts ----

    def _parts(self, x: np.ndarray) -> list[Part]:
        """The parts to compute. With `lengths`, each sequence is cut to its own length, as if it
        were computed alone, and nothing is added to the rows after it."""
        if self.lengths is None:
            return self._split(x)
        return [
            part.moved(rows.start * x.shape[1])
            for rows, n in group_rows(self.lengths, x.shape[1])
            for part in self._split(x[rows, :n])
        ]

    @abstractmethod
    def _split(self, x: np.ndarray) -> list[Part]:
        """Cut the work into parts, to bound the memory that one of them takes."""

    def _sequences(self, b: int, t: int, count: int) -> list[Part]:
        """Whole sequences with all their heads, at most `count` at a time."""
        own = blocks(slice(0, b * t), count * t)
        heads = slice(0, self.num_heads)
        return [Part((s.stop - s.start) // t, s, (s,), heads) for s in own]

    def _rules(self, part: Part) -> dict[str, Any]:
        """The op's keywords."""
        mask = None
        if self.mask is not None:
            mask = np.concatenate([self.mask.reshape(-1)[piece] for piece in part.seen])
            mask = mask.reshape(part.sequences, -1)
        key = self.key("probabilities", part.own.start, part.heads.start)
        return self.rules | {"attention_mask": mask, "dropout_key": key}

    @abstractmethod
    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        """The attention probabilities of a part; see `probabilities_shape`."""

    @property
    @abstractmethod
    def probabilities_shape(self) -> tuple[int, ...]:
        """Their shape for all sequences: (b, h, n, keys), or (b, h, rounds, chunks, chunk length,
        window), where a part's rounds and chunks are one dimension."""

    # ---- forward and backward ----

    # in `_attend`; in the output projection; in the projections of encoder states
    @peaks("saved forward", "saved block linear", "saved encoder_linear")
    def _add(self, part: Part, out: np.ndarray, x: np.ndarray, sign: float) -> Attended:
        heads = self._project(part, x)
        saved = self._attend(part, heads)
        for observe in self.observers:
            observe(self, part, heads, saved)
        attended, weight = self._merge_heads(saved.out), self._output_weight(part)
        for at, rows in part.own_blocks(self.rows_at_a_time(x.shape[-1])):
            self._add_dropped(out, rows, ops.linear(attended[at], weight), sign)
        return Attended(saved)

    def _project(self, part: Part, x: np.ndarray) -> list[np.ndarray]:
        """The heads (b, h, t, d) of each projection."""
        c, columns = x.shape[-1], self._columns(part)
        width = columns.stop - columns.start
        heads = [np.empty((part.rows, width), x.dtype) for _ in self.own_projections]
        for at, rows in part.blocks(self.rows_at_a_time(c)):
            n, _ = self._normed(x[rows])
            for name, head in zip(self.own_projections, heads, strict=True):
                ops.linear(n, self._projection_weight(name, part), out=head[at])
        return [self._split_heads(part, head) for head in heads]

    @peaks(
        # `_output_backward`
        "saved own_head dropped linear",
        # `_attend_backward`: the gradients of the output and of the heads
        "saved own_head heads backward",
        # `_heads_backward`: normalised rows, their gradients by two projections or of the rows;
        # and the same of encoder states, which are copied
        "heads block block block linear",
        "heads states encoder_linear",
    )
    def _backward(
        self, part: Part, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, saved: Attended
    ) -> None:
        dattended = self._output_backward(part, dout, saved.attention)
        dheads = self._attend_backward(dattended, saved.attention)
        del dattended, saved.attention
        self._heads_backward(part, dx, x, [self._merge_heads(dhead) for dhead in dheads])

    def _heads_backward(
        self, part: Part, dx: np.ndarray, x: np.ndarray, dheads: list[np.ndarray]
    ) -> None:
        """Propagate the gradients of the heads projected from the stream to the stream."""
        for at, rows in part.blocks(self.rows_at_a_time(x.shape[-1])):
            n, normed = self._normed(x[rows])
            first, *others = (
                partial(self._project_backward, part, name, n, dhead[at])
                for name, dhead in zip(self.own_projections, dheads, strict=True)
            )
            dn = first()
            for other in others:
                ops.add_scaled(dn, other(), 1.0)
            self._add_normed_gradient(dx[rows], dn, normed)

    def _project_backward(
        self, part: Part, name: str, n: np.ndarray, dhead: np.ndarray
    ) -> np.ndarray:
        """dn of one projection; its weight's gradient is accumulated."""
        linear = LinearSaved(n, self._projection_weight(name, part), False)
        dn, dweight, _ = ops.linear_backward(dhead, linear)
        name = f"{self.inner}.{name}.weight"
        self.weights.add_gradient(name, dweight, self._columns(part))
        return dn

    def _output_backward(self, part: Part, dout: np.ndarray, saved: AttentionSaved) -> np.ndarray:
        """The gradient of the heads' output: 0 outside the part's own rows."""
        attended, weight = self._merge_heads(saved.out), self._output_weight(part)
        dattended = np.zeros(attended.shape, attended.dtype)
        for at, rows in part.own_blocks(self.rows_at_a_time(dout.shape[-1])):
            linear = LinearSaved(attended[at], weight, False)
            dy = self._undropped(dout, rows)
            _, dweight, _ = ops.linear_backward(dy, linear, out=dattended[at])
            at_columns = np.s_[:, self._columns(part)]
            self.weights.add_gradient("output.dense.weight", dweight, at_columns)
        return self._split_heads(part, dattended)

    # ---- heads ----

    def _columns(self, part: Part) -> slice:
        """The columns of the part's heads among those of all heads."""
        d = self._width() // self.num_heads
        return slice(part.heads.start * d, part.heads.stop * d)

    def _width(self) -> int:
        """Channels of all heads together, h d."""
        return len(self.weights[f"{self.inner}.{self.projections[0]}.weight"])

    def _projection_weight(self, name: str, part: Part) -> np.ndarray:
        return self.weights[f"{self.inner}.{name}.weight"][self._columns(part)]

    def _output_weight(self, part: Part) -> np.ndarray:
        return np.ascontiguousarray(self.weights["output.dense.weight"][:, self._columns(part)])

    def _split_heads(self, part: Part, x: np.ndarray) -> np.ndarray:
        """(b t, h d) -> (b, h, t, d), a view."""
        h = part.heads.stop - part.heads.start
        return x.reshape(part.sequences, -1, h, x.shape[-1] // h).transpose(0, 2, 1, 3)

    def _merge_heads(self, x: np.ndarray) -> np.ndarray:
        """(b, h, t, d) -> (b t, h d), a view."""
        _, h, _, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(-1, h * d)

    @abstractmethod
    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        """Run attention on the heads of each projection; the result includes the output."""

    @abstractmethod
    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        """The gradients of the heads, in the order of `projections`."""

    # ---- memory ----

    def _saved_bytes(self, part: Part, x: np.ndarray) -> int:
        # the heads, the attention output, and its log-sum-exp
        h = part.heads.stop - part.heads.start
        return self._heads_bytes(part, x) + self._head_bytes(part, x) + part.rows * h * x.itemsize

    def _head_bytes(self, part: Part, x: np.ndarray) -> int:
        """Bytes of one array of the part's heads."""
        columns = self._columns(part)
        return part.rows * (columns.stop - columns.start) * x.itemsize

    def _heads_bytes(self, part: Part, x: np.ndarray) -> int:
        """Bytes of the heads of all projections."""
        return len(self.projections) * self._head_bytes(part, x)

    def _sizes(self, part: Part, x: np.ndarray) -> dict[str, int]:
        c, columns = x.shape[-1], self._columns(part)
        rows, width = min(part.rows, self.rows_at_a_time(c)), columns.stop - columns.start
        block, h = rows * c * x.itemsize, part.heads.stop - part.heads.start
        shape = (part.sequences, h, self._longest(part), width // h)
        linear, _ = layer_scratch("linear", rows, c, width, dtype=x.dtype)
        forward, backward = attention_scratch(self._scratch_spec(), shape, dtype=x.dtype)
        return {
            "saved": self._saved_bytes(part, x),
            "own_head": self._head_bytes(part, x),
            "heads": self._heads_bytes(part, x),
            "block": block,
            "dropped": block if self.dropout else 0,
            "linear": linear,
            "forward": forward,
            "backward": backward,
            "states": 0,
            "encoder_linear": 0,
        }

    def _longest(self, part: Part) -> int:
        """The longer of the sequences of queries and keys."""
        return part.length

    @abstractmethod
    def _scratch_spec(self) -> AttentionSpec:
        """The options that the scratch of the op depends on."""


class SelfAttention(Attention):
    """Attention within a sequence, to chunks of tokens around each other: local or LSH."""

    # the arguments of the cache's `step`, once there was one
    _step_weights: tuple[Any, ...] = ()

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        m, before, after = (self.rules[name] for name in WINDOW)
        (b, n), rounds = self.shape, self.rules.get("num_hashes", 1)
        if n <= m or self.rules.get("scope") == "bucket":
            return b, self.num_heads, n, n
        return b, self.num_heads, rounds, -(-n // m), m, (before + 1 + after) * m

    def open_cache(self, b: int, longest: int) -> ops.AttentionCache:
        h, rules = self.num_heads, self.rules
        return ops.AttentionCache(
            b, h, self._width() // h, longest=longest, chunk_length=rules["chunk_length"],
            num_chunks_before=rules["num_chunks_before"], softcap=rules["softcap"],
            eps=self.eps, dtype=self.weights.dtype.type, **self._cache_hashing(),
        )  # fmt: skip

    def _cache_hashing(self) -> dict[str, Any]:
        """The arguments of a cache that depend on the kind of attention."""
        return {"scope": "local"}

    def step_add(
        self, cache: ops.AttentionCache, step: Step, out: np.ndarray, x: np.ndarray
    ) -> None:
        if not self._step_weights:
            self._step_weights = self._weights_of_steps(step)
        norm, projections = self._step_weights
        cache.step(out, x, norm, projections, step.rows, step.positions)

    def _weights_of_steps(self, step: Step) -> tuple[Any, ...]:
        """Layer norm's weights and the projections, in the order of `AttentionCache.step`."""
        norm = self.weights["layer_norm.weight"], self.weights["layer_norm.bias"]
        names = [f"{self.inner}.{name}.weight" for name in self.projections]
        names.append("output.dense.weight")
        query, *key, value, output = (step.weights.matrix(self.weights, name) for name in names)
        return norm, (query, key[0] if key else None, value, output)


class LocalAttention(SelfAttention):
    """Attention to a token's own chunk and the neighbouring chunks.

    A long sequence is computed in stretches of whole chunks, each extended by the chunks around it,
    whose output is discarded.

    `wrap`: chunks form a circle, as in Hugging Face's model; a sequence of at most
    `num_chunks_before` chunks then attends to some of them twice.
    """

    projections = own_projections = ("query", "key", "value")

    def __init__(self, weights: Weights, *, wrap: bool = True, **rest: Any) -> None:
        super().__init__(weights, **rest)
        self.wrap = wrap

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, c = x.shape
        m, before, after = (self.rules[name] for name in WINDOW)
        # long enough that the surrounding chunks, which are computed twice, cost little
        longest = max(self.rows_at_a_time(c), 64 * (before + after) * m)
        if t <= longest:
            return self._sequences(b, t, longest // t)
        chunks = -(-t // m)
        count = -(-chunks // (longest // m))
        bounds = [chunks * i // count for i in range(count + 1)]
        return [
            self._stretch(row * t, t, m, bounds[i], bounds[i + 1])
            for row in range(b)
            for i in range(count)
        ]

    def _stretch(self, start: int, t: int, m: int, first: int, last: int) -> Part:
        """Chunks [first, last) of the sequence whose first row is `start`."""
        chunks = -(-t // m)
        low, high = first - self.rules[WINDOW[1]], last + self.rules[WINDOW[2]]
        seen = [(max(low, 0), min(high, chunks))]
        # wrapped chunks are listed in order of position: that keeps them neighbours on the circle
        if self.wrap and low < 0:
            seen.append((chunks + low, chunks))
        if self.wrap and high > chunks:
            seen.insert(0, (0, high - chunks))

        def rows(begin: int, end: int) -> slice:
            return slice(start + begin * m, start + min(end * m, t))

        pieces = tuple(rows(*piece) for piece in seen)
        return Part(1, rows(first, last), pieces, slice(0, self.num_heads))

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        return ops.local_attention_forward(*heads, wrap=self.wrap, **self._rules(part))[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        return local_probabilities(*heads[:2], wrap=self.wrap, **self._rules(part))

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        return ops.local_attention_backward(dout, saved)

    def _scratch_spec(self) -> AttentionSpec:
        return AttentionSpec("local", **{name: self.rules[name] for name in WINDOW})


class LSHAttention(SelfAttention):
    """Attention among tokens whose shared query-key vectors hash to the same bucket.

    The buckets of the forward pass are kept for the backward pass: the recomputed input differs by
    rounding, and hashing it again could give other buckets.

    A sequence cannot be cut into stretches, but heads are independent: if the arrays of all heads
    would be large, one or a few heads are computed at a time.

    `rotations` (h, d, r, s) may be None: they are then drawn from the key `rotations_key`.
    `choose_num_buckets` maps the length of a sequence to its number of buckets, if that is not the
    same for all.
    """

    hashes = True
    projections = own_projections = ("query_key", "value")
    # of an array of heads (b, h, t, d), unless it holds a single head
    max_bytes = 2**25

    def __init__(
        self,
        weights: Weights,
        *,
        rotations: np.ndarray | None,
        rotations_key: int,
        choose_num_buckets: Callable[[int], int | Sequence[int]] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(weights, **rest)
        self._drawn, self._rotations_key = rotations, rotations_key
        self._choose_num_buckets = choose_num_buckets
        # parts by their first row and head, and after a pass their buckets (b, h, r, t), or None if
        # the sequence is a single chunk
        self._buckets: dict[tuple[int, int], tuple[Part, np.ndarray | None]] = {}

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, _ = x.shape
        head = t * self._width() // self.num_heads * x.itemsize
        fitting = self.max_bytes // head
        if fitting >= self.num_heads:
            return self._sequences(b, t, fitting // self.num_heads)
        heads = list(blocks(slice(0, self.num_heads), max(1, fitting)))
        rows = blocks(slice(0, b * t), t)
        return [Part(1, own, (own,), some) for own in rows for some in heads]

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        key = part.own.start, part.heads.start
        _, buckets = self._buckets.get(key, (part, None))
        rules = self._rules(part)
        rotations = None
        if buckets is None:
            rotations = self._rotations(rules["num_buckets"])[part.heads]
        _, saved = ops.lsh_attention_forward(*heads, buckets=buckets, rotations=rotations, **rules)
        self._buckets[key] = part, saved.buckets
        return saved

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        return lsh_probabilities(heads[0], saved.buckets, **self._rules(part))

    def _rules(self, part: Part) -> dict[str, Any]:
        return super()._rules(part) | {"num_buckets": self._num_buckets(part.length)}

    def _num_buckets(self, length: int) -> Any:
        choose = self._choose_num_buckets
        return self.rules["num_buckets"] if choose is None else choose(length)

    def _rotations(self, num_buckets: Any) -> np.ndarray:
        """The rotations of all heads."""
        if self._drawn is not None:
            return self._drawn
        drawn = ops.lsh_rotations(
            self.num_heads, self._width() // self.num_heads, num_hashes=self.rules["num_hashes"],
            num_buckets=num_buckets, rng=self._rotations_key, dtype=self.weights.dtype,
        )  # fmt: skip
        if self._choose_num_buckets is None:
            self._drawn = drawn
        return drawn

    def _cache_hashing(self) -> dict[str, Any]:
        buckets = self.rules["num_buckets"]
        return {
            "scope": self.rules["scope"], "bucket_cap": self.rules["bucket_cap"],
            "rotations": np.ascontiguousarray(self._rotations(buckets)),
            "num_buckets": (buckets,) if isinstance(buckets, int) else tuple(buckets),
        }  # fmt: skip

    @property
    def buckets(self) -> np.ndarray | None:  # type: ignore[override]
        """(b, h, r, n) after a pass; None if all sequences are single chunks.

        With `lengths`, rows of a single chunk have bucket 0, and padding has the bucket of masked
        tokens.
        """
        (b, n), parts = self.shape, self._buckets.values()
        if all(ids is None for _, ids in parts):
            return None
        found = np.zeros((b, self.num_heads, self.rules["num_hashes"], n), np.int32)
        for part, ids in parts:
            if ids is not None:
                part.place(found.swapaxes(2, 3), ids.swapaxes(2, 3))
        for row, k in enumerate(() if self.lengths is None else self.lengths.tolist()):
            found[row, ..., k:] = np.prod(self._num_buckets(k))
        return found

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        return ops.lsh_attention_backward(dout, saved)

    def _scratch_spec(self) -> AttentionSpec:
        names = (*WINDOW, "scope", "num_hashes", "num_buckets")
        return AttentionSpec("lsh", shared_qk=True, **{name: self.rules[name] for name in names})

    def bucket_bytes(self) -> int:
        b, n = self.shape
        one_chunk = n <= self.rules["chunk_length"] and self.rules["scope"] == "chunk"
        return 0 if one_chunk else 4 * b * self.num_heads * self.rules["num_hashes"] * n


@dataclass
class EncoderStates:
    """What a decoder attends to: the encoder's final states (b, s, c), their mask (b, s) and, in
    training, their accumulated gradient.

    `heads` caches the keys and values (b, h, s, d) of each layer: computed at the first decoding
    step and reused in later ones. `row_keys` distinguish the rows that the encoder read.
    """

    states: np.ndarray
    mask: np.ndarray | None = None
    gradient: np.ndarray | None = None
    heads: dict[str, list[np.ndarray]] = field(default_factory=dict)
    row_keys: Sequence[str] = ()

    def take_gradient(self) -> np.ndarray:
        """The gradient; states and gradient are freed with it."""
        assert self.gradient is not None
        gradient = self.gradient
        del self.states, self.gradient
        return gradient


def runs(texts: np.ndarray) -> list[tuple[slice, slice]]:
    """Cut text indices (n,) into runs of successive indices that repeat equally often: for each
    run, its slice of `texts` and the slice of indices that it covers.

    Examples
    --------
    >>> runs(np.array([0, 0, 1, 1, 4, 4, 5]))
    [(slice(0, 4, None), slice(0, 2, None)), (slice(4, 6, None), slice(4, 5, None)), \
(slice(6, 7, None), slice(5, 6, None))]
    """
    starts = np.flatnonzero(np.diff(texts, prepend=-1))
    counts, firsts = np.diff(starts, append=len(texts)), texts[starts]
    begins = np.flatnonzero((np.diff(counts, prepend=0) != 0) | (np.diff(firsts, prepend=-2) != 1))
    edges = np.append(starts, len(texts))
    return [
        (slice(int(edges[i]), int(edges[j])), slice(int(firsts[i]), int(firsts[i]) + int(j - i)))
        for i, j in zip(begins, [*begins[1:], len(starts)], strict=True)
    ]


class CrossAttention(Attention):
    """Full attention of the stream's tokens to the final states of an encoder.

    Sequence i attends to the states ``prompt_index[i]``, or to the states i if that is None.
    """

    projections = ("query", "key", "value")
    own_projections = ("query",)
    inner = "attention"

    def __init__(
        self,
        weights: Weights,
        *,
        encoder: EncoderStates,
        prompt_index: np.ndarray | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(weights, attention_mask=None, **rest)
        self.encoder, self.prompt_index = encoder, prompt_index

    def _split(self, x: np.ndarray) -> list[Part]:
        b, t, c = x.shape
        longest = max(t, self.encoder.states.shape[1])
        return self._sequences(b, t, max(1, self.rows_at_a_time(c) // longest))

    def _seen(self, part: Part) -> Any:
        """Index of the encoder states that a part's sequences attend to."""
        first = part.own.start * part.sequences // part.rows
        rows = slice(first, first + part.sequences)
        return rows if self.prompt_index is None else self.prompt_index[rows]

    def _states(self, index: Any) -> np.ndarray:
        return self.encoder.states[index].reshape(-1, self.encoder.states.shape[-1])

    def _rules(self, part: Part) -> dict[str, Any]:
        mask = self.encoder.mask
        return self.rules | {
            "attention_mask": None if mask is None else mask[self._seen(part)],
            "dropout_key": self.key("probabilities", part.own.start, part.heads.start),
        }

    def _project(self, part: Part, x: np.ndarray) -> list[np.ndarray]:
        return super()._project(part, x) + self._encoder_heads(part, self._seen(part))

    def _encoder_heads(self, part: Part, index: Any) -> list[np.ndarray]:
        """Keys and values of the encoder states at `index`."""
        states = self._states(index)
        heads = (
            ops.linear(states, self._projection_weight(name, part)) for name in ("key", "value")
        )
        return [self._split_heads(part, head) for head in heads]

    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        return ops.full_attention_forward(*heads, **self._rules(part))[1]

    def probabilities(
        self, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> np.ndarray:
        rules = self._rules(part)
        q, k, _ = heads
        return cross_probabilities(q, k, rules["attention_mask"], rules["softcap"])

    @property
    def probabilities_shape(self) -> tuple[int, ...]:
        b, n = self.shape
        return b, self.num_heads, n, self.encoder.states.shape[1]

    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        dq, dk, dv = ops.full_attention_backward(dout, saved)
        assert dk is not None
        return dq, dk, dv

    def _heads_backward(
        self, part: Part, dx: np.ndarray, x: np.ndarray, dheads: list[np.ndarray]
    ) -> None:
        super()._heads_backward(part, dx, x, dheads[:1])
        index = self._seen(part)
        states, gradient = self._states(index), self.encoder.gradient
        assert gradient is not None
        for name, dhead in zip(("key", "value"), dheads[1:], strict=True):
            dstates = self._project_backward(part, name, states, dhead)
            ops.add_scaled(gradient[index], dstates.reshape(gradient[index].shape), 1.0)
            del dstates  # free it before the next is allocated

    def open_cache(self, b: int, longest: int) -> list[np.ndarray]:
        """Keys and values of all encoder states; all texts of a call share them."""
        layer, cached = self.weights.prefix, self.encoder.heads
        if layer not in cached:
            every = slice(0, len(self.encoder.states))
            whole = Part(every.stop, every, (every,), slice(0, self.num_heads))
            cached[layer] = self._encoder_heads(whole, every)
        return cached[layer]

    def step_add(self, cache: list[np.ndarray], step: Step, out: np.ndarray, x: np.ndarray) -> None:
        heads = slice(0, self.num_heads)
        normed, _ = self._normed(x)
        q = step.weights.linear(normed, self.weights, f"{self.inner}.query.weight")
        attended = np.empty_like(q)
        for rows, some in runs(step.prompts):
            # tokens that attend to the same text become the queries of one sequence: the cached
            # keys and values need no copy
            group = Part(some.stop - some.start, rows, (rows,), heads)
            k, v = (head[some] for head in cache)
            mask = None if self.encoder.mask is None else self.encoder.mask[some]
            ops.full_attention(
                self._split_heads(group, q[rows]), k, v, attention_mask=mask,
                softcap=self.rules["softcap"],
                out=self._split_heads(group, attended[rows]),
            )  # fmt: skip
        y = step.weights.linear(attended, self.weights, "output.dense.weight")
        ops.add_scaled(out, y, 1.0)

    # ---- memory ----

    def _heads_bytes(self, part: Part, x: np.ndarray) -> int:
        keys = part.sequences * self.encoder.states.shape[1] * self._width() * x.itemsize
        return self._head_bytes(part, x) + 2 * keys

    def _sizes(self, part: Part, x: np.ndarray) -> dict[str, int]:
        s, wide = self.encoder.states.shape[1:]
        rows = part.sequences * s
        linear, _ = layer_scratch("linear", rows, wide, self._width(), dtype=x.dtype)
        own = {"states": rows * wide * x.itemsize, "encoder_linear": linear}
        return super()._sizes(part, x) | own

    def _longest(self, part: Part) -> int:
        return max(self.encoder.states.shape[1], part.length)

    def _scratch_spec(self) -> AttentionSpec:
        return AttentionSpec("full")
