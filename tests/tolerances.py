"""The one table of tolerances.

A tolerance is the largest error allowed anywhere in an array, as a share of the array's largest
magnitude: sums of products cancel, so small elements carry the error of their large neighbours.
Single numbers, and arrays that are compared element by element, take `tolerance(kind, dtype)`.
"""

import numpy as np

TOLERANCES = {
    # one or two roundings
    "rounding": {"float32": 2.5e-7, "float64": 5e-16},
    # one pass over the data: linear maps, norms, tables, softmax
    "forward": {"float32": 2e-6, "float64": 4e-15},
    "backward": {"float32": 8e-6, "float64": 2e-14},
    # attention: the scores' rounding goes through an exponential
    "attention": {"float32": 4e-6, "float64": 2e-14},
    "attention_backward": {"float32": 1e-5, "float64": 1e-13},
    # constant scores of -1e5: an ulp there is 0.0078 in float32, and the weights move with it
    "self_only": {"float32": 1e-2, "float64": 1e-10},
    # constant scores of -1e9: an ulp there is 1.2e-7 in float64
    "hidden": {"float32": 2.5e-7, "float64": 1.2e-7},
    # rows whose mean is 4096: an ulp there is 4.9e-4 in float32
    "large_mean": {"float32": 4e-4},
    # operands rounded to no, to two or to one bfloat16 term, compared with exact ones
    "highest": {"float32": 1e-6},
    "high": {"float32": 1e-4},
    "medium": {"float32": 2e-2},
    # several layers, compared with the reference
    "model_forward": {"float32": 1e-5, "float64": 1e-12},
    "model_backward": {"float32": 2e-4, "float64": 1e-10},
    # results in float32, rounded to half precision; gradients that start from a rounded result
    "bfloat16": 1e-2,
    "float16": 2e-3,
    # keys and values rounded to bfloat16 in the cache of decoding: of a layer; and of several, the
    # norm of the error, since a token may fall into another bucket
    "bfloat16_cache": 2e-2,
    "model_bfloat16_cache": 5e-2,
    # activations rounded to bfloat16 between forward and backward: the norm of the error of all
    # gradients, as a share of their norm, in models with steep layers
    "kept_bfloat16": 5e-2,
    # streams rounded to steps of 2^-8, with gradients in bfloat16, or of 2^-20: the same error
    "residual_int16": 5e-2,
    "residual_int32": 1e-4,
    # several layers with rounded operands: the norm of the error, as a share of the norm
    "model_high": {"float32": 1e-3},
    "model_medium": {"float32": 0.1},
    # the same sums over other parts: of a batch, of a text, or token by token
    "replay": {"float32": 2e-5, "float64": 1e-13},
    # other libraries; their gradients in float32 drift as much as ours do
    "parity_output": {"float32": 2e-4, "float64": 1e-9},
    "parity_loss": {"float32": 1e-5, "float64": 1e-9},
    "parity_gradient": {"float32": 2e-3, "float64": 1e-9},
    # weights after a dozen steps of an optimizer
    "parity_optimizer": {"float32": 1e-6},
    # small modules of reformer_pytorch, element by element
    "reformer_pytorch": {"float32": 4e-6, "float64": 1e-7},
    # in all types: inputs that differ by 1e-6, or are that near to a tie between two buckets
    "noise": 1e-5,
    # models of transformers with our attention, compared with theirs; of half precision
    "transformers": {"float32": 1e-4, "float64": 1e-10},
    "transformers_half": 5e-2,
    # a directional derivative by central differences
    "derivative": 1e-6,
    # results printed with four digits after the point
    "four_places": 6e-5,
    # results printed with three digits, or given by an approximate formula
    "three_digits": 2e-3,
    # shares and means of thousands of random numbers, and standard deviations of hundreds
    "share": 0.02,
    "deviation": 0.05,
    # the loss of a model with its first weights, compared with that of equal probabilities
    "untrained": 0.3,
    # the memory that a process takes, compared with what was predicted
    "memory": 0.1,
}

# Drift after 48 reversible layers in float32, as a share of the largest value in the streams, by
# the standard deviation of the weights; and how far gradients move, as a share of each array's
# largest.
# Measured: 2e-7, 3e-7, 1e-5 and 2e-5, 2e-5, 2e-4; steep layers at 0.3: streams grow tenfold.
STREAM_DRIFT = {0.02: 2e-6, 0.1: 2e-6, 0.3: 1e-4}
GRADIENT_DRIFT = {0.02: 2e-4, 0.1: 2e-4, 0.3: 2e-3}


def tolerance(kind, dtype=None):
    entry = TOLERANCES[kind]
    return entry[np.dtype(dtype).name] if isinstance(entry, dict) else entry


def largest(x):
    x = np.asarray(x)
    return np.abs(x[np.isfinite(x)]).max(initial=0)


def assert_close(actual, expected, kind, dtype=None, scale=0.0):
    """Same shape, nan where nan, and within the table's share of the largest magnitude.

    `scale` is a magnitude that the computation went through, should the result itself be smaller.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    allowed = tolerance(kind, dtype or actual.dtype) * max(largest(expected), scale)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed + 1e-30)


def assert_all_close(actual, expected, kind, dtype=None):
    """assert_close of each pair; None answers None.

    Attention's gradients have one scale: that of a query that sees one key is 0, but only as the
    difference of two terms as large as the values' gradient.
    """
    assert len(actual) == len(expected)
    together = kind == "attention_backward"
    scale = max(largest(e) for e in expected if e is not None) if together else 0.0
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            assert_close(a, e, kind, dtype, scale)


def assert_each_close(actual, expected, kind, dtype=None):
    """assert_close of the arrays of each name."""
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert_close(array, expected[name], kind, dtype)
