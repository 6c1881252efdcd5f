"""``syncflow bench kernels``: every kernel compiled for a GPU that is not there, and held to what it may take of it.

The shapes of both presets for one clip in bfloat16, and those of full size in the other types, which share the code.
The command itself takes all shapes in all types by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from syncflow import kernels
from syncflow.kernels.launch.aot import SHARED_LIMIT
from syncflow.kernels.launch.language import INSTALLED

NAMES = {name for name in kernels.__all__ if hasattr(getattr(kernels, name), "plan_launches")}
PRODUCTS = {name for name in NAMES if "attention" in name or "linear" in name}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="compiling kernels needs triton")]

# A process that runs commands one after the other, since importing what they need takes longer than most of them.
COMMANDS = """
import contextlib, io, json, os, sys
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
from syncflow.cli import main
for line in sys.stdin:
    sys.argv = ["syncflow", "bench", "kernels", *json.loads(line)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers)
"""


@dataclass(frozen=True)
class Done:
    """What a command said."""

    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def kernels_command() -> Iterator[Command]:
    """The command, in an environment that asks for an interpreter, which it must not use."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMMANDS]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def call(*arguments: str, code: int = 0) -> Done:
            print(json.dumps([*arguments, "--jobs", "1"]), file=process.stdin, flush=True)
            found, out, err = json.loads(process.stdout.readline())
            assert found == code, out + err
            return Done(out, err)

        yield call
        process.stdin.close()


def mistake(done: Done) -> str:
    """The one line that the command says, beside what libraries warn of."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("syncflow: ") and "warning:" not in line]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def of_hopper(kernels_command):
    """All kernels for one clip in bfloat16, for Hopper, and the predicted steps."""
    only = ("--dtype", "bfloat16", "--batch", "1")
    report = json.loads(kernels_command("--aot", "sm_90", *only, "--json").stdout)
    assert report["arch"] == "sm_90"
    return report


@pytest.fixture(scope="module")
def hopper(kernels_command, of_hopper):
    """The rows of the kernels, those of other types among them."""
    others = ("--dtype", "float16", "--dtype", "float32", "--preset", "syncflow-xl", "--batch", "1")
    report = json.loads(kernels_command("--aot", "sm_90", *others, "--json").stdout)
    assert report["steps"] == []
    return of_hopper["rows"] + report["rows"]


def test_every_operation_compiles_in_every_type(hopper):
    assert {(row["operation"], row["dtype"]) for row in hopper} == {
        (name, dtype) for name in NAMES for dtype in ("bfloat16", "float16", "float32")
    }
    assert not [row["error"] for row in hopper if row["error"]]
    for name in NAMES:
        named = [row for row in hopper if row["operation"] == name and row["dtype"] == "bfloat16"]
        covered = {case for row in named for case in row["cases"]}
        assert all({"xl", "tiny"} & set(case.split()) for case in covered)
        assert {preset for preset in ("xl", "tiny") for case in covered if preset in case.split()} == {"xl", "tiny"}


def test_nothing_spills_on_hopper(hopper):
    assert not [row for row in hopper if row["spills"]]
    assert not [row for row in hopper if not 0 < row["registers"] <= 255]
    assert not [row for row in hopper if row["shared_bytes"] > SHARED_LIMIT["sm_90"]]


def test_matrix_products_are_not_serialised_on_hopper(hopper):
    assert not [row for row in hopper if row["serialised"]]
    attentions = [row for row in hopper if "attention" in row["operation"]]
    waits = [(row["kernel"], row["waits_per_loop"]) for row in attentions if row["dtype"] != "float32"]
    assert max(count for _, count in waits) <= 3
    assert max(row["waits_per_loop"] for row in attentions) <= 12
    loops = {"flash_attention_kernel", "text_cross_attention_kernel", "rope_cross_attention_kernel"}
    assert {kernel for kernel, count in waits if count} == loops


def test_no_index_overflows_on_hopper(hopper):
    assert not [row["overflows"] for row in hopper if row["overflows"]]


def test_predicted_times_are_above_the_bound(hopper):
    assert all(row["predicted_us"] >= row["bound_us"] > 0 for row in hopper)


def test_the_predicted_step_lists_its_parts(of_hopper):
    plain, fp8 = of_hopper["steps"]
    assert not plain["fp8"] and fp8["fp8"] and fp8["predicted_ms"] < plain["predicted_ms"]
    assert plain["preset"] == "syncflow-xl" and plain["batch"] == 1
    assert sum(plain["parts_ms"].values()) == pytest.approx(plain["predicted_ms"], abs=0.02)
    assert plain["overlapped_ms"] <= 26 < 30 > plain["predicted_ms"]
    operations = {call["operation"] for call in plain["calls"]}
    assert {"linear", "linear_gelu", "gated_linear", "guided_euler_step", "gated_residual_norm"} <= operations
    assert {name for name in operations if "attention" in name} == {name for name in NAMES if "attention" in name}


def test_products_are_on_the_tensor_cores(hopper):
    with_products = [row for row in hopper if row["kernel"] not in ("rotate_keys_kernel", "combine_parts_kernel")]
    assert {row["operation"] for row in with_products if row["tensor_core"] == "wgmma"} == PRODUCTS
    assert not [row for row in with_products if row["operation"] in PRODUCTS and row["tensor_core"] != "wgmma"]


def test_loads_are_wide(hopper):
    rows = [row for row in hopper if row["dtype"] == "bfloat16" and any(" xl " in case for case in row["cases"])]
    assert {row["operation"] for row in rows} == NAMES
    assert not [row for row in rows if row["load_bytes"] != 16]


def test_blackwell_compiles(kernels_command):
    done = kernels_command(
        "--aot", "sm_100", "--dtype", "bfloat16", "--preset", "syncflow-xl", "--batch", "1", "--json"
    )
    rows = json.loads(done.stdout)["rows"]
    assert {row["operation"] for row in rows} == NAMES
    assert "tcgen05" in {row["tensor_core"] for row in rows}


def test_table(kernels_command):
    done = kernels_command(
        "--aot", "sm_90", "--operation", "gated_residual", "--preset", "syncflow-tiny", "--dtype", "float32"
    )
    head, _, *rows = done.stdout.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][:3] == ["kernel", "shape", "dtype"]
    assert rows and all("gated_residual" in row and "float32" in row for row in rows)
    assert "%|" not in done.stderr  # no progress bar where nobody looks


def test_a_kernel_that_spills_is_refused(kernels_command):
    only = ("--operation", "spatial_attention", "--preset", "syncflow-xl", "--dtype", "bfloat16")
    done = kernels_command("--aot", "sm_90", *only, "--tiles", "spatial_attention:BLOCK_K=32,num_warps=1", code=1)
    assert "spatial_attention" in done.stdout
    assert "spills" in mistake(done)


def test_a_kernel_that_needs_too_much_shared_memory_is_refused(kernels_command):
    only = ("--operation", "spatial_attention", "--preset", "syncflow-xl", "--dtype", "float16")
    done = kernels_command("--aot", "sm_90", *only, "--tiles", "spatial_attention:num_stages=12", code=1)
    assert "shared memory" in mistake(done)


def test_a_kernel_that_does_not_compile_is_named(kernels_command):
    only = ("--operation", "spatial_attention", "--preset", "syncflow-xl", "--dtype", "float16")
    done = kernels_command("--aot", "sm_90", *only, "--tiles", "spatial_attention:BLOCK_K=24", code=1)
    assert "does not compile" in mistake(done)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_timing_needs_a_gpu(kernels_command):
    line = mistake(kernels_command(code=2))
    assert "GPU" in line and "--aot" in line


def test_a_mistake_is_one_line(run, monkeypatch):
    """In this process, whose environment the command would change."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))
    for arguments, word in (
        (("--aot", "sm_91"), "sm_91"),
        (("--aot", "sm_90", "--dtype", "int4"), "int4"),
        (("--aot", "sm_90", "--preset", "huge"), "huge"),
        (("--aot", "sm_90", "--operation", "softmax"), "softmax"),
        (("--aot", "sm_90", "--tiles", "spatial_attention"), "NAME=VALUE"),
    ):
        code, out, err = run("bench", "kernels", *arguments)
        assert code == 2 and not out
        assert len(err.splitlines()) == 1 and err.startswith("syncflow: ") and word in err


LAUNCHED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class Hopper:
    utils = type("Utils", (), {"get_device_properties": lambda self, _: {"max_shared_mem": 232448}})()
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, _: 0

driver.set_active(Hopper())
from syncflow.benchmarks.kernels.cases import cases
from syncflow.kernels.launch.aot import compile_launch

for case in cases(presets=("syncflow-tiny",), batches=(1, 4), scales=(1,)):
    for launch in case.launches(torch.bfloat16):
        real = {k: torch.empty_like(v, device="cpu") if hasattr(v, "dtype") else v for k, v in launch.arguments.items()}
        launched = launch.kernel.warmup(**real, **launch.constants, **launch.tiles, grid=launch.grid)
        assert launched.hash == compile_launch(launch, "sm_90").hash, str(case)
        print(case.operation)
"""


def test_what_is_compiled_ahead_is_what_a_launch_looks_for():
    """The same types, constants and alignments, so the same machine code, found in the cache at the first call."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LAUNCHED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == NAMES
