"""The native part: the same bits as numpy, its own tests, and what the engine says when it is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.sampling.noise import numpy_normal, philox4x32

from .parity import ROOT, built

pytestmark = pytest.mark.slow

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
CONSUMER = built("installed/consumer/consumer")
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


@pytest.mark.skipif(CONSUMER is None, reason="the consumer is not built; `make native-test` builds it")
def test_a_program_uses_the_installed_library():
    """A project of its own that finds the package with CMake and links the noise and the kernels alone."""
    run = subprocess.run([CONSUMER], capture_output=True, text=True, check=True)
    noise, instructions = run.stdout.split()
    assert np.float32(noise) == numpy_normal(7, 1, 0, 0, 1)[0]
    assert instructions in ("baseline", "x86-64-v3", "x86-64-v4")
