"""``reformer-c info``: size, tokenizer and speed of a saved model."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..models.encoder_decoder import ReformerEncoderDecoder
from ..models.model import ReformerModelWithLMHead
from ..models.summary import parameters_by_part
from ..runtime import peak_memory
from ..text.screen import show, show_json
from .folder import open_model, open_tokenizer


def run(options: Namespace) -> None:
    model = open_model(options.model)
    if options.lengths and not isinstance(model, ReformerModelWithLMHead):
        raise ValueError(f"--lengths needs a language model, got {type(model).__name__}")
    sides = model.sides if isinstance(model, ReformerEncoderDecoder) else {"": model}
    longest = {name: side.config.num_positions for name, side in sides.items()}
    for length in options.lengths:
        if length > longest[""]:
            raise ValueError(f"--lengths must be at most the model's {longest['']} positions")
    target = [*sides.values()][-1].config
    facts = {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "parameters": model.num_parameters(),
        "parameter_bytes": sum(array.nbytes for array in model.parameters.values()),
        "parameters_by_part": parameters_by_part(model.parameters),
        "tokenizer": _describe_tokenizer(options, target.vocab_size),
    }
    if target.image_shape is not None:
        del facts["tokenizer"]
    for name, side in sides.items():
        facts |= _limits(side.config, f"{name}_" if name else "")
    measured = _measurements(model, options.lengths, options.seed)
    if options.json:
        show_json(facts | ({"measured": [*measured]} if options.lengths else {}))
        return
    show(_table(model, facts))
    if options.lengths:
        show("\nmeasured: a forward pass over a text of that length, then tokens decoded after it")
        show(f"{'length':>10} {'read':>16} {'written':>16} {'cache':>10} {'peak memory':>12}")
    for row in measured:
        show(_line(row))


def _limits(config: Any, prefix: str) -> dict[str, Any]:
    """The longest sequence, None if there is no limit, the vocabulary, and the pictures' shape."""
    learned = config.position_embedding_type == "absolute"
    found = {"longest_sequence": config.num_positions if learned else None,
             "vocabulary": config.vocab_size, "layers": list(config.layer_types)}  # fmt: skip
    if config.image_shape is not None:
        found["image_shape"] = list(config.image_shape)
    return {f"{prefix}{name}": value for name, value in found.items()}


def _table(model: Any, facts: dict[str, Any]) -> str:
    """What is not measured, in lines."""
    lines = [repr(model)]
    for prefix, what in (("", "sequence"), ("encoder_", "source"), ("decoder_", "target")):
        if f"{prefix}vocabulary" not in facts:
            continue
        longest = facts[f"{prefix}longest_sequence"]
        limit = "of any length" if longest is None else f"{longest:,} tokens"
        name = f"longest {what}"
        lines.append(f"{name:17} {limit}, vocabulary {facts[f'{prefix}vocabulary']}")
    if (shape := facts.get("image_shape")) is None:
        lines.append(f"tokenizer         {facts['tokenizer']}")
    else:
        lines.append(f"pictures          {shape[1]} x {shape[0]} pixels, {shape[2]} channels")
    for part, count in facts["parameters_by_part"].items():
        lines.append(f"{part:40} {count:12,} parameters")
    size = facts["parameter_bytes"] / 1e6
    lines.append(f"{'all':40} {facts['parameters']:12,} parameters, {size:,.1f} MB")
    return "\n".join(lines)


def _describe_tokenizer(options: Namespace, vocab_size: int) -> str:
    """The folder's tokenizer, or the reason why it cannot be read."""
    try:
        return repr(open_tokenizer(options.model, options.tokenizer, vocab_size))
    except (ImportError, OSError, ValueError) as error:
        if options.tokenizer is not None:
            raise
        return " ".join(str(error).split())


def _measurements(model: Any, lengths: list[int], seed: int) -> Iterator[dict[str, Any]]:
    """At each length: tokens per second of prompt and decoding, and bytes of memory."""
    for length in lengths:
        tokens = min(32, model.config.num_positions - length + 1)
        draw = np.random.default_rng(seed)
        ids = draw.integers(0, model.config.vocab_size, (1, max(1, length - 1)))
        begin = time.perf_counter()
        stream = model.stream(ids, max_new_tokens=tokens, eos_token_id=None, rng=seed)
        next(stream)
        read = time.perf_counter()
        written = sum(1 for _ in stream)
        seconds = time.perf_counter() - read
        yield {
            "length": length,
            "read_tokens_per_second": ids.shape[1] / (read - begin),
            "written_tokens_per_second": written / seconds if written else None,
            "cache_bytes": model.cache_bytes(length),
            "peak_bytes": peak_memory(),
        }


def _line(row: dict[str, Any]) -> str:
    """A line of measurements."""
    read, written = (
        "-" if speed is None else f"{speed:,.0f} tokens/s"
        for speed in (row["read_tokens_per_second"], row["written_tokens_per_second"])
    )
    peak = row["peak_bytes"]
    memory = "-" if peak is None else f"{peak / 1e6:,.0f} MB"
    cache = f"{row['cache_bytes'] / 1e6:.1f} MB"
    return f"{row['length']:10,} {read:>16} {written:>16} {cache:>10} {memory:>12}"
