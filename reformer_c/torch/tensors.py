"""Tensors as arrays of the same memory, and what the operators check of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import integer
from ..precision import resolve_precision

__all__ = ["array_of", "checked", "draw_key", "like", "mask_of", "resolved", "tensor_of"]

HALVES = (torch.bfloat16, torch.float16)


# ---- memory ----


def _refuse_tangent(x: Tensor) -> None:
    """Operators written in Python have no forward mode: PyTorch would silently drop the tangent, as
    if the derivative were 0."""
    unpack: Any = forward_ad.unpack_dual
    if unpack(x).tangent is not None:
        raise NotImplementedError(
            "reformer_c.torch has no derivatives in forward mode (torch.func.jvp, jacfwd, "
            "hessian): use backward() or torch.autograd.grad"
        )


def array_of(x: Tensor | None) -> Any:
    """An array that shares the tensor's memory."""
    if x is None:
        return None
    _refuse_tangent(x)
    return x.detach().numpy()


def mask_of(x: Tensor | None) -> np.ndarray | None:
    mask: np.ndarray | None = array_of(x.float() if x is not None and x.dtype in HALVES else x)
    return mask


def like(x: Tensor) -> Tensor:
    """An uninitialised result of the shape of `x`: with its strides if its last axis is contiguous,
    which the kernels need, else contiguous."""
    return torch.empty_like(x) if x.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype)


def tensor_of(array: np.ndarray, x: Tensor) -> Tensor:
    """A tensor with the strides of ``like(x)``: shares the array's memory if that has them."""
    found, promised = torch.from_numpy(array), like(x)
    return found if found.stride() == promised.stride() else promised.copy_(found)


# ---- arguments ----


def checked(
    reals: dict[str, Tensor], optional: dict[str, Tensor | None], others: dict[str, Tensor | None]
) -> list[Any]:
    """The tensors, checked: on the CPU, and, except `others`, float32 or float64. Under autocast
    half precision is converted to float32."""
    found = []
    for name, x in {**reals, **optional, **others}.items():
        if not isinstance(x, Tensor) and (x is not None or name in reals):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x is not None:
            # an operator no longer sees the tangents of torch.func
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


def draw_key(dropout: float, key: int | None) -> int:
    """The key of a call's dropout, of 63 bits; drawn by PyTorch's generator if None."""
    if key is None:
        return int(torch.randint(2**63 - 1, ())) if dropout else 0
    return integer("dropout_key", key, 0, 2**63 - 1)


def resolved(
    *, dropout: float, dropout_key: int | None, matmul_precision: str | None, **options: Any
) -> dict[str, Any]:
    """The options of a call with its dropout key and the precision of its forward and backward
    pass."""
    if not torch.compiler.is_compiling():
        # while torch.compile traces a call, it cannot read the setting: compiled code reads it
        # each time it runs
        matmul_precision = resolve_precision(matmul_precision)
    key = draw_key(dropout, dropout_key)
    return dict(dropout=dropout, dropout_key=key, matmul_precision=matmul_precision, **options)
