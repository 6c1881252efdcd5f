"""What the suites share: the model that is measured, and a record of the machine beside every figure."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.runtime.selection.processor import processor


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--model DIR`` measures another model package than the bundled one."""
    parser.addoption("--model", type=Path, help="model package to measure; the bundled syncflow-tiny by default")


@pytest.fixture(scope="session")
def model_folder(request: pytest.FixtureRequest) -> Path:
    """The package that is measured."""
    folder = request.config.getoption("--model") or bundled_model()
    if not folder.is_dir():
        pytest.skip(f"there is no model folder {folder}")
    return folder


@pytest.fixture(scope="session")
def engine(model_folder: Path) -> Engine:
    """The model on the CPU."""
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture
def measured(benchmark: BenchmarkFixture) -> BenchmarkFixture:
    """``benchmark`` with the machine in its ``extra_info``."""
    benchmark.extra_info["machine"] = {
        "cpu": processor().name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return benchmark
