"""The figures of How it works: ``python docs/figures.py`` writes them next to the pages."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "reformer_c"

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import reformer_c as rc  # noqa: E402

TOKENS, BUCKETS, CHUNK = 48, 6, 8
RNG = 2


def topics():
    """What each token is about, one of six topics, and shared queries and keys (t, d)."""
    rng = np.random.default_rng(4)
    about = rng.integers(0, 6, TOKENS)
    return about, rng.standard_normal((6, 32))[about] + 0.3 * rng.standard_normal((TOKENS, 32))


def hashing():
    """The buckets of a sequence, in two rounds."""
    about, qk = topics()
    ids = rc.lsh_hash(qk, num_hashes=2, num_buckets=BUCKETS, rng=RNG)
    figure, axes = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
    for number, (one, ax) in enumerate(zip(ids, axes, strict=True)):
        rc.plot.buckets(one, ax, labels=["abcdef"[topic] for topic in about])
        ax.set(title=f"round {number + 1}", ylim=(-0.7, BUCKETS - 0.3))
        ax.label_outer()
    return figure


def chunks():
    """Full attention, and what LSH attention finds of it in one round and in four."""
    _, qk = topics()
    ids = rc.lsh_hash(qk, num_hashes=4, num_buckets=BUCKETS, rng=RNG)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    rc.plot.attention_pattern(qk, None, axes[0])
    axes[0].set_title("full attention", fontsize=10)
    for ax, rounds, title in (
        (axes[1], 1, "one round, by bucket"),
        (axes[2], 4, "four rounds, by position"),
    ):
        rc.plot.attention_pattern(qk, ids[:rounds], ax, chunk_length=CHUNK, sort=rounds == 1)
        ax.set_title(f"{title}: {ax.get_title()}", fontsize=10)
    return figure


def reversible():
    """The streams of a reversible layer, forward and backward."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    for ax, names, sign, title in (
        (axes[0], ("x1", "x2", "y1", "y2"), "+", "forward: y1 = x1 + f(x2),  y2 = x2 + g(y1)"),
        (axes[1], ("y2", "y1", "x2", "x1"), "-", "backward: x2 = y2 - g(y1),  x1 = y1 - f(x2)"),
    ):
        backward = sign == "-"
        ax.set(xlim=(0, 10), ylim=(0, 4), title=title)
        ax.axis("off")
        ax.title.set_fontsize(10)
        branches = ("g", "f") if backward else ("f", "g")
        for row, (begin, end) in enumerate(zip(names[:2], names[2:], strict=True)):
            y = 3.2 - 2.4 * row
            arrow(ax, (0.8, y), (9.2, y))
            ax.text(0.4, y, begin, ha="center", va="center", family="monospace")
            ax.text(9.6, y, end, ha="center", va="center", family="monospace")
        for place, (branch, up) in enumerate(zip(branches, (True, False), strict=True)):
            x = 3.2 + 3.6 * place
            source, target = (0.8, 3.2) if up else (3.2, 0.8)
            arrow(ax, (x, source), (x, target + (-0.25 if up else 0.25)))
            ax.text(x, target, sign, ha="center", va="center", bbox=box("circle", "white"))
            ax.text(x, 2.0, branch, ha="center", va="center", bbox=box("round", "#dbe9f6"))
    return figure


def arrow(ax, begin, end):
    ax.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": "#33475b"})


def box(shape, colour):
    return {"boxstyle": f"{shape},pad=0.4", "facecolor": colour, "edgecolor": "#33475b"}


FIGURES = {"buckets": hashing, "chunks": chunks, "reversible": reversible}


def draw(folder):
    """Write all figures into a folder."""
    for name, make in FIGURES.items():
        figure = make()
        figure.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
