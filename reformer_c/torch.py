"""The attention operations and the feed-forward as PyTorch operators, with gradients.

Tensors on the CPU are used where they lie, and results are written where PyTorch will read them.
`patch` makes a Hugging Face Reformer run on this core. As many threads work as PyTorch uses
(``torch.set_num_threads``).

Each is an operator of ``torch.ops.reformer_c``, so `torch.compile` takes it as it is; there it
returns, beside the result, what its backward pass needs. Derivatives are those of one backward
pass: forward mode raises NotImplementedError, gradients of gradients RuntimeError.

>>> import torch
>>> import reformer_c.torch
>>> qk, v = torch.randn(2, 1, 8, 1000, 64).requires_grad_()
>>> out = reformer_c.torch.lsh_attention(qk, v, num_hashes=2, is_causal=True)
>>> out.sum().backward()

Extra: ``pip install "reformer_c[torch]"``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops
from .activations import WEIGHTED
from .config import ACTIVATIONS
from .ops._arguments import factors_of, heads, whole
from .ops.attention import (
    Attention,
    AttentionSaved,
    bucket_ids,
    full_rule,
    local_rule,
    lsh_rule,
)
from .ops.layers import FeedForwardSaved

__all__ = [
    "feed_forward",
    "full_attention",
    "local_attention",
    "lsh_attention",
    "patch",
    "unpatch",
]

HALVES = (torch.bfloat16, torch.float16)

# ---- tensors and arrays ----


def _refuse_tangent(x: Tensor) -> None:
    """Operators of Python have no rule for tangents, and PyTorch would drop them in silence, as if
    the derivative were 0."""
    if forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(
            "reformer_c.torch has no derivatives in forward mode (torch.func.jvp, jacfwd, "
            "hessian): use backward() or torch.autograd.grad"
        )


def _array(x: Tensor | None) -> Any:
    """The tensor's own memory."""
    if x is None:
        return None
    _refuse_tangent(x)
    return x.detach().numpy()


def _mask(x: Tensor | None) -> np.ndarray | None:
    return _array(x.float() if x is not None and x.dtype in HALVES else x)


def _like(x: Tensor) -> Tensor:
    """Where a result of this shape goes: laid out as x, but with a last axis that is contiguous."""
    return torch.empty_like(x) if x.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype)


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """The array's own memory, if it is laid out as `_like` promises."""
    x, promised = torch.from_numpy(array), _like(like)
    return x if x.stride() == promised.stride() else promised.copy_(x)


def _leading(x: Tensor) -> tuple[int, int]:
    """b and h of (b, h, t, d), (h, t, d) or (t, d)."""
    b, h = (1, 1, *x.shape[:-2])[-2:]
    return b, h


def _key(dropout: float, key: int | None) -> int:
    """The key of a call's dropout, of 63 bits; drawn by PyTorch's generator where it is None."""
    if key is None:
        return int(torch.randint(2**63 - 1, ())) if dropout else 0
    if whole(key, "dropout_key", 0, 2**63) == 2**63:
        raise ValueError(f"dropout_key must be below 2**63, got {key}")
    return int(key)


def _checked(
    reals: dict[str, Tensor], optional: dict[str, Tensor | None], others: dict[str, Tensor | None]
) -> list[Any]:
    """The tensors: all on the CPU, and float32 or float64 but for the others. Under autocast halves
    become float32."""
    found = []
    for name, x in (reals | optional | others).items():
        if not isinstance(x, Tensor) and (x is not None or name in reals):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x is not None:
            # here too: below, the tangents of torch.func are not seen any more
            _refuse_tangent(x)
        if x is not None and x.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {x.device}: pass {name}.cpu()")
        if x is not None and name not in others:
            if x.dtype in HALVES and torch.is_autocast_enabled("cpu"):
                x = x.float()
            if x.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"{name} must be float32 or float64, got {x.dtype}: pass {name}.float()"
                )
        found.append(x)
    return found


def _windows(m: Any, before: Any, after: Any) -> tuple[int, int, int]:
    m = whole(m, "chunk_length", 1)
    return m, whole(before, "num_chunks_before", 0), whole(after, "num_chunks_after", 0)


# ---- the operators ----


def _operator(
    schema: str,
    forward: Callable,
    fake: Callable,
    autograd: tuple[Callable, Callable] | None = None,
) -> Any:
    """Register ``reformer_c::name``, on the CPU."""
    name, _, arguments = schema.partition("(")
    operator = torch.library.custom_op(
        f"reformer_c::{name}", forward, mutates_args=(), device_types="cpu", schema=f"({arguments}"
    )
    operator.register_fake(fake)
    if autograd is not None:
        setup, backward = autograd
        operator.register_autograd(backward, setup_context=setup)
    return operator


def _saved(
    rule: Attention,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    attention_mask: Tensor | None,
    buckets: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> AttentionSaved:
    return AttentionSaved(
        rule, _array(q), _array(k), _array(v),
        _mask(attention_mask), _array(buckets), _array(out), _array(lse),
    )  # fmt: skip


def _attended(q: Tensor) -> tuple[Tensor, Tensor]:
    """out and lse of a call, empty."""
    return _like(q), torch.empty((*_leading(q), q.shape[-2]), dtype=q.dtype)


# ---- full and local attention: of q, k and v ----


def _full(q, k, v, attention_mask, *, shared_qk, **rules):
    out = _like(q)
    _, saved = ops.full_attention_forward(
        _array(q), _array(k), _array(v),
        attention_mask=_mask(attention_mask), shared_qk=shared_qk, out=out.numpy(),
        workers=torch.get_num_threads(), **rules,
    )  # fmt: skip
    return out, torch.from_numpy(saved.lse)


def _local(q, k, v, attention_mask, **rules):
    out = _like(q)
    _, saved = ops.local_attention_forward(
        _array(q), _array(k), _array(v), attention_mask=_mask(attention_mask),
        out=out.numpy(), workers=torch.get_num_threads(), **rules,
    )  # fmt: skip
    return out, torch.from_numpy(saved.lse)


def _save_attention(ctx, inputs, keyword_only_inputs, output):
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*inputs, out, lse)
    ctx.rules = keyword_only_inputs


def _full_backward(dout, q, k, v, attention_mask, out, lse, **rules):
    rule = full_rule(q.shape[-1], **rules)
    saved = _saved(rule, q, k, v, attention_mask, None, out, lse)
    dq, dk, dv = ops.full_attention_backward(_array(dout), saved, workers=torch.get_num_threads())
    nothing = torch.empty(0, dtype=q.dtype)
    return _tensor(dq, q), nothing if k is None else _tensor(dk, k), _tensor(dv, v)


def _local_backward(dout, q, k, v, attention_mask, out, lse, **rules):
    rule = local_rule(*q.shape[-2:], **rules)
    saved = _saved(rule, q, k, v, attention_mask, None, out, lse)
    dq, dk, dv = ops.local_attention_backward(_array(dout), saved, workers=torch.get_num_threads())
    return _tensor(dq, q), _tensor(dk, k), _tensor(dv, v)


def _fake_gradients(dout, q, k, v, attention_mask, out, lse, **rules):
    return _like(q), torch.empty(0, dtype=q.dtype) if k is None else _like(k), _like(v)


_FULL_RULES = "bool is_causal, float? scale, bool shared_qk, float dropout, int dropout_key"
_LOCAL_RULES = (
    "int chunk_length, int num_chunks_before, int num_chunks_after, bool is_causal, float? scale, "
    "bool wrap, float dropout, int dropout_key"
)
_GRADIENTS = "(Tensor dq, Tensor dk, Tensor dv)"

_full_backward_operator = _operator(
    "full_attention_backward(Tensor dout, Tensor q, Tensor? k, Tensor v, Tensor? attention_mask, "
    f"Tensor out, Tensor lse, *, {_FULL_RULES}) -> {_GRADIENTS}",
    _full_backward,
    _fake_gradients,
)
_local_backward_operator = _operator(
    "local_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? attention_mask, "
    f"Tensor out, Tensor lse, *, {_LOCAL_RULES}) -> {_GRADIENTS}",
    _local_backward,
    _fake_gradients,
)


def _differentiate_full(ctx, dout, dlse):
    dq, dk, dv = _full_backward_operator(dout, *ctx.saved_tensors, **ctx.rules)
    return dq, None if ctx.rules["shared_qk"] else dk, dv, None


def _differentiate_local(ctx, dout, dlse):
    return *_local_backward_operator(dout, *ctx.saved_tensors, **ctx.rules), None


_full_operator = _operator(
    "full_attention(Tensor q, Tensor? k, Tensor v, Tensor? attention_mask, *, "
    f"{_FULL_RULES}) -> (Tensor out, Tensor lse)",
    _full,
    lambda q, *others, **rules: _attended(q),
    (_save_attention, _differentiate_full),
)
_local_operator = _operator(
    "local_attention(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, *, "
    f"{_LOCAL_RULES}) -> (Tensor out, Tensor lse)",
    _local,
    lambda q, *others, **rules: _attended(q),
    (_save_attention, _differentiate_local),
)


def full_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    is_causal: bool = False,
    attention_mask: Tensor | None = None,
    scale: float | None = None,
    shared_qk: bool = False,
    dropout: float = 0.0,
    dropout_key: int | None = None,
) -> Tensor:
    """`reformer_c.full_attention` of tensors.

    Parameters
    ----------
    q, k, v, is_causal, attention_mask, scale, shared_qk, dropout
        As there.
    dropout_key : int, optional
        In [0, 2**63). Drawn by PyTorch's generator by default.

    Returns
    -------
    Tensor, (b, h, t, d)

    Raises
    ------
    TypeError, ValueError
        For another dtype, device, shape or range, naming the argument.

    Examples
    --------
    >>> q, k, v = torch.zeros(3, 2), torch.zeros(3, 2), torch.eye(3, 2)
    >>> full_attention(q, k, v, is_causal=True)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.3333, 0.3333]])
    """
    q, v, k, attention_mask = _checked(
        {"q": q, "v": v}, {"k": k}, {"attention_mask": attention_mask}
    )
    return _full_operator(
        q, k, v, attention_mask, is_causal=is_causal, scale=scale, shared_qk=shared_qk,
        dropout=dropout, dropout_key=_key(dropout, dropout_key),
    )[0]  # fmt: skip


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: Tensor | None = None,
    scale: float | None = None,
    wrap: bool = False,
    dropout: float = 0.0,
    dropout_key: int | None = None,
) -> Tensor:
    """`reformer_c.local_attention` of tensors.

    Parameters
    ----------
    q, k, v, chunk_length, num_chunks_before, num_chunks_after, is_causal, attention_mask, scale, \
wrap, dropout
        As there.
    dropout_key : int, optional
        In [0, 2**63). Drawn by PyTorch's generator by default.

    Returns
    -------
    Tensor, (b, h, t, d)

    Raises
    ------
    TypeError, ValueError
        For another dtype, device, shape or range, naming the argument.

    Examples
    --------
    >>> q, k, v = torch.zeros(4, 1), torch.zeros(4, 1), torch.arange(4.0)[:, None]
    >>> local_attention(q, k, v, chunk_length=2, is_causal=True)[:, 0]
    tensor([0.0000, 0.5000, 1.0000, 1.5000])
    """
    q, k, v, attention_mask = _checked(
        {"q": q, "k": k, "v": v}, {}, {"attention_mask": attention_mask}
    )
    chunk_length, num_chunks_before, num_chunks_after = _windows(
        chunk_length, num_chunks_before, num_chunks_after
    )
    return _local_operator(
        q, k, v, attention_mask, chunk_length=chunk_length, num_chunks_before=num_chunks_before,
        num_chunks_after=num_chunks_after, is_causal=is_causal, scale=scale, wrap=wrap,
        dropout=dropout, dropout_key=_key(dropout, dropout_key),
    )[0]  # fmt: skip


# ---- LSH attention ----


def _lsh(qk, v, attention_mask, rotations, buckets, *, num_hashes, num_buckets, **rules):
    out = _like(qk)
    _, saved = ops.lsh_attention_forward(
        _array(qk), _array(v), attention_mask=_mask(attention_mask),
        rotations=_array(rotations),
        buckets=_array(buckets), num_hashes=num_hashes, num_buckets=num_buckets,
        out=out.numpy(), workers=torch.get_num_threads(), **rules,
    )  # fmt: skip
    # an operator may not return its own input
    made = saved.buckets if buckets is None else None
    ids = torch.empty(0, dtype=torch.int32) if made is None else torch.from_numpy(made)
    return out, torch.from_numpy(saved.lse), ids.reshape(-1) if made is None else ids


def _fake_lsh(qk, v, attention_mask, rotations, buckets, *, num_hashes, num_buckets, **rules):
    one_chunk = qk.shape[-2] <= rules["chunk_length"] and rules["scope"] == "chunk"
    shape: tuple[int, ...] = (*qk.shape[:-2], num_hashes, qk.shape[-2])
    if one_chunk or buckets is not None:
        shape = (0,)
    return *_attended(qk), torch.empty(shape, dtype=torch.int32)


def _save_lsh(ctx, inputs, keyword_only_inputs, output):
    qk, v, attention_mask, _, buckets = inputs
    out, lse, made = output
    ctx.mark_non_differentiable(lse, made)
    one_chunk = buckets is None and made.ndim == 1
    buckets = None if one_chunk else made if buckets is None else buckets
    ctx.save_for_backward(qk, v, attention_mask, buckets, out, lse)
    ctx.rules = {k: x for k, x in keyword_only_inputs.items() if k != "num_hashes"}


def _lsh_backward(dout, qk, v, attention_mask, buckets, out, lse, *, num_buckets, **rules):
    rule = lsh_rule(*qk.shape[-2:], **rules)
    saved = _saved(rule, qk, None, v, attention_mask, buckets, out, lse)
    if buckets is not None:
        factors = None if num_buckets is None else factors_of(num_buckets)
        ids = bucket_ids(saved.buckets, factors, saved.attention_mask)
        saved = saved._replace(rule=rule._replace(num_buckets=ids))
    dqk, dv = ops.lsh_attention_backward(_array(dout), saved, workers=torch.get_num_threads())
    return _tensor(dqk, qk), _tensor(dv, v)


def _differentiate_lsh(ctx, dout, dlse, dbuckets):
    dqk, dv = _lsh_backward_operator(dout, *ctx.saved_tensors, **ctx.rules)
    return dqk, dv, None, None, None


_LSH_RULES = (
    "int[]? num_buckets, int chunk_length, int num_chunks_before, int num_chunks_after, "
    "bool is_causal, str scope, int? bucket_cap, float? scale, bool attend_across_buckets, "
    "bool allow_duplicate_attention, bool wrap, float dropout, int dropout_key"
)
_lsh_backward_operator = _operator(
    "lsh_attention_backward(Tensor dout, Tensor qk, Tensor v, Tensor? attention_mask, "
    f"Tensor? buckets, Tensor out, Tensor lse, *, {_LSH_RULES}) -> (Tensor dqk, Tensor dv)",
    _lsh_backward,
    lambda dout, qk, v, *others, **rules: (_like(qk), _like(v)),
)
_lsh_operator = _operator(
    "lsh_attention(Tensor qk, Tensor v, Tensor? attention_mask, Tensor? rotations, "
    f"Tensor? buckets, *, int num_hashes, {_LSH_RULES}) -> "
    "(Tensor out, Tensor lse, Tensor buckets)",
    _lsh,
    _fake_lsh,
    (_save_lsh, _differentiate_lsh),
)


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    *,
    num_hashes: int = 1,
    num_buckets: int | Sequence[int] | None = None,
    chunk_length: int = 64,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    is_causal: bool = False,
    attention_mask: Tensor | None = None,
    scope: str = "chunk",
    bucket_cap: int | None = None,
    rotations: Tensor | None = None,
    buckets: Tensor | None = None,
    rng: int | torch.Generator | None = None,
    scale: float | None = None,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
    wrap: bool = True,
    dropout: float = 0.0,
    dropout_key: int | None = None,
) -> Tensor:
    """`reformer_c.lsh_attention` of tensors.

    Parameters
    ----------
    qk, v, num_hashes, num_buckets, chunk_length, num_chunks_before, num_chunks_after, is_causal, \
attention_mask, scope, bucket_cap, rotations, buckets, scale, attend_across_buckets, \
allow_duplicate_attention, wrap, dropout
        As there.
    rng : int, torch.Generator or None
        Draws the rotations where neither rotations nor buckets are given: an int those of
        `reformer_c.lsh_rotations`, else PyTorch.
    dropout_key : int, optional
        In [0, 2**63). Drawn by PyTorch's generator by default.

    Returns
    -------
    Tensor, (b, h, t, d)

    Raises
    ------
    TypeError, ValueError
        For another dtype, device, shape or range, naming the argument.
    IndexError
        For a bucket out of range.

    Examples
    --------
    >>> qk, v = torch.randn(2, 1, 4, 1000, 32)
    >>> out = lsh_attention(qk, v, num_hashes=2, rng=0)
    >>> same = ops.lsh_attention(qk.numpy(), v.numpy(), num_hashes=2, rng=0)
    >>> bool((out.numpy() == same).all())
    True
    """
    qk, v, rotations, attention_mask, buckets = _checked(
        {"qk": qk, "v": v},
        {"rotations": rotations},
        {"attention_mask": attention_mask, "buckets": buckets},
    )
    num_hashes = whole(num_hashes, "num_hashes", 1)
    chunk_length, num_chunks_before, num_chunks_after = _windows(
        chunk_length, num_chunks_before, num_chunks_after
    )
    if (rotations is not None) + (buckets is not None) + (rng is not None) > 1:
        raise ValueError("rotations, buckets and rng each decide the buckets: pass one of them")
    if rotations is None and buckets is None:
        _, h = _leading(qk)
        t, d = qk.shape[-2:] if qk.ndim > 1 else heads(qk, "qk")[2:]
        factors = factors_of(
            ops.choose_num_buckets(t, chunk_length) if num_buckets is None else num_buckets
        )
        rotations = _rotations(qk, h, d, num_hashes, factors, rng)
        num_buckets = factors
    return _lsh_operator(
        qk, v, attention_mask, rotations, buckets, num_hashes=num_hashes,
        num_buckets=None if num_buckets is None else factors_of(num_buckets),
        chunk_length=chunk_length, num_chunks_before=num_chunks_before,
        num_chunks_after=num_chunks_after, is_causal=is_causal, scope=scope, bucket_cap=bucket_cap,
        scale=scale, attend_across_buckets=attend_across_buckets,
        allow_duplicate_attention=allow_duplicate_attention, wrap=wrap, dropout=dropout,
        dropout_key=_key(dropout, dropout_key),
    )[0]  # fmt: skip


def _rotations(
    qk: Tensor,
    h: int,
    d: int,
    num_hashes: int,
    factors: tuple[int, ...],
    rng: int | torch.Generator | None,
) -> Tensor:
    if rng is None or isinstance(rng, torch.Generator):
        shape = (h, d, num_hashes, sum(factors) // 2)
        return torch.randn(shape, dtype=qk.dtype, generator=rng)
    kind = np.float64 if qk.dtype == torch.float64 else np.float32
    drawn = ops.lsh_rotations(h, d, num_hashes=num_hashes, num_buckets=factors, rng=rng, dtype=kind)
    return torch.from_numpy(drawn)


# ---- feed-forward ----


def _feed_forward(x, w1, b1, w2, b2, **rules):
    out = _like(x)
    ops.feed_forward(
        *map(_array, (x, w1, b1, w2, b2)), out=out.numpy(), workers=torch.get_num_threads(),
        **rules,
    )  # fmt: skip
    return out


def _feed_forward_backward(dout, x, w1, b1, w2, b2, **rules):
    inputs = x, w1, b1, w2, b2
    saved = FeedForwardSaved(*map(_array, inputs), **rules)
    gradients = ops.feed_forward_backward(_array(dout), saved, workers=torch.get_num_threads())
    return tuple(_tensor(g, tensor) for g, tensor in zip(gradients, inputs, strict=True))


def _save_feed_forward(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.rules = keyword_only_inputs


def _differentiate_feed_forward(ctx, dout):
    return _feed_forward_backward_operator(dout, *ctx.saved_tensors, **ctx.rules)


_FEED_FORWARD = "Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_FEED_FORWARD_RULES = "str activation, int chunk_length, float dropout, int dropout_key"
_feed_forward_backward_operator = _operator(
    f"feed_forward_backward(Tensor dout, {_FEED_FORWARD}, *, {_FEED_FORWARD_RULES}) -> "
    "(Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)",
    _feed_forward_backward,
    lambda dout, *inputs, **rules: tuple(_like(x) for x in inputs),
)
_feed_forward_operator = _operator(
    f"feed_forward({_FEED_FORWARD}, *, {_FEED_FORWARD_RULES}) -> Tensor",
    _feed_forward,
    lambda x, *weights, **rules: _like(x),
    (_save_feed_forward, _differentiate_feed_forward),
)


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: str = "relu",
    chunk_length: int = 0,
    dropout: float = 0.0,
    dropout_key: int | None = None,
) -> Tensor:
    """`reformer_c.feed_forward` of tensors: two linear layers, the hidden one a piece at a time.

    Parameters
    ----------
    x, w1, b1, w2, b2, activation, chunk_length, dropout
        As there; w1, b1, w2 and b2 are what two ``torch.nn.Linear`` hold.
    dropout_key : int, optional
        In [0, 2**63). Drawn by PyTorch's generator by default.

    Returns
    -------
    Tensor, (..., c)

    Raises
    ------
    TypeError, ValueError
        For another dtype, device, shape or range, naming the argument.

    Examples
    --------
    >>> w1, w2 = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])
    >>> feed_forward(torch.tensor([[-2.0], [3.0]]), w1, torch.zeros(2), w2, torch.zeros(1))
    tensor([[2.],
            [3.]])
    """
    x, w1, b1, w2, b2 = _checked({"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2}, {}, {})
    chunk_length = whole(chunk_length, "chunk_length", 0)
    return _feed_forward_operator(
        x, w1, b1, w2, b2, activation=activation, chunk_length=chunk_length, dropout=dropout,
        dropout_key=_key(dropout, dropout_key),
    )  # fmt: skip


# ---- a model of transformers ----


def patch(model: torch.nn.Module) -> torch.nn.Module:
    """Make a Reformer of Hugging Face's transformers run its layers on this core.

    Its attention layers and its feed-forward layers compute here from now on, forward and backward;
    everything else stays as it is. The numbers are the same, but for rounding, and for one thing:
    with dropout, the backward pass of an LSH layer drops what its forward pass has dropped, so that
    the gradients are those of the loss. (There it does not: the hash draws in between.)

    A call goes the old way where it asks for attention probabilities, where it continues a cache,
    under autocast, and where tensors are not float32 or float64 on the CPU; a feed-forward layer
    also where its linear layers have been replaced, or have hooks.

    Parameters
    ----------
    model : ReformerModel, ReformerModelWithLMHead, ReformerForMaskedLM ...
        Changed in place; `unpatch` takes it back.

    Returns
    -------
    model
        The same.

    Raises
    ------
    TypeError
        If there is no layer of a Reformer in it.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.ReformerConfig(attn_layers=["local", "lsh"], num_hashes=2)
    >>> model = patch(transformers.ReformerModel(config).eval())
    >>> with torch.no_grad():
    ...     model(torch.arange(256)[None]).last_hidden_state.shape
    torch.Size([1, 256, 512])
    """
    if not isinstance(model, torch.nn.Module) or not _patch_below(model, None):
        raise TypeError(
            f"model must be a Reformer of transformers, got {type(model).__name__} without one"
        )
    return model


def _patch_below(module: torch.nn.Module, config: Any) -> bool:
    """Patch a module's layers, under the nearest configuration above them; are there any?"""
    config = getattr(module, "config", config)
    forward = _FORWARDS.get(type(module).__name__)
    if forward is _feed_forward_layer:
        name = getattr(config, "hidden_act", None)
        # those with weights of their own, and what is no name, stay with torch
        activation = ACTIVATIONS.get(name) if isinstance(name, str) else None
        if activation is not None and activation not in WEIGHTED:
            module.forward = partial(forward, module, activation=activation)
    elif forward is not None:
        module.forward = partial(forward, module)
    found = [_patch_below(child, config) for child in module.children()]
    return forward is not None or any(found)


def unpatch(model: torch.nn.Module) -> torch.nn.Module:
    """Take `patch` back.

    Parameters
    ----------
    model : torch.nn.Module
        Patched or not.

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
        if type(layer).__name__ in _FORWARDS:
            vars(layer).pop("forward", None)
    return model


def _runs_here(x: Tensor) -> bool:
    # under autocast a layer of theirs gives bfloat16
    real = x.dtype in (torch.float32, torch.float64)
    return real and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _is_plain(part: Any) -> bool:
    """Half of a feed-forward layer whose weights may be read past it: its linear layer is nobody's
    own kind, and neither has hooks or a forward of its own."""
    linear = part.dense
    for module in (part, linear):
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
                 module._backward_pre_hooks)  # fmt: skip
        if any(hooks) or "forward" in vars(module):
            return False
    return type(linear) is torch.nn.Linear and linear.bias is not None


def _continues(layer: Any, past_buckets_states: Any) -> bool:
    return past_buckets_states is not None and len(past_buckets_states) > layer.layer_idx


def _heads(layer: Any, x: Tensor) -> Tensor:
    """(b, t, h d) -> (b, h, t, d), the same memory."""
    return x.unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _result(layer: Any, name: str, **fields: Any) -> Any:
    """The tuple that the layer's own forward returns."""
    return getattr(sys.modules[type(layer).__module__], name)(**fields)


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
    q, k, v = (_heads(self, f(hidden_states)) for f in (self.query, self.key, self.value))
    out = local_attention(
        q, k, v, chunk_length=self.chunk_length, num_chunks_before=self.num_chunks_before,
        num_chunks_after=self.num_chunks_after, is_causal=self.is_decoder, wrap=True,
        attention_mask=attention_mask, dropout=self.dropout if self.training else 0.0,
    )  # fmt: skip
    return _result(self, "LocalSelfAttentionOutput", hidden_states=_merged(out), attention_probs=())


def _lsh_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    num_hashes: int | None = None,
    buckets: Tensor | None = None,
    past_buckets_states: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    **kwargs: Any,
) -> Any:
    if output_attentions or _continues(self, past_buckets_states) or not _runs_here(hidden_states):
        return type(self).forward(
            self, hidden_states, attention_mask=attention_mask, num_hashes=num_hashes,
            buckets=buckets, past_buckets_states=past_buckets_states, use_cache=use_cache,
            output_attentions=output_attentions, **kwargs,
        )  # fmt: skip
    qk, v = (_heads(self, f(hidden_states)) for f in (self.query_key, self.value))
    rounds = self.num_hashes if num_hashes is None else num_hashes
    rules = {
        "num_hashes": rounds, "chunk_length": self.chunk_length, "is_causal": self.is_decoder,
        "num_chunks_before": self.num_chunks_before, "num_chunks_after": self.num_chunks_after,
        "attention_mask": attention_mask, "dropout": self.dropout if self.training else 0.0,
    }  # fmt: skip
    # before the rotations: the backward pass, seeded alike, is given buckets and draws none
    rules["dropout_key"] = _key(rules["dropout"], None)
    t = qk.shape[-2]
    if t > self.chunk_length:
        if self.num_buckets is None:
            self._set_num_buckets(t)
        factors = factors_of(self.num_buckets)
        # theirs count on from round to round, with one more for padding
        padded = attention_mask is not None and not bool((attention_mask != 0).all())
        steps = torch.arange(rounds)[:, None] * (math.prod(factors) + padded)
        if buckets is None:
            # in training the draws leave no trace, so that both passes drop alike behind them
            with torch.random.fork_rng(devices=(), enabled=self.training):
                buckets = _their_hash(self, qk, rounds, factors, attention_mask) + steps
        rules["buckets"] = buckets.view(*qk.shape[:2], rounds, t) - steps
        rules["num_buckets"] = factors
    else:
        rules["rng"] = 0  # nothing is drawn for one chunk
    return _result(
        self, "LSHSelfAttentionOutput", hidden_states=_merged(lsh_attention(qk, v, **rules)),
        attention_probs=(), buckets=buckets,
    )  # fmt: skip


def _their_hash(
    layer: Any,
    qk: Tensor,
    num_hashes: int,
    factors: tuple[int, ...],
    attention_mask: Tensor | None,
) -> Tensor:
    """The buckets of the rotations that the layer itself would draw."""
    if layer.hash_seed is not None:
        torch.manual_seed(layer.hash_seed)
    rotations = torch.randn(
        (qk.shape[1], qk.shape[-1], num_hashes, sum(factors) // 2), dtype=qk.dtype
    )
    ids = ops.lsh_hash(
        _array(qk), num_hashes=num_hashes, num_buckets=factors,
        rotations=_array(rotations), attention_mask=_mask(attention_mask),
        workers=torch.get_num_threads(),
    )  # fmt: skip
    return torch.from_numpy(ids).long()


def _feed_forward_layer(self: Any, attention_output: Tensor, *, activation: str) -> Tensor:
    hidden = self.dense
    plain = all(_is_plain(layer) for layer in (hidden, self.output))
    if not plain or not _runs_here(attention_output):
        return type(self).forward(self, attention_output)
    out = feed_forward(
        self.layer_norm(attention_output), hidden.dense.weight, hidden.dense.bias,
        self.output.dense.weight, self.output.dense.bias, activation=activation,
        chunk_length=self.chunk_size_feed_forward,
        dropout=hidden.dropout if self.training else 0.0,
    )  # fmt: skip
    return torch.nn.functional.dropout(out, self.output.dropout, self.training)


_FORWARDS: dict[str, Callable] = {
    "ChunkReformerFeedForward": _feed_forward_layer,
    "LocalSelfAttention": _local_forward,
    "LSHSelfAttention": _lsh_forward,
}
