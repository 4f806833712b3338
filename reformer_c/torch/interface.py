"""LSH attention for any model of transformers that uses its `AttentionInterface`.

``attn_implementation="reformer_c_lsh"`` names two functions: `attention_function` attends, and
`attention_mask` says to what, in three forms:

- None: all keys, or by the model's rule of causality those up to the query's position;
- (b, tk), nonzero for a real key: the same without padding;
- (b, 1, tq, tk): any other rule, such as that of a sliding window or of packed sequences.

The first two are hashed. The third is computed exactly, on blocks of queries and the keys that they
see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..checks import (
    INT32_MAX,
    bucket_factors,
    flag,
    integer,
    names_keywords,
    refuse_unknown,
    requires_extra,
)
from .attention import full_attention, lsh_attention
from .imports import when_imported
from .prompt_index import attend_by_index, forget

__all__ = ["attention_function", "attention_mask", "use_lsh_attention"]

NAME = "reformer_c_lsh"
# queries that are attended at a time under a mask of pairs
ROWS = 512
# new tokens of a step of decoding, at most: an assistant may propose several
STEP = 32
# arguments of an attention function that change its result in ways that are not computed here
REFUSED = ("s_aux", "sinks", "indices", "block_indices", "head_mask")


@dataclass(frozen=True)
class Settings:
    """How a model's attention is hashed, see `use_lsh_attention`; checked."""

    num_hashes: int = 4
    num_buckets: int | Sequence[int] | None = None
    local_window: int | None = 64
    minimum_length: int = 2048
    hash_seed: int | None = 0
    cache_index: bool = True
    sinks: int = 4

    def __post_init__(self) -> None:
        integer("num_hashes", self.num_hashes, 1)
        if self.num_buckets is not None:
            bucket_factors(self.num_buckets)
        if self.local_window is not None:
            integer("local_window", self.local_window, 0, INT32_MAX)
        integer("minimum_length", self.minimum_length, 1)
        if self.hash_seed is not None:
            integer("hash_seed", self.hash_seed, 0)
        flag("cache_index", self.cache_index)
        integer("sinks", self.sinks, 0)


def _settings_of(module: torch.nn.Module) -> Settings:
    """The settings in the configuration of a module's model."""
    given = getattr(getattr(module, "config", None), NAME, {})
    if not isinstance(given, dict):
        raise TypeError(f"config.{NAME} must be a dict, got {type(given).__name__}")
    refuse_unknown(given, [field.name for field in fields(Settings)], f"config.{NAME}")
    return Settings(**given)


@names_keywords
def use_lsh_attention(
    model: Any,
    *,
    num_hashes: int = Settings.num_hashes,
    num_buckets: int | Sequence[int] | None = Settings.num_buckets,
    local_window: int | None = Settings.local_window,
    minimum_length: int = Settings.minimum_length,
    hash_seed: int | None = Settings.hash_seed,
    cache_index: bool = Settings.cache_index,
    sinks: int = Settings.sinks,
) -> Any:
    """Make a model of transformers compute its attention on long sequences by hashing.

    It sets ``attn_implementation="reformer_c_lsh"`` and the settings, in the model's configuration
    and with it in its config.json. ``model.set_attn_implementation("sdpa")`` goes back.

    Weights do not change, and need no training: the keys are centred and hashed apart from the
    queries, and a query attends to the keys of its buckets and to those near it, see
    `reformer_c.lsh_attention`. The steps of ``generate`` after a long prompt attend by an index of
    the cache. Exact attention is computed for calls with fewer keys than `minimum_length`, and for
    other calls with fewer queries, and under masks other than padding and causality: sliding
    windows, packed sequences, masks of four dimensions, position biases.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of any kind that uses transformers' `AttentionInterface` (BERT, Llama, Qwen ...), on the
        CPU.
    num_hashes : int
        Rounds: more are closer to exact attention, and slower.
    num_buckets : int or sequence of int, optional
        As in `reformer_c.lsh_attention`; by default of about 32 keys each.
    local_window : int, optional
        A query also sees the keys at most this far from it; None: no more than its buckets.
    minimum_length : int
        Calls with fewer queries or keys than this are exact.
    hash_seed : int, optional
        Layer i draws its rotations from ``hash_seed + i``; None: in each call, by PyTorch's
        generator.
    cache_index : bool
        Whether the steps of ``generate`` after a prompt of `minimum_length` attend by an index of
        the cache, see `index_of`; otherwise they are exact.
    sinks : int
        How many of the first tokens these steps always see.

    Returns
    -------
    model
        The same.

    Raises
    ------
    TypeError
        It is not a model of transformers, or not of a kind that uses the interface; or a setting
        has another type.
    ValueError
        A setting is out of range.
    ImportError
        transformers is not installed, or has no such interface.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.BertConfig(num_hidden_layers=1, max_position_embeddings=4096)
    >>> model = use_lsh_attention(transformers.BertModel(config).eval(), num_hashes=2)
    >>> with torch.no_grad():
    ...     model(torch.zeros(1, 4096, dtype=torch.int64)).last_hidden_state.shape
    torch.Size([1, 4096, 768])
    """
    settings = Settings(
        num_hashes, num_buckets, local_window, minimum_length, hash_seed, cache_index, sinks
    )
    register()
    from transformers import PretrainedConfig, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a PreTrainedModel of transformers, got {type(model).__name__}"
        )
    model.set_attn_implementation(NAME)
    found = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if isinstance(config, PretrainedConfig)}
    if all(config._attn_implementation != NAME for config in configs.values()):
        raise TypeError(
            "model must be of a kind that uses transformers' AttentionInterface, got "
            f"{type(model).__name__}"
        )
    for config in configs.values():
        setattr(config, NAME, asdict(settings))
    return model


# ---- registration ----


def register() -> None:
    """Register the functions with transformers, which is imported.

    Raises
    ------
    ImportError
        transformers is not installed, or has no such interface.
    """
    if find_spec("transformers") is None:
        raise requires_extra("use_lsh_attention", "transformers", "parity")
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        raise ImportError(
            "use_lsh_attention needs a transformers with AttentionMaskInterface (5.0 or later)"
        ) from error
    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, attention_mask)


# ---- what a query may see ----


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> Tensor | None:
    """The mask that transformers passes to `attention_function`, for its `AttentionMaskInterface`.

    Parameters
    ----------
    batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask
        As transformers calls it: sizes, the first positions of queries and keys, the rule, and the
        padding (b, n).
    local_size, allow_is_causal_skip, allow_is_bidirectional_skip, **options
        The size of a sliding window; whether the rule may be left to the attention function; and
        the rest of what transformers' own functions of this kind take.

    Returns
    -------
    Tensor of bool, or None
        Of one of the forms above. One that is shorter than the keys is of a static cache: the
        others are not written yet.
    """
    from transformers import masking_utils as rules

    # a window that reaches further than the keys hides none
    wide = local_size is not None and kv_length < local_size and kv_offset == 0
    causal = allow_is_causal_skip and (wide or mask_function is rules.causal_mask_function)
    every = allow_is_bidirectional_skip and (
        wide or mask_function is rules.bidirectional_mask_function
    )
    compiled = torch.compiler.is_compiling() and not isinstance(q_offset, int)
    seen = kv_length
    if causal and not compiled:
        seen = int(q_offset) + q_length - kv_offset
    if compiled or not (causal or every) or (causal and not q_length <= seen <= kv_length):
        mask: Tensor | None = rules.sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
            allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **options,
        )  # fmt: skip
        return mask
    if attention_mask is None:
        whole = seen == kv_length
        return None if whole else torch.ones(batch_size, seen, dtype=torch.bool)
    real = attention_mask[:, kv_offset : kv_offset + seen]
    return pad(real, (0, seen - real.shape[1]))


# ---- attention ----


def attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    is_causal: bool | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' `AttentionInterface` calls it: hashed where the sequences are
    long, else exact. See `use_lsh_attention`.

    Parameters
    ----------
    module : torch.nn.Module
        The layer: its ``config.reformer_c_lsh`` holds the settings.
    query : (b, h, tq, d)
    key, value : (b, hk, tk, d)
        hk divides h. Values of another depth than the keys are padded with zeros.
    attention_mask : (b, tk), (b, 1, tq, tk), or None
        As the function `attention_mask` of this module gives it.
    scaling : float, optional
        Of the scores, 1 / sqrt(d) by default.
    dropout : float
        Of the probabilities.
    is_causal : bool, optional
        Whether queries, the last positions of the keys, see no later ones, unless the mask is one
        of pairs; ``module.is_causal`` by default.
    softcap : float, optional
        Soft cap of the scores.
    sliding_window : int, optional
        Only checked: the mask hides what is outside.
    position_bias : Tensor, optional
        Added to the scores; then attention is exact.
    **options
        Others of transformers, which do not change the result.

    Returns
    -------
    out : (b, tq, h, d)
    probabilities : None

    Raises
    ------
    TypeError, ValueError
        Naming an argument that cannot be honoured.
    """
    settings, tq = _settings_of(module), query.shape[2]
    _refuse(options, attention_mask)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    mask = attention_mask
    if mask is not None and mask.ndim not in (2, 4):
        raise ValueError(
            f"attention_mask must have 2 or 4 dimensions, got shape {tuple(mask.shape)}"
        )
    pairs = mask is not None and mask.ndim == 4
    if mask is not None and pairs:
        if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
            raise ValueError(f"attention_mask must be bool or floating point, got {mask.dtype}")
        if mask.dtype == torch.bool and mask.shape[1:3] == (1, 1):  # of keys, for all queries
            mask, pairs, is_causal = mask[:, 0, 0], False, False
    elif sliding_window is not None and key.shape[2] > sliding_window:
        raise ValueError(
            "attention_mask must be one of pairs with a sliding window of "
            f"{sliding_window} tokens in a text of {key.shape[2]}, got {_kind(mask)}"
        )
    if mask is not None and not pairs:
        key, value = (x[:, :, : mask.shape[1]] for x in (key, value))
    tk = key.shape[2]
    newest = bool(is_causal) and tq <= STEP and not pairs
    is_causal = bool(is_causal) and tq > 1 and not pairs
    if is_causal and tq > tk:
        raise ValueError(f"query must have at most {tk} tokens, as key has, got {tq}")
    if position_bias is not None or (mask is not None and mask.dtype.is_floating_point):
        return _biased(module, query, key, value, mask, is_causal, dropout, scaling, softcap,
                       position_bias)  # fmt: skip
    seed, layer = settings.hash_seed, getattr(module, "layer_idx", None) or 0
    seed = None if seed is None else seed + layer
    if (
        newest
        and settings.cache_index
        and settings.minimum_length <= tk > tq
        and _is_plain(query, key, value, dropout)
    ):
        out = attend_by_index(
            module, query, key, value, mask, num_hashes=settings.num_hashes,
            num_buckets=settings.num_buckets, local_window=settings.local_window or 0,
            sinks=settings.sinks, scale=scaling, softcap=softcap, rng=seed,
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None
    forget(module)
    hashed = min(tq, tk) >= settings.minimum_length
    if not pairs and is_causal and tq != tk and not hashed:
        mask, pairs = _pairs(mask, tq, tk), True
    if mask is not None and pairs:
        out = _under_mask(query, key, value, mask, scaling, dropout, softcap)
    else:
        out = _attend(
            query, key, value, mask, is_causal, scaling, dropout, softcap,
            settings if hashed else None, seed,
        )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _is_plain(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether a step is one of decoding, for which an index may be kept."""
    tensors = query, key, value
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return (
        not (dropout or differentiated or torch.compiler.is_compiling())
        and key.shape == value.shape
        and len(query) == len(key)
        and query.shape[-1] == key.shape[-1]
    )


def _refuse(options: dict[str, Any], mask: Tensor | None) -> None:
    """Refuse what would change the result, and is not computed here."""
    for name in REFUSED:
        if options.get(name) is not None:
            raise ValueError(
                f"{name} must be None with attn_implementation={NAME!r}, got a "
                f"{type(options[name]).__name__}"
            )
    if options.get("output_attentions"):
        raise ValueError(
            f"output_attentions must be False with attn_implementation={NAME!r}, got True: "
            "'eager' has probabilities"
        )
    packed = options.get("cu_seq_lens_q")
    if packed is not None and len(packed) > 2 and (mask is None or mask.ndim == 2):
        raise ValueError(
            "attention_mask must be one of pairs for packed sequences (cu_seq_lens_q), got "
            f"{_kind(mask)}: pass their position_ids, and no attention_mask and no cache"
        )


def _kind(mask: Tensor | None) -> str:
    return "None" if mask is None else f"one of shape {tuple(mask.shape)}"


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    settings: Settings | None,
    seed: int | None,
) -> Tensor:
    """Attention to all real keys, hashed or exact: the result (b, h, tq, depth of the values)."""
    d, depth = query.shape[-1], value.shape[-1]
    if d != depth:
        scaling = d**-0.5 if scaling is None else scaling
        query, key, value = (pad(x, (0, max(d, depth) - x.shape[-1])) for x in (query, key, value))
    b = max(len(query), len(key))
    query, key, value = (x.expand(b, *x.shape[1:]) for x in (query, key, value))
    if mask is not None:
        mask = mask.expand(b, -1)
    options: dict[str, Any] = dict(
        attention_mask=mask, is_causal=is_causal, scale=scaling, dropout=dropout, softcap=softcap
    )
    if settings is None:
        return full_attention(query, key, value, **options)[..., :depth]
    out = lsh_attention(
        query, value, k=key, scope="bucket", num_hashes=settings.num_hashes,
        num_buckets=settings.num_buckets, local_window=settings.local_window,
        allow_duplicate_attention=False, rng=seed, **options,
    )  # fmt: skip
    return out[..., :depth]


def _pairs(mask: Tensor | None, tq: int, tk: int) -> Tensor:
    """The mask of pairs of a causal call, whose queries are the last positions."""
    pairs = torch.ones(tq, tk, dtype=torch.bool).tril(tk - tq)[None, None]
    return pairs if mask is None else pairs & mask[:, None, None]


def _under_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Exact attention under a mask of pairs, on a block of queries and the keys from the first to
    the last that it sees at a time."""
    groups, out = query.shape[1] // key.shape[1], []
    for start in range(0, query.shape[2], ROWS):
        some = mask if mask.shape[2] == 1 else mask[:, :, start : start + ROWS]
        keys = slice(None)
        if not torch.compiler.is_compiling():
            seen = some.flatten(0, 2).any(0).nonzero()
            keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)
        k, v = (x[:, :, keys].repeat_interleave(groups, 1) for x in (key, value))
        q, some = query[:, :, start : start + ROWS], some[..., keys]
        if softcap is None:
            out.append(scaled_dot_product_attention(q, k, v, some, dropout, scale=scaling))
            continue
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~some, -torch.inf)
        shares = torch.nan_to_num(scores.softmax(-1))  # 0 for a query without keys
        out.append(torch.dropout(shares, dropout, train=True) @ v)
    return torch.cat(out, 2) if out else query[..., : value.shape[-1]]


def _biased(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    position_bias: Tensor | None,
) -> tuple[Tensor, None]:
    """transformers' own exact attention, for scores to which something is added."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if is_causal:
        mask = _pairs(mask, query.shape[2], key.shape[2])
    elif mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    out, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout, scaling, is_causal=False,
        position_bias=position_bias, softcap=softcap,
    )  # fmt: skip
    return out, None


when_imported("transformers.modeling_utils", register)
