"""A whole training step of the `book` model: loss, all gradients, Adafactor.

Each length runs in a process of its own: its peak of memory beside what `model.memory` said, its
time, and its share of the peak of fused multiply-adds, counting 21.2 MFLOP a token. Then, at
`--beside` tokens, the step in turns with one that keeps activations (`memory_budget`), and with
Hugging Face's where that is installed, as it is and after `reformer_c.torch.patch`; nothing is
dropped in any.

    python -m benchmarks.step --lengths 65536 524288 1048576      # twelve minutes
"""

import argparse
import json
import time
import warnings

import numpy as np

import reformer_c as rc
from reformer_c.bench import describe_machine, print_machine
from reformer_c.presets import DROPOUTS, preset_config
from reformer_c.train import peak_memory

from . import rivals
from .alone import measure_alone

# forward and backward products of a token, those of rebuilding the layers too
OPERATIONS = 21.2e6


def make(length):
    config = preset_config("book", length, **dict.fromkeys(DROPOUTS, 0.0))
    model = rc.ReformerModelWithLMHead(config, rng=0)
    return model, np.random.default_rng(0).integers(2, 258, (1, length))


def our_step(model, ids, memory_budget=None):
    optimizer = rc.Adafactor(model.parameters)

    def step():
        _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=memory_budget)
        optimizer.step(gradients)

    return step


def their_step(config, parameters, ids, patched=False):
    """The same step with transformers' model and optimiser."""
    import torch
    from transformers.optimization import Adafactor

    from reformer_c.torch import patch

    fields = {name: value for name, value in config.to_dict().items() if value is not None}
    model = rivals.hugging_face_model(fields, parameters).train()
    if patched:
        patch(model)
    optimizer = Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    tokens = torch.tensor(ids)

    def step():
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()

    return step


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(length, repeats):
    """In a process of its own: {seconds, peak, memory, said}."""
    model, ids = make(length)
    step, best, peak = our_step(model, ids), np.inf, 0.0
    for _ in range(repeats):
        peak = max(peak, *(rc.fma_peak(0.05) for _ in range(3)))
        best = min(best, seconds(step))
    said = model.memory(length).total
    return {"seconds": best, "peak": peak, "memory": peak_memory(), "said": said}


def print_lengths(options):
    print(
        f"\n{'tokens':>9} {'seconds':>8} {'tokens/s':>9} {'of peak':>8} {'GB':>6} {'GB, said':>9}"
    )
    for length in options.lengths:
        words = ("--measure", length, "--repeats", options.repeats)
        found = measure_alone("benchmarks.step", *words)
        share = OPERATIONS * length / found["seconds"] / found["peak"] / 1e9
        print(
            f"{length:9,} {found['seconds']:8.2f} {length / found['seconds']:9,.0f} "
            f"{100 * share:7.1f}% {found['memory'] / 1e9:6.2f} {found['said'] / 1e9:9.2f}",
            flush=True,
        )


def print_beside(length, repeats):
    model, ids = make(length)
    steps = {
        "reformer_c": our_step(model, ids),
        "reformer_c, memory_budget": our_step(make(length)[0], ids, np.inf),
    }
    if rivals.HUGGING_FACE in rivals.installed():
        theirs = model.config, model.parameters, ids
        steps[f"{rivals.HUGGING_FACE}, patched"] = their_step(*theirs, patched=True)
        steps[rivals.HUGGING_FACE] = their_step(*theirs)
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
        "--beside", type=int, default=16_384, help="tokens beside Hugging Face's; 0 is none (16384)"
    )
    add("--repeats", type=int, default=3, help="steps, of which the fastest counts (3)")
    add("--measure", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        print(json.dumps(measure(options.measure, options.repeats)))
        return
    print_machine(describe_machine() | rivals.describe())
    print_lengths(options)
    if options.beside:
        print_beside(options.beside, options.repeats)


if __name__ == "__main__":
    main()
