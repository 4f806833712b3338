"""Evaluation of a language model on texts, and of an encoder-decoder on pairs of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import integer, names_keywords, positive
from ..models.inputs import IGNORE
from ..text.tables import html_pairs
from .examples import Progress, no_progress
from .pairs import Pairs
from .texts import texts_of

__all__ = ["Evaluation", "evaluate", "evaluate_pairs"]


@dataclass(frozen=True)
class Evaluation:
    """A model's loss on texts, in nats per token and in bits per byte, and the tokens predicted."""

    loss: float
    bits_per_byte: float
    tokens: int

    def _repr_html_(self) -> str:
        return html_pairs("evaluation", vars(self))


@names_keywords
def evaluate(
    model: Any,
    tokens: np.ndarray | Sequence[np.ndarray],
    length: int,
    *,
    stride: int | None = None,
    bytes_per_token: float = 1.0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Mean loss of a language model over texts, computed in windows.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``loss(input_ids, labels=, rng=)``.
    tokens : ndarray (n,), or a list of them
        Token ids of each text. A window never crosses texts; all its tokens but the first are
        predicted, with equal weight.
    length : int
        Tokens per window, >= 2; the last window may be shorter.
    stride : int, optional
        Below `length`: windows overlap and start `stride` tokens apart; after the first window,
        only the last `stride` tokens of each are predicted, each with a context of at least
        ``length - stride`` tokens. None: windows do not overlap.
    bytes_per_token : float
        Mean bytes of text per token.
    seed : int
        Seed of the LSH rotations, so that an evaluation can be repeated exactly.
    progress : callable, optional
        Called as ``progress(done, total)`` with numbers of predicted tokens, at the beginning and
        after each window.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or no text or window has two tokens.
    """
    texts = texts_of("tokens", tokens)
    bytes_per_token = positive("bytes_per_token", bytes_per_token)
    length = integer("length", length)
    longest = max(map(len, texts))
    if length < 2 or longest < 2:
        raise ValueError(
            f"tokens and length must be at least 2, got {longest} tokens in windows of {length}"
        )
    if stride is not None and not 1 <= integer("stride", stride) < length:
        raise ValueError(f"stride must be in [1, {length}), got {stride}")
    total, count = 0.0, 0
    predicted = sum(_predicted(len(text), length, stride) for text in texts)
    progress(0, predicted)
    for text in texts:
        for ids, labels, new in _windows(text, length, stride):
            total += model.loss(ids, labels=labels, rng=seed) * new
            count += new
            progress(count, predicted)
    return Evaluation(total / count, total / count / math.log(2) / bytes_per_token, count)


@names_keywords
def evaluate_pairs(
    model: Any, pairs: Pairs, *, seed: int = 0, progress: Progress = no_progress
) -> Evaluation:
    """Mean loss of an encoder-decoder over the tokens of all targets, with equal weight.

    Parameters
    ----------
    model : ReformerEncoderDecoder
        Anything with ``loss(input_ids, attention_mask, labels=, rng=)``.
    pairs : Pairs
        Every pair is evaluated once.
    seed : int
        Seed of the LSH rotations, so that an evaluation can be repeated exactly.
    progress : callable, optional
        Called as ``progress(done, total)`` with numbers of pairs, at the beginning and after each
        batch.

    Returns
    -------
    Evaluation
    """
    total, count, done = 0.0, 0, 0
    progress(0, len(pairs))
    for step in range(pairs.num_batches):
        batch = pairs.batch(step)
        new = int(np.count_nonzero(batch["labels"] != IGNORE))
        total += model.loss(**batch, rng=seed) * new
        count += new
        done += len(batch["labels"])
        progress(done, len(pairs))
    return Evaluation(total / count, total / count / math.log(2) / pairs.bytes_per_token, count)


def _predicted(tokens: int, length: int, stride: int | None) -> int:
    """The number of tokens that `_windows` predicts of a text."""
    windows = len(range(0, tokens - 1, length)) if stride is None else 1
    return max(0, (min(tokens, windows * length) if stride is None else tokens) - windows)


def _windows(
    text: np.ndarray, length: int, stride: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The windows (1, n) of a text, their labels, and the number of labels not ignored."""
    end = 0
    for start in range(0, len(text) - 1, stride or length):
        ids = np.asarray(text[start : start + length], np.int64)[None]
        # with a stride, ignore tokens that an earlier window has predicted
        done = end - start if stride is not None and start > 0 else 1
        labels, end = ids.copy(), start + ids.shape[1]
        labels[:, :done] = IGNORE
        if ids.shape[1] > done:
            yield ids, labels, ids.shape[1] - done
