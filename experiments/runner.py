"""Runs an experiment: skips what is saved, saves what is finished, writes a table and a plot."""

import json
import sys
from importlib.util import find_spec

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


def run_all(module, options, data, machine, command, folder):
    """All runs of an experiment that the folder does not have; returns the table.

    A finished run is a line of ``runs.jsonl``. Checkpoints of a run are in a folder of its name.
    """
    grid = module.grid(options.size, options.seeds)
    about = None if data is None else data.about
    folder.mkdir(parents=True, exist_ok=True)
    done = saved_runs(folder / RUNS, grid, about)
    for number, (name, settings) in enumerate(grid.items(), 1):
        if name in done:
            continue
        print(f"[{number}/{len(grid)}] {name}", file=sys.stderr, flush=True)
        place = folder / name.replace(",", "").replace(" ", "-")
        result = module.run(settings, data, place)
        done[name] = {
            "name": name, "settings": settings, "data": about, "machine": machine, "result": result
        }  # fmt: skip
        lines = "".join(json.dumps(line) + "\n" for line in done.values())
        write_atomically(folder / RUNS, lambda part, lines=lines: part.write_text(lines))
    machines = [done[name]["machine"] for name in grid]
    summary = {
        "experiment": options.name,
        "command": command,
        "machines": [x for i, x in enumerate(machines) if x not in machines[:i]],
        "data": about,
        "runs": [{key: done[name][key] for key in ("name", "settings", "result")} for name in grid],
    }
    write_json(folder / f"{options.name}.json", summary)
    table = module.show(summary["runs"])
    write_atomically(folder / f"{options.name}.md", lambda part: part.write_text(table + "\n"))
    if find_spec("matplotlib") is None:
        print("no plot: it needs matplotlib (the extra bench)", file=sys.stderr)
    else:
        plot(module, summary["runs"], folder / f"{options.name}.svg")
    return table


def saved_runs(file, grid, about):
    """The finished runs of a folder by name; `Refused` if they are those of another command."""
    lines = read_log(file) if file.is_file() else []
    for line in lines:
        for key, mine in (("settings", grid.get(line["name"], line["settings"])), ("data", about)):
            if line[key] != json.loads(json.dumps(mine)):
                raise Refused(
                    f"--save: {file} has {line['name']!r} with the {key} {line[key]}, not {mine}"
                )
    return {line["name"]: line for line in lines}


def plot(module, runs, file):
    """Draw the runs into a file that is the same each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "reformer_c"}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        module.draw(runs, figure)
        figure.savefig(file, metadata={"Date": None})
