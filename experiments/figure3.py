"""Figure 3: do shared queries and keys (left) or reversible layers (right) cost quality?

Three models with full attention are trained on the same bytes: with separate queries and keys, with
shared ones, and with separate ones and ordinary residuals in place of reversible layers. The first
is the baseline of both halves. Each seed draws its own weights and windows, the same for all three.
"""

from . import language
from .runner import each_of

SEEDS = [0, 1, 2]
SIZE = {
    "layers": 3, "width": 128, "length": 512, "batch": 2, "steps": 1500, "lr": 3e-3,
    "evaluate_every": 100, "held_out": 64,
}  # fmt: skip
QUICK = {
    "width": 16, "length": 64, "steps": 4, "evaluate_every": 2, "held_out": 4,
}  # fmt: skip
# the type of attention, and whether layers are reversible
MODELS = {
    "separate": ("full", True),
    "shared": ("full_shared", True),
    "ordinary": ("full", False),
}
LABELS = {
    "separate": "separate queries and keys, reversible",
    "shared": "shared queries and keys, reversible",
    "ordinary": "separate queries and keys, ordinary residuals",
}

prepare = language.read

grid = each_of(MODELS)


def run(settings, text, folder):
    attention, reversible = MODELS[settings["model"]]
    model = language.make_model(
        settings, attn_layers=settings["layers"] * [attention], reversible=reversible
    )
    return language.train(model, settings, text, folder)


def show(runs, unit="bits per byte"):
    lines = [
        f"| model | held-out {unit}, by seed | above the first |",
        "|---|---|---|",
    ]
    base = [language.final(run) for run in language.of(runs, model="separate")]
    for model, label in LABELS.items():
        bits = [language.final(run) for run in language.of(runs, model=model)]
        more = "" if model == "separate" else language.in_words(*language.difference(bits, base))
        lines.append(f"| {label} | {', '.join(f'{x:.3f}' for x in bits)} | {more} |")
    return "\n".join(lines)


def draw(runs, figure):
    axes = figure.subplots(1, 2, sharey=True)
    halves = (("separate", "shared"), "queries and keys"), (("reversible", "ordinary"), "residuals")
    for ax, ((first, other), title) in zip(axes, halves, strict=True):
        labels = {first: "separate", other: other}
        language.draw_curves(ax, {x: language.of(runs, model=labels[x]) for x in labels})
        ax.set_title(title)
