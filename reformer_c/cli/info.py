"""``reformer-c info``: size, tokenizer and speed of a saved model."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from typing import Any

import numpy as np

from ..models.encoder_decoder import ReformerEncoderDecoder
from ..models.model import ReformerModelWithLMHead
from ..runtime import peak_memory
from .folder import open_model, open_tokenizer


def run(options: Namespace) -> None:
    model = open_model(options.model)
    if options.lengths and not isinstance(model, ReformerModelWithLMHead):
        raise ValueError(f"--lengths needs a language model, got {type(model).__name__}")
    if isinstance(model, ReformerEncoderDecoder):
        _describe_encoder_decoder(model, options)
        return
    config = model.config
    longest = config.num_positions
    for length in options.lengths:
        if length > longest:
            raise ValueError(f"--lengths must be at most the model's {longest} positions")
    tokenizer = _describe_tokenizer(options, config.vocab_size)
    shape = config.image_shape
    print(repr(model))
    learned = config.position_embedding_type == "absolute"
    limit = f"{longest:,} tokens" if learned else "of any length"
    print(f"longest sequence  {limit}, vocabulary {config.vocab_size}")
    if shape is None:
        print(f"tokenizer         {tokenizer}")
    else:
        print(f"pictures          {shape[1]} x {shape[0]} pixels, {shape[2]} channels")
    _print_parameters(model)
    if options.lengths:
        print("\nmeasured: a forward pass over a text of that length, then tokens decoded after it")
        print(f"{'length':>10} {'read':>16} {'written':>16} {'cache':>10} {'peak memory':>12}")
    for length in options.lengths:
        _measure(model, length, options.seed)


def _describe_encoder_decoder(model: ReformerEncoderDecoder, options: Namespace) -> None:
    source, target = (side.config for side in model.sides.values())
    print(repr(model))
    print(f"longest source    {source.num_positions:,} tokens, vocabulary {source.vocab_size}")
    print(f"longest target    {target.num_positions:,} tokens, vocabulary {target.vocab_size}")
    print(f"tokenizer         {_describe_tokenizer(options, target.vocab_size)}")
    _print_parameters(model)


def _print_parameters(model: Any) -> None:
    groups: Counter[str] = Counter()
    for name, array in model.parameters.items():
        groups[_group(name)] += array.size
    for group, count in groups.items():
        print(f"{group:40} {count:12,} parameters")
    total = sum(groups.values())
    print(f"{'all':40} {total:12,} parameters, {4 * total / 2**20:,.1f} MB")


def _group(name: str) -> str:
    """The part of the model that a parameter belongs to: a layer, the embeddings, the head."""
    words = name.split(".")
    return ".".join(words[: words.index("layers") + 2 if "layers" in words else 2])


def _describe_tokenizer(options: Namespace, vocab_size: int) -> str:
    """The folder's tokenizer, or the reason why it cannot be read."""
    try:
        return repr(open_tokenizer(options.model, options.tokenizer, vocab_size))
    except (ImportError, OSError, ValueError) as error:
        if options.tokenizer is not None:
            raise
        return " ".join(str(error).split())


def _measure(model: Any, length: int, seed: int) -> None:
    """Print a line of measurements at one length: speed of prompt and decoding, and memory."""
    tokens = min(32, model.config.num_positions - length + 1)
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, max(1, length - 1)))
    begin = time.perf_counter()
    stream = model.stream(ids, max_new_tokens=tokens, eos_token_id=None, rng=seed)
    next(stream)
    read = time.perf_counter()
    written = sum(1 for _ in stream)
    seconds = time.perf_counter() - read
    speeds = [
        f"{count / time_:,.0f} tokens/s" if count else "-"
        for count, time_ in ((ids.shape[1], read - begin), (written, seconds))
    ]
    peak = peak_memory()
    memory = "-" if peak is None else f"{peak / 2**20:,.0f} MB"
    cache = f"{model.cache_bytes(length) / 2**20:.1f} MB"
    print(f"{length:10,} {speeds[0]:>16} {speeds[1]:>16} {cache:>10} {memory:>12}")
