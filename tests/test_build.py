"""setup.py: which files are compiled, with which flags, for the machine that is compiled for."""

import runpy
import subprocess
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")
from setuptools.errors import CompileError  # noqa: E402

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the sources")


class Compiler:
    """A compiler for `machine`, or for that of its flag -arch, which `lacks` some flags."""

    def __init__(self, machine, *, words=(), lacks=(), defines="", kind="unix", works=True):
        self.machine, self.lacks, self.defines, self.works = machine, lacks, defines, works
        self.compiler_so, self.compiler_type = ["cc", *words], kind

    def compile(self, sources, output_dir=None, extra_postargs=(), **other):
        (source,) = sources
        machine, flags = self.machine, list(extra_postargs)
        if "-arch" in flags:
            machine = flags[flags.index("-arch") + 1].replace("arm64", "aarch64")
        foreign = machine != "x86_64" and any(flag.startswith("-m") for flag in flags)
        program = f"#define __{machine}__\n{self.defines}\n{Path(source).read_text()}"
        valid = subprocess.run(
            ["cc", "-E", "-P", "-undef", "-"], input=program, text=True, capture_output=True
        )
        if not self.works or foreign or set(flags) & set(self.lacks) or valid.returncode:
            raise CompileError("no")
        return [source]

    def link_executable(self, objects, name, **other):
        pass


@pytest.fixture
def build(monkeypatch):
    """A function of a compiler: the build command that uses it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    command = runpy.run_path("setup.py")["BuildExt"]

    def build(*arguments, **options):
        it = command(setuptools.Distribution())
        it.compiler = Compiler(*arguments, **options)
        return it

    return build


def isas(files):
    """The instruction sets of files, and the flags of select.c."""
    names = {Path(file).stem for file in files} - {"select"}
    return {name.rpartition("_")[0] for name in names}, files["csrc/variants/select.c"]


X86 = {"base", "avx2", "avx512", "avx512_bf16", "amx"}


@pytest.mark.parametrize(("machine", "expected"), [
    ("x86_64", X86), ("aarch64", {"base", "neon"}), ("riscv64", {"base"}),
])  # fmt: skip
def test_the_compiler_knows_the_machine(build, machine, expected):
    files = build(machine).variants()
    names, select = isas(files)
    assert names == expected
    assert set(select) == {f"-DRF_HAVE_{name.upper()}" for name in names}
    assert not any("-arch" in flags for flags in files.values())
    assert ("-mavx2" in files.get("csrc/variants/avx2_f32.c", [])) == (machine == "x86_64")


def test_a_compiler_of_two_machines_compiles_each_instruction_set_for_its_own(build):
    files = build("x86_64", words=["-arch", "arm64", "-arch", "x86_64", "-O3"]).variants()
    names, select = isas(files)
    assert names == X86 | {"neon"}
    assert files["csrc/variants/base_f32.c"] == files["csrc/variants/base_f64.c"] == []
    assert files["csrc/variants/neon_f64.c"] == ["-arch", "arm64"]
    assert files["csrc/variants/avx2_f64.c"] == ["-arch", "x86_64", "-mavx2", "-mfma"]
    limits = dict(zip(select[1::2], select[::2], strict=True))
    assert limits["-DRF_HAVE_NEON"] == "-Xarch_arm64"
    assert limits["-DRF_HAVE_AMX"] == "-Xarch_x86_64"
    assert select.count("-DRF_HAVE_BASE") == 2


def test_one_machine_among_the_flags_needs_no_limits(build):
    files = build("aarch64", words=["-arch", "arm64"]).variants()
    assert isas(files) == ({"base", "neon"}, ["-DRF_HAVE_BASE", "-DRF_HAVE_NEON"])


def test_instruction_sets_that_the_compiler_lacks_are_omitted(build):
    assert isas(build("x86_64", lacks=["-mamx-tile"]).variants())[0] == X86 - {"amx"}


def test_wide_vectors_are_left_out_where_gcc_does_not_align_the_stack(build):
    mingw = "#define __MINGW32__ 1"
    assert isas(build("x86_64", defines=mingw).variants())[0] == {"base"}
    clang = f"{mingw}\n#define __clang__ 1"
    assert isas(build("x86_64", defines=clang).variants())[0] == X86


class Msvc(Compiler):
    """Microsoft's compiler, as setuptools knows it before it has looked for it."""

    def __init__(self):
        super().__init__("x86_64", kind="msvc")
        self.initialized = False

    def initialize(self):
        assert not self.initialized
        self.initialized, self.cc = True, "cl.exe"
        self.compile_options = ["/nologo", "/O2", "/GL"]

    def compile(self, sources, extra_postargs=(), **other):
        assert all(flag.startswith("/clang:") for flag in extra_postargs)
        flags = [flag.removeprefix("/clang:") for flag in extra_postargs]
        return super().compile(sources, extra_postargs=flags, **other)


@pytest.fixture
def clang_cl(tmp_path, monkeypatch):
    """The path of a program of this name, which is found."""
    program = tmp_path / "clang-cl"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CC", raising=False)
    return str(program)


def test_clang_cl_compiles_in_the_place_of_microsofts_compiler(build, clang_cl):
    it = build("x86_64")
    it.compiler = Msvc()
    it.check_compiler()
    assert (it.compiler.cc, it.compiler.compile_options) == (clang_cl, ["/nologo", "/O2"])
    it.check_compiler()  # of a second extension
    assert isas(it.variants())[0] == X86
    assert it.openmp()[1] == []
    extension = setuptools.Extension("reformer_c._core", [])
    extension.extra_compile_args = ["-O3"]
    given = []
    it.compiler.compile = lambda *_, extra_postargs, **__: given.extend(extra_postargs)
    it.compile(extension, "a.c", ["-mavx2"])
    assert given == ["/clang:-O3", "/clang:-mavx2"]


@pytest.mark.parametrize("name", [None, "cl", "no-such-clang-cl"])
def test_microsofts_own_compiler_is_refused_before_it_compiles(build, monkeypatch, name):
    monkeypatch.setenv("PATH", "")
    if name:
        monkeypatch.setenv("CC", name)
    else:
        monkeypatch.delenv("CC", raising=False)
    it = build("x86_64")
    it.compiler = Msvc()
    with pytest.raises(CompileError, match=r"lacks the vector extensions .* install clang-cl"):
        it.build_extension(setuptools.Extension("reformer_c._core", []))


def test_no_compiler_is_one_error_that_says_how_to_get_one(build):
    extension = setuptools.Extension("reformer_c._core", [])
    with pytest.raises(CompileError, match="no working C compiler: install gcc or clang"):
        build("x86_64", works=False).build_extension(extension)
