"""Figure 4: pictures by LSH attention of 1 to 16 rounds, and by full attention.

A model is trained on pictures, byte by byte, with each number of rounds and with full attention
(shared queries and keys, and so the same parameters), and evaluated with all others. In the paper,
a key that several rounds find counts once ("once"); Hugging Face counts it each time ("each"). Both
are trained, if the setting says so, and both are evaluated.

They are compared with a table of the next byte given the same colour of the pixel before. Each run
also completes the upper halves of some held-out pictures: completions.png in its folder.

FILE is what `reformer-c train --task image` reads; `experiments.pictures` makes such a file.
Without it, the pictures are discs of one colour on another.
"""

import sys
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from reformer_c.tools.demo import bigram_bits_per_byte
from reformer_c.training.data import Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.pictures import (
    bits_per_dim,
    read_pictures,
    split_pictures,
    write_pictures,
)

from . import language
from .training import curve, fit

SEEDS = [0]
SIZE = {
    "rounds": [1, 2, 4, 8, 16], "count": ["each", "once"], "layers": 3, "width": 128, "chunk": 64,
    "batch": 4, "steps": 3000, "lr": 2e-3, "evaluate_every": 300, "held_out": 64, "completed": 6,
    "samples": 3,
}  # fmt: skip
QUICK = {
    "rounds": [1, 2], "layers": 1, "width": 16, "chunk": 16, "batch": 2, "steps": 4,
    "evaluate_every": 2, "held_out": 2, "completed": 1, "samples": 1,
}  # fmt: skip
# pixels of a picture in completions.png
SCALE = 3


@dataclass(frozen=True)
class Pictures:
    """Pictures (height, width, channels) to train on, and a tenth that is held out."""

    train: list
    held_out: list
    about: dict


def prepare(files, size):
    pictures = read_pictures(files) if files else discs(40 * size["held_out"])
    train, held_out = split_pictures(pictures, 0.1)
    held_out = [held_out[i] for i in spaced(len(held_out), size["held_out"])]
    height, width, _ = pictures[0].shape
    # each colour of a picture as a sequence of its own
    planes = (
        np.concatenate([p.transpose(2, 0, 1).ravel() for p in some]) for some in (train, held_out)
    )
    about = {
        "pictures": ", ".join(Path(file).name for file in files) or "discs",
        "count": len(pictures),
        "shape": list(pictures[0].shape),
        "crc32": zlib.crc32(np.stack(pictures)),
        "pixel before": round(bigram_bits_per_byte(*planes, height * width), 5),
    }
    return Pictures(train, held_out, about)


def discs(count, side=8):
    """Discs of one colour on another (side, side, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    pictures = []
    for _ in range(count):
        centre, colours = rng.uniform(0, side, 2), rng.choice([0, 80, 160, 240], (2, 3))
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < side * side / 8
        pictures.append(colours[inside.astype(int)].astype(np.uint8))
    return pictures


def spaced(count, most):
    """Up to `most` evenly spaced numbers below `count`."""
    return np.unique(np.linspace(0, count - 1, most, dtype=int))


def grid(size, seeds):
    common = {name: value for name, value in size.items() if name != "count"}
    models = [("full", None)]
    models += [(rounds, count) for count in size["count"] for rounds in size["rounds"]]
    return {
        f"{name_of(rounds, count)}, seed {seed}": common
        | {"trained": rounds, "count": count, "seed": seed}
        for seed in seeds
        for rounds, count in models
    }


def name_of(rounds, count):
    return "full" if rounds == "full" else f"LSH-{rounds} {count}"


def make_model(settings, shape, **fields):
    """A model of pictures of a shape."""
    return language.make_model(
        settings | {"length": int(np.prod(shape))},
        vocab_size=256, image_shape=shape, eos_token_id=None, **fields,
    )  # fmt: skip


def attending(settings, shape, attention, count):
    """A model that attends as `attention` says, a number of rounds or "full"."""
    full = attention == "full"
    return make_model(
        settings, shape, attn_layers=settings["layers"] * ["full_shared" if full else "lsh"],
        num_hashes=1 if full else attention, lsh_attn_chunk_length=settings["chunk"],
        lsh_allow_duplicate_attention=count != "once",
    )  # fmt: skip


def run(settings, pictures, folder):
    shape = pictures.about["shape"]
    dims = int(np.prod(shape))
    model = attending(settings, shape, settings["trained"], settings["count"])
    rows, held_out = ([p.ravel() for p in x] for x in (pictures.train, pictures.held_out))
    data = Windows(rows, dims, batch=settings["batch"], seed=settings["seed"])
    lines = fit(model, data, settings, folder, held_out=held_out)
    evaluated = {}
    for attention in ("full", *settings["rounds"]):
        for count in (None,) if attention == "full" else ("each", "once"):
            other = attending(settings, shape, attention, count)
            for name, array in other.parameters.items():
                array[...] = model.parameters[name]
            found = evaluate(other, held_out, dims, seed=settings["seed"]).bits_per_byte
            evaluated[name_of(attention, count)] = round(bits_per_dim(found, dims), 5)
    if find_spec("PIL") is None:
        print("no completions: they need Pillow (the extra image)", file=sys.stderr)
    else:
        some = spaced(len(pictures.held_out), settings["completed"])
        complete(model, [pictures.held_out[i] for i in some], settings, folder / "completions.png")
    return {
        "held_out": curve(lines, lambda bits: bits_per_dim(bits, dims)),
        "evaluated": evaluated,
        "pixel before": pictures.about["pixel before"],
    }


def complete(model, pictures, settings, file):
    """Write the upper halves of pictures, completions of them, and the pictures, in rows."""
    lines = []
    for picture in pictures:
        rows = len(picture) // 2
        top = picture[:rows].reshape(1, -1).astype(np.int64)
        ids = model.generate(
            top, max_new_tokens=picture.size - top.size, do_sample=True, top_k=0, eos_token_id=None,
            num_return_sequences=settings["samples"], rng=settings["seed"],
        )  # fmt: skip
        kept = np.concatenate([picture[:rows], np.full_like(picture[rows:], 128)])
        lines.append([kept, *ids.astype(np.uint8).reshape(-1, *picture.shape), picture])
    big = [[p.repeat(SCALE, 0).repeat(SCALE, 1) for p in line] for line in lines]
    write_pictures(file, big)


# ---- results ----


def columns(runs):
    return list(runs[0]["result"]["evaluated"])


def evaluated(runs, trained, count):
    """Bits per dim of a model by how it is evaluated, mean over the seeds."""
    some = language.of(runs, trained=trained, count=count)
    return [np.mean([x["result"]["evaluated"][name] for x in some]) for name in columns(runs)]


def models(runs):
    """The models, in the order of the grid."""
    return dict.fromkeys((run["settings"]["trained"], run["settings"]["count"]) for run in runs)


def show(runs):
    names = columns(runs)
    lines = [f"| trained | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for model in models(runs):
        cells = (f"{x:.3f}" for x in evaluated(runs, *model))
        lines.append(f"| {name_of(*model)} | {' | '.join(cells)} |")
    before = runs[0]["result"]["pixel before"]
    return "\n".join([*lines, "", f"Given the pixel before, by a table: {before:.3f}."])


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    labels = {name_of(*model): model for model in models(runs)}
    rounds, names = runs[0]["settings"]["rounds"], columns(runs)
    colours = {"full": "k"} | {n: f"C{i}" for i, n in enumerate(rounds)}
    styles = {
        label: {"color": colours[trained], "linestyle": "--" if count == "once" else "-"}
        for label, (trained, count) in labels.items()
    }
    groups = {
        label: language.of(runs, trained=trained, count=count)
        for label, (trained, count) in labels.items()
    }
    language.draw_curves(left, groups, styles)
    left.set_ylabel("held-out bits per dim")
    left.legend(fontsize="x-small", ncols=2)
    for label, model in labels.items():
        found = dict(zip(names, evaluated(runs, *model), strict=True))
        bits = [found[name_of(n, model[1] or "once")] for n in rounds]
        right.plot(rounds, bits, marker="o", **styles[label])
    full = evaluated(runs, "full", None)[0]
    right.axhline(full, color="k", linestyle=":")
    right.annotate("full, in training and evaluation", (1, full), va="bottom", fontsize="x-small")
    right.set(xscale="log", xlabel="rounds in evaluation", ylabel="bits per dim")
    right.set_xticks(rounds, rounds)
    right.minorticks_off()
