"""Decoding with a cache: a forward pass over the prompt, and then one token at a time.

With ``config.attention_scope="bucket"`` every token gets the logits that a forward pass over the
text so far gives it, to rounding: a token sees its bucket's earlier members, whatever comes later.
(A token whose two likeliest buckets are equally near, to rounding, may fall into the other one.)

With ``attention_scope="chunk"`` a new token is hashed, ranked among the sorted tokens of its text,
and attends to the chunk that it falls into and the chunks before it, as in Hugging Face's cached
decoding, but with the same rotations in every step and for each row of a batch by itself. A forward
pass over the text so far cuts the chunks elsewhere, and what it gives is close but not the same:
`docs/generation.md` has figures. Local layers give what a forward pass gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import ops
from .attention import CrossAttention, LSHAttention
from .body import Pass, warn_of_cut
from .config import ReformerConfig
from .heads import LanguageModel
from .inputs import padded_length
from .precision import in_own_precision
from .runtime import reuse_memory, underflow_to_zero

__all__ = ["Decoder", "cache_bytes", "num_buckets_of"]

# steps from one look at what a cap leaves out to the next, once it does
CUT_STEPS = 256


class Decoder:
    """Texts that grow token by token: the `Source` of ``reformer_c.generate``, with a cache.

    Parameters
    ----------
    begin : callable
        From ids (n, t), and the numbers (n,) of the texts with which they began, to a `Pass` over
        them.
    head : LanguageModel
    longest : int
        The most tokens that a text will have.
    numbers : ndarray of int, (n,), optional
        What `begin` knows the texts by; 0, 1 ... by default.

    Attributes
    ----------
    nbytes : int
        Bytes of the cache.
    """

    def __init__(
        self,
        begin: Callable[[np.ndarray, np.ndarray], Pass],
        head: LanguageModel,
        longest: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self._begin, self._head, self._longest = begin, head, longest
        self._numbers = numbers
        self._caches: list[ops.AttentionCache] = []

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches)

    @property
    def cut_shares(self) -> tuple[float, ...]:
        """Of each LSH layer, the share of pairs that ``config.bucket_cap`` has left out."""
        return tuple(cache.cut_share for cache in self._caches if cache.hashes)

    @reuse_memory()
    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (n, v) of what follows n texts; those of one length go through a forward pass
        together."""
        self._lengths = np.array([len(text) for text in texts], np.int64)
        self._began = np.arange(len(texts)) if self._numbers is None else self._numbers
        self._caches = []
        logits: np.ndarray | None = None
        for t in np.unique(self._lengths):
            rows = np.flatnonzero(self._lengths == t)
            run = self._begin(np.stack([texts[int(row)] for row in rows]), self._began[rows])
            if not self._caches:
                self._open(run, len(texts))
            for cache, (attention, *_) in zip(self._caches, run.layers, strict=True):
                if isinstance(attention, LSHAttention):
                    attention.rotations = cache.rotations
                attention.remember = partial(self._fill, cache, rows, int(t))
            run.forward()
            found = self._head.next_logits(run)
            if logits is None:
                logits = np.empty((len(texts), found.shape[1]), found.dtype)
            logits[rows] = found
        assert logits is not None
        # for the steps: the streams of the prompt are not needed any more
        del run.y1, run.y2
        self._run = run
        self._prompt = int(self._lengths.min())
        self._quiet = self._quiet_steps()
        return logits

    def _open(self, run: Pass, b: int) -> None:
        """Empty caches, and the layers' weights in the order that a step takes them."""
        self._layers = []
        for attention, *others in run.layers:
            weights, rules = attention.weights, attention.rules
            norm = (weights["layer_norm.weight"], weights["layer_norm.bias"])
            names = [f"self_attention.{name}.weight" for name in attention.projections]
            first, *more = (weights[name] for name in names)
            key = more[0] if len(more) == 2 else None
            self._layers.append(
                ((norm, (first, key, more[-1], weights["output.dense.weight"])), others)
            )
            h, d = attention.num_heads, len(first) // attention.num_heads
            hashing: dict[str, Any] = {"scope": "local"}
            if isinstance(attention, LSHAttention):
                hashing = lsh_rules(attention, h, d, first.dtype)
            self._caches.append(
                ops.AttentionCache(
                    b, h, d, longest=self._longest, chunk_length=rules["chunk_length"],
                    num_chunks_before=rules["num_chunks_before"], softcap=rules["softcap"],
                    eps=attention.eps, dtype=first.dtype.type, **hashing,
                )
            )  # fmt: skip

    @staticmethod
    def _fill(
        cache: ops.AttentionCache, rows: np.ndarray, t: int, heads: Sequence[np.ndarray],
        buckets: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Put the first t tokens of a layer's projections into its cache: the rest is padding."""
        *_, k, v = (x[:, :, :t] for x in heads)
        if cache.rotations is not None and buckets is None:  # a text of one chunk was not hashed
            buckets = ops.lsh_hash(
                k, num_hashes=cache.rotations.shape[2], num_buckets=cache.num_buckets,
                rotations=cache.rotations,
            )  # fmt: skip
        cache.fill(rows, k, v, None if buckets is None else buckets[..., :t])

    @property
    def config(self) -> ReformerConfig:
        """Of the model that decodes."""
        return self._run.config

    @in_own_precision
    @underflow_to_zero()
    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Append a token to each of the texts `rows`; logits (n, v) of what follows."""
        positions, run = self._lengths[rows], self._run
        y1 = run.embeddings.forward(tokens[None], None, positions[None])[0]
        y2 = y1.copy()
        for cache, (weights, others) in zip(self._caches, self._layers, strict=True):
            cache.step(y1, y2, *weights, rows, positions)
            for branch in others:  # in turn, as `turns_forward` does
                y1, y2 = y2, y1
                if isinstance(branch, CrossAttention):
                    branch.step_add(y1, y2, self._began[rows])
                else:
                    branch.forward_add(y1, y2)
            y1, y2 = y2, y1
        self._lengths[rows] += 1
        self._quiet -= 1
        if self._quiet < 0:
            warn_of_cut(run.config.bucket_cap, self.cut_shares)
            self._quiet = self._quiet_steps()
        h, _ = run.norm.forward(y1, y2, slice(None))
        return ops.linear(h, *self._head.decoder(run))

    def _quiet_steps(self) -> float:
        """Steps after which nobody has to hear of the cap again."""
        uncut = min((cache.steps_uncut for cache in self._caches), default=math.inf)
        return uncut if uncut >= 0 else CUT_STEPS - 1

    def take(self, parents: np.ndarray) -> None:
        """Make text i a copy of text parents[i], which began with the same prompt."""
        most = int(self._lengths.max(initial=0))
        for cache in self._caches:
            cache.take(parents, self._prompt, most)
        self._lengths, self._began = self._lengths[parents], self._began[parents]


def lsh_rules(attention: LSHAttention, h: int, d: int, dtype: np.dtype) -> dict:
    """How an LSH layer's cache hashes: with the rotations that its forward pass draws."""
    rules = attention.rules
    buckets = rules["num_buckets"]
    rotations = attention.rotations
    if rotations is None:
        rotations = ops.lsh_rotations(
            h, d, num_hashes=rules["num_hashes"], num_buckets=buckets,
            rng=attention.rotations_key, dtype=dtype,
        )  # fmt: skip
    factors = (buckets,) if isinstance(buckets, int) else tuple(buckets)
    return {
        "scope": rules["scope"], "rotations": np.ascontiguousarray(rotations),
        "num_buckets": factors, "bucket_cap": rules.get("bucket_cap"),
    }  # fmt: skip


def num_buckets_of(config: ReformerConfig, t: int) -> int | Sequence[int] | None:
    """The number of buckets with which a text that begins with t tokens is continued.

    Where the configuration leaves it open it is what transformers chooses at the first forward pass
    that hashes: for the prompt, or for the length at which a shorter one grows beyond a chunk. With
    ``attention_scope="bucket"`` that is the prompt's length always.
    """
    if config.num_buckets is not None or "lsh" not in config.layer_types:
        return config.num_buckets
    m = config.attention("lsh", "attn_chunk_length")
    hashed = t if config.attention_scope == "bucket" else max(t, m + 1)
    n = padded_length(config, hashed, masked=False)
    return ops.choose_num_buckets(n, m, config.max_position_embeddings)


def cache_bytes(
    config: ReformerConfig, t: int, *, prompt: int | None = None, batch: int = 1, itemsize: int = 4
) -> int:
    """Bytes of the cache for `batch` texts of t tokens, the first `prompt` of which were given.

    With t the prompt and all new tokens it is what a `Decoder` sets aside; pages that are not
    written yet take no memory. A local layer's share does not grow with t. Where
    ``config.num_buckets`` is None, the prompt's length (t by default) decides how many there are.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
    >>> cache_bytes(config, 1000) == cache_bytes(config, 4000) == 2 * 2 * 128 * 64 * 4
    True
    """
    h, d = config.num_attention_heads, config.attention_head_size
    total = 0
    for kind in config.layer_types:
        m = config.attention(kind, "attn_chunk_length")
        room = t if kind == "lsh" else (config.attention(kind, "num_chunks_before") + 1) * m
        total += 2 * h * room * d * itemsize
        if kind == "lsh":
            buckets = num_buckets_of(config, t if prompt is None else prompt)
            assert buckets is not None
            count = buckets if isinstance(buckets, int) else math.prod(buckets)
            total += 4 * h * (config.num_hashes or 1) * (t + 2 * count)
    return batch * total
