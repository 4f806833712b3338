"""Turning logits into texts: greedy choice and sampling, for prompts of several lengths at once.

Nothing here knows what a model is: a function gives the logits of what follows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["generate_tokens", "probabilities"]


def generate_tokens(
    next_logits: Callable[[np.ndarray], np.ndarray],
    input_ids: np.ndarray,
    mask: np.ndarray | None,
    *,
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    streamer: Callable[[np.ndarray], Any] | None,
    draws: np.random.Generator,
) -> np.ndarray:
    """Continue each row of `input_ids` (b, t) by up to `max_new_tokens`.

    `next_logits` maps ids (n, t') to logits (n, v). Rows of equal length go through it together;
    a row's padding, where `mask` (b, t) is False, does not go through it at all. The other
    arguments are those of ``ReformerModelWithLMHead.generate``.

    Returns
    -------
    ndarray of int64, (b, t + new)

    Examples
    --------
    >>> def count_up(ids):
    ...     return np.eye(10)[(ids[:, -1] + 1) % 10]
    >>> generate_tokens(
    ...     count_up, np.array([[7, 8], [1, 2]]), None, max_new_tokens=3, do_sample=False,
    ...     temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, eos_token_id=9,
    ...     pad_token_id=0, streamer=None, draws=np.random.default_rng(0),
    ... )
    array([[7, 8, 9, 0, 0],
           [1, 2, 3, 4, 5]])
    """
    choose = _chooser(do_sample, temperature, top_k, top_p)
    max_new_tokens = _integer("max_new_tokens", max_new_tokens, 0)
    pad_token_id = _integer("pad_token_id", pad_token_id, 0)
    ends = _end_tokens(eos_token_id)
    _positive("repetition_penalty", repetition_penalty)
    if streamer is not None and not callable(streamer):
        raise TypeError(f"streamer: expected a function of the new tokens, got {streamer!r}")

    b = len(input_ids)
    texts = [row if mask is None else row[mask[i]] for i, row in enumerate(input_ids)]
    if any(len(text) == 0 for text in texts):
        raise ValueError("attention_mask: expected at least one real token in each row")
    running = np.ones(b, bool)
    steps: list[np.ndarray] = []
    while len(steps) < max_new_tokens and running.any():
        new = np.full(b, pad_token_id, np.int64)
        # drawn for every row, so that a row's draws do not depend on the end of another
        uniform = draws.random(b) if do_sample else np.zeros(b)
        for rows in _rows_by_length(texts, running):
            logits = np.asarray(next_logits(np.stack([texts[i] for i in rows])), np.float64)
            for i, row in zip(rows, logits, strict=True):
                new[i] = choose(_penalised(row, texts[i], repetition_penalty), uniform[i])
                texts[i] = np.append(texts[i], new[i])
                running[i] = new[i] not in ends
        steps.append(new)
        if streamer is not None:
            streamer(new.copy())
    return np.concatenate([input_ids, *(step[:, None] for step in steps)], axis=1)


def probabilities(
    logits: np.ndarray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """The distribution (v,) that sampling draws from.

    Logits (v,) are divided by the temperature; the `top_k` likeliest stay (0: all), and of those
    the fewest whose probability is at least `top_p` (Holtzman et al. 2020). Tokens as likely as
    the last one that stays by `top_k` stay too.

    Examples
    --------
    >>> probabilities(np.log([0.5, 0.3, 0.2]), top_p=0.6).round(3)
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
    return p


def _chooser(
    do_sample: bool, temperature: float, top_k: int, top_p: float
) -> Callable[[np.ndarray, float], int]:
    """A function of logits (v,) and a number in [0, 1) that gives a token."""
    _positive("temperature", temperature)
    top_k = _integer("top_k", top_k, 0)
    if not isinstance(top_p, Real) or not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p!r}")
    if not do_sample:
        return lambda logits, _: int(np.argmax(logits))

    def sample(logits: np.ndarray, uniform: float) -> int:
        p = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        reached = np.cumsum(p)
        # rounding may leave the sum below 1: never past the last token that has a probability
        return min(int(np.searchsorted(reached, uniform * reached[-1], side="right")),
                   int(np.flatnonzero(p)[-1]))  # fmt: skip

    return sample


def _penalised(logits: np.ndarray, text: np.ndarray, penalty: float) -> np.ndarray:
    """Logits with those of the text's tokens made less likely (Keskar et al. 2019, section 4.1)."""
    if penalty == 1.0:
        return logits
    seen = np.unique(text)
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _rows_by_length(texts: list[np.ndarray], running: np.ndarray) -> list[list[int]]:
    by_length: dict[int, list[int]] = {}
    for i in np.flatnonzero(running):
        by_length.setdefault(len(texts[i]), []).append(int(i))
    return list(by_length.values())


def _end_tokens(eos_token_id: Any) -> set[int]:
    if eos_token_id is None:
        return set()
    if np.ndim(eos_token_id) == 0:
        eos_token_id = [eos_token_id]
    return {_integer("eos_token_id", token, 0) for token in eos_token_id}


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return number


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, Real) or not 0.0 < float(value) < math.inf:
        raise ValueError(f"{name}: expected a number > 0, got {value!r}")
