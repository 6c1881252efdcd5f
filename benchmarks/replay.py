"""Give pytest-benchmark times that were measured elsewhere: in alternation with others, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_benchmark.fixture import BenchmarkFixture

Alternating = Callable[..., dict[str, list[float]]]  # the fixture ``alternating`` of conftest.py


class ReplayClock:
    """A timer that advances by measured seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Add the seconds of a round."""
        self.now += seconds


CLOCK = ReplayClock()  # the timer of every test that replays: ``pytest.mark.benchmark(timer=CLOCK)``


def replay(benchmark: BenchmarkFixture, seconds: Sequence[float]) -> None:
    """A round for each of ``seconds``."""
    samples = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(samples)), rounds=len(seconds))
