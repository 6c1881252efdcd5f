"""The guided Euler step of the video. Its baselines are the formula as it is and compiled."""

from __future__ import annotations

from syncflow.benchmarks.kernels.harness import Baseline

BASELINES: dict[str, Baseline] = {}


def test_guided_euler_step(race, case, contender) -> None:
    race(case, contender)
