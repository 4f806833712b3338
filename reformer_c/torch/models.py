"""Models of transformers and of reformer_pytorch, with layers that run on these kernels.

Layers are recognised by class, not by name: the class that the library's module defines, if the
program has imported it, or a subclass that overrides none of its methods.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..checks import bucket_factors, flag
from ..layers.activations import WEIGHTED
from ..models.config_keys import ACTIVATIONS
from .attention import full_attention, local_attention, lsh_attention, lsh_attention_results
from .layers import feed_forward
from .tensors import array_of, computed, draw_key, mask_of

__all__ = ["patch", "unpatch"]

TRANSFORMERS = "transformers.models.reformer.modeling_reformer"
LUCIDRAINS = "reformer_pytorch.reformer_pytorch"


def patch(
    model: torch.nn.Module,
    *,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
) -> torch.nn.Module:
    """Make a Reformer of transformers or of reformer_pytorch run its layers on these kernels.

    In a model of transformers, this replaces the forward and backward pass of the attention and
    feed-forward layers; in one of reformer_pytorch, that of `LSHSelfAttention`, with its local
    heads and its full attention. Weights and everything else are unchanged. Results are equal up to
    rounding, except:

    - with dropout, the backward pass of transformers' LSH layer drops the same units as its forward
      pass, so the gradients are those of the loss;
    - reformer_pytorch's layers accept any length, without an Autopadder;
    - with ``attn_chunks`` above 1, the backward pass of reformer_pytorch's reversible blocks uses
      the buckets of each part's forward pass, not those of the last part for all.

    Half precision and autocast are computed in float32 within an operation, and buckets are those
    of float32.

    The original code still runs calls that return attention probabilities, that continue a cache or
    whose tensors are not on the CPU; feed-forward layers whose linear layers are replaced or have
    hooks; and in reformer_pytorch, calls in half precision, under autocast, with `input_attn_mask`
    or a `callback`, and causal calls with `keys`.

    Parameters
    ----------
    model : torch.nn.Module
        ReformerModel, ReformerModelWithLMHead ... of transformers, Reformer, ReformerLM ... of
        reformer_pytorch, one of their layers, or a module that contains them. It is changed in
        place, except layers that have their own `forward` or whose class overrides methods.
        `unpatch` restores it.
    attend_across_buckets, allow_duplicate_attention : bool
        Of transformers' LSH layers, see `lsh_attention`; their own code has both. If one is False,
        calls that the original code would run are refused. (Layers of reformer_pytorch have options
        of these names.)

    Returns
    -------
    model
        The same.

    Raises
    ------
    TypeError
        It has no layer that can be patched, or a layer of reformer_pytorch has an option that is
        not supported (``rehash_each_round=False``; ``num_mem_kv`` in a causal layer). The message
        names the option, and nothing is changed.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.ReformerConfig(attn_layers=["local", "lsh"], num_hashes=2)
    >>> model = patch(transformers.ReformerModel(config).eval())
    >>> with torch.no_grad():
    ...     model(torch.arange(256)[None]).last_hidden_state.shape
    torch.Size([1, 256, 512])
    """
    found = list(_replacements(model, None)) if isinstance(model, torch.nn.Module) else []
    if not found:
        raise TypeError(
            "model must be a Reformer of transformers or of reformer_pytorch, got "
            f"{type(model).__name__} without a layer of theirs whose methods are unchanged"
        )
    attended = {
        "attend_across_buckets": flag("attend_across_buckets", attend_across_buckets),
        "allow_duplicate_attention": flag("allow_duplicate_attention", allow_duplicate_attention),
    }
    changed = [name for name, value in attended.items() if not value]
    hashing = [new for _, new in found if new is not None and new.func is _lsh_forward]
    if changed and not hashing:
        raise TypeError(
            f"{changed[0]} must be True for a model without an LSH layer of transformers, got False"
        )
    for new in hashing:
        new.keywords["attended"] = attended
    for layer, forward in found:
        if forward is not None:
            layer.forward = forward
    return model


def unpatch(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `patch`.

    Parameters
    ----------
    model : torch.nn.Module
        A model, patched or not.

    Returns
    -------
    model
        The same.

    Examples
    --------
    >>> import transformers
    >>> model = transformers.ReformerModel(transformers.ReformerConfig(attn_layers=["local"]))
    >>> unpatch(patch(model)) is model
    True
    """
    for layer in model.modules():
        if _is_patched(layer):
            del layer.forward
    return model


def _replacements(
    module: torch.nn.Module, config: Any
) -> Iterator[tuple[torch.nn.Module, partial[Any] | None]]:
    """The recognised layers of a module and their new forwards; None for a layer that keeps its
    own. `config` is that of the nearest module above that has one."""
    config = getattr(module, "config", config)
    known = _library_class(module)
    if known is not None and _is_unchanged(module, known):
        yield module, _forward_of(module, known, config)
    for child in module.children():
        yield from _replacements(child, config)


def _forward_of(layer: torch.nn.Module, known: type, config: Any) -> partial[Any] | None:
    forward = _FORWARDS[known.__module__][known.__name__]
    if forward is _shared_forward:
        reason = _unsupported(layer)
        if reason is not None:
            raise TypeError(f"model has an LSHSelfAttention that cannot be patched: {reason}")
    if forward is not _feed_forward_layer:
        return partial(forward, layer)
    name = getattr(config, "hidden_act", None)
    # an activation with weights, or one that is not given by name, is left to PyTorch
    activation = ACTIVATIONS.get(name) if isinstance(name, str) else None
    if activation is None or activation in WEIGHTED:
        return None
    return partial(forward, layer, activation=activation)


def _library_class(module: torch.nn.Module) -> type | None:
    """The class of transformers or reformer_pytorch that a layer is an instance of."""
    for library, forwards in _FORWARDS.items():
        for name in forwards:
            known = getattr(sys.modules.get(library), name, None)
            if isinstance(known, type) and isinstance(module, known):
                return known
    return None


def _is_unchanged(module: torch.nn.Module, known: type) -> bool:
    """Whether an instance of a library's class runs the library's methods."""
    if _is_patched(module):
        return True
    return "forward" not in vars(module) and all(
        _is_the_librarys(module, name, known)
        for base in known.__mro__ if base.__module__ == known.__module__
        for name, value in vars(base).items() if callable(value) and name != "__init__"
    )  # fmt: skip


def _is_the_librarys(module: torch.nn.Module, name: str, known: type) -> bool:
    method = getattr(type(module), name)
    return name not in vars(module) and method.__module__ == known.__module__


def _is_patched(module: torch.nn.Module) -> bool:
    forward = vars(module).get("forward")
    ours = (f for forwards in _FORWARDS.values() for f in forwards.values())
    return isinstance(forward, partial) and forward.func in ours


def _runs_here(x: Tensor) -> bool:
    return x.is_floating_point() and x.device.type == "cpu"


def _is_whole(x: Tensor) -> bool:
    """Whether a call is neither in half precision nor under autocast."""
    return computed(x.dtype) == x.dtype and not torch.is_autocast_enabled("cpu")


def _heads(x: Tensor, h: int) -> Tensor:
    """(b, t, h d) -> (b, h, t, d), the same memory."""
    return x.view(*x.shape[:-1], h, x.shape[-1] // h).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


# ---- transformers ----


def _is_plain(part: Any) -> bool:
    """Whether the weights of half of a feed-forward layer can be used without calling it: its
    linear layer is of PyTorch's own class, and neither has hooks or its own forward."""
    linear = part.dense
    for module in (part, linear):
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
                 module._backward_pre_hooks)  # fmt: skip
        if any(hooks) or "forward" in vars(module):
            return False
    return type(linear) is torch.nn.Linear and linear.bias is not None


def _continues(layer: Any, past_buckets_states: Any) -> bool:
    return past_buckets_states is not None and len(past_buckets_states) > layer.layer_idx


def _result(name: str, **fields: Any) -> Any:
    """The named tuple that the original forward returns."""
    return getattr(sys.modules[TRANSFORMERS], name)(**fields)


def _local_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_buckets_states: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    **kwargs: Any,
) -> Any:
    if output_attentions or _continues(self, past_buckets_states) or not _runs_here(hidden_states):
        return type(self).forward(
            self, hidden_states, attention_mask=attention_mask, use_cache=use_cache,
            past_buckets_states=past_buckets_states, output_attentions=output_attentions, **kwargs,
        )  # fmt: skip
    h = self.num_attention_heads
    q, k, v = (_heads(f(hidden_states), h) for f in (self.query, self.key, self.value))
    out = local_attention(
        q, k, v, chunk_length=self.chunk_length, num_chunks_before=self.num_chunks_before,
        num_chunks_after=self.num_chunks_after, is_causal=self.is_decoder, wrap=True,
        attention_mask=attention_mask, dropout=self.dropout if self.training else 0.0,
    )  # fmt: skip
    return _result("LocalSelfAttentionOutput", hidden_states=_merged(out), attention_probs=())


def _lsh_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    num_hashes: int | None = None,
    buckets: Tensor | None = None,
    past_buckets_states: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    *,
    attended: dict[str, bool],
    **kwargs: Any,
) -> Any:
    if output_attentions or _continues(self, past_buckets_states) or not _runs_here(hidden_states):
        for name in (name for name, value in attended.items() if not value):
            raise TypeError(
                f"{name}=False is not known to transformers' own code, which would run this call: "
                "hidden_states must be on the CPU, and "
                "output_attentions and past_buckets_states must not be given"
            )
        return type(self).forward(
            self, hidden_states, attention_mask=attention_mask, num_hashes=num_hashes,
            buckets=buckets, past_buckets_states=past_buckets_states, use_cache=use_cache,
            output_attentions=output_attentions, **kwargs,
        )  # fmt: skip
    h = self.num_attention_heads
    qk, v = (_heads(f(hidden_states), h) for f in (self.query_key, self.value))
    rounds = self.num_hashes if num_hashes is None else num_hashes
    rules = {
        "num_hashes": rounds, "chunk_length": self.chunk_length, "is_causal": self.is_decoder,
        "num_chunks_before": self.num_chunks_before, "num_chunks_after": self.num_chunks_after,
        "attention_mask": attention_mask, "dropout": self.dropout if self.training else 0.0,
        **attended,
    }  # fmt: skip
    # drawn before the rotations: the backward pass starts from the same seed, but gets buckets
    # instead of drawing rotations
    rules["dropout_key"] = draw_key(rules["dropout"], None)
    t = qk.shape[-2]
    if t > self.chunk_length:
        if self.num_buckets is None:
            self._set_num_buckets(t)
        factors = bucket_factors(self.num_buckets)  # pyright: ignore
        # transformers numbers buckets consecutively over rounds, with one more for padding
        padded = attention_mask is not None and not bool((attention_mask != 0).all())
        steps = torch.arange(rounds)[:, None] * (math.prod(factors) + padded)
        if buckets is None:
            # in training the generator's state is restored, so that the dropout after it is the
            # same in both passes
            with torch.random.fork_rng(devices=(), enabled=self.training):
                buckets = _their_hash(self, qk, rounds, factors, attention_mask) + steps
        rules["buckets"] = buckets.view(*qk.shape[:2], rounds, t) - steps
        rules["num_buckets"] = factors
    else:
        rules["rng"] = 0  # nothing is drawn for one chunk
    return _result(
        "LSHSelfAttentionOutput", hidden_states=_merged(lsh_attention(qk, v, **rules)),
        attention_probs=(), buckets=buckets,
    )  # fmt: skip


def _their_hash(
    layer: Any,
    qk: Tensor,
    num_hashes: int,
    factors: tuple[int, ...],
    attention_mask: Tensor | None,
) -> Tensor:
    """The buckets for the rotations that the original layer would draw."""
    if layer.hash_seed is not None:
        torch.manual_seed(layer.hash_seed)
    rotations = torch.randn(
        (qk.shape[1], qk.shape[-1], num_hashes, sum(factors) // 2), dtype=qk.dtype
    )
    ids = ops.lsh_hash(
        array_of(qk), num_hashes=num_hashes, num_buckets=factors,
        rotations=array_of(rotations), attention_mask=mask_of(attention_mask),
        workers=torch.get_num_threads(),
    )  # fmt: skip
    return torch.from_numpy(ids).long()


def _feed_forward_layer(self: Any, attention_output: Tensor, *, activation: str) -> Tensor:
    hidden = self.dense
    plain = all(_is_plain(layer) for layer in (hidden, self.output))
    if not plain or not _runs_here(attention_output):
        out: Tensor = type(self).forward(self, attention_output)
        return out
    out = feed_forward(
        self.layer_norm(attention_output), hidden.dense.weight, hidden.dense.bias,
        self.output.dense.weight, self.output.dense.bias, activation=activation,
        chunk_length=self.chunk_size_feed_forward,
        dropout=hidden.dropout if self.training else 0.0,
    )  # fmt: skip
    return torch.nn.functional.dropout(out, self.output.dropout, self.training)


# ---- reformer_pytorch ----

# Queries are multiplied by this power of 2, and scores divided by it. The norm of a key is clamped
# to 1e-6 here and to 1e-12 in reformer_pytorch; for large keys this makes no difference.
LARGE = 1024.0


def _unsupported(layer: Any) -> str | None:
    """Why a layer cannot be patched: an option that has no counterpart here; None if it can."""
    library, lsh, local = sys.modules[LUCIDRAINS], layer.lsh_attn, layer.local_attn
    for name, part, known in (
        ("lsh_attn", lsh, library.LSHAttention),
        ("full_attn", layer.full_attn, library.FullQKAttention),
        ("local_attn", local, library.LocalAttention),
    ):
        own = "forward" in vars(part) or type(part).forward is not known.forward
        if not isinstance(part, known) or own:
            return f"{name} must be a {known.__name__}, got {type(part).__name__}"
    if not lsh._rehash_each_round:
        return "rehash_each_round must be True, got False"
    if lsh.n_hashes > 1 and lsh._attend_across_buckets and not lsh._allow_duplicate_attention:
        # the original counts the keys of the previous round, which a round's first chunk sees, as
        # 0 times, and so adds log 1e9 to their scores
        return (
            "allow_duplicate_attention must be True, or attend_across_buckets False, with "
            f"{lsh.n_hashes} hashes, got False"
        )
    if layer.num_mem_kv and lsh.causal:
        return f"num_mem_kv must be 0 in a causal layer, got {layer.num_mem_kv}"
    for name, expected in (("shared_qk", True), ("scale", None), ("rel_pos", None),
                           ("exact_windowsize", False), ("autopad", False)):  # fmt: skip
        if layer.n_local_attn_heads and getattr(local, name, expected) != expected:
            return f"local_attn.{name} must be {expected}, got {getattr(local, name)}"
    return None


def _shared_forward(
    self: Any,
    x: Tensor,
    keys: Tensor | None = None,
    input_mask: Tensor | None = None,
    input_attn_mask: Tensor | None = None,
    context_mask: Tensor | None = None,
    pos_emb: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    others = kwargs.keys() - {"_reverse", "_depth"}
    context = keys is not None or context_mask is not None
    if (
        input_attn_mask is not None or self.callback is not None or others
        or (context and (keys is None or self.lsh_attn.causal))
        or not _runs_here(x) or not _is_whole(x) or _unsupported(self) is not None
    ):  # fmt: skip
        theirs: Tensor = type(self).forward(
            self, x, keys=keys, input_mask=input_mask, input_attn_mask=input_attn_mask,
            context_mask=context_mask, pos_emb=pos_emb, **kwargs,
        )  # fmt: skip
        return theirs
    t, local = x.shape[1], self.n_local_attn_heads
    # memory and context are appended to the sequence, and their outputs are dropped
    more = [y.expand(len(x), -1, -1) for y in (self.mem_kv, keys) if y is not None]
    seen = torch.cat((x, *more), dim=1)
    mask = _whole_mask(self, x, keys, input_mask, context_mask)
    qk = _heads(self.toqk(seen), self.heads) * LARGE
    v = _heads(self.tov(seen).repeat(1, 1, self.v_head_repeats), self.heads)
    parts = []
    if local:
        parts.append(_local_heads(self, qk[:, :local, :t], v[:, :local, :t], input_mask))
    qk, v = qk[:, local:], v[:, local:]
    rules = {"is_causal": self.lsh_attn.causal, "scale": _scale(qk)}
    if self.use_full_attn or qk.shape[2] <= self.full_attn_thres:
        out = full_attention(
            qk, None, v, shared_qk=True, attention_mask=mask,
            dropout=_dropout(self.full_attn.dropout), **rules,
        )  # fmt: skip
        if mask is not None:  # in the original, a masked token attends to all tokens equally
            out = torch.where(mask.bool()[:, None, :, None], out, v.mean(dim=2, keepdim=True))
    else:
        out = _hashed_heads(self, qk, v, mask, pos_emb, rules, **kwargs)
    parts.append(out[:, :, :t])
    whole: Tensor = self.post_attn_dropout(self.to_out(_merged(torch.cat(parts, dim=1))))
    return whole


def _whole_mask(
    layer: Any, x: Tensor, keys: Tensor | None, input_mask: Tensor | None,
    context_mask: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """The mask (b, t + m + c) of the sequence, the memory and the context."""
    if input_mask is None and context_mask is None:
        return None
    lengths = x.shape[1], layer.num_mem_kv, 0 if keys is None else keys.shape[1]
    masks = (input_mask, None, context_mask)
    return torch.cat(
        [torch.ones(len(x), n, dtype=torch.bool) if mask is None else mask
         for mask, n in zip(masks, lengths, strict=True)], dim=1,
    )  # fmt: skip


def _scale(qk: Tensor) -> float:
    # keys have norm 1 in the original, sqrt(d) here
    scale: float = 1.0 / (qk.shape[-1] * LARGE)
    return scale


def _dropout(module: Any) -> float:
    p: float = module.p if module.training else 0.0
    return p


def _local_heads(layer: Any, qk: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Shared queries and keys in windows of the sequence."""
    local = layer.local_attn
    return local_attention(
        qk, None, v, shared_qk=True, chunk_length=local.window_size,
        num_chunks_before=local.look_backward, num_chunks_after=local.look_forward,
        is_causal=local.causal, attention_mask=mask, dropout=_dropout(local.dropout),
        scale=_scale(qk),
    )  # fmt: skip


def _hashed_heads(
    layer: Any, qk: Tensor, v: Tensor, mask: Tensor | None, pos_emb: Tensor | None,
    rules: dict[str, Any], *, _reverse: bool = False, _depth: int | None = None,
) -> Tensor:  # fmt: skip
    lsh, t = layer.lsh_attn, qk.shape[2]
    # as for the next length that the original accepts
    num_buckets = 2 * -(-t // (2 * lsh.bucket_size))
    buckets = _shared_buckets(layer, qk, num_buckets, _reverse, _depth)
    if pos_emb is not None:
        turn = sys.modules[LUCIDRAINS].apply_rotary_pos_emb
        qk = turn(qk.flatten(0, 1), pos_emb).unflatten(0, qk.shape[:2])
    dropout = _dropout(lsh.dropout)
    out, lse, _ = lsh_attention_results(
        qk, v, buckets=buckets, num_buckets=num_buckets, num_hashes=lsh.n_hashes,
        chunk_length=lsh.bucket_size, attention_mask=mask, dropout=dropout,
        attend_across_buckets=lsh._attend_across_buckets,
        allow_duplicate_attention=lsh._allow_duplicate_attention, **rules,
    )  # fmt: skip
    # in the original, a masked token sees only itself
    alone = torch.zeros_like(lse, dtype=torch.bool) if dropout else lse.isneginf()
    if mask is not None:
        alone = alone | ~mask.bool()[:, None]
    if bool(alone.any()):
        out = torch.where(alone[..., None], v * _weight_alone(lsh, buckets, v.dtype), out)
    return out


def _weight_alone(lsh: Any, buckets: Tensor, dtype: torch.dtype) -> Tensor:
    """The total weight (b, h, t, 1) of the value of a token that sees only itself in every round.

    It is 1 up to rounding, which in float32 is visible: the score is as large as 5e4.
    """
    t, m = buckets.shape[-1], lsh.bucket_size
    times = torch.ones_like(buckets, dtype=dtype)  # how often it sees itself in a round
    if lsh._attend_across_buckets:
        # twice if it is in the first chunk, and in the last chunk of the previous round
        places = buckets.long() * t + torch.arange(t)
        edges = (min(m, t), False), ((t - 1) % m + 1, True)
        first, last = (
            torch.zeros_like(places, dtype=torch.bool).scatter_(
                -1, places.topk(n, largest=largest, sorted=False).indices, True
            )
            for n, largest in edges
        )
        times += first & last.roll(1, 2)
    score = sys.modules[LUCIDRAINS].TOKEN_SELF_ATTN_VALUE
    lse = score + times.log()
    of_rounds = (lse - lse.logsumexp(2, keepdim=True)).exp()
    total: Tensor = (of_rounds * times * (score - lse).exp()).sum(2)[..., None]
    return total


def _shared_buckets(
    layer: Any, qk: Tensor, num_buckets: int, reverse: bool, depth: int | None
) -> Tensor:
    """The buckets (b, h, num_hashes, t) that the original layer would draw. In the backward pass of
    a reversible block, which runs the layer again, they are those of the forward pass."""
    lsh, merged = layer.lsh_attn, qk.detach().flatten(0, 1)
    parts = merged.chunk(layer.attn_chunks)  # each draws its own rotations
    shape = (*qk.shape[:2], lsh.n_hashes, qk.shape[2])
    if not _is_the_librarys(lsh, "hash_vectors", sys.modules[LUCIDRAINS].LSHAttention):
        ids = [
            lsh.hash_vectors(
                num_buckets, part / LARGE, key_namespace=f"{depth}.{i}" if i else depth,
                fetch=reverse, set_cache=layer.training,
            )
            for i, part in enumerate(parts)
        ]  # fmt: skip
        return torch.cat(ids).view(shape) - num_buckets * torch.arange(lsh.n_hashes)[:, None]
    # also drawn in the backward pass, so that the numbers drawn after it are the same
    hashes, name = [_draw_hash(lsh, part, num_buckets) for part in parts], f"reformer_c:{depth}"
    if reverse:
        buckets: Tensor = lsh._cache[name]
        if buckets.shape != shape:
            raise RuntimeError("LSHSelfAttention: another forward pass came before this backward")
        return buckets
    ids = [
        ops.lsh_hash(
            array_of(x), num_hashes=lsh.n_hashes, num_buckets=num_buckets,
            rotations=array_of(rotations), workers=torch.get_num_threads(),
        )
        for x, rotations in hashes
    ]  # fmt: skip
    buckets = torch.from_numpy(np.concatenate([x.reshape(-1, *shape[2:]) for x in ids]))
    buckets = buckets.view(shape)
    if layer.training:
        lsh._cache[name] = buckets
    return buckets


def _draw_hash(lsh: Any, x: Tensor, num_buckets: int) -> tuple[Tensor, Tensor]:
    """Vectors (b, h, t, d) and rotations (h, d, num_hashes, num_buckets / 2), drawn as in the
    original: one rotation for all of x (n, t, d), or one for each of n."""
    n = len(x) if lsh._random_rotations_per_head else 1
    rotations = torch.randn((n, x.shape[-1], lsh.n_hashes, num_buckets // 2), dtype=x.dtype)
    x = lsh.dropout_for_hash(x)
    return x[None] if n == len(x) else x[:, None], rotations


# for each library's module, the forwards of the layers that are replaced
_FORWARDS: dict[str, dict[str, Callable[..., Any]]] = {
    TRANSFORMERS: {
        "ChunkReformerFeedForward": _feed_forward_layer,
        "LocalSelfAttention": _local_forward,
        "LSHSelfAttention": _lsh_forward,
    },
    LUCIDRAINS: {"LSHSelfAttention": _shared_forward},
}
