"""Performance regression gate: two ratios, measured within one process at every instruction level of this machine.

They show a kernel that compiles to slow code at one level and a bad choice of the runtime, on machines of any speed:
the rate of the linear kernel over that of a loop of multiply-adds, and the time of a step in plain PyTorch over that in
the chosen runtime. Noise only lowers them, so the best of a few tries counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from syncflow.engine.engine import Engine, workload
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.timing import measure
from syncflow.kernels import native

LEAST_LINEAR = 0.5  # of the rate of multiply-adds alone
LEAST_STEP = 0.95  # times as fast as plain PyTorch; runtimes within 5 % count as equally fast
TRIES = 5
SHAPE = (256, 128, 512)  # rows, inputs and outputs of the linear layer: those of an MLP of the bundled model
LINEAR_ROUNDS = 200


@dataclass(frozen=True)
class Check:
    """A ratio that must reach ``least``; the best of ``tries``. ``detail`` says what was measured."""

    instructions: str
    name: str
    ratio: float
    least: float
    tries: int
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the ratio is large enough."""
        return self.ratio >= self.least

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"passed": self.passed}


def best_of(tries: int, least: float, ratio: Callable[[], float]) -> tuple[float, int]:
    """The largest of up to ``tries`` ratios, and the number of tries; stops once a ratio reaches ``least``."""
    best, count = 0.0, 0
    while count < tries and best < least:
        best, count = max(best, ratio()), count + 1
    return best, count


def check_linear(tries: int = TRIES) -> Check:
    """The linear kernel on one thread against a loop of multiply-adds. Raises ``ValueError`` without the C++ part."""
    extension = native.EXTENSION
    if extension is None:
        raise ValueError("the gate needs the C++ part, which was not built or is switched off by SYNCFLOW_NATIVE=0")
    rows, inputs, outputs = SHAPE
    x, weight, bias, y = (torch.randn(size) for size in ((rows, inputs), (outputs, inputs), outputs, (rows, outputs)))
    packed = torch.empty(extension.packed_size(outputs, inputs))
    extension.pack(weight, packed)

    def ratio() -> float:
        peak, seconds = 0.0, float("inf")
        for _ in range(4):
            peak = max(peak, extension.multiply_add_rate(0.01))
            for _ in range(LINEAR_ROUNDS // 4):
                began = time.perf_counter()
                extension.linear(x, packed, bias, y, False, 1)
                seconds = min(seconds, time.perf_counter() - began)
        return rows * inputs * outputs / seconds / peak

    best, count = best_of(tries, LEAST_LINEAR, ratio)
    detail = f"linear layer {rows} x {inputs} -> {outputs}, of the rate of multiply-adds"
    return Check(str(native.instructions()), "linear", best, LEAST_LINEAR, count, detail)


def check_step(tries: int = TRIES) -> Check:
    """A step in the runtime that ``auto`` takes against one in plain PyTorch."""
    engine = Engine.from_pretrained(device="cpu", runtime="torch-plain")
    model, task = engine.components.ddit, workload(engine.config.sequence)
    chosen = choose("auto", model, engine.export_locations, "float32", task, renew=True)
    plain, own = task.start(engine.denoiser), task.start(chosen.denoiser)

    def ratio() -> float:
        if chosen.runtime == "torch-plain":
            return 1.0
        seconds = measure({"plain": plain, "own": own})
        return seconds["plain"] / seconds["own"]

    best, count = best_of(tries, LEAST_STEP, ratio)
    detail = f"a step in {chosen.runtime}, times as fast as in plain PyTorch"
    return Check(str(native.instructions()), "step", best, LEAST_STEP, count, detail)


def check_level() -> list[Check]:
    """All checks, at the instruction level of this process."""
    return [check_linear(), check_step()]


def check_all_levels() -> list[Check]:
    """All checks at every level of this machine, each level in a new process with an empty cache."""
    if native.EXTENSION is None:
        check_linear()
    checks: list[Check] = []
    for level in native.EXTENSION.instruction_levels():
        with tempfile.TemporaryDirectory(prefix="syncflow-") as cache:
            command = [sys.executable, "-m", "syncflow", "bench", "gate", "--instructions", level, "--json"]
            environment = os.environ | {"SYNCFLOW_CACHE": cache, "SYNCFLOW_CALIBRATION": "on"}
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if not ran.stdout.strip():
            raise ValueError(f"the gate at {level} failed with exit code {ran.returncode}")
        for found in json.loads(ran.stdout)["checks"]:
            found.pop("passed")
            checks.append(Check(**found))
    return checks


def table(checks: list[Check]) -> str:
    """Checks as a Markdown table."""
    lines = ["| level | check | ratio | least | | what |", "|---|---|--:|--:|---|---|"]
    for one in checks:
        verdict = "passes" if one.passed else "FAILS"
        lines.append(
            f"| {one.instructions} | {one.name} | {one.ratio:.2f} | {one.least:g} | {verdict} | {one.detail} |"
        )
    return "\n".join(lines)
