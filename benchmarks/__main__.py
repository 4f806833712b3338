"""Time reformer_c and every other library installed, and compare the results with targets."""

import argparse
import sys
from dataclasses import asdict

from reformer_c.runtime import get_num_threads, num_threads
from reformer_c.tools.bench import (
    Case,
    check_json_file,
    describe_machine,
    measure,
    print_machine,
    table,
    write_json,
)

from . import rivals
from .groups import GROUPS, METHOD


def main(arguments=None):
    options = parse(arguments)
    check_json_file(options.json)
    threads = options.threads or get_num_threads()
    with num_threads(threads), rivals.num_threads(threads):
        machine = describe_machine() | rivals.describe()
        print_machine(machine)
        print(METHOD)
        measured, goals = [], []
        for name in options.only:
            function, sizes = GROUPS[name]
            for size in sizes[:1] if options.quick else sizes:
                for group in function(size, threads):
                    figures, reached = measure_group(group, options.repeats, options.quick)
                    measured.append({"group": name} | figures)
                    goals += reached
    print(goal_table(goals))
    if options.json:
        write_json(options.json, {"machine": machine, "groups": measured, "goals": goals})


def measure_group(group, repeats, quick=False):
    """Measure and print a group; returns the measurements and the result for each target."""
    n, threads = 256 if quick else 2048, group.cases[0].threads
    products = [
        Case(name, n, 2.0 * n**3, lambda workers, call=call: call(), threads)
        for name, call in rivals.library_products(n).items()
    ]
    peak, rows = measure([*products, *group.cases], repeats)
    best = max(rows[: len(products)], key=lambda row: row.gigaflops)
    product, rows = best.gigaflops, rows[len(products) :]
    print(f"{group.title} (peak {peak:.1f} GFLOP/s, product {product:.1f}, {best.name})")
    print(table(rows, product), end="\n\n", flush=True)
    first = rows[0].milliseconds
    measurements = [asdict(row) | {"times_the_first": row.milliseconds / first} for row in rows]
    by_name = {row.name: row for row in rows}
    goals = []
    for goal in group.goals:
        value = goal.value(by_name, product)
        goals.append(
            {"work": goal.work, "unit": goal.unit, "required": goal.required}
            | {"measured": value, "holds": goal.holds(value)}
        )
    figures = {"title": group.title, "peak": peak, "product": product, "measurements": measurements}
    return figures, goals


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="example: python -m benchmarks --only lsh local --json figures.json",
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP",
        help=f"groups to measure (all): {', '.join(GROUPS)}",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="threads to use (all)")
    parser.add_argument("--repeats", type=int, metavar="N", help="turns (5; 1 with --quick)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the smallest size of each group, to test that it works",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    options = parser.parse_args(arguments)
    if options.repeats is None:
        options.repeats = 1 if options.quick else 5
    for name in ("threads", "repeats"):
        number = getattr(options, name)
        if number is not None and number < 1:
            parser.error(f"--{name} must be a whole number >= 1")
    return options


def goal_table(goals):
    width = max([62, *(len(goal["work"]) for goal in goals)])
    lines = [f"{'':{width}} {'measured':>12} {'required':>10}"]
    for goal in goals:
        measured = words(goal["measured"], goal["unit"], "not measured")
        required = words(goal["required"], goal["unit"], "-")
        verdict = {True: "yes", False: "NO", None: ""}[goal["holds"]]
        lines.append(f"{goal['work']:{width}} {measured:>12} {required:>10} {verdict}".rstrip())
    return "\n".join(lines)


def words(number, unit, missing):
    if number is None:
        return missing
    return f"{number:.3g} {unit if unit == 'µs' else 'x'}"


if __name__ == "__main__":
    sys.exit(main())
