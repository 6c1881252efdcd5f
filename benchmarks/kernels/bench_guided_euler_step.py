"""The guided Euler step of both modalities in one launch. Its rivals are the formula as it is and compiled."""

from __future__ import annotations

from syncflow.benchmarks.kernels.harness import Rival

RIVALS: dict[str, Rival] = {}


def test_guided_euler_step(race, case, contender) -> None:
    race(case, contender)
