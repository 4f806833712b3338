"""rc.lsh_hash, rc.lsh_rotations, rc.choose_num_buckets: which bucket a vector falls into."""

from math import prod

import numpy as np
import pytest
from attention_cases import normal
from reference import hashing as reference
from tolerances import tolerance

from reformer_c import ops

LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129]
DEPTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256]
BUCKETS = [2, 4, 6, 8, 10, 14, 16, 18, 30, 32, 34, 62, 64, 66, 126, 128, 130, 512,
           (2, 2), (2, 4), (4, 2), (6, 10), (16, 32), (2, 2, 2), (2, 4, 6, 8)]  # fmt: skip


def whole_numbers(rng, dtype, *shape):
    """Small integers: every sum of their products is exact, so that ties are ties in any order."""
    return rng.integers(-3, 4, shape).astype(dtype)


def assert_hashed(dtype, x, rotations, r, num_buckets, mask=None):
    buckets = ops.lsh_hash(
        x, num_hashes=r, num_buckets=num_buckets, rotations=rotations, attention_mask=mask
    )
    assert buckets.dtype == np.int32
    b, h, t, _ = x.shape
    assert buckets.shape == (b, h, r, t)
    np.testing.assert_array_equal(buckets, reference.lsh_hash(x, rotations, num_buckets, mask))


def width(num_buckets):
    return sum(reference.factors_of(num_buckets)) // 2


@pytest.mark.parametrize("t", LENGTHS)
def test_every_length_matches_the_reference(isa, dtype, rng, t):
    x, rotations = whole_numbers(rng, dtype, 2, 3, t, 5), whole_numbers(rng, dtype, 3, 5, 2, 4)
    assert_hashed(dtype, x, rotations, 2, 8)


@pytest.mark.parametrize("d", DEPTHS)
def test_every_depth_matches_the_reference(isa, dtype, rng, d):
    x, rotations = whole_numbers(rng, dtype, 1, 2, 21, d), whole_numbers(rng, dtype, 2, d, 3, 8)
    assert_hashed(dtype, x, rotations, 3, 16)


@pytest.mark.parametrize("num_buckets", BUCKETS)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_any_number_of_buckets_and_factors_matches_the_reference(isa, dtype, rng, num_buckets, r):
    x = whole_numbers(rng, dtype, 1, 2, 33, 6)
    rotations = whole_numbers(rng, dtype, 2, 6, r, width(num_buckets))
    assert_hashed(dtype, x, rotations, r, num_buckets)


def test_real_numbers_fall_where_the_nearest_direction_is_clear(isa, dtype, rng):
    """Within a rounding of a tie either side is right; every other vector has one bucket."""
    x, rotations = normal(rng, dtype, 2, 2, 200, 32), normal(rng, dtype, 2, 32, 2, 16)
    found = ops.lsh_hash(x, num_hashes=2, num_buckets=32, rotations=rotations)
    u = np.sort(np.abs(reference.projections(x, rotations)), axis=-1)
    clear = u[..., -1] - u[..., -2] > tolerance("noise") * u[..., -1]
    expected = reference.lsh_hash(x, rotations, 32)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert clear.mean() > 0.99


def test_the_first_direction_wins_a_tie(isa, dtype):
    x = np.array([[0, 0], [1, 1], [-1, -1], [1, -1], [-1, 1]], dtype)[None, None]
    rotations = np.eye(2, dtype=dtype)[None, :, None, :]
    found = ops.lsh_hash(x, num_hashes=1, num_buckets=4, rotations=rotations)
    # the directions in order: east, north, west, south
    np.testing.assert_array_equal(found[0, 0, 0], [0, 0, 2, 0, 1])


def test_a_zero_vector_falls_into_bucket_0(isa, dtype, rng):
    for num_buckets in [2, 64, (4, 6)]:
        rotations = normal(rng, dtype, 1, 7, 2, width(num_buckets))
        zeros = np.zeros((1, 1, 37, 7), dtype)
        zeros[0, 0, 11] = -0.0
        found = ops.lsh_hash(zeros, num_hashes=2, num_buckets=num_buckets, rotations=rotations)
        assert not found.any()


def test_the_first_factor_counts_ones(isa, dtype):
    """The first piece of the projections gives the fast digit, as in trax and Hugging Face."""
    x = np.array([[-1.0, 0, 2, 1]], dtype)[None, None]
    rotations = np.eye(4, dtype=dtype)[None, :, None, :3]
    # pieces [-1] of 2 and [0, 2] of 4: digits 1 and 1
    found = ops.lsh_hash(x, num_hashes=1, num_buckets=(2, 4), rotations=rotations)
    assert found.item() == 1 + 2 * 1
    # pieces [-1, 0] of 4 and [2] of 2: digits 2 and 0
    found = ops.lsh_hash(x, num_hashes=1, num_buckets=(4, 2), rotations=rotations)
    assert found.item() == 2


def test_one_factor_in_a_list_is_that_number(isa, dtype, rng):
    x, rotations = whole_numbers(rng, dtype, 1, 1, 20, 4), whole_numbers(rng, dtype, 1, 4, 2, 4)
    plain = ops.lsh_hash(x, num_hashes=2, num_buckets=8, rotations=rotations)
    for listed in [[8], (8,)]:
        found = ops.lsh_hash(x, num_hashes=2, num_buckets=listed, rotations=rotations)
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("num_buckets", [4, (2, 6)])
@pytest.mark.parametrize("kind", ["bool", "int32", "float64"])
def test_masked_positions_get_one_id_past_all_others(isa, dtype, rng, num_buckets, kind):
    # idiap's and lucidrains' padding shares buckets with real tokens
    x = whole_numbers(rng, dtype, 2, 2, 19, 5)
    rotations = whole_numbers(rng, dtype, 2, 5, 3, width(num_buckets))
    mask = rng.integers(0, 2, (2, 19)).astype(kind)
    assert_hashed(dtype, x, rotations, 3, num_buckets, mask)
    found = ops.lsh_hash(
        x, num_hashes=3, num_buckets=num_buckets, rotations=rotations, attention_mask=mask
    )
    k = prod(reference.factors_of(num_buckets))
    np.testing.assert_array_equal(
        found == k, np.broadcast_to(mask[:, None, None] == 0, found.shape)
    )


def test_the_hash_depends_on_direction_alone(isa, dtype, rng):
    x, rotations = whole_numbers(rng, dtype, 1, 2, 40, 8), whole_numbers(rng, dtype, 2, 8, 2, 8)
    options = {"num_hashes": 2, "num_buckets": 16, "rotations": rotations}
    near = ops.lsh_hash(x, **options)
    for scale in [2.0**-40, 2.0**40]:
        np.testing.assert_array_equal(
            ops.lsh_hash(x * np.dtype(dtype).type(scale), **options), near
        )


def test_opposite_vectors_fall_into_opposite_buckets(isa, dtype, rng):
    x = normal(rng, dtype, 1, 1, 50, 8)
    options = {"num_hashes": 2, "num_buckets": 16, "rotations": normal(rng, dtype, 1, 8, 2, 8)}
    there, back = ops.lsh_hash(x, **options), ops.lsh_hash(-x, **options)
    np.testing.assert_array_equal((there + 8) % 16, back)


def test_what_is_not_a_number_still_gets_a_bucket_that_exists(isa, dtype, rng):
    x, rotations = normal(rng, dtype, 1, 1, 30, 8), normal(rng, dtype, 1, 8, 2, 9)
    clean = ops.lsh_hash(x, num_hashes=2, num_buckets=(8, 10), rotations=rotations)
    for anything in [np.nan, np.inf, -np.inf]:
        spoilt = x.copy()
        spoilt[0, 0, 13, 5] = anything
        found = ops.lsh_hash(spoilt, num_hashes=2, num_buckets=(8, 10), rotations=rotations)
        assert ((found >= 0) & (found < 80)).all()
        others = np.arange(30) != 13
        np.testing.assert_array_equal(found[..., others], clean[..., others])


def test_many_buckets_fit_an_id_and_too_many_are_refused(isa, rng):
    # trax sorts by bucket * length + position in 32 bits, which overflows for long texts
    x = whole_numbers(rng, "float32", 1, 1, 40, 4)
    many = (1024, 1024, 1024)
    rotations = normal(rng, "float32", 1, 4, 1, width(many))
    u = np.sort(np.abs(reference.projections(x, rotations)).reshape(-1, 3, 512), axis=-1)
    clear = (u[..., -1] - u[..., -2] > tolerance("noise") * u[..., -1]).all(axis=-1)
    found = ops.lsh_hash(x, num_hashes=1, num_buckets=many, rotations=rotations)
    expected = reference.lsh_hash(x, rotations, many)
    np.testing.assert_array_equal(found[0, 0, 0, clear], expected[0, 0, 0, clear])
    with pytest.raises(ValueError, match="num_buckets"):
        ops.lsh_hash(x, num_hashes=1, num_buckets=(65536, 32768, 2))


@pytest.mark.parametrize("wrong", [0, 1, 3, 7, -2, (2, 3), (4, 0), ()])
def test_odd_or_absent_buckets_are_refused(wrong):
    # Hugging Face #4543 chose odd numbers of buckets
    with pytest.raises(ValueError, match="num_buckets"):
        ops.lsh_hash(np.ones((1, 1, 4, 3), "float32"), num_hashes=1, num_buckets=wrong)


def test_views_whose_axes_are_swapped_hash_alike(isa, dtype, rng):
    x = whole_numbers(rng, dtype, 2, 11, 3, 5)
    rotations = whole_numbers(rng, dtype, 3, 5, 2, 4)
    assert_hashed(dtype, x.transpose(0, 2, 1, 3), rotations, 2, 8)


@pytest.mark.parametrize("num_buckets", [16, (4, 6, 2)])
def test_rotations_are_standard_normal(dtype, num_buckets):
    rotations = ops.lsh_rotations(8, 64, num_hashes=5, num_buckets=num_buckets, rng=0, dtype=dtype)
    assert rotations.shape == (8, 64, 5, width(num_buckets))
    assert rotations.dtype == np.dtype(dtype)
    assert abs(rotations.mean()) < 5 / np.sqrt(rotations.size)
    assert abs(rotations.var() - 1) < 5 * np.sqrt(2 / rotations.size)
    # heads and rounds draw their own
    assert (rotations[0] != rotations[1]).mean() > 0.99
    assert (rotations[:, :, 0] != rotations[:, :, 1]).mean() > 0.99


def test_a_seed_gives_the_same_rotations_again():
    options = {"num_hashes": 2, "num_buckets": 8}
    once, again = (ops.lsh_rotations(2, 4, rng=3, **options) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.dtype == np.float32
    generator = np.random.default_rng(3)
    np.testing.assert_array_equal(ops.lsh_rotations(2, 4, rng=generator, **options), once)
    assert (ops.lsh_rotations(2, 4, rng=generator, **options) != once).any()
    assert (ops.lsh_rotations(2, 4, rng=4, **options) != once).any()


def test_drawing_rotations_leaves_numpys_global_generator_alone():
    # Hugging Face's hash_seed seeds the global generator, and dropout repeats itself
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    ops.lsh_rotations(2, 4, num_hashes=1, num_buckets=8, rng=1)
    ops.lsh_hash(np.ones((1, 1, 9, 4), "float32"), num_hashes=1, num_buckets=4, rng=1)
    assert np.random.random() == expected  # noqa: NPY002


def test_a_seeded_hash_is_the_hash_of_the_seeds_rotations(isa, dtype, rng):
    x = normal(rng, dtype, 2, 2, 30, 8)
    options = {"num_hashes": 3, "num_buckets": (4, 2)}
    rotations = ops.lsh_rotations(2, 8, rng=11, dtype=dtype, **options)
    np.testing.assert_array_equal(
        ops.lsh_hash(x, rng=11, **options), ops.lsh_hash(x, rotations=rotations, **options)
    )


@pytest.mark.parametrize("m", [1, 2, 7, 64, 256])
def test_num_buckets_are_chosen_as_hugging_face_chooses(m):
    for t in [1, 2, 3, 5, 8, 64, 65, 128, 1000, 4096, 16384, 65536, 524288]:
        for longest in [None, t, 4096, 524288]:
            chosen = ops.choose_num_buckets(t, m, longest)
            expected = reference.choose_num_buckets(t, m, longest)
            assert chosen == expected, (t, m, longest)
            assert isinstance(chosen, (int, tuple))


@pytest.mark.parametrize(("rng", "kind"), [(-1, ValueError), ("a", TypeError), (1.5, TypeError)])
def test_a_wrong_rng_is_named(rng, kind):
    with pytest.raises(kind, match="rng must be an integer >= 0"):
        ops.lsh_rotations(2, 4, num_hashes=1, num_buckets=4, rng=rng)
