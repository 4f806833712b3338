"""A network that was trained with exact attention, run with hashing in its place.

Passages of a text go through the network with exact attention; then only the keys that a rule finds
take part. "hash": the keys of the query's bucket in any round, queries and centred keys hashed by
angle, and those in a window, each counted once. "window": the keys in the window alone. "SMYRF"
(Daras et al. 2020): queries and keys are lifted so that inner products become distances, projected
on a random direction, sorted apart and cut into clusters of one size; the i-th cluster of queries
sees the i-th of keys, and a key of several rounds counts each time; here a window can be added,
whose keys count once. `rc.lsh_attention` computes all three, given buckets or clusters.

For the queries, keys and values of every layer under exact attention: the share of pairs that are
computed, the share of the attention's mass on them, and the distance of the output from the exact
one. Then, with the rule in all layers: the cosine between the embeddings of a passage and its exact
one, and whether its nearest neighbours among the passages are the exact ones.
"""

import numpy as np

import reformer_c as rc
from reformer_c.tools.pairs import attention_weights, window

from . import bert

SEEDS = [0]
SIZE = {
    "network": bert.PRETRAINED, "length": 512, "passages": 64, "measured": 8, "buckets": 16,
    "rounds": [1, 2, 4, 8], "windows": [0, 16, 32, 64], "alone": [16, 32, 64, 128],
    "cluster": 64, "smyrf_rounds": [1, 2, 4], "smyrf_windows": [0, 32],
}  # fmt: skip
QUICK = {
    "network": "random", "length": 48, "passages": 12, "measured": 3, "buckets": 4,
    "rounds": [1, 2], "windows": [0, 4], "alone": [4], "cluster": 8, "smyrf_rounds": [1, 2],
    "smyrf_windows": [0, 4],
}  # fmt: skip
NEIGHBOURS = 10

prepare = bert.read


def grid(size, seeds):
    rules = [("window", 0, width) for width in size["alone"]]
    rules += [("SMYRF", r, width) for width in size["smyrf_windows"] for r in size["smyrf_rounds"]]
    rules += [("hash", r, width) for width in size["windows"] for r in size["rounds"]]
    kept = ("network", "length", "passages", "measured", "buckets", "cluster")
    return {
        f"{rule} {rounds}, window {width}, seed {seed}": {name: size[name] for name in kept}
        | {"rule": rule, "rounds": rounds, "window": width, "seed": seed}
        for seed in seeds
        for rule, rounds, width in rules
    }


def run(settings, data, folder):
    return measure(settings, data) | compare(settings, data)


# ---- rules ----


def finding(q, k, settings, layer):
    """The options of `lsh_attention` with which a rule's keys are found."""
    rng = np.random.default_rng([settings["seed"], layer])
    buckets, key_buckets = RULES[settings["rule"]](q, k, settings, rng)
    smyrf = settings["rule"] == "SMYRF"
    # a window of 0 is the query's own position, without which it might find no key
    width = None if smyrf and not settings["window"] else settings["window"]
    return {
        "scope": "bucket", "num_hashes": buckets.shape[2], "buckets": buckets,
        "key_buckets": key_buckets, "local_window": width, "allow_duplicate_attention": smyrf,
    }  # fmt: skip


def hashed(q, k, settings, rng):
    """Buckets of queries and of keys (b, h, r, t), by directions that are the same for all
    passages."""
    hashing = {"num_hashes": settings["rounds"], "num_buckets": settings["buckets"]}
    rotations = rc.lsh_rotations(q.shape[1], q.shape[3], **hashing, rng=rng, dtype=q.dtype)
    hashing["rotations"] = rotations
    return rc.lsh_hash(q, **hashing), rc.lsh_hash(k - k.mean(2, keepdims=True), **hashing)


def smyrf(q, k, settings, rng):
    """The clusters of queries and of keys, in the same form."""
    squares = [(x * x).sum(-1, keepdims=True) for x in (q, k)]
    most = sum(x.max(axis=2, keepdims=True) for x in squares)
    far = [np.sqrt(most - x) for x in squares]
    zero = np.zeros_like(far[0])
    lifted = [np.concatenate([q, zero, far[0]], -1), np.concatenate([k, far[1], zero], -1)]
    directions = rng.standard_normal((q.shape[3] + 2, settings["rounds"])).astype(q.dtype)
    for x in lifted:
        order = np.argsort((x @ directions).swapaxes(2, 3), axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        yield (rank // settings["cluster"]).astype(np.int32)


def nothing(q, k, settings, rng):
    """No query and no key are in one bucket."""
    return [np.full((*x.shape[:2], 1, x.shape[2]), i, np.int32) for i, x in enumerate((q, k))]


RULES = {"hash": hashed, "SMYRF": smyrf, "window": nothing}


# ---- measurements ----


def measure(settings, data):
    """Share of pairs and of mass found, and error of the output, mean over layers and heads."""
    figures = []

    def attend(layer, q, k, v):
        options = finding(q, k, settings, layer)
        out, exact = rc.lsh_attention(q, v, k=k, **options), bert.exact(layer, q, k, v)
        for h in range(q.shape[1]):
            rows = np.arange(q.shape[2])
            seen = window(rows, len(rows), k.shape[2], options["local_window"])
            for own, other in zip(
                options["buckets"][0, h], options["key_buckets"][0, h], strict=True
            ):
                seen |= own[:, None] == other
            share = attention_weights(q[0, h], rows, False, k=k[0, h])
            error = np.linalg.norm(out[0, h] - exact[0, h]) / np.linalg.norm(exact[0, h])
            figures.append((seen.mean(), share[seen].sum() / len(rows), error))
        return exact

    data.network.embeddings(data.ids[: settings["measured"]], attend)
    names = "pairs", "mass", "error"
    return {x: round(float(y), 5) for x, y in zip(names, np.mean(figures, axis=0), strict=True)}


def compare(settings, data):
    """The embeddings of all passages with the rule in every layer, and the exact ones."""

    def attend(layer, q, k, v):
        return rc.lsh_attention(q, v, k=k, **finding(q, k, settings, layer))

    mine = data.network.embeddings(data.ids, attend)
    cosines = (mine * data.exact).sum(1)
    ranked, exactly = (neighbours(x) for x in (mine, data.exact))
    shared = [len({*a} & {*b}) / len(a) for a, b in zip(ranked, exactly, strict=True)]
    return {
        "cosine": round(float(cosines.mean()), 5),
        "least_cosine": round(float(cosines.min()), 5),
        "nearest": round(float((ranked[:, 0] == exactly[:, 0]).mean()), 5),
        "neighbours": round(float(np.mean(shared)), 5),
    }


def neighbours(embeddings):
    """The nearest other passages of each, nearest first: (n, NEIGHBOURS)."""
    similar = embeddings @ embeddings.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1, kind="stable")[:, :NEIGHBOURS]


# ---- results ----


def named(settings):
    rule, rounds, width = (settings[x] for x in ("rule", "rounds", "window"))
    said = {
        "hash": f"hash, {rounds} round{'s' * (rounds > 1)}",
        "SMYRF": f"SMYRF, {rounds} round{'s' * (rounds > 1)}",
        "window": f"window of ±{width}",
    }[rule]
    return said if rule == "window" or not width else f"{said}, window of ±{width}"


def show(runs):
    lines = [
        "| keys found by | pairs | mass | error | cosine | least cosine | same nearest "
        f"| of {NEIGHBOURS} nearest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for settings, x in averaged(runs):
        shares = [f"{x['pairs']:.1%}", f"{x['mass']:.1%}", f"{x['error']:.3f}"]
        shares += [f"{x['cosine']:.4f}", f"{x['least_cosine']:.4f}"]
        shares += [f"{x['nearest']:.1%}", f"{x['neighbours']:.1%}"]
        lines.append(f"| {named(settings)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def averaged(runs):
    """Settings of a rule and the mean of its results over the seeds, in the order of the grid."""
    groups = {}
    for one in runs:
        groups.setdefault(named(one["settings"]), []).append(one)
    for some in groups.values():
        names = some[0]["result"]
        yield (
            some[0]["settings"],
            {name: np.mean([x["result"][name] for x in some]) for name in names},
        )


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    curves = {}
    for settings, x in averaged(runs):
        width = settings["window"]
        label = settings["rule"]
        if label != "window" and width:
            label += f", window of ±{width}"
        curves.setdefault(label, []).append((x["pairs"], x["mass"], x["cosine"]))
    for label, points in curves.items():
        pairs, mass, cosine = zip(*points, strict=True)
        style = {"window": "k.:", "SMYRF": "s--"}.get(label.split(",")[0], "o-")
        left.plot(pairs, mass, style, label=label)
        right.plot(pairs, [1 - x for x in cosine], style, label=label)
    left.set(xlabel="share of pairs", ylabel="share of mass", ylim=(0, 1))
    right.set(xlabel="share of pairs", ylabel="1 - cosine", yscale="log")
    left.legend()
