"""The Reformer and its heads, under Hugging Face's names and with their numbers.

A call makes a `_Pass`: the layers with their keys of random bits, which run forward, and backward
where gradients are wanted, and are gone afterwards. Models remember their weights alone.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from . import ops
from .attention import LocalAttention, LSHAttention
from .checkpoint import load_into, read_folder, save_folder, write_safetensors
from .config import ReformerConfig
from .generate import generate_tokens
from .nn import Embeddings, FeedForward, FinalNorm, Parameters, Weights, draw_seed, random_key
from .reversible import reversible_backward, reversible_forward

__all__ = [
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerOutput",
]

# a label that does not count
IGNORE = -100
# final states in memory at a time, in numbers: 16 MB of float32
HEAD_BLOCK = 2**22
# constants that old checkpoints carry beside the weights
MASK_CONSTANTS = tuple(
    f"{kind}_value_float{bits}" for kind in ("self_mask", "mask") for bits in (16, 32)
)


@dataclass
class ReformerOutput:
    """What a call gives; what was not asked for, or what the model does not have, is None.

    Shapes: b batch, t length, c hidden_size, v vocab_size, h heads, r hash rounds.
    """

    # mean over the targets that count; where targets were given
    loss: float | None = None
    # (b, t, v), or (b, num_labels) of a classifier
    logits: np.ndarray | None = None
    # (b, t) of question answering
    start_logits: np.ndarray | None = None
    end_logits: np.ndarray | None = None
    # (b, t, 2 c): both streams, normed
    last_hidden_state: np.ndarray | None = None
    # (b, t, c) of the second stream, before the first layer and after each
    hidden_states: tuple[np.ndarray, ...] | None = None
    # of each LSH layer, int32 (b, h, r, t); None of one whose sequence is a single chunk
    buckets: tuple[np.ndarray | None, ...] | None = None


# ---- inputs ----


@dataclass
class _Inputs:
    """Checked inputs, at the length n >= t that the layers run at."""

    input_ids: np.ndarray | None  # (b, n)
    inputs_embeds: np.ndarray | None  # (b, n, c)
    positions: np.ndarray  # (1 or b, n)
    mask: np.ndarray | None  # (b, n)
    b: int
    t: int
    n: int


def _padded_length(config: ReformerConfig, t: int) -> int:
    """The length that Hugging Face pads a sequence to in evaluation, where that changes numbers.

    They pad to a common multiple of the chunk lengths. Our layers take a last chunk as short as it
    is, with the same result, but for two things that depend on the number of chunks: which chunk
    a circle's first one looks back to, and the automatic number of buckets.
    """
    lengths = {kind: config.attention(kind, "attn_chunk_length") for kind in config.layer_types}
    if len(set(lengths.values())) < 2 or t <= min(lengths.values()):
        return t
    if config.attention_scope == "bucket":
        return t
    n = _round_up(t, math.lcm(*lengths.values()))
    # a causal query does not see what its circle brings round
    circles = {kind for kind in lengths if kind == "lsh" or not config.is_decoder}
    return n if any(_round_up(t, lengths[kind]) != n for kind in circles) else t


def _round_up(t: int, multiple: int) -> int:
    return -(-t // multiple) * multiple


def _check_inputs(
    config: ReformerConfig,
    dtype: np.dtype,
    pad: Callable[[], np.ndarray],
    input_ids: Any,
    inputs_embeds: Any,
    attention_mask: Any,
    position_ids: Any,
    training: bool,
) -> _Inputs:
    """Checked and, in evaluation, padded inputs; `pad` gives the vector of the pad token."""
    if (input_ids is None) == (inputs_embeds is None):
        raise TypeError("input_ids: expected either input_ids or inputs_embeds")
    if input_ids is not None:
        input_ids = _check_ids("input_ids", input_ids, config.vocab_size)
        b, t = input_ids.shape
    else:
        inputs_embeds = np.asarray(inputs_embeds)
        if inputs_embeds.dtype != dtype:
            raise TypeError(f"inputs_embeds: expected {dtype}, got {inputs_embeds.dtype}")
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds: expected shape (b, t, {config.hidden_size}), "
                f"got {inputs_embeds.shape}"
            )
        b, t, _ = inputs_embeds.shape
    if b == 0 or t == 0:
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        raise ValueError(f"{name}: expected at least one row of one token, got shape {(b, t)}")
    mask = _check_mask(attention_mask, b, t)
    positions = _check_positions(position_ids, b, t, config.num_positions)
    n = t if training else _padded_length(config, t)
    if n > t:
        more = n - t
        mask = np.pad(np.ones((b, t), bool) if mask is None else mask, ((0, 0), (0, more)))
        last = positions[:, -1:] + 1 + np.arange(more)
        positions = np.concatenate([positions, last], axis=1).clip(max=config.num_positions - 1)
        if input_ids is not None:
            pad_id = config.pad_token_id or 0
            input_ids = np.pad(input_ids, ((0, 0), (0, more)), constant_values=pad_id)
        else:
            tail = np.broadcast_to(pad(), (b, more, config.hidden_size))
            inputs_embeds = np.concatenate([inputs_embeds, tail], axis=1)
    return _Inputs(input_ids, inputs_embeds, positions, mask, b, t, n)


def _check_ids(name: str, ids: Any, count: int, *, ignore: int | None = None) -> np.ndarray:
    """Integers (b, t) in [0, count), or equal to `ignore`."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {ids.dtype}")
    if ids.ndim != 2:
        raise ValueError(f"{name}: expected shape (b, t), got {ids.shape}")
    wrong = (ids < 0) | (ids >= count)
    if ignore is not None:
        wrong &= ids != ignore
    if wrong.any():
        raise ValueError(f"{name}: expected ids in [0, {count}), got {ids[wrong][0]}")
    return ids.astype(np.int64, copy=False)


def _check_mask(mask: Any, b: int, t: int) -> np.ndarray | None:
    """Booleans (b, t); None where all are True."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"attention_mask: expected numbers or booleans, got {mask.dtype}")
    if mask.shape != (b, t):
        raise ValueError(f"attention_mask: expected shape {(b, t)}, got {mask.shape}")
    mask = mask != 0
    return None if mask.all() else mask


def _check_positions(position_ids: Any, b: int, t: int, count: int) -> np.ndarray:
    if position_ids is None:
        if t > count:
            raise ValueError(f"input_ids: expected at most {count} tokens (positions), got {t}")
        return np.arange(t)[None]
    positions = np.asarray(position_ids)
    if positions.shape not in {(t,), (1, t), (b, t)}:
        raise ValueError(f"position_ids: expected shape {(b, t)} or {(t,)}, got {positions.shape}")
    return _check_ids("position_ids", positions.reshape(-1, t), count)


# ---- one pass ----


class _Pass:
    """The body of a model on one batch: embeddings, reversible layers, final norm."""

    def __init__(
        self,
        model: Reformer,
        inputs: _Inputs,
        *,
        seed: int,
        training: bool,
        num_hashes: int | None = None,
        num_buckets: int | Sequence[int] | None = None,
        rotations: Sequence[np.ndarray] | None = None,
    ) -> None:
        config = self.config = model.config
        self.inputs, self.training = inputs, training
        self.key = partial(random_key, seed)
        self.gradients: dict[str, np.ndarray] = {}
        self.weights = Weights(model.parameters, self.gradients)
        body = self.weights.below(model.prefix)
        common = {"dropout": config.hidden_dropout_prob if training else 0.0}
        self.embeddings = Embeddings(
            body.below("embeddings."), axial=config.axial_pos_embds,
            key=partial(self.key, "embeddings"), **common,
        )  # fmt: skip
        common["eps"] = config.layer_norm_eps
        hashing = self._hashing(model.dtype, num_hashes, num_buckets, rotations)
        self.layers = [
            self._layer(i, kind, body.below(f"encoder.layers.{i}."), common, hashing)
            for i, kind in enumerate(config.layer_types)
        ]
        self.norm = FinalNorm(body.below("encoder.layer_norm."), key=self.key, **common)

    def _layer(
        self, i: int, kind: str, weights: Weights, common: dict, hashing: Iterator[dict]
    ) -> tuple[LocalAttention | LSHAttention, FeedForward]:
        config, key = self.config, partial(self.key, "layer", i)
        rules = {
            "num_heads": config.num_attention_heads,
            "attention_mask": self.inputs.mask,
            "attention_dropout": (
                config.attention(kind, "attention_probs_dropout_prob") if self.training else 0.0
            ),
            "chunk_length": config.attention(kind, "attn_chunk_length"),
            "num_chunks_before": config.attention(kind, "num_chunks_before"),
            "num_chunks_after": config.attention(kind, "num_chunks_after"),
            "is_causal": config.is_decoder,
            "key": partial(key, "attention"),
        }
        attend = weights.below("attention.")
        if kind == "local":
            attention = LocalAttention(attend, **rules, **common)
        else:
            # hash_seed decides the rotations of every call
            draw = key if config.hash_seed is None else partial(random_key, config.hash_seed, i)
            attention = LSHAttention(
                attend, rotations_key=draw("rotations"), **next(hashing), **rules, **common
            )
        feed_forward = FeedForward(
            weights.below("feed_forward."), activation=config.activation,
            chunk_length=config.chunk_size_feed_forward, key=partial(key, "feed_forward"), **common,
        )  # fmt: skip
        return attention, feed_forward

    def _hashing(
        self, dtype: np.dtype, num_hashes: Any, num_buckets: Any, rotations: Any
    ) -> Iterator[dict]:
        """For each LSH layer, how it hashes."""
        config, count = self.config, self.config.layer_types.count("lsh")
        if rotations is not None and len(rotations) != count:
            raise ValueError(
                f"rotations: expected one array for each of {count} LSH layers, "
                f"got {len(rotations)}"
            )
        if count == 0:
            return iter(())
        num_hashes = config.num_hashes if num_hashes is None else num_hashes
        if not isinstance(num_hashes, (int, np.integer)) or num_hashes < 1:
            raise ValueError(f"num_hashes: expected an integer >= 1, got {num_hashes!r}")
        m, n = config.lsh_attn_chunk_length, self.inputs.n
        num_buckets = config.num_buckets if num_buckets is None else num_buckets
        if num_buckets is None:
            num_buckets = ops.choose_num_buckets(n, m, config.max_position_embeddings)
        if not isinstance(num_buckets, int):
            num_buckets = tuple(num_buckets)
        rules = {
            "num_hashes": int(num_hashes),
            "num_buckets": num_buckets,
            "scope": config.attention_scope,
        }
        if rotations is None or (n <= m and config.attention_scope == "chunk"):
            return iter([rules | {"rotations": None}] * count)
        factors = (num_buckets,) if isinstance(num_buckets, int) else num_buckets
        shape = (config.num_attention_heads, config.attention_head_size, num_hashes)
        shape += (sum(factors) // 2,)
        rotations = [np.asarray(rotation, dtype) for rotation in rotations]
        for i, rotation in enumerate(rotations):
            if rotation.shape != shape:
                raise ValueError(f"rotations[{i}]: expected shape {shape}, got {rotation.shape}")
        return iter([rules | {"rotations": rotation} for rotation in rotations])

    # ---- forward ----

    def forward(self, *, differentiate: bool = False, record: bool = False) -> list[np.ndarray]:
        """Run the layers; the recorded states of the second stream, if they are wanted."""
        inputs = self.inputs
        y1 = self.embeddings.forward(inputs.input_ids, inputs.inputs_embeds, inputs.positions)
        y2 = y1.copy()
        states = [y2[:, : inputs.t].copy()] if record else []
        if differentiate:
            self._keep_within_budget(y1)
        for layer in self.layers:
            reversible_forward([layer], y1, y2)
            if record:
                states.append(y2[:, : inputs.t].copy())
        self.y1, self.y2 = y1, y2
        if differentiate:
            self.dy1, self.dy2 = np.zeros_like(y1), np.zeros_like(y2)
        return states

    def _keep_within_budget(self, x: np.ndarray) -> None:
        """Let the last layers keep their activations, which the backward pass needs first."""
        left = self.config.memory_budget or 0
        for layer in reversed(self.layers):
            left -= sum(branch.kept_bytes(x) for branch in layer)
            if left < 0:
                return
            for branch in layer:
                branch.keep = True

    @property
    def buckets(self) -> tuple[np.ndarray | None, ...]:
        found = (f.buckets for f, _ in self.layers if isinstance(f, LSHAttention))
        return tuple(None if ids is None else ids[..., : self.inputs.t] for ids in found)

    # ---- final states, some rows of (b n, 2 c) at a time ----

    def blocks(self) -> Iterator[slice]:
        count = self.inputs.b * self.inputs.n
        size = max(1024, HEAD_BLOCK // (2 * self.config.hidden_size))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def every(self, offset: int) -> slice:
        """The rows of each sequence's token at `offset`."""
        return slice(offset, None, self.inputs.n)

    def final(self, rows: slice) -> tuple[np.ndarray, Any]:
        return self.norm.forward(*self._flat(self.y1, self.y2), rows)

    def final_backward(self, rows: slice, dh: np.ndarray, normed: Any) -> None:
        self.norm.backward(*self._flat(self.dy1, self.dy2), rows, dh, normed)

    def map_final(self, width: int, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(final states (rows, 2 c)) -> (rows, width), for all rows: (b, t, width)."""
        inputs = self.inputs
        out = np.empty((inputs.b * inputs.n, width), self.y1.dtype)
        for rows in self.blocks():
            out[rows] = function(self.final(rows)[0])
        return out.reshape(inputs.b, inputs.n, width)[:, : inputs.t]

    @staticmethod
    def _flat(*streams: np.ndarray) -> list[np.ndarray]:
        return [stream.reshape(-1, stream.shape[-1]) for stream in streams]

    # ---- backward ----

    def backward(self) -> None:
        """From dy1, dy2 to the gradients of the body's weights."""
        _, _, dx1, dx2 = reversible_backward(self.layers, self.y1, self.y2, self.dy1, self.dy2)
        del self.y1, self.y2
        # both streams began as the embeddings
        ops.add_scaled(dx1, dx2, 1.0)
        self.embeddings.backward(dx1)


# ---- what all models share ----


class Reformer:
    """A Reformer with a head: the base of the models.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the first weights, as Hugging Face initialises them. The same integer gives the same
        weights, whatever the head and the dtype.
    dtype : float32 or float64
        Of weights, activations and gradients.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        Live, under Hugging Face's ``state_dict`` names: edit an array in place, or assign another
        of the same shape and dtype.
    """

    # names of the body's weights begin with it
    prefix: ClassVar[str] = "reformer."
    # keywords of what a loss is measured against
    targets: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: ReformerConfig, *, rng: Any = None, dtype: Any = np.float32
    ) -> None:
        self._allocate(config, dtype)
        self._initialise(self.parameters, rng)

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        kinds = ", ".join(self.config.layer_types)
        return f"<{type(self).__name__}: {count:,} parameters, {self.dtype}, layers {kinds}>"

    @property
    def parameters(self) -> Parameters:
        return self._parameters

    def _allocate(self, config: ReformerConfig, dtype: Any) -> None:
        if not isinstance(config, ReformerConfig):
            raise TypeError(f"config: expected a ReformerConfig, got {type(config).__name__}")
        config.check()
        self._check_config(config)
        self.config, self.dtype = config, np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {self.dtype}")
        shapes = {self.prefix + name: shape for name, shape in _body_shapes(config).items()}
        shapes |= self._head_shapes(config)
        arrays = {name: np.empty(shape, self.dtype) for name, shape in shapes.items()}
        self._parameters = Parameters(arrays)

    def _initialise(self, names: Any, rng: Any) -> None:
        """Hugging Face's initialisation, each array from a key of its own."""
        seed = draw_seed(rng)
        for name in names:
            array = self.parameters[name]
            name = name.removeprefix(self.prefix)
            if name.endswith("bias"):
                array[...] = 0.0
            elif "layer_norm" in name:
                array[...] = 1.0
            else:
                axial = name.startswith("embeddings.position_embeddings.weights")
                scale = self.config.axial_norm_std if axial else self.config.initializer_range
                draw = np.random.default_rng(random_key(seed, "initialise", name))
                # float32 in every dtype: the values are the same
                array[...] = scale * draw.standard_normal(array.shape, np.float32)

    # ---- calls ----

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        output_hidden_states: bool = False,
        output_buckets: bool = False,
        **targets: Any,
    ) -> ReformerOutput:
        """Evaluate the model: no dropout.

        Parameters
        ----------
        input_ids : array_like of int, (b, t)
            Of any length up to ``config.num_positions``.
        attention_mask : array_like, (b, t), optional
            Nonzero for a real token.
        position_ids : array_like of int, (b, t) or (t,), optional
            0, 1, 2 ... by default.
        inputs_embeds : ndarray, (b, t, hidden_size), optional
            Word vectors, in place of `input_ids`.
        num_hashes : int, optional
            Rounds of LSH attention, in place of ``config.num_hashes``.
        rotations : sequence of ndarray, optional
            For each LSH layer (h, d, num_hashes, sum of num_buckets' factors / 2).
        rng : int, numpy Generator or None
            Draws the rotations where they are not given and ``config.hash_seed`` is None: an
            integer repeats them, None draws new ones.
        output_hidden_states, output_buckets : bool
            Ask for those fields of the output.
        **targets
            The model's `targets`; with them, the output has a loss.

        Returns
        -------
        ReformerOutput

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            False, targets, False,
        )  # fmt: skip
        states = run.forward(record=output_hidden_states)
        output = self._output(run)
        if wanted is not None:
            output.loss = self._loss(run, wanted, differentiate=False)
        if output_hidden_states:
            output.hidden_states = tuple(states)
        if output_buckets:
            output.buckets = run.buckets
        return output

    def _begin(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any,
        num_hashes: Any, rotations: Any, rng: Any, training: bool, targets: dict, needs_loss: bool,
    ) -> tuple[_Pass, Any]:  # fmt: skip
        """Check everything; the pass, and the targets as the head wants them."""
        for name in targets:
            if name not in self.targets:
                raise TypeError(f"{name}: {type(self).__name__} has no such argument")
        given = [name for name in self.targets if targets.get(name) is not None]
        if given != list(self.targets) and (given or needs_loss):
            missing = [name for name in self.targets if name not in given]
            raise TypeError(f"{missing[0]}: needed for a loss")
        inputs = _check_inputs(
            self.config, self.dtype, self._pad_vector, input_ids, inputs_embeds, attention_mask,
            position_ids, training,
        )  # fmt: skip
        wanted = self._check_targets(inputs, *(targets[name] for name in given)) if given else None
        run = _Pass(
            self, inputs, seed=draw_seed(rng), training=training, num_hashes=num_hashes,
            rotations=rotations,
        )  # fmt: skip
        return run, wanted

    def _pad_vector(self) -> np.ndarray:
        words = self.parameters[f"{self.prefix}embeddings.word_embeddings.weight"]
        return words[self.config.pad_token_id or 0]

    # ---- what a head gives ----

    def _check_config(self, config: ReformerConfig) -> None:
        """Raise ValueError where the configuration does not fit the head."""

    def _head_shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        return {}

    def _check_targets(self, inputs: _Inputs, *targets: Any) -> Any:
        """Checked targets, in the form that `_loss` takes."""

    def _output(self, run: _Pass) -> ReformerOutput:
        return ReformerOutput(last_hidden_state=_last_hidden_state(run))

    def _loss(self, run: _Pass, targets: Any, *, differentiate: bool) -> float:
        """The loss; with `differentiate`, also run.dy1, run.dy2 and the head's gradients."""
        raise TypeError(f"{type(self).__name__} has no head, and so no loss")

    # ---- files ----

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, which transformers opens too; atomically.

        Raises
        ------
        ImportError
            The safetensors library is not installed (extra ``reformer_c[hf]``).
        """
        config = self.config.to_dict() | {"architectures": [type(self).__name__]}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        save_folder(
            folder,
            {
                "config.json": lambda path: path.write_text(text, encoding="utf-8"),
                "model.safetensors": lambda path: write_safetensors(path, self.parameters),
            },
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        config: ReformerConfig | None = None,
        dtype: Any = np.float32,
        strict: bool = True,
        rng: Any = None,
    ) -> Reformer:
        """A model with the weights of a folder that `save_pretrained`, or transformers, wrote.

        Parameters
        ----------
        folder : path
            With config.json, and model.safetensors or its shards and their index.
        config : ReformerConfig, optional
            In place of config.json.
        dtype : float32 or float64
            What the weights are cast to.
        strict : bool
            False starts what the files lack from `rng`, passes over what the model lacks, and warns
            of both: for a new head on a trained body.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files is not there.
        ValueError
            Names the tensors that are missing, unexpected or of another shape.
        ImportError
            The safetensors library is not installed (extra ``reformer_c[hf]``).
        """
        model = cls.__new__(cls)
        model._allocate(ReformerConfig.from_json(folder) if config is None else config, dtype)
        missing, unexpected = load_into(model.parameters, read_folder(folder), model._own_name)
        if missing or unexpected:
            message = "; ".join(
                f"{kind}: {', '.join(names)}"
                for kind, names in (("missing", missing), ("unexpected", unexpected))
                if names
            )
            if strict:
                raise ValueError(
                    f"the weights in {os.fspath(folder)!r} are not those of a {cls.__name__} "
                    f"({message}); strict=False loads what fits"
                )
            warnings.warn(f"{cls.__name__}.from_pretrained: {message}", stacklevel=2)
            model._initialise(missing, rng)
        return model

    def _own_name(self, name: str) -> str | None:
        """This model's name for a tensor of a file; None for what is no weight.

        A bare body loads from a model with a head, and the other way round.
        """
        if name.endswith(MASK_CONSTANTS):
            return None
        if name == "lm_head.decoder.bias":
            return "lm_head.bias"
        if self.prefix == "":
            return name.removeprefix("reformer.")
        if name.startswith(("embeddings.", "encoder.")):
            return self.prefix + name
        return name


def _last_hidden_state(run: _Pass) -> np.ndarray:
    return run.map_final(2 * run.config.hidden_size, lambda h: h)


def _body_shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of embeddings, layers and final norm."""
    c, f = config.hidden_size, config.feed_forward_size
    width = config.num_attention_heads * config.attention_head_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, c)
    }
    if config.axial_pos_embds:
        (n1, n2), (d1, d2) = config.axial_pos_shape, config.axial_pos_embds_dim
        shapes["embeddings.position_embeddings.weights.0"] = (n1, 1, d1)
        shapes["embeddings.position_embeddings.weights.1"] = (1, n2, d2)
    else:
        name = "embeddings.position_embeddings.embedding.weight"
        shapes[name] = (config.max_position_embeddings, c)
    for i, kind in enumerate(config.layer_types):
        layer = f"encoder.layers.{i}."
        attention = LocalAttention if kind == "local" else LSHAttention
        shapes |= _norm_shapes(f"{layer}attention.layer_norm", c)
        for projection in attention.projections:
            shapes[f"{layer}attention.self_attention.{projection}.weight"] = (width, c)
        shapes[f"{layer}attention.output.dense.weight"] = (c, width)
        shapes |= _norm_shapes(f"{layer}feed_forward.layer_norm", c)
        shapes |= _dense_shapes(f"{layer}feed_forward.dense.dense", f, c)
        shapes |= _dense_shapes(f"{layer}feed_forward.output.dense", c, f)
    return shapes | _norm_shapes("encoder.layer_norm", 2 * c)


def _norm_shapes(name: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def _dense_shapes(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


class ReformerModel(Reformer):
    """The bare Reformer (Kitaev et al. 2020): its output is `last_hidden_state` (b, t, 2 c).

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
    >>> model = ReformerModel(config, rng=0)
    >>> model(np.arange(100)[None], rng=0).last_hidden_state.shape
    (1, 100, 512)
    """

    prefix = ""


class _WithLoss(Reformer):
    """A model whose head has a loss."""

    def loss(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        **targets: Any,
    ) -> float:
        """The loss of a call alone: no array of the logits of all tokens is made.

        The parameters are those of a call, and the result is its ``.loss``.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            False, targets, True,
        )  # fmt: skip
        run.forward()
        return self._loss(run, wanted, differentiate=False)

    def loss_and_gradients(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        training: bool = True,
        **targets: Any,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss, and its gradient with respect to every parameter.

        Activations are rebuilt on the way back (Kitaev et al. 2020, section 3): memory does not
        grow with the number of layers, except for what ``config.memory_budget`` lets it keep.
        The gradients are exact for the dropout and the buckets that were drawn.

        Parameters
        ----------
        rng : int, numpy Generator or None
            Draws dropout and rotations: an integer repeats them, bit for bit.
        training : bool
            False: without dropout.
        **targets
            The model's `targets`.

        The other parameters are those of a call.

        Returns
        -------
        loss : float
            nan where no target counts.
        gradients : dict of str to ndarray
            By the names of `parameters`.
        """
        run, wanted = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            training, targets, True,
        )  # fmt: skip
        run.forward(differentiate=True)
        loss = self._loss(run, wanted, differentiate=True)
        run.backward()
        gradients = run.gradients
        for name, array in self.parameters.items():
            if name not in gradients:
                gradients[name] = np.zeros_like(array)
        return loss, {name: gradients[name] for name in self.parameters}


# ---- language models ----


class _LanguageModel(_WithLoss):
    targets = ("labels",)
    # logits at a token are for the token that many places on
    ahead: ClassVar[int]

    def _check_config(self, config: ReformerConfig) -> None:
        if config.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings: expected False: the output layer reads both streams, "
                f"{2 * config.hidden_size} wide, and the word vectors are {config.hidden_size} wide"
            )

    def _head_shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        v = config.vocab_size
        return {"lm_head.decoder.weight": (v, 2 * config.hidden_size), "lm_head.bias": (v,)}

    def _check_targets(self, inputs: _Inputs, labels: Any) -> np.ndarray:
        labels = _check_ids("labels", labels, self.config.vocab_size, ignore=IGNORE)
        if labels.shape != (inputs.b, inputs.t):
            raise ValueError(
                f"labels: expected shape {(inputs.b, inputs.t)}, got {labels.shape}"
            )
        at_logits = np.full((inputs.b, inputs.n), IGNORE)
        at_logits[:, : inputs.t - self.ahead] = labels[:, self.ahead :]
        return at_logits

    def _decoder(self, run: _Pass) -> tuple[np.ndarray, np.ndarray | None]:
        head = run.weights.below("lm_head.")
        return head["decoder.weight"], head["bias"] if self.config.apply_lm_head_bias else None

    def _output(self, run: _Pass) -> ReformerOutput:
        last = _last_hidden_state(run)
        return ReformerOutput(last_hidden_state=last, logits=self._logits(run, last))

    def _logits(self, run: _Pass, h: np.ndarray) -> np.ndarray:
        weight, bias = self._decoder(run)
        rows = self.config.chunk_size_lm_head or len(h[0])
        chunks = [
            ops.linear(np.ascontiguousarray(h[:, i : i + rows]), weight, bias)
            for i in range(0, h.shape[1], rows)
        ]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=1)

    def _loss(self, run: _Pass, targets: np.ndarray, *, differentiate: bool) -> float:
        """Cross-entropy, a block of rows at a time."""
        labels, head = targets.reshape(-1), run.weights.below("lm_head.")
        weight, bias = self._decoder(run)
        total, loss = np.count_nonzero(labels != IGNORE), 0.0
        if total == 0:
            return math.nan
        for rows in run.blocks():
            share = np.count_nonzero(labels[rows] != IGNORE) / total
            if share == 0.0:
                continue
            h, normed = run.final(rows)
            mean, saved = ops.cross_entropy_head_forward(
                h, weight, bias, labels[rows], ignore_index=IGNORE,
                chunk_length=self.config.chunk_size_lm_head,
            )  # fmt: skip
            loss += share * float(mean)
            if differentiate:
                dh, dweight, dbias = ops.cross_entropy_head_backward(share, saved)
                head.add_gradient("decoder.weight", dweight)
                if bias is not None:
                    head.add_gradient("bias", dbias)
                run.final_backward(rows, dh, normed)
        return loss


class ReformerModelWithLMHead(_LanguageModel):
    """A causal language model: logits (b, t, v) for the next token.

    `labels` (b, t) are the tokens themselves: they are shifted here, as Hugging Face does, and
    -100 is ignored. ``lm_head.bias`` is added to the logits, as transformers did up to version 4
    and the original does; ``config.apply_lm_head_bias=False`` leaves it out.

    Examples
    --------
    >>> config = ReformerConfig(
    ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
    ... )
    >>> model = ReformerModelWithLMHead(config, rng=0)
    >>> ids = np.arange(100)[None]
    >>> loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    >>> round(loss, 1), len(gradients) == len(model.parameters)
    (5.8, True)
    >>> model.generate(ids, max_new_tokens=5, rng=0).shape
    (1, 105)
    """

    ahead = 1

    def _check_config(self, config: ReformerConfig) -> None:
        super()._check_config(config)
        if not config.is_decoder:
            raise ValueError("is_decoder: expected True: a language model is causal")
        for kind in config.layer_types:
            if config.attention(kind, "num_chunks_after") != 0:
                raise ValueError(f"{kind}_num_chunks_after: expected 0 in a causal language model")

    def generate(
        self,
        input_ids: Any,
        *,
        max_new_tokens: int = 100,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        attention_mask: Any = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        streamer: Callable[[np.ndarray], Any] | None = None,
    ) -> np.ndarray:
        """Continue texts, token by token.

        Every token comes from a forward pass over all tokens before it. The rotations of the LSH
        layers stay the same, and so does the number of buckets: it is the one for the full length.
        Each row is computed as it would be alone, without its padding.

        Parameters
        ----------
        input_ids : array_like of int, (b, t)
            The prompts, of at least one token each.
        max_new_tokens : int
            Together with the prompt at most ``config.num_positions``.
        do_sample : bool
            Draw from the distribution; False takes the likeliest token, which temperature, top_k
            and top_p do not change.
        temperature : float
            Logits are divided by it, > 0.
        top_k : int
            Draw from the k likeliest tokens; 0: from all.
        top_p : float
            Draw from the likeliest tokens that together have this probability, in (0, 1].
        repetition_penalty : float
            Logits of tokens that are in the text are divided by it where they are positive, and
            multiplied where they are negative, > 0.
        eos_token_id : int or sequence of int, optional
            A row ends with one of them; all rows' end ends the generation.
        pad_token_id : int
            Follows the end of a row.
        attention_mask : array_like, (b, t), optional
            Nonzero for a real token: prompts of several lengths, padded on any side.
        num_hashes, rotations
            As in a call; rotations for the number of buckets of the full length.
        rng : int, numpy Generator or None
            An integer repeats rotations and draws.
        streamer : callable, optional
            Called with the new tokens (b,) of each step.

        Returns
        -------
        ndarray of int64, (b, t + new)
            The prompts as they came, and the new tokens.

        Raises
        ------
        TypeError, ValueError
            Name the argument and say what was expected.
        """
        ids = _check_ids("input_ids", input_ids, self.config.vocab_size)
        b, t = ids.shape
        if b == 0 or t == 0:
            raise ValueError(
                f"input_ids: expected prompts of at least one token, got shape {ids.shape}; "
                "the pad token is a neutral start"
            )
        mask = _check_mask(attention_mask, b, t)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)):
            raise TypeError(f"max_new_tokens: expected an integer, got {max_new_tokens!r}")
        longest = int(t if mask is None else mask.sum(axis=1).max()) + max_new_tokens
        if longest > self.config.num_positions:
            raise ValueError(
                f"max_new_tokens: prompt and new tokens make {longest}, and the model has "
                f"{self.config.num_positions} positions"
            )
        seed = draw_seed(rng)
        return generate_tokens(
            self._next_logits(seed, longest, num_hashes, rotations), ids, mask,
            max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty,
            eos_token_id=eos_token_id, pad_token_id=pad_token_id, streamer=streamer,
            draws=np.random.default_rng(random_key(seed, "sampling")),
        )  # fmt: skip

    def _next_logits(
        self, seed: int, longest: int, num_hashes: Any, rotations: Any
    ) -> Callable[[np.ndarray], np.ndarray]:
        """A function of ids (b, t) that gives the logits (b, v) of what follows them."""
        config = self.config
        num_buckets = config.num_buckets
        if num_buckets is None and "lsh" in config.layer_types:
            num_buckets = ops.choose_num_buckets(
                longest, config.lsh_attn_chunk_length, config.max_position_embeddings
            )

        def next_logits(ids: np.ndarray) -> np.ndarray:
            inputs = _check_inputs(
                config, self.dtype, self._pad_vector, ids, None, None, None, False
            )
            run = _Pass(
                self, inputs, seed=seed, training=False, num_hashes=num_hashes,
                num_buckets=num_buckets, rotations=rotations,
            )  # fmt: skip
            run.forward()
            h, _ = run.final(run.every(inputs.t - 1))
            return ops.linear(h, *self._decoder(run))

        return next_logits


class ReformerForMaskedLM(_LanguageModel):
    """A bidirectional language model: logits (b, t, v) for the tokens in their own places.

    `labels` (b, t); -100, usually at the tokens that are not hidden, is ignored.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForMaskedLM(config, rng=0)
    >>> model(np.arange(10)[None]).logits.shape
    (1, 10, 320)
    """

    ahead = 0

    def _check_config(self, config: ReformerConfig) -> None:
        super()._check_config(config)
        if config.is_decoder:
            raise ValueError("is_decoder: expected False: a masked language model sees both sides")


# ---- classifier and question answering ----


class ReformerForSequenceClassification(_WithLoss):
    """A classifier of whole texts, from the state of the first token: logits (b, num_labels).

    `labels` are, by ``config.problem_type``, classes (b,) of "single_label_classification", zeros
    and ones (b, num_labels) of "multi_label_classification", or numbers (b,) or (b, num_labels) of
    "regression". None: regression if num_labels is 1, else by the labels' dtype, integers being
    classes.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, num_labels=3)
    >>> model = ReformerForSequenceClassification(config, rng=0)
    >>> output = model(np.arange(20).reshape(2, 10), labels=[0, 2])
    >>> output.logits.shape, round(output.loss, 1)
    ((2, 3), 1.1)
    """

    targets = ("labels",)

    def _head_shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        c = config.hidden_size
        dense = _dense_shapes("classifier.dense", c, 2 * c)
        return dense | _dense_shapes("classifier.out_proj", config.num_labels, c)

    def _check_targets(self, inputs: _Inputs, labels: Any) -> tuple[str, np.ndarray]:
        labels, count = np.asarray(labels), self.config.num_labels
        if labels.dtype.kind not in "biuf":
            raise TypeError(f"labels: expected numbers, got {labels.dtype}")
        problem = self.config.problem_type
        if problem is None:
            classes = "single" if labels.dtype.kind in "iu" else "multi"
            problem = "regression" if count == 1 else f"{classes}_label_classification"
        if problem == "single_label_classification":
            if labels.ndim != 1:
                raise ValueError(f"labels: expected shape {(inputs.b,)}, got {labels.shape}")
            labels = _check_ids("labels", labels[None], count, ignore=IGNORE)[0]
            expected: tuple = (inputs.b,)
        else:
            expected = (inputs.b, count)
            if labels.shape == (inputs.b,) and count == 1:
                labels = labels[:, None]
            labels = labels.astype(self.dtype)
        if labels.shape != expected:
            raise ValueError(f"labels: expected shape {expected}, got {labels.shape}")
        return problem, labels

    def _output(self, run: _Pass) -> ReformerOutput:
        return ReformerOutput(logits=self._forward(run)[0])

    def _forward(self, run: _Pass) -> tuple[np.ndarray, list]:
        head = run.weights.below("classifier.")
        h, normed = run.final(run.every(0))
        h = self._drop(run, h, "input")
        u, dense = ops.linear_forward(h, head["dense.weight"], head["dense.bias"])
        u = np.tanh(u)
        z = self._drop(run, u, "output")
        logits, projected = ops.linear_forward(
            z, head["out_proj.weight"], head["out_proj.bias"]
        )
        return logits, [normed, dense, u, projected]

    def _drop(self, run: _Pass, x: np.ndarray, purpose: str) -> np.ndarray:
        """Dropout; also its own derivative."""
        p = self.config.classifier_dropout
        p = self.config.hidden_dropout_prob if p is None else p
        if not run.training or p == 0.0:
            return x
        return ops.dropout(x, p, key=run.key("classifier", purpose))

    def _loss(self, run: _Pass, targets: Any, *, differentiate: bool) -> float:
        problem, labels = targets
        head = run.weights.below("classifier.")
        logits, (normed, dense, u, projected) = self._forward(run)
        loss, dlogits = LOSSES[problem](logits, labels)
        if differentiate:
            dz, dweight, dbias = ops.linear_backward(dlogits, projected)
            head.add_gradient("out_proj.weight", dweight)
            head.add_gradient("out_proj.bias", dbias)
            du = self._drop(run, dz, "output") * (1 - u * u)
            dh, dweight, dbias = ops.linear_backward(du, dense)
            head.add_gradient("dense.weight", dweight)
            head.add_gradient("dense.bias", dbias)
            run.final_backward(run.every(0), self._drop(run, dh, "input"), normed)
        return loss


class ReformerForQuestionAnswering(_WithLoss):
    """Finds where an answer starts and ends in a text: start_logits and end_logits (b, t).

    `start_positions` and `end_positions` are integers (b,); those outside the text are ignored
    (beyond its end) or taken as its first token (negative), as Hugging Face does.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForQuestionAnswering(config, rng=0)
    >>> output = model(np.arange(10)[None], start_positions=[2], end_positions=[4])
    >>> output.start_logits.shape, round(output.loss, 1)
    ((1, 10), 2.3)
    """

    targets = ("start_positions", "end_positions")

    def _check_config(self, config: ReformerConfig) -> None:
        if config.num_labels != 2:
            raise ValueError(
                f"num_labels: expected 2, a start and an end, got {config.num_labels}"
            )

    def _head_shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        return _dense_shapes("qa_outputs", 2, 2 * config.hidden_size)

    def _check_targets(self, inputs: _Inputs, *targets: Any) -> list[np.ndarray]:
        found = []
        for name, places in zip(self.targets, targets, strict=True):
            places = np.asarray(places)
            if places.dtype.kind not in "iu":
                raise TypeError(f"{name}: expected integers, got {places.dtype}")
            if places.shape != (inputs.b,):
                raise ValueError(f"{name}: expected shape {(inputs.b,)}, got {places.shape}")
            places = places.astype(np.int64).clip(0, inputs.t)
            found.append(np.where(places == inputs.t, IGNORE, places))
        return found

    def _output(self, run: _Pass) -> ReformerOutput:
        start, end = self._logits(run)
        return ReformerOutput(start_logits=start, end_logits=end)

    def _logits(self, run: _Pass) -> list[np.ndarray]:
        head = run.weights.below("qa_outputs.")
        logits = run.map_final(2, lambda h: ops.linear(h, head["weight"], head["bias"]))
        return [np.ascontiguousarray(logits[..., i]) for i in range(2)]

    def _loss(self, run: _Pass, targets: Any, *, differentiate: bool) -> float:
        pairs = zip(self._logits(run), targets, strict=True)
        (start, dstart), (end, dend) = (cross_entropy(*pair) for pair in pairs)
        if differentiate:
            inputs, head = run.inputs, run.weights.below("qa_outputs.")
            dlogits = np.zeros((inputs.b, inputs.n, 2), self.dtype)
            dlogits[:, : inputs.t] = np.stack([dstart, dend], axis=-1) / 2
            dlogits = dlogits.reshape(-1, 2)
            for rows in run.blocks():
                h, normed = run.final(rows)
                _, saved = ops.linear_forward(h, head["weight"], head["bias"])
                dh, dweight, dbias = ops.linear_backward(dlogits[rows], saved)
                head.add_gradient("weight", dweight)
                head.add_gradient("bias", dbias)
                run.final_backward(rows, dh, normed)
        return (start + end) / 2


# ---- losses of small logits, with their gradients ----


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over the labels (b,) that count; logits (b, k). nan if none does."""
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    counts = labels != IGNORE
    total = np.count_nonzero(counts)
    if total == 0:
        return math.nan, np.zeros_like(logits)
    rows, labels = np.flatnonzero(counts), labels[counts]
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1.0
    dlogits[~counts] = 0.0
    return float(-log_p[rows, labels].mean()), dlogits / logits.dtype.type(total)


def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of log(1 + exp(z)) - z y; logits and labels (b, k)."""
    loss = np.logaddexp(0, logits) - logits * labels
    p = np.exp(-np.logaddexp(0, -logits))
    return float(loss.mean()), (p - labels) / logits.dtype.type(logits.size)


def mean_squared_error(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of (z - y)^2; logits and labels (b, k)."""
    difference = logits - labels
    return float((difference**2).mean()), 2 * difference / logits.dtype.type(logits.size)


LOSSES = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": mean_squared_error,
}
