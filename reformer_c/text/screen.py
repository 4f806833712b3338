"""Output of generated text to a terminal, a file or a pipe.

A model may produce control characters that move a terminal's cursor or change its title. On a
terminal they are escaped; a file or a pipe receives them unchanged.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TextIO

__all__ = ["TextStream", "in_notebook", "show", "show_json"]

# control characters that are allowed on a terminal
LAYOUT = "\n\t"
# what decoders emit for invalid or incomplete characters
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The interface required of a tokenizer."""

    def decode(self, ids: Any) -> str: ...


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    # a kernel has loaded IPython
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython, "get_ipython") and hasattr(ipython.get_ipython(), "kernel")


def escape(text: str) -> str:
    """Escape control characters, except newlines and tabs, as ``\\\\x1b``.

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
    """Print arbitrary text: on a terminal, control characters are escaped.

    Characters that the stream's encoding lacks are escaped too, instead of raising an error.

    Parameters
    ----------
    text : str
    stream : text file, optional
        Standard output by default.
    end : str
        Appended to the text.

    Examples
    --------
    >>> show("one\ttwo", end="")
    one	two
    """
    to = sys.stdout if stream is None else stream
    if to.isatty():
        text = escape(text)
    encoding = _encoding(to)
    try:
        text.encode(encoding, getattr(to, "errors", None) or "strict")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    print(text, end=end, file=to, flush=True)


def show_json(value: Any, stream: TextIO | None = None) -> None:
    """Print a line of JSON, which stays valid whatever the stream shows.

    Characters that `show` would escape are escaped as JSON does, and numbers that are not finite,
    which JSON lacks, are null.

    Parameters
    ----------
    value : dict
        Values as `json.dumps` takes them.
    stream : text file, optional
        Standard output by default.

    Examples
    --------
    >>> show_json({"text": "caf\u00e9", "loss": float("nan")})
    {"text": "caf\u00e9", "loss": null}
    """
    to = sys.stdout if stream is None else stream
    text = json.dumps(_finite(value), ensure_ascii=False)
    try:
        text.encode(_encoding(to))
        whole = not to.isatty() or escape(text) == text
    except UnicodeEncodeError:
        whole = False
    show(text if whole else json.dumps(_finite(value)), to)


def _finite(value: Any) -> Any:
    """A value of JSON with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


class TextStream:
    """A `streamer` for one text: prints it as its tokens arrive.

    Incomplete characters and trailing spaces are held back until the tokens that complete them
    arrive. The final output equals the tokenizer's decoding of all tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
    stream : text file, optional
        Standard output by default.
    prompt : array_like (t,)
        Ids of the prompt, printed at once.
    end_tokens : iterable of int
        Tokens that end the text, and are not printed if they are special tokens of the tokenizer;
        later tokens are ignored.
    end_characters : str
        The text ends after the first of these characters.

    Examples
    --------
    >>> import io
    >>> from reformer_c.text.byte_tokenizer import ByteTokenizer
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
        # tokens `_context` to `_shown` are decoded again: a piece's text depends on the one before
        self._context = self._shown = 0
        self._ended = False
        self._special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._end_tokens, self._end_characters = frozenset[int](), ""
        self.write(prompt)
        self._end_tokens, self._end_characters = frozenset(end_tokens), end_characters

    def __call__(self, tokens: Any) -> None:
        """Add the new token of a step, (1,)."""
        self.write(tokens[:1])

    def write(self, ids: Any) -> None:
        """Add the next tokens (n,) of the text."""
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
        """Print the text that is still held back."""
        self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]

    def _show(self, text: str) -> None:
        places = [text.find(character) for character in self._end_characters]
        found = [place for place in places if place >= 0]
        if found:
            self._ended, text = True, text[: min(found) + 1]
        # libraries drop leading spaces of a text: the context must begin with more than spaces
        if text.strip():
            self._context = self._shown
        self._shown = len(self._ids)
        show(text, self._stream, end="")
