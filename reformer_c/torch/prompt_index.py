"""The index of each layer's cache: new tokens of long prompts attend to what it finds.

transformers passes the whole cache in each step, and does not say whether it is that of the step
before with one more token, or another: beams change places, an assistant's tokens are taken back, a
new prompt begins. So an index is compared with the cache, bit for bit, before it is used; what
differs is forgotten and hashed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..ops.key_value_index import KeyValueIndex
from .tensors import array_of, mask_of

__all__ = ["attend_by_index", "forget", "index_of"]


@dataclass
class _Kept:
    """An index, the options that it was made with, and its length then."""

    index: KeyValueIndex
    options: dict[str, Any]
    made: int


_kept: WeakKeyDictionary[torch.nn.Module, _Kept] = WeakKeyDictionary()


def index_of(module: torch.nn.Module) -> KeyValueIndex | None:
    """The index by which the last step of ``generate`` attended, see `use_lsh_attention`.

    Parameters
    ----------
    module : torch.nn.Module
        The attention of a layer, such as ``model.model.layers[0].self_attn``.

    Returns
    -------
    KeyValueIndex or None
        Its ``compare`` says what queries find of full attention. None where attention was exact.

    Examples
    --------
    >>> index_of(torch.nn.Linear(2, 2)) is None
    True
    """
    kept = _kept.get(module)
    return None if kept is None else kept.index


def forget(module: torch.nn.Module) -> None:
    """Drop the index of a layer, whose prompt has ended."""
    _kept.pop(module, None)


def attend_by_index(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> Tensor:
    """Attention (b, h, t, d) of the newest t tokens of a cache.

    Parameters
    ----------
    module : torch.nn.Module
        The layer, which keeps its index.
    query : (b, h, t, d)
        Queries of the newest tokens.
    key, value : (b, hk, tk, d)
        The cache, with those of the newest tokens.
    mask : (b, tk), optional
        Nonzero for a real token.
    **options
        Of `KeyValueIndex`.

    Returns
    -------
    Tensor, (b, h, t, d)
    """
    k, v, real = array_of(key), array_of(value), mask_of(mask)
    workers = torch.get_num_threads()
    tk, kept = k.shape[2], _kept.get(module)
    same = 0
    # buckets of a text that has doubled are twice as large
    if kept is not None and kept.options == options and tk <= 2 * kept.made:
        same = kept.index.common_length(k, v, attention_mask=real)
    if kept is None or 2 * same < kept.made:
        drawn = dict(options)
        if drawn["rng"] is None:
            drawn["rng"] = int(torch.randint(2**31, ()))
        index = KeyValueIndex(k, v, attention_mask=real, workers=workers, **drawn)
        kept = _kept[module] = _Kept(index, options, tk)
    else:
        index, rest = kept.index, slice(same, None)
        index.crop(same)
        index.append(
            k[:, :, rest], v[:, :, rest],
            attention_mask=None if real is None else real[:, rest], workers=workers,
        )  # fmt: skip
    out = kept.index.attend(array_of(query), workers=workers)
    return torch.from_numpy(out).to(query.dtype)
