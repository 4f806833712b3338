"""Long Range Arena's ListOps: the value of a nested expression, read as one sequence of symbols.

[MAX 4 3 [MIN 2 3 ] 1 0 ] is 4. Operators are minimum, maximum, median (rounded down) and sum modulo
10; they have 2 to 10 arguments, each of which is an operator with a probability of 1/4, down to a
depth of 10, and otherwise a digit. Expressions of 500 to 2,000 symbols are kept (Tay et al. 2021).
A model reads a symbol of its own first, whose final states predict one of ten values.

The same encoder is trained with LSH attention in all layers, with local and with full attention;
the last has shared queries and keys, and so the parameters of the first. Each seed draws weights
and expressions, the same for all.
"""

import random
from collections import Counter, defaultdict
from functools import cache
from operator import itemgetter

import numpy as np

import reformer_c as rc
from reformer_c.models.presets import DROPOUTS
from reformer_c.training.examples import Example, Examples, batches_of

from .language import of
from .runner import each_of
from .training import curve, fit

SEEDS = [0]
SIZE = {
    "layers": 4, "width": 128, "heads": 4, "rounds": 4, "chunk": 64, "shortest": 500,
    "longest": 2000, "train": 96000, "test": 2000, "batch": 16, "steps": 5000, "lr": 1e-3,
    "evaluate_every": 500,
}  # fmt: skip
QUICK = {
    "layers": 1, "width": 16, "chunk": 8, "shortest": 10, "longest": 60, "train": 20, "test": 10,
    "batch": 2, "steps": 4, "evaluate_every": 2,
}  # fmt: skip
MODELS = {"LSH": "lsh", "local": "local", "full": "full_shared"}
# Tay et al. 2021, table 1, in per cent
PAPER = {"LSH": 37.27, "full": 36.37}
MAX_ARGUMENTS, MAX_DEPTH, OPERATOR = 10, 10, 0.25
OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(np.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
FIRST, END = "[CLS]", "]"
# how many symbols of a sequence are known to a guess of its value; the first is the same for all
GUESSES = {"always the most frequent value": 1, "the most frequent value of the first operator": 2}
# 0 is padding
IDS = {name: i for i, name in enumerate([FIRST, END, *OPERATORS, *map(str, range(10))], 1)}


def expression(rng, longest):
    """The symbols of a random expression, and its value; None if there are more than `longest`."""
    symbols = []

    def operator(depth):
        name, values = rng.choice([*OPERATORS]), []
        symbols.append(name)
        for _ in range(rng.randint(2, MAX_ARGUMENTS)):
            if len(symbols) > longest:
                return None
            if depth < MAX_DEPTH and rng.random() < OPERATOR:
                value = operator(depth + 1)
                if value is None:
                    return None
            else:
                value = rng.randrange(10)
                symbols.append(str(value))
            values.append(value)
        symbols.append(END)
        return OPERATORS[name](values)

    value = operator(1)
    return None if value is None or len(symbols) > longest else (symbols, value)


@cache
def expressions(seed, train, test, shortest, longest):
    """Different examples to train on, and to test."""
    rng, found = random.Random(seed), {}
    while len(found) < train + test:
        drawn = expression(rng, longest)
        if drawn is not None and len(drawn[0]) >= shortest:
            symbols, value = drawn
            found[tuple(IDS[name] for name in (FIRST, *symbols))] = value
    examples = [Example(np.array(ids), {"labels": value}) for ids, value in found.items()]
    return examples[:train], examples[train:]


grid = each_of(MODELS)


def make_model(settings):
    width, heads = settings["width"], settings["heads"]
    config = rc.ReformerConfig(
        vocab_size=len(IDS) + 1, num_labels=10, hidden_size=width, feed_forward_size=2 * width,
        num_attention_heads=heads, attention_head_size=width // heads,
        attn_layers=[MODELS[settings["model"]]] * settings["layers"],
        num_hashes=settings["rounds"], lsh_attn_chunk_length=settings["chunk"],
        local_attn_chunk_length=settings["chunk"], local_num_chunks_after=1,
        max_position_embeddings=settings["longest"] + 1, axial_pos_embds=False,
        position_embedding_type="sinusoidal", axial_norm_std=0.3, initializer_range=0.1,
        **dict.fromkeys(DROPOUTS, 0.0),
    )  # fmt: skip
    return rc.ReformerForSequenceClassification(config, rng=settings["seed"])


def run(settings, data, folder):
    names = ("seed", "train", "test", "shortest", "longest")
    train, test = expressions(*(settings[name] for name in names))
    lines = fit(
        make_model(settings),
        Examples(train, batch=settings["batch"], seed=settings["seed"]),
        settings,
        folder,
        held_out=lambda model, seed: {"accuracy": accuracy(model, test, seed)},
    )
    return {
        "accuracy": curve(lines, itemgetter("accuracy")),
        "guessed": {name: guessed(train, test, count) for name, count in GUESSES.items()},
        "symbols": int(np.mean([len(example.ids) - 1 for example in train])),
    }


def guessed(train, test, count):
    """The share of the most frequent values, given the first `count` symbols of a sequence."""
    values = defaultdict(Counter)
    for example in train:
        values[tuple(example.ids[:count])][example.targets["labels"]] += 1
    most = {start: counts.most_common(1)[0][0] for start, counts in values.items()}
    return np.mean([most.get(tuple(x.ids[:count])) == x.targets["labels"] for x in test])


def accuracy(model, examples, seed):
    """The share of examples whose value is predicted."""
    values = np.array([example.targets["labels"] for example in examples])
    right = 0
    for index, ids in batches_of([example.ids for example in examples]):
        right += np.count_nonzero(model(ids, rng=seed).logits.argmax(1) == values[index])
    return right / len(examples)


# ---- results ----


def share(p, n):
    """Per cent of n, and half the width of the 95 % interval of the share."""
    return f"{100 * p:.1f} ± {196 * np.sqrt(p * (1 - p) / n):.1f}"


def show(runs):
    lines = ["| attention | accuracy, by seed | Long Range Arena |", "|---|---|---|"]
    for model in MODELS:
        cells = [
            share(run["result"]["accuracy"][-1][1], run["settings"]["test"])
            for run in of(runs, model=model)
        ]
        lines.append(f"| {model} | {', '.join(cells)} | {PAPER.get(model, '')} |")
    for name in GUESSES:
        cells = [
            share(run["result"]["guessed"][name], run["settings"]["test"])
            for run in of(runs, model="LSH")
        ]
        lines.append(f"| {name} | {', '.join(cells)} | |")
    return "\n".join(lines)


def draw(runs, figure):
    ax = figure.subplots()
    for run in runs:
        steps, shares = zip(*run["result"]["accuracy"], strict=True)
        ax.plot(steps, [100 * x for x in shares], label=run["name"])
    for name, guess in runs[0]["result"]["guessed"].items():
        ax.axhline(100 * guess, color="gray", linestyle=":")
        ax.annotate(name, (0, 100 * guess))
    ax.set(xlabel="step", ylabel="% of test expressions")
    ax.legend()
