"""Weights rounded to 8-bit integers with a scale for each row, or to bfloat16."""

import numpy as np

from .bfloat16 import rounded


def int8(weight):
    """(co, ci) -> integers in [-127, 127] (co, ci), scales (co,): each row's largest is 127."""
    weight = np.asarray(weight)
    scale = np.abs(weight).max(axis=1, initial=0) / weight.dtype.type(127)
    numbers = np.zeros(weight.shape, int)
    for row, (values, unit) in enumerate(zip(weight, scale, strict=True)):
        if unit > 0:
            numbers[row] = np.clip(np.rint(values / unit), -127, 127)
    return numbers, scale


def dequantized(weight, storage):
    """What a weight becomes by being stored, in float64."""
    if storage == "bfloat16":
        return np.float64(rounded(weight))
    numbers, scale = int8(weight)
    return numbers * np.float64(scale)[:, None]
