"""Peak memory against depth: doubling the layers adds parameters and bucket ids, nothing else.

Each depth trains one step in a process of its own, and the table says beside what was measured what
`model.memory` had said before, and what keeping every layer's activations would have taken.

    python -m benchmarks.depth --length 65536 --plot depth.svg
"""

import argparse
from pathlib import Path

import numpy as np

import reformer_c as rc
from benchmarks.alone import measure_alone
from reformer_c.bench import describe_machine, print_machine
from reformer_c.presets import preset_config


def make_model(layers, length):
    """The model that read a novel as one sequence, of that many layers."""
    return rc.ReformerModelWithLMHead(preset_config("book", length, layers=layers), rng=0)


def measure(layers, length):
    """How much this process grows in one step, Adafactor included."""
    model = make_model(layers, length)
    optimizer = rc.Adafactor(model.parameters)
    ids = np.random.default_rng(0).integers(2, 258, (1, length))
    rc.fma_peak(0.01)  # threads are there
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    before = resident("VmRSS")
    _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    optimizer.step(gradients)
    return resident("VmHWM") - before


def resident(key):
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def row(layers, length):
    """Bytes at one depth: measured in a child, and what the model says."""
    measured = measure_alone("benchmarks.depth", "--measure", layers, "--length", length)
    model = make_model(layers, length)
    said, everything = (model.memory(length, memory_budget=x) for x in (0, np.inf))
    buckets = 4 * length * model.config.num_attention_heads * model.config.num_hashes
    return {
        "layers": layers,
        "measured": measured,
        "said": said.total,
        "parameters": said.gradients,
        "bucket ids": 0 if length <= 64 else buckets * model.config.layer_types.count("lsh"),
        "keeping all": everything.total,
    }


def draw(rows, length, file):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 4))
    layers = [row["layers"] for row in rows]
    for name, style in (("keeping all", "s--"), ("measured", "o-"), ("said", "x:")):
        ax.plot(layers, [row[name] / 1e9 for row in rows], style, label=name)
    ax.set(xlabel="layers", ylabel=f"GB in a step of {length:,} tokens", ylim=(0, None))
    ax.set_xticks(layers)
    ax.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--layers", type=int, nargs="+", default=[6, 12, 24, 48])
    add("--length", type=int, default=65_536, help="tokens of the step (65536)")
    add("--plot", metavar="FILE", help="draw the table into this picture")
    add("--measure", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("this system does not tell the peak of a process: it needs Linux")
    if options.measure:
        print(measure(options.measure, options.length))
        return

    print_machine(describe_machine())
    print(f"\nMB in a step of {options.length:,} tokens, beside the weights")
    names = ("measured", "said", "parameters", "bucket ids", "keeping all")
    print("layers  " + "".join(f"{name:>13}" for name in names))
    rows = []
    for layers in options.layers:
        rows.append(row(layers, options.length))
        print(f"{layers:6}  " + "".join(f"{rows[-1][name] / 1e6:13,.1f}" for name in names))
    if options.plot:
        draw(rows, options.length, options.plot)


if __name__ == "__main__":
    main()
