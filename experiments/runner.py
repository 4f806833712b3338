"""Runs an experiment: skips what is saved, saves what is finished, writes a table and a plot."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from reformer_c.files.checkpoint import write_atomically
from reformer_c.tools.bench import write_json
from reformer_c.training.log import read_log

RUNS = "runs.jsonl"


class Refused(ValueError):
    """A folder that has the results of other settings."""


def each_of(models):
    """The `grid` of an experiment that trains each of some models from each seed.

    Examples
    --------
    >>> each_of(["LSH"])({"steps": 5}, [0])
    {'LSH, seed 0': {'steps': 5, 'model': 'LSH', 'seed': 0}}
    """

    def grid(size, seeds):
        return {
            f"{model}, seed {seed}": size | {"model": model, "seed": seed}
            for seed in seeds
            for model in models
        }

    return grid


def run_all(module, options, data, machine, kept, folder):
    """The runs of an experiment that neither the folder nor `kept` has; returns the table.

    A finished run is a line of ``runs.jsonl``. Checkpoints of a run are in a folder of its name.
    With ``options.only``, there is a table once all runs are finished.
    """
    grid = module.grid(options.size, options.seeds)
    about = None if data is None else data.about
    chosen = choose(grid, options.only)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RUNS
    done = {run["name"]: run for run in kept if fits(run, grid, about)}
    for number, (name, settings) in enumerate(grid.items(), 1):
        done |= saved(file, grid, about)  # other processes may share the folder
        if name in done or name not in chosen:
            continue
        print(f"[{number}/{len(grid)}] {name}", file=sys.stderr, flush=True)
        place = folder / name.replace(",", "").replace(" ", "-")
        result = module.run(settings, data, place)
        line = {
            "name": name, "settings": settings, "data": about, "machine": machine, "result": result
        }  # fmt: skip
        with open(file, "ab", buffering=0) as lines:
            lines.write(json.dumps(line).encode() + b"\n")  # at once: no other line is lost
    done |= saved(file, grid, about)
    if missing := [name for name in grid if name not in done]:
        return f"not run yet: {'; '.join(missing)}"
    machines = [done[name]["machine"] for name in grid]
    different = [x for i, x in enumerate(machines) if x not in machines[:i]]
    summary = {
        "experiment": options.name,
        "command": options.command,
        "machines": different,
        "data": about,
        "runs": [
            {key: done[name][key] for key in ("name", "settings", "result")}
            | {"machine": different.index(done[name]["machine"])}
            for name in grid
        ],
    }
    write_json(folder / f"{options.name}.json", summary)
    table = module.show(summary["runs"])
    write_atomically(folder / f"{options.name}.md", lambda part: part.write_text(table + "\n"))
    if find_spec("matplotlib") is None:
        print("no plot: it needs matplotlib (the extra bench)", file=sys.stderr)
    else:
        plot(module, summary["runs"], folder / f"{options.name}.svg")
    return table


def choose(grid, words):
    """The names of a grid that begin with one of the words; all names, if there are no words."""
    for word in words:
        if not any(name.startswith(word) for name in grid):
            raise Refused(f"--only: {word!r} must be the beginning of one of {', '.join(grid)}")
    return [name for name in grid if not words or name.startswith(tuple(words))]


def as_json(value):
    """A value as it is read from a file."""
    return json.loads(json.dumps(value))


def saved(file, grid, about):
    """The finished runs of a file by name; `Refused` if they are those of another command."""
    lines = read_log(file) if file.is_file() else []
    for line in lines:
        for key, mine in (("settings", grid.get(line["name"], line["settings"])), ("data", about)):
            if line[key] != as_json(mine):
                raise Refused(
                    f"--save: {file} has {line['name']!r} with the {key} {line[key]}, not {mine}"
                )
    return {line["name"]: line for line in lines}


def fits(run, grid, about):
    """Whether a run of a summary is one of a grid, with the same settings and data."""
    return run["settings"] == as_json(grid.get(run["name"])) and run["data"] == as_json(about)


def read_summary(file, name):
    """The runs of an experiment's JSON file, each with its data and machine.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or has results of another experiment.
    """
    summary = json.loads(Path(file).read_text("utf-8"))
    found = summary.get("experiment") if isinstance(summary, dict) else None
    if found != name:
        raise ValueError(f"{file} must have results of {name}, got {found}")
    try:
        machines, data = summary["machines"], summary["data"]
        return [
            {key: run[key] for key in ("name", "settings", "result")}
            | {"data": data, "machine": machines[run.get("machine", 0)]}
            for run in summary["runs"]
        ]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} must have what an experiment writes, got {error!r}") from error


def plot(module, runs, file, **options):
    """Draw the runs into a file, an SVG by default, that is the same each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "reformer_c"}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        module.draw(runs, figure)
        figure.savefig(file, **({"format": "svg", "metadata": {"Date": None}} | options))
