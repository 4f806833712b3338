"""Run an experiment of the paper, from the start or from where the same command stopped.

Each finished run is saved, and training within a run every few steps. At the end, the folder has
NAME.json (settings, results and machine), NAME.md (a table) and, with matplotlib, NAME.svg.
"""

import argparse
import json
import shlex
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from reformer_c.tools.bench import describe_machine, print_machine

from . import NAMES
from .runner import Refused, read_summary, run_all


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        epilog="example: python -m experiments figure3 BOOK.txt --save runs/figure3",
    )
    add = parser.add_argument
    add("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    add("files", metavar="FILE", nargs="*", help="data; without it, a text that is part of Python")
    add("--quick", action="store_true", help="sizes that take seconds, to test that it works")
    add("--save", metavar="DIR", help="folder of the results, from which the run resumes")
    add(
        "--seeds", type=int, nargs="+", action="extend", metavar="N",
        help="instead of the experiment's own",
    )  # fmt: skip
    add(
        "--set", nargs="+", action="extend", default=[], metavar="SETTING=VALUE", dest="changes",
        help="change settings, such as steps=1500; values are JSON",
    )  # fmt: skip
    add(
        "--only", nargs="+", action="extend", default=[], metavar="RUN",
        help="only runs whose names begin so; several processes may share DIR in this way",
    )  # fmt: skip
    add(
        "--kept", metavar="JSON",
        help="results such as experiments/results/NAME.json; runs of theirs are not run again",
    )  # fmt: skip
    options = parser.parse_intermixed_args(arguments)  # files after options, too
    module = import_module(f".{options.name}", __package__)
    options.size = module.SIZE | (module.QUICK if options.quick else {})
    for change in options.changes:
        name, _, value = change.partition("=")
        if name not in options.size:
            parser.error(f"--set: {name!r} must be one of {', '.join(options.size)}")
        try:
            options.size[name] = json.loads(value)
        except ValueError:
            parser.error(f"--set: {name} must be JSON, got {value!r}")
        likes = module.SIZE[name], (module.SIZE | module.QUICK)[name]
        if not any(is_like(options.size[name], x) for x in likes):
            parser.error(f"--set: {name} must be like {json.dumps(likes[0])}, got {value}")
        least = int(min(numbers(likes), default=0) >= 1)
        if min(numbers(options.size[name]), default=least) < least:
            parser.error(f"--set: {name} must be at least {least}, got {value}")
    options.command = command_of(options)
    if options.seeds is None:
        options.seeds = module.SEEDS[:1] if options.quick else module.SEEDS
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds must be different numbers >= 0, got {options.seeds}")
    if options.files and not hasattr(module, "prepare"):
        parser.error(f"FILE: {options.name} reads none, got {options.files[0]!r}")
    return parser, module, options


def main(arguments=None):
    parser, module, options = parse(arguments)
    try:
        data = module.prepare(options.files, options.size) if hasattr(module, "prepare") else None
    except (OSError, ValueError) as error:
        parser.error(f"FILE: {error}")
    except ImportError as error:
        parser.error(str(error))
    try:
        kept = [] if options.kept is None else read_summary(options.kept, options.name)
    except (OSError, ValueError) as error:
        parser.error(f"--kept: {error}")
    machine = describe_machine()
    print_machine(machine, sys.stderr)
    with TemporaryDirectory() as elsewhere:
        folder = Path(options.save or elsewhere)
        if folder.exists() and not folder.is_dir():
            parser.error(f"--save: {options.save} must be a folder")
        try:
            print(run_all(module, options, data, machine, kept, folder))
        except Refused as error:
            parser.error(str(error))


def is_like(value, example):
    """Whether a value of JSON has the type of another; integers are numbers, too."""
    return type(value) in ({int, float} if isinstance(example, float) else {type(example)})


def numbers(value):
    """All numbers of a value of JSON, in lists and objects, too."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def command_of(options):
    """The command that makes all results, without the places of files, which differ."""
    words = [options.name, *(Path(file).name for file in options.files)]
    words += ["--quick"] * options.quick
    if options.seeds:
        words += ["--seeds", *map(str, options.seeds)]
    if options.changes:
        words += ["--set", *options.changes]
    return f"python -m experiments {shlex.join(words)}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes the run")
