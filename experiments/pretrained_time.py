"""Time of attention by hashing against length, on queries and keys of a pretrained network.

A network that ends at 512 tokens cannot read a longer text. So the queries, keys and values of one
layer, of successive passages under exact attention, are put together to one text: their hash has
the uneven buckets of a trained network, unlike random ones. `rc.lsh_attention` of them is timed
next to `rc.full_attention` and PyTorch's ``scaled_dot_product_attention``: the forward pass,
without a mask, with the same number of threads; buckets grow with the text. The share of full
attention's mass that is found is measured for evenly spaced queries.

`rc.KeyValueIndex` of the same keys is not timed: for the newest tokens, the mass that they find and
its estimated operations are compared with those of full attention.
"""

import math
from time import perf_counter

import numpy as np

import reformer_c as rc
from reformer_c.checks import requires_extra
from reformer_c.tools.tuning import factors_of_power

from . import bert
from .table1 import exponent

SEEDS = [0]
SIZE = {
    "network": bert.PRETRAINED, "length": 512, "layer": 2, "rounds": 4, "window": 32, "keys": 32,
    "lengths": [1024, 2048, 4096, 8192, 16384, 32768, 65536], "queries": 256, "repeats": 3,
    "seconds": 10, "newest": 64,
}  # fmt: skip
QUICK = {
    "network": "random", "length": 32, "layer": 1, "lengths": [64, 128], "keys": 8, "window": 4,
    "queries": 16, "repeats": 1, "newest": 4,
}  # fmt: skip
CALLS = {
    "SDPA": "PyTorch's scaled_dot_product_attention",
    "full": "rc.full_attention",
    "LSH": "rc.lsh_attention",
}


def prepare(files, size):
    return bert.read(files, size | {"passages": -(-max(size["lengths"]) // size["length"])})


def grid(size, seeds):
    fixed = {name: value for name, value in size.items() if name != "lengths"}
    return {
        f"{t} tokens, seed {seed}": fixed | {"tokens": t, "seed": seed}
        for seed in seeds
        for t in size["lengths"]
    }


def run(settings, data, folder):
    q, k, v = inputs(settings, data)
    hashing = hashing_of(settings)
    calls = {
        "SDPA": of_pytorch(q, k, v),
        "full": lambda: rc.full_attention(q, k, v),
        "LSH": lambda: rc.lsh_attention(
            q, v, k=k, rng=settings["seed"], allow_duplicate_attention=False, **hashing
        ),
    }
    (row,) = rc.lsh_report(
        q, k=k, queries=settings["queries"], rng=settings["seed"],
        **hashing | {"num_hashes": [settings["rounds"]]},
    )  # fmt: skip
    seconds = {name: fastest(call, settings) for name, call in calls.items()}
    found = {"mass": round(row.recall, 5), "seen": round(row.seen, 5)}
    return {"seconds": seconds, **found, "index": decoding(q, k, v, settings)}


def decoding(q, k, v, settings):
    """What the newest tokens find by an index of all, and its operations and bytes."""
    index = rc.KeyValueIndex(k, v, num_hashes=settings["rounds"], rng=settings["seed"])
    x = index.compare(np.ascontiguousarray(q[:, :, -settings["newest"] :]))
    return {
        "mass": round(float(x.recall.mean()), 5), "keys": round(float(x.keys.mean()), 1),
        "operations": round(x.operations), "share": round(x.operations / x.full_operations, 5),
        "bytes": x.nbytes,
    }  # fmt: skip


def inputs(settings, data):
    """Queries, keys and values (1, h, tokens, d) of one layer."""
    found = []

    def attend(layer, q, k, v):
        if layer == settings["layer"]:
            found.append((q, k, v))
        return bert.exact(layer, q, k, v)

    count = -(-settings["tokens"] // settings["length"])
    data.network.embeddings(data.ids[:count], attend)
    joined = []
    for parts in zip(*found, strict=True):
        whole = np.concatenate([passage for part in parts for passage in part], axis=1)
        joined.append(np.ascontiguousarray(whole[None, :, : settings["tokens"]]))
    return joined


def hashing_of(settings):
    """Options of `lsh_attention`: a power of two of buckets, with about as many keys in each."""
    power = max(1, round(math.log2(settings["tokens"] / settings["keys"])))
    return {
        "scope": "bucket", "num_hashes": settings["rounds"], "local_window": settings["window"],
        "num_buckets": factors_of_power(power),
    }  # fmt: skip


def of_pytorch(q, k, v):
    try:
        import torch
    except ImportError:
        raise requires_extra("pretrained_time", "torch", "pretrained") from None
    torch.set_num_threads(rc.get_num_threads())
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)


def fastest(call, settings):
    """Seconds of the fastest call of `repeats` + 1, or of the first that exceeds a time in all."""
    found, began = [], perf_counter()
    while len(found) <= settings["repeats"]:
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
        if perf_counter() - began > settings["seconds"]:
            break
    return min(found)


# ---- results ----


def show(runs):
    lines = [
        "| tokens | SDPA, ms | full_attention, ms | lsh_attention, ms | SDPA / lsh_attention "
        "| pairs | mass found |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in sorted(runs, key=lambda x: x["settings"]["tokens"]):
        x = one["result"]
        times = [f"{1e3 * x['seconds'][name]:,.1f}" for name in CALLS]
        ratio = x["seconds"]["SDPA"] / x["seconds"]["LSH"]
        lines.append(
            f"| {one['settings']['tokens']:,} | {' | '.join(times)} | {ratio:.2f} "
            f"| {x['seen']:.1%} | {x['mass']:.1%} |"
        )
    tokens, seconds = series(runs)
    powers = ", ".join(f"{exponent(tokens, seconds[name]):.2f} ({name})" for name in CALLS)
    lines += [
        "",
        f"{break_even(tokens, seconds)} Time grows with the length to the power of {powers}.",
        "",
        "| tokens | keys of a new one, by an index | mass found | operations | of full attention's "
        "| MB |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(runs, key=lambda x: x["settings"]["tokens"]):
        x = one["result"]["index"]
        lines.append(
            f"| {one['settings']['tokens']:,} | {x['keys']:,.0f} | {x['mass']:.1%} "
            f"| {x['operations']:,} | {x['share']:.1%} | {x['bytes'] / 1e6:,.1f} |"
        )
    return "\n".join(lines)


def series(runs):
    """Lengths in increasing order, and the seconds of each call for them."""
    ordered = sorted(runs, key=lambda x: x["settings"]["tokens"])
    return [x["settings"]["tokens"] for x in ordered], {
        name: [x["result"]["seconds"][name] for x in ordered] for name in CALLS
    }


def break_even(tokens, seconds):
    """From which length on hashing is faster than SDPA, interpolated between powers."""
    gain = np.log(np.divide(seconds["SDPA"], seconds["LSH"]))
    if gain[-1] <= 0:
        return f"Hashing is not faster than SDPA at any length up to {tokens[-1]:,}."
    slower = np.flatnonzero(gain <= 0)
    if not len(slower):
        return f"Hashing is faster than SDPA from {tokens[0]:,} tokens on."
    i = slower[-1]
    share = gain[i] / (gain[i] - gain[i + 1])
    even = math.exp(np.interp(share, [0, 1], np.log(tokens[i : i + 2])))
    return f"Hashing is faster than SDPA from about {float(f'{even:.2g}'):,.0f} tokens on."


def draw(runs, figure):
    left, right = figure.subplots(1, 2)
    tokens, seconds = series(runs)
    rc.plot.speed(
        {label: dict(zip(tokens, seconds[x], strict=True)) for x, label in CALLS.items()}, left
    )
    ordered = sorted(runs, key=lambda x: x["settings"]["tokens"])
    for name, label in (("mass", "share of mass found"), ("seen", "share of pairs computed")):
        right.plot(tokens, [x["result"][name] for x in ordered], "o-", label=label)
    right.set(xscale="log", xlabel="tokens", ylim=(0, 1))
    right.legend()
