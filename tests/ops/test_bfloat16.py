"""Arrays as bfloat16 numbers."""

import numpy as np
import pytest
from reference import bfloat16 as reference

from reformer_c import ops

SPECIAL = [0.0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2.0**-149, 3e38]


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (3, 0), (5, 7), (65_535,), (65_537,), (3, 70_000)]
)
def test_numbers_are_rounded_as_the_reference_rounds_them(isa, dtype, rng, shape):
    x = rng.standard_normal(shape).astype(dtype)
    halves = ops.to_bfloat16(x)
    assert halves.dtype == np.uint16 and halves.shape == x.shape
    exact = ops.from_bfloat16(halves, dtype=dtype)
    assert exact.dtype == dtype
    np.testing.assert_array_equal(exact, reference.rounded(x))


def test_special_numbers(isa, dtype):
    x = np.array(SPECIAL, dtype)
    found = ops.from_bfloat16(ops.to_bfloat16(x), dtype=dtype)
    expected = [0.0, -0.0, np.inf, -np.inf, 1.0, 1 + 2**-6, -1.0, 0.0, (2**8 - 30) * 2.0**120]
    np.testing.assert_array_equal(found, np.array(expected, dtype))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


def test_a_nan_stays_a_nan_and_what_is_too_large_becomes_infinite(isa, dtype):
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32)
    with np.errstate(invalid="ignore"):
        nans = bits.view(np.float32).astype(dtype)
    assert np.isnan(ops.from_bfloat16(ops.to_bfloat16(nans))).all()
    large = np.finfo(np.float32).max
    found = ops.from_bfloat16(ops.to_bfloat16(np.array([large, -large], dtype)))
    np.testing.assert_array_equal(found, [np.inf, -np.inf])


def test_every_bfloat16_number_is_kept(isa, dtype):
    halves = np.arange(2**16, dtype=np.uint16)
    numbers = ops.from_bfloat16(halves, dtype=dtype)
    again = ops.to_bfloat16(numbers)
    real = ~np.isnan(numbers)
    np.testing.assert_array_equal(again[real], halves[real])


def test_results_do_not_depend_on_the_number_of_threads_or_the_layout(isa, dtype, rng):
    x = rng.standard_normal((700, 300)).astype(dtype)
    one = ops.to_bfloat16(x, workers=1)
    for workers in (2, 3, 7):
        np.testing.assert_array_equal(ops.to_bfloat16(x, workers=workers), one)
        wide = ops.from_bfloat16(one, workers=workers)
        np.testing.assert_array_equal(wide, ops.from_bfloat16(one, workers=1))
    np.testing.assert_array_equal(ops.to_bfloat16(x[::2, ::-1]), one[::2, ::-1])
    np.testing.assert_array_equal(ops.from_bfloat16(one.T), ops.from_bfloat16(one).T)
    out = np.empty((300, 700), dtype).T
    assert ops.from_bfloat16(one, out=out) is out
    np.testing.assert_array_equal(out, ops.from_bfloat16(one, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones(3, np.float32)}, "x must be .* bfloat16 .as uint16., got float32"),
        ({"x": np.ones(3, np.int8)}, "x must be bfloat16 .as uint16., got int8"),
        ({"out": np.ones(3, np.int64)}, "out must be float32 or float64, got int64"),
        ({"out": np.ones(4)}, "out must have shape"),
        ({"dtype": np.int32}, "out must be float32 or float64, got int32"),
    ],
)
def test_what_is_not_bfloat16_is_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ops.from_bfloat16(**{"x": np.ones(3, np.uint16)} | arguments)
