"""Builds dcn's CPU kernels; everything else about the package is in pyproject.toml.

They are a plain library, which `dcn` loads with ctypes: one wheel serves every Python.
"""

import hashlib
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("dcn/csrc")
SOURCES = sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cpp")])
X86_64 = platform.machine().lower() in ("x86_64", "amd64")

# Each instruction set is compiled apart, and picked at run time.
FLAGS = {"baseline.cpp": []}
if X86_64:
    FLAGS["avx2.cpp"] = ["-mavx2", "-mfma"]
    FLAGS["avx512.cpp"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ]


def fingerprint() -> str:
    """Of the sources, so that `dcn` can tell kernels that were built from others."""
    digest = hashlib.sha256()
    for file in SOURCES:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class BuildKernels(build_ext):
    """Gives each file the flags of its instruction set, and the library a name without Python's."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        self.force = True  # times of files do not tell whether the flags are the same
        compile_file = self.compiler._compile

        def with_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):
            flags = [*extra_postargs, *FLAGS.get(Path(src).name, [])]
            compile_file(obj, src, ext, cc_args, flags, pp_opts)

        self.compiler._compile = with_flags
        compile_files = self.compiler.compile

        def at_once(sources, **settings):
            with ThreadPoolExecutor() as pool:
                parts = pool.map(lambda source: compile_files([source], **settings), sources)
                return [name for part in parts for name in part]

        self.compiler.compile = at_once
        super().build_extension(ext)


class Wheel(bdist_wheel):
    """For any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "dcn._kernels",
            sources=[str(CSRC / name) for name in ["entry.cpp", *FLAGS]],
            depends=[str(file) for file in SOURCES],  # a source distribution has them all
            define_macros=[("DCN_SOURCES", f'"{fingerprint()}"')],
            extra_compile_args=[
                *("-std=c++17", "-O3", "-fopenmp", "-ffp-contract=fast"),
                *("-fvisibility=hidden", "-Wall", "-Wextra"),
            ],
            extra_link_args=["-fopenmp"],
            # Without a compiler dcn runs in plain PyTorch, and says so when it is imported.
            optional="DCN_REQUIRE_KERNELS" not in os.environ,
        )
    ],
)
