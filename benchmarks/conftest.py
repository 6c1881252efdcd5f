"""What the suites share: the model that is measured, its runtimes, and a record of the machine beside every figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.benchmarks.alternating import Timing, alternate, ratio
from syncflow.benchmarks.machine import Machine, this_machine
from syncflow.benchmarks.replay import CLOCK, Alternating, replay
from syncflow.benchmarks.roofline import Rates, measured_rates
from syncflow.benchmarks.step import available, runtimes
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.runtime.selection.choose import RuntimeChoice

Functions = Mapping[str, Callable[[], object]]
MOST_SECONDS = 60.0  # of an alternating run, unless its least rounds take longer


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--model DIR`` measures another model package than the bundled one, ``--device`` another device."""
    parser.addoption("--model", type=Path, help="model package to measure; the bundled syncflow-tiny by default")
    parser.addoption("--device", help="device to measure, such as cpu or cuda:0; by default a GPU where there is one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that time in alternation give pytest-benchmark times that were measured already."""
    for item in items:
        if "alternating" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device that is measured."""
    return request.config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def model_folder(request: pytest.FixtureRequest) -> Path:
    """The package that is measured."""
    folder = request.config.getoption("--model") or bundled_model()
    if not folder.is_dir():
        pytest.skip(f"there is no model folder {folder}")
    return folder


@pytest.fixture(scope="session")
def machine(device: str) -> Machine:
    """This machine, as it was when the suites began."""
    return this_machine(device)


@pytest.fixture(scope="session")
def rates(device: str) -> Rates:
    """The measured matrix rate and bandwidth of the device."""
    return measured_rates(device)


@pytest.fixture(scope="session")
def engine(model_folder: Path) -> Engine:
    """The model on the CPU."""
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="session")
def step_engine(model_folder: Path, device: str) -> Engine:
    """The model on the device, to be run in several runtimes."""
    return Engine.from_pretrained(model_folder, device=device, runtime="torch", precision="float32")


@pytest.fixture(scope="session")
def chosen(step_engine: Engine) -> dict[str, RuntimeChoice]:
    """``auto`` and every other runtime that runs this model here."""
    return runtimes(step_engine, available(step_engine), "float32")


@pytest.fixture
def measured(benchmark: BenchmarkFixture, machine: Machine) -> BenchmarkFixture:
    """``benchmark`` with the machine in its ``extra_info``."""
    benchmark.extra_info["machine"] = machine.to_dict()
    return benchmark


@pytest.fixture
def alternating(measured: BenchmarkFixture, device: str) -> Alternating:
    """``alternating(functions, own, rounds)`` times functions in alternation. -> seconds of each in every round.

    pytest-benchmark gets the times of ``own``; ``ratios`` in ``extra_info`` say how many times as fast it is as each of
    the others, with the interval of 95 % confidence.
    """

    def run(functions: Functions, own: str, rounds: int) -> dict[str, list[float]]:
        seconds = alternate(functions, Timing(rounds, device=device, most_seconds=MOST_SECONDS))
        ratios: dict[str, Any] = {
            name: ratio(times, seconds[own]).to_dict() for name, times in seconds.items() if name != own
        }
        measured.extra_info |= {"own": own, "ratios": ratios}
        replay(measured, seconds[own])
        return seconds

    return run
