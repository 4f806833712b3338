"""Checks of arguments: ``check(name, value, minimum, maximum)`` gives the value, converted."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

__all__ = ["NamedAttributes", "as_array", "bucket_factors", "count", "did_you_mean", "flag",
           "heads_of", "integer", "is_masked", "names_keywords", "number", "positive", "real_type",
           "refuse_unknown", "requires_extra", "saved_by"]  # fmt: skip

INT32_MAX = 2**31 - 1
Function = TypeVar("Function", bound=Callable[..., Any])
Saved = TypeVar("Saved")


# ---- numbers ----


def integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """`value` as an int, if it is an integer within the bounds, Python's or NumPy's.

    Raises
    ------
    TypeError
        It is not an integer; a boolean is rejected too.
    ValueError
        It is out of bounds.

    Examples
    --------
    >>> integer("steps", 3, 1)
    3
    >>> integer("steps", 0, 1)
    Traceback (most recent call last):
    ValueError: steps must be an integer >= 1, got 0
    >>> integer("steps", 3.0, 1)
    Traceback (most recent call last):
    TypeError: steps must be an integer >= 1, got 3.0
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if (
        found is not None
        and (minimum is None or found >= minimum)
        and (maximum is None or found <= maximum)
    ):
        return found
    expected = "an integer" if minimum is None else f"an integer >= {minimum}"
    if maximum is not None:
        bits = maximum.bit_length()
        power = bits > 16 and maximum == 2**bits - 1
        expected += f" and < 2**{bits}" if power else f" and <= {maximum}"
    raise (TypeError if found is None else ValueError)(f"{name} must be {expected}, got {value!r}")


def count(name: str, value: Any, minimum: int) -> int:
    """`integer`, clipped to the largest int32: beyond it, counts of chunks and hash rounds make no
    difference to an operation."""
    return min(integer(name, value, minimum), INT32_MAX)


def number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    below: float = math.inf,
) -> float:
    """`value` as a float, if it is a finite number within the bounds and less than `below`.

    Raises
    ------
    TypeError
        It is not a number; bool and str are rejected too.
    ValueError
        It is out of bounds.

    Examples
    --------
    >>> number("lr", 1, 0.0)
    1.0
    >>> number("lr", -1, 0.0)
    Traceback (most recent call last):
    ValueError: lr must be a finite number >= 0, got -1
    >>> number("dropout", 1.0, 0.0, below=1.0)
    Traceback (most recent call last):
    ValueError: dropout must be a number >= 0 and < 1, got 1.0
    """
    found = value if type(value) is float else _float(name, value)
    if not (minimum <= found <= maximum and found < below and math.isfinite(found)):
        bounds = ((">=", minimum), ("<=", maximum), ("<", below))
        known = " and ".join(f"{sign} {end:g}" for sign, end in bounds if math.isfinite(end))
        kind = "a number" if " and " in known else "a finite number"
        raise ValueError(f"{name} must be {kind} {known}".rstrip() + f", got {value!r}")
    return found


def positive(name: str, value: Any, *, infinite: bool = False) -> float:
    """`value` as a float, if it is a number above 0, and finite unless `infinite`.

    Examples
    --------
    >>> positive("max_norm", float("inf"), infinite=True)
    inf
    >>> positive("bytes_per_token", 0)
    Traceback (most recent call last):
    ValueError: bytes_per_token must be a finite number > 0, got 0
    """
    found = value if type(value) is float else _float(name, value)
    if not 0.0 < found < math.inf and not (infinite and found == math.inf):
        kind = "a number" if infinite else "a finite number"
        raise ValueError(f"{name} must be {kind} > 0, got {value!r}")
    return found


def _float(name: str, value: Any) -> float:
    try:
        if not issubclass(type(value), (bool, str, bytes)) and not getattr(value, "ndim", 0):
            return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def flag(name: str, value: Any, default: bool | None = None) -> bool:
    """`value` as a bool, if it is True or False, Python's or NumPy's; for None the default.

    Raises
    ------
    TypeError
        It is something else.

    Examples
    --------
    >>> flag("training", None, True)
    True
    >>> flag("training", "no")
    Traceback (most recent call last):
    TypeError: training must be True or False, got 'no'
    """
    if value is None and default is not None:
        return default
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


# ---- arrays ----


def as_array(name: str, values: Any) -> np.ndarray:
    """Convert values to an array, as the extension does.

    Raises
    ------
    TypeError
        It is or contains a masked array, whose mask NumPy would silently drop.
    ValueError
        It has rows of different lengths.

    Examples
    --------
    >>> as_array("ids", np.ma.masked_equal([3, 0], 0))
    Traceback (most recent call last):
    TypeError: ids must be an array without a mask, got a masked array: pass ids.filled(...), and \
mark the real tokens in attention_mask
    """
    if type(values) is np.ndarray:
        return values
    if is_masked(values):
        raise TypeError(
            f"{name} must be an array without a mask, got a masked array: pass "
            f"{name}.filled(...), and mark the real tokens in attention_mask"
        )
    try:
        return np.asarray(values)
    except ValueError as error:
        # NumPy's own message speaks of sequences and elements
        raise ValueError(f"{name} must have rows of one length, got rows of several") from error


def is_masked(values: Any) -> bool:
    """Whether it is a masked array, or a list that contains one."""
    if isinstance(values, (list, tuple)):
        return any(map(is_masked, values))
    return isinstance(values, np.ma.MaskedArray)


def real_tokens(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which tokens are real, by a mask of the shape that is nonzero for them.

    Raises
    ------
    TypeError, ValueError
        It has another dtype or shape, or is additive (0 = keep, -inf = drop).

    Examples
    --------
    >>> real_tokens("attention_mask", [[1, 1, 0]], (1, 3))
    array([[ True,  True, False]])
    """
    given = as_array(name, mask)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers or booleans, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {given.shape}")
    if given.size and not given.min() >= 0:
        raise ValueError(
            f"{name} must be nonzero for a real token and 0 for another, and not below 0, "
            f"got {given.min()}"
        )
    real: np.ndarray = given != 0
    return real


def heads_of(name: str, x: Any) -> tuple[np.ndarray, int, int, int]:
    """An array of attention heads, with its (h, t, d)."""
    array = as_array(name, x)
    shape = array.shape
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{name} must have shape (b, h, t, d), (h, t, d) or (t, d), got {shape}")
    return array, shape[-3] if array.ndim > 2 else 1, shape[-2], shape[-1]


def real_type(name: str, array: np.ndarray) -> type[np.floating[Any]]:
    """float32 or float64, the type of an array of any byte order."""
    if array.dtype.type not in (np.float32, np.float64):
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}: pass "
            f"{name}.astype(numpy.float32)"
        )
    return array.dtype.type


# ---- arguments of operations ----


def bucket_factors(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    """The number of buckets as a tuple of even factors; every bucket id fits into an int32."""
    listed = num_buckets if isinstance(num_buckets, (tuple, list)) else (num_buckets,)
    if isinstance(num_buckets, np.ndarray):
        listed = num_buckets.ravel()
    factors = tuple(integer("num_buckets", factor, 2) for factor in listed)
    if not factors or len(factors) > 16 or any(factor % 2 for factor in factors):
        raise ValueError(
            f"num_buckets must be an even number, or 1 to 16 even factors, got {num_buckets}"
        )
    if math.prod(factors) >= INT32_MAX:
        raise ValueError(f"num_buckets must have a product below 2**31 - 1, got {num_buckets}")
    return factors


def saved_by(kind: type[Saved], saved: Any) -> Saved:
    """`saved`, if it is of the type that the forward pass returns."""
    if not isinstance(saved, kind):
        raise TypeError(
            f"saved must be the {kind.__name__} of the forward pass, got {type(saved).__name__}"
        )
    return saved


# ---- names ----


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: suggests the nearest known one, if any.

    Examples
    --------
    >>> did_you_mean("temprature", ["top_k", "temperature"])
    '; did you mean temperature?'
    >>> did_you_mean("x", ["top_k"])
    ''
    """
    import difflib  # only errors need it

    in_lower_case = {other.lower(): other for other in known}
    nearest = difflib.get_close_matches(name.lower(), in_lower_case, n=1)
    return f"; did you mean {in_lower_case[nearest[0]]}?" if nearest else ""


def refuse_unknown(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse keyword arguments that `owner` does not take.

    Raises
    ------
    TypeError
        Names the first unknown argument, and the closest known one; if none is close and they are
        few, all of them.

    Examples
    --------
    >>> refuse_unknown(["temprature"], ["top_k", "temperature"], "generate")
    Traceback (most recent call last):
    TypeError: temprature: generate has no such argument; did you mean temperature?
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = did_you_mean(name, known)
            if not near and len(known) <= 12:
                near = f"; it has {', '.join(known)}"
            raise TypeError(f"{name}: {owner} has no such argument{near}")


def names_keywords(function: Function) -> Function:
    """Wrap `function` to refuse unknown keyword arguments, suggesting the closest known one.

    Examples
    --------
    >>> @names_keywords
    ... def draw(*, width=1):
    ...     return width
    >>> draw(widht=2)
    Traceback (most recent call last):
    TypeError: widht: draw has no such argument; did you mean width?
    """
    known, name = dict(inspect.signature(function).parameters), function.__name__
    known.pop("self", None)

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except TypeError:
            if options.keys() <= known.keys():
                raise
        owner = type(args[0]).__name__ if name in ("__init__", "__call__") else name.lstrip("_")
        refuse_unknown(options, known, owner)

    return cast(Function, checked)


class NamedAttributes:
    """An object that accepts only attributes declared by its class, in its body or annotations.

    Subclasses may declare others.

    Examples
    --------
    >>> class Box(NamedAttributes):
    ...     width: int
    >>> box = Box()
    >>> box.width = 3
    >>> box.widht = 3
    Traceback (most recent call last):
    AttributeError: widht: a Box has no such attribute; did you mean width?
    >>> box.wdth
    Traceback (most recent call last):
    AttributeError: wdth: a Box has no such attribute; did you mean width?
    """

    def __setattr__(self, name: str, value: Any) -> None:
        known = _attributes(type(self))  # type: ignore[arg-type]  # a class has a hash
        ours = type(self).__module__.startswith(__name__.partition(".")[0] + ".")
        if ours and name not in known:
            raise self._no_such(name)
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # a type checker would take every name

        def __getattr__(self, name: str) -> Any:
            raise self._no_such(name)

    def _no_such(self, name: str) -> AttributeError:
        known = _attributes(type(self))  # type: ignore[arg-type]  # a class has a hash
        public = [attribute for attribute in known if not attribute.startswith("_")]
        return AttributeError(
            f"{name}: a {type(self).__name__} has no such attribute{did_you_mean(name, public)}"
        )


@cache
def _attributes(cls: type) -> frozenset[str]:
    return frozenset(dir(cls)).union(*map(inspect.get_annotations, cls.__mro__))


def requires_extra(what: str, library: str, extra: str) -> ImportError:
    """The error for a missing library needed by `what`, with the commands that install it.

    The first adds the extra's libraries to a package that is installed, from an index or not.

    Examples
    --------
    >>> print(requires_extra("saving a model", "safetensors", "cli"))
    saving a model needs the safetensors library: pip install "reformer_c[cli]", or from a \
checkout: pip install -e ".[cli]"
    """
    return ImportError(
        f'{what} needs the {library} library: pip install "reformer_c[{extra}]", or from a '
        f'checkout: pip install -e ".[{extra}]"'
    )
