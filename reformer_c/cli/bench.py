"""``reformer-c bench``: time the operations as a share of the machine's peak."""

from __future__ import annotations

from argparse import Namespace

from ..tools.bench import run_bench


def run(options: Namespace) -> None:
    run_bench(length=options.length, repeats=options.repeats, json_file=options.json)
