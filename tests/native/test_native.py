"""The native part: the same bits as numpy, its own tests, and what the engine says when it is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import syncflow
from syncflow.engine.sampling.noise import numpy_normal, philox4x32

ROOT = Path(syncflow.__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
STATUS = "from syncflow.engine.sampling.noise import native_status, normal; print(native_status()); normal(1, 0, 5)"

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("syncflow._native") is None, reason="the native part is not built here"
)
needs_toolchain = pytest.mark.skipif(
    not (shutil.which("cmake") and COMPILER and (ROOT / "CMakeLists.txt").exists()),
    reason="needs the sources, CMake and a C++ compiler",
)

SEEDS = st.integers(0, 2**64 - 1)
WORDS = st.integers(0, 2**32 - 1)


@needs_native
@given(SEEDS, WORDS, WORDS, st.integers(0, 2**64 - 2000), st.integers(0, 1000))
def test_noise_is_bit_equal(seed, stream, substream, offset, count):
    from syncflow import _native

    native = _native.normal(seed, stream, substream, offset, count)
    numpy = numpy_normal(seed, stream, substream, offset, count)
    assert native.dtype == numpy.dtype == np.float32
    assert native.tobytes() == numpy.tobytes()


@needs_native
def test_a_long_stream_is_bit_equal():
    from syncflow import _native

    assert _native.normal(11, 1, 0, 3, 2_000_003).tobytes() == numpy_normal(11, 1, 0, 3, 2_000_003).tobytes()


@needs_native
@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_is_bit_equal(counter, key):
    from syncflow import _native

    assert _native.philox4x32(counter, key) == philox4x32(counter, key).tolist()


def _status(environment: dict[str, str]) -> str:
    run = subprocess.run(
        [sys.executable, "-c", STATUS], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_status_says_that_the_native_part_is_switched_off():
    assert _status({"SYNCFLOW_NATIVE": "0"}) == "native part switched off: SYNCFLOW_NATIVE=0"


@needs_toolchain
def test_the_native_part_is_built_where_it_can_be():
    assert _status({"SYNCFLOW_NATIVE": "1"}) == "native part: built"


def test_status_says_what_is_missing():
    hide = "import sys; sys.modules['syncflow._native'] = None; "
    run = subprocess.run(
        [sys.executable, "-c", hide + STATUS],
        env=os.environ | {"SYNCFLOW_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("native part missing, numpy stands in with the same results; to build it, install")


@needs_toolchain
def test_the_library_builds_passes_its_tests_and_installs(tmp_path):
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), "-DSYNCFLOW_TESTS=ON", f"-DCMAKE_INSTALL_PREFIX={prefix}"],
        ["cmake", "--build", str(build)],
        ["ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error"],
        ["cmake", "--install", str(build)],
    ):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    assert (prefix / "include/syncflow/noise.h").is_file()
    assert list(prefix.glob("lib*/**/syncflowConfig.cmake"))
