"""Every public name is documented in NumPy's format: each parameter, and for names an example."""

import importlib
import inspect

import pytest

import reformer_c as rc

validate = pytest.importorskip("numpydoc.validate", reason="numpydoc reads the docstrings").validate

# numpydoc's codes: a docstring with a summary, known sections in their order; the parameters of the
# signature and no others, with types in Python's words; and an example
EVERYWHERE = {"GL06", "GL07", "GL08", "GL09", "GL10", "PR01", "PR02", "PR05", "PR06", "SS01"}
OF_NAMES = {"EX01"}
# options by keyword are documented in the order of meaning there
IN_ORDER = {"PR03"}
UNORDERED = "reformer_c.torch."

MODULES = ["reformer_c", "reformer_c.training.data", "reformer_c.tools.plot"]
# an option of **options that is described has its own entry
OPTIONS = {"generate"}


def methods(path, kind):
    """The public methods and properties of a class that this package defines: (path, object)."""
    for name in dir(kind):
        value = inspect.getattr_static(kind, name)
        owner = next(base for base in kind.__mro__ if name in vars(base))
        described = inspect.isroutine(value) or isinstance(value, property)
        if not name.startswith("_") and owner.__module__.startswith("reformer_c") and described:
            yield f"{path}.{name}", value


def public_names(modules):
    """Paths of the functions, classes, methods and properties of modules, each once."""
    seen = set()
    for module in modules:
        for name in importlib.import_module(module).__all__:
            value, path = getattr(importlib.import_module(module), name), f"{module}.{name}"
            found = [] if inspect.ismodule(value) else [(path, value)]
            found += methods(path, value) if inspect.isclass(value) else []
            for where, one in found:
                if id(one) not in seen:
                    seen.add(id(one))
                    yield where


def mistakes(path):
    """numpydoc's complaints about the docstring of a name."""
    codes = EVERYWHERE | (OF_NAMES if path.rpartition(".")[0] in MODULES else set())
    codes |= set() if path.startswith(UNORDERED) else IN_ORDER
    codes -= {"PR02"} if path.rpartition(".")[2] in OPTIONS else set()
    return [(code, text) for code, text in validate(path)["errors"] if code in codes]


@pytest.mark.parametrize("path", [*public_names(MODULES)])
def test_documented(path):
    assert mistakes(path) == []


def test_operators_of_pytorch_are_documented():
    pytest.importorskip("torch", reason="the operators need PyTorch")
    for path in public_names(["reformer_c.torch"]):
        assert mistakes(path) == []


def undocumented(x, y):
    """One of two.

    Parameters
    ----------
    x : integer
        The first.
    """


def test_what_is_missing_is_found(monkeypatch):
    monkeypatch.setattr(rc, "undocumented", undocumented, raising=False)
    found = {code for code, _ in mistakes("reformer_c.undocumented")}
    assert found == {"PR01", "PR06", "EX01"}
