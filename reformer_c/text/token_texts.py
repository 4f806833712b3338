"""The text of each token, and logits processors that exclude text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .byte_tokenizer import ByteTokenizer  # noqa: F401 (for the example)
from .subwords import ReformerTokenizer

__all__ = ["TokenTexts"]


class TokenTexts:
    """The text that each token produces, and logits processors that exclude text.

    Examples
    --------
    >>> token_texts = TokenTexts(ByteTokenizer())
    >>> token_texts.with_any(".!")
    [35, 48]
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(getattr(tokenizer, "all_special_ids", ()))

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token inside a text; empty for special tokens."""
        shown = set(self.known) - self._special
        return [self._text(i) if i in shown else "" for i in range(len(self._tokenizer))]

    @cached_property
    def known(self) -> list[int]:
        """Ids that have a token."""
        if isinstance(self._tokenizer, ReformerTokenizer):
            return sorted(self._tokenizer.get_vocab().values())
        return list(range(len(self._tokenizer)))

    def _text(self, i: int) -> str:
        # decode pairs and use the second token: libraries drop a leading space of the first
        once, twice = (self._tokenizer.decode([i] * n) for n in (1, 2))
        second: str = twice[len(once) :]
        return second

    def with_any(self, characters: str) -> list[int]:
        """The tokens whose text contains any of these characters."""
        if not characters:
            return []
        return [i for i, text in enumerate(self.texts) if any(c in text for c in characters)]

    def only_known(self, _ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """A `logits_processor` that excludes ids without a token."""
        unknown = np.ones(len(logits), bool)
        unknown[self.known] = False
        logits[unknown] = -math.inf
        return logits

    def without(self, words: Sequence[str]) -> Any:
        """A `logits_processor` that excludes tokens which would complete one of the words."""
        longest = max(map(len, words), default=0)
        # by word and the number of its characters at the end of the text: tokens that complete it
        completing = {
            (word, k): np.array(
                [i for i, text in enumerate(self.texts) if _completes(text, word, k)], np.int64
            )
            for word in words
            for k in range(len(word))
        }

        def process(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            end = self._end_of(ids, longest - 1)
            for (word, k), tokens in completing.items():
                if end.endswith(word[:k]):
                    logits[tokens] = -math.inf
            return logits

        return process

    def _end_of(self, ids: np.ndarray, length: int) -> str:
        """The last characters of a text."""
        end = ""
        for i in ids[::-1]:
            if len(end) >= length:
                break
            end = self.texts[i] + end
        return end


def _completes(text: str, word: str, k: int) -> bool:
    """Whether a token's text completes a word of which the first k characters are present."""
    return text.startswith(word[k:]) if k else word in text
