"""What pyproject.toml cannot say: the repository root is the package ``syncflow``, and CMake builds its native part.

Set ``SYNCFLOW_NATIVE=0`` to install without the native part. Without CMake or a C++20 compiler the install succeeds all
the same and numpy does that work.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
PACKAGES = ("cli", "engine", "kernels", "export", "training", "benchmarks")


class CMakeBuild(build_ext):
    """Builds the extension with CMake; a failure leaves it out, as ``optional=True`` asks."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(work, ignore_errors=True)
        output.unlink(missing_ok=True)
        try:
            import pybind11

            configure = [
                *("cmake", "-S", str(ROOT), "-B", str(work)),
                "-DCMAKE_BUILD_TYPE=Release",
                "-DSYNCFLOW_PYTHON=ON",
                "-DSYNCFLOW_LIBRARY=OFF",
                "-DSYNCFLOW_TESTS=OFF",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output.parent}",
            ]
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(work), "--parallel", str(os.cpu_count() or 1)], check=True)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native part did not build: {error}") from error


SUBPACKAGES = [
    f"syncflow.{name}" for package in PACKAGES for name in find_packages(str(ROOT), include=[package, f"{package}.*"])
]
NATIVE = Extension("syncflow._native", sources=[], optional=True)

setup(
    script_name="setup.py",  # what build_py leaves out of the package; build front ends start under other names
    packages=["syncflow", *SUBPACKAGES],
    package_dir={"syncflow": "."},
    package_data={
        "syncflow": ["py.typed"],
        "syncflow.engine": ["pretrained/**/*"],
        "syncflow.engine.serving": ["static/**/*"],
        "syncflow.kernels": ["**/*.json"],
        "syncflow.training.evaluation": ["page.html"],
    },
    ext_modules=[] if os.environ.get("SYNCFLOW_NATIVE") == "0" else [NATIVE],
    cmdclass={"build_ext": CMakeBuild},
)
