"""Observers of attention layers: they collect what a forward pass computes, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..ops.attention import AttentionSaved
from .attention import Attention
from .parts import Part
from .sublayer import Sublayer

__all__ = ["CacheFill", "Caches", "Probabilities"]


class Probabilities:
    """Collects the attention probabilities of all layers: softmax(q k') of each part.

    A layer's array is (b, h, n, keys), or (b, h, rounds, chunks, m, window) for chunks of m tokens.
    """

    def __init__(self) -> None:
        self._found: dict[str, np.ndarray] = {}

    def __call__(
        self, layer: Attention, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> None:
        found = layer.probabilities(part, heads, saved)
        shape, name = layer.probabilities_shape, layer.weights.prefix
        whole = self._found.setdefault(name, np.zeros(shape, found.dtype))
        if len(shape) == 4:
            part.place(whole[..., : found.shape[3]], found)
            return
        rounds, _, m, _ = shape[2:]
        first, start = divmod(part.own.start, layer.shape[1])
        chunks = slice(start // m, -(-(start + part.own_length) // m))
        place = whole[first : first + part.sequences, part.heads, :, chunks]
        k = part.length
        if k > m:
            found = found.reshape(*found.shape[:2], rounds, -1, *found.shape[3:])
            lead = part.lead // m
            place[...] = found[:, :, :, lead : lead + place.shape[3]]
        else:  # one chunk, in every round
            before = layer.rules["num_chunks_before"] * m
            place[:, :, :, 0, :k, before : before + k] = found[:, :, None]

    def layers(self) -> tuple[np.ndarray, ...]:
        """The array of each layer, in Hugging Face's shapes: rounds and chunks are one
        dimension."""
        return tuple(
            p if p.ndim == 4 else p.reshape(*p.shape[:2], -1, *p.shape[4:])
            for p in self._found.values()
        )


class Caches:
    """The caches of a model's branches, each opened at its first use.

    Parameters
    ----------
    b : int
        Number of texts.
    longest : int
        Maximum number of tokens of a text, or of those kept of it.
    **options
        `drop` and `cache_dtype` of `ops.AttentionCache`.
    """

    def __init__(self, b: int, longest: int, **options: Any) -> None:
        self._size, self._options = (b, longest), options
        self._caches: dict[str, Any] = {}

    def of(self, branch: Sublayer) -> Any:
        name = branch.weights.prefix
        if name not in self._caches:
            self._caches[name] = branch.open_cache(*self._size, **self._options)
        return self._caches[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._caches.values())


class CacheFill:
    """Fills the caches of texts from a forward pass over their prompts, all of one length.

    The keys and values (b, h or hk, t, d) of a layer, and its buckets (b, h, r, t), are collected
    part by part, and stored in the layer's cache with the last part.

    Parameters
    ----------
    caches : Caches
    rows : ndarray of int, (b,)
        The texts in the caches.
    t : int
        Tokens of each prompt; the rest is padding.
    """

    def __init__(self, caches: Caches, rows: np.ndarray, t: int) -> None:
        self._caches, self._rows, self._t = caches, rows, t
        # arrays (b, h, n, ...) of the current layer, and the number of (token, head) still missing
        self._arrays: list[np.ndarray] = []
        self._missing = 0

    def __call__(
        self, layer: Attention, part: Part, heads: list[np.ndarray], saved: AttentionSaved
    ) -> None:
        arrays = dict(zip(layer.projections[-2:], heads[-2:], strict=True))
        buckets = layer.key_buckets(saved)
        if buckets is not None:
            arrays["buckets"] = buckets.swapaxes(2, 3)
        b, n = layer.shape
        if self._missing == 0:
            self._missing = b * n * layer.num_heads
            self._arrays = [
                np.empty((b, layer.head_count(name), n, x.shape[3]), x.dtype)
                for name, x in arrays.items()
            ]
        for whole, (name, array) in zip(self._arrays, arrays.items(), strict=True):
            part.place(whole, array, layer.heads_of(part, name))
        self._missing -= part.sequences * part.own_length * part.num_heads
        if self._missing == 0:
            self._fill(self._caches.of(layer), *(x[:, :, : self._t] for x in self._arrays))
            self._arrays = []

    def _fill(
        self,
        cache: ops.AttentionCache,
        k: np.ndarray,
        v: np.ndarray,
        buckets: np.ndarray | None = None,
    ) -> None:
        if buckets is not None:
            buckets = buckets.swapaxes(2, 3)
        elif cache.rotations is not None:  # a prompt of one chunk is not hashed by the layer
            buckets = ops.lsh_hash(
                k, num_hashes=cache.rotations.shape[2], num_buckets=cache.num_buckets,
                rotations=cache.rotations,
            )  # fmt: skip
        cache.fill(self._rows, k, v, buckets)
