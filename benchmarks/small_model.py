"""A small model of bytes, alternately local and LSH layers, trained on one text and evaluated on
its last tenth: what the benchmarks of quality compare."""

import reformer_c as rc
from reformer_c.models.presets import DROPOUTS, preset_config
from reformer_c.tools.demo import python_text
from reformer_c.training.data import Windows
from reformer_c.training.texts import encode_text, read_text, split_tokens


def text_of(parser, options, windows):
    """The text of FILE, or one that is part of Python: its bytes, its name, and the tokens to train
    on and to evaluate, so many windows at most. Ends the program if ``options`` are wrong for it.
    """
    if options.steps < 1:
        parser.error("--steps must be a whole number >= 1")
    try:
        text, source = (read_text(options.file), options.file) if options.file else python_text()
    except (OSError, ValueError) as error:
        parser.error(f"FILE: {error}")
    tokens, held_out = split_tokens(encode_text(text), 0.1)
    if len(held_out) < options.length:
        parser.error(f"FILE must have at least {10 * options.length:,} bytes, got {len(text):,}")
    return text, source, (tokens, held_out[: windows * options.length])


def make_model(seed, options, *, layers, **fields):
    config = preset_config(
        "book", options.length, layers=layers, width=options.width, num_buckets=None,
        vocab_size=rc.ByteTokenizer.vocab_size, **fields,
        # a narrow window is learned within 300 steps
        local_attn_chunk_length=8, **dict.fromkeys(DROPOUTS, 0.0),
    )  # fmt: skip
    return rc.ReformerModelWithLMHead(config, rng=seed)


def make_trainer(model, tokens, seed, options, *, lr, **more):
    return rc.Trainer(
        model,
        Windows(tokens, options.length, seed=seed),
        rc.AdamW(model.parameters, lr=lr),
        steps=options.steps,
        schedule=rc.schedules.cosine(options.steps, warmup=options.steps // 15, floor=0.1),
        seed=seed,
        **more,
    )
