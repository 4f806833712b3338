"""Ordinary residual layers: one stream, whose value before each branch is kept.

The pre-norm Transformer that reversible layers are compared with (Kitaev et al. 2020, section 3 and
Figure 3, right): ``x += f(x)`` for each branch f, which begins with a layer norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .sublayer import Sublayer, rows_of

__all__ = ["Residual"]


class Residual:
    """``x += f(x)`` of one branch, for x (b, t, c).

    Parameters
    ----------
    sublayer : Sublayer
        The branch f.
    keep : bool
        Keep its activations, too, so that the backward pass recomputes nothing.
    """

    def __init__(self, sublayer: Sublayer, *, keep: bool) -> None:
        self._sublayer, self._keep = sublayer, keep

    def forward_add(self, x: np.ndarray) -> None:
        """``x += f(x)``, in place."""
        layer, before = self._sublayer, x.copy()
        self._before, self._saved = before, list[Any]()
        if self._keep:
            parts = layer._parts(before)
            self._saved = [layer._add(p, rows_of(x), rows_of(before), 1.0) for p in parts]
        else:
            layer.forward_add(x, before)

    def backward_add(self, dx: np.ndarray, x: np.ndarray) -> None:
        """``dx += (df/dx)' dx``, in place. The contents of x (b, t, c) are lost."""
        layer, before, dout = self._sublayer, self._before, dx.copy()
        del self._before
        if not self._keep:
            layer.backward_add(dx, dout, x, before)
            return
        parts = layer._parts(before)
        dx, dout, before = map(rows_of, (dx, dout, before))
        for part, saved in zip(parts, self._saved, strict=True):
            layer._backward(part, dx, dout, before, saved)
        del self._saved
