"""AdamW (Loshchilov and Hutter 2019, algorithm 2): Adam with decoupled weight decay."""

import numpy as np


def adamw_step(w, m, s, g, *, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """The new (w, m, s); `step` counts from 1."""
    w, m, s, g = (np.asarray(a, np.float64) for a in (w, m, s, g))
    g = grad_scale * g
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**step)
    s_hat = s / (1 - beta2**step)
    w = w - lr * weight_decay * w - lr * m_hat / (np.sqrt(s_hat) + eps)
    return w, m, s
