"""``reformer-c translate``: translate texts, line by line, with a model trained on pairs."""

from __future__ import annotations

import sys
from argparse import Namespace

from ..models.encoder_decoder import ReformerEncoderDecoder
from ..text.screen import show
from ..training.pairs import read_lines
from .folder import check_length, open_model, open_tokenizer
from .translation import BATCH, beam_options, translate


def run(options: Namespace) -> None:
    if options.text is None and options.text_file is None and sys.stdin.isatty():
        raise ValueError("--text, --text-file or text on standard input must be given")
    model = open_model(options.model)
    if not isinstance(model, ReformerEncoderDecoder):
        kind = type(model).__name__
        raise ValueError(f"DIR must be an encoder-decoder, got {kind} in {options.model!r}")
    tokenizer = open_tokenizer(options.model, options.tokenizer, model.decoder.config.vocab_size)
    texts = [options.text] if options.text else read_lines(options.text_file or "-")
    longest = model.decoder.config.num_positions - 1
    check_length(options, longest)
    found = translate(
        model, tokenizer, texts, batch=options.batch or BATCH, length=options.length,
        seed=options.seed, **beam_options(model, options.beams, options.length_penalty),
    )  # fmt: skip
    for text in found:
        show(text)
