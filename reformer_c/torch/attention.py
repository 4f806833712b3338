"""Full, local and LSH attention as operators of PyTorch, with one backward pass for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..checks import bucket_factors, count, heads_of
from ..ops.attention import COUNTS, AttentionSaved, AttentionSpec
from ..ops.lsh import bucket_ids
from .registration import operator, options_of, schema_of
from .tensors import (
    array_of,
    checked,
    computed,
    like,
    mask_of,
    resolved,
    result_like,
    rounded_to,
    tensor_of,
)

__all__ = ["full_attention", "local_attention", "lsh_attention", "lsh_attention_results"]


# ---- the backward pass of each: an AttentionSaved, field by field ----


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    attention_mask: Tensor | None,
    buckets: Tensor | None,
    key_buckets: Tensor | None,
    out: Tensor,
    lse: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    spec, mask = AttentionSpec(**options), mask_of(attention_mask)
    ids, key_ids = array_of(buckets), array_of(key_buckets)
    factors: Any = spec.num_buckets
    saved = AttentionSaved(
        spec, array_of(q), array_of(k), array_of(v), mask,
        max((bucket_ids(x, factors, mask) for x in (ids, key_ids) if x is not None), default=0),
        ids, key_ids, array_of(out), array_of(lse),
    )  # fmt: skip
    backward = getattr(ops, f"{spec.kind}_attention_backward")
    dq, *of_keys, dv = backward(array_of(dout), saved, workers=torch.get_num_threads())
    # an operator may not return None
    dk = torch.empty(0, dtype=q.dtype) if k is None else tensor_of(of_keys[0], k)
    return tensor_of(dq, q), dk, tensor_of(dv, v)


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor, *others: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return like(q), torch.empty(0, dtype=q.dtype) if k is None else like(k), like(v)


_backward_operator = operator(
    "attention_backward(Tensor dout, Tensor q, Tensor? k, Tensor v, Tensor? attention_mask, "
    f"Tensor? buckets, Tensor? key_buckets, Tensor out, Tensor lse, {schema_of(AttentionSpec)}) -> "
    "(Tensor dq, Tensor dk, Tensor dv)",
    _backward,
    _fake_backward,
)
_DEFAULTS = {field.name: field.default for field in fields(AttentionSpec)}


def _save(ctx: Any, *tensors: Tensor | None, **options: Any) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = {**_DEFAULTS, **options}


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """dq, dk and dv; dk is None if the keys are made from the queries."""
    dq, dk, dv = _backward_operator(dout, *ctx.saved_tensors, **ctx.options)
    return dq, None if ctx.options["shared_qk"] else dk, dv


def _leading(x: Tensor) -> tuple[int, int]:
    """b and h of (b, h, t, d), (h, t, d) or (t, d)."""
    b, h = (1, 1, *x.shape[:-2])[-2:]
    return b, h


def _fake(q: Tensor) -> tuple[Tensor, Tensor]:
    """out and lse of a call, uninitialised."""
    return like(q), torch.empty((*_leading(q), q.shape[-2]), dtype=computed(q.dtype))


def _counted(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with those that count something checked and as int."""
    counted = {
        name: count(name, options[name], minimum) for name, minimum in COUNTS if name in options
    }
    return {**options, **counted}


# ---- full and local attention: of q, k and v ----


def _register(kind: str) -> Any:
    def forward(
        q: Tensor, k: Tensor | None, v: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        out = result_like(q)
        _, saved = getattr(ops, f"{kind}_attention_forward")(
            array_of(q), array_of(k), array_of(v), attention_mask=mask_of(attention_mask),
            out=out.numpy(), workers=torch.get_num_threads(), **options,
        )  # fmt: skip
        return rounded_to(q, out), torch.from_numpy(saved.lse)

    def setup(
        ctx: Any,
        inputs: tuple[Tensor | None, ...],
        keyword_only_inputs: dict[str, Any],
        output: tuple[Tensor, Tensor],
    ) -> None:
        out, lse = output
        ctx.mark_non_differentiable(lse)
        _save(ctx, *inputs, None, None, out, lse, kind=kind, **keyword_only_inputs)

    return operator(
        f"{kind}_attention({schema_of(getattr(ops, f'{kind}_attention'))}) -> "
        "(Tensor out, Tensor lse)",
        forward,
        lambda q, *others, **options: _fake(q),
        setup,
        lambda ctx, dout, dlse: (*_gradients(ctx, dout), None),
    )


_full = _register("full")
_local = _register("local")


@options_of(ops.full_attention)
def full_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`reformer_c.full_attention` of tensors.

    Parameters
    ----------
    q, k, v, attention_mask
        As in `reformer_c.full_attention`.
    **options
        Those of `reformer_c.full_attention` except `out` and `workers`. `dropout_key` is in
        [0, 2**63), and drawn by PyTorch's generator by default.

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
    q, v, k, attention_mask = checked(
        {"q": q, "v": v}, {"k": k}, {"attention_mask": attention_mask}
    )
    out: Tensor = _full(q, k, v, attention_mask, **resolved(**options))[0]
    return out


@options_of(ops.local_attention)
def local_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`reformer_c.local_attention` of tensors.

    Parameters
    ----------
    q, k, v, attention_mask
        As in `reformer_c.local_attention`.
    **options
        Those of `reformer_c.local_attention` except `out` and `workers`. `dropout_key` is in
        [0, 2**63), and drawn by PyTorch's generator by default.

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
    q, v, k, attention_mask = checked(
        {"q": q, "v": v}, {"k": k}, {"attention_mask": attention_mask}
    )
    out: Tensor = _local(q, k, v, attention_mask, **resolved(**_counted(options)))[0]
    return out


# ---- LSH attention ----


def _lsh_forward(
    qk: Tensor,
    v: Tensor,
    k: Tensor | None,
    attention_mask: Tensor | None,
    center: Tensor | None,
    rotations: Tensor | None,
    buckets: Tensor | None,
    key_buckets: Tensor | None,
    *,
    center_keys: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = result_like(qk)
    _, saved = ops.lsh_attention_forward(
        array_of(qk), array_of(v), k=array_of(k), attention_mask=mask_of(attention_mask),
        center="keys" if center_keys else array_of(center), rotations=array_of(rotations),
        buckets=array_of(buckets), key_buckets=array_of(key_buckets), out=out.numpy(),
        workers=torch.get_num_threads(), **options,
    )  # fmt: skip
    # empty for one chunk, and for buckets that were given: an operator may not return its input
    drawn = [
        torch.empty(0, dtype=torch.int32) if x is None or given is not None else torch.from_numpy(x)
        for given, x in ((buckets, saved.buckets), (key_buckets, saved.key_buckets))
    ]
    return rounded_to(qk, out), torch.from_numpy(saved.lse), drawn[0], drawn[1]


def _fake_lsh(
    qk: Tensor,
    v: Tensor,
    k: Tensor | None,
    attention_mask: Tensor | None,
    center: Tensor | None,
    rotations: Tensor | None,
    buckets: Tensor | None,
    key_buckets: Tensor | None,
    *,
    num_hashes: int,
    chunk_length: int,
    scope: str,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one_chunk = qk.shape[-2] <= chunk_length and scope == "chunk"
    given = one_chunk or buckets is not None
    shapes = [
        (0,) if given or x is None else (*qk.shape[:-2], num_hashes, x.shape[-2]) for x in (qk, k)
    ]
    drawn = [torch.empty(shape, dtype=torch.int32) for shape in shapes]
    return *_fake(qk), drawn[0], drawn[1]


def _setup_lsh(
    ctx: Any,
    inputs: tuple[Any, ...],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    qk, v, k, attention_mask, _, _, *given = inputs
    out, lse, *drawn = output
    ctx.mark_non_differentiable(lse, *drawn)
    ids = [
        new if known is None and new.ndim > 1 else known
        for known, new in zip(given, drawn, strict=True)
    ]
    options = {name: x for name, x in keyword_only_inputs.items() if name != "center_keys"}
    _save(ctx, qk, k, v, attention_mask, *ids, out, lse, kind="lsh", shared_qk=k is None, **options)


def _differentiate_lsh(ctx: Any, dout: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _gradients(ctx, dout)
    return dq, dv, dk, None, None, None, None, None


_lsh = operator(
    f"lsh_attention({schema_of(ops.lsh_attention)}, bool center_keys=True) -> "
    "(Tensor out, Tensor lse, Tensor buckets, Tensor key_buckets)",
    _lsh_forward,
    _fake_lsh,
    _setup_lsh,
    _differentiate_lsh,
)


@options_of(ops.lsh_attention)
def lsh_attention(qk: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`reformer_c.lsh_attention` of tensors.

    Parameters
    ----------
    qk, v
        As in `reformer_c.lsh_attention`; with `k`, qk are the queries.
    rng : int, torch.Generator or None
        Draws the rotations if neither rotations nor buckets are given: an int draws those of
        `reformer_c.lsh_rotations`; otherwise PyTorch draws them.
    **options
        Those of `reformer_c.lsh_attention` except `out`, `lse` and `workers`. `dropout_key` is in
        [0, 2**63), and drawn by PyTorch's generator by default.

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

    Keys of their own, of another length and with fewer heads:

    >>> k, v = torch.randn(2, 1, 2, 3000, 32)
    >>> lsh_attention(qk, v, k=k, scope="bucket", local_window=16, is_causal=True).shape
    torch.Size([1, 4, 1000, 32])
    """
    return lsh_attention_results(qk, v, **options)[0]


@options_of(ops.lsh_attention)
def lsh_attention_results(
    qk: Tensor,
    v: Tensor,
    *,
    k: Tensor | None = None,
    num_buckets: int | Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    center: Tensor | str | None = "keys",
    rotations: Tensor | None = None,
    buckets: Tensor | None = None,
    key_buckets: Tensor | None = None,
    rng: int | torch.Generator | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lsh_attention`, and what else its operator returns: the log-sum-exp (b, h, t), which is -inf
    for a token that found no key but itself in all of several rounds, and the buckets it drew."""
    center_keys = isinstance(center, str)
    if isinstance(center, str):
        if center != "keys":
            raise ValueError(f"center must be 'keys', None or a tensor, got {center!r}")
        center = None
    qk, v, k, rotations, less, attention_mask, buckets, key_buckets = checked(
        {"qk": qk, "v": v},
        {"k": k, "rotations": rotations, "center": center},
        {"attention_mask": attention_mask, "buckets": buckets, "key_buckets": key_buckets},
    )
    options = _counted(options)
    if (rotations is not None) + (buckets is not None) + (rng is not None) > 1:
        raise ValueError("rotations, buckets and rng each decide the buckets: pass one of them")
    if qk.ndim < 2:
        heads_of("qk", qk)  # raises
    factors = None if num_buckets is None else bucket_factors(num_buckets)
    if rotations is None and buckets is None:
        longest = max(x.shape[-2] if x.ndim > 1 else 0 for x in (qk, qk if k is None else k))
        chosen = ops.choose_num_buckets(longest, options["chunk_length"])
        factors = factors or bucket_factors(chosen)
        rotations = _draw_rotations(qk, options["num_hashes"], factors, rng)
    out, lse, drawn, _ = _lsh(
        qk, v, k, attention_mask, less, rotations, buckets, key_buckets, num_buckets=factors,
        center_keys=center_keys, **resolved(**options),
    )  # fmt: skip
    return out, lse, drawn


def _draw_rotations(
    qk: Tensor, num_hashes: int, factors: tuple[int, ...], rng: int | torch.Generator | None
) -> Tensor:
    h, d = _leading(qk)[1], qk.shape[-1]
    shape = (h, d, num_hashes, sum(factors) // 2)
    if rng is None:  # torch.compile with dynamic shapes takes no generator=None
        return torch.randn(shape, dtype=computed(qk.dtype))
    if isinstance(rng, torch.Generator):
        return torch.randn(shape, dtype=computed(qk.dtype), generator=rng)
    kind = np.float64 if qk.dtype == torch.float64 else np.float32
    drawn = ops.lsh_rotations(h, d, num_hashes=num_hashes, num_buckets=factors, rng=rng, dtype=kind)
    return torch.from_numpy(drawn)
