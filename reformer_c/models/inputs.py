"""The arguments of a call of a model, and the checked and padded arrays that layers take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import as_array, real_tokens
from .config import ReformerConfig
from .outputs import Requested

if TYPE_CHECKING:
    from ..layers.attention import Observer
    from ..layers.cross_attention import EncoderStates

__all__ = [
    "IGNORE",
    "Call",
    "Inputs",
    "check_ids",
    "check_inputs",
    "check_mask",
    "own_lengths",
    "as_rows",
]

# labels of this value are ignored
IGNORE = -100


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a model.

    Each public method makes one; all that runs below it reads them from here.
    """

    input_ids: Any = None
    attention_mask: Any = None
    position_ids: Any = None
    inputs_embeds: Any = None
    num_hashes: Any = None
    rotations: Any = None
    # seed of all random choices
    seed: int = 0
    training: bool = False
    requested: Requested = field(default_factory=Requested)
    # prefix of the arguments' names in error messages
    argument_prefix: str = ""
    # replaces the configuration's
    num_buckets: Any = None
    # whether each row is computed as if it were alone, see `Pass`; None means only in an evaluation
    # that chooses the number of buckets
    rows_alone: bool | None = False
    # what a decoder attends to; the index of each row's states, if it is not the row's own index
    encoder_states: EncoderStates | None = None
    prompt_index: np.ndarray | None = None
    # they observe the self-attention layers
    observers: tuple[Observer, ...] = ()


@dataclass
class Inputs:
    """Checked inputs, at the length n >= t that the layers run at."""

    input_ids: np.ndarray | None  # (b, n)
    inputs_embeds: np.ndarray | None  # (b, n, c)
    positions: np.ndarray  # (1 or b, n)
    mask: np.ndarray | None  # (b, n)
    b: int
    t: int
    n: int

    @classmethod
    def of_length(cls, b: int, t: int) -> Inputs:
        """Sizes without tokens, for planning."""
        return cls(None, None, np.empty((1, 0)), None, b, t, t)


def padded_length(config: ReformerConfig, t: int, *, masked: bool) -> int:
    """The length to which Hugging Face pads a sequence in evaluation, if that changes results.

    They pad to a common multiple of the chunk lengths. Layers here accept a shorter last chunk,
    with the same result except for what depends on the number of chunks: the chunk that the first
    one looks back to, and the automatic number of buckets; and except for the output of a masked
    token that sees no real token, which depends on the padding.
    """
    lengths = {kind: config.attention(kind, "attn_chunk_length") for kind in config.windows}
    if not lengths or t <= min(lengths.values()) or config.attention_scope == "bucket":
        return t
    n = _round_up(t, math.lcm(*lengths.values()))
    # causal local attention does not see the chunks that wrap around
    circles = {kind for kind in lengths if kind == "lsh" or not config.is_decoder}
    return n if masked or any(_round_up(t, lengths[kind]) != n for kind in circles) else t


def own_lengths(config: ReformerConfig, inputs: Inputs, training: bool) -> np.ndarray | None:
    """The length (b,) at which the layers would run on each row alone, without the padding at its
    end; None if that is n for all."""
    if inputs.mask is None:
        return None
    real = inputs.mask[:, : inputs.t]
    ends = np.where(real.any(axis=1), inputs.t - real[:, ::-1].argmax(axis=1), inputs.t)
    if not training:
        ends = np.array([padded_length(config, int(t), masked=True) for t in ends])
    return None if (ends == inputs.n).all() else ends


def _round_up(t: int, multiple: int) -> int:
    return -(-t // multiple) * multiple


def check_inputs(
    config: ReformerConfig,
    dtype: np.dtype,
    pad: Callable[[], np.ndarray],
    call: Call,
) -> Inputs:
    """Checked and, in evaluation, padded inputs; `pad` returns the vector of the pad token.

    If attention probabilities are requested, inputs are padded even if that changes no result.
    """
    prefix, input_ids, inputs_embeds = call.argument_prefix, call.input_ids, call.inputs_embeds
    ids_name, vectors_name = f"{prefix}input_ids", f"{prefix}inputs_embeds"
    if (input_ids is None) == (inputs_embeds is None):
        raise TypeError(f"{ids_name} or {vectors_name} must be given, and not both")
    if input_ids is not None:
        input_ids = check_ids(ids_name, input_ids, config.vocab_size)
        b, t = input_ids.shape
    else:
        inputs_embeds = as_array(vectors_name, inputs_embeds)
        if inputs_embeds.dtype != dtype:
            raise TypeError(f"{vectors_name} must be {dtype}, got {inputs_embeds.dtype}")
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.hidden_size:
            raise ValueError(
                f"{vectors_name} must have shape (b, t, {config.hidden_size}), "
                f"got {inputs_embeds.shape}"
            )
        b, t, _ = inputs_embeds.shape
    if b == 0 or t == 0:
        name = ids_name if inputs_embeds is None else vectors_name
        raise ValueError(f"{name} must have at least one row of one token, got shape {(b, t)}")
    mask = check_mask(call.attention_mask, b, t, prefix)
    positions = check_positions(call.position_ids, b, t, config.num_positions, prefix)
    whole_chunks = mask is not None or call.requested.attentions
    n = t if call.training else padded_length(config, t, masked=whole_chunks)
    if n > t:
        more = n - t
        mask = np.pad(np.ones((b, t), bool) if mask is None else mask, ((0, 0), (0, more)))
        last = positions[:, -1:] + 1 + np.arange(more)
        positions = np.concatenate([positions, last], axis=1).clip(max=config.num_positions - 1)
        if input_ids is not None:
            pads = ((0, 0), (0, more))
            input_ids = np.pad(input_ids, pads, constant_values=config.padding_id)
        else:
            tail = np.broadcast_to(pad(), (b, more, config.hidden_size))
            inputs_embeds = np.concatenate([inputs_embeds, tail], axis=1)
    return Inputs(input_ids, inputs_embeds, positions, mask, b, t, n)


def as_rows(name: str, values: Any) -> np.ndarray | None:
    """Values (b, t) or (t,) as (b, t); None if they are None."""
    if values is None:
        return None
    values = as_array(name, values)
    rows: np.ndarray = values[None] if values.ndim == 1 else values
    return rows


def check_ids(name: str, ids: Any, count: int, *, ignore: int | None = None) -> np.ndarray:
    """Integers (b, t) in [0, count), or equal to `ignore`."""
    ids = as_array(name, ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape (b, t), got {ids.shape}")
    wrong = (ids < 0) | (ids >= count)
    if ignore is not None:
        wrong &= ids != ignore
    if wrong.any():
        raise ValueError(f"{name} must be in [0, {count}), got {ids[wrong][0]}")
    checked: np.ndarray = ids.astype(np.int64, copy=False)
    return checked


def check_mask(mask: Any, b: int, t: int, prefix: str = "") -> np.ndarray | None:
    """The mask as booleans (b, t); None if all are True."""
    if mask is None:
        return None
    name = f"{prefix}attention_mask"
    mask = as_array(name, mask)
    real = real_tokens(name, mask, (b, t))
    if t > 2 and (np.diff(mask.astype(np.float64), axis=1) == 1).all(axis=1).any():
        # the second place of a call is that of position_ids in some models of transformers
        raise ValueError(
            f"{name} must be nonzero for a real token and 0 for another, got position ids: pass "
            f"them as {prefix}position_ids"
        )
    return None if real.all() else real


def check_positions(position_ids: Any, b: int, t: int, count: int, prefix: str = "") -> np.ndarray:
    if position_ids is None:
        if t > count:
            raise ValueError(
                f"{prefix}input_ids must have at most {count} tokens (positions), got {t}"
            )
        return np.arange(t)[None]
    name = f"{prefix}position_ids"
    positions = as_array(name, position_ids)
    if positions.shape not in {(t,), (1, t), (b, t)}:
        raise ValueError(f"{name} must have shape {(b, t)} or {(t,)}, got {positions.shape}")
    return check_ids(name, positions.reshape(-1, t), count)
