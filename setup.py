"""Build of the extension: one compilation of the core per instruction set and element type.

All metadata but the readme is in pyproject.toml. Environment: REFORMER_C_SANITIZE=1 adds the
address and undefined-behaviour sanitizers, REFORMER_C_OPENMP=0 builds without threads.
"""

import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import pairwise
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# -std=c11 disables contraction of a * b + c in gcc, so -ffp-contract enables it again. Never
# -ffast-math (masks need inf), never -march=native (a wheel must run on other machines).
C_FLAGS = """-std=c11 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math
             -fvisibility=hidden -Wall -Wextra""".split()
# Python's own flags add debug information, which would be four fifths of the extension.
RELEASE_FLAGS = ["-g0"]
# Only if supported (gcc, not clang): a loop that copies a row is faster than a call of memcpy,
# because rows are short.
COPY_FLAGS = ["-fno-tree-loop-distribute-patterns"]
SANITIZE = "-fsanitize=address,undefined -fno-omit-frame-pointer -g -O1".split()

# ISAS_<machine> and FLAGS_<instruction set>, which tests/c/Makefile reads too. The name of a file
# csrc/variants/<instruction set>_<type>.c selects its flags.
VARIANTS = {}
for line in Path("csrc/variants/flags.mk").read_text().splitlines():
    if line and not line.startswith("#"):
        name, words = line.split("=", 1)
        VARIANTS[name.strip()] = words.split()
MACHINES = [name.removeprefix("ISAS_") for name in VARIANTS if name.startswith("ISAS_")]

# Flags that enable OpenMP (of the compiler, of the linker), in order of preference.
OPENMP = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
EMPTY_PROGRAM = "int main(void) { return 0; }\n"
FOR_MACHINE = "#ifndef __{}__\n#error\n#endif\n"
# gcc does not align the stack to wide vectors on Windows (GCC's bug 54412)
WIDE_VECTORS_PROGRAM = f"""#if defined(__MINGW32__) && !defined(__clang__)
#error
#endif
{EMPTY_PROGRAM}"""
OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    """build_ext with flags per file, parallel compilation, and OpenMP if available."""

    def build_extension(self, ext):
        self.check_compiler()
        compile_args, link_args = self.openmp()
        ext.extra_compile_args = C_FLAGS + compile_args
        if self.builds(EMPTY_PROGRAM, ["-Werror", *COPY_FLAGS]):
            ext.extra_compile_args += COPY_FLAGS
        ext.extra_link_args = list(link_args)
        if os.environ.get("REFORMER_C_SANITIZE", "0") != "0":
            ext.extra_compile_args += SANITIZE
            ext.extra_link_args += SANITIZE[:1]
        elif "-g" not in os.environ.get("CFLAGS", "").split():
            ext.extra_compile_args += RELEASE_FLAGS

        # the variants take longest, so they are compiled first
        sources = self.variants() | {source: [] for source in ext.sources}
        ext.sources = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(lambda file: self.compile(ext, *file), sources.items()):
                ext.extra_objects = ext.extra_objects + objects
        super().build_extension(ext)

    def variants(self):
        """The files of csrc/variants for the machine that is compiled for: their flags.

        For macOS one object may hold code for two machines (universal2, ARCHFLAGS). The files of
        an instruction set are then compiled for its machine alone; linking for the other leaves
        them out. -Xarch_<machine> limits a flag in the same way.
        """
        words = getattr(self.compiler, "compiler_so", [])
        names = [name for word, name in pairwise(words) if word == "-arch"]
        targets = [(["-arch", name], [f"-Xarch_{name}"]) for name in dict.fromkeys(names)]
        files, select = {}, []
        for only, limit in targets if len(targets) > 1 else [([], [])]:
            for isa in self.isas(only):
                flags = only + VARIANTS.get(f"FLAGS_{isa}", [])
                if isa == "base":
                    flags = []
                elif not self.builds(WIDE_VECTORS_PROGRAM, flags, only):
                    continue  # omitted, as the compiler does not support it
                select += [*limit, f"-DRF_HAVE_{isa.upper()}"]
                files |= dict.fromkeys(sorted(glob(f"csrc/variants/{isa}_f[36]*.c")), flags)
        return files | {"csrc/variants/select.c": select}

    def isas(self, only):
        """The instruction sets of the compiler's machine; platform.machine() is where it runs."""
        for machine in MACHINES:
            if self.builds(FOR_MACHINE.format(machine) + EMPTY_PROGRAM, only, only):
                return VARIANTS[f"ISAS_{machine}"]
        return ["base"]

    def compile(self, ext, source, flags):
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            include_dirs=ext.include_dirs,
            depends=ext.depends,
            extra_postargs=self.spelled(ext.extra_compile_args + flags),
        )

    def check_compiler(self):
        """Raise CompileError if the compiler cannot build the extension."""
        if self.is_msvc():
            self.use_clang_cl()
        if not self.builds(EMPTY_PROGRAM, []):
            raise CompileError(
                "reformer_c: no working C compiler: install gcc or clang (Debian, Ubuntu: apt "
                "install build-essential; macOS: xcode-select --install), or name one in CC"
            )

    def is_msvc(self):
        return self.compiler.compiler_type == "msvc"

    def use_clang_cl(self):
        """Compile with clang-cl, whose command line is that of cl, Microsoft's own compiler."""
        folders = [os.environ.get("PATH", ""), os.path.expandvars(r"%ProgramFiles%\LLVM\bin")]
        name = os.environ.get("CC", "clang-cl")
        found = shutil.which(name, path=os.pathsep.join(folders))
        if not found or "clang-cl" not in Path(found).name.lower():
            raise CompileError(
                "reformer_c: MSVC's own compiler lacks the vector extensions used by the kernels: "
                "install clang-cl, which comes with LLVM and with Visual Studio's component "
                '"C++ Clang Compiler for Windows", and put it into PATH or name it in CC, '
                f"got {name}"
            )
        if not self.compiler.initialized:
            self.compiler.initialize()
        self.compiler.cc = found
        # optimising when linking is cl's
        self.compiler.compile_options = [x for x in self.compiler.compile_options if x != "/GL"]

    def spelled(self, flags):
        """Flags as the compiler takes them: clang-cl hands on those behind /clang:."""
        return [f"/clang:{flag}" for flag in flags] if self.is_msvc() else list(flags)

    def builds(self, program, compile_args, link_args=()):
        """Whether a program compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "program.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=self.spelled(compile_args)
                )
                self.compiler.link_executable(
                    objects, "program", output_dir=folder, extra_postargs=list(link_args)
                )
            except (CompileError, LinkError):
                return False
        return True

    def openmp(self):
        """The first OpenMP flags with which a program compiles and links, or flags without it."""
        # LLVM's OpenMP ends a process that has another one, as PyTorch's for Windows is
        wanted = os.environ.get("REFORMER_C_OPENMP", "1") != "0" and not self.is_msvc()
        for compile_args, link_args in OPENMP if wanted else []:
            if self.builds(OPENMP_PROGRAM, compile_args, link_args):
                return compile_args, link_args
        if wanted:
            print("reformer_c: no OpenMP found, operations will use one thread", file=sys.stderr)
        return ["-fopenmp-simd", "-Wno-unused-variable"], []  # the numbers of threads are unused


def index_page():
    """README.md as a package index can show it: without the pictures and pages of this folder."""
    text = Path("README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https?:|#)[^)\s]*\)"
    text = re.sub(rf"!\[([^\]]*){relative}", r"*\1*", text)
    return re.sub(rf"\[([^\]]*){relative}", r"\1", text)


setup(
    long_description=index_page(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "reformer_c._core",
            sources=sorted(glob("csrc/module/*.c")),
            depends=sorted(glob("csrc/**/*.[ch]", recursive=True)),
            include_dirs=[np.get_include()],
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
                ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
            ],
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
