"""Generation from logits: greedy decoding, sampling and beam search over prompts of any lengths.

This module is independent of models: a `LogitsSource` gives the logits of the next token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..checks import as_array, integer
from .generation_config import GenerationConfig

__all__ = [
    "Grouped",
    "LogitsSource",
    "Rules",
    "UncachedSource",
    "beam_search",
    "probabilities",
    "stream_tokens",
]

# functions of one text's ids (t,) and the logits (v,) of its next token
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]
Criterion = Callable[[np.ndarray, np.ndarray], bool]

# Hugging Face's substitute for minus infinity in beam search: sums of it stay comparable
NEVER = -1e9
# lower bound for temperatures and penalties: it has the effect of their limit 0, and float32 logits
# divided by it do not overflow
TINY = 1e-100
# options that may exclude every token
BANNING = "bad_words_ids, suppress_tokens, no_repeat_ngram_size, logits_processor"


class LogitsSource(Protocol):
    """Holds n texts and gives the logits of each one's next token."""

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Set the texts; returns logits (n, v) of the next tokens."""

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Append a token to each of the texts `rows` (n,); returns logits (n, v) of the next."""

    def reorder(self, parents: np.ndarray) -> None:
        """Replace text i by a copy of text parents[i]; the number of texts may change."""


class UncachedSource:
    """A `LogitsSource` that computes logits (n, v) by a function of ids (n, t) of whole texts and
    of the indices (n,) of their prompts.

    Texts of equal length are computed in one call.
    """

    def __init__(self, next_logits: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._next_logits = next_logits
        self._texts: list[np.ndarray] = []
        self._prompt_index = np.zeros(0, np.int64)

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        self._texts, self._prompt_index = list(texts), np.arange(len(texts))
        return self._logits(np.arange(len(texts)))

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        for row, token in zip(rows, tokens, strict=True):
            self._texts[row] = np.append(self._texts[row], token)
        return self._logits(rows)

    def reorder(self, parents: np.ndarray) -> None:
        self._texts = [self._texts[parent] for parent in parents]
        self._prompt_index = self._prompt_index[parents]

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.array([len(self._texts[row]) for row in rows])
        found: list[Any] = [None] * len(rows)
        for t in np.unique(lengths):
            group = np.flatnonzero(lengths == t)
            ids = np.stack([self._texts[rows[i]] for i in group])
            logits = self._next_logits(ids, self._prompt_index[rows[group]])
            for i, row in zip(group, logits, strict=True):
                found[i] = row
        return np.stack(found)


class Grouped:
    """A `LogitsSource` composed of several, one per group of texts.

    Parameters
    ----------
    groups : ndarray of int, (n,)
        The group of each initial text.
    sources : dict of int to LogitsSource
        By group.
    """

    def __init__(self, groups: np.ndarray, sources: dict[int, LogitsSource]) -> None:
        self._groups, self._sources = groups, sources

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        return self._gather(
            np.arange(len(texts)), lambda source, _, own: source.start([texts[i] for i in own])
        )

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        numbers = self._numbers
        return self._gather(rows, lambda source, at, own: source.step(numbers[own], tokens[at]))

    def reorder(self, parents: np.ndarray) -> None:
        numbers, self._groups = self._numbers[parents], self._groups[parents]
        for group, source in self._sources.items():
            source.reorder(numbers[self._groups == group])

    @property
    def _numbers(self) -> np.ndarray:
        """The index of each text in the source of its group."""
        numbers = np.empty(len(self._groups), np.int64)
        for group in self._sources:
            own = self._groups == group
            numbers[own] = np.arange(own.sum())
        return numbers

    def _gather(
        self, rows: np.ndarray, call: Callable[[LogitsSource, np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Logits (n, v) of texts `rows` (n,), from call(source, indices into rows, texts)."""
        found: list[Any] = [None] * len(rows)
        for group, source in self._sources.items():
            at = np.flatnonzero(self._groups[rows] == group)
            if len(at):
                for i, row in zip(at, call(source, at, rows[at]), strict=True):
                    found[i] = row
        return np.stack(found)


# ---- choice of a token ----


class Rules:
    """Processes logits, chooses tokens and decides when a text ends.

    Parameters
    ----------
    options : GenerationConfig
        The result of ``GenerationConfig.resolved``, which fills in defaults.
    logits_processor, stopping_criteria, prefix_allowed_tokens_fn : optional
        The functions of ``ReformerModelWithLMHead.generate``.

    Raises
    ------
    TypeError
        An argument is not a function.
    """

    def __init__(
        self,
        options: GenerationConfig,
        *,
        logits_processor: Processor | Sequence[Processor] | None = None,
        stopping_criteria: Criterion | Sequence[Criterion] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, np.ndarray], Sequence[int]] | None = None,
    ) -> None:
        self.options = options
        self.end_tokens = _list(options.eos_token_id)
        self._processors = _functions("logits_processor", logits_processor)
        self._criteria = _functions("stopping_criteria", stopping_criteria)
        if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
            raise TypeError(
                "prefix_allowed_tokens_fn must be a function of a row's number and its ids, "
                f"got {prefix_allowed_tokens_fn!r}"
            )
        self._allowed = prefix_allowed_tokens_fn
        # as in transformers, an end token alone is not a bad word
        self._bad = [
            word for word in options.bad_words_ids or []
            if word not in [[token] for token in self.end_tokens]
        ]  # fmt: skip

    def stops(self, text: _Text, logits: np.ndarray) -> bool:
        """Whether a text, with its newest token, has ended."""
        return (
            int(text.ids[-1]) in self.end_tokens
            or text.new >= self.options.max_new_tokens
            or any(_says_stop(stop(text.ids, logits)) for stop in self._criteria)
        )

    def process(self, logits: Sequence[np.ndarray], texts: Sequence[_Text]) -> list[np.ndarray]:
        """Apply penalties, bans and processors to logits (v,) of texts of one prompt, in
        transformers' order; float64."""
        rows = [np.array(row, np.float64) for row in logits]
        for z, text in zip(rows, texts, strict=True):
            self._penalise(z, text)
            z[self._banned(text)] = -math.inf
        if self._allowed is not None:
            rows = self._restricted(rows, texts, self._allowed)
        return [self._forced(z, text) for z, text in zip(rows, texts, strict=True)]

    def _penalise(self, z: np.ndarray, text: _Text) -> None:
        # beyond these bounds the result is the same, but numbers could overflow
        penalty = min(max(self.options.repetition_penalty, TINY), 1 / TINY)
        if penalty != 1.0:
            seen = text.seen(len(z))
            with np.errstate(under="ignore", over="ignore"):
                z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)

    def _banned(self, text: _Text) -> list[int]:
        """Tokens that would repeat an n-gram, complete a bad word, or end too early."""
        banned = text.repeats(self.options.no_repeat_ngram_size)
        for word in self._bad:
            before = len(word) - 1
            if before == 0 or text.ids[-before:].tolist() == word[:-1]:
                banned.append(word[-1])
        return banned + (self.end_tokens if text.new < self.options.min_new_tokens else [])

    def _restricted(
        self, rows: Sequence[np.ndarray], texts: Sequence[_Text], function: Callable
    ) -> list[np.ndarray]:
        """Apply prefix_allowed_tokens_fn; if no token is left, undo the other bans."""
        name, found, masks = "prefix_allowed_tokens_fn", [], []
        for z, text in zip(rows, texts, strict=True):
            allowed = [
                integer(name, token, 0)
                for token in np.atleast_1d(function(text.row, text.ids)).tolist()
            ]
            if not allowed or max(allowed) >= len(z):
                raise ValueError(
                    f"{name} must return at least one token in [0, {len(z)}), got {allowed} for "
                    f"row {text.row}"
                )
            masks.append(np.full_like(z, -math.inf))
            masks[-1][allowed] = 0.0
            found.append(z + masks[-1])
        return masks if max(z.max() for z in found) == -math.inf else found

    def _forced(self, z: np.ndarray, text: _Text) -> np.ndarray:
        """Apply forced and suppressed tokens, and the call's `logits_processor`."""
        options, shape = self.options, z.shape
        for token, here in (
            (options.forced_bos_token_id, len(text.ids) == 1),
            (options.forced_eos_token_id, text.new == options.max_new_tokens - 1),
        ):
            if token is not None and here:
                z = np.full_like(z, -math.inf)
                z[token] = 0.0
        z[_list(options.suppress_tokens)] = -math.inf
        # "begin" is the first token that is not forced
        forced = options.forced_bos_token_id is not None and text.prompt <= 1
        if text.new == int(forced):
            z[_list(options.begin_suppress_tokens)] = -math.inf
        for processor in self._processors:
            z = as_array("logits_processor", processor(text.ids, z))
            if z.dtype.kind not in "iuf":
                raise TypeError(f"logits_processor must return real logits, got {z.dtype}")
            z = z.astype(np.float64, copy=False)
            if z.shape != shape:
                raise ValueError(
                    f"logits_processor must return logits of shape {shape}, got {z.shape}"
                )
        largest = z.max()
        if not largest < math.inf:
            raise FloatingPointError(f"the largest logit after {len(text.ids)} tokens is {largest}")
        return z

    def warped(self, z: np.ndarray) -> np.ndarray:
        """Apply temperature, top-k and the other sampling options to processed logits (v,)."""
        options = self.options
        # beam search needs at least one token that does not end the text
        keep = 1 if options.num_beams == 1 else max(2, 1 + len(self.end_tokens))
        return _warp(
            z, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
            min_p=options.min_p, typical_p=options.typical_p,
            epsilon_cutoff=options.epsilon_cutoff, eta_cutoff=options.eta_cutoff, keep=keep,
        )  # fmt: skip

    def choose(self, z: np.ndarray, text: _Text) -> int:
        """A token from processed logits (v,)."""
        if z.max() == -math.inf:
            raise ValueError(f"{BANNING}: no token is left after {len(text.ids)} tokens")
        if not self.options.do_sample:
            return int(np.argmax(z))
        p = _softmax(self.warped(z))
        reached = np.cumsum(p)
        at = np.searchsorted(reached, text.draws.random() * reached[-1], side="right")
        # rounding may place the draw past the last token of nonzero probability
        return min(int(at), int(np.flatnonzero(p)[-1]))


def probabilities(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
) -> np.ndarray:
    """The distribution (v,) that sampling draws from.

    Logits (v,) are divided by the temperature. Then these filters are applied in turn, each to the
    tokens left by the one before:

    - `top_k`: the k likeliest tokens, and those tied with the last of them; 0 keeps all.
    - `top_p`: the fewest tokens whose total probability is at least p (Holtzman et al. 2020).
    - `min_p`: tokens at least p times as likely as the likeliest (Nguyen et al. 2024).
    - `typical_p`: tokens whose information is nearest to the entropy, of total probability p
      (Meister et al. 2023).
    - `epsilon_cutoff`, `eta_cutoff`: tokens of at least this probability, which `eta_cutoff` lowers
      if the entropy is high (Hewitt et al. 2022).

    At least one token is kept.

    Examples
    --------
    >>> probabilities(np.log([0.5, 0.3, 0.2]), top_p=0.6).round(3)
    array([0.625, 0.375, 0.   ])
    >>> probabilities(np.log([0.5, 0.3, 0.2]), min_p=0.5).round(3)
    array([0.625, 0.375, 0.   ])
    """
    return _softmax(
        _warp(
            np.asarray(logits, np.float64), temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, typical_p=typical_p, epsilon_cutoff=epsilon_cutoff, eta_cutoff=eta_cutoff,
        )
    )  # fmt: skip


def _warp(
    z: np.ndarray, *, temperature: float, top_k: int, top_p: float, min_p: float,
    typical_p: float, epsilon_cutoff: float, eta_cutoff: float, keep: int = 1,
) -> np.ndarray:  # fmt: skip
    """Divide by the temperature, and set excluded tokens to minus infinity; `keep` tokens stay."""
    with np.errstate(under="ignore", over="ignore"):
        # lower temperatures have the same result: the likeliest token alone
        z = z / max(temperature, TINY)
    keep = min(keep, len(z))
    if 0 < top_k < len(z):
        z = np.where(z < _kth(z, max(top_k, keep)), -math.inf, z)
    if top_p < 1.0:
        p = _softmax(z)
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        before[:keep] = 0.0
        z = z.copy()
        z[order[before >= top_p]] = -math.inf
    if min_p > 0.0:
        p = _softmax(z)
        with np.errstate(under="ignore"):
            cutoff = min_p * p.max()
        z = np.where((p < cutoff) & (z < _kth(z, keep)), -math.inf, z)
    if typical_p < 1.0:
        z = _typical(z, typical_p, keep)
    if epsilon_cutoff > 0.0:
        z = np.where((_softmax(z) < epsilon_cutoff) & (z < _kth(z, keep)), -math.inf, z)
    if eta_cutoff > 0.0:
        cutoff = min(eta_cutoff, math.sqrt(eta_cutoff) * math.exp(-_entropy(z)))
        z = np.where((_softmax(z) < cutoff) & (z < _kth(z, keep)), -math.inf, z)
    return z


def _typical(z: np.ndarray, mass: float, keep: int) -> np.ndarray:
    """The tokens whose information is nearest to the entropy, up to a probability of `mass`."""
    with np.errstate(divide="ignore"):
        distance = np.abs(-_log_softmax(z) - _entropy(z))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(_softmax(z)[order]) < mass).sum()), len(z) - 1)
    far = distance[order] > distance[order[last]]
    far[:keep] = False
    z = z.copy()
    z[order[far]] = -math.inf
    return z


def _kth(z: np.ndarray, k: int) -> float:
    """The k-th largest of z."""
    return np.partition(z, -k)[-k]


def _softmax(z: np.ndarray) -> np.ndarray:
    # probabilities may underflow to 0
    with np.errstate(under="ignore", over="ignore"):
        p = np.exp(z - z.max())
        return p / p.sum()


def _entropy(z: np.ndarray) -> float:
    p, log_p = _softmax(z), _log_softmax(z)
    with np.errstate(under="ignore"):
        return float(-(p[p > 0] * log_p[p > 0]).sum())


# ---- texts ----


class _Text:
    """A prompt and its new tokens, in a preallocated buffer; its row's number, and the random
    generator of its samples."""

    def __init__(self, prompt: np.ndarray, room: int, row: int, draws: np.random.Generator) -> None:
        self._buffer = np.concatenate([prompt, np.zeros(room, np.int64)])
        self.prompt, self.new, self.row, self.draws = len(prompt), 0, row, draws
        self._seen: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        return self._buffer[: self.prompt + self.new]

    @property
    def new_ids(self) -> np.ndarray:
        return self.ids[self.prompt :]

    def append(self, token: int) -> None:
        self._buffer[self.prompt + self.new] = token
        self.new += 1
        if self._seen is not None:
            self._seen[token] = True

    def extended(self, token: int) -> _Text:
        """A copy with one more token."""
        twin = copy.copy(self)
        twin._buffer = self._buffer.copy()
        twin._seen = None if self._seen is None else self._seen.copy()
        twin.append(token)
        return twin

    def seen(self, v: int) -> np.ndarray:
        """Which of v tokens are in the text: booleans (v,)."""
        if self._seen is None:
            self._seen = np.zeros(v, bool)
            self._seen[self.ids] = True
        return self._seen

    def repeats(self, n: int) -> list[int]:
        """The tokens that would complete an n-gram which the text already contains."""
        if n == 0 or len(self.ids) < n:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(self.ids, n)
        same = (windows[:, :-1] == self.ids[len(self.ids) + 1 - n :]).all(axis=1)
        return windows[same, -1].tolist()


# ---- greedy decoding and sampling ----


def stream_tokens(
    source: LogitsSource,
    prompts: Sequence[np.ndarray],
    rules: Rules,
    draws: Sequence[np.random.Generator],
) -> Iterator[np.ndarray]:
    """Continue prompts (t,) of any lengths: yields the new tokens (n,) of each step.

    n is len(prompts) * num_return_sequences; texts of one prompt are consecutive, and each has its
    own generator in `draws`. A text that has ended gives `pad_token_id`; generation stops when all
    have ended.

    Examples
    --------
    >>> def count_up(ids, prompt_index):
    ...     return np.eye(10)[(ids[:, -1] + 1) % 10]
    >>> options = GenerationConfig(max_new_tokens=3, eos_token_id=9, pad_token_id=0)
    >>> rules = Rules(options.resolved({}, 2, 3, 10))
    >>> prompts = [np.array([7, 8]), np.array([2])]
    >>> draws = [np.random.default_rng(i) for i in range(2)]
    >>> list(stream_tokens(UncachedSource(count_up), prompts, rules, draws))
    [array([9, 3]), array([0, 4]), array([0, 5])]
    """
    options = rules.options
    copies, room = options.num_return_sequences, options.max_new_tokens
    if room == 0:
        return
    logits = source.start(prompts)
    parents = np.repeat(np.arange(len(prompts)), copies)
    if copies > 1:
        source.reorder(parents)
        logits = logits[parents]
    texts = [
        _Text(prompts[row], room, row, own)
        for row, own in zip(parents.tolist(), draws, strict=True)
    ]
    rows = np.arange(len(texts))
    while len(rows):
        new = np.full(len(texts), options.pad_token_id, np.int64)
        running = []
        for row, z in zip(rows, logits, strict=True):
            (z,) = rules.process([z], [texts[row]])
            new[row] = rules.choose(z, texts[row])
            texts[row].append(int(new[row]))
            running.append(not rules.stops(texts[row], z))
        rows = rows[running]
        yield new.copy()  # callers may write into it
        if len(rows):
            logits = source.step(rows, new[rows])


# ---- beam search ----


class _Beams:
    """The beams of one prompt, as in transformers: the likeliest `num_beams` unfinished texts, and
    the best finished ones."""

    def __init__(
        self, prompt: np.ndarray, rules: Rules, row: int, draws: np.random.Generator
    ) -> None:
        self.rules, self.options, self._draws = rules, rules.options, draws
        beams = self.options.num_beams
        self.texts = [_Text(prompt, self.options.max_new_tokens, row, draws)] * beams
        # the beams start as copies: only the first may be continued
        self.scores = np.where(np.arange(beams) == 0, 0.0, NEVER)
        self.ended: list[tuple[tuple, np.ndarray]] = []
        self.done = False

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advance by one token; returns the parent and the new token of each beam, (num_beams,)."""
        rules, beams = self.rules, len(self.scores)
        z = rules.process([_log_softmax(row) for row in logits], self.texts)
        if max(row.max() for row in z) == -math.inf:
            raise ValueError(f"{BANNING}: no token is left after {len(self.texts[0].ids)} tokens")
        going: list[tuple[int, int]] = []
        texts: list[_Text] = []
        scores: list[float] = []
        for rank, (parent, token, score) in enumerate(self._best(z)):
            text = self.texts[parent].extended(token)
            if not rules.stops(text, z[parent]):
                if len(texts) < beams:
                    texts.append(text)
                    scores.append(score)
                    going.append((parent, token))
            elif rank < beams:
                self.ended.append((self._value(score, text.new), text.new_ids))
        self.ended = sorted(self.ended, key=lambda pair: pair[0], reverse=True)[:beams]
        self.done = len(texts) < beams or self._finished(scores[0], texts[0].new)
        if self.done:
            return np.arange(beams), np.zeros(beams, np.int64)
        self.texts, self.scores = texts, np.array(scores)
        parents, tokens = zip(*going, strict=True)
        return np.array(parents), np.array(tokens)

    def _best(self, z: Sequence[np.ndarray]) -> Iterator[tuple[int, int, float]]:
        """Beam, token and score of the best continuations, best first.

        More than there are beams, since some may end. With do_sample they are sampled without
        replacement: the largest scores after adding Gumbel noise (Kool et al. 2019).
        """
        if self.options.do_sample:
            z = [self.rules.warped(row) for row in z]
        if self.options.renormalize_logits:
            z = [_log_softmax(row) for row in z]
        total = (self.scores[:, None] + np.stack(z)).ravel()
        keep = min(max(2, 1 + len(self.rules.end_tokens)) * len(self.scores), len(total))
        if self.options.do_sample:
            best = _largest(total + self._draws.gumbel(size=len(total)), keep)
            best = best[np.argsort(-total[best], kind="stable")]
        else:
            best = _largest(total, keep)
        for at in best:
            parent, token = divmod(int(at), len(z[0]))
            yield parent, token, float(total[at])

    def _value(self, score: float, new: int) -> tuple:
        """A sort key with the order of score / new**length_penalty that cannot overflow."""
        penalty = self.options.length_penalty
        if score in (0.0, -math.inf):
            return (0,) if score == 0.0 else (-2,)
        sign = 1 if score > 0 else -1
        size = sign * (math.log(abs(score)) - penalty * math.log(new))
        # an infinite size is ordered by length, then by score
        return (
            (sign, size, math.copysign(new, penalty), score) if math.isinf(size) else (sign, size)
        )

    def _finished(self, score: float, new: int) -> bool:
        """Whether no beam can beat the finished texts, by transformers' estimate."""
        options = self.options
        if len(self.ended) < len(self.scores):
            return False
        if options.early_stopping is True:
            return True
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            new = options.max_new_tokens
        return self._value(score, new) <= self.ended[-1][0]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest values in descending order; ties keep their order."""
    smallest = _kth(values, k)
    above = np.flatnonzero(values > smallest)
    places = np.concatenate([above, np.flatnonzero(values == smallest)[: k - len(above)]])
    places.sort()
    return places[np.argsort(-values[places], kind="stable")]


def beam_search(
    source: LogitsSource,
    prompts: Sequence[np.ndarray],
    rules: Rules,
    draws: Sequence[np.random.Generator],
) -> list[list[np.ndarray]]:
    """For each prompt (t,), the new tokens of its `num_return_sequences` best texts, best first.

    A text's score is the sum of its tokens' log-probabilities, divided by their number to the power
    of `length_penalty`. With do_sample, continuations are sampled with the prompt's generator.

    Examples
    --------
    The likeliest first token, 1, loses because its continuations are unlikely:

    >>> table = np.log([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    >>> source = UncachedSource(lambda ids, prompt_index: table[ids[:, -1]])
    >>> rules = Rules(GenerationConfig(num_beams=2).resolved({"max_new_tokens": 2}, 1, 2, 3))
    >>> beam_search(source, [np.array([0])], rules, [np.random.default_rng(0)])
    [[array([2, 0])]]
    """
    beams, texts = rules.options.num_beams, rules.options.num_return_sequences
    if rules.options.max_new_tokens == 0:
        return [[np.zeros(0, np.int64)] * texts for _ in prompts]
    searches = [
        _Beams(prompt, rules, row, own)
        for row, (prompt, own) in enumerate(zip(prompts, draws, strict=True))
    ]
    logits = source.start(prompts)
    source.reorder(np.repeat(np.arange(len(prompts)), beams))
    logits = np.repeat(logits, beams, axis=0)
    running = list(range(len(prompts)))
    while running:
        parents, tokens = np.arange(len(prompts) * beams), np.zeros(0, np.int64)
        for i, search in enumerate(running):
            own = slice(search * beams, (search + 1) * beams)
            sources, new = searches[search].advance(logits[i * beams : (i + 1) * beams])
            if not searches[search].done:
                parents[own] = search * beams + sources
                tokens = np.append(tokens, new)
        running = [search for search in running if not searches[search].done]
        if running:
            source.reorder(parents)
            rows = [np.arange(search * beams, (search + 1) * beams) for search in running]
            logits = source.step(np.concatenate(rows), tokens)
    return [[ids for _, ids in search.ended[:texts]] for search in searches]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    z = z - z.max()
    with np.errstate(under="ignore"):
        return z - np.log(np.exp(z).sum())


# ---- checks ----


def _functions(name: str, value: Any) -> list:
    functions = [value] if callable(value) else [] if value is None else value
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        raise TypeError(f"{name} must be a function or a list of functions, got {value!r}")
    return list(functions)


def _says_stop(value: Any) -> bool:
    if np.size(value) != 1:
        raise ValueError(f"stopping_criteria must return True or False, got {value!r}")
    return bool(value)


def _list(tokens: Any) -> list[int]:
    return [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
