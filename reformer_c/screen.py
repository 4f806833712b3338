"""Generated text on its way to a terminal, a file or a pipe.

A model may write anything, also the control characters that move a terminal's cursor or change its
title: there they are escaped. A file or a pipe gets them as they are.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol, TextIO

__all__ = ["TextStream", "show"]

# what a text for a terminal may hold of the control characters
LAYOUT = "\n\t"
# what decoders give for bytes that are no character, or not yet one
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Any) -> str: ...


def escape(text: str) -> str:
    """Text whose control characters, but for newlines and tabs, are written as ``\\\\x1b``.

    Examples
    --------
    >>> print(escape("a\\x1b[2J\\tb\\x9b"))
    a\\x1b[2J	b\\x9b
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cs") and character not in LAYOUT
        else character
        for character in text
    )


def show(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Print text that may hold anything: on a terminal its control characters are escaped.

    Characters that the stream's encoding does not have are escaped, too, in place of an error.

    Parameters
    ----------
    text : str
    stream : text file, optional
        Standard output by default.
    end : str
        What follows.

    Examples
    --------
    >>> show("one\ttwo", end="")
    one	two
    """
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        text = escape(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding, getattr(stream, "errors", None) or "strict")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    print(text, end=end, file=stream, flush=True)


class TextStream:
    """Shows the text of a generation as its tokens come: a `streamer` for one text.

    A character or a space that is not complete yet waits for its other tokens. What is shown in the
    end is the text that the tokenizer gives for all of them.

    Parameters
    ----------
    tokenizer : Tokenizer
    stream : text file, optional
        Standard output by default.
    prompt : array_like (t,)
        Ids of what the text goes on from, shown at once.
    end_tokens : iterable of int
        Tokens that end the text, and are not shown if they are special ones of the tokenizer; what
        follows is passed over.
    end_characters : str
        The text ends after the first of them.

    Examples
    --------
    >>> import io
    >>> from reformer_c.tokenizer import ByteTokenizer
    >>> screen, tokenizer = io.StringIO(), ByteTokenizer()
    >>> stream = TextStream(tokenizer, screen, prompt=tokenizer.encode("na"))
    >>> for token in tokenizer.encode("\\u00efve"):
    ...     stream([token])
    >>> stream.end()
    >>> screen.getvalue() == "na\\u00efve"
    True
    """

    def __init__(
        self,
        tokenizer: Decoder,
        stream: TextIO | None = None,
        *,
        prompt: Any = (),
        end_tokens: Iterable[int] = (),
        end_characters: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = stream
        self._ids: list[int] = []
        # the tokens from `_context` to `_shown` are decoded again: pieces depend on the one before
        self._context = self._shown = 0
        self._ended = False
        self._special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._end_tokens, self._end_characters = frozenset[int](), ""
        self.write(prompt)
        self._end_tokens, self._end_characters = frozenset(end_tokens), end_characters

    def __call__(self, tokens: Any) -> None:
        """Take the new token of a step, (1,)."""
        self.write(tokens[:1])

    def write(self, ids: Any) -> None:
        """Take the next tokens (n,) of the text."""
        for token in map(int, ids):
            if self._ended:
                break
            self._ended = token in self._end_tokens
            if not (self._ended and token in self._special):
                self._ids.append(token)
        text = self._new_text()
        if text and not text.endswith(INCOMPLETE):
            self._show(text)

    def end(self) -> None:
        """Show what waits for tokens that do not come."""
        self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]

    def _show(self, text: str) -> None:
        places = [text.find(character) for character in self._end_characters]
        found = [place for place in places if place >= 0]
        if found:
            self._ended, text = True, text[: min(found) + 1]
        # a library drops the spaces that a text begins with: a context begins with more than these
        if text.strip():
            self._context = self._shown
        self._shown = len(self._ids)
        show(text, self._stream, end="")
