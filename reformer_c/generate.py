"""Turning logits into texts: greedy choice, sampling and beam search, for prompts of several
lengths at once.

Nothing here knows what a model is: a `Source` gives the logits of what follows some texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np

from .checks import integer

__all__ = ["Choice", "Recomputed", "Source", "beam_search", "probabilities", "stream_tokens"]

# a function of one text's ids (t,) and the logits (v,) of what follows
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]
Criterion = Callable[[np.ndarray, np.ndarray], bool]

# what Hugging Face's beam search has for minus infinity: sums of it stay comparable
NEVER = -1e9


class Source(Protocol):
    """What gives logits: it holds n texts, by number."""

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Begin with these texts; logits (n, v) of what follows."""

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Append a token to each of the texts `rows` (n,); logits (n, v) of what follows."""

    def take(self, parents: np.ndarray) -> None:
        """Make text i a copy of text parents[i]; there may be more than before."""


class Recomputed:
    """A `Source` that keeps the texts alone, and asks a function for logits (n, v), of ids (n, t)
    and of the numbers (n,) of the texts with which they began.

    Texts of equal length go through the function together.
    """

    def __init__(self, next_logits: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._next_logits = next_logits
        self._texts: list[np.ndarray] = []
        self._began = np.zeros(0, np.int64)

    def start(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        self._texts, self._began = list(texts), np.arange(len(texts))
        return self._logits(np.arange(len(texts)))

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        for row, token in zip(rows, tokens, strict=True):
            self._texts[row] = np.append(self._texts[row], token)
        return self._logits(rows)

    def take(self, parents: np.ndarray) -> None:
        self._texts = [self._texts[parent] for parent in parents]
        self._began = self._began[parents]

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.array([len(self._texts[row]) for row in rows])
        found: list[Any] = [None] * len(rows)
        for t in np.unique(lengths):
            group = np.flatnonzero(lengths == t)
            ids = np.stack([self._texts[rows[i]] for i in group])
            logits = self._next_logits(ids, self._began[rows[group]])
            for i, row in zip(group, logits, strict=True):
                found[i] = row
        return np.stack(found)


# ---- which token ----


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen, and when a text ends: the arguments of
    ``ReformerModelWithLMHead.generate`` under their names, checked.

    Raises
    ------
    TypeError, ValueError
        Name the argument and say what was expected.
    """

    max_new_tokens: int = 100
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int = 0
    logits_processor: Processor | Sequence[Processor] | None = None
    stopping_criteria: Criterion | Sequence[Criterion] | None = None
    # what these come to: the tokens that end a text, the words that do not occur, the functions
    end_tokens: list[int] = field(init=False, repr=False)
    _bad: list[list[int]] = field(init=False, repr=False)
    _processors: list[Processor] = field(init=False, repr=False)
    _criteria: list[Criterion] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (
            ("max_new_tokens", 0), ("min_new_tokens", 0), ("top_k", 0), ("num_beams", 1),
            ("num_return_sequences", 1), ("pad_token_id", 0),
        ):  # fmt: skip
            integer(name, getattr(self, name), least)
        for name in ("temperature", "repetition_penalty"):
            _real(name, getattr(self, name), 0.0, math.inf, "a number > 0", open_below=True)
        _real("top_p", self.top_p, 0.0, 1.0, "a number in (0, 1]", open_below=True)
        _real("min_p", self.min_p, 0.0, 1.0, "a number in [0, 1]")
        _real("length_penalty", self.length_penalty, -math.inf, math.inf, "a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping: expected True, False or 'never', got {self.early_stopping!r}"
            )
        if self.num_beams > 1 and self.do_sample:
            raise ValueError("num_beams: expected 1 with do_sample: beams are not drawn")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences: expected at most num_beams={self.num_beams} without "
                f"do_sample, got {self.num_return_sequences}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens: expected at most max_new_tokens={self.max_new_tokens}, "
                f"got {self.min_new_tokens}"
            )
        end, words = _tokens("eos_token_id", self.eos_token_id), self.bad_words_ids
        bad = [_tokens("bad_words_ids", word) for word in ([] if words is None else words)]
        if not all(bad):
            raise ValueError("bad_words_ids: expected at least one token in each word, got []")
        functions = [
            _functions(name, getattr(self, name))
            for name in ("logits_processor", "stopping_criteria")
        ]
        for name, value in zip(
            ("end_tokens", "_bad", "_processors", "_criteria"), (end, bad, *functions), strict=True
        ):
            object.__setattr__(self, name, value)

    def check_tokens(self, v: int) -> None:
        """Raise ValueError where a token is not below v."""
        found = {
            "eos_token_id": self.end_tokens,
            "bad_words_ids": [token for word in self._bad for token in word],
        }
        for name, tokens in found.items():
            if max(tokens, default=0) >= v:
                raise ValueError(f"{name}: expected ids in [0, {v}), got {max(tokens)}")

    def stops(self, text: _Text, logits: np.ndarray) -> bool:
        """Whether a text, with its newest token, has ended."""
        return (
            int(text.ids[-1]) in self.end_tokens
            or text.new >= self.max_new_tokens
            or any(bool(stop(text.ids, logits)) for stop in self._criteria)
        )

    def process(self, logits: np.ndarray, text: _Text) -> np.ndarray:
        """Logits (v,) under the rules that do not draw; float64."""
        z = np.array(logits, np.float64)
        if self.repetition_penalty != 1.0:
            seen = text.seen(len(z))
            penalty = self.repetition_penalty
            z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)
        for word in self._bad:
            before = len(word) - 1
            if before == 0 or text.ids[-before:].tolist() == word[:-1]:
                z[word[-1]] = -math.inf
        if text.new < self.min_new_tokens and self.end_tokens:
            z[self.end_tokens] = -math.inf
        for processor in self._processors:
            z = np.asarray(processor(text.ids, z), np.float64)
            if z.shape != np.shape(logits):
                raise ValueError(
                    f"logits_processor: expected logits of shape {np.shape(logits)}, got {z.shape}"
                )
        most = z.max()
        if not math.isfinite(most):
            where = f"after {len(text.ids)} tokens"
            if most == -math.inf:
                raise ValueError(f"bad_words_ids, logits_processor: no token is left {where}")
            raise FloatingPointError(f"the largest logit {where} is {most}")
        return z

    def choose(self, z: np.ndarray, uniform: float) -> int:
        """A token from processed logits (v,) and a number in [0, 1)."""
        if not self.do_sample:
            return int(np.argmax(z))
        p = probabilities(
            z, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )
        reached = np.cumsum(p)
        # rounding may leave the sum below 1: never past the last token that has a probability
        return min(int(np.searchsorted(reached, uniform * reached[-1], side="right")),
                   int(np.flatnonzero(p)[-1]))  # fmt: skip


def probabilities(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> np.ndarray:
    """The distribution (v,) that sampling draws from.

    Logits (v,) are divided by the temperature; the `top_k` likeliest stay (0: all), of those the
    fewest whose probability is at least `top_p` (Holtzman et al. 2020), and of those the ones that
    are at least `min_p` times as likely as the likeliest (Nguyen et al. 2024). Tokens as likely as
    the last one that stays by `top_k` stay too.

    Examples
    --------
    >>> probabilities(np.log([0.5, 0.3, 0.2]), top_p=0.6).round(3)
    array([0.625, 0.375, 0.   ])
    >>> probabilities(np.log([0.5, 0.3, 0.2]), min_p=0.5).round(3)
    array([0.625, 0.375, 0.   ])
    """
    z = np.asarray(logits, np.float64) / temperature
    if 0 < top_k < len(z):
        z = np.where(z < np.partition(z, -top_k)[-top_k], -np.inf, z)
    p = np.exp(z - z.max())
    p /= p.sum()
    if top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
        p /= p.sum()
    if min_p > 0.0:
        p[p < min_p * p.max()] = 0.0
        p /= p.sum()
    return p


# ---- texts ----


class _Text:
    """A prompt and its new tokens, in a buffer that has room for all."""

    def __init__(self, prompt: np.ndarray, room: int) -> None:
        self._buffer = np.concatenate([prompt, np.zeros(room, np.int64)])
        self._prompt, self.new = len(prompt), 0
        self._seen: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        return self._buffer[: self._prompt + self.new]

    @property
    def new_ids(self) -> np.ndarray:
        return self.ids[self._prompt :]

    def append(self, token: int) -> None:
        self._buffer[self._prompt + self.new] = token
        self.new += 1
        if self._seen is not None:
            self._seen[token] = True

    def extended(self, token: int) -> _Text:
        """A copy with one token more."""
        copy = _Text.__new__(_Text)
        copy._buffer, copy._prompt, copy.new = self._buffer.copy(), self._prompt, self.new
        copy._seen = None if self._seen is None else self._seen.copy()
        copy.append(token)
        return copy

    def seen(self, v: int) -> np.ndarray:
        """Which of v tokens are in the text: booleans (v,)."""
        if self._seen is None:
            self._seen = np.zeros(v, bool)
            self._seen[self.ids] = True
        return self._seen


# ---- greedy choice and sampling ----


def stream_tokens(
    source: Source, prompts: Sequence[np.ndarray], choice: Choice, draws: np.random.Generator
) -> Iterator[np.ndarray]:
    """Continue prompts (t,) of several lengths: yields the new tokens (n,) of each step.

    With n = len(prompts) * choice.num_return_sequences, those of one prompt side by side. A text
    that has ended goes on as `pad_token_id`, and all texts' end is the end.

    Examples
    --------
    >>> def count_up(ids, began):
    ...     return np.eye(10)[(ids[:, -1] + 1) % 10]
    >>> choice = Choice(max_new_tokens=3, eos_token_id=9)
    >>> prompts = [np.array([7, 8]), np.array([2])]
    >>> list(stream_tokens(Recomputed(count_up), prompts, choice, np.random.default_rng(0)))
    [array([9, 3]), array([0, 4]), array([0, 5])]
    """
    if choice.max_new_tokens == 0:
        return
    logits = source.start(prompts)
    parents = np.repeat(np.arange(len(prompts)), choice.num_return_sequences)
    if choice.num_return_sequences > 1:
        source.take(parents)
        logits = logits[parents]
    texts = [_Text(prompts[int(parent)], choice.max_new_tokens) for parent in parents]
    rows = np.arange(len(texts))
    while len(rows):
        new = np.full(len(texts), choice.pad_token_id, np.int64)
        # drawn for every row, so that a row's draws do not depend on the end of another
        uniform = draws.random(len(texts)) if choice.do_sample else np.zeros(len(texts))
        running = []
        for row, z in zip(rows, logits, strict=True):
            z = choice.process(z, texts[row])
            new[row] = choice.choose(z, uniform[row])
            texts[row].append(int(new[row]))
            running.append(not choice.stops(texts[row], z))
        rows = rows[running]
        yield new
        if len(rows):
            logits = source.step(rows, new[rows])


# ---- beam search ----


class _Beams:
    """The beams of one prompt, as in transformers' search: the likeliest `num_beams` texts that
    have not ended, and the best that have."""

    def __init__(self, prompt: np.ndarray, choice: Choice) -> None:
        self.choice = choice
        self.texts = [_Text(prompt, choice.max_new_tokens)] * choice.num_beams
        # at first all beams are the same: one of them counts
        self.scores = np.where(np.arange(choice.num_beams) == 0, 0.0, NEVER)
        self.ended: list[tuple[float, np.ndarray]] = []
        self.done = False

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From logits (num_beams, v) to each beam's parent and newest token, (num_beams,) each."""
        choice, beams = self.choice, len(self.scores)
        z = [choice.process(_log_softmax(row), text)
             for row, text in zip(logits, self.texts, strict=True)]  # fmt: skip
        total = (self.scores[:, None] + np.stack(z)).ravel()
        keep = min(max(2, 1 + len(choice.end_tokens)) * beams, len(total))
        best = np.argsort(-total, kind="stable")[:keep]
        going: list[tuple[int, int]] = []
        texts: list[_Text] = []
        scores: list[float] = []
        for rank, at in enumerate(best):
            parent, token = divmod(int(at), logits.shape[1])
            text = self.texts[parent].extended(token)
            if not choice.stops(text, z[parent]):
                if len(texts) < beams:
                    texts.append(text)
                    scores.append(total[at])
                    going.append((parent, token))
            elif rank < beams:
                self.ended.append(
                    (float(total[at]) / text.new**choice.length_penalty, text.new_ids)
                )
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[:beams]
        self.done = len(texts) < beams or self._finished(scores[0], texts[0].new)
        if self.done:
            return np.arange(beams), np.zeros(beams, np.int64)
        self.texts, self.scores = texts, np.array(scores)
        parents, tokens = zip(*going, strict=True)
        return np.array(parents), np.array(tokens)

    def _finished(self, score: float, new: int) -> bool:
        """Whether no beam can come before those that have ended, by transformers' estimate."""
        choice = self.choice
        if len(self.ended) < len(self.scores):
            return False
        if choice.early_stopping is True:
            return True
        if choice.early_stopping == "never" and choice.length_penalty > 0.0:
            new = choice.max_new_tokens
        return score / new**choice.length_penalty <= self.ended[-1][0]


def beam_search(
    source: Source, prompts: Sequence[np.ndarray], choice: Choice
) -> list[list[np.ndarray]]:
    """For each prompt (t,), the new tokens of its `num_return_sequences` best texts, best first.

    A text's score is the sum of its tokens' log-probabilities, divided by their number to the power
    of `length_penalty`.

    Examples
    --------
    A likely first token that leads nowhere loses against a less likely one:

    >>> table = np.log([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    >>> source = Recomputed(lambda ids, began: table[ids[:, -1]])
    >>> beam_search(source, [np.array([0])], Choice(num_beams=2, max_new_tokens=2))
    [[array([2, 0])]]
    """
    beams, searches = choice.num_beams, [_Beams(prompt, choice) for prompt in prompts]
    if choice.max_new_tokens == 0:
        return [[np.zeros(0, np.int64)] * choice.num_return_sequences for _ in prompts]
    logits = source.start(prompts)
    source.take(np.repeat(np.arange(len(prompts)), beams))
    logits = np.repeat(logits, beams, axis=0)
    running = list(range(len(prompts)))
    while running:
        parents, tokens = np.arange(len(prompts) * beams), np.zeros(0, np.int64)
        for i, search in enumerate(running):
            own = slice(search * beams, (search + 1) * beams)
            come_from, new = searches[search].advance(logits[i * beams : (i + 1) * beams])
            if not searches[search].done:
                parents[own] = search * beams + come_from
                tokens = np.append(tokens, new)
        running = [search for search in running if not searches[search].done]
        if running:
            source.take(parents)
            rows = [np.arange(search * beams, (search + 1) * beams) for search in running]
            logits = source.step(np.concatenate(rows), tokens)
    return [[ids for _, ids in search.ended[: choice.num_return_sequences]] for search in searches]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


# ---- checks ----


def _functions(name: str, value: Any) -> list:
    functions = [value] if callable(value) else [] if value is None else value
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        raise TypeError(f"{name}: expected a function or a list of functions, got {value!r}")
    return list(functions)


def _tokens(name: str, value: Any) -> list[int]:
    if value is None:
        return []
    return [integer(name, token, 0) for token in ([value] if np.ndim(value) == 0 else value)]


def _real(
    name: str, value: Any, least: float, most: float, expected: str, *, open_below: bool = False
) -> None:
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (open_below and value == least):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
