"""What a dropout mask must look like: which bits are drawn is left to the core."""

import numpy as np
from tolerances import tolerance


def kept(x, y, p):
    """Where y is x / (1 - p) rather than 0. Fails if y is anything else, or x has zeros."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.all(x != 0), "a zero does not tell whether it was kept"
    keep = y != 0
    np.testing.assert_allclose(y[keep], x[keep] / (1 - p), rtol=tolerance("rounding", "float32"))
    return keep


def assert_bernoulli(keep, p, sigmas=5.0):
    """The share of True is 1 - p, within `sigmas` standard deviations of independent draws."""
    allowed = sigmas * np.sqrt(p * (1 - p) / keep.size)
    assert abs(keep.mean() - (1 - p)) <= allowed, (keep.mean(), 1 - p, allowed)
