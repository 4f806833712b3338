"""Every notebook runs from its first cell to its last, in the environment of the tests.

Those of the experiments show kept results, and show the same again.
"""

import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat reads the notebooks")

NAMES = pytest.importorskip("experiments", reason="needs the sources").NAMES
FOLDER = Path(__file__).parents[1] / "notebooks"

# what takes half a minute each, and what the tests run in its place
SHORTER = {
    "buckets": ("length, steps = 2048, 400", "length, steps = 2048, 10"),
    "listops": ("expressions(1, 2000, 1000,", "expressions(1, 200, 100,"),
    "table1": ('quick("table1")', '# quick("table1")'),  # test_experiments.py runs it
    "tour": ("steps = 250", "steps = 10"),
}


@pytest.mark.filterwarnings("default")  # the machinery of Jupyter warns about itself
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    if path.stem in SHORTER:
        whole, part = SHORTER[path.stem]
        (cell,) = (cell for cell in notebook.cells if whole in cell.source)
        cell.source = cell.source.replace(whole, part)
    client = nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.create_kernel_manager()
    # a kernel of the same name may belong to another Python
    client.km.kernel_spec.argv[0] = sys.executable
    stored = [markdown(cell) for cell in notebook.cells]
    client.execute()
    if path.stem in NAMES:
        for cell, before in zip(notebook.cells, stored):
            if "quick(" not in cell.source:
                assert markdown(cell) == before, cell.source


def markdown(cell):
    """What a cell shows as Markdown: tables of results, and where they come from."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [x["text/markdown"] for x in data if "text/markdown" in x]


def test_every_experiment_has_a_notebook():
    # the pictures of Figure 3 are in the notebook of its texts, and times depend on the machine
    without = {"figure3_pictures", "pretrained_time"}
    assert {path.stem for path in FOLDER.glob("*.ipynb")} >= {*NAMES} - without


def test_notebooks_are_stored_with_their_outputs():
    for path in FOLDER.glob("*.ipynb"):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert any(cell.outputs for cell in cells), path
        assert all(cell.execution_count for cell in cells), path
