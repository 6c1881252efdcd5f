"""The whole process, as a user starts it: ``syncflow generate`` from the shell to the file, and ``import syncflow``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.engine.media import load_clip

CHILD = Path(__file__).with_name("child.py")
SYNCFLOW = (sys.executable, "-m", "syncflow")
PROMPT = "a large red rubber ball bounces on a wooden floor"


def in_child(*command: str) -> dict[str, Any]:
    """Wall time and peak memory of a command that must succeed."""
    outer = subprocess.run(
        (sys.executable, "-S", "-E", str(CHILD), *command), capture_output=True, text=True, check=True
    )
    usage = json.loads(outer.stdout)
    assert usage["code"] == 0, outer.stderr
    return usage


def test_generate(measured: BenchmarkFixture, model_folder: Path, tmp_path: Path) -> None:
    """2 s at 64x64, 50 steps, guidance 6: from the start of the process to the file."""
    clip = tmp_path / "clip.mp4"
    settings = ("--steps", "50", "--cfg", "6", "--seconds", "2", "--size", "64x64", "--seed", "7")
    command = (*SYNCFLOW, "generate", PROMPT, "-o", str(clip), "--model", str(model_folder), *settings)
    usages = [in_child(*command)]
    made = load_clip(clip)
    assert made.frames.shape == (32, 64, 64, 3)
    assert made.waveform.shape == (96_000,)
    assert made.provenance["steps"] == 50
    measured.pedantic(lambda: usages.append(in_child(*command)), rounds=3)
    measured.extra_info["peak_gb"] = round(max(usage["peak_bytes"] for usage in usages) / 1e9, 3)


def test_import(measured: BenchmarkFixture) -> None:
    """``import syncflow`` in a fresh interpreter; every round follows one of an interpreter that does nothing."""
    bare: list[float] = []

    def bare_interpreter() -> None:
        began = time.perf_counter()
        subprocess.run((sys.executable, "-c", "pass"), check=True)
        bare.append(time.perf_counter() - began)

    check = "import sys, syncflow; assert 'torch' not in sys.modules; print(syncflow.__version__)"
    assert subprocess.run((sys.executable, "-c", check), capture_output=True, text=True, check=True).stdout.strip()
    command = (sys.executable, "-c", "import syncflow")
    measured.pedantic(subprocess.run, args=(command,), kwargs={"check": True}, setup=bare_interpreter, rounds=15)
    measured.extra_info["bare_interpreter_s"] = round(statistics.median(bare), 4)
