"""The compiled loops: one extension for each instruction set. Where none can be built, the package is pure Python."""

from __future__ import annotations

import copy
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path(__file__).resolve().parent / "csrc"
SOURCES = sorted(f"csrc/{path.name}" for path in FOLDER.glob("*.cpp"))
HEADERS = sorted(f"csrc/{path.name}" for path in FOLDER.glob("*.h"))
# -O3 takes a third longer to compile: it is for what most machines run
# multiplications and additions may be fused, but nothing may assume that values are finite
FLAGS = ["-std=c++17", "-O2", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
INSTRUCTIONS = {
    "x86_64": {
        "baseline": [],
        "avx2": ["-O3", "-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
    },
    "other": {"baseline": ["-O3"]},  # on arm64 the baseline has NEON
}
MACHINE = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
WANTED = os.environ.get("EVERYPOOL_BUILD", "all")  # "all", "none", or instruction sets with commas between
EXTRA = os.environ.get("EVERYPOOL_BUILD_FLAGS", "").split()  # such as -fsanitize=address


class Build(build_ext):
    """The same sources for every instruction set: each in a folder of its own, at the same time."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, extension: Extension) -> None:
        own = copy.copy(self)  # others build at the same time
        own.build_temp = str(Path(self.build_temp) / extension.name)
        super(Build, own).build_extension(extension)


def extensions() -> list[Extension]:
    sets = INSTRUCTIONS.get(MACHINE, INSTRUCTIONS["other"])
    names = [] if WANTED == "none" or sys.platform == "win32" else list(sets) if WANTED == "all" else WANTED.split(",")
    return [
        Extension(
            f"everypool._cpu_{name}",
            SOURCES,
            depends=HEADERS,
            define_macros=[("EP_MODULE", f"_cpu_{name}")],
            extra_compile_args=FLAGS + sets[name] + EXTRA,
            extra_link_args=EXTRA or ["-s"],
            py_limited_api=True,
            language="c++",
            optional=True,  # without a compiler everything works, slower
        )
        for name in names
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
