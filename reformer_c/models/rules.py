"""The rules of generation: which tokens may follow, which one is chosen, and when a text ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..checks import as_array, integer
from .generation_config import GenerationConfig, flat
from .sampling import FILTERS, TINY, softmax, warp

__all__ = ["Rules", "Text", "no_token_left"]

# functions of one text's ids (t,) and the logits (v,) of its next token
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]
Criterion = Callable[[np.ndarray, np.ndarray], bool]


class Text:
    """A prompt and its new tokens, in a buffer that is doubled when it is full; its row's number,
    and the random generator of its samples."""

    def __init__(self, prompt: np.ndarray, row: int, draws: np.random.Generator) -> None:
        self._buffer = np.array(prompt, np.int64)
        self.prompt, self.new, self.row, self.draws = len(prompt), 0, row, draws
        self._seen: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        return self._buffer[: self.prompt + self.new]

    @property
    def new_ids(self) -> np.ndarray:
        return self.ids[self.prompt :]

    def append(self, token: int) -> None:
        if self.prompt + self.new == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.zeros_like(self._buffer)])
        self._buffer[self.prompt + self.new] = token
        self.new += 1
        if self._seen is not None:
            self._seen[token] = True

    def extended(self, token: int) -> Text:
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
        tokens: list[int] = windows[same, -1].tolist()
        return tokens


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
        self.end_tokens = flat(options.eos_token_id)
        # continuations per beam of which at least one does not end the text
        self.candidates = max(2, 1 + len(self.end_tokens))
        self._suppressed = flat(options.suppress_tokens)
        self._suppressed_first = flat(options.begin_suppress_tokens)
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

    def stops(self, text: Text, logits: np.ndarray) -> bool:
        """Whether a text, with its newest token, has ended."""
        return (
            int(text.ids[-1]) in self.end_tokens
            or text.new >= self.options.max_new_tokens
            or any(_says_stop(stop(text.ids, logits)) for stop in self._criteria)
        )

    def process(self, logits: Sequence[np.ndarray], texts: Sequence[Text]) -> list[np.ndarray]:
        """Apply penalties, bans and processors to logits (v,) of texts of one prompt, in
        transformers' order; float64."""
        rows = [np.array(row, np.float64) for row in logits]
        for z, text in zip(rows, texts, strict=True):
            self._penalise(z, text)
            z[self._banned(text)] = -math.inf
        if self._allowed is not None:
            rows = self._restricted(rows, texts, self._allowed)
        return [self._forced(z, text) for z, text in zip(rows, texts, strict=True)]

    def _penalise(self, z: np.ndarray, text: Text) -> None:
        # beyond these bounds the result is the same, but numbers could overflow
        penalty = min(max(self.options.repetition_penalty, TINY), 1 / TINY)
        if penalty != 1.0:
            seen = text.seen(len(z))
            with np.errstate(under="ignore", over="ignore"):
                z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)

    def _banned(self, text: Text) -> list[int]:
        """Tokens that would repeat an n-gram, complete a bad word, or end too early."""
        banned = text.repeats(self.options.no_repeat_ngram_size)
        for word in self._bad:
            before = len(word) - 1
            if before == 0 or text.ids[-before:].tolist() == word[:-1]:
                banned.append(word[-1])
        return banned + (self.end_tokens if text.new < self.options.min_new_tokens else [])

    def _restricted(
        self, rows: Sequence[np.ndarray], texts: Sequence[Text], function: Callable[..., Any]
    ) -> list[np.ndarray]:
        """Apply prefix_allowed_tokens_fn; if no token is left, undo the other bans."""
        name, found, masks = "prefix_allowed_tokens_fn", [], []
        for z, text in zip(rows, texts, strict=True):
            tokens = np.atleast_1d(function(text.row, text.ids)).tolist()
            allowed = [integer(name, token, 0) for token in tokens]
            if not allowed or max(allowed) >= len(z):
                raise ValueError(
                    f"{name} must return at least one token in [0, {len(z)}), got {allowed} for "
                    f"row {text.row}"
                )
            masks.append(np.full_like(z, -math.inf))
            masks[-1][allowed] = 0.0
            found.append(z + masks[-1])
        return masks if max(z.max() for z in found) == -math.inf else found

    def _forced(self, z: np.ndarray, text: Text) -> np.ndarray:
        """Apply forced and suppressed tokens, and the call's `logits_processor`."""
        options, shape = self.options, z.shape
        for token, here in (
            (options.forced_bos_token_id, len(text.ids) == 1),
            (options.forced_eos_token_id, text.new == options.max_new_tokens - 1),
        ):
            if token is not None and here:
                z = np.full_like(z, -math.inf)
                z[token] = 0.0
        z[self._suppressed] = -math.inf
        # "begin" is the first token that is not forced
        forced = options.forced_bos_token_id is not None and text.prompt <= 1
        if text.new == int(forced):
            z[self._suppressed_first] = -math.inf
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
        keep = 1 if options.num_beams == 1 else self.candidates
        return warp(z, keep=keep, **{name: getattr(options, name) for name in FILTERS})

    def choose(self, z: np.ndarray, text: Text) -> int:
        """A token from processed logits (v,)."""
        if z.max() == -math.inf:
            raise no_token_left(text)
        if not self.options.do_sample:
            return int(np.argmax(z))
        p = softmax(self.warped(z))
        reached = np.cumsum(p)
        at = np.searchsorted(reached, text.draws.random() * reached[-1], side="right")
        # rounding may place the draw past the last token of nonzero probability
        return min(int(at), int(np.flatnonzero(p)[-1]))


def no_token_left(text: Text) -> ValueError:
    """The error for options that exclude every token."""
    return ValueError(
        "bad_words_ids, suppress_tokens, no_repeat_ngram_size, logits_processor: no token is left "
        f"after {len(text.ids)} tokens"
    )


def _functions(name: str, value: Any) -> list[Callable[..., Any]]:
    functions = [value] if callable(value) else [] if value is None else value
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        raise TypeError(f"{name} must be a function or a list of functions, got {value!r}")
    return list(functions)


def _says_stop(value: Any) -> bool:
    if np.size(value) != 1:
        raise ValueError(f"stopping_criteria must return True or False, got {value!r}")
    return bool(value)
