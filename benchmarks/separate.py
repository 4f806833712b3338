"""LSH attention with separate keys compared with shared ones, in whole buckets of the same sizes.

Separate keys are a third array to read and a third gradient to write, and in causal runs a query
before its bucket's first key attends to all earlier keys instead. Times are those of the thread on
a processor, so that other programs count little; the best of several turns.
"""

import argparse
import time

import numpy as np

import reformer_c as rc
from reformer_c import ops
from reformer_c.tools.bench import describe_machine, print_machine

DEPTH = 64


def pairs_of(buckets, key_buckets, causal):
    """Pairs of a query and a key that it attends to."""
    if not causal:
        sizes = (np.bincount(x, minlength=buckets.max() + 1) for x in (buckets, key_buckets))
        return sum(int(q) * int(k) for q, k in zip(*sizes, strict=False))
    count = 0
    for bucket in range(buckets.max() + 1):
        queries, keys = np.flatnonzero(buckets == bucket), np.flatnonzero(key_buckets == bucket)
        seen = np.searchsorted(keys, queries, side="right")
        count += int(np.where(seen, seen, queries + 1).sum())
    return count


def compare(length, size, causal, repeats, rng):
    """Milliseconds of (forward, backward) with shared and with separate keys, and pairs of each."""
    q, k, v, dout = (rng.standard_normal((1, 1, length, DEPTH), dtype="f4") for _ in range(4))
    count = length // size
    ids, key_ids = (rng.integers(0, count, (1, 1, 1, length), dtype="i4") for _ in range(2))
    rules = {"scope": "bucket", "num_buckets": count, "buckets": ids, "is_causal": causal}
    kinds = (rules, rules | {"k": k, "key_buckets": key_ids})
    seconds = np.full((2, 2), np.inf)
    for _ in range(repeats):
        for kind, options in enumerate(kinds):
            start = time.thread_time()
            _, saved = ops.lsh_attention_forward(q, v, **options)
            middle = time.thread_time()
            ops.lsh_attention_backward(dout, saved)
            end = time.thread_time()
            seconds[kind] = np.minimum(seconds[kind], (middle - start, end - middle))
    return 1000 * seconds, [pairs_of(ids.ravel(), x.ravel(), causal) for x in (ids, key_ids)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    print_machine(describe_machine())
    print(f"{options.length:,} tokens, one head of {DEPTH}, float32, one thread")
    print("ms with shared and with separate keys, their ratio, and that of the time per pair")
    print(f"{'a bucket':>8} {'causal':>6} {'pairs':>6} {'forward':>27} {'backward':>27}")
    for size in options.sizes:
        for causal in (False, True):
            rng = np.random.default_rng(0)
            with rc.num_threads(1), rc.reuse_memory():
                ms, pairs = compare(options.length, size, causal, options.repeats, rng)
            more, ratios = pairs[1] / pairs[0], ms[1] / ms[0]
            columns = "".join(
                f"{ms[0, i]:8.1f} {ms[1, i]:6.1f} {ratios[i]:5.2f} {ratios[i] / more:5.2f}"
                for i in range(2)
            )
            print(f"{size:8} {'yes' if causal else 'no':>6} {more:6.2f} {columns}", flush=True)


if __name__ == "__main__":
    main()
