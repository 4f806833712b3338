"""The site: ``python -m sphinx -W --keep-going -b html docs site``.

Its pages are the Markdown files of this folder, which link to each other as on a git host. Pages
from elsewhere in the repository are copied to ``generated/`` with their links changed, and the
pages of the API reference are written there, one for each public name.
"""

import inspect
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path.insert(0, str(ROOT))

import reformer_c as rc  # noqa: E402

project, author = "reformer_c", "The reformer_c developers"
copyright = author
version = release = rc.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates", "figures.py"]

myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are stored with their outputs, and tests run them
copybutton_exclude = ".linenos, .gp, .go"

default_role = "autolink"
autodoc_typehints = "none"
# an MPI has to be installed to import it
autodoc_mock_imports = ["mpi4py", *(name for name in ["torch"] if find_spec(name) is None)]
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_validation_checks = {"GL08", "PR01"}

html_theme = "pydata_sphinx_theme"
html_title = project
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
html_sidebars = {page: [] for page in ["index", "start", "how_it_works"]}

# ---- pages from elsewhere ----

COPIED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/NOTES.md": "speed_notes.md",
} | {f"notebooks/{file.name}": file.name for file in (ROOT / "notebooks").glob("*.ipynb")}
# other links of the pages, and where they go on the site
TARGETS = {ROOT / source: GENERATED / name for source, name in COPIED.items()} | {
    ROOT / "README.md": DOCS / "index.md",
    ROOT / "reformer_c/__init__.py": GENERATED / "api.rst",
}
LINK = re.compile(r"\[([^\]]*)\]\(((?![a-z]+:|#)[^)#\s]+)(#[^)\s]*)?\)")


def with_links_of(text, folder, page):
    """Change the links of a text in `folder` for a page of the site: to the copies, or to nothing
    where the repository has the only copy."""

    def change(link):
        label, path, anchor = link[1], (folder / link[2]).resolve(), link[3] or ""
        target = path if path.is_relative_to(DOCS) else TARGETS.get(path)
        if target is None:
            return label
        up = "../" * (len(page.relative_to(DOCS).parts) - 1)
        return f"[{label}]({up}{target.relative_to(DOCS)}{anchor})"

    return LINK.sub(change, text)


def copy_pages():
    for source, name in COPIED.items():
        file, page = ROOT / source, GENERATED / name
        if page.suffix == ".md":
            page.write_text(with_links_of(file.read_text("utf-8"), file.parent, page), "utf-8")
        else:
            shutil.copy(file, page)


def change_links(app, name, source):
    page = DOCS / f"{name}.md"
    if page.is_file() and not page.is_relative_to(GENERATED):
        source[0] = with_links_of(source[0], page.parent, page)


# ---- the API reference ----

FOLDERS = {
    "ops": "Operations",
    "": "Threads, precision, memory",
    "layers": "Reversible layers",
    "models": "Models",
    "text": "Tokenizers",
    "training": "Training",
    "tools": "Inspection",
}
MODULES = {
    "reformer_c.data": "Data",
    "reformer_c.plot": "Plots",
    "reformer_c.torch": "PyTorch",
    "reformer_c.distributed": "Several machines",
}


def folder_of(value):
    """The folder of the package that defines a value."""
    parts = value.__module__.split(".")
    return parts[1] if len(parts) > 2 else ""


def listing(title, names):
    entries = "\n".join(f"   {name}" for name in names)
    head = f"{title}\n{'-' * len(title)}\n\n.. autosummary::\n   :toctree: api\n   :nosignatures:\n"
    return f"{head}\n{entries}\n\n"


def write_api():
    public = {name: getattr(rc, name) for name in rc.__all__}
    names = [name for name, value in public.items() if not inspect.ismodule(value)]
    text = (
        "API reference\n=============\n\n``import reformer_c as rc`` gives all names but those "
        "under PyTorch and Several machines, which are imported by their modules.\n\n"
    )
    for folder, title in FOLDERS.items():
        own = [name for name in names if folder_of(public[name]) == folder]
        text += listing(title, [f"reformer_c.{name}" for name in sorted(own, key=str.lower)])
    for module, title in MODULES.items():
        text += listing(title, [f"{module}.{name}" for name in exported(module)])
    (GENERATED / "api.rst").write_text(text, "utf-8")


def exported(module):
    """The public names of a module, read from its source where it cannot be imported."""
    name = module.rpartition(".")[2]
    if name in rc.__all__:
        return getattr(rc, name).__all__
    path = ROOT / "reformer_c" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    listed = re.search(r"__all__ = \[(.*?)\]", path.read_text("utf-8"), re.DOTALL)[1]
    return re.findall(r'"(\w+)"', listed)


shutil.rmtree(GENERATED, ignore_errors=True)
GENERATED.mkdir()
copy_pages()
write_api()


def setup(app):
    app.connect("source-read", change_links)
