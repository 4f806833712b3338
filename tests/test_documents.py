"""The pages in docs/ say what is true: their examples run."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_examples_run(page):
    pytest.importorskip("safetensors", reason="the pages save models")
    if page.stem == "in_pytorch":
        for library in ("torch", "transformers", "reformer_pytorch"):
            pytest.importorskip(library, reason=f"its examples need {library}")
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
