"""Language models of bytes: their text, their training, and how their losses are compared."""

import zlib
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

import reformer_c as rc
from reformer_c.models.presets import DROPOUTS, preset_config
from reformer_c.tools.demo import bigram_bits_per_byte, python_text
from reformer_c.training.data import Windows
from reformer_c.training.texts import encode_text, read_text, split_tokens

from .training import curve, fit

# Student's t for a confidence of 95 %, by degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Text:
    """The tokens of a text, and its last tenth, held out."""

    train: np.ndarray
    held_out: np.ndarray
    about: dict


def read(files, size):
    """The text of the files, or one that is part of Python, for windows of ``size["length"]``.

    ``size["held_out"]`` windows of its last tenth are held out.
    """
    if files:
        text, source = read_text(files), ", ".join(Path(file).name for file in files)
    else:
        text, source = python_text()
    train, held_out = split_tokens(encode_text(text), 0.1)
    if len(held_out) < size["length"]:
        least = 10 * size["length"]
        raise ValueError(f"the text must have at least {least:,} bytes, got {len(text):,}")
    held_out = held_out[: size["held_out"] * size["length"]]
    about = {
        "text": source,
        "bytes": len(text),
        "crc32": zlib.crc32(text),
        "bigrams": round(bigram_bits_per_byte(train, held_out, size["length"]), 5),
    }
    return Text(train, held_out, about)


def make_model(settings, **fields):
    """A model of bytes without dropout, of the settings' width, with 4 heads.

    Positions are sinusoidal: a small model learns to look at neighbours in few steps. Words begin
    with a deviation of 0.1, and positions with an amplitude of 0.3, so that both are visible.
    """
    width = settings["width"]
    config = preset_config(
        "book", settings["length"],
        **dict.fromkeys(DROPOUTS, 0.0),
        **{
            "vocab_size": rc.ByteTokenizer.vocab_size, "hidden_size": width,
            "feed_forward_size": 2 * width, "num_attention_heads": 4,
            "attention_head_size": width // 4, "num_buckets": None,
            "position_embedding_type": "sinusoidal", "axial_norm_std": 0.3,
            "initializer_range": 0.1,
        } | fields,
    )  # fmt: skip
    return rc.ReformerModelWithLMHead(config, rng=settings["seed"])


def train(model, settings, text, folder):
    """Train a model, or go on with it; returns held-out bits per byte by step, and the time."""
    length, batch = settings["length"], settings["batch"]
    data = Windows(text.train, length, batch=batch, seed=settings["seed"])
    lines = fit(model, data, settings, folder, held_out=text.held_out)
    seconds = sum(batch * length / line["tokens_per_second"] for line in lines)
    return {"held_out": curve(lines), "seconds": round(seconds)}


def final(run):
    """Held-out bits per byte at the end of a run."""
    return run["result"]["held_out"][-1][1]


def of(runs, **values):
    """The runs that have these settings, in the order of their seeds."""
    found = [x for x in runs if all(x["settings"][key] == values[key] for key in values)]
    return sorted(found, key=lambda run: run["settings"]["seed"])


def difference(mine, base):
    """The mean difference of paired numbers, and half the width of its 95 % interval (Student's t).

    The half width is None for a single pair.

    Examples
    --------
    >>> difference([2.0, 3.0], [1.0, 2.0])
    (1.0, 0.0)
    >>> difference([2.0], [1.0])
    (1.0, None)
    """
    more = np.subtract(mine, base)
    n = len(more)
    if n == 1:
        return float(more[0]), None
    half = STUDENT[min(n - 2, len(STUDENT) - 1)] * more.std(ddof=1) / sqrt(n)
    return float(more.mean()), float(half)


def in_words(mean, half):
    """A difference and its interval, and what it says."""
    if half is None:
        return f"{mean:+.3f} (one seed: no interval)"
    says = "no difference is shown" if abs(mean) <= half else "a difference"
    return f"{mean:+.3f} ± {half:.3f} ({says})"


def draw_curves(ax, groups, styles=None):
    """Plot held-out curves by label: the mean of the seeds in a band from lowest to highest.

    `styles` are options of lines by label.
    """
    for label, runs in groups.items():
        steps = [step for step, _ in runs[0]["result"]["held_out"]]
        bits = np.array([[y for _, y in run["result"]["held_out"]] for run in runs])
        (line,) = ax.plot(steps, bits.mean(0), label=label, **(styles or {}).get(label, {}))
        ax.fill_between(steps, bits.min(0), bits.max(0), color=line.get_color(), alpha=0.2)
    ax.set(xlabel="step", ylabel="held-out bits per byte")
    ax.legend()
