"""The race of every ``bench_<operation>.py``: its cases times its contenders, timed on a GPU or skipped without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.benchmarks.kernels.cases import OPERATIONS, Case, cases
from syncflow.benchmarks.kernels.harness import Outcome, Roofline, compare, contenders, measure_roofline

DEVICE, DTYPE = "cuda", torch.bfloat16


class DeviceClock:
    """A timer that shows device time: it moves on by what was measured there."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """What a round took."""
        self.now += seconds


CLOCK = DeviceClock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case and contender of the file's operation."""
    if not {"case", "contender"} <= set(metafunc.fixturenames):
        return
    operation = metafunc.module.__name__.rpartition(".")[2].removeprefix("bench_")
    if not torch.cuda.is_available():
        reason = "timing kernels needs a GPU; `syncflow bench kernels --aot sm_90` reports on them without one"
        metafunc.parametrize(
            ("case", "contender"), [pytest.param(None, None, marks=pytest.mark.skip(reason))], ids=["-"]
        )
        return
    assert operation in OPERATIONS, f"{operation} has no cases"
    mark = pytest.mark.benchmark(timer=CLOCK, group=operation)
    metafunc.parametrize("case", [pytest.param(case, id=case.id, marks=mark) for case in cases([operation])])
    metafunc.parametrize("contender", list(contenders(operation, DEVICE)))


@pytest.fixture(scope="session")
def roofline() -> Roofline:
    """What this GPU can do."""
    return measure_roofline(DEVICE)


@pytest.fixture
def race(measured: BenchmarkFixture, roofline: Roofline) -> Callable[[Case, str], None]:
    """Check and time one contender; figures go into ``extra_info``. One that cannot run is skipped with its reason."""

    def run(case: Case, name: str) -> None:
        outcome = compare(case, name, contenders(case.operation, DEVICE)[name], DTYPE, DEVICE, roofline)
        record(measured, outcome)
        if outcome.timing is None:
            assert name != "kernel", outcome.reason
            pytest.skip(outcome.reason or "no result")

    return run


def record(measured: BenchmarkFixture, outcome: Outcome) -> None:
    """Give pytest-benchmark the device time of every round."""
    measured.extra_info |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    measured.extra_info |= outcome.to_dict()
    if outcome.timing is not None:
        samples = iter(outcome.timing.samples)
        measured.pedantic(lambda: CLOCK.move(next(samples)), rounds=len(outcome.timing.samples))
