"""What the machine is, what its GPU can do at most, and the kernels compiled for it ahead of their first call."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import torch

from ...kernels.launch.aot import SHARED_LIMIT
from ..kernels import compiled, harness
from ..kernels.cases import Case, cases, micro_cases, odd_cases
from ..kernels.harness import Roofline
from .stages import PLANTED, Item, Run

SMOKE_ARCH = "sm_90"


def setup(run: Run) -> Iterator[Item]:
    """The machine and its libraries; a smoke run then kills its own process, which must cost this item alone."""
    yield Item("machine", lambda: describe(run))
    if run.smoke:
        yield Item(PLANTED, planted_kill)


def planted_kill() -> dict[str, Any]:
    """Die with a child in a session of its own left behind, as a compiler's may be."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def compile_first(run: Run) -> Iterator[Item]:
    """The kernels in bfloat16 at the sizes of the presets, which all stages before the rest launch."""
    if run.smoke:
        yield Item("bfloat16", compile_one_kernel)
    else:
        yield Item("bfloat16", partial(compile_kernels, cases(scales=(1,)), ["bfloat16"]))


def compile_rest(run: Run) -> Iterator[Item]:
    """Twice the side, the other types, and odd shapes in every type."""
    if run.smoke:  # the first stage has shown that kernels compile
        return
    yield Item("bfloat16, twice the side and odd", partial(compile_kernels, [*cases(), *odd_cases()], ["bfloat16"]))
    rest = [*cases(batches=(1,)), *odd_cases()]
    yield Item("float16, float32", partial(compile_kernels, rest, ["float16", "float32"]))


def roofline(run: Run) -> Iterator[Item]:
    """Copy bandwidth and the rates of matrix products."""
    yield Item("roofline", lambda: asdict(harness.measure_roofline(run.device, *((1 << 16, 32) if run.smoke else ()))))


def roofline_of(run: Run) -> Roofline | None:
    """What the roofline stage found."""
    found = run.found.get("roofline", {}).get("roofline")
    return None if found is None else Roofline(**found)


def describe(run: Run) -> dict[str, Any]:
    """Names and versions."""
    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    for name in ("triton", "numpy", "xformers", "liger_kernel"):
        try:
            about[name] = import_module(name).__version__
        except (ImportError, AttributeError):
            about[name] = None
    if run.device == "cuda":
        device = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": device.name,
            "capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_gb": round(device.total_memory / 1e9, 1),
            "l2_mb": round(device.L2_cache_size / 1e6, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        }
    return about


def architecture() -> str:
    """Of the GPU that is present: ``sm_90``."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def compile_one_kernel() -> dict[str, Any]:
    """The smallest kernel, in a process of its own: this one interprets its kernels."""
    before = os.environ["TRITON_INTERPRET"]
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_compile_micro).result()
    finally:
        os.environ["TRITON_INTERPRET"] = before


def _compile_micro() -> dict[str, Any]:
    tasks = compiled.tasks_of(SMOKE_ARCH, micro_cases(["gated_residual"])[:1], ["bfloat16"])
    row = compiled.compile_one(tasks[0])
    return {"arch": SMOKE_ARCH, "kernels": 1, "faults": [fault] if (fault := row.fault(SMOKE_ARCH)) else []}


def compile_kernels(chosen: Sequence[Case], dtypes: Sequence[str]) -> dict[str, Any]:
    """On all cores, into Triton's cache, with the figures of the compiler that this machine has."""
    arch = architecture()
    if arch not in SHARED_LIMIT:
        return {
            "arch": arch,
            "note": "no figures for this architecture; kernels are compiled when they are first called",
        }
    rows = compiled.compile_all(compiled.tasks_of(arch, chosen, dtypes))
    faults = [fault for row in rows if (fault := row.fault(arch)) is not None]
    return {"arch": arch, "kernels": len(rows), "faults": faults, "rows": [row.to_dict() for row in rows]}


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
