"""Does LSH attention contribute, or could the layers do without it (transformers issue 16972)?

A language model of local and LSH layers is trained. Then the attention of its LSH layers, of each
and of all, is replaced: "random" draws the bucket of every token, "local" gives all tokens the same
bucket, so that chunks are stretches of the text, "full" attends to all tokens, and "nothing"
outputs zeros, as in that issue. A twin whose LSH layers attend as "local" says from the start is
trained in the same way, which differs in nothing but hashing. For each layer, the share of full
attention's mass that it finds is measured with several rounds of hashing, and with the random and
local buckets.
"""

from contextlib import nullcontext
from itertools import count
from unittest.mock import patch

import numpy as np

import reformer_c as rc
from reformer_c.tools.pairs import Pattern, attention_weights
from reformer_c.tools.report import attention_inputs, lsh_report

from . import language
from .runner import each_of

SEEDS = [0, 1]
SIZE = {
    "models": ["LSH", "local"], "layers": 4, "width": 128, "length": 2048, "batch": 1,
    "steps": 500, "lr": 3e-3, "rounds": 2,
    "local_chunk": 8, "chunk": 64, "evaluate_every": 50, "held_out": 12,
    "recall_rounds": [1, 2, 4, 8], "queries": 512,
}  # fmt: skip
QUICK = {
    "width": 16, "length": 128, "steps": 4, "local_chunk": 4, "chunk": 16,
    "evaluate_every": 2, "held_out": 2, "queries": 32,
}  # fmt: skip
REPLACED = ("random", "local", "full", "nothing")

prepare = language.read


def grid(size, seeds):
    common = {name: value for name, value in size.items() if name != "models"}
    return each_of(size["models"])(common, seeds)


def run(settings, text, folder):
    model = make_model(settings)
    layers = [i for i, kind in enumerate(model.config.layer_types) if kind == "lsh"]
    if settings["model"] == "local":
        result = language.train(OneBucket(model), settings, text, folder)
        result["loss"] = {"as is": loss_by_position(model, text, settings, "local", layers)}
        return result
    result = language.train(model, settings, text, folder)
    result["loss"] = {"as is": loss_by_position(model, text, settings, None, ())}
    for kind in REPLACED:
        for some in [*([layer] for layer in layers), layers]:
            name = f"{kind}, {'all' if some == layers else some[0]}"
            result["loss"][name] = loss_by_position(model, text, settings, kind, some)
    result["recall"] = {str(layer): recall(model, text, settings, layer) for layer in layers}
    return result


def make_model(settings):
    chunk, layers = settings["chunk"], settings["layers"]
    return language.make_model(
        settings, attn_layers=(["local", "lsh"] * layers)[:layers],
        num_hashes=settings["rounds"], local_attn_chunk_length=settings["local_chunk"],
        lsh_attn_chunk_length=chunk, num_buckets=rc.choose_num_buckets(settings["length"], chunk),
    )  # fmt: skip


class OneBucket:
    """A model whose LSH layers are given rotations that hash all tokens to the same bucket."""

    def __init__(self, model):
        config = model.config
        one = rc.lsh_rotations(
            config.num_attention_heads, config.attention_head_size, num_hashes=config.num_hashes,
            num_buckets=config.num_buckets, rng=0,
        )  # fmt: skip
        self.rotations = [np.zeros_like(one)] * config.layer_types.count("lsh")
        self.model, self.parameters = model, model.parameters
        self.save_pretrained = model.save_pretrained

    def loss(self, input_ids, *, labels, rng):
        return self.model.loss(input_ids, labels=labels, rotations=self.rotations, rng=rng)

    def loss_and_gradients(self, input_ids, *, labels, rng):
        return self.model.loss_and_gradients(
            input_ids, labels=labels, rotations=self.rotations, rng=rng
        )


# ---- replaced attention ----


def attending(model, kind, layers, seed):
    """A context in which the LSH layers with these indices attend as `kind` says, forward only."""
    original, calls = rc.ops.lsh_attention_forward, count()
    hashing = [i for i, name in enumerate(model.config.layer_types) if name == "lsh"]
    rng = np.random.default_rng(seed)

    def forward(qk, v, **rules):
        assert qk.shape[1] == model.config.num_attention_heads, "a layer is one call"
        if hashing[next(calls) % len(hashing)] not in layers:
            return original(qk, v, **rules)
        if kind == "full":
            return rc.full_attention_forward(
                qk, None, v, shared_qk=True, is_causal=rules["is_causal"]
            )
        if kind != "nothing":
            rules |= {"buckets": draw_buckets(kind, qk, rules, rng), "rotations": None}
        out, saved = original(qk, v, **rules)
        if kind == "nothing":
            saved.out[...] = 0
        return out, saved

    return patch.object(rc.ops, "lsh_attention_forward", forward) if layers else nullcontext()


def draw_buckets(kind, qk, rules, rng):
    """Buckets (b, h, r, t) that do not depend on qk (b, h, t, d)."""
    b, h, t, _ = qk.shape
    shape = b, h, rules["num_hashes"], t
    most = int(np.prod(rules["num_buckets"])) if kind == "random" else 1
    return rng.integers(0, most, shape).astype(np.int32)


def loss_by_position(model, text, settings, kind, layers):
    """[[first position, bits per byte]] of stretches of 64, 64, 128, 256 ... tokens, held out."""
    length = settings["length"]
    total, rows = np.zeros(length - 1), 0
    with attending(model, kind, layers, settings["seed"]):
        for start in range(0, len(text.held_out) - length + 1, length):
            ids = text.held_out[start : start + length].astype(np.int64)[None]
            z = model(ids, rng=settings["seed"]).logits[0, :-1].astype(np.float64)
            z -= z.max(-1, keepdims=True)
            right = np.take_along_axis(z, ids[0, 1:, None], -1)[:, 0]
            total += (np.log(np.exp(z).sum(-1)) - right) / np.log(2)
            rows += 1
    ends = [64 * 2**i for i in range(20) if 64 * 2**i < length]
    pieces = np.split(total / rows, [end - 1 for end in ends])
    return [
        [start, len(piece), round(float(piece.mean()), 5)]
        for start, piece in zip([1, *ends], pieces, strict=True)
    ]


def mean_loss(pieces):
    """Bits per byte of all positions."""
    return float(np.average([x[2] for x in pieces], weights=[x[1] for x in pieces]))


# ---- recall ----


def recall(model, text, settings, layer):
    """The share of full attention's mass that a layer's attention finds, by its buckets."""
    rules = {"chunk_length": settings["chunk"], "is_causal": True}
    ids = text.held_out[: settings["length"]].astype(np.int64)[None]
    qk, _ = attention_inputs(model, ids, layer, rng=settings["seed"])
    buckets = model.config.num_buckets
    report = lsh_report(
        qk, num_hashes=settings["recall_rounds"], num_buckets=buckets, rng=settings["seed"],
        queries=settings["queries"], **rules,
    )  # fmt: skip
    found = {f"{row.num_hashes} rounds": row.recall for row in report}
    hashing = {"num_hashes": settings["rounds"], "num_buckets": buckets}
    rng = np.random.default_rng(settings["seed"])
    for kind in ("random", "local"):
        ids = draw_buckets(kind, qk, hashing, rng)
        found[kind] = mass(qk, ids, settings)
    return {name: round(float(share), 4) for name, share in found.items()}


def mass(qk, buckets, settings):
    """The share of full causal attention's mass on the keys that these buckets (b, h, r, t) give,
    mean over evenly spaced queries."""
    pattern = Pattern("chunk", settings["chunk"])
    rows = np.unique(np.linspace(0, qk.shape[2] - 1, settings["queries"], dtype=int))
    shares = []
    for head, ids in zip(qk[0], buckets[0], strict=True):
        seen = pattern.count_pairs(pattern.groups(ids), rows) > 0
        shares.append(attention_weights(head, rows, True)[seen].sum() / len(rows))
    return np.mean(shares)


# ---- results ----


def show(runs):
    hashed, local = (language.of(runs, model=model) for model in ("LSH", "local"))
    as_is = [mean_loss(run["result"]["loss"]["as is"]) for run in hashed]
    layers = list(hashed[0]["result"]["recall"])
    lines = [
        "| attention of the LSH layers | " + " | ".join(f"layer {int(i) + 1}" for i in layers)
        + " | all |",
        "|---|" + "---|" * (len(layers) + 1),
        f"| as is | {' | '.join([f'{np.mean(as_is):.3f}'] * (len(layers) + 1))} |",
    ]  # fmt: skip
    for kind in REPLACED:
        cells = [f"{more(hashed, kind, place, as_is):+.3f}" for place in (*layers, "all")]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    if twin := [mean_loss(run["result"]["loss"]["as is"]) for run in local]:
        difference = language.in_words(*language.difference(twin, as_is))
        lines += ["", f'Trained with "local" from the start: {np.mean(twin):.3f}, {difference}.']
    lines += [
        "",
        "| share of full attention's mass found | "
        + " | ".join(f"layer {int(i) + 1}" for i in layers)
        + " |",
        "|---|" + "---|" * len(layers),
    ]
    for name in hashed[0]["result"]["recall"][layers[0]]:
        shares = [
            np.mean([run["result"]["recall"][layer][name] for run in hashed]) for layer in layers
        ]
        lines.append(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


def more(runs, kind, place, as_is):
    """Bits per byte above those of the attention as it is, mean over the seeds."""
    bits = [mean_loss(run["result"]["loss"][f"{kind}, {place}"]) for run in runs]
    return np.subtract(bits, as_is).mean()


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    hashed, local = (language.of(runs, model=model) for model in ("LSH", "local"))
    names = {"as is": "as is", **{kind: f"{kind}, all" for kind in REPLACED}}
    curves = {label: (hashed, name) for label, name in names.items()}
    if local:
        curves["trained with local"] = (local, "as is")
    for label, (some, name) in curves.items():
        pieces = [run["result"]["loss"][name] for run in some]
        middles = [piece[0] + piece[1] / 2 for piece in pieces[0]]
        left.plot(middles, np.mean([[x[2] for x in p] for p in pieces], 0), "o-", label=label)
    left.set(xscale="log", xlabel="position", ylabel="held-out bits per byte")
    left.legend()
    for layer in hashed[0]["result"]["recall"]:
        shares = [run["result"]["recall"][layer] for run in hashed]
        rounds = {int(x.split()[0]): x for x in shares[0] if x.endswith("rounds")}
        found = [np.mean([share[name] for share in shares]) for name in rounds.values()]
        (line,) = right.plot(list(rounds), found, "o-", label=f"layer {int(layer) + 1}")
        nearby = np.mean([share["local"] for share in shares])
        right.axhline(nearby, color=line.get_color(), linestyle=":")
    right.set(xlabel="rounds", ylabel="share of mass (dotted: local window)", ylim=(0, 1))
    right.legend()
