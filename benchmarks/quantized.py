"""Decoding with quantized weights: tokens per second, and the cost of rounding in bits per byte.

The `enwik8` preset (12 layers, width 1,024) is trained for some steps on bytes, so that its weights
are not merely initialised:

    python -m benchmarks.quantized FILE        # ten minutes on two cores
    python -m benchmarks.quantized --quick     # seconds, a small model

Without FILE, the text is one that is part of Python. The three storages take turns; the time per
token is the median within a text, and the minimum over texts.
"""

import argparse
import time

import numpy as np

import reformer_c as rc
from reformer_c import ops
from reformer_c.models.presets import DROPOUTS, preset_config
from reformer_c.tools.bench import describe_machine, print_machine
from reformer_c.tools.demo import python_text
from reformer_c.training.data import Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.progress import show_progress
from reformer_c.training.texts import encode_text, read_text, split_tokens

STORAGES = (None, "bfloat16", "int8")
# required speed-up over float32
TARGETS = {"bfloat16": 1.8, "int8": 3.2}
QUICK = {"layers": 2, "width": 64}


def trained_model(tokens, options):
    config = preset_config(
        "enwik8", options.length, num_hashes=1, num_buckets=32, attention_scope="bucket",
        eos_token_id=None, **dict.fromkeys(DROPOUTS, 0.0), **(QUICK if options.quick else {}),
    )  # fmt: skip
    model = rc.ReformerModelWithLMHead(config, rng=0)
    trainer = rc.Trainer(
        model,
        Windows(tokens, options.length, seed=0),
        rc.AdamW(model.parameters, lr=3e-4),
        steps=options.steps,
        schedule=rc.schedules.cosine(options.steps, warmup=options.steps // 8, floor=0.1),
        seed=0,
    )
    for _ in show_progress(trainer):
        pass
    return model


def rounded(model, storage):
    """A copy whose matrices are rounded as in decoding steps."""
    twin = rc.ReformerModelWithLMHead(model.config, rng=0)
    for name, weight in model.parameters.items():
        if weight.ndim == 2 and "embeddings" not in name:
            weight = ops.dequantize(ops.quantize(weight, storage))
        twin.parameters[name] = weight
    return twin


def bits_per_byte(model, storage, held_out, length):
    model = model if storage is None else rounded(model, storage)
    return evaluate(model, held_out, length, seed=0).bits_per_byte


def seconds_per_token(model, prompt, storage, tokens):
    """Median over the tokens of a text, except the first, whose step quantizes the weights."""
    stamps = []
    model.generate(
        prompt, max_new_tokens=tokens, weights=storage, rng=0,
        streamer=lambda _: stamps.append(time.perf_counter()),
    )  # fmt: skip
    return float(np.median(np.diff(stamps)[1:]))


def time_in_turns(model, prompt, options):
    times = {storage: [] for storage in STORAGES}
    for _ in range(options.repeats):
        for storage in STORAGES:
            times[storage].append(seconds_per_token(model, prompt, storage, options.tokens))
    return {storage: min(found) for storage, found in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", metavar="FILE", help="text to train on and to evaluate")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of training (40)")
    parser.add_argument("--length", type=int, default=1024, metavar="N", help="of a window (1024)")
    parser.add_argument("--tokens", type=int, default=24, metavar="N", help="of a text (24)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="texts (5)")
    parser.add_argument("--quick", action="store_true", help="a small model, a few steps")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.length, options.tokens, options.repeats = 2, 256, 6, 1
    print_machine(describe_machine())
    text = read_text(options.file) if options.file else python_text()[0]
    tokens, held_out = split_tokens(encode_text(text), 0.05)
    model = trained_model(tokens, options)
    held_out = held_out[: 8 * options.length]

    print(f"{model!r}\nheld-out bytes: {len(held_out):,}")
    base = None
    for storage in STORAGES:
        bits = bits_per_byte(model, storage, held_out, options.length)
        base = bits if base is None else base
        more = 100 * (2 ** (bits - base) - 1)
        print(f"{storage or 'float32':9} {bits:8.4f} bits per byte, perplexity {more:+.3f} %")
    prompt = held_out[None, :64]
    for threads in sorted({1, rc.get_num_threads()}):
        with rc.num_threads(threads):
            times = time_in_turns(model, prompt, options)
        for storage, seconds in times.items():
            ratio = times[None] / seconds
            target = f" (target {TARGETS[storage]})" if storage else ""
            print(
                f"{threads} thread{'s' * (threads > 1)}  {storage or 'float32':9} "
                f"{1 / seconds:8,.1f} tokens/s {ratio:6.2f} times{target}",
                flush=True,
            )


if __name__ == "__main__":
    main()
