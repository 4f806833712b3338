"""Numbers in fixed point."""

import numpy as np

FRACTION = {"int16": 8, "int32": 20}


def steps(x, dtype):
    """The integers that count the steps of x, rounded half to even, in int64."""
    return np.rint(np.float64(x) * 2 ** FRACTION[dtype]).astype(np.int64)


def numbers(y, dtype):
    """The numbers that integers stand for, in float64."""
    return y / 2 ** FRACTION[dtype]
