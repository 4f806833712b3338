"""Decoding with a cache: a forward pass over the prompt, and then one token at a time.

With ``config.attention_scope="bucket"`` the logits equal those of a forward pass over the text so
far, to rounding: a token attends to the earlier members of its bucket, and later tokens do not
change that. (If two buckets of a token are equally close to rounding, it may be assigned to the
other one.)

With ``attention_scope="chunk"`` a new token is hashed, inserted into the sorted tokens of its text,
and attends to its chunk and the chunks before it, as in Hugging Face's cached decoding, but with
the same rotations in every step and separately for each row of a batch. The chunks of a forward
pass over the text so far have other boundaries, so its result is close but not the same:
`docs/generation.md` has measurements. Local layers compute the same as in a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..layers.observers import CacheFill, Caches
from ..layers.parameters import StepWeights
from ..layers.residual import residual_forward
from ..layers.reversible import alternating_forward
from ..layers.sublayer import Step
from ..precision import in_own_precision
from ..runtime import reuse_memory, underflow_to_zero
from .body import Pass, warn_of_cut
from .config import ReformerConfig
from .heads import LanguageModel
from .inputs import padded_length

__all__ = ["Decoder", "cache_bytes", "num_buckets_of"]

# once a bucket cap leaves out pairs, steps between checks of how many
CUT_STEPS = 256


class Decoder:
    """A `LogitsSource` of ``reformer_c.models.sources`` with a cache.

    Parameters
    ----------
    begin : callable
        From ids (n, t), the indices (n,) of their prompts, and observers of the attention layers,
        to a `Pass` over them.
    head : LanguageModel
    longest : int
        Maximum number of tokens of a text, or of those kept of it.
    prompt_index : ndarray of int, (n,), optional
        The index that identifies each prompt to `begin`; 0, 1 ... by default.
    weights : StepWeights, optional
        The weights of the steps after the prompts; the model's by default.
    **options
        `drop` and `cache_dtype` of `ops.AttentionCache`.

    Attributes
    ----------
    nbytes : int
        Bytes of the cache.
    """

    def __init__(
        self,
        begin: Callable[[np.ndarray, np.ndarray, tuple[CacheFill, ...]], Pass],
        head: LanguageModel,
        longest: int,
        prompt_index: np.ndarray | None = None,
        weights: StepWeights | None = None,
        **options: Any,
    ) -> None:
        self._begin, self._head, self._longest = begin, head, longest
        self._options = options
        self._weights = StepWeights() if weights is None else weights
        self._first_index = prompt_index
        self._caches = Caches(0, longest, **options)
        # one function of (step, out, x) for each branch
        self._functions: list[Callable[..., None]] = []

    @property
    def caches(self) -> list[ops.AttentionCache]:
        """The caches of the self-attention layers."""
        return [cache for cache in self._caches if isinstance(cache, ops.AttentionCache)]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    @property
    def cut_shares(self) -> tuple[float, ...]:
        """For each LSH layer, the share of pairs that ``config.bucket_cap`` has left out."""
        return tuple(cache.cut_share for cache in self.caches if cache.hashes)

    @reuse_memory()
    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (n, v) of the next tokens of n texts; texts of one length share a forward pass."""
        self._lengths = np.array([len(text) for text in texts], np.int64)
        index = self._first_index
        self._prompt_index = np.arange(len(texts)) if index is None else index
        self._caches = Caches(len(texts), self._longest, **self._options)
        self._functions = []
        logits: np.ndarray | None = None
        for t in np.unique(self._lengths).tolist():
            rows = np.flatnonzero(self._lengths == t)
            fill = CacheFill(self._caches, rows, t)
            ids = np.stack([texts[int(row)] for row in rows])
            run = self._begin(ids, self._prompt_index[rows], (fill,))
            run.forward()
            found = self._head.next_logits(run)
            if logits is None:
                logits = np.empty((len(texts), found.shape[1]), found.dtype)
            logits[rows] = found
        assert logits is not None
        # steps use the pass, but not the streams of the prompt: free them
        del run.y1, run.y2
        self._run = run
        self._prompt = int(self._lengths.min())
        self._steps_unchecked = self._steps_until_cut()
        return logits

    @property
    def config(self) -> ReformerConfig:
        """The configuration of the model."""
        return self._run.config

    @in_own_precision
    @underflow_to_zero()
    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Append a token to each of the texts `rows`; logits (n, v) of the next ones."""
        positions, run = self._lengths[rows], self._run
        y1 = run.embeddings.forward(tokens[None], None, positions[None])[0]
        if not self._functions:
            self._functions = [partial(f.step_stream, self._caches.of(f)) for f in run.branches]
        step = Step(rows, positions, self._prompt_index[rows], self._weights)
        functions = [partial(add, step) for add in self._functions]
        if run.config.reversible:
            y1, y2 = alternating_forward(functions, y1, y1.copy())
        else:
            residual_forward(functions, y1)
            y2 = y1
        self._lengths[rows] += 1
        self._steps_unchecked -= 1
        if self._steps_unchecked < 0:
            warn_of_cut(run.config.bucket_cap, self.cut_shares)
            self._steps_unchecked = self._steps_until_cut()
        h, _ = run.norm.forward(y1, y2, slice(None))
        return self._head.step_logits(run, self._weights, h)

    def _steps_until_cut(self) -> float:
        """Steps until the share that the cap leaves out is to be checked again."""
        uncut = min((cache.steps_uncut for cache in self.caches), default=math.inf)
        return uncut if uncut >= 0 else CUT_STEPS - 1

    def reorder(self, parents: np.ndarray) -> None:
        """Make text i a copy of text parents[i], which has the same prompt."""
        longest = int(self._lengths.max(initial=0))
        for cache in self.caches:
            cache.take(parents, self._prompt, longest)
        self._lengths, self._prompt_index = self._lengths[parents], self._prompt_index[parents]


def num_buckets_of(config: ReformerConfig, t: int) -> int | Sequence[int] | None:
    """The number of buckets for continuing a prompt of t tokens.

    If the configuration does not fix it, it is the number that transformers chooses at the first
    forward pass that hashes: for the prompt, or for the length at which a shorter one exceeds a
    chunk. With ``attention_scope="bucket"``, or a "hash" layer, it is always chosen for the
    prompt's length.
    """
    if config.num_buckets is not None or not config.hashes:
        return config.num_buckets
    m = config.attention("lsh", "attn_chunk_length")
    whole = config.attention_scope == "bucket" or "hash" in config.layer_types
    hashed = t if whole else max(t, m + 1)
    n = padded_length(config, hashed, masked=False)
    return ops.choose_num_buckets(n, m, config.max_position_embeddings)


def cache_bytes(
    config: ReformerConfig,
    t: int,
    *,
    prompt: int | None = None,
    batch: int = 1,
    cache_length: int | None = None,
    itemsize: int = 4,
) -> int:
    """Bytes of the cache for `batch` texts of t tokens, which begin with `prompt` tokens, or with
    at most `cache_length` tokens of each.

    See ``ReformerModelWithLMHead.cache_bytes``.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
    >>> cache_bytes(config, 1000) == cache_bytes(config, 4000) == 2 * 2 * 128 * 64 * 4
    True
    """
    h, d = config.num_attention_heads, config.attention_head_size
    kept = t if cache_length is None else min(t, cache_length)
    total = 0
    for kind in config.layer_types:
        room = kept
        if kind == "local":
            before = config.attention(kind, "num_chunks_before")
            room = (before + 1) * config.attention(kind, "attn_chunk_length")
        key_heads = h if config.shares_qk(kind) else config.key_value_heads
        total += (key_heads + config.key_value_heads) * room * d * itemsize
        if kind == "hash":
            rounds = config.num_hashes or 1
            # the keys' buckets, and the sums of the keys
            total += 4 * h * rounds * kept + 8 * config.key_value_heads * d
        elif kind == "lsh":
            buckets = num_buckets_of(config, t if prompt is None else prompt)
            assert buckets is not None
            count = buckets if isinstance(buckets, int) else math.prod(buckets)
            total += 4 * h * (config.num_hashes or 1) * (kept + 2 * count)
    return batch * total
