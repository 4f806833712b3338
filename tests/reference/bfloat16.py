"""Products of float32 operands rounded to bfloat16: in one term each, or in two."""

import numpy as np


def rounded(x):
    """float32 -> the nearest bfloat16, ties to even, as float32. NaN and infinities stay."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, nearest.astype(np.uint32).view(np.float32))


def terms(x, precision):
    """The terms of an operand, in float64: high, and what high has left."""
    x = np.asarray(x, np.float32)
    if precision == "highest":
        return [np.float64(x)]
    high = rounded(x)
    found = [high] if precision == "medium" else [high, rounded(x - high)]
    return [np.float64(term) for term in found]


def product(a, b, precision):
    """a (n, k) b (k, m), without the product of the two low terms; sums are exact."""
    left, right = terms(a, precision), terms(b, precision)
    return sum(x @ y for i, x in enumerate(left) for j, y in enumerate(right) if i + j < len(left))
