"""Table 2: can LSH attention replace full attention?

In a text 0w0w, where w is random symbols, the second half can be predicted by attending to the
first. One layer is trained to do so with full shared-QK attention, with LSH attention of 4, 2 and 1
rounds, and with full attention of separate queries and keys, and each is evaluated with all others.
Local attention is the control: it sees at most two chunks and must fail.

The paper's layers trained with LSH attention reach only 0.8 % with full attention: 1 in 127, as if
guessed. To find out why, full attention is also evaluated without what sets shared-QK attention
apart: with keys that are not normalised, with a query that sees its own key, and with both, which
is ordinary attention whose keys are its queries. That is trained, too.

Lengths are trained one after the other: a model for longer texts is initialised from the one for
shorter texts, its positions by stretching.
"""

import json
import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

import reformer_c as rc
from reformer_c.files.atomic import finish_checkpoint
from reformer_c.tools.bench import write_json
from reformer_c.training.log import read_log
from reformer_c.training.progress import show_progress
from reformer_c.training.state import has_checkpoint

from .runner import Refused

SYMBOLS = 127
SEEDS = [0]
SIZE = {
    "train": ["full", "LSH-4", "LSH-2", "LSH-1", "ordinary", "separate", "local"],
    "lengths": [256, 512, 1024], "chunk": 64, "steps": 5000, "control_steps": 2000,
    "target": 0.999, "batch": None, "texts": 32, "warmup": 200, "lr": 1e-3,
}  # fmt: skip
QUICK = {
    "lengths": [16, 32], "chunk": 4, "steps": 2, "control_steps": 1, "target": 0, "batch": 2,
    "texts": 2, "warmup": 1,
}  # fmt: skip
ROUNDS = (8, 4, 2, 1)
# full attention, by name: whether keys are normalised, and whether a query sees its own key
FULL = {
    "full": (True, False),
    "any length": (False, False),
    "own key": (True, True),
    "ordinary": (False, True),
}
EVALUATED = (*FULL, *(f"LSH-{rounds}" for rounds in ROUNDS))
# Kitaev et al. 2020, table 2, in per cent
PAPER = {
    "full": dict(zip(("full", *EVALUATED[4:]), (100, 94.8, 92.5, 76.9, 52.5), strict=True)),
    "LSH-4": dict(zip(("full", *EVALUATED[4:]), (0.8, 100, 99.9, 99.4, 91.9), strict=True)),
    "LSH-2": dict(zip(("full", *EVALUATED[4:]), (0.8, 100, 99.9, 98.1, 86.8), strict=True)),
    "LSH-1": dict(zip(("full", *EVALUATED[4:]), (0.8, 99.9, 99.6, 94.8, 77.9), strict=True)),
}
EMBEDDINGS = "reformer.embeddings."
POSITIONS = EMBEDDINGS + "position_embeddings.embedding.weight"
ATTENTION = "reformer.encoder.layers.0.attention.self_attention."
QUERY, KEY = (f"{ATTENTION}{name}.weight" for name in ("query", "key"))
LOG, DONE = "log.jsonl", "done.json"


class Duplication:
    """Batches of 0w0w, a function of (seed, step)."""

    def __init__(self, length, batch, seed=0):
        self.length, self.batch_size, self.seed = length, batch, seed

    def batch(self, step):
        rng = np.random.default_rng((self.seed, self.length, step))
        half = rng.integers(1, SYMBOLS + 1, (self.batch_size, self.length // 2))
        half[:, 0] = 0
        return np.tile(half, 2)

    def describe(self):
        return {"length": self.length, "batch": self.batch_size, "seed": self.seed}


class SecondHalf:
    """A language model whose loss covers only the predictable part, the second w.

    With `tied`, the weights of queries and of keys have one gradient, and so stay the same.
    """

    def __init__(self, model, tied=False):
        self.model, self.parameters, self.tied = model, model.parameters, tied
        self.save_pretrained = model.save_pretrained

    def loss_and_gradients(self, input_ids, *, labels, rng):
        labels = labels.copy()
        labels[:, : labels.shape[1] // 2 + 1] = -100
        loss, gradients = self.model.loss_and_gradients(input_ids, labels=labels, rng=rng)
        if self.tied:
            gradients[QUERY] += gradients[KEY]
            gradients[KEY][...] = gradients[QUERY]
        return loss, gradients


def grid(size, seeds):
    lengths, trained = size["lengths"], size["train"]
    if any(length < 4 or length % 2 for length in lengths):
        raise Refused(f"--set: lengths must be even numbers >= 4, got {lengths}")
    if unknown := set(trained) - set(SIZE["train"]):
        raise Refused(
            f"--set: train must be of {', '.join(SIZE['train'])}, got {', '.join(unknown)}"
        )
    common = {name: value for name, value in size.items() if name not in ("train", "control_steps")}
    return {
        f"{name}, seed {seed}": common
        | {"trained": name, "seed": seed}
        | ({"steps": size["control_steps"]} if name == "local" else {})
        for seed in seeds
        for name in trained
    }


def run(settings, data, folder):
    """Train at all lengths, and evaluate at each, until a length is not learned."""
    results, last = {}, None
    for length in settings["lengths"]:
        place = folder / str(length)
        model = make_model(settings["trained"], length, settings["chunk"], settings["seed"])
        if last is not None:
            grow(last, model.parameters)
        results[str(length)] = result = train(model, length, settings, place)
        last = model.parameters
        if result["accuracy"] < settings["target"]:
            break  # longer texts are harder
    return results


def make_model(attention, length, chunk, seed):
    """One layer, width and feed-forward 256, 4 heads, learned positions.

    Word and position embeddings are initialised with the same standard deviation, 0.5.
    """
    kind = {"local": "local", "separate": "full", "ordinary": "full"}.get(attention, "lsh")
    config = rc.ReformerConfig(
        vocab_size=SYMBOLS + 1, hidden_size=256, feed_forward_size=256, num_attention_heads=4,
        attention_head_size=64, attn_layers=[kind], local_attn_chunk_length=chunk,
        is_decoder=True, axial_pos_embds=False, max_position_embeddings=length,
        hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = rc.ReformerModelWithLMHead(config, rng=seed)
    for name, array in model.parameters.items():
        if name.startswith(EMBEDDINGS):
            array *= 0.5 / config.initializer_range
    if attention == "ordinary":
        model.parameters[KEY][...] = model.parameters[QUERY]
    return model


def grow(short, long):
    """Initialise a model for longer texts from one trained on shorter texts.

    In 0w0w the symbol after position i of the second half is at i + 1 - length / 2. The positions
    of each half are stretched, so that nearby positions keep similar embeddings.
    """
    for name, array in long.items():
        if name != POSITIONS:
            array[...] = short[name]
    few, many = len(short[POSITIONS]), len(long[POSITIONS])
    first = np.arange(many // 2)
    places = np.concatenate([first * few // many, (first + 1) * few // many + few // 2 - 1])
    long[POSITIONS] = short[POSITIONS][places]


# ---- training ----


def train(model, length, settings, folder):
    """Train until the target is reached, and evaluate; or read what an earlier call left."""
    name = settings["trained"]
    attend(model, name, length)
    folder.mkdir(parents=True, exist_ok=True)
    finish_checkpoint(folder)
    if not has_checkpoint(folder):  # left by a run that ended before its first checkpoint
        (folder / LOG).unlink(missing_ok=True)
    batch = settings["batch"] or max(1, min(16, 8192 // length))
    trainer = rc.Trainer(
        SecondHalf(model, tied=name == "ordinary"),
        Duplication(length, batch, seed=settings["seed"]),
        rc.AdamW(model.parameters, lr=settings["lr"], weight_decay=0.0),
        steps=settings["steps"],
        schedule=rc.schedules.constant(warmup=settings["warmup"]),
        max_grad_norm=math.inf,
        seed=settings["seed"],
        folder=folder,
        save_every=200,
        log=folder / LOG,
    )
    if has_checkpoint(folder):
        trainer.resume(folder)
    if (folder / DONE).is_file():
        return json.loads((folder / DONE).read_text())
    # one round sometimes misses the key; eight rounds find it
    judged = partial(accuracy, model, judge_of(name), length, texts=8, seed=settings["seed"] + 1)
    share = judged()
    attend(model, name, length)
    # a run that was killed before its results were saved may have reached the target
    left = show_progress(trainer) if share < settings["target"] or not trainer.step else ()
    for report in left:
        if report.step % 25 and report.step != settings["steps"]:
            continue
        share = judged()
        attend(model, name, length)
        if share >= settings["target"]:
            break
    trainer.save(folder)
    tokens = batch * length
    lines = read_log(folder / LOG)[: trainer.step]
    result = {
        "steps": trainer.step,
        "seconds": round(sum(tokens / line["tokens_per_second"] for line in lines)),
        "accuracy": share,
        "evaluated": {
            column: accuracy(
                model, column, length, texts=settings["texts"], seed=settings["seed"] + 2
            )
            for column in (EVALUATED if name != "local" else ("local",))
        },
    }
    write_json(folder / DONE, result)
    return result


# ---- evaluation ----


def attend(model, name, length):
    """Set the attention of a model that hashes. A chunk of the whole text is full attention."""
    if model.config.layer_types != ["lsh"]:
        return
    if name.startswith("LSH"):
        model.config.lsh_attn_chunk_length = model.config.local_attn_chunk_length
        model.config.num_hashes = int(name.removeprefix("LSH-"))
    else:
        model.config.lsh_attn_chunk_length = length


def accuracy(model, name, length, *, texts, seed):
    """Share of the second w that is predicted correctly with the attention `name`."""
    right = total = 0
    data = Duplication(length, 1, seed=seed)
    model, replaced = evaluated_as(model, name, length)
    with replaced:
        for i in range(max(1, min(texts, texts * 1024 // length))):  # beyond 1,024, as many tokens
            ids = data.batch(i)
            guess = model(ids, rng=(seed, i)).logits[:, length // 2 : -1].argmax(-1)
            right += np.count_nonzero(guess == ids[:, length // 2 + 1 :])
            total += guess.size
    return right / total


def evaluated_as(model, name, length):
    """A model of the same weights that attends as `name` says, and a context for its calls.

    The layer "separate" has keys of its own only with the attention "separate"; with all others,
    its queries are its keys.
    """
    own = model.config.layer_types[0]
    if name in FULL and name != "full":
        normalise, own_key = FULL[name]
        model = converted(model, "full")

        def forward(q, k, v, **_):
            return None, SimpleNamespace(out=attention(q, v, normalise, own_key))

        return model, patch.object(rc.ops, "full_attention_forward", forward)
    if own == "full" and name != "separate":
        model = converted(model, "lsh")
    attend(model, name, length)
    return model, nullcontext()


def converted(model, kind):
    """A model with another type of attention and the same weights; queries are its keys."""
    other = rc.ReformerModelWithLMHead(model.config.changed({"attn_layers": [kind]}), rng=0)
    query = "query_key" if f"{ATTENTION}query_key.weight" in model.parameters else "query"
    for name, array in other.parameters.items():
        last = name.removeprefix(ATTENTION).removesuffix(".weight")
        source = f"{ATTENTION}{query}.weight" if last in ("query", "key", "query_key") else name
        array[...] = model.parameters[source]
    return other


def attention(q, v, normalise, own_key):
    """Full causal attention of (b, h, t, d) whose keys are its queries, in NumPy."""
    t, d = q.shape[-2:]
    k = q / np.sqrt(np.mean(q * q, -1, keepdims=True) + 1e-6) if normalise else q
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.asarray(d, q.dtype))
    scores[..., np.triu(np.ones((t, t), bool), 1)] = -1e9
    if not own_key:
        scores[..., np.arange(t), np.arange(t)] = -1e5  # only if nothing else is visible
    scores -= scores.max(-1, keepdims=True)
    p = np.exp(scores)
    return (p / p.sum(-1, keepdims=True)) @ v


# ---- results ----


def show(runs):
    """The table of the longest texts, and that of the shortest, which no others came before."""
    lengths = [length for run in runs for length in run["settings"]["lengths"]]
    lines = table(runs, max(lengths))
    if min(lengths) < max(lengths):
        lines += ["", *table(runs, min(lengths))]
    lines.append("")
    for run in runs:
        reached, last = list(run["result"].items())[-1]
        steps = ", ".join(f"{row['steps']:,} at {n}" for n, row in run["result"].items())
        share = 100 * last["accuracy"]
        judge = judge_of(run["settings"]["trained"])
        lines.append(f"- {label(run)}: steps {steps}; {share:.1f} % with {judge} at {reached}")
    return "\n".join(lines)


def judge_of(name):
    """The attention that a layer is judged with: 8 rounds if it hashes."""
    return "LSH-8" if name.startswith("LSH") else name


def label(run):
    return run["settings"]["trained"] if run["settings"]["seed"] == 0 else run["name"]


def table(runs, length):
    """Lines of Markdown: the accuracy at a length, in per cent, of the layers that came to it."""
    lines = [
        f"| trained, at {length:,} symbols | {' | '.join(EVALUATED)} |",
        "|---|" + "---|" * len(EVALUATED),
    ]
    for run in runs:
        name, results = run["settings"]["trained"], run["result"]
        if name == "local" or str(length) not in results:
            continue
        cells = [
            f"{100 * results[str(length)]['evaluated'][column]:.1f}"
            + (f" ({PAPER[name][column]})" if column in PAPER.get(name, {}) else "")
            for column in EVALUATED
        ]
        lines.append(f"| {label(run)} | {' | '.join(cells)} |")
    return lines


def draw(runs, figure):
    """A picture of the table: rows are trained layers, columns what they are evaluated with."""
    ax = figure.subplots()
    shown = [run for run in runs if run["settings"]["trained"] != "local"]
    last = [list(run["result"].values())[-1]["evaluated"] for run in shown]
    shares = np.array([[100 * row[column] for column in EVALUATED] for row in last])
    ax.imshow(shares, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        ax.text(j, i, f"{share:.1f}", ha="center", va="center", color="w" if share > 50 else "k")
    ax.set_xticks(range(len(EVALUATED)), EVALUATED)
    ax.set_yticks(range(len(shown)), [run["name"] for run in shown])
    ax.set(xlabel="evaluated with", ylabel="trained", title="% of the second half")
