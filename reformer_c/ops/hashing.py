"""Angular locality-sensitive hashing: which bucket a vector falls into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from ..checks import as_array, bucket_factors, count, heads_of, names_keywords, real_type
from ..runtime import resolve_workers

__all__ = ["choose_num_buckets", "lsh_hash", "lsh_rotations"]


@names_keywords
def choose_num_buckets(
    t: int, chunk_length: int, max_position_embeddings: int | None = None
) -> int | tuple[int, int]:
    """The number of buckets for a length, as Hugging Face's Reformer chooses it.

    About two buckets a chunk, as a power of two; in two factors where that is many, since one hash
    into k buckets costs k / 2 products a token, and two cost the sum of their factors' halves.

    Parameters
    ----------
    t : int
        Length of the sequence.
    chunk_length : int
        Length of a chunk.
    max_position_embeddings : int, optional
        The longest sequence of the model, `t` by default. It moves the bound between one factor
        and two, ``2 max(isqrt(max_position_embeddings // chunk_length), chunk_length)``.

    Returns
    -------
    int, or a tuple of two

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer, or below its least value (t 0, the others 1).

    Examples
    --------
    >>> choose_num_buckets(4096, 64)
    128
    >>> choose_num_buckets(16384, 64)
    (16, 32)
    """
    t = count("t", t, 0)
    chunk_length = count("chunk_length", chunk_length, 1)
    longest = t
    if max_position_embeddings is not None:
        longest = count("max_position_embeddings", max_position_embeddings, 1)
    power = (2 * max(1, -(-t // chunk_length))).bit_length() - 1
    if 2**power > 2 * max(math.isqrt(longest // chunk_length), chunk_length):
        return halved_power(power)
    return 1 << power


def halved_power(power: int) -> tuple[int, int]:
    """A power of two as two factors that are nearly the same."""
    return 2 ** (power // 2), 2 ** (power - power // 2)


@names_keywords
def lsh_rotations(
    h: int,
    d: int,
    *,
    num_hashes: int,
    num_buckets: int | Sequence[int],
    rng: Any = None,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Random directions for `lsh_hash`, standard normal.

    Parameters
    ----------
    h, d : int
        Heads, and the depth of a head.
    num_hashes : int
        Rounds.
    num_buckets : int or sequence of int
        Even, or even factors.
    rng : int, numpy Generator, or None
        For ``numpy.random.default_rng``.
    dtype : float32 or float64
        Of the vectors to hash.

    Returns
    -------
    (h, d, num_hashes, sum(factors) // 2)

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2, "Locality sensitive hashing"; Andoni et al. 2015,
    "Practical and Optimal LSH for Angular Distance".

    Examples
    --------
    >>> lsh_rotations(8, 64, num_hashes=2, num_buckets=(16, 32), rng=0).shape
    (8, 64, 2, 24)
    """
    shape = (
        count("h", h, 0), count("d", d, 0), count("num_hashes", num_hashes, 1),
        sum(bucket_factors(num_buckets)) // 2,
    )  # fmt: skip
    try:
        nothing = np.empty(0, dtype)
    except TypeError:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from None
    return generator_of(rng).standard_normal(shape, real_type("dtype", nothing))


def generator_of(rng: Any) -> np.random.Generator:
    """``numpy.random.default_rng``, whose errors do not name the argument."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        error = f"rng must be an integer >= 0, a numpy Generator or None, got {rng!r}"
        raise (ValueError if isinstance(rng, int) else TypeError)(error) from None


@names_keywords
def lsh_hash(
    x: np.ndarray,
    *,
    num_hashes: int,
    num_buckets: int | Sequence[int],
    rotations: np.ndarray | None = None,
    rng: Any = None,
    attention_mask: np.ndarray | None = None,
    out: np.ndarray | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """The bucket of each vector: the nearest of some random directions and their opposites.

    With ``u = x rotations``, the bucket is ``argmax([u, -u])``. Where `num_buckets` is a sequence
    of factors, u is cut into a piece for each, and the pieces' buckets are the digits of the id,
    the first counting ones. The hash depends on directions only, not on lengths.

    Parameters
    ----------
    x : (b, h, t, d), (h, t, d) or (t, d), float32 or float64
    num_hashes : int
        Rounds, each with its own directions.
    num_buckets : int or sequence of int
        Even, or even factors.
    rotations : (h, d, num_hashes, sum(factors) // 2) same dtype, optional
        The directions, as `lsh_rotations` draws them.
    rng : int, numpy Generator, or None
        Draws the rotations that are not given.
    attention_mask : (b, t) bool, int or float, optional
        Nonzero for a real token; the others get one more id, the product of the factors.
    out : (b, h, num_hashes, t) int32, optional
    workers : int, optional
        Threads, see `reformer_c.set_num_threads`.

    Returns
    -------
    (b, h, num_hashes, t) int32
        With the leading axes of x; each round counts from 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    References
    ----------
    Reformer (Kitaev et al. 2020), section 2, "Locality sensitive hashing".

    Examples
    --------
    >>> x = np.array([[2.0, 1.0], [1.0, 2.0], [-2.0, 1.0], [1.0, -2.0]])
    >>> rotations = np.eye(2).reshape(1, 2, 1, 2)
    >>> lsh_hash(x, num_hashes=1, num_buckets=4, rotations=rotations)
    array([[0, 1, 2, 3]], dtype=int32)
    """
    factors = bucket_factors(num_buckets)
    return buckets_of(x, "x", num_hashes, factors, rotations, rng, attention_mask, out, workers)


def buckets_of(
    x: np.ndarray,
    name: str,
    num_hashes: int,
    factors: tuple[int, ...],
    rotations: np.ndarray | None,
    rng: Any,
    attention_mask: np.ndarray | None,
    out: np.ndarray | None,
    workers: int | None,
) -> np.ndarray:
    """`lsh_hash` of an argument of this name."""
    x, h, _, d = heads_of(name, x)
    rounds = count("num_hashes", num_hashes, 1)
    if rotations is None:
        rotations = lsh_rotations(
            h, d, num_hashes=rounds, num_buckets=factors, rng=rng, dtype=real_type(name, x)
        )
    elif rng is not None:
        raise ValueError("rng draws rotations: pass one of them, not both")
    else:
        rotations = as_array("rotations", rotations)
        if rotations.ndim == 4 and rotations.shape[2] != rounds:
            raise ValueError(
                f"rotations must have shape (h, d, num_hashes, sum(factors) // 2) with "
                f"num_hashes = {rounds}, got {rotations.shape}"
            )
    return _core.lsh_hash(
        name, x, factors, rotations, attention_mask, out, resolve_workers(workers)
    )
