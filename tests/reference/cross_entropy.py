"""The mean cross-entropy of softmax(h weight' + bias) against integer labels."""

import numpy as np

from .linear import linear


def cross_entropy_head(h, weight, bias, labels, ignore_index=-100, label_smoothing=0.0):
    """h (..., c), weight (v, c), bias (v,) or None, labels (...) -> float; nan if none counts."""
    logits = linear(h, weight, bias)
    losses = []
    for place in np.ndindex(np.shape(labels)):
        label, row = labels[place], logits[place]
        if label != ignore_index:
            top = row.max()
            target = (1 - label_smoothing) * row[label] + label_smoothing * row.mean()
            losses.append(top + np.log(np.exp(row - top).sum()) - target)
    return float(np.mean(losses)) if losses else float("nan")
