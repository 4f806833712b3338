"""Named weights of a model, and what a layer sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from .. import ops
from ..checks import did_you_mean
from .halves import computed, is_bfloat16, is_half, widened

__all__ = ["Joined", "Parameters", "StepWeights", "Weights"]


class Parameters(MutableMapping[str, np.ndarray]):
    """Arrays by name, with fixed names, shapes and dtypes.

    Assignment copies into the existing array, so references to it see the new values.

    Examples
    --------
    >>> parameters = Parameters({"weight": np.zeros((2, 3), np.float32)})
    >>> weight = parameters["weight"]
    >>> parameters["weight"] = np.ones((2, 3), np.float32)
    >>> weight[0]
    array([1., 1., 1.], dtype=float32)
    >>> parameters["weight"] = np.ones(3, np.float32)
    Traceback (most recent call last):
    ValueError: parameters['weight'] must have shape (2, 3), got (3,)
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise self._unknown(name) from None

    def _unknown(self, name: str) -> KeyError:
        known = did_you_mean(name, self) if isinstance(name, str) else ""
        return KeyError(f"parameters: this model has no {name!r}{known}")

    def replace(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace arrays, possibly by other shapes; references to the old ones are not updated."""
        self._arrays = {**self._arrays, **arrays}

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if name not in self._arrays:
            raise self._unknown(name)
        own = self._arrays[name]
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"parameters[{name!r}] must be an array, got {type(array).__name__}")
        if array.dtype != own.dtype:
            raise TypeError(f"parameters[{name!r}] must be {own.dtype}, got {array.dtype}")
        if array.shape != own.shape:
            raise ValueError(f"parameters[{name!r}] must have shape {own.shape}, got {array.shape}")
        own[...] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError("parameters cannot be removed from a model")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        count = sum(array.size for array in self._arrays.values())
        return f"<Parameters: {len(self)} arrays, {count:,} numbers>"


class Joined(Mapping[str, Any]):
    """Several mappings as one, each under a prefix.

    Examples
    --------
    >>> dict(Joined({"a.": {"x": 1}, "b.": {"x": 2}}))
    {'a.x': 1, 'b.x': 2}
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Any:
        for prefix, part in self._parts.items():
            if name.startswith(prefix):
                return part[name.removeprefix(prefix)]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (prefix + name for prefix, part in self._parts.items() for name in part)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))


class Weights:
    """The parameters whose names begin with a prefix, without it, and their gradients.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        All parameters of the model, by their full names.
    gradients : dict of str to ndarray
        Filled by `add_gradient`, by full names. A gradient has the shape of its parameter.
    prefix : str
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        gradients: dict[str, np.ndarray],
        prefix: str = "",
    ) -> None:
        self._parameters, self._gradients, self.prefix = parameters, gradients, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        """The parameter; of half precision, a copy of float32."""
        return widened(self.stored(name))

    def stored(self, name: str) -> np.ndarray:
        """The parameter in its own dtype."""
        return self._parameters[self.prefix + name]

    def rows(self, name: str, ids: np.ndarray) -> tuple[np.ndarray, Any]:
        """The rows (..., c) of a table (v, c), and what `ops.embedding_backward` needs."""
        table = self.stored(name)
        if is_half(table.dtype):  # a few rows are widened, not the table; it is not trained
            return widened(table[ids]), None
        return ops.embedding_forward(ids, table)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of activations."""
        return computed(next(iter(self._parameters.values())).dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of these parameters, and therefore of their gradients."""
        arrays = self._parameters.items()
        return sum(array.nbytes for name, array in arrays if name.startswith(self.prefix))

    def below(self, prefix: str) -> Weights:
        """The parameters whose names continue with this prefix."""
        return Weights(self._parameters, self._gradients, self.prefix + prefix)

    def add_gradient(self, name: str, gradient: np.ndarray | None, at: Any = None) -> None:
        """Accumulate a gradient. The first is stored without a copy, so the caller must not reuse
        it; None is ignored.

        `at` is an index: the gradient covers these elements only.
        """
        name = self.prefix + name
        if gradient is None:
            return
        if at is not None:
            if name not in self._gradients:
                self._gradients[name] = np.zeros_like(self._parameters[name])
            self._gradients[name][at] += gradient
        elif name in self._gradients:
            ops.add_scaled(self._gradients[name], gradient, 1.0)
        else:
            self._gradients[name] = gradient

    def add_gradients(self, names: Iterable[str], gradients: Iterable[np.ndarray | None]) -> None:
        """`add_gradient` of each."""
        for name, gradient in zip(names, gradients, strict=True):
            self.add_gradient(name, gradient)


class StepWeights:
    """The weight matrices (co, ci) of decoding steps, quantized at their first use.

    Parameters
    ----------
    storage : {"int8", "bfloat16"} or None
        As in `ops.quantize`; None uses the model's matrices as they are, those of float16 in
        float32.
    """

    def __init__(self, storage: str | None = None) -> None:
        self._storage = storage
        self._quantized: dict[str, np.ndarray | ops.QuantizedWeight] = {}

    def matrix(self, weights: Weights, name: str) -> np.ndarray | ops.QuantizedWeight:
        """The matrix `name` of these weights."""
        stored, full_name = weights.stored(name), weights.prefix + name
        if self._storage is None and not is_half(stored.dtype):
            return stored
        if full_name not in self._quantized:
            try:
                self._quantized[full_name] = self._in_fewer_bits(stored)
            except ValueError as error:
                message = f"weights must be finite numbers, got others in {full_name}"
                raise ValueError(message) from error
        return self._quantized[full_name]

    def _in_fewer_bits(self, stored: np.ndarray) -> np.ndarray | ops.QuantizedWeight:
        if is_bfloat16(stored.dtype) and self._storage in (None, "bfloat16"):
            return ops.QuantizedWeight(stored.view(np.uint16), None)  # the same memory
        weight = widened(stored)
        return weight if self._storage is None else ops.quantize(weight, self._storage)

    def linear(
        self, x: np.ndarray, weights: Weights, name: str, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """x w' + bias of the tokens x (n, ci), with the matrix w (co, ci) of that name."""
        matrix = self.matrix(weights, name)
        if isinstance(matrix, np.ndarray):
            return ops.linear(x, matrix, bias)
        return ops.quantized_linear(x, matrix, bias)
