"""Layers: C files and Python modules depend only on those below them."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import reformer_c as rc

ROOT = Path(__file__).parents[1]
CSRC, PACKAGE, TESTS = ROOT / "csrc", ROOT / "reformer_c", ROOT / "tests"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the sources")


def text_of(path):
    """C without comments and strings."""
    code = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\])*"', '""', re.sub(r"//[^\n]*", " ", code))


def includes(path):
    return re.findall(r'^\s*#\s*include\s+([<"][^>"]+[>"])', path.read_text(), flags=re.MULTILINE)


def files(folder, *suffixes):
    found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    assert found
    return found


# ---- C ----


def test_the_core_includes_itself_and_rf_h_alone():
    own = {f'"{path.name}"' for path in files(CSRC / "core", ".c", ".h")}
    c_headers = {"<float.h>", "<math.h>", "<string.h>", "<stdint.h>", "<stddef.h>", "<limits.h>",
                 "<omp.h>", '"../rf.h"'}  # fmt: skip
    # intrinsics, of vectors and of AMX's configuration; and one file may read the clock
    more = {
        "vec.h": {"<immintrin.h>", "<arm_neon.h>"}, "core.h": {"<immintrin.h>"},
        "peak.c": {"<time.h>"},
    }  # fmt: skip
    for path in files(CSRC / "core", ".c", ".h"):
        assert set(includes(path)) <= own | c_headers | more.get(path.name, set()), path


def test_rf_h_includes_c_headers_alone():
    assert set(includes(CSRC / "rf.h")) == {
        "<stdatomic.h>", "<stddef.h>", "<stdint.h>", '"ops.h"',
    }  # fmt: skip
    assert includes(CSRC / "ops.h") == []


def test_variants_include_the_core():
    for path in files(CSRC / "variants", ".c"):
        if path.name == "select.c":
            system = ["<cpuid.h>", "<sys/syscall.h>", "<unistd.h>"]
            assert includes(path) == ['"../rf.h"', '"supports.h"', *system]
        else:
            assert includes(path) == ['"../core/table.c"'], path


def test_a_variant_is_only_its_name():
    names = {path.stem for path in files(CSRC / "variants", ".c")} - {"select"}
    both = {f"{isa}_{real}" for isa in ("base", "avx2", "avx512", "neon")
            for real in ("f32", "f64")}  # fmt: skip
    # variants that multiply bfloat16 numbers exist for float alone
    assert names == both | {"avx512_bf16_f32", "amx_f32"}
    for name in names:
        code = (CSRC / "variants" / f"{name}.c").read_text()
        assert f"#define RF_TABLE rf_{name}\n" in code
        assert f"#define RF_OPS rf_ops_{name[-3:]}\n" in code
        assert f"#define RF_REAL {'float' if name.endswith('f32') else 'double'}\n" in code


def test_the_module_includes_rf_h_and_python():
    own = {f'"{path.name}"' for path in files(CSRC / "module", ".c", ".h")}
    for path in files(CSRC / "module", ".c", ".h"):
        for header in includes(path):
            assert header.startswith("<") or header in own | {'"../rf.h"'}, (path, header)


def test_kernels_never_allocate_print_or_fail():
    banned = r"\b([mc]alloc|realloc|free|alloca|f?printf|puts|exit|abort|assert|errno|Py\w+)\b"
    for path in files(CSRC / "core", ".c", ".h"):
        found = re.findall(banned, text_of(path))
        assert not found, (path, found)


def test_one_file_reads_the_fields_of_arrays():
    for path in files(CSRC / "module", ".c", ".h"):
        looks = re.search(r"\bPyArray|\bNPY_|numpy/", text_of(path) + "".join(includes(path)))
        # pool.c allocates NumPy's arrays
        assert bool(looks) == (path.name in ("call.c", "pool.c")), path


def test_bindings_have_no_loops_no_arithmetic_and_no_goto():
    for path in CSRC.glob("module/bind_*.c"):
        assert not re.search(r"\b(for|while|do|goto|switch)\b", text_of(path)), path
        # a pointer's star has no space after it, so only arithmetic matches
        sums = re.findall(r"\w+ [-*/%+] \w+", text_of(path))
        assert sums in ([], ["d1 + d2", "d1 + d2"]), (path, sums)
        for body in re.split(r"\n(?=PyObject \*bind_)", text_of(path))[1:]:
            assert body.count("\n") <= 40, body.split("(")[0]


def test_no_reduction_and_no_atomics_where_bits_must_not_depend_on_threads():
    for path in files(CSRC / "core", ".c", ".h"):
        if path.name == "peak.c":
            continue  # a measurement
        code = text_of(path)
        for pragma in re.findall(r"#pragma omp[^\n]*(?:\\\n[^\n]*)*", code):
            if "simd" in pragma and "parallel" not in pragma:
                continue  # sums in a fixed number of lanes
            found = re.findall(r"reduction|atomic|critical|schedule\(runtime\)", pragma)
            assert not found, (path, pragma)
        assert "omp_set_num_threads" not in code, path


def test_a_shared_loop_is_in_a_parallel_region_of_its_function():
    # that of a signal handler's own call would join the region of the call that it interrupts
    for path in files(CSRC / "core", ".c", ".h"):
        for function in text_of(path).split("\n}\n"):
            region, shared = (function.find(f"#pragma omp {x}") for x in ("parallel", "for"))
            assert shared < 0 or 0 <= region < shared, (path, function)


def test_forward_is_followed_by_its_backward():
    names = re.findall(r"\(\*(\w+)\)\(", text_of(CSRC / "ops.h"))
    # decoding has no backward
    steps = [x for x in names if not x.endswith("_workspace") and not x.startswith("quantized_")]
    for i, name in enumerate(steps):
        if name.endswith("_forward"):
            assert steps[i + 1] == name.removesuffix("_forward") + "_backward"
    for name in names:
        if name.endswith("_workspace"):
            op = name.removesuffix("_workspace")
            assert {op, f"{op}_forward"} & set(names), f"{name} is the workspace of nothing"


def test_every_entry_of_the_table_is_bound_and_described():
    names = set(re.findall(r"\(\*(\w+)\)\(", text_of(CSRC / "ops.h")))
    names = {name for name in names if not name.endswith("_workspace")}
    bound = set(re.findall(r"BINDING\((\w+)\)", (CSRC / "module/bind.h").read_text()))
    assert names == bound
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    described = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    functions = {name for name in dir(rc._core) if callable(getattr(rc._core, name))}
    assert described == {name for name in functions if not name.startswith("__")}


def test_arguments_have_one_name_and_one_order_in_c_in_the_extension_and_in_python():
    heads = re.findall(r"\(\*(\w+)\)\((.*?)\);", text_of(CSRC / "ops.h"), re.DOTALL)
    in_c = {op: re.findall(r"(\w+)\s*(?:,|$)", arguments) for op, arguments in heads}
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    bound = {
        node.name: [argument.arg for argument in node.args.posonlyargs]
        for node in stub.body
        if isinstance(node, ast.FunctionDef) and node.name in in_c
    }
    # what C takes in structures: rf_attention, rf_decoding, rf_axis for each table of axial
    # positions, and rf_run
    by_structure = {"spec", "bucket_ids"} | {"eps", "theta", "drop"} | {"w0", "w1"}
    by_structure |= {"matmul_precision", "workers"}
    # what only names an argument or a type
    only_here = by_structure | {"name", "like"}
    for op, arguments in bound.items():
        shared = [name for name in arguments if name not in only_here or name in in_c[op]]
        assert shared == [name for name in in_c[op] if name in shared], op
        plain = getattr(rc.ops, op.removesuffix("_forward"), None)
        if not callable(plain) or op.endswith("_backward"):
            continue
        required = [
            parameter.name
            for parameter in inspect.signature(plain).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and parameter.name not in by_structure
        ]
        assert required == [name for name in in_c[op] if name in required], op


# ---- Python ----

# a module may import modules of its own folder, without a circle, and of the folders before it
FOLDERS = ["", "ops", "files", "text", "layers", "models", "training", "tools", "cli"]
# they import the others, and nothing imports them
OUTSIDE = {"torch", "distributed"}
ENTRY = {"__init__", "__main__"}


def modules():
    """Dotted names below reformer_c, and their files, but for those that may import everything."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in OUTSIDE | ENTRY:
            found[".".join(parts)] = path
    return found


def folder_of(module):
    """The folder of a module or of a package, by its dotted name below reformer_c."""
    first, _, rest = module.partition(".")
    return first if rest or (PACKAGE / first).is_dir() else ""


def imports(path):
    """Modules below reformer_c that a file imports, at any depth of it: their dotted names."""
    package, found = ["reformer_c", *path.relative_to(PACKAGE).parts[:-1]], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [x.name for x in node.names if x.name.split(".")[0] == "reformer_c"]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            if base.split(".")[0] != "reformer_c":
                continue
            # "from .. import ops" names a module, "from ..ops import linear" does not
            whole = [f"{base}.{x.name}" for x in node.names if is_module(f"{base}.{x.name}")]
            names = whole or [base]
        else:
            continue
        found |= {name.partition(".")[2] for name in names} - {""}
    return found


def is_module(name):
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or any(path.with_suffix(end).exists() for end in (".py", ".pyi"))


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_folders_below_it(module):
    for name in imports(modules()[module]):
        assert name.split(".")[0] not in OUTSIDE, f"{module} imports {name}"
        assert FOLDERS.index(folder_of(name)) <= FOLDERS.index(folder_of(module)), (
            f"{module} imports {name}"
        )


def test_no_modules_import_each_other():
    known = {name: imports(path) for name, path in modules().items()}
    known = {name: {x for x in found if x in known} for name, found in known.items()}
    while known:
        leaves = {name for name, found in known.items() if not found}
        assert leaves, f"a circle among {sorted(known)}"
        known = {name: found - leaves for name, found in known.items() if name not in leaves}


def test_every_folder_has_a_docstring():
    for folder in FOLDERS[2:]:
        assert (PACKAGE / folder / "__init__.py").read_text().startswith('"""'), folder
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir()} - {"__pycache__", "torch"} == {
        *FOLDERS[1:]
    }


def test_no_files_of_miscellaneous_helpers():
    for path in [*CSRC.rglob("*"), *PACKAGE.rglob("*")]:
        assert path.stem not in {"utils", "util", "common", "misc", "helpers"}, path


def test_every_public_name_is_there_and_documented():
    for name in rc.__all__:
        value = getattr(rc, name)
        assert value.__doc__, name
    assert set(rc.__all__) <= set(dir(rc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rc.nothing  # noqa: B018


def test_the_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_core.pyi").exists()


# ---- tests ----

# arguments of comparisons in NumPy, PyTorch and pytest
LIMITS = {"rtol", "atol", "rel", "abs"}


def has_number(node, largest=np.inf):
    """Whether an expression has a number in (0, largest), but for the arguments of calls in it."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, float) and 0 < node.value < largest
    children = () if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return any(has_number(child, largest) for child in children)


def comparisons(node):
    """The outermost comparisons of an expression."""
    if isinstance(node, ast.Compare):
        return [node]
    return [x for child in ast.iter_child_nodes(node) for x in comparisons(child)]


def literal_tolerances(code):
    """Lines with a number as an argument of a comparison, or with a small one that an asserted
    comparison ends with."""
    for node in ast.walk(code):
        if isinstance(node, ast.keyword) and node.arg in LIMITS and has_number(node.value):
            yield node.lineno
        if isinstance(node, ast.Assert):
            for test in comparisons(node.test):
                if isinstance(test.ops[-1], (ast.Lt, ast.LtE)):
                    yield from [test.lineno] * has_number(test.comparators[-1], 1e-2)


def test_tolerances_are_in_their_table():
    for path in sorted(TESTS.rglob("*.py")):
        if path.name != "tolerances.py":
            lines = [*literal_tolerances(ast.parse(path.read_text()))]
            assert not lines, (path, lines)


@pytest.mark.parametrize(
    "code",
    [
        "assert_allclose(a, b, rtol=1e-5)", "assert a == approx(b, abs=2 * 1e-3)",
        "assert abs(a - b) < 1e-6", "assert all(x < 1e-6 * y for x in z)",
        "assert 0 < x <= 1e-3 or z",
    ],
)  # fmt: skip
def test_a_literal_tolerance_is_found(code):
    assert [*literal_tolerances(ast.parse(code))] == [1]
