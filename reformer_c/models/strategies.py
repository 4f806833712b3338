"""Strategies of generation: greedy decoding, sampling and beam search over prompts of any lengths.

This module is independent of models: a `LogitsSource` gives the logits of the next token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .generation_config import GenerationConfig  # noqa: F401 (for the examples)
from .rules import Rules, Text, no_token_left
from .sampling import kth_largest, log_softmax
from .sources import LogitsSource, UncachedSource  # noqa: F401 (for the examples)

__all__ = ["beam_search", "stream_tokens"]

# Hugging Face's substitute for minus infinity in beam search: sums of it stay comparable
NEVER = -1e9


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
    copies = options.num_return_sequences
    if options.max_new_tokens == 0:
        return
    logits = source.start(prompts)
    parents = np.repeat(np.arange(len(prompts)), copies)
    if copies > 1:
        source.reorder(parents)
        logits = logits[parents]
    texts = [Text(prompts[row], row, own) for row, own in zip(parents.tolist(), draws, strict=True)]
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


class _Beams:
    """The beams of one prompt, as in transformers: the likeliest `num_beams` unfinished texts, and
    the best finished ones."""

    def __init__(
        self, prompt: np.ndarray, rules: Rules, row: int, draws: np.random.Generator
    ) -> None:
        self.rules, self.options, self._draws = rules, rules.options, draws
        beams = self.options.num_beams
        self.texts = [Text(prompt, row, draws)] * beams
        # the beams start as copies: only the first may be continued
        self.scores = np.where(np.arange(beams) == 0, 0.0, NEVER)
        self.ended: list[tuple[tuple[float, ...], np.ndarray]] = []
        self.done = False

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advance by one token; returns the parent and the new token of each beam, (num_beams,)."""
        rules, beams = self.rules, len(self.scores)
        z = rules.process([log_softmax(row) for row in logits], self.texts)
        if max(row.max() for row in z) == -math.inf:
            raise no_token_left(self.texts[0])
        going: list[tuple[int, int]] = []
        texts: list[Text] = []
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
            z = [log_softmax(row) for row in z]
        total = (self.scores[:, None] + np.stack(z)).ravel()
        keep = min(self.rules.candidates * len(self.scores), len(total))
        if self.options.do_sample:
            best = _largest(total + self._draws.gumbel(size=len(total)), keep)
            best = best[np.argsort(-total[best], kind="stable")]
        else:
            best = _largest(total, keep)
        for at in best:
            parent, token = divmod(int(at), len(z[0]))
            yield parent, token, float(total[at])

    def _value(self, score: float, new: int) -> tuple[float, ...]:
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
    smallest = kth_largest(values, k)
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
