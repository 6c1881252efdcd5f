"""Performance regression gate: ratios within one run, which hold on machines of any speed and under other load.

At every instruction level of this machine, in one process: the rate of the linear kernel over that of a loop of
multiply-adds, which shows a kernel that compiles to slow code at one level, and the time of a step in plain PyTorch
over that in the chosen runtime, which shows a bad choice. Noise only lowers them, so the best of a few tries counts.

Against another revision, in two processes: the ratio of the times of steps in alternation (``compare.py``). It fails
where the whole interval of 95 % confidence is below the least, and takes more rounds while it is not certain.

Why not instruction counts: counters of the processor are missing on many virtual machines, and a count does not show
what waits for memory or for a register that was spilled.
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
from functools import partial
from typing import Any

import torch

from syncflow.engine.engine import Engine, workload
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.timing import measure
from syncflow.kernels import native

from . import compare, instructions

LEAST_LINEAR = 0.5  # of the rate of multiply-adds alone
LEAST_STEP = 0.95  # times as fast as plain PyTorch; runtimes within 5 % count as equally fast
TRIES = 5
LEAST_REVISION = 0.95  # times as fast as the other revision
ROUNDS = 10  # to begin with
SLOW_STEP = 0.10  # share by which a planted step is slower
SLOW_CALLS = 2  # a planted kernel is called so often
# Rows, inputs and outputs of the linear layer: the second one of an MLP of the bundled model. Its sums are long, so
# that what follows them, which is not multiply-adds, counts little.
SHAPE = (256, 512, 128)
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


def check_linear(tries: int = TRIES, calls: int = 1) -> Check:
    """The linear kernel on one thread against a loop of multiply-adds. Raises ``ValueError`` without the C++ part.

    With ``calls`` above 1 it takes as many times as long, as a slow kernel would.
    """
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
                for _ in range(calls):
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


def check_revision(revision: str | None, slow_down: float = 0.0) -> list[Check]:
    """Steps of the working tree against those of a revision, or against its own.

    ``slow_down`` is a planted fault: the share by which every step of the working tree takes longer.
    """
    chosen = compare.workloads((1, 8), clip=False)
    found = compare.compare_revision(revision, chosen, ROUNDS, slow_down=slow_down, least=LEAST_REVISION)
    name = found["revision"][:12]
    return [
        Check(
            instructions=instructions.used(),
            name=row.workload,
            ratio=row.high,
            least=LEAST_REVISION,
            tries=row.rounds,
            detail=f"{row.ratio:.3f} times as fast as {name}, at most this with 95 % confidence",
        )
        for row in found["rows"]
    ]


def check_level(plant: bool = False) -> list[Check]:
    """The checks at the instruction level of this process; ``plant`` slows the kernel."""
    return [check_linear(calls=SLOW_CALLS if plant else 1), check_step()]


def check_all_levels(plant: str | None = None) -> list[Check]:
    """The checks at every level of this machine, each level in a new process with an empty cache.

    ``plant`` is the level at which the kernel is slowed. Raises ``ValueError`` for one that this machine has not.
    """
    if native.EXTENSION is None:
        check_linear()
    levels = native.EXTENSION.instruction_levels()
    if plant is not None and plant not in levels:
        raise ValueError(f"the level is {plant!r}; this machine has {', '.join(levels)}")
    checks: list[Check] = []
    for level in levels:
        with tempfile.TemporaryDirectory(prefix="syncflow-") as cache:
            command = [sys.executable, "-m", "syncflow", "bench", "gate", "--instructions", level, "--json"]
            command += ["--plant", level] if level == plant else []
            environment = os.environ | {"SYNCFLOW_CACHE": cache, "SYNCFLOW_CALIBRATION": "on"}
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if not ran.stdout.strip():
            raise ValueError(f"the gate at {level} failed with exit code {ran.returncode}")
        for found in json.loads(ran.stdout)["checks"]:
            found.pop("passed")
            checks.append(Check(**found))
    return checks


@dataclass(frozen=True)
class Demonstration:
    """How many of ``runs`` of the gate ``failed`` with what was ``planted``, and whether it should have."""

    planted: str
    runs: int
    failed: int
    expected: bool

    @property
    def holds(self) -> bool:
        """Whether every run failed, or none, as it should."""
        return self.failed == (self.runs if self.expected else 0)

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"holds": self.holds}


def demonstrate(runs: int, report: Callable[[str], object]) -> list[Demonstration]:
    """The gate with nothing planted ``runs`` times, with a slow step, and with a slow kernel at each level.

    Nothing planted means the working tree against itself. A kernel that is slow at one level must fail at that level
    alone. ``report`` is told what every run found.
    """

    def failed(planted: str, run: Callable[[], list[Check]], count: int = 1, level: str | None = None) -> int:
        found = 0
        for k in range(count):
            checks = run()
            faulty = {one.instructions for one in checks if not one.passed}
            found += bool(faulty) if level is None else faulty == {level}
            ratios = ", ".join(f"{one.instructions} {one.name} {one.ratio:.2f}" for one in checks)
            where = f"fails at {', '.join(sorted(faulty))}" if faulty else "passes"
            report(f"{planted}, run {k + 1} of {count} {where}: {ratios}")
        return found

    def whole() -> list[Check]:
        return check_all_levels() + check_revision(None)

    slow = f"a step that is {SLOW_STEP:.0%} slower"
    found = [
        Demonstration("nothing", runs, failed("nothing", whole, runs), False),
        Demonstration(slow, 1, failed(slow, lambda: check_revision(None, SLOW_STEP)), True),
    ]
    for level in native.EXTENSION.instruction_levels():
        name = f"a kernel that is {SLOW_CALLS} times as slow at {level}"
        count = failed(name, partial(check_all_levels, level), level=level)
        found.append(Demonstration(name, 1, count, True))
    return found


def demonstrations_table(found: list[Demonstration]) -> str:
    """Demonstrations as a Markdown table."""
    lines = ["| planted | runs | failed | |", "|---|--:|--:|---|"]
    for one in found:
        verdict = "as it should" if one.holds else "NOT as it should"
        lines.append(f"| {one.planted} | {one.runs} | {one.failed} | {verdict} |")
    return "\n".join(lines)


def table(checks: list[Check]) -> str:
    """Checks as a Markdown table."""
    lines = ["| level | check | ratio | least | | what |", "|---|---|--:|--:|---|---|"]
    for one in checks:
        verdict = "passes" if one.passed else "FAILS"
        lines.append(
            f"| {one.instructions} | {one.name} | {one.ratio:.2f} | {one.least:g} | {verdict} | {one.detail} |"
        )
    return "\n".join(lines)
