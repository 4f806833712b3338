"""Every notebook runs from its first cell to its last, in the environment of the tests."""

import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat reads the notebooks")

FOLDER = Path(__file__).parents[1] / "notebooks"


@pytest.mark.filterwarnings("default")  # the machinery of Jupyter warns about itself
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.create_kernel_manager()
    # a kernel of the same name may belong to another Python
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()


def test_notebooks_are_stored_with_their_outputs():
    for path in FOLDER.glob("*.ipynb"):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert any(cell.outputs for cell in cells), path
        assert all(cell.execution_count for cell in cells), path
