"""Parameters and fixtures of ``bench_kernels.py``: every case and variant, on a GPU; skipped without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.benchmarks.kernels.cases import OPERATIONS, Case, cases
from syncflow.benchmarks.kernels.harness import Outcome, Roofline, compare, measure_roofline
from syncflow.benchmarks.kernels.variants import variants
from syncflow.benchmarks.replay import CLOCK, replay

DEVICE, DTYPE = "cuda", torch.bfloat16


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case and variant of every operation, grouped by operation."""
    if not {"case", "variant"} <= set(metafunc.fixturenames):
        return
    if not torch.cuda.is_available():
        reason = "timing kernels needs a GPU; `syncflow bench kernels --aot sm_90` reports on them without one"
        metafunc.parametrize(("case", "variant"), [pytest.param(None, None, marks=pytest.mark.skip(reason))], ids=["-"])
        return
    parameters = [
        pytest.param(
            case,
            name,
            id=f"{operation}-{case.id}-{name}",
            marks=pytest.mark.benchmark(timer=CLOCK, group=operation),
        )
        for operation in OPERATIONS
        for case in cases([operation])
        for name in variants(operation, DEVICE)
    ]
    metafunc.parametrize(("case", "variant"), parameters)


@pytest.fixture(scope="session")
def roofline() -> Roofline:
    """The measured roofline of this GPU."""
    return measure_roofline(DEVICE)


@pytest.fixture
def compare_variant(measured: BenchmarkFixture, roofline: Roofline) -> Callable[[Case, str], None]:
    """Check and time a variant, with its figures in ``extra_info``; one that cannot run is skipped with the reason."""

    def run(case: Case, name: str) -> None:
        outcome = compare(case, name, variants(case.operation, DEVICE)[name], DTYPE, DEVICE, roofline)
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
        replay(measured, outcome.timing.samples)
