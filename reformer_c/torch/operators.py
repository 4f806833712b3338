"""The operations as operators of PyTorch, ``torch.ops.reformer_c``, with their gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import ops
from ..checks import bucket_factors, count, heads_of, integer
from ..ops.attention import AttentionSaved, AttentionSpec, bucket_ids
from ..ops.layers import FeedForwardSaved
from ..precision import resolve_precision

__all__ = [
    "feed_forward",
    "full_attention",
    "local_attention",
    "lsh_attention",
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


def array_of(x: Tensor | None) -> Any:
    """The tensor's own memory."""
    if x is None:
        return None
    _refuse_tangent(x)
    return x.detach().numpy()


def mask_of(x: Tensor | None) -> np.ndarray | None:
    return array_of(x.float() if x is not None and x.dtype in HALVES else x)


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


def draw_key(dropout: float, key: int | None) -> int:
    """The key of a call's dropout, of 63 bits; drawn by PyTorch's generator where it is None."""
    if key is None:
        return int(torch.randint(2**63 - 1, ())) if dropout else 0
    return integer("dropout_key", key, 0, 2**63 - 1)


def _precision(given: str | None) -> str | None:
    """The precision of a call, forward and backward. The setting cannot be read while torch.compile
    traces the call: compiled code uses the setting at the time when it runs."""
    return given if torch.compiler.is_compiling() else resolve_precision(given)


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
    m = count("chunk_length", m, 1)
    return m, count("num_chunks_before", before, 0), count("num_chunks_after", after, 0)


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


_PRECISION = "str? matmul_precision=None"
# the types of an AttentionSpec's fields, in a schema
_SCHEMA_TYPES = {
    "int": "int", "bool": "bool", "float": "float", "str": "str", "int | None": "int?",
    "float | None": "float?", "str | None": "str?", "int | Sequence[int] | None": "int[]?",
}  # fmt: skip


def _options_of(op: Callable, *, without: str = "") -> str:
    """The schema of the options of an attention, in the order of its signature."""
    types = {field.name: _SCHEMA_TYPES[str(field.type)] for field in fields(AttentionSpec)}
    names = [name for name in inspect.signature(op).parameters if name in types]
    options = {name: f"{types[name]} {name}" for name in names if name != without}
    return ", ".join((options | {"matmul_precision": _PRECISION}).values())


def _saved(
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    attention_mask: Tensor | None,
    buckets: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> AttentionSaved:
    return AttentionSaved(
        spec, array_of(q), array_of(k), array_of(v), mask_of(attention_mask), 0, array_of(buckets),
        array_of(out), array_of(lse),
    )  # fmt: skip


def _attended(q: Tensor) -> tuple[Tensor, Tensor]:
    """out and lse of a call, empty."""
    return _like(q), torch.empty((*_leading(q), q.shape[-2]), dtype=q.dtype)


# ---- full and local attention: of q, k and v ----


def _full(q, k, v, attention_mask, *, shared_qk, **rules):
    out = _like(q)
    _, saved = ops.full_attention_forward(
        array_of(q), array_of(k), array_of(v),
        attention_mask=mask_of(attention_mask), shared_qk=shared_qk, out=out.numpy(),
        workers=torch.get_num_threads(), **rules,
    )  # fmt: skip
    return out, torch.from_numpy(saved.lse)


def _local(q, k, v, attention_mask, **rules):
    out = _like(q)
    _, saved = ops.local_attention_forward(
        array_of(q), array_of(k), array_of(v), attention_mask=mask_of(attention_mask),
        out=out.numpy(), workers=torch.get_num_threads(), **rules,
    )  # fmt: skip
    return out, torch.from_numpy(saved.lse)


def _save_attention(ctx, inputs, keyword_only_inputs, output):
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*inputs, out, lse)
    ctx.rules = keyword_only_inputs


def _full_backward(dout, q, k, v, attention_mask, out, lse, **rules):
    saved = _saved(AttentionSpec("full", **rules), q, k, v, attention_mask, None, out, lse)
    dq, dk, dv = ops.full_attention_backward(array_of(dout), saved, workers=torch.get_num_threads())
    nothing = torch.empty(0, dtype=q.dtype)
    return _tensor(dq, q), nothing if k is None else _tensor(dk, k), _tensor(dv, v)


def _local_backward(dout, q, k, v, attention_mask, out, lse, **rules):
    saved = _saved(AttentionSpec("local", **rules), q, k, v, attention_mask, None, out, lse)
    dq, dk, dv = ops.local_attention_backward(
        array_of(dout), saved, workers=torch.get_num_threads()
    )
    return _tensor(dq, q), _tensor(dk, k), _tensor(dv, v)


def _fake_gradients(dout, q, k, v, attention_mask, out, lse, **rules):
    return _like(q), torch.empty(0, dtype=q.dtype) if k is None else _like(k), _like(v)


_FULL_RULES = _options_of(ops.full_attention)
_LOCAL_RULES = _options_of(ops.local_attention)
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
    softcap: float | None = None,
    shared_qk: bool = False,
    dropout: float = 0.0,
    dropout_key: int | None = None,
    matmul_precision: str | None = None,
) -> Tensor:
    """`reformer_c.full_attention` of tensors.

    Parameters
    ----------
    q, k, v, is_causal, attention_mask, scale, softcap, shared_qk, dropout, \
matmul_precision
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
        q, k, v, attention_mask, is_causal=is_causal, scale=scale, softcap=softcap,
        shared_qk=shared_qk, dropout=dropout, dropout_key=draw_key(dropout, dropout_key),
        matmul_precision=_precision(matmul_precision),
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
    softcap: float | None = None,
    wrap: bool = False,
    dropout: float = 0.0,
    dropout_key: int | None = None,
    matmul_precision: str | None = None,
) -> Tensor:
    """`reformer_c.local_attention` of tensors.

    Parameters
    ----------
    q, k, v, chunk_length, num_chunks_before, num_chunks_after, is_causal, attention_mask, scale, \
softcap, wrap, dropout, matmul_precision
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
        num_chunks_after=num_chunks_after, is_causal=is_causal, scale=scale, softcap=softcap,
        wrap=wrap, dropout=dropout, dropout_key=draw_key(dropout, dropout_key),
        matmul_precision=_precision(matmul_precision),
    )[0]  # fmt: skip


# ---- LSH attention ----


def _lsh(qk, v, attention_mask, rotations, buckets, *, num_hashes, num_buckets, **rules):
    out = _like(qk)
    _, saved = ops.lsh_attention_forward(
        array_of(qk), array_of(v), attention_mask=mask_of(attention_mask),
        rotations=array_of(rotations),
        buckets=array_of(buckets), num_hashes=num_hashes, num_buckets=num_buckets,
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


def _lsh_backward(dout, qk, v, attention_mask, buckets, out, lse, **rules):
    spec = AttentionSpec("lsh", shared_qk=True, **rules)
    saved = _saved(spec, qk, None, v, attention_mask, buckets, out, lse)
    if buckets is not None:
        ids = bucket_ids(saved.buckets, spec.num_buckets, saved.attention_mask)
        saved = saved._replace(bucket_ids=ids)
    dqk, dv = ops.lsh_attention_backward(array_of(dout), saved, workers=torch.get_num_threads())
    return _tensor(dqk, qk), _tensor(dv, v)


def _differentiate_lsh(ctx, dout, dlse, dbuckets):
    dqk, dv = _lsh_backward_operator(dout, *ctx.saved_tensors, **ctx.rules)
    return dqk, dv, None, None, None


_LSH_RULES = _options_of(ops.lsh_attention, without="num_hashes")
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
    softcap: float | None = None,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
    wrap: bool = True,
    dropout: float = 0.0,
    dropout_key: int | None = None,
    matmul_precision: str | None = None,
) -> Tensor:
    """`reformer_c.lsh_attention` of tensors.

    Parameters
    ----------
    qk, v, num_hashes, num_buckets, chunk_length, num_chunks_before, num_chunks_after, is_causal, \
attention_mask, scope, bucket_cap, rotations, buckets, scale, softcap, attend_across_buckets, \
allow_duplicate_attention, wrap, dropout, matmul_precision
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
    return lsh_attention_results(
        qk, v, num_hashes=num_hashes, num_buckets=num_buckets, chunk_length=chunk_length,
        num_chunks_before=num_chunks_before, num_chunks_after=num_chunks_after,
        is_causal=is_causal, attention_mask=attention_mask, scope=scope, bucket_cap=bucket_cap,
        rotations=rotations, buckets=buckets, rng=rng, scale=scale, softcap=softcap,
        attend_across_buckets=attend_across_buckets,
        allow_duplicate_attention=allow_duplicate_attention, wrap=wrap, dropout=dropout,
        dropout_key=dropout_key, matmul_precision=matmul_precision,
    )[0]  # fmt: skip


def lsh_attention_results(
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
    softcap: float | None = None,
    attend_across_buckets: bool = True,
    allow_duplicate_attention: bool = True,
    wrap: bool = True,
    dropout: float = 0.0,
    dropout_key: int | None = None,
    matmul_precision: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lsh_attention`, and what else its operator returns: the log-sum-exp (b, h, t), -inf
    where a token found no key but itself in all of several rounds, and the buckets it drew."""
    qk, v, rotations, attention_mask, buckets = _checked(
        {"qk": qk, "v": v},
        {"rotations": rotations},
        {"attention_mask": attention_mask, "buckets": buckets},
    )
    num_hashes = count("num_hashes", num_hashes, 1)
    chunk_length, num_chunks_before, num_chunks_after = _windows(
        chunk_length, num_chunks_before, num_chunks_after
    )
    if (rotations is not None) + (buckets is not None) + (rng is not None) > 1:
        raise ValueError("rotations, buckets and rng each decide the buckets: pass one of them")
    if rotations is None and buckets is None:
        _, h = _leading(qk)
        t, d = qk.shape[-2:] if qk.ndim > 1 else heads_of("qk", qk)[2:]
        factors = bucket_factors(
            ops.choose_num_buckets(t, chunk_length) if num_buckets is None else num_buckets
        )
        rotations = _rotations(qk, h, d, num_hashes, factors, rng)
        num_buckets = factors
    return _lsh_operator(
        qk, v, attention_mask, rotations, buckets, num_hashes=num_hashes,
        num_buckets=None if num_buckets is None else bucket_factors(num_buckets),
        chunk_length=chunk_length, num_chunks_before=num_chunks_before,
        num_chunks_after=num_chunks_after, is_causal=is_causal, scope=scope, bucket_cap=bucket_cap,
        scale=scale, softcap=softcap, attend_across_buckets=attend_across_buckets,
        allow_duplicate_attention=allow_duplicate_attention, wrap=wrap, dropout=dropout,
        dropout_key=draw_key(dropout, dropout_key),
        matmul_precision=_precision(matmul_precision),
    )  # fmt: skip


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
        *map(array_of, (x, w1, b1, w2, b2)), out=out.numpy(), workers=torch.get_num_threads(),
        **rules,
    )  # fmt: skip
    return out


def _feed_forward_backward(dout, x, w1, b1, w2, b2, **rules):
    inputs = x, w1, b1, w2, b2
    saved = FeedForwardSaved(*map(array_of, inputs), **rules)
    gradients = ops.feed_forward_backward(array_of(dout), saved, workers=torch.get_num_threads())
    return tuple(_tensor(g, tensor) for g, tensor in zip(gradients, inputs, strict=True))


def _save_feed_forward(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.rules = keyword_only_inputs


def _differentiate_feed_forward(ctx, dout):
    return _feed_forward_backward_operator(dout, *ctx.saved_tensors, **ctx.rules)


_FEED_FORWARD = "Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_FEED_FORWARD_RULES = (
    f"str activation, int chunk_length, float dropout, int dropout_key, {_PRECISION}"
)
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
    matmul_precision: str | None = None,
) -> Tensor:
    """`reformer_c.feed_forward` of tensors: two linear layers, the hidden one a piece at a time.

    Parameters
    ----------
    x, w1, b1, w2, b2, activation, chunk_length, dropout, matmul_precision
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
    chunk_length = count("chunk_length", chunk_length, 0)
    return _feed_forward_operator(
        x, w1, b1, w2, b2, activation=activation, chunk_length=chunk_length, dropout=dropout,
        dropout_key=draw_key(dropout, dropout_key),
        matmul_precision=_precision(matmul_precision),
    )  # fmt: skip
