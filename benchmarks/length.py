"""Time against length: full attention, and LSH attention with 1, 2, 4 and 8 rounds.

The paper's Figure 5 (right), on this machine: every row attends over 32,768 tokens in all, as one
long sequence or as a batch of shorter ones. Interleaved, minimum of several.
"""

import argparse
import time

import numpy as np

import reformer_c as rc
from reformer_c.bench import describe_machine

TOKENS, HEADS, DEPTH = 32_768, 4, 64
ROUNDS = (1, 2, 4, 8)


def calls(length, rng):
    """What is timed at one length, by name."""
    qk, v = rng.standard_normal((2, TOKENS // length, HEADS, length, DEPTH), np.float32)
    result = {"full": lambda: rc.full_attention(qk, None, v, shared_qk=True, is_causal=True)}
    for rounds in ROUNDS:
        result[f"LSH-{rounds}"] = lambda rounds=rounds: rc.lsh_attention(
            qk, v, num_hashes=rounds, is_causal=True, rng=0
        )
    return result


def measure(lengths, repeats):
    """Seconds by name and length."""
    times = {}
    for length in lengths:
        timed = calls(length, np.random.default_rng(0))
        for _ in range(repeats):
            for name, call in timed.items():
                start = time.perf_counter()
                call()
                spent = time.perf_counter() - start
                row = times.setdefault(name, {})
                row[length] = min(row.get(length, np.inf), spent)
    return times


def draw(times, lengths, file):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 4))
    for name, row in times.items():
        ax.plot(lengths, [row[n] for n in lengths], "o-", label=name)
    ax.set(xscale="log", yscale="log", xlabel="length", ylabel=f"seconds for {TOKENS:,} tokens")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.minorticks_off()
    ax.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", metavar="FILE", help="draw the table into this picture")
    options = parser.parse_args()
    if min(options.lengths) < 1 or max(options.lengths) > TOKENS:
        parser.error(f"--lengths: expected numbers from 1 to {TOKENS}")

    for key, value in describe_machine().items():
        print(f"{key:10} {value}")
    times = measure(options.lengths, options.repeats)
    print(f"\nseconds for {TOKENS:,} tokens, {HEADS} heads of {DEPTH}, causal, forward")
    print("length  " + "".join(f"{name:>9}" for name in times))
    for length in options.lengths:
        print(f"{length:6,}  " + "".join(f"{row[length]:9.3f}" for row in times.values()))
    if options.plot:
        draw(times, options.lengths, options.plot)


if __name__ == "__main__":
    main()
