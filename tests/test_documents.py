"""The examples in docs/ run."""

import doctest
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from unittest import mock

import pytest

from reformer_c.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OF_SITE = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("recipes/*.md"))]
PAGES = [ROOT / "README.md", *OF_SITE]
# arguments that take seconds, in place of those that take minutes
SMALLER = {"--length": "64", "--steps": "1"}
# what the examples of a page import
LIBRARIES = {
    "datasets": ["datasets"],
    "documents": ["joblib", "dask"],
    "hub": ["huggingface_hub"],
    "in_pytorch": ["torch", "transformers", "reformer_pytorch"],
    "pictures": ["PIL"],
    "tensorboard": ["torch", "tensorboard"],
    "wandb": ["wandb"],
}


@pytest.mark.filterwarnings("default")  # other libraries warn about each other
@pytest.mark.parametrize("page", OF_SITE, ids=lambda page: page.stem)
def test_examples_run(page, monkeypatch):
    pytest.importorskip("safetensors", reason="the pages save models")
    for library in LIBRARIES.get(page.stem, ()):
        pytest.importorskip(library, reason=f"its examples need {library}")
    pushed = [page.stem == "hub" and keep_uploads(monkeypatch)]
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    if page.stem == "hub":
        assert pushed == [[{"config.json", "generation_config.json", "model.safetensors"}]]


def keep_uploads(monkeypatch):
    """Replace the hub's client, with its signatures, by one that notes the files of a folder."""
    import huggingface_hub

    client = mock.create_autospec(huggingface_hub.HfApi)
    uploads = []
    client.return_value.upload_folder.side_effect = lambda **given: uploads.append(
        {path.name for path in Path(given["folder_path"]).iterdir()}
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    return uploads


@pytest.mark.parametrize(
    "page", [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(((?![a-z]+:|#)[^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_figures_are_what_their_program_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws them")
    figures = runpy.run_path(str(DOCS / "figures.py"))
    figures["draw"](tmp_path)
    page = (DOCS / "how_it_works.md").read_text("utf-8")
    for file in tmp_path.iterdir():
        assert f"({file.name})" in page
        assert (DOCS / file.name).exists()


def commands(page):
    """The lines of a page that are for a shell, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def programs(page):
    """The Python programs of a page, which make data; examples have a prompt."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if ">>>" not in block]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_commands_name_what_a_fresh_shell_has():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for line in commands(page):
            assert re.match(r"\.venv/bin/|python3 -m venv|mpiexec |make ", line), (page.name, line)
            assert not re.search(r"(?<![\w/.])(reformer-c|pip) ", line), (page.name, line)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "reformer-c" in page.read_text("utf-8")],
    ids=lambda p: p.stem,
)
def test_commands_run(page, tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="the pages save models")
    monkeypatch.chdir(tmp_path)
    for name in ("BOOK.txt", "OTHER.txt"):
        Path(name).write_text("At the beginning of the text there is a word. " * 40)
    if page.stem == "pictures":
        draw_pictures("PICTURES")
    for program in programs(page):
        exec(program, {})
    for line in commands(page):
        program, *words = shlex.split(line)
        if program != ".venv/bin/reformer-c":
            continue
        if "--tokenizer" in words:
            learn_pieces("TOKENIZER")
        for option, value in SMALLER.items():
            if option in words:
                words[words.index(option) + 1] = value if words[0] == "train" else "5"
        assert main(words) == 0


def draw_pictures(folder):
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    Path(folder).mkdir()
    for i in range(4):
        image.new("RGB", (6, 4), (60 * i, 80, 90)).save(f"{folder}/{i}.png")
    Path("PICTURE.png").write_bytes(Path(folder, "0.png").read_bytes())


def learn_pieces(folder):
    library = pytest.importorskip("tokenizers", reason="subwords need the tokenizers library")
    tokenizer = library.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [Path("BOOK.txt").read_text()], vocab_size=270, show_progress=False
    )
    Path(folder).mkdir()
    tokenizer.save(f"{folder}/tokenizer.json")


def test_extras_are_named_as_they_can_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"].keys()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "reformer_c").rglob("*.py"))]:
        for command in re.findall(r"pip install ([^`\n]*\[[^`\n]*)", page.read_text("utf-8")):
            # an index knows the package by its name, a checkout by its folder
            found = re.match(r"""(?:-e "\.|"reformer_c)\[([\w,{}.]+)\]\"""", command)
            assert found, (page, command)
            assert {*found[1].split(",")} <= {*known, "{extra}", "..."}, (page, command)
