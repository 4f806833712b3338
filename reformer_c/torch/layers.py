"""The feed-forward layer as an operator of PyTorch, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..checks import count
from ..ops.mlp import FeedForwardSaved
from .registration import operator, options_of, schema_of
from .tensors import array_of, checked, like, resolved, result_like, rounded_to, tensor_of

__all__ = ["feed_forward"]


def _forward(x: Tensor, *weights: Tensor | None, **options: Any) -> Tensor:
    out = result_like(x)
    arrays = map(array_of, (x, *weights))
    ops.feed_forward(*arrays, out=out.numpy(), workers=torch.get_num_threads(), **options)
    return rounded_to(x, out)


def _backward(dout: Tensor, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    saved = FeedForwardSaved(*map(array_of, inputs), **options)
    gradients = iter(
        ops.feed_forward_backward(array_of(dout), saved, workers=torch.get_num_threads())
    )
    # an operator may not return None
    return tuple(_nothing(dout) if x is None else tensor_of(next(gradients), x) for x in inputs)


def _fake_backward(dout: Tensor, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    return tuple(_nothing(dout) if x is None else like(x) for x in inputs)


def _nothing(dout: Tensor) -> Tensor:
    return torch.empty(0, dtype=dout.dtype)


def _setup(
    ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward_operator(dout, *ctx.saved_tensors, **ctx.options)
    return tuple(
        None if x is None else gradient
        for x, gradient in zip(ctx.saved_tensors, gradients, strict=True)
    )


_SCHEMA = schema_of(ops.feed_forward)
_backward_operator = operator(
    f"feed_forward_backward(Tensor dout, {_SCHEMA}) -> "
    "(Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dw3, Tensor db3)",
    _backward,
    _fake_backward,
)
_operator = operator(
    f"feed_forward({_SCHEMA}) -> Tensor",
    _forward,
    lambda x, *weights, **options: like(x),
    _setup,
    _differentiate,
)


@options_of(ops.feed_forward)
def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor | None = None,
    b3: Tensor | None = None,
    *,
    chunk_length: int = 0,
    **options: Any,
) -> Tensor:
    """`reformer_c.feed_forward` of tensors: two linear layers, computed in blocks of hidden units.

    Parameters
    ----------
    x, w1, b1, w2, b2, w3, b3
        As in `reformer_c.feed_forward`; w1, b1, w2 and b2 are the weights of two
        ``torch.nn.Linear``, w3 and b3 those of the third of a gated layer.
    **options
        Those of `reformer_c.feed_forward` except `out` and `workers`. `dropout_key` is in
        [0, 2**63), and drawn by PyTorch's generator by default.

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
    tensors = checked({"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2}, {"w3": w3, "b3": b3}, {})
    chunk_length = count("chunk_length", chunk_length, 0)
    out: Tensor = _operator(*tensors, chunk_length=chunk_length, **resolved(**options))
    return out
