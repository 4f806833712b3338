"""``reformer-c evaluate``: bits per byte of text files, or per dim of pictures, or the metrics of a
model for another task."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from typing import Any

from ..models.model import ReformerForSequenceClassification, ReformerModelWithLMHead
from ..text.screen import show, show_json
from ..training.evaluation import evaluate
from ..training.pictures import bits_per_dim
from ..training.progress import show_count
from ..training.texts import encode_text, read_texts
from . import tasks
from .folder import check_length, open_model, open_tokenizer, unit
from .pictures import describe_bits, read_pictures_for, sequences
from .values import option


def run(options: Namespace) -> None:
    model = open_model(options.model)
    if not isinstance(model, ReformerForSequenceClassification):
        for name in ("text_column", "label_column"):
            if getattr(options, name) is not None:
                raise ValueError(f"{option(name)} needs a classifier")
    if not isinstance(model, ReformerModelWithLMHead):
        values, text = tasks.evaluate(model, options)
    elif model.config.image_shape is None:
        values, text = _evaluate_texts(model, options)
    else:
        values, text = _evaluate_pictures(model, options)
    if options.json:
        show_json(values)
    else:
        show(text)


def _evaluate_pictures(model: Any, options: Namespace) -> tuple[dict[str, Any], str]:
    for name in ("tokenizer", "length", "sliding"):
        if getattr(options, name) is not None:
            raise ValueError(f"{option(name)} cannot be combined with a model of pictures")
    shape = model.config.image_shape
    pictures = read_pictures_for(shape, options.files)
    begin = time.perf_counter()
    with show_count("bytes") as progress:
        result = evaluate(
            model, sequences(pictures), math.prod(shape), seed=options.seed, progress=progress
        )
    seconds = time.perf_counter() - begin
    bits = describe_bits(result.bits_per_byte, shape, digits=4)
    values = {
        "bits_per_dim": bits_per_dim(result.bits_per_byte, math.prod(shape)),
        "loss": result.loss,
        "pictures": len(pictures),
        "seconds": seconds,
    }
    return values, f"{bits} ({len(pictures):,} pictures, {seconds:.1f} s)"


def _evaluate_texts(model: Any, options: Namespace) -> tuple[dict[str, Any], str]:
    for file in options.files:
        if file.endswith(".npy"):
            raise ValueError(f"FILE must be text, got token ids in {file!r}")
    tokenizer = open_tokenizer(options.model, options.tokenizer, model.config.vocab_size)
    units = unit(tokenizer)
    # texts are kept apart, so that no window crosses from one into the next
    texts = read_texts(options.files, utf8=units != "bytes")
    pairs = [(text, encode_text(text, tokenizer)) for text in texts]
    # a text of one token has nothing to predict
    pairs = [(text, ids) for text, ids in pairs if len(ids) > 1] or pairs
    tokens = [ids for _, ids in pairs]
    bytes_per_token = sum(len(text) for text, _ in pairs) / max(1, sum(map(len, tokens)))
    longest = model.config.num_positions
    usual = min(longest, model.config.max_position_embeddings)
    length = options.length or min(max(map(len, tokens)), usual)
    check_length(options, longest)
    if options.sliding is not None and options.sliding >= length:
        raise ValueError(f"--sliding must be less than the {length} {units} of a window")
    begin = time.perf_counter()
    with show_count(units) as progress:
        result = evaluate(
            model,
            tokens,
            length,
            stride=options.sliding,
            bytes_per_token=bytes_per_token,
            seed=options.seed,
            progress=progress,
        )
    seconds = time.perf_counter() - begin
    values = {
        "bits_per_byte": result.bits_per_byte,
        "loss": result.loss,
        "tokens": result.tokens,
        "bytes_per_token": bytes_per_token,
        "length": length,
        "sliding": options.sliding,
        "seconds": seconds,
    }
    windows = f"windows of {length:,}"
    if options.sliding is not None:
        windows += f", {options.sliding:,} apart"
    if units != "bytes":
        units += f" of {bytes_per_token:.2f} bytes"
    return values, (
        f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} {units} predicted in "
        f"{windows}, {seconds:.1f} s)"
    )
