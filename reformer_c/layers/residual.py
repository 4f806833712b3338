"""Ordinary residual layers: one stream, whose value before each branch is kept.

The pre-norm Transformer that reversible layers are compared with (Kitaev et al. 2020, section 3 and
Figure 3, right): ``x += f(x)`` for each branch f, which begins with a layer norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .sublayer import Sublayer

__all__ = ["Residual", "residual_forward"]


class Residual:
    """``x += f(x)`` of one branch, for x (b, t, c).

    Parameters
    ----------
    sublayer : Sublayer
        The branch f.
    keep : bool
        Keep its activations, too, so that the backward pass recomputes nothing.
    kept_dtype : {"bfloat16"}, optional
        What these are rounded to; the stream is not.
    """

    _before: np.ndarray
    _saved: list[Any]

    def __init__(self, sublayer: Sublayer, *, keep: bool, kept_dtype: str | None = None) -> None:
        self._sublayer, self._keep, self._kept_dtype = sublayer, keep, kept_dtype

    def forward_add(self, x: np.ndarray) -> None:
        """``x += f(x)``, in place."""
        self._before = x.copy()
        if self._keep:
            self._saved = self._sublayer.add_and_save(x, self._before, self._kept_dtype)
        else:
            self._sublayer.forward_add(x, self._before)

    def backward_add(self, dx: np.ndarray, x: np.ndarray) -> None:
        """``dx += (df/dx)' dx``, in place. The contents of x (b, t, c) are lost."""
        dout = dx.copy()
        if self._keep:
            self._sublayer.backward_saved(dx, dout, self._before, self._saved, self._kept_dtype)
            del self._saved
        else:
            self._sublayer.backward_add(dx, dout, x, self._before)
        del self._before


def residual_forward(
    functions: Sequence[Callable[[np.ndarray, np.ndarray], None]], x: np.ndarray
) -> None:
    """Functions of (out, x) add to x (..., c), one after another, in place."""
    for add in functions:
        add(x, x.copy())
