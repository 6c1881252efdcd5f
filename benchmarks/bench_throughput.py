"""Throughput of an engine: requests that are submitted together, beside the same requests one by one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.benchmarks.replay import Alternating
from syncflow.benchmarks.step import PROMPTS
from syncflow.engine.engine import Engine

CLIPS, STEPS, ROUNDS = 4, 8, 5


@pytest.fixture(scope="module")
def serving(step_engine: Engine) -> Iterator[Engine]:
    """An engine of the automatic runtime that batches requests."""
    with Engine(step_engine.components, runtime="auto") as engine:
        engine.submit(PROMPTS[0], steps=2).result()
        yield engine


def test_throughput(alternating: Alternating, measured: BenchmarkFixture, serving: Engine) -> None:
    """Some clips, from sentences to frames and sound."""

    def together() -> None:
        handles = [serving.submit(PROMPTS[k % len(PROMPTS)], seed=k, steps=STEPS) for k in range(CLIPS)]
        assert all(len(handle.result()) == 1 for handle in handles)

    def one_by_one() -> None:
        for k in range(CLIPS):
            assert len(serving.submit(PROMPTS[k % len(PROMPTS)], seed=k, steps=STEPS).result()) == 1

    seconds = alternating({"together": together, "one by one": one_by_one}, "together", ROUNDS)
    measured.extra_info["clips_a_second"] = {
        name: round(CLIPS / statistics.median(times), 3) for name, times in seconds.items()
    }
