"""The house's floors: knowledge points downward only, in C and in Python."""

import ast
import re
from pathlib import Path

import pytest

import reformer_c as rc

ROOT = Path(__file__).parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "reformer_c"

# a module may import modules of lower floors only
FLOORS = [
    {"_core", "openmp", "activations", "checks", "pickled", "precision", "probabilities"},
    {"outputs", "runtime", "checkpoint", "tokenizer", "screen"},
    {"ops", "folder", "log", "pieces", "generation_config"},
    {"generate", "nn", "reversible", "config", "optim", "data", "report", "subwords"},
    {"attention", "presets", "vocabulary"},
    {"inputs", "observers"},
    {"body"},
    {"heads"},
    {"decode", "weights"},
    {"calls", "generation", "train"},
    {"model"},
    {"bench", "text_decoder"},
    {"encoder_decoder"},
    {"plot", "demo"},
    {"__main__"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
# the same within reformer_c.ops
OPS_FLOORS = [
    {"_derive"},
    {"hashing", "layers", "loss", "machine", "quantized", "tables", "training"},
    {"attention"},
    {"decoding"},
]
OPS_FLOOR = {name: i for i, floor in enumerate(OPS_FLOORS) for name in floor}
# beside the house: they look in, nobody looks at them
OUTSIDE = {"torch", "distributed"}

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


def test_the_core_knows_itself_and_its_face_alone():
    own = {f'"{path.name}"' for path in files(CSRC / "core", ".c", ".h")}
    c_headers = {"<float.h>", "<math.h>", "<string.h>", "<stdint.h>", "<stddef.h>", "<limits.h>",
                 "<omp.h>", '"../rf.h"'}  # fmt: skip
    # one file may name a machine's instructions, and one may look at the clock
    more = {"vec.h": {"<immintrin.h>", "<arm_neon.h>"}, "peak.c": {"<time.h>"}}
    for path in files(CSRC / "core", ".c", ".h"):
        assert set(includes(path)) <= own | c_headers | more.get(path.name, set()), path


def test_the_face_knows_c_alone():
    assert set(includes(CSRC / "rf.h")) == {
        "<stdatomic.h>", "<stddef.h>", "<stdint.h>", '"ops.h"',
    }  # fmt: skip
    assert includes(CSRC / "ops.h") == []


def test_variants_know_the_core():
    for path in files(CSRC / "variants", ".c"):
        if path.name == "select.c":
            system = ["<cpuid.h>", "<sys/syscall.h>", "<unistd.h>"]
            assert includes(path) == ['"../rf.h"', *system]
        else:
            assert includes(path) == ['"../core/table.c"'], path


def test_a_variant_is_only_its_name():
    names = {path.stem for path in files(CSRC / "variants", ".c")} - {"select"}
    both = {f"{isa}_{real}" for isa in ("base", "avx2", "avx512", "neon")
            for real in ("f32", "f64")}  # fmt: skip
    # what else multiplies bfloat16 numbers is for float alone
    assert names == both | {"avx512_bf16_f32", "amx_f32"}
    for name in names:
        code = (CSRC / "variants" / f"{name}.c").read_text()
        assert f"#define RF_TABLE rf_{name}\n" in code
        assert f"#define RF_OPS rf_ops_{name[-3:]}\n" in code
        assert f"#define RF_REAL {'float' if name.endswith('f32') else 'double'}\n" in code


def test_the_module_knows_the_face_and_python():
    own = {f'"{path.name}"' for path in files(CSRC / "module", ".c", ".h")}
    for path in files(CSRC / "module", ".c", ".h"):
        for header in includes(path):
            assert header.startswith("<") or header in own | {'"../rf.h"'}, (path, header)


def test_kernels_never_allocate_print_or_fail():
    banned = r"\b([mc]alloc|realloc|free|alloca|f?printf|puts|exit|abort|assert|errno|Py\w+)\b"
    for path in files(CSRC / "core", ".c", ".h"):
        found = re.findall(banned, text_of(path))
        assert not found, (path, found)


def test_one_place_looks_inside_arrays():
    for path in files(CSRC / "module", ".c", ".h"):
        looks = re.search(r"\bPyArray|\bNPY_|numpy/", text_of(path) + "".join(includes(path)))
        # pool.c gives NumPy the memory that arrays lie in
        assert bool(looks) == (path.name in ("call.c", "pool.c")), path


def test_bindings_have_no_loops_no_arithmetic_and_no_goto():
    for path in CSRC.glob("module/bind_*.c"):
        assert not re.search(r"\b(for|while|do|goto|switch)\b", text_of(path)), path
        # a pointer's star stands beside its name
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


# ---- Python ----


def imports(path, package):
    """Modules of reformer_c that a file imports, at any depth of it: their dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {x.name for x in node.names if x.name.split(".")[0] == "reformer_c"}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            if base[:1] != ["reformer_c"]:
                continue
            # "from . import ops" names modules, "from .ops import linear" does not
            found |= {
                ".".join(base) if node.module else ".".join([*base, x.name])
                for x in node.names if x.name != "__version__"
            }  # fmt: skip
    return found


MODULES = [path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"]


def test_every_module_has_its_floor():
    assert {path.stem for path in MODULES} - OUTSIDE <= set(FLOOR)
    ops = {path.stem for path in (PACKAGE / "ops").glob("*.py")} - {"__init__"}
    assert ops == set(OPS_FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_knows_lower_floors_only(path):
    if path.stem in OUTSIDE:
        return
    for name in imports(path, ["reformer_c"]):
        other = name.split(".")[1]
        assert other not in OUTSIDE, f"{path.stem} imports {name}"
        assert FLOOR[other] < FLOOR[path.stem], f"{path.stem} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("*.py")), ids=lambda path: path.stem)
def test_ops_know_lower_floors_only(path):
    floor = OPS_FLOOR.get(path.stem, len(OPS_FLOORS))
    for name in imports(path, ["reformer_c", "ops"]):
        parts = name.split(".")
        if parts[1] == "ops":
            assert OPS_FLOOR[parts[2]] < floor, f"{path.stem} imports {name}"
        else:
            assert FLOOR[parts[1]] < FLOOR["ops"], f"{path.stem} imports {name}"


def test_no_drawers_for_odds_and_ends():
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
