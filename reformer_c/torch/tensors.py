"""Tensors as arrays, and what the operators check of their arguments.

Arrays share the memory of tensors of float32 and float64. Those of half precision are computed in
float32: inputs are widened whole, and results are rounded once, at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import integer
from ..precision import resolve_precision

__all__ = [
    "array_of", "checked", "computed", "draw_key", "like", "mask_of", "resolved", "result_like",
    "rounded_to", "tensor_of",
]  # fmt: skip

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
    """An array that shares the tensor's memory; of float32 for half precision."""
    if x is None:
        return None
    _refuse_tangent(x)
    x = x.detach()
    return (x.float() if x.dtype in HALVES else x).numpy()


def mask_of(x: Tensor | None) -> np.ndarray | None:
    mask: np.ndarray | None = array_of(x)
    return mask


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that tensors of this one are computed in."""
    return torch.float32 if dtype in HALVES else dtype


def like(x: Tensor) -> Tensor:
    """An uninitialised result of the shape of `x`: with its strides if its last axis is contiguous,
    which the kernels need, else contiguous."""
    return torch.empty_like(x) if x.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype)


def result_like(x: Tensor) -> Tensor:
    """``like(x)`` in the dtype that it is computed in, for `rounded_to`."""
    return like(x) if x.dtype not in HALVES else torch.empty_like(like(x), dtype=torch.float32)


def rounded_to(x: Tensor, result: Tensor) -> Tensor:
    """A result in the dtype of x."""
    return result if result.dtype == x.dtype else like(x).copy_(result)


def tensor_of(array: np.ndarray, x: Tensor) -> Tensor:
    """A tensor with the dtype and strides of ``like(x)``: shares the array's memory if that has
    them."""
    found, promised = torch.from_numpy(array), like(x)
    same = found.stride() == promised.stride() and found.dtype == promised.dtype
    return found if same else promised.copy_(found)


# ---- arguments ----


def checked(
    reals: dict[str, Tensor], optional: dict[str, Tensor | None], others: dict[str, Tensor | None]
) -> list[Any]:
    """The tensors, checked: on the CPU, and, except `others`, real. If one of them has half
    precision, all have, but rotations and a center may be float32. Under autocast all but these are
    converted to its dtype, except float64."""
    found: list[Any] = []
    first = next(iter(reals))
    dtype: torch.dtype | None = None
    for name, x in {**reals, **optional, **others}.items():
        if not isinstance(x, Tensor) and (x is not None or name in reals):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x is not None:
            # an operator no longer sees the tangents of torch.func
            _refuse_tangent(x)
        if x is not None and x.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {x.device}: pass {name}.cpu()")
        if x is not None and name not in others:
            if x.dtype not in (torch.float32, torch.float64, *HALVES):
                raise TypeError(
                    f"{name} must be float32 or float64, bfloat16 or float16, got {x.dtype}: pass "
                    f"{name}.float()"
                )
            is_widened = name in ("rotations", "center") and x.dtype == torch.float32
            if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 and not is_widened:
                x = x.to(torch.get_autocast_dtype("cpu"))
            dtype = x.dtype if dtype is None else dtype
            halves = x.dtype in HALVES or (dtype in HALVES and not is_widened)
            if x.dtype != dtype and halves:
                raise TypeError(f"{name} must be {dtype}, as {first} is, got {x.dtype}")
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
