"""A whole training step of the `book` model: loss, all gradients, Adafactor.

Each length runs in a new process: time, share of the peak of fused multiply-adds at 21.2 MFLOP per
token and the same as a multiple of the fastest library's matrix product, and peak memory, measured
and predicted by `model.memory`. Then, at `--compare` tokens, the
step takes turns with one that keeps activations (`memory_budget`) and, if transformers is
installed, with Hugging Face's model, unchanged and after `reformer_c.torch.patch`; no dropout.

    python -m benchmarks.step --lengths 65536 524288 1048576      # twelve minutes

With `--residual-dtype int16` the steps of the first part have residual streams in fixed point.
"""

import argparse
import json
import time
import warnings

import numpy as np

import reformer_c as rc
from reformer_c.runtime import peak_memory
from reformer_c.tools.bench import (
    describe_machine,
    draw_model,
    print_machine,
    training_operations,
    training_step,
)

from . import rivals
from .alone import measure_alone


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(length, repeats, residual_dtype):
    """Run in a new process: {seconds, operations, peak, product, memory, predicted}."""
    model, ids = draw_model(length, residual_dtype=residual_dtype)
    step, best, peak = training_step(model, ids), np.inf, 0.0
    for _ in range(repeats):
        peak = max(peak, *(rc.fma_peak(0.05) for _ in range(3)))
        best = min(best, seconds(step))
    memory = peak_memory()  # before other libraries are loaded
    predicted = model.memory(length).total
    operations = training_operations(model.config, length)
    return {"seconds": best, "operations": operations, "peak": peak, "memory": memory,
            "product": fastest_product(5), "predicted": predicted}  # fmt: skip


def fastest_product(repeats, n=2048):
    """GFLOP/s of the fastest library's product of two n x n matrices."""
    with rivals.num_threads(rc.get_num_threads()):
        calls = rivals.library_products(n).values()
        return 2e-9 * n**3 / min(seconds(call) for call in calls for _ in range(repeats))


def print_lengths(options):
    print(
        f"\n{'tokens':>9} {'seconds':>8} {'tokens/s':>9} {'of peak':>8} {'product':>8} {'GB':>6} "
        f"{'predicted':>9}"
    )
    for length in options.lengths:
        words = ["--measure", length, "--repeats", options.repeats]
        if options.residual_dtype:
            words += ["--residual-dtype", options.residual_dtype]
        found = measure_alone("benchmarks.step", *words)
        speed = 1e-9 * found["operations"] / found["seconds"]
        print(
            f"{length:9,} {found['seconds']:8.2f} {length / found['seconds']:9,.0f} "
            f"{100 * speed / found['peak']:7.1f}% {speed / found['product']:7.2f}x "
            f"{found['memory'] / 1e9:6.2f} {found['predicted'] / 1e9:9.2f}",
            flush=True,
        )


def print_comparison(length, repeats):
    model, ids = draw_model(length)
    steps = {
        "reformer_c": training_step(model, ids),
        "reformer_c, memory_budget": training_step(draw_model(length)[0], ids, np.inf),
    }
    theirs = model.config, model.parameters, ids
    steps |= rivals.training_step(*theirs, patched=True) | rivals.training_step(*theirs)
    best = dict.fromkeys(steps, np.inf)
    with rivals.num_threads(rc.get_num_threads()):
        for _ in range(repeats):
            for name, step in steps.items():
                best[name] = min(best[name], seconds(step))
    print(f"\n{length:,} tokens, steps in turns, the fastest of {repeats}")
    for name, spent in best.items():
        ratio = best.get(rivals.HUGGING_FACE, np.nan) / spent
        print(f"{name:28} {spent:8.2f} s {length / spent:9,.0f} tokens/s {ratio:6.2f}x")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lengths", type=int, nargs="*", default=[16_384, 65_536])
    add(
        "--compare",
        type=int,
        default=16_384,
        help="tokens of the comparison with Hugging Face; 0 skips it (16384)",
    )
    add("--repeats", type=int, default=3, help="steps; the fastest counts (3)")
    add("--residual-dtype", choices=("int16", "int32"), help="of the streams")
    add("--measure", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        print(json.dumps(measure(options.measure, options.repeats, options.residual_dtype)))
        return
    print_machine(describe_machine() | rivals.describe())
    print_lengths(options)
    if options.compare:
        print_comparison(options.compare, options.repeats)


if __name__ == "__main__":
    main()
