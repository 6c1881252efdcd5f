"""The native part: the same bits as numpy, its own tests, and what the engine says when it is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import syncflow
from syncflow.engine.sampling.noise import numpy_normal, philox4x32

pytestmark = pytest.mark.slow

ROOT = Path(syncflow.__file__).parent
MODEL = ROOT / "engine/pretrained/syncflow-tiny"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
STATUS = "from syncflow.engine.sampling.noise import native_status, normal; print(native_status()); normal(1, 0, 5)"

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("syncflow._native") is None, reason="the native part is not built here"
)
needs_toolchain = pytest.mark.skipif(
    not (shutil.which("cmake") and COMPILER and (ROOT / "CMakeLists.txt").exists()),
    reason="needs the sources, CMake and a C++ compiler",
)

CONSUMER_BUILD = """
cmake_minimum_required(VERSION 3.21)
project(consumer LANGUAGES CXX)
find_package(syncflow REQUIRED)
add_executable(consumer consumer.cpp)
target_link_libraries(consumer PRIVATE syncflow::noise syncflow::cpu)
"""

CONSUMER = """
#include <cstdio>

#include "syncflow/blocks.h"
#include "syncflow/layers.h"
#include "syncflow/noise.h"

int main() {
    float noise = 0;
    syncflow::fill_normal({7, 1, 0}, 0, &noise, 1);
    std::printf("%.9g %s\\n", noise, syncflow::instructions());
}
"""

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


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Where the library is installed, from the folder of `make test`, which has built all of it."""
    path = tmp_path_factory.mktemp("prefix")
    _run("cmake", "--preset", "release")
    _run("cmake", "--build", "--preset", "release")
    _run("cmake", "--install", "build/tests", "--prefix", str(path))
    return path


def _run(*command: str) -> None:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def _build(source: Path, build: Path, prefix: Path) -> None:
    _run("cmake", "-S", str(source), "-B", str(build), f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", str(build))


@needs_toolchain
def test_a_program_finds_the_installed_library(tmp_path, prefix):
    source, build = tmp_path / "source", tmp_path / "build"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER_BUILD)
    (source / "consumer.cpp").write_text(CONSUMER)
    _build(source, build, prefix)
    run = subprocess.run([str(build / "consumer")], capture_output=True, text=True, check=True)
    noise, instructions = run.stdout.split()
    assert np.float32(noise) == numpy_normal(7, 1, 0, 0, 1)[0]
    assert instructions in ("baseline", "x86-64-v3", "x86-64-v4")


@needs_toolchain
def test_the_http_service_generates_clips(tmp_path, prefix):
    _build(ROOT / "csrc/examples/http_service", tmp_path, prefix)
    program = tmp_path / "http_service"
    if not program.exists():
        pytest.skip("needs cpp-httplib")
    with subprocess.Popen([str(program), str(MODEL), "0"], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            address = service.stdout.readline().strip()
            _use(address)
        finally:
            service.kill()


def _use(address: str) -> None:
    def ask(method: str, path: str, **form: object) -> tuple[int, bytes]:
        data = urlencode(form).encode() if form else None
        try:
            with urlopen(UrlRequest(address + path, data=data, method=method), timeout=60) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    status, location = ask("POST", "/clips", prompt="a ball bounces", seed=7, steps=3)
    assert status == 202
    clip = location.decode().strip()
    deadline = time.monotonic() + 60
    while (state := json.loads(ask("GET", clip)[1]))["state"] != "finished":
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    assert state["status"] == "SYNCFLOW_OK"
    status, sound = ask("GET", f"{clip}/clip.wav")
    assert status == 200 and sound[:4] == b"RIFF" and len(sound) == 44 + 2 * 96_000
    assert ask("POST", "/clips", prompt="a ball", steps="many")[0] == 422
    assert ask("GET", "/clips/99")[0] == 404

    running = ask("POST", "/clips", prompt="a ball bounces", steps=1000)[1].decode().strip()
    assert ask("GET", f"{running}/clip.wav")[0] == 409
    assert ask("DELETE", running)[0] == 204
    assert ask("GET", running)[0] == 404
