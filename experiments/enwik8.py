"""enwik8: what the paper's 12 layers of 65,536 bytes would take here, and a line of small models.

Measured: one training step of the recipe, with random weights, in a new process. Projected from it,
and from the number of weights: the paper's 20,000 steps of 8 sequences. Measured: small models of
the recipe's pattern of layers and feed-forward layers, trained on as many bytes of a text, each of
another width. Projected from them: a power of the number of weights, which says no more than where
a straight line leads.
"""

import json

import numpy as np

import reformer_c as rc
from benchmarks.alone import measure_alone, print_measured
from benchmarks.growth import growth
from reformer_c.models.presets import PRESETS, preset_config

from . import language
from .growth import check_system

SEEDS = [0]
SIZE = {
    "recipe": {"length": 65536, "layers": 12, "width": 1024}, "measured": True,
    "widths": [32, 64, 128], "layers": 4, "length": 2048, "batch": 1, "steps": 250, "lr": 2e-3,
    "evaluate_every": 50, "held_out": 8,
}  # fmt: skip
QUICK = {
    "recipe": {"length": 1024, "layers": 4, "width": 64}, "widths": [8, 16], "length": 256,
    "steps": 4, "evaluate_every": 2, "held_out": 2,
}  # fmt: skip
# Kitaev et al. 2020, section 5
STEPS, BATCH, BITS = 20_000, 8, 1.19
# for each weight and byte: a product and a sum forward, again to recompute, and two for gradients
OPERATIONS = 8

prepare = language.read


def grid(size, seeds):
    if size["measured"]:
        check_system()
    small = {name: size[name] for name in size if name not in ("recipe", "measured", "widths")}
    return {"recipe": {"recipe": size["recipe"], "measured": size["measured"], "seed": 0}} | {
        f"width {width}, seed {seed}": small | {"width": width, "seed": seed}
        for seed in seeds
        for width in size["widths"]
    }


def run(settings, text, folder):
    if "recipe" in settings:
        return step_of(settings)
    preset, width = PRESETS["enwik8"], settings["width"]
    kept = ("num_hashes", "local_attn_chunk_length", "lsh_attn_chunk_length")
    model = language.make_model(
        settings,
        attn_layers=[preset.layers[i % len(preset.layers)] for i in range(settings["layers"])],
        feed_forward_size=4 * width,
        **{name: preset.fields[name] for name in kept},
    )
    return language.train(model, settings, text, folder) | {"weights": weights(model)}


def weights(model):
    return sum(array.size for array in model.parameters.values())


def make_recipe(length, layers, width):
    config = preset_config(
        "enwik8", length, layers=layers, width=width, attention_head_size=width // 8
    )
    return rc.ReformerModelWithLMHead(config, rng=0)


def step_of(settings):
    """What a step of the recipe is predicted to take, and what it takes if that is measured.

    Bytes include the gradients, and neither weights nor the state of an optimiser.
    """
    model = make_recipe(**settings["recipe"])
    predicted = model.memory(settings["recipe"]["length"], 1).total
    result = {"weights": weights(model), "predicted": predicted}
    del model
    if settings["measured"]:
        result |= measure_alone("experiments.enwik8", json.dumps(settings["recipe"]))
    return result


def measure(recipe):
    """The time of one step, and the growth of this process in it."""
    model = make_recipe(**recipe)
    ids = np.random.default_rng(0).integers(2, 258, (1, recipe["length"]))
    return growth(lambda: model.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=0))


# ---- results ----


def sizes(runs):
    """Weights and held-out bits of the small models, means over the seeds; and their power law."""
    small = [run for run in runs if "width" in run["settings"]]
    widths = sorted({run["settings"]["width"] for run in small})
    groups = [language.of(small, width=width) for width in widths]
    count = np.array([some[0]["result"]["weights"] for some in groups], float)
    bits = np.array([np.mean([language.final(run) for run in some]) for some in groups])
    slope, height = np.polyfit(np.log(count), np.log(bits), 1)
    return widths, count, bits, lambda n: np.exp(height + slope * np.log(n)), slope


def show(runs):
    recipe = runs[0]["settings"]["recipe"]
    step = runs[0]["result"]
    name = f"{recipe['layers']} layers, width {recipe['width']:,}, {recipe['length']:,} bytes"
    widths, count, bits, law, slope = sizes(runs)
    settings = runs[1]["settings"]
    trained = settings["steps"] * settings["batch"] * settings["length"]
    seconds = size = "not measured"
    if "seconds" in step:
        seconds = f"{step['seconds']:,.1f} s, of processors {step['cpu_seconds']:,.1f} s"
        size = f"{step['bytes'] / 1e9:.2f} GB ({step['predicted'] / 1e9:.2f} GB predicted)"
    lines = [
        "| measured | |",
        "|---|---|",
        f"| a step of one sequence of {name} | {seconds} |",
        f"| its memory, without the weights | {size} |",
    ]
    lines += [
        f"| held-out bits per byte, width {width}, {n:,.0f} weights | {x:.3f} |"
        for width, n, x in zip(widths, count, bits, strict=True)
    ]
    lines += ["", "| projected | |", "|---|---|"]
    lines.append(f"| memory of the step, as predicted | {step['predicted'] / 1e9:.2f} GB |")
    lines.append(f"| weights, {step['weights']:,} | {4 * step['weights'] / 1e9:.2f} GB |")
    operations = OPERATIONS * step["weights"] * recipe["length"] * BATCH * STEPS
    lines.append(
        f"| {STEPS:,} steps of {BATCH} sequences, without attention | {operations:.1e} operations: "
        f"{operations / 1e11 / 86400:,.0f} days at 100 GFLOP/s |"
    )
    if "seconds" in step:
        days = step["seconds"] * BATCH * STEPS / 86400
        lines.append(f"| the same, by the measured step | {days:,.0f} days |")
    lines.append(
        f"| bits per byte of as many weights after {trained:,} bytes, by a power of {slope:.3f} "
        f"| {law(step['weights']):.2f} ({BITS} in the paper, after {STEPS:,} steps) |"
    )
    return "\n".join(lines)


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    small = [run for run in runs if "width" in run["settings"]]
    widths, count, bits, law, _ = sizes(runs)
    language.draw_curves(left, {f"width {w}": language.of(small, width=w) for w in widths})
    ends = np.array([count[0], runs[0]["result"]["weights"]])
    right.plot(count, bits, "o", label="measured")
    right.plot(ends, law(ends), ":", label="projected")
    right.set(xscale="log", xlabel="weights", ylabel="held-out bits per byte")
    right.legend()


if __name__ == "__main__":
    print_measured(measure)
