"""Peak memory against depth: doubling the layers adds only parameters and bucket ids.

Each depth trains one step in a new process. The table compares the measured peak with the
prediction of `model.memory`, and with that for keeping every layer's activations.

    python -m benchmarks.depth --length 65536 --plot depth.svg
"""

import argparse

import numpy as np

import reformer_c as rc
from benchmarks.alone import measure_alone
from benchmarks.growth import CLEAR, growth
from reformer_c.models.presets import preset_config
from reformer_c.tools.bench import describe_machine, print_machine


def make_model(layers, length):
    """The `book` model with that many layers."""
    return rc.ReformerModelWithLMHead(preset_config("book", length, layers=layers), rng=0)


def measure(layers, length):
    """Bytes by which this process grows in one step, Adafactor included."""
    model = make_model(layers, length)
    optimizer = rc.Adafactor(model.parameters)
    ids = np.random.default_rng(0).integers(2, 258, (1, length))

    def step():
        _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
        optimizer.step(gradients)

    return growth(step)["bytes"]


def row(layers, length):
    """Bytes at one depth: measured in a new process, and predicted by the model."""
    measured = measure_alone("benchmarks.depth", "--measure", layers, "--length", length)
    model = make_model(layers, length)
    predicted, everything = (model.memory(length, memory_budget=x) for x in (0, np.inf))
    buckets = 4 * length * model.config.num_attention_heads * model.config.num_hashes
    return {
        "layers": layers,
        "measured": measured,
        "predicted": predicted.total,
        "parameters": predicted.gradients,
        "bucket ids": 0 if length <= 64 else buckets * model.config.layer_types.count("lsh"),
        "keeping all": everything.total,
    }


def draw(rows, length, file):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 4))
    layers = [row["layers"] for row in rows]
    for name, style in (("keeping all", "s--"), ("measured", "o-"), ("predicted", "x:")):
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
    add("--length", type=int, default=65_536, help="tokens per step (65536)")
    add("--plot", metavar="FILE", help="plot the table to this file")
    add("--measure", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not CLEAR.exists():
        parser.error("the peak of a process can only be measured on Linux")
    if options.measure:
        print(measure(options.measure, options.length))
        return

    print_machine(describe_machine())
    print(f"\nMB in a step of {options.length:,} tokens, without the weights")
    names = ("measured", "predicted", "parameters", "bucket ids", "keeping all")
    print("layers  " + "".join(f"{name:>13}" for name in names))
    rows = []
    for layers in options.layers:
        rows.append(row(layers, options.length))
        print(f"{layers:6}  " + "".join(f"{rows[-1][name] / 1e6:13,.1f}" for name in names))
    if options.plot:
        draw(rows, options.length, options.plot)


if __name__ == "__main__":
    main()
