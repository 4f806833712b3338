"""Figure 3 on pictures: what `figure3` compares, trained on pictures byte by byte.

FILE is that of `figure4`; without it, the pictures are discs of one colour on another.
"""

from reformer_c.training.data import Windows
from reformer_c.training.pictures import bits_per_dim

from . import figure3, figure4
from .runner import each_of
from .training import curve, fit

SEEDS = [0, 1, 2]
SIZE = {
    "layers": 3, "width": 64, "batch": 2, "steps": 600, "lr": 3e-3, "evaluate_every": 100,
    "held_out": 32,
}  # fmt: skip
QUICK = {"width": 16, "steps": 4, "evaluate_every": 2, "held_out": 4}
UNIT = "bits per dim"

prepare = figure4.prepare

grid = each_of(figure3.MODELS)


def run(settings, pictures, folder):
    attention, reversible = figure3.MODELS[settings["model"]]
    model = figure4.make_model(
        settings, pictures.about["shape"], attn_layers=settings["layers"] * [attention],
        reversible=reversible,
    )  # fmt: skip
    rows, held_out = ([p.ravel() for p in x] for x in (pictures.train, pictures.held_out))
    dims = len(rows[0])
    data = Windows(rows, dims, batch=settings["batch"], seed=settings["seed"])
    lines = fit(model, data, settings, folder, held_out=held_out)
    return {
        "held_out": curve(lines, lambda bits: bits_per_dim(bits, dims)),
        "pixel before": pictures.about["pixel before"],
    }


def show(runs):
    before = runs[0]["result"]["pixel before"]
    return f"{figure3.show(runs, UNIT)}\n\nGiven the pixel before, by a table: {before:.3f}."


def draw(runs, figure):
    figure3.draw(runs, figure)
    for ax in figure.axes:
        ax.set_ylabel(f"held-out {UNIT}")
        ax.axhline(runs[0]["result"]["pixel before"], color="gray", linestyle=":")
