"""What the machine is, what its GPU can do at most, and the kernels compiled for it ahead of their first call."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from ...kernels.launch.aot import SHARED_LIMIT
from ..kernels import compiled, harness
from ..kernels.cases import cases, odd_cases
from ..kernels.harness import Roofline
from .stages import Item, Run


def setup(run: Run) -> Iterator[Item]:
    """The machine and its libraries, then every kernel at the shapes of the presets."""
    yield Item("machine", lambda: describe(run))
    if not run.smoke:
        yield Item("compile", compile_kernels)


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
        }
    return about


def compile_kernels() -> dict[str, Any]:
    """On all cores, into Triton's cache, with the figures of the compiler that this machine has."""
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    if arch not in SHARED_LIMIT:
        return {
            "arch": arch,
            "note": "no figures for this architecture; kernels are compiled when they are first called",
        }
    rows = compiled.compile_all(compiled.tasks_of(arch, [*cases(), *odd_cases()]))
    faults = [fault for row in rows if (fault := row.fault(arch)) is not None]
    return {"arch": arch, "kernels": len(rows), "faults": faults, "rows": [row.to_dict() for row in rows]}


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
