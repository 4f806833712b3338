"""What the notebooks of the experiments show: results that are kept, and those of a quick run."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from IPython.display import Image, Markdown, display

from .__main__ import main
from .runner import plot

RESULTS = Path(__file__).parent / "results"


class Results:
    """The runs of an experiment, from its JSON file; where they come from is shown as Markdown."""

    def __init__(self, file):
        self.summary = json.loads(Path(file).read_text("utf-8"))
        self.runs = self.summary["runs"]
        self.experiment = import_module(f".{self.summary['experiment']}", __package__)

    def __repr__(self):
        machines = "; ".join(
            f"{x['processor']}, {x['threads']} thread{'s' * (x['threads'] != '1')}, {x['versions']}"
            for x in self.summary["machines"]
        )
        return f"`{self.summary['command']}`\n\n{len(self.runs)} runs on {machines}"

    _repr_markdown_ = __repr__

    @property
    def table(self):
        """The table that the command prints."""
        return Markdown(self.experiment.show(self.runs))

    @property
    def plot(self):
        """The plot that the command writes."""
        picture = io.BytesIO()
        plot(self.experiment, self.runs, picture, format="png", dpi=80)
        return Image(picture.getvalue())

    def show(self):
        """Display the command, the table and the plot."""
        display(self, self.table, self.plot)


def kept(name):
    """The results of a full run, which are kept in ``experiments/results``."""
    return Results(RESULTS / f"{name}.json")


def quick(name, *words):
    """Run an experiment in its quick form, which shows only that it works: seconds.

    `words` are more of the command, such as files.
    """
    without_bars = patch("reformer_c.training.progress.in_notebook", return_value=False)
    with TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), without_bars:
            main([name, *words, "--quick", "--save", folder])
        return Results(Path(folder, f"{name}.json"))
