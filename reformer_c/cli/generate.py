"""``reformer-c generate``: continue a text with a trained model."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..models.config import ReformerConfig
from ..text.byte_tokenizer import ByteTokenizer
from ..text.screen import TextStream, show
from ..text.token_texts import TokenTexts
from .arguments import NEW_TOKENS
from .folder import open_folder, unit
from .sampling import generation_options
from .values import given


def run(options: Namespace) -> None:
    tokenizer, model = open_folder(options.model, options.tokenizer)
    saved = model.generation_config
    choice = generation_options(options, saved)
    text = options.prompt
    if text is None:
        text = _prompt_text(options.prompt_file)
    prompt = tokenizer.encode(_readable(text, tokenizer), add_special_tokens=False)
    longest = model.config.num_positions
    room = longest - len(prompt)
    length = options.length
    if length is None and saved.max_new_tokens is None and saved.max_length is None:
        length = max(1, min(NEW_TOKENS, room))
    if length is not None and length > room:
        raise ValueError(
            f"--length: {len(prompt)} {unit(tokenizer)} of prompt and {length} new ones exceed the "
            f"model's {longest} positions"
        )
    if None not in (length, options.min_length) and options.min_length > length:
        raise ValueError(f"--min-length must be at most --length {length}")
    token_texts, characters = TokenTexts(tokenizer), "".join(options.until)
    for character in characters:
        if not token_texts.with_any(character):
            raise ValueError(f"--until: {tokenizer!r} never writes {character!r}")
    end_tokens = sorted({*_end_tokens(tokenizer, model), *token_texts.with_any(characters)})
    start = partial(
        TextStream, tokenizer, prompt=prompt, end_tokens=end_tokens, end_characters=characters
    )
    stream = start() if options.stream else None
    ids = model.generate(
        prompt[None],
        **given(
            max_new_tokens=length,
            min_new_tokens=options.min_length,
            weights=options.weights,
            cache_dtype=options.cache,
            cache_length=options.cache_length,
            cache_drop=options.cache_drop,
        ),
        **choice,
        **_banned(options.without, saved, tokenizer, token_texts),
        eos_token_id=end_tokens or None,
        rng=options.seed,
        streamer=stream,
    )
    for row in ids:
        shown = stream
        if shown is None:
            shown = start()
            shown.write(row[len(prompt) :])
        shown.end()
        show("")


def _prompt_text(file: str | None) -> str:
    """The prompt, from a file, or from standard input if no file or "-" is given."""
    if file is not None and file != "-":
        return Path(file).read_bytes().decode("utf-8", "surrogateescape")
    if file is None and sys.stdin.isatty():
        raise ValueError("--prompt, --prompt-file or text on standard input must be given")
    if hasattr(sys.stdin, "buffer"):
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return sys.stdin.read()


def _readable(text: str, tokenizer: Any) -> Any:
    """The str or bytes that a tokenizer accepts, from an argument that may hold undecoded bytes."""
    try:
        data = text.encode("utf-8", "surrogateescape")
        return data if isinstance(tokenizer, ByteTokenizer) else data.decode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"TEXT must be UTF-8 for {tokenizer!r}: {error}") from error


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The end-of-text tokens of the model and its tokenizer."""
    ends = model.generation_config.eos_token_id
    found = set(ends if isinstance(ends, list) else [ends])
    if isinstance(tokenizer, ByteTokenizer):
        # the configuration's default is the id of a byte here
        found.discard(ReformerConfig.eos_token_id)
    else:
        found.add(tokenizer.eos_token_id)
    return {i for i in found if i is not None and 0 <= i < model.config.vocab_size}


def _banned(words: Sequence[str], saved: Any, tokenizer: Any, token_texts: Any) -> dict[str, Any]:
    """The arguments of `generate` that exclude words, and ids without a token, from a text."""
    ids = [
        tokenizer.encode(_readable(word, tokenizer), add_special_tokens=False).tolist()
        for word in words
    ]
    processors = [token_texts.only_known]
    if words and not isinstance(tokenizer, ByteTokenizer):
        # a word has many segmentations, of which encode returns one
        processors.append(token_texts.without(words))
    ids = [word for word in ids if word] + (saved.bad_words_ids or [])
    return {"bad_words_ids": ids, "logits_processor": processors}
