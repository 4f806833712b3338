"""Numbers in fixed point, sums with them, and sums of bfloat16 numbers."""

import numpy as np
import pytest
from reference import bfloat16, fixed_point

from reformer_c import _core, ops
from reformer_c.ops.fixed_point import FRACTION

SHAPES = [(), (0,), (1,), (3, 0), (5, 7), (33,), (65_535,), (65_537,), (70, 3000)]
INTEGERS = ["int16", "int32"]
LIMIT = {"int16": 128, "int32": 2048}


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_rounded_as_the_reference_rounds_them(isa, dtype, rng, shape, integer):
    x = np.asarray(10 * rng.standard_normal(shape)).astype(dtype)
    found = ops.to_fixed_point(x, integer)
    assert found.dtype == integer and found.shape == x.shape
    np.testing.assert_array_equal(found, fixed_point.steps(x, integer))
    again = ops.from_fixed_point(found, dtype=dtype)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, fixed_point.numbers(found, integer).astype(dtype))


@pytest.mark.parametrize("integer", INTEGERS)
def test_halves_of_steps_are_rounded_to_even(isa, dtype, integer):
    steps = np.arange(-50, 51) / 2
    found = ops.to_fixed_point((steps * 2.0 ** -FRACTION[integer]).astype(dtype), integer)
    np.testing.assert_array_equal(found, np.rint(steps))


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_added_is_subtracted_bit_for_bit(isa, dtype, rng, shape, integer):
    y = ops.to_fixed_point(np.asarray(rng.standard_normal(shape)).astype(dtype), integer)
    before, total = y.copy(), y.astype(np.int64)
    xs = [np.asarray(rng.standard_normal(shape)).astype(dtype) for _ in range(9)]
    for x in xs:
        ops.add_rounded(y, x, 1.0)
        total += fixed_point.steps(x, integer)
        np.testing.assert_array_equal(y, total)
    for x in reversed(xs):
        ops.add_rounded(y, x, -1.0)
    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("n", [1, 40, 200_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_number_that_fits_does_and_others_are_told(isa, dtype, integer, n, sign):
    limit, step = LIMIT[integer], 2.0 ** -FRACTION[integer]
    x, at = np.zeros(n, dtype), n // 2
    y = np.zeros(n, integer)
    y[at] = sign * (np.iinfo(integer).max - 3)
    x[at] = sign * 3 * step
    ops.add_rounded(y, x, 1.0)
    assert y[at] == sign * np.iinfo(integer).max
    x[0] = step
    x[at] = sign * step
    with pytest.raises(
        OverflowError, match=rf"^y must stay below {limit} in {integer}, got {limit}"
    ):
        ops.add_rounded(y, x, 1.0)
    assert y[at] == sign * np.iinfo(integer).max  # as it was
    assert y[0] == 1 or n == 1
    for wrong in (np.nan, sign * np.inf, sign * 1e30):
        told = r"1e\+30" if np.isfinite(wrong) else "inf or nan"
        x[at] = wrong
        with pytest.raises(OverflowError, match=f"got {told}$"):
            ops.add_rounded(y, x, 1.0)
        with pytest.raises(OverflowError, match="y must stay below"):
            ops.to_fixed_point(x, integer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_sums_of_bfloat16_numbers_are_rounded_to_nearest(isa, dtype, rng, shape, alpha):
    y = ops.to_bfloat16(np.asarray(rng.standard_normal(shape)).astype(dtype))
    x = np.asarray(rng.standard_normal(shape)).astype(dtype)
    expected = bfloat16.rounded(ops.from_bfloat16(y, dtype=dtype) + dtype(alpha) * x)
    ops.add_rounded(y, x, alpha)
    np.testing.assert_array_equal(ops.from_bfloat16(y), expected)


def test_bfloat16_numbers_may_be_infinite():
    y = np.zeros(2, np.uint16)
    ops.add_rounded(y, np.array([np.nan, np.inf]), 1.0)
    np.testing.assert_array_equal(ops.from_bfloat16(y), [np.nan, np.inf])


@pytest.mark.parametrize("integer", [*INTEGERS, "uint16"])
def test_results_do_not_depend_on_the_number_of_threads_or_the_layout(isa, dtype, rng, integer):
    x = rng.standard_normal((700, 600)).astype(dtype)
    start = rng.integers(0, 2**14, (700, 600)).astype(integer)
    one = start.copy()
    ops.add_rounded(one, x, 1.0, workers=1)
    for workers in (2, 3, 7):
        y = start.copy()
        ops.add_rounded(y, x, 1.0, workers=workers)
        np.testing.assert_array_equal(y, one)
    wide = np.zeros((1400, 1200), integer)
    y = wide[::2, ::-2]
    y[...] = start
    ops.add_rounded(y, x, 1.0)
    np.testing.assert_array_equal(y, one)
    if integer != "uint16":
        found = ops.from_fixed_point(one, workers=1)
        np.testing.assert_array_equal(ops.from_fixed_point(one, workers=3), found)
        np.testing.assert_array_equal(ops.from_fixed_point(one.T), found.T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.add_rounded(np.ones(3), np.ones(3), 1.0),
            "y must be bfloat16 .*, got float64",
        ),
        (lambda: ops.add_rounded([1], np.ones(1), 1.0), "y must be bfloat16 .*, got int64"),
        (lambda: ops.add_rounded(np.ones(3, np.int16), np.ones(2), 1.0), "x must have shape"),
        (lambda: ops.add_rounded(np.ones(3, np.int16), [1, 2, 3], 1.0), "x must be float32"),
        (lambda: ops.from_fixed_point(np.ones(3)), "x must be in fixed point .*, got float64"),
        (lambda: ops.from_fixed_point(np.ones(3, np.uint16)), "x must be in .*, got uint16"),
        (lambda: ops.from_fixed_point(np.ones(3, np.int16), dtype=int), "out must be float32"),
        (lambda: ops.to_fixed_point(np.ones(3), "int8"), "dtype must be int16 or int32, got int8"),
        (lambda: ops.to_fixed_point(np.ones(3, int)), "x must be float32 or float64, got int64"),
    ],
)
def test_what_is_not_in_fixed_point_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_what_is_read_only_is_not_added_to():
    y = np.zeros(3, np.int16)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y is read-only"):
        ops.add_rounded(y, np.ones(3), 1.0)


def test_steps_are_those_of_the_core():
    for integer, digits in FRACTION.items():
        y = np.zeros(1, integer)
        assert _core.add_rounded(y, np.ones(1), 1.0, 1) == 0.0
        assert y[0] == 2**digits
