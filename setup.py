"""The compiled parts. Everything else about the build stands in pyproject.toml; numpy's headers are why this file exists."""

import os
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# RINGMAIN_CFLAGS adds to every compile and link, for instance -fsanitize=address,undefined.
EXTRA = os.environ.get("RINGMAIN_CFLAGS", "").split()
STORAGE_HEADERS = sorted(glob("storage/*.hpp"))
BUS_HEADERS = sorted([*glob("bus/*.hpp"), "bus/core.pxd", *STORAGE_HEADERS])


def extension(name: str, headers: list[str]) -> Extension:
    return Extension(
        f"ringmain.{name}",
        [f"{name.replace('.', '/')}.pyx"],
        depends=headers,
        include_dirs=["bus", "storage", "subscribers", "tools/bench", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        # -g0: what Python itself was built with, mostly -g, would take a third of the time and nine tenths of the size.
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", *EXTRA],
        extra_link_args=EXTRA,
        language="c++",
    )


setup(
    ext_modules=cythonize(
        [
            extension("storage._log", STORAGE_HEADERS),
            extension("storage._tree", [*STORAGE_HEADERS, "storage/row_packer.pxi"]),
            extension("bus._segment", BUS_HEADERS),
            extension("bus._slots", BUS_HEADERS),
            extension("bus._publish", [*BUS_HEADERS, "storage/row_packer.pxi"]),
            extension("bus._read", BUS_HEADERS),
            extension("bus._journal", BUS_HEADERS),
            extension("subscribers._grouping", ["subscribers/grouping.hpp", "storage/key.hpp"]),
            extension("bus._lanes", BUS_HEADERS),
            extension("tools.bench._skip_list", ["tools/bench/skip_list.hpp"]),
        ],
        include_path=["bus", "storage"],  # where core.pxd and row_packer.pxi lie
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
