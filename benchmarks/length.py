"""Time against length: full attention, and LSH attention with 1, 2, 4 and 8 rounds.

The paper's Figure 5 (right), on this machine: 65,536 tokens in total, as one long sequence or as a
batch of shorter ones.
"""

import argparse
from functools import partial

import numpy as np

import reformer_c as rc
from reformer_c.tools.bench import (
    CHUNK,
    DEPTH,
    WINDOW,
    Case,
    check_json_file,
    describe_machine,
    measure,
    print_machine,
    write_json,
)

TOKENS, HEADS = 65_536, 4
LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
ROUNDS = 1, 2, 4, 8


def cases(length, threads, with_full):
    """The calls that are timed at one length."""
    qk, v = np.random.default_rng(0).standard_normal(
        (2, TOKENS // length, HEADS, length, DEPTH), np.float32
    )
    batch = len(qk) * HEADS
    if with_full:
        operations = 2.0 * batch * DEPTH * length * (length + 1)
        call = partial(rc.full_attention, qk, None, v, shared_qk=True, is_causal=True)
        yield Case("full", TOKENS, operations, call, threads)
    for rounds in ROUNDS:
        operations = 4.0 * batch * length * rounds * (2 * CHUNK) * DEPTH
        call = partial(rc.lsh_attention, qk, v, num_hashes=rounds, rng=0, **WINDOW)
        yield Case(f"LSH-{rounds}", TOKENS, operations, call, threads)


def draw(seconds, title, file):
    """Plot seconds by name and length to a file."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "reformer_c"  # makes the file reproducible
    figure, ax = plt.subplots(figsize=(6, 4))
    rc.plot.speed(seconds, ax)
    ax.set(title=title, xlabel="length of a sequence", ylabel=f"seconds for {TOKENS:,} tokens")
    ax.tick_params("x", labelsize="small")
    figure.savefig(file, dpi=120, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.length",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.length --plot length.svg",
    )
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N")
    add("--longest-full", type=int, default=TOKENS, metavar="N",
        help="no full attention above this length (it takes a minute at 65,536)")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N", help="turns, the fastest counts (3)")
    add("--plot", metavar="FILE", help="plot the table to this file")
    add("--json", metavar="FILE", help="also write the seconds to this file")
    options = parser.parse_args(arguments)
    if min(options.lengths) < 1 or max(options.lengths) > TOKENS:
        parser.error(f"--lengths must be from 1 to {TOKENS}")
    if options.repeats < 1:
        parser.error("--repeats must be >= 1")
    check_json_file(options.json)

    machine = describe_machine()
    print_machine(machine)
    names = ["full", *(f"LSH-{rounds}" for rounds in ROUNDS)]
    print(f"\nseconds for {TOKENS:,} tokens, {HEADS} heads of {DEPTH}, causal, forward")
    print("length  " + "".join(f"{name:>9}" for name in names))
    seconds = {name: {} for name in names}
    threads = rc.get_num_threads()
    for length in options.lengths:
        timed = list(cases(length, threads, with_full=length <= options.longest_full))
        for row in measure(timed, options.repeats)[1]:
            seconds[row.name][length] = row.milliseconds / 1e3
        shown = (seconds[name].get(length) for name in names)
        numbers = "".join(f"{'-':>9}" if s is None else f"{s:9.3f}" for s in shown)
        print(f"{length:6,}  {numbers}", flush=True)
    if options.plot:
        title = f"{machine['processor']}, {machine['using'].split()[0]}, {threads} threads"
        draw(seconds, title, options.plot)
    if options.json:
        write_json(options.json, {"machine": machine, "seconds": seconds})


if __name__ == "__main__":
    main()
