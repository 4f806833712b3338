"""Figure 5, left: bits per byte and memory by depth.

Reformers of local and LSH layers, differing in depth alone, are trained on the same bytes. The
memory of a training step is measured in a new process, without an optimiser, and without the
gradients of the weights. It is compared with what `model.memory` predicts if all activations are
kept.
"""

import json

import numpy as np

from benchmarks.alone import measure_alone, print_measured
from benchmarks.growth import growth

from . import language
from .growth import check_system

SEEDS = [0, 1, 2]
SIZE = {
    "depths": [3, 6, 12, 20], "width": 64, "length": 2048, "batch": 1, "steps": 400, "lr": 3e-3,
    "rounds": 1, "local_chunk": 8, "chunk": 64, "evaluate_every": 40, "held_out": 8,
}  # fmt: skip
QUICK = {
    "depths": [1, 2], "width": 16, "length": 128, "steps": 4, "local_chunk": 4, "chunk": 16,
    "evaluate_every": 2, "held_out": 2,
}  # fmt: skip

prepare = language.read


def grid(size, seeds):
    check_system()
    depths = size["depths"]
    common = {name: value for name, value in size.items() if name != "depths"}
    return {
        f"{layers} layers, seed {seed}": common | {"layers": layers, "seed": seed}
        for seed in seeds
        for layers in depths
    }


def make_model(settings):
    layers = settings["layers"]
    return language.make_model(
        settings, attn_layers=(["local", "lsh"] * layers)[:layers],
        num_hashes=settings["rounds"], local_attn_chunk_length=settings["local_chunk"],
        lsh_attn_chunk_length=settings["chunk"],
    )  # fmt: skip


def run(settings, text, folder):
    model = make_model(settings)
    everything = model.memory(settings["length"], settings["batch"], memory_budget=np.inf)
    memory = {
        "measured": measure_alone("experiments.figure5_left", json.dumps(settings))["bytes"],
        "keeping all": everything.total - everything.gradients,
        "weights": everything.gradients,
    }
    return language.train(model, settings, text, folder) | {"memory": memory}


def measure(settings):
    """The growth of this process in a training step."""
    model = make_model(settings)
    ids = np.random.default_rng(0).integers(2, 258, (settings["batch"], settings["length"]))
    own = sum(array.nbytes for array in model.parameters.values())
    return growth(lambda: model.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=0), own)


def by_depth(runs):
    """The runs of each depth."""
    depths = sorted({run["settings"]["layers"] for run in runs})
    return {layers: language.of(runs, layers=layers) for layers in depths}


def show(runs):
    lines = [
        "| layers | held-out bits per byte, by seed | MB in a step | if all activations were kept "
        "| weights |",
        "|---|---|---|---|---|",
    ]
    for layers, some in by_depth(runs).items():
        bits = ", ".join(f"{language.final(run):.3f}" for run in some)
        sizes = [
            np.mean([run["result"]["memory"][name] for run in some]) / 1e6
            for name in ("measured", "keeping all", "weights")
        ]
        lines.append(f"| {layers} | {bits} | {' | '.join(f'{size:.1f}' for size in sizes)} |")
    return "\n".join(lines)


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    depths = by_depth(runs)
    language.draw_curves(left, {f"{layers} layers": some for layers, some in depths.items()})
    for name in ("keeping all", "measured"):
        sizes = [some[0]["result"]["memory"][name] / 1e6 for some in depths.values()]
        right.plot(list(depths), sizes, "o-", label=name)
    right.set(xlabel="layers", ylabel="MB in a step, without gradients", ylim=(0, None))
    right.legend()


if __name__ == "__main__":
    print_measured(measure)
