"""How close is right: the one table of tolerances.

A figure is the largest error allowed anywhere in an array, as a share of the array's largest
magnitude: sums of products cancel, so small elements carry the error of their large neighbours.

Bounds that belong to one test stand there, with their reason: shares and averages of random
numbers, drifts that the test is about, errors that grow with a parameter of the test, results that
were printed with few digits, and the agreement with other libraries (`tests/parity/ours.py`).
"""

import numpy as np

TOLERANCES = {
    # one or two roundings
    "rounding": {"float32": 2.5e-7},
    # one pass over the data: linear maps, norms, tables, softmax
    "forward": {"float32": 2e-6, "float64": 4e-15},
    "backward": {"float32": 8e-6, "float64": 2e-14},
    # attention: the scores' rounding goes through an exponential
    "attention": {"float32": 4e-6, "float64": 2e-14},
    "attention_backward": {"float32": 1e-5, "float64": 1e-13},
    # constant scores of -1e5: an ulp there is 0.0078 in float32, and the weights move with it
    "self_only": {"float32": 1e-2, "float64": 1e-10},
    # operands rounded to one bfloat16 term, or to two, compared with a reference without rounding
    "medium": {"float32": 2e-2},
    "high": {"float32": 1e-4},
    # several layers, compared with the reference
    "model_forward": {"float32": 1e-5, "float64": 1e-12},
    "model_backward": {"float32": 2e-4, "float64": 1e-10},
    # the same sums over other parts: of a batch, of a text, or token by token
    "replay": {"float32": 2e-5, "float64": 1e-13},
    # a directional derivative by central differences
    "derivative": {"float64": 1e-6},
}


def tolerance(kind, dtype):
    return TOLERANCES[kind][np.dtype(dtype).name]


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
