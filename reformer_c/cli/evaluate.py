"""``reformer-c evaluate``: bits per byte of a model on text files."""

from __future__ import annotations

import time
from argparse import Namespace

from ..training.evaluation import evaluate
from ..training.texts import encode_text, read_texts
from .folder import open_folder, unit


def run(options: Namespace) -> None:
    for file in options.files:
        if file.endswith(".npy"):
            raise ValueError(f"FILE must be text, got token ids in {file!r}")
    tokenizer, model = open_folder(options.model, options.tokenizer)
    units = unit(tokenizer)
    # texts are kept apart, so that no window crosses from one into the next
    texts = read_texts(options.files, utf8=units != "bytes")
    pairs = [(text, encode_text(text, tokenizer)) for text in texts]
    # a text of one token has nothing to predict
    pairs = [(text, ids) for text, ids in pairs if len(ids) > 1] or pairs
    tokens = [ids for _, ids in pairs]
    bytes_per_token = sum(len(text) for text, _ in pairs) / max(1, sum(map(len, tokens)))
    longest = model.config.num_positions
    length = options.length or min(max(map(len, tokens)), longest)
    if length > longest:
        raise ValueError(f"--length must be at most the model's {longest} positions")
    if options.sliding is not None and options.sliding >= length:
        raise ValueError(f"--sliding must be less than the {length} {units} of a window")
    begin = time.perf_counter()
    result = evaluate(
        model,
        tokens,
        length,
        stride=options.sliding,
        bytes_per_token=bytes_per_token,
        seed=options.seed,
    )
    seconds = time.perf_counter() - begin
    windows = f"windows of {length:,}"
    if options.sliding is not None:
        windows += f", {options.sliding:,} apart"
    if units != "bytes":
        units += f" of {bytes_per_token:.2f} bytes"
    print(
        f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} {units} predicted in "
        f"{windows}, {seconds:.1f} s)"
    )
