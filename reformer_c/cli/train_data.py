"""The files that ``reformer-c train`` reads, as training data and held-out texts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..models.config import ReformerConfig
from ..text.byte_tokenizer import ByteTokenizer
from ..text.folders import folder_tokenizer
from ..training.data import Sequences, Windows
from ..training.examples import split_examples
from ..training.texts import count_bytes, encode_text, read_parts, split_parts
from .arguments import LENGTH
from .folder import consistent_tokenizer, no_tokenizer
from .values import given

__all__ = ["TrainingData", "default_tokenizer", "held_out_share", "hold_out", "read_data",
           "read_tokenizer", "row_length", "token_fields"]  # fmt: skip


class TrainingData(NamedTuple):
    """The training data; the held-out texts of at least two tokens, and their bytes per token; the
    tokenizer, which is None if all files contain token ids and none is given; and the fields of the
    model's configuration that all these determine."""

    train: Windows | Sequences
    held_out: list[np.ndarray]
    held_out_bytes_per_token: float
    tokenizer: Any
    fields: dict[str, Any]

    @property
    def summary(self) -> str:
        """How many tokens there are to train on, and held out."""
        least = self.train.length if isinstance(self.train, Windows) else 0
        count = sum(len(part) for part in self.train.tokens if len(part) >= least)
        text = f"{count:,} tokens to train on, {sum(map(len, self.held_out)):,} held out"
        if isinstance(self.train, Windows) and self.train.left_out:
            text += f"\n{self.train.left_out:,} texts of fewer than {least:,} tokens are left out"
        return text


def read_data(folder: Path | None, options: Namespace) -> TrainingData:
    """Read and tokenize the files; `folder` is where the model is saved."""
    tokenizer = read_tokenizer(folder, options)
    utf8 = not isinstance(tokenizer, ByteTokenizer | None)
    parts = read_parts(options.files, utf8=utf8)
    apart = read_parts(options.evaluate_on, utf8=utf8) if options.evaluate_on else []
    if tokenizer is None and any(isinstance(part, bytes) for part in parts + apart):
        tokenizer = default_tokenizer(folder, options)
    if tokenizer is not None and options.bytes_per_token is not None:
        raise ValueError(
            "--bytes-per-token cannot be combined with a tokenizer or text, whose bytes are counted"
        )
    share = held_out_share(options)
    parts, ends = split_parts(parts, share, tokenizer, whole_files=options.whole_files)
    train = [encode_text(part, tokenizer) for part in parts]
    pairs = [(part, encode_text(part, tokenizer)) for part in apart or ends]
    pairs = [(part, tokens) for part, tokens in pairs if len(tokens) > 1]
    held_out = [tokens for _, tokens in pairs]
    if options.evaluate_on and not held_out:
        raise ValueError("--evaluate-on must have a text of at least 2 tokens")
    common = {
        "order": options.order,
        "seed": options.seed,
        "offset": options.offset,
        "bytes_per_token": _bytes_per_token(parts, train, tokenizer, options),
    }
    data: Windows | Sequences
    if not options.whole_files:
        data = Windows(train, row_length(options), batch=options.batch or 1, **common)
    elif (options.batch or 1) > 1:
        raise ValueError("--batch must be 1 with --whole-files; --accumulate N uses N files a step")
    elif short := [len(tokens) for tokens in train if len(tokens) < 2]:
        raise ValueError(
            f"--whole-files: each FILE must have at least 2 tokens to train on, got {short[0]} in "
            f"{len(short)} of them"
        )
    else:
        data = Sequences(train, options.length, **common)
    held_out_bytes = _bytes_per_token([part for part, _ in pairs], held_out, tokenizer, options)
    return TrainingData(data, held_out, held_out_bytes, tokenizer, token_fields(tokenizer))


def row_length(options: Namespace) -> int:
    """The most tokens of a row: without --length, as many as the given model has positions for."""
    if options.length is not None:
        return int(options.length)
    most = dict(options.set).get("max_position_embeddings", LENGTH)
    if options.start is not None:
        most = ReformerConfig.from_pretrained(options.start).num_positions
    return max(1, min(LENGTH, int(most) - int(options.offset)))


def read_tokenizer(folder: Path | None, options: Namespace) -> Any:
    """The tokenizer of --tokenizer, by default that of the folder, if it has one, or of --from."""
    saved = folder_tokenizer(folder) if folder is not None and folder.is_dir() else None
    if saved is not None or options.start is None:
        return consistent_tokenizer(options.tokenizer, saved, folder)
    # guess from the vocabulary's size only if no tokenizer is named
    size = ReformerConfig.from_pretrained(options.start).vocab_size
    saved = folder_tokenizer(options.start, size if options.tokenizer is None else None)
    return consistent_tokenizer(options.tokenizer, saved, options.start)


def default_tokenizer(folder: Path | None, options: Namespace) -> Any:
    """The tokenizer of texts: `ByteTokenizer`, unless an earlier model may have another."""
    if options.start is not None:
        raise no_tokenizer(options.start)
    if not options.resume or folder is None:
        return ByteTokenizer()
    tokenizer = folder_tokenizer(folder, ReformerConfig.from_json(folder).vocab_size)
    if tokenizer is None:
        raise no_tokenizer(folder)
    return tokenizer


def held_out_share(options: Namespace) -> float:
    """The share of FILE to hold out: of --held-out, or nothing with --evaluate-on, or a tenth."""
    if options.held_out is not None:
        share: float = options.held_out
        return share
    return 0.0 if options.evaluate_on else 0.1


def hold_out(
    examples: Sequence[Any], apart: Sequence[Any], options: Namespace
) -> tuple[list[Any], list[Any]]:
    """The examples to train on, and those held out: `apart`, if there are any, or drawn ones."""
    train, held = split_examples(len(examples), held_out_share(options), options.seed)
    return [examples[i] for i in train], [*apart] or [examples[i] for i in held]


def token_fields(tokenizer: Any) -> dict[str, Any]:
    """Fields of the configuration that a tokenizer determines; presets are for `ByteTokenizer`."""
    if isinstance(tokenizer, ByteTokenizer | None):
        return {}
    ends = {"eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer)} | ends | given(pad_token_id=tokenizer.pad_token_id)


def _bytes_per_token(
    texts: Sequence[Any], tokens: Sequence[np.ndarray], tokenizer: Any, options: Namespace
) -> float:
    """Mean bytes per token of the texts."""
    count = sum(map(len, tokens))
    if tokenizer is None or count == 0:
        return options.bytes_per_token or 1.0
    return sum(count_bytes(text, tokenizer) for text in texts) / count
