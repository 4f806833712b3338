"""The files about the project: changelog, citation, issue forms, and the page of an index."""

import io
import re
import runpy
import tomllib
from pathlib import Path

import pytest

import reformer_c as rc

ROOT = Path(__file__).parents[1]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the sources")


def read(name):
    return (ROOT / name).read_text("utf-8")


def links(text):
    """The targets of links and pictures of Markdown."""
    return re.findall(r"\]\(([^)\s]+)\)", text)


# ---- version, changelog, citation ----


def test_the_version_is_the_same_everywhere():
    assert re.search(rf"^version: {re.escape(rc.__version__)}$", read("CITATION.cff"), re.M)
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.M)
    assert headings[0] == "[Unreleased]" or headings[0].startswith(f"[{rc.__version__}] - ")


def test_the_changelog_has_the_headings_that_programs_look_for():
    found = re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.M)
    assert found
    assert {*found} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_names_the_paper():
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the citation")
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == tomllib.loads(read("pyproject.toml"))["project"]["license"]
    [paper] = citation["references"]
    assert paper["title"] == "Reformer: The Efficient Transformer"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Kitaev", "Kaiser", "Levskaya",
    ]  # fmt: skip
    assert "2001.04451" in paper["identifiers"][0]["value"]


def test_links_between_the_files_of_the_project_lead_somewhere():
    pages = ["README.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"]
    for page in [*pages, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        for target in links(read(page)):
            name, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), (page, target)
            if anchor and path.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
                anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in anchors, (page, target)


# ---- issue forms ----

BODY = {
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "input": {"label", "description", "placeholder", "value"},
    "dropdown": {"label", "description", "multiple", "options", "default"},
    "checkboxes": {"label", "description", "options"},
    "markdown": {"value"},
}


@pytest.mark.parametrize(
    "form", [path for path in sorted(FORMS.glob("*.yml")) if path.stem != "config"],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_an_issue_form_is_one(form):
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the forms")
    values = yaml.safe_load(form.read_text("utf-8"))
    assert {"name", "description", "body"} <= values.keys()
    assert values.keys() <= {"name", "description", "body", "labels", "title", "assignees"}
    ids = [part.get("id") for part in values["body"] if part["type"] != "markdown"]
    assert len({*ids}) == len(ids)
    for part in values["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        attributes = part["attributes"]
        assert attributes.keys() <= BODY[part["type"]]
        assert part["type"] == "markdown" or attributes["label"]
        assert part["type"] not in ("dropdown", "checkboxes") or attributes["options"]


# ---- what an index shows ----


@pytest.fixture
def metadata(monkeypatch):
    """The metadata of a package, and its description."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    runpy.run_path("setup.py")
    package = setuptools.Distribution(given)
    package.parse_config_files()
    file = io.StringIO()
    package.metadata.write_pkg_file(file)
    head, _, description = file.getvalue().partition("\n\n")
    return head, description


def test_a_page_of_an_index_needs_no_files(metadata):
    head, description = metadata
    assert "Description-Content-Type: text/markdown" in head
    assert all(target.startswith("https://") for target in links(description))
    assert "![" not in description
    readme = read("README.md")
    for words in re.findall(r"!\[([^\]]*)\]\((?!https?:)", readme):
        assert f"*{words}*" in description  # in place of the picture
    # all but pictures and links is what it was
    plain = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)|\*")
    words = [plain.sub(r"\1", text).split() for text in (readme, description)]
    assert words[0] == words[1]


def test_a_page_of_an_index_renders(metadata):
    markdown = pytest.importorskip("readme_renderer.markdown", reason="renders as an index does")
    page = markdown.render(metadata[1])
    if page is None:
        pytest.skip("readme_renderer needs cmarkgfm")
    assert "<table>" in page
    assert "<img" not in page
    found = re.findall(r'href="([^"]*)"', page)
    assert all(target.startswith(("https://", "#")) for target in found)


def test_extras_of_extras_are_those_of_this_package(metadata):
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for name, libraries in extras.items():
        for inner in re.findall(r"reformer_c\[(\w+)\]", " ".join(libraries)):
            assert inner in extras, name
            assert "reformer_c[" not in " ".join(extras[inner]), name  # no circle
