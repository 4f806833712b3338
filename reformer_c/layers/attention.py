"""The attention branch of a layer: layer norm, projections, attention, output projection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved, AttentionSpec, attention_scratch
from ..ops.layers import LinearSaved
from ..ops.machine import layer_scratch
from .halves import widened
from .parameters import Weights
from .parts import Part, group_rows
from .positions import Rotary
from .randomness import Key
from .streams import add_to
from .sublayer import Sublayer, blocks, in_memory_order, peaks

__all__ = ["Attention", "Observer"]

# the projections that rotary positions rotate
ROTATED = ("query", "key")
# those of num_key_value_heads heads
GROUPED = ("key", "value")

# called in the forward pass with a layer, a part of it, the heads (b, h, t, d) of each projection,
# and what the operation saved
Observer = Callable[["Attention", Part, list[np.ndarray], AttentionSaved], None]


@dataclass
class Attended:
    """What `Attention._add` returns for the backward pass: what the operation saved."""

    attention: AttentionSaved


class Attention(Sublayer):
    """out += drop(attend(n w_q', n w_k', n w_v') w_o'), with n = layer_norm(x).

    Streams are (b, t, c), the projections w_q, w_k, w_v (h d, c) and w_o (c, h d). `attend` maps
    heads (b, h, t, d) to heads, which are concatenated along the channels (Vaswani et al. 2017,
    section 3.2.2).

    A subclass names its `projections` and implements `_split`, `_attend` and `_attend_backward`.
    Only the heads of a part are held in full: layer norm, projections and dropout run on a block
    of rows at a time.

    Parameters
    ----------
    weights, eps, dropout, key
        As in `Sublayer`, with the prefix ``attention.``.
    num_heads : int
    num_key_value_heads : int
        Heads of the values and, unless shared with the queries, of the keys. Each serves num_heads
        / num_key_value_heads successive heads of the queries (Ainslie et al. 2023).
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
    rotary : Rotary, optional
        Rotates the queries and keys projected from the stream.
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
        num_key_value_heads: int,
        shape: tuple[int, int],
        attention_mask: np.ndarray | None,
        attention_dropout: float,
        softcap: float | None,
        lengths: np.ndarray | None = None,
        observers: Sequence[Observer] = (),
        rotary: Rotary | None = None,
        eps: float,
        dropout: float,
        key: Key,
        **rules: Any,
    ) -> None:
        super().__init__(weights, eps=eps, dropout=dropout, key=key)
        self._projections = weights.below(f"{self.inner}.")
        self.num_heads, self.num_key_value_heads = num_heads, num_key_value_heads
        self.shape, self.mask = shape, attention_mask
        self.lengths, self.observers, self._rotary = lengths, observers, rotary
        self.rules = rules | {"dropout": attention_dropout, "softcap": softcap}

    # ---- parts ----

    def _parts(self, x: np.ndarray) -> list[Part]:
        """The parts to compute. With `lengths`, each sequence is cut to its own length, as if it
        were alone in the batch, and nothing is added to the rows after it."""
        if self.lengths is None:
            return self._split(x)
        return [
            part.shifted(rows.start * x.shape[1])
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
        key = self.key("probabilities", part.own.start, part.heads.start)
        return self.rules | {"attention_mask": self._mask(part), "dropout_key": key}

    def _mask(self, part: Part) -> np.ndarray | None:
        """The mask (b, keys) of the part's sequences."""
        if self.mask is None:
            return None
        mask = np.concatenate([self.mask.reshape(-1)[piece] for piece in part.seen])
        return mask.reshape(part.sequences, -1)

    def key_buckets(self, saved: AttentionSaved) -> np.ndarray | None:
        """The buckets (b, h, r, t) of a part's keys; None where nothing is hashed."""
        return saved.buckets

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
        widths = [self._width(part, name) for name in self.own_projections]
        heads = [np.empty((part.rows, width), self.weights.dtype) for width in widths]
        for at, rows in part.blocks(self.rows_at_a_time(x.shape[-1])):
            n, _ = self.norm.forward(x[rows])
            for name, head in zip(self.own_projections, heads, strict=True):
                ops.linear(n, self._projection_weight(name, part), out=head[at])
                if self._rotary is not None and name in ROTATED:
                    self._rotary.forward(head[at], rows, head.shape[1] // self._depth)
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
            n, norm = self.norm.forward(x[rows])
            for name, dhead in zip(self.own_projections, dheads, strict=True):
                if self._rotary is not None and name in ROTATED:
                    self._rotary.backward(dhead[at], rows, dhead.shape[1] // self._depth)
            first, *others = (
                partial(self._project_backward, part, name, n, dhead[at])
                for name, dhead in zip(self.own_projections, dheads, strict=True)
            )
            dn = first()
            for other in others:
                ops.add_scaled(dn, other(), 1.0)
            add_to(dx[rows], self.norm.backward(dn, norm), 1.0)

    def _project_backward(
        self, part: Part, name: str, n: np.ndarray, dhead: np.ndarray
    ) -> np.ndarray:
        """dn of one projection; its weight's gradient is accumulated."""
        linear = LinearSaved(n, self._projection_weight(name, part), False)
        dn, dweight, _ = ops.linear_backward(dhead, linear)
        self._projections.add_gradient(f"{name}.weight", dweight, self._columns(part, name))
        return dn

    def _output_backward(self, part: Part, dout: np.ndarray, saved: AttentionSaved) -> np.ndarray:
        """The gradient of the heads' output: 0 outside the part's own rows."""
        attended, weight = self._merge_heads(saved.out), self._output_weight(part)
        dattended = np.zeros(attended.shape, attended.dtype)
        for at, rows in part.own_blocks(self.rows_at_a_time(dout.shape[-1])):
            linear = LinearSaved(attended[at], weight, False)
            dy = self._undropped(dout, rows)
            _, dweight, _ = ops.linear_backward(dy, linear, out=dattended[at])
            columns = np.s_[:, self._columns(part)]
            self.weights.add_gradient("output.dense.weight", dweight, columns)
        return self._split_heads(part, dattended)

    # ---- heads ----

    @property
    def _depth(self) -> int:
        """Channels d of a head."""
        return len(self._projections.stored(f"{self.projections[0]}.weight")) // self.num_heads

    def head_count(self, name: str) -> int:
        """The number of heads of a projection."""
        return self.num_key_value_heads if name in GROUPED else self.num_heads

    def heads_of(self, part: Part, name: str = "query") -> slice:
        """The part's heads of a projection. A part has whole groups of heads that share values, or
        some heads of one group."""
        sharers = self.num_heads // self.head_count(name)
        return slice(part.heads.start // sharers, -(-part.heads.stop // sharers))

    def _columns(self, part: Part, name: str = "query") -> slice:
        """The columns of the part's heads among those of all heads of a projection."""
        heads = self.heads_of(part, name)
        return slice(heads.start * self._depth, heads.stop * self._depth)

    def _width(self, part: Part, name: str = "query") -> int:
        """How many columns these are."""
        heads = self.heads_of(part, name)
        return len(range(heads.start, heads.stop)) * self._depth

    def _projection_weight(self, name: str, part: Part) -> np.ndarray:
        weight = self._projections.stored(f"{name}.weight")
        return widened(weight[self._columns(part, name)])

    def _output_weight(self, part: Part) -> np.ndarray:
        weight = self.weights.stored("output.dense.weight")[:, self._columns(part)]
        return widened(np.ascontiguousarray(weight))

    def _split_heads(self, part: Part, x: np.ndarray) -> np.ndarray:
        """(b t, h d) -> (b, h, t, d), a view."""
        h = x.shape[1] // self._depth
        heads: np.ndarray = x.reshape(part.sequences, -1, h, self._depth).transpose(0, 2, 1, 3)
        return heads

    def _merge_heads(self, x: np.ndarray) -> np.ndarray:
        """(b, h, t, d) -> (b t, h d), a view."""
        _, h, _, d = x.shape
        rows: np.ndarray = x.transpose(0, 2, 1, 3).reshape(-1, h * d)
        return rows

    @abstractmethod
    def _attend(self, part: Part, heads: list[np.ndarray]) -> AttentionSaved:
        """Run attention on the heads of each projection; the result includes the output."""

    @abstractmethod
    def _attend_backward(self, dout: np.ndarray, saved: AttentionSaved) -> tuple[np.ndarray, ...]:
        """The gradients of the heads, in the order of `projections`."""

    # ---- memory ----

    def _activations(
        self, function: Callable[[np.ndarray], np.ndarray], saved: Attended
    ) -> Attended:
        kept = saved.attention
        q, v, out = (in_memory_order(function, x) for x in (kept.q, kept.v, kept.out))
        k = None if kept.k is None else in_memory_order(function, kept.k)
        return Attended(kept._replace(q=q, k=k, v=v, out=out))

    def _saved_sizes(self, part: Part, x: np.ndarray) -> tuple[int, int]:
        # the heads and the attention output; its log-sum-exp
        lse = part.rows * part.num_heads * x.itemsize
        return self._heads_bytes(part, x) + self._head_bytes(part, x), lse

    def _head_bytes(self, part: Part, x: np.ndarray, name: str = "query") -> int:
        """Bytes of the part's heads of one projection, by default of the queries."""
        return part.rows * self._width(part, name) * x.itemsize

    def _heads_bytes(self, part: Part, x: np.ndarray) -> int:
        """Bytes of the part's heads of all projections."""
        return sum(self._head_bytes(part, x, name) for name in self.projections)

    def _sizes(self, part: Part, x: np.ndarray) -> dict[str, int]:
        c, h, d = x.shape[-1], part.num_heads, self._depth
        rows = min(part.rows, self.rows_at_a_time(c))
        block = rows * c * x.itemsize
        shape = (part.sequences, h, self._longest(part), d)
        linear = max(layer_scratch("linear", rows, c, h * d, dtype=x.dtype))
        forward, backward = attention_scratch(
            self._scratch_spec(), shape, num_key_value_heads=self._width(part, "value") // d,
            dtype=x.dtype,
        )  # fmt: skip
        return {
            "saved": self._saved_bytes(part, x),
            "own_head": self._head_bytes(part, x),
            "heads": self._heads_bytes(part, x),
            "block": block,
            "dropped": block if self.drop.p else 0,
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
        """The options that the scratch memory of the op depends on."""
