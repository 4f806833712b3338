"""The cost of `residual_dtype` in quality: errors of gradients, and of models trained with it.

First the error of all gradients of one window with the first weights, ||g - g32|| / ||g32||. Then a
small model of bytes, alternately local and LSH layers, is trained with each kind of residual
streams from the same seeds on the same windows, and evaluated on held-out text.

    python -m benchmarks.streams FILE               # twenty minutes on one core
    python -m benchmarks.streams --quick            # seconds

Without FILE, the text is one that is part of Python.
"""

import argparse
import sys

import numpy as np

from reformer_c.tools.bench import describe_machine, print_machine
from reformer_c.tools.demo import bigram_bits_per_byte
from reformer_c.training.evaluation import evaluate
from reformer_c.training.progress import show_progress

from .small_model import make_model, make_trainer, text_of

MAX_LOSS = 0.005  # target: bits per byte above those of real streams, as a share
HELD_OUT = 32  # windows
KINDS = (None, "int16", "int32")


def print_errors(tokens, options):
    print("\nerror of all gradients with the first weights")
    ids, exact = np.asarray(tokens[: options.length])[None], None
    for kind in KINDS:
        model = make_model(0, options, layers=options.layers, residual_dtype=kind)
        _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
        found = np.concatenate([x.ravel() for x in gradients.values()]).astype(np.float64)
        exact = found if exact is None else exact
        print(f"{kind or 'float32':9}{np.linalg.norm(found - exact) / np.linalg.norm(exact):10.1e}")


def train(kind, seed, texts, options):
    """Train a model; its held-out bits per byte, and the largest number in its streams then."""
    tokens, held_out = texts
    model = make_model(seed, options, layers=options.layers, residual_dtype=kind)
    trainer = make_trainer(model, tokens, seed, options, lr=2e-3)
    for _ in show_progress(trainer):
        pass
    ids = np.asarray(held_out[: options.length])[None]
    states = model(ids, rng=0, output_hidden_states=True).hidden_states
    bits = evaluate(model, held_out, options.length, seed=seed).bits_per_byte
    return bits, max(float(np.abs(x).max()) for x in states)


def compare_models(texts, options):
    print(f"\nheld-out bits per byte after {options.steps} steps of {options.length:,} bytes; ",
          end="")  # fmt: skip
    print(f"byte bigrams: {bigram_bits_per_byte(*texts, options.length):.3f}")
    print("seed    streams     bits   more   largest number of a stream")
    more = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        for kind in (None, *options.kinds):
            bits, largest = train(kind, seed, texts, options)
            if kind is None:
                plain = bits
            else:
                more[kind].append(bits / plain - 1)
            print(f"{seed:4} {kind or 'float32':>10}{bits:9.4f} {bits / plain - 1:+7.2%} "
                  f"{largest:8.2f}", flush=True)  # fmt: skip
    for kind, shares in more.items():
        reached = "yes" if np.mean(shares) <= MAX_LOSS else "NO"
        print(f"{kind}: {np.mean(shares):+.2%} on average, at most {MAX_LOSS:+.1%}: {reached}")


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help="a text; its last tenth is held out")
    add("--steps", type=int, default=300, help="of one window each (300)")
    add("--length", type=int, default=4096, help="bytes of a window (4096)")
    add("--layers", type=int, default=6, help="of a model (6)")
    add("--width", type=int, default=128, help="of its streams (128)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a model for each (0 1 2)")
    add("--kinds", nargs="+", choices=KINDS[1:], default=["int16"], help="to compare (int16)")
    add("--quick", action="store_true", help="sizes that take seconds, to test that it works")
    options = parser.parse_args()
    if options.quick:
        options.length, options.layers, options.width = 256, 2, 32
        options.steps, options.seeds = min(options.steps, 5), options.seeds[:1]
    _, options.source, texts = text_of(parser, options, HELD_OUT)
    return options, texts


def main():
    options, texts = parse()
    print_machine(describe_machine())
    print(f"text       {options.source}")
    print_errors(texts[0], options)
    compare_models(texts, options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
