"""Tables 1 and 3: time and memory of attention, and of training steps, as powers of their sizes.

Table 1: full and LSH attention, forward and backward. Table 3: training steps without an optimiser
with full or LSH attention, with ordinary residuals and all activations kept or reversible layers,
and with feed-forward layers on the whole sequence or in chunks; from a base, one size at a time is
changed.

Each point is measured in a new process: the fastest of some calls, at least `repeats` and at least
`seconds` long together, and the bytes by which it grows (for a step, without the gradients of the
weights, which the paper does not count either). All points are measured once for each seed, and the
least of each point counts, so that other work on the machine has to last to disturb one. The
exponent is the slope of a line through the logarithms. The paper's formulas are evaluated at the
same sizes and fitted in the same way.
"""

import json
from functools import partial

import numpy as np

import reformer_c as rc
from benchmarks.alone import measure_alone, print_measured
from benchmarks.growth import growth
from reformer_c.models.presets import preset_config

from .growth import check_system

SEEDS = [0, 1, 2]
SIZE = {
    "full_lengths": [2048, 4096, 8192, 16384],
    "lsh_lengths": [4096, 8192, 16384, 32768, 65536],
    "rounds": [1, 2, 4, 8],
    "l": [2048, 4096, 8192, 16384], "d_ff": [512, 1024, 2048, 4096], "n_l": [2, 4, 8, 16],
    "base": {"l": 4096, "d_ff": 1024, "n_l": 2, "rounds": 2},
    "width": 128, "repeats": 3, "seconds": 1.0,
}  # fmt: skip
QUICK = {
    "full_lengths": [512, 1024], "lsh_lengths": [512, 1024], "rounds": [1, 2],
    "l": [256, 512], "d_ff": [128, 256], "n_l": [1, 2],
    "base": {"l": 256, "d_ff": 128, "n_l": 1, "rounds": 1},
    "width": 32, "repeats": 1, "seconds": 0.0,
}  # fmt: skip
HEADS = 2
# attention, activations, feed-forward layers, and the paper's name for all three
MODELS = {
    ("full", "kept", "whole"): "Transformer",
    ("full", "kept", "chunked"): None,
    ("full", "reversible", "whole"): "Reversible Transformer",
    ("full", "reversible", "chunked"): "Chunked Reversible Transformer",
    ("lsh", "kept", "whole"): "LSH Transformer",
    ("lsh", "kept", "chunked"): None,
    ("lsh", "reversible", "whole"): None,
    ("lsh", "reversible", "chunked"): "Reformer",
}
PARTS = ("attention", "activations", "feed_forward")


def grid(size, seeds):
    check_system()
    fixed = {key: size[key] for key in ("width", "repeats", "seconds")}
    points = [{"attention": "full", "l": l, "rounds": 0} for l in size["full_lengths"]]  # noqa: E741
    points += [
        {"attention": "lsh", "l": l, "rounds": rounds}
        for rounds in size["rounds"]
        for l in size["lsh_lengths"]  # noqa: E741
    ]
    for model in MODELS:
        axes = ("l", "d_ff", "n_l") + ("rounds",) * (model[0] == "lsh")
        steps = [size["base"] | {axis: value} for axis in axes for value in size[axis]]
        points += [dict(zip(PARTS, model, strict=True)) | step for step in steps]
    return {
        f"{' '.join(str(x) for x in point.values())}, seed {seed}": point | fixed | {"seed": seed}
        for seed in seeds
        for point in points
    }


def run(settings, data, folder):
    return measure_alone("experiments.table1", json.dumps(settings))


def measure(settings):
    """Seconds and bytes of a point, in this process."""
    call, own = (step if "n_l" in settings else attention)(settings)
    return growth(call, own, settings["repeats"], settings["seconds"])


def attention(settings):
    """A call of attention forward and backward, and 0."""
    qk, v, dout = np.random.default_rng(settings["seed"]).standard_normal(
        (3, 1, HEADS, settings["l"], settings["width"] // HEADS), np.float32
    )
    if settings["attention"] == "full":
        forward = partial(rc.full_attention_forward, qk, None, v, shared_qk=True, is_causal=True)
        backward = rc.full_attention_backward
    else:
        forward = partial(
            rc.lsh_attention_forward, qk, v, num_hashes=settings["rounds"], is_causal=True, rng=0
        )
        backward = rc.lsh_attention_backward
    return lambda: backward(dout, forward()[1]), 0


def step(settings):
    """A call of a training step, and the bytes of the gradients that it returns."""
    l, kept = settings["l"], settings["activations"] == "kept"  # noqa: E741
    kind = "full_shared" if settings["attention"] == "full" else "lsh"
    config = preset_config(
        "book", l, attn_layers=settings["n_l"] * [kind], hidden_size=settings["width"],
        feed_forward_size=settings["d_ff"], num_attention_heads=HEADS,
        attention_head_size=settings["width"] // HEADS, num_hashes=settings["rounds"],
        num_buckets=None, position_embedding_type="sinusoidal", reversible=not kept,
        chunk_size_feed_forward=l if settings["feed_forward"] == "whole" else 64,
        memory_budget=np.inf if kept else 0,
    )  # fmt: skip
    model = rc.ReformerModelWithLMHead(config, rng=settings["seed"])
    ids = np.random.default_rng(settings["seed"]).integers(2, 258, (1, l))
    own = sum(array.nbytes for array in model.parameters.values())
    return lambda: model.loss_and_gradients(ids, labels=ids, rng=0), own


# ---- the paper's formulas, with b = 1 ----


def formulas(settings):
    """(time, memory) in the paper's Table 1 or 3; None if it has no such row."""
    l, r, d = settings["l"], settings["rounds"], settings["width"]  # noqa: E741
    c = 128**2
    full = settings["attention"] == "full"
    pairs = HEADS * l * (l if full else r * c)
    if "n_l" not in settings:
        both = max(l * d, pairs)
        return both, both
    if MODELS[tuple(settings[part] for part in PARTS)] is None:
        return None
    rows = l * (d if settings["feed_forward"] == "chunked" else settings["d_ff"])
    memory = max(rows, pairs) * (settings["n_l"] if settings["activations"] == "kept" else 1)
    return (l * settings["d_ff"] + pairs) * settings["n_l"], memory


def exponent(sizes, values):
    """The slope of the line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def exponents(runs, axis):
    """{"seconds" or "bytes": (measured, the paper's or None)} as powers of the size `axis`."""
    sizes = [run["settings"][axis] for run in runs]
    theirs = [formulas(run["settings"]) for run in runs]
    return {
        key: (
            exponent(sizes, [run["result"][key] for run in runs]),
            None if theirs[0] is None else exponent(sizes, [formula[i] for formula in theirs]),
        )
        for i, key in enumerate(("seconds", "bytes"))
    }


def series(runs, fixed, axis):
    """The runs with these settings and any size `axis`, in its order."""
    found = [x for x in runs if all(x["settings"].get(key) == fixed[key] for key in fixed)]
    return sorted(found, key=lambda run: run["settings"][axis])


def split(runs):
    """The points of attention, and those of training steps."""
    points = least(runs)
    return [[x for x in points if ("n_l" in x["settings"]) == steps] for steps in (False, True)]


def least(runs):
    """Each point once, with the least of its results over all seeds."""
    points = {}
    for run in runs:
        settings = without(run["settings"], "seed")
        point = points.setdefault(json.dumps(settings), {"settings": settings, "result": {}})
        for key, value in run["result"].items():
            point["result"][key] = min(value, point["result"].get(key, value))
    return list(points.values())


def base_of(steps):
    """The sizes that most runs share: from them, one at a time was changed."""
    values = {axis: [x["settings"][axis] for x in steps] for axis in ("l", "d_ff", "n_l", "rounds")}
    return {axis: max(set(found), key=found.count) for axis, found in values.items()}


def pair(numbers):
    mine, theirs = numbers
    return f"{mine + 0.0:.2f} ({'–' if theirs is None else format(abs(theirs), '.1f')})"  # noqa: RUF001


def show(runs):
    alone, steps = split(runs)
    lines = [
        "Exponents, in brackets those of the paper's formulas at the same sizes.",
        "",
        "| attention alone | time in l | memory in l | time in rounds | memory in rounds |",
        "|---|---|---|---|---|",
    ]
    for rounds in sorted({run["settings"]["rounds"] for run in alone}):
        found = exponents(series(alone, {"rounds": rounds}, "l"), "l")
        name = f"LSH, {rounds} round{'s' * (rounds > 1)}" if rounds else "full"
        lines.append(f"| {name} | {pair(found['seconds'])} | {pair(found['bytes'])} | | |")
    longest = max(x["settings"]["l"] for x in alone if x["settings"]["rounds"])
    found = exponents(series(alone, {"l": longest, "attention": "lsh"}, "rounds"), "rounds")
    lines.append(
        f"| LSH, {longest:,} tokens | | | {pair(found['seconds'])} | {pair(found['bytes'])} |"
    )
    base = base_of(steps)
    sizes = ", ".join(f"{axis} = {value:,}" for axis, value in base.items())
    lines += [
        "",
        f"Training steps; memory compared with the base of {sizes}:",
        "",
        "| attention, activations, feed-forward | the paper's name | MB | memory in l | in d_ff "
        "| in n_l | in rounds | time in l | in n_l |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, name in MODELS.items():
        fixed = dict(zip(PARTS, model, strict=True))
        found = {
            axis: exponents(series(steps, fixed | without(base, axis), axis), axis)
            for axis in base
            if axis != "rounds" or model[0] == "lsh"
        }
        (first, *_) = series(steps, fixed | base, "l")
        columns = [f"{first['result']['bytes'] / 1e6:,.1f}"]
        columns += [pair(found[a]["bytes"]) if a in found else "" for a in base]
        columns += [pair(found[a]["seconds"]) for a in ("l", "n_l")]
        lines.append(f"| {', '.join(model)} | {name or ''} | {' | '.join(columns)} |")
    return "\n".join(lines)


def without(settings, name):
    return {key: value for key, value in settings.items() if key != name}


def draw(runs, figure):
    alone, steps = split(runs)
    left, right = figure.subplots(1, 2)
    names = {
        rounds: f"LSH-{rounds}" if rounds else "full"
        for rounds in sorted({run["settings"]["rounds"] for run in alone})
    }
    rc.plot.speed(
        {
            name: {
                run["settings"]["l"]: run["result"]["seconds"]
                for run in series(alone, {"rounds": rounds}, "l")
            }
            for rounds, name in names.items()
        },
        left,
    )
    left.set_title("attention, forward and backward")
    base = base_of(steps)
    for model, name in MODELS.items():
        if name:
            fixed = dict(zip(PARTS, model, strict=True)) | without(base, "n_l")
            points = series(steps, fixed, "n_l")
            layers = [run["settings"]["n_l"] for run in points]
            right.plot(layers, [x["result"]["bytes"] / 1e6 for x in points], "o-", label=name)
    right.set(xlabel="layers", ylabel="MB in a step", ylim=(0, None))
    right.legend()


if __name__ == "__main__":
    print_measured(measure)
