"""The body of a Reformer, for one pass: embeddings, reversible layers, final norm.

A `Pass` lives for one step: it runs forward and, for gradients, backward. It holds the keys of its
random bits, so the backward pass replays them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..checks import as_array, integer
from ..layers.activations import WEIGHTED
from ..layers.embeddings import Embeddings
from ..layers.feed_forward import FeedForward, WeightedFeedForward
from ..layers.full_attention import FullAttention, FullSharedAttention
from ..layers.hash_attention import HashAttention
from ..layers.layer_norm import FinalNorm
from ..layers.local_attention import LocalAttention, LocalSharedAttention
from ..layers.lsh_attention import LSHAttention
from ..layers.observers import Probabilities
from ..layers.parameters import Weights
from ..layers.positions import (
    AxialPositions,
    Positions,
    PositionTable,
    Rotary,
    SinusoidalPositions,
)
from ..layers.randomness import Dropout, random_key
from ..layers.residual import Residual
from ..layers.reversible import alternating_backward, alternating_forward
from ..layers.self_attention import SelfAttention
from ..layers.streams import new_gradient, numbers, numbers_bytes, stream_bytes
from ..layers.sublayer import Kept, Sublayer, blocks, kept_stream_bytes
from ..precision import in_own_precision
from ..runtime import underflow_to_zero
from ..text.tables import html_pairs
from .config import ReformerConfig
from .inputs import Call, Inputs, own_lengths
from .outputs import ReformerOutput

__all__ = ["Pass", "Plan", "StepMemory", "body_constants", "body_shapes", "dense_shapes"]

# elements of final states computed at a time: 16 MB of float32
HEAD_BLOCK = 2**22
# the name of the word vectors
WORDS = "embeddings.word_embeddings.weight"
# the type of a layer: its attention
ATTENTION: dict[str, type[SelfAttention]] = {
    "local": LocalAttention,
    "lsh": LSHAttention,
    "full": FullAttention,
    "full_shared": FullSharedAttention,
    "hash": HashAttention,
}


def attention_type(config: ReformerConfig, kind: str) -> type[SelfAttention]:
    """The attention of the layers of a type."""
    if kind == "local" and config.local_shared_qk:
        return LocalSharedAttention
    return ATTENTION[kind]


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs, in addition to the weights and the optimiser's state.

    Attributes
    ----------
    streams : int
        The two residual streams and their gradients, bucket ids, positions and labels.
    gradients : int
        The gradients of the weights.
    kept : int
        Activations that are kept instead of recomputed.
    working : int
        Peak temporary memory of the loss or of a layer's backward pass.
    """

    streams: int
    gradients: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """The sum: by how much the process grows."""
        return self.streams + self.gradients + self.kept + self.working

    def check(self, free: int | None, tokens: str) -> None:
        """Raise MemoryError if fewer bytes are free."""
        if free is not None and self.total > free:
            raise MemoryError(f"a step of {tokens} takes {self}, and {free / 1e9:.3g} GB are free")

    def __str__(self) -> str:
        parts = [f"{name} {value / 1e9:.3g} GB" for name, value in vars(self).items() if value]
        return f"{self.total / 1e9:.3g} GB ({', '.join(parts)})"

    def _repr_html_(self) -> str:
        parts = {**vars(self), "total": self.total}
        rows = [(name, f"{value / 1e6:,.1f} MB") for name, value in parts.items()]
        return html_pairs("memory of a training step", dict(rows))


class Plan(NamedTuple):
    """How a training step uses memory."""

    memory: StepMemory
    # how many layers keep their activations: the last ones, which the backward pass needs first
    kept_layers: int


class Pass:
    """The body of a model on one batch: embeddings, reversible layers, final norm.

    With ``call.rows_alone`` attention computes each row as if it were alone: at its length without
    the padding at its end, which otherwise takes part in the circle of chunks as in Hugging Face's
    models, and with its own number of buckets if evaluation chooses one.
    """

    def __init__(
        self,
        config: ReformerConfig,
        parameters: Mapping[str, np.ndarray],
        prefix: str,
        inputs: Inputs,
        call: Call,
    ) -> None:
        self.config, self.inputs, self.call = config, inputs, call
        self.key = partial(random_key, call.seed)
        self.gradients: dict[str, np.ndarray] = {}
        # set if the configuration leaves the number open and the sequence is hashed
        self.chosen_num_buckets: int | Sequence[int] | None = None
        self.weights = Weights(parameters, self.gradients)
        self.body = body = self.weights.below(prefix)
        common = {"dropout": config.hidden_dropout_prob if call.training else 0.0}
        self.embeddings = self._embeddings(body.below("embeddings."), common["dropout"])
        common["eps"] = config.layer_norm_eps
        self._observers, self._probabilities = call.observers, Probabilities()
        if call.requested.attentions:
            self._observers = (*call.observers, self._probabilities)
        self._hashing = self._check_hashing(body.dtype)
        alone = call.rows_alone
        if alone is None:
            alone = self.chosen_num_buckets is not None and call.rotations is None
        self._lengths = own_lengths(config, inputs, call.training) if alone else None
        self.layers: list[tuple[Any, ...]] = [
            self._layer(i, kind, body.below(f"encoder.layers.{i}."), common)
            for i, kind in enumerate(config.layer_types)
        ]
        self.norm = FinalNorm(body.below("encoder.layer_norm."), key=self.key, **common)

    def _embeddings(self, weights: Weights, dropout: float) -> Embeddings:
        drop = Dropout(dropout, partial(self.key, "embeddings"))
        below, config = weights.below("position_embeddings."), self.config
        positions: Positions | None = None
        if config.position_embedding_type == "sinusoidal":
            c, scale = config.hidden_size, config.axial_norm_std
            positions = SinusoidalPositions(drop, c, weights.dtype, scale)
        elif config.position_embedding_type == "absolute":
            positions = (
                AxialPositions(below, drop, len(config.axial_pos_shape)) if config.axial_pos_embds
                else PositionTable(below, drop)
            )  # fmt: skip
        words = weights.below("word_embeddings.")
        return Embeddings(words, drop, positions, config.residual_dtype)

    def _layer(
        self, i: int, kind: str, weights: Weights, common: dict[str, Any]
    ) -> tuple[Any, ...]:
        """The branches of a layer: attention, and feed-forward."""
        config, key = self.config, partial(self.key, "layer", i)
        rules: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "num_key_value_heads": config.key_value_heads,
            "shape": (self.inputs.b, self.inputs.n),
            "lengths": self._lengths,
            "observers": self._observers,
            "attention_mask": self.inputs.mask,
            "attention_dropout": (
                config.attention(kind, "attention_probs_dropout_prob")
                if self.call.training
                else 0.0
            ),
            "is_causal": config.is_decoder,
            "softcap": config.softcap,
            "key": partial(key, "attention"),
        }
        if kind in config.windows:
            rules |= {
                "chunk_length": config.attention(kind, "attn_chunk_length"),
                "num_chunks_before": config.attention(kind, "num_chunks_before"),
                "num_chunks_after": config.attention(kind, "num_chunks_after"),
            }
        kind_of = attention_type(config, kind)
        # with shared queries and keys, a token is found by content
        if config.position_embedding_type == "rotary" and not kind_of.shared_qk:
            rules["rotary"] = Rotary(self.inputs.positions, config.rope_theta)
        if kind == "local":
            # in a causal model a circle can only repeat chunks: off if strictly causal
            rules["wrap"] = not (config.is_decoder and config.attention_scope == "bucket")
        elif kind_of.hashes:
            # hash_seed fixes the rotations of all calls
            draw = key if config.hash_seed is None else partial(random_key, config.hash_seed, i)
            rules |= {"rotations_key": draw("rotations"), **self._hashing_of(i)}
        attention = kind_of(weights.below("attention."), **rules, **common)
        build = WeightedFeedForward if config.activation in WEIGHTED else FeedForward
        feed_forward = build(
            weights.below("feed_forward."), activation=config.activation,
            chunk_length=config.chunk_size_feed_forward, gated=config.feed_forward_gated,
            key=partial(key, "feed_forward"), **common,
        )  # fmt: skip
        return attention, feed_forward

    def _hashing_of(self, i: int) -> dict[str, Any]:
        """The hashing arguments of layer i; with rows of several lengths, evaluation chooses the
        number of buckets for each."""
        config, rules = self.config, self._hashing[i]
        fixed = config.num_buckets is not None or self.call.training
        if self._lengths is None or fixed or rules["rotations"] is not None:
            return rules
        return rules | {
            "choose_num_buckets": partial(
                ops.choose_num_buckets, chunk_length=config.attention("lsh", "attn_chunk_length"),
                max_position_embeddings=config.max_position_embeddings,
            )
        }  # fmt: skip

    def _check_hashing(self, dtype: np.dtype) -> dict[int, dict[str, Any]]:
        """The hashing arguments of each layer that hashes, by its index."""
        config = self.config
        kinds = {i: x for i, x in enumerate(config.layer_types) if attention_type(config, x).hashes}
        count = len(kinds)
        num_hashes, num_buckets = self.call.num_hashes, self.call.num_buckets
        rotations, name = self.call.rotations, f"{self.call.argument_prefix}rotations"
        if not isinstance(rotations, (Sequence, np.ndarray, type(None))):
            raise TypeError(f"{name} must be a list of arrays, got {type(rotations).__name__}")
        if rotations is not None and len(rotations) != count:
            raise ValueError(
                f"{name} must be {count} arrays, one for each LSH layer, got {len(rotations)}"
            )
        if num_hashes is not None:
            num_hashes = integer("num_hashes", num_hashes, 1)
        if count == 0:
            return {}
        num_hashes = config.num_hashes if num_hashes is None else num_hashes
        m, n = config.attention("lsh", "attn_chunk_length"), self.inputs.n
        hashed = n > m or config.attention_scope == "bucket" or "hash" in kinds.values()
        chosen = num_buckets is not None
        num_buckets = num_buckets if chosen else config.num_buckets
        if num_buckets is None:
            num_buckets = ops.choose_num_buckets(n, m, config.max_position_embeddings)
            self.chosen_num_buckets = num_buckets if hashed else None
        if not isinstance(num_buckets, int):
            num_buckets = tuple(num_buckets)
        rules = {"num_hashes": num_hashes, "num_buckets": num_buckets}
        own: dict[str, dict[str, Any]] = {
            "lsh": {
                "scope": config.attention_scope,
                "bucket_cap": config.bucket_cap,
                "attend_across_buckets": config.lsh_attend_across_buckets,
                "allow_duplicate_attention": config.lsh_allow_duplicate_attention,
            },
            "hash": {"local_window": config.hash_local_window},
        }
        if rotations is None:
            return {i: rules | own[kind] | {"rotations": None} for i, kind in kinds.items()}
        one_chunk = not hashed and not chosen
        factors = (num_buckets,) if isinstance(num_buckets, int) else num_buckets
        shape = (
            config.num_attention_heads, config.attention_head_size, num_hashes,
            # nothing is hashed and no number of buckets is fixed: any size is accepted
            "any" if one_chunk and config.num_buckets is None else sum(factors) // 2,
        )  # fmt: skip
        found = [
            self._checked_rotation(f"{name}[{i}]", rotation, shape, dtype)
            for i, rotation in enumerate(rotations)
        ]
        return {
            i: rules | own[kind] | {"rotations": None if one_chunk else rotation}
            for (i, kind), rotation in zip(kinds.items(), found, strict=True)
        }

    @staticmethod
    def _checked_rotation(
        name: str, rotation: Any, shape: tuple[Any, ...], dtype: np.dtype
    ) -> np.ndarray:
        rotation = as_array(name, rotation)
        if rotation.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be real numbers, got {rotation.dtype}")
        if rotation.ndim != 4 or any(
            expected not in (n, "any") for n, expected in zip(rotation.shape, shape, strict=True)
        ):
            expected = str(shape).replace("'", "")
            raise ValueError(f"{name} must have shape {expected}, got {rotation.shape}")
        checked: np.ndarray = rotation.astype(dtype, copy=False)
        return checked

    @property
    def branches(self) -> list[Sublayer]:
        """The branches of all layers, in order."""
        return [branch for layer in self.layers for branch in layer]

    # ---- forward ----

    @in_own_precision
    @underflow_to_zero()
    def forward(self, *, differentiate: bool = False, kept_layers: int = 0) -> None:
        """Run the layers; the last `kept_layers` keep their activations for the backward pass.

        Without ``config.reversible`` both streams are the same array.
        """
        inputs, record = self.inputs, self.call.requested.hidden_states
        y1 = self.embeddings.forward(inputs.input_ids, inputs.inputs_embeds, inputs.positions)
        y2 = y1.copy() if self.config.reversible else y1
        self._hidden_states = [self._numbers_of(y2)] if record else []
        self._branches: list[Sequence[Any]] = []
        first_kept, dtype = len(self.layers) - kept_layers, self.config.kept_dtype
        for i, layer in enumerate(self.layers):
            kept = i >= first_kept
            branches: Sequence[Any]
            if self.config.reversible:
                exact = i == first_kept > 0 or self.config.residual_dtype is not None
                branches = [Kept(branch, dtype, exact=exact) for branch in layer] if kept else layer
                y1, y2 = alternating_forward([branch.forward_add for branch in branches], y1, y2)
            else:
                branches = [Residual(branch, keep=kept, kept_dtype=dtype) for branch in layer]
                for branch in branches:
                    branch.forward_add(y1)
            if differentiate:
                self._branches.append(branches)
            if record:
                self._hidden_states.append(self._numbers_of(y2))
        self.y1, self.y2 = y1, y2
        warn_of_cut(self.config.bucket_cap, self.cut_shares or ())
        if differentiate:
            self.dy1, self.dy2 = (new_gradient(y, self.weights.dtype) for y in (y1, y2))

    def _numbers_of(self, stream: np.ndarray) -> np.ndarray:
        """A copy of the numbers of a stream, without those of padding."""
        return np.array(numbers(stream[:, : self.inputs.t], self.weights.dtype), order="C")

    def describe(self, output: ReformerOutput) -> None:
        """Fill the requested fields of an output, after `forward`."""
        requested = self.call.requested
        if requested.hidden_states:
            # the second stream, before the first layer and after each layer
            output.hidden_states = tuple(self._hidden_states)
        if requested.attentions:
            output.attentions = self._probabilities.layers()
        output.cut_shares = self.cut_shares
        if requested.buckets:
            output.buckets = self.buckets

    @in_own_precision
    def plan(self, budget: float, head_bytes: int) -> Plan:
        """Plan a training step whose loss needs `head_bytes`, and whose kept activations may use
        `budget` bytes."""
        x = self._stream()
        dtype, reversible = self.config.kept_dtype, self.config.reversible
        own, of_gradient = stream_bytes(x, self.config.residual_dtype)
        # a stream is kept before each branch of the layers that keep activations, or of all layers
        kept_stream = kept_stream_bytes(x, dtype, self.config.residual_dtype)
        stream, before = (kept_stream, 0) if reversible else (0, x.nbytes)
        costs = [
            sum(branch.kept_bytes(x, dtype) + stream for branch in layer)
            for layer in reversed(self.layers)
        ]
        # more for the streams of the first of these layers, which are exact if others are before it
        more = (own - stream) * reversible
        exact = [*(len(layer) * more for layer in self.layers[:0:-1]), 0]
        kept_layers = int((np.cumsum(costs) + exact <= budget).sum())
        kept = sum(costs[:kept_layers]) + before * len(self.branches)
        kept += sum(exact[kept_layers - 1 : kept_layers])
        # the backward pass frees kept activations and adds gradients, layer by layer
        gradients = self.weights.nbytes - self.body.nbytes
        # the head's gradient of the word vectors, to which that of the embeddings is added
        shared = self.body.stored(WORDS).nbytes if self.config.shared_embeddings else 0
        gradients += shared
        peak, still = kept + gradients + head_bytes, kept
        for i, layer in enumerate(reversed(self.layers)):
            for branch in reversed(layer):
                gradients += branch.weights.nbytes
                backward = branch.backward_bytes(x, kept=i < kept_layers, kept_dtype=dtype)
                peak = max(peak, still + gradients + backward)
                still -= before
                if i < kept_layers:
                    still -= branch.kept_bytes(x, dtype) + stream
        peak = max(peak, shared + self.weights.nbytes)
        buckets = sum(branch.bucket_bytes() for branch in self.branches)
        memory = StepMemory(
            # 16 bytes per token: positions, and labels shifted to the logits that predict them
            streams=(2 * own + 2 * of_gradient if reversible else 3 * x.nbytes)
            + 16 * self.inputs.b * self.inputs.n
            + buckets,
            gradients=self.weights.nbytes,
            kept=kept,
            working=max(0, peak - kept - self.weights.nbytes)
            + numbers_bytes(x, self.config.residual_dtype, Sublayer.rows_at_a_time(x.shape[-1]))
            + heap_gaps(own, rounded=dtype is not None and kept_layers > 0),
        )
        return Plan(memory, kept_layers)

    @in_own_precision
    def layer_bytes(self) -> list[tuple[int, int]]:
        """For each layer, the bytes of its activations, and the peak of a backward pass that
        recomputes them."""
        x, dtype = self._stream(), self.config.kept_dtype
        kept_dtype = dtype if self.config.reversible else None
        stream = kept_stream_bytes(x, kept_dtype, self.config.residual_dtype)
        return [
            (
                sum(branch.kept_bytes(x, dtype) + stream for branch in layer),
                max(branch.backward_bytes(x, kept=False) for branch in layer),
            )
            for layer in self.layers
        ]

    def _stream(self) -> np.ndarray:
        """Stands for a stream in size queries, without allocating one."""
        shape = (self.inputs.b, self.inputs.n, self.config.hidden_size)
        return np.broadcast_to(self.weights.dtype.type(0), shape)

    @property
    def buckets(self) -> tuple[np.ndarray | None, ...]:
        found = (f.buckets for f, *_ in self.layers if f.hashes)
        return tuple(None if ids is None else ids[..., : self.inputs.t] for ids in found)

    @property
    def cut_shares(self) -> tuple[float, ...] | None:
        """For each LSH layer, the share of pairs that ``config.bucket_cap`` left out."""
        cap = self.config.bucket_cap
        if cap is None:
            return None
        found = (f.buckets for f, *_ in self.layers if f.hashes and f.shared_qk)
        mask = self.inputs.mask
        return tuple(
            ops.cut_share(ids, cap, attention_mask=mask) for ids in found if ids is not None
        )

    # ---- final states, some rows of (b n, 2 c) at a time ----

    @property
    def block_rows(self) -> int:
        count = self.inputs.b * self.inputs.n
        return min(count, max(1024, HEAD_BLOCK // (2 * self.config.hidden_size)))

    def blocks(self) -> Iterator[slice]:
        return blocks(slice(0, self.inputs.b * self.inputs.n), self.block_rows)

    def every(self, offset: int) -> slice:
        """The row of token `offset` in every sequence."""
        return slice(offset, None, self.inputs.n)

    def final(self, rows: slice) -> tuple[np.ndarray, Any]:
        return self.norm.forward(*self._flat(self.y1, self.y2), rows)

    def final_backward(self, rows: slice, dh: np.ndarray, normed: Any) -> None:
        self.norm.backward(*self._flat(self.dy1, self.dy2), rows, dh, normed)

    def states_backward(self, dstates: np.ndarray) -> None:
        """Fill dy1 and dy2 from the gradient of all final states (b, t, 2 c), if no head does."""
        if self.inputs.n > self.inputs.t:  # padded in evaluation
            padding = (0, 0), (0, self.inputs.n - self.inputs.t), (0, 0)
            dstates = np.pad(dstates, padding)
        dstates = dstates.reshape(-1, dstates.shape[-1])
        for rows in self.blocks():
            _, normed = self.final(rows)
            self.final_backward(rows, dstates[rows], normed)

    def map_final(self, width: int, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(final states (rows, 2 c)) -> (rows, width), for all rows: (b, t, width)."""
        inputs = self.inputs
        out = np.empty((inputs.b * inputs.n, width), self.weights.dtype)
        for rows in self.blocks():
            out[rows] = function(self.final(rows)[0])
        return out.reshape(inputs.b, inputs.n, width)[:, : inputs.t]

    @staticmethod
    def _flat(x1: np.ndarray, x2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c = x1.shape[-1]
        return x1.reshape(-1, c), x2.reshape(-1, c)

    # ---- backward ----

    @in_own_precision
    @underflow_to_zero()
    def backward(self) -> np.ndarray | None:
        """Propagate dy1 and dy2 to the gradients of the body's weights. Returns that of
        `inputs_embeds` (b, t, c), if these are the inputs."""
        if self.config.reversible:
            streams = self.y1, self.y2, self.dy1, self.dy2
            for layer in reversed(self._branches):
                streams = alternating_backward(layer, *streams)
            self.dy1, self.dy2 = streams[2:]
            del streams, self.y1, self.y2
        # both streams start as the embeddings, or are one: the gradients add up
        dtype = self.weights.dtype
        dx, more = numbers(self.dy1, dtype), self.dy2
        del self.dy1, self.dy2
        flat = self._flat(dx, more)
        for rows in self.blocks():
            ops.add_scaled(flat[0][rows], numbers(flat[1][rows], dtype), 1.0)
        del more, flat
        if not self.config.reversible:
            for layer in reversed(self._branches):
                for branch in reversed(layer):
                    branch.backward_add(dx, self.y1)
            del self.y1, self.y2
        dvectors = self.embeddings.backward(dx)
        return None if dvectors is None else np.ascontiguousarray(dvectors[:, : self.inputs.t])


def heap_gaps(nbytes: int, *, rounded: bool = False) -> int:
    """Measured heap fragmentation for arrays of this size: larger blocks are returned at once,
    smaller ones leave gaps, and more of them if arrays in half of the size are kept between."""
    return int(min((4 if rounded else 0.7) * nbytes, 2**25))


def warn_of_cut(bucket_cap: int | None, shares: Sequence[float]) -> None:
    """Warn if a cap leaves out pairs of tokens."""
    if max(shares, default=0.0) > 0.0:
        warnings.warn(
            f"bucket_cap={bucket_cap} leaves out up to {max(shares):.1%} of the pairs of tokens in "
            "one bucket: more buckets or a larger cap would keep them",
            stacklevel=4,
        )


# ---- names and shapes of the weights ----


def body_shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of embeddings, layers and final norm."""
    c, f = config.hidden_size, config.feed_forward_size
    shapes: dict[str, tuple[int, ...]] = {WORDS: (config.vocab_size, c)}
    shapes |= position_shapes(config)
    for i, kind in enumerate(config.layer_types):
        layer = f"encoder.layers.{i}."
        attention = attention_type(config, kind)
        shapes |= norm_shapes(f"{layer}attention.layer_norm", c)
        for projection in attention.projections:
            width = config.projection_width(projection)
            shapes[f"{layer}attention.self_attention.{projection}.weight"] = (width, c)
        shapes[f"{layer}attention.output.dense.weight"] = (c, config.projection_width("query"))
        shapes |= norm_shapes(f"{layer}feed_forward.layer_norm", c)
        if config.activation in WEIGHTED:
            for name in WEIGHTED[config.activation].weights:
                shapes[f"{layer}feed_forward.dense.act_fn.{name}"] = (1,)
        shapes |= dense_shapes(f"{layer}feed_forward.dense.dense", f, c)
        shapes |= dense_shapes(f"{layer}feed_forward.output.dense", c, f)
        if config.feed_forward_gated:
            shapes |= dense_shapes(f"{layer}feed_forward.dense.up_proj", f, c)
    return shapes | norm_shapes("encoder.layer_norm", 2 * c)


def position_shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    name = "embeddings.position_embeddings."
    if config.position_embedding_type != "absolute":
        return {}
    if not config.axial_pos_embds:
        return {f"{name}embedding.weight": (config.max_position_embeddings, config.hidden_size)}
    grid = config.axial_pos_shape
    return {
        # the axis' own size; 1 along the others
        f"{name}weights.{a}": (*(n if b == a else 1 for b in range(len(grid))), d)
        for a, (n, d) in enumerate(zip(grid, config.axial_pos_embds_dim, strict=True))
    }


def body_constants(config: ReformerConfig) -> dict[str, float]:
    """Names and values of the constants that checkpoints hold in addition to the weights."""
    if config.activation not in WEIGHTED:
        return {}
    return {
        f"encoder.layers.{i}.feed_forward.dense.act_fn.{name}": value
        for i in range(config.num_hidden_layers)
        for name, value in WEIGHTED[config.activation].constants.items()
    }


def norm_shapes(name: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def dense_shapes(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
