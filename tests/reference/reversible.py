"""Reversible residual layers (the paper, section 3; Gomez et al. 2017), with everything stored.

A layer is a pair (f, g) of pairs (function, vjp): function(x) -> y, vjp(x, dy) -> dx.
"""


def forward(layers, x1, x2):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), layer after layer. Also the streams before each layer."""
    before = []
    for (f, _), (g, _) in layers:
        before.append((x1, x2))
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    return x1, x2, before


def backward(layers, before, dy1, dy2):
    """The gradients of the first streams, from those of the last."""
    for ((f, f_vjp), (_, g_vjp)), (x1, x2) in zip(reversed(layers), reversed(before), strict=True):
        y1 = x1 + f(x2)
        dy1 = dy1 + g_vjp(y1, dy2)
        dy2 = dy2 + f_vjp(x2, dy1)
    return dy1, dy2
