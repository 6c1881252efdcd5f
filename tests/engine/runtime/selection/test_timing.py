"""Steps measured alternately, on a clock that the steps advance: the duration, and which are dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.cost.breakdown import step_flops as counted
from syncflow.engine.presets import PRESETS
from syncflow.engine.runtime.selection import timing
from syncflow.engine.runtime.selection.timing import Workload, measure, step_flops, time_denoisers
from syncflow.engine.sampling.guidance import text_guidance


class Clock:
    """A clock that advances with steps and pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Steps:
    """A step that takes the seconds of ``each`` one after the other, then the last of them."""

    def __init__(self, clock: Clock, *each: float) -> None:
        self.clock, self.each, self.count = clock, each, 0

    def __call__(self) -> None:
        self.clock.advance(self.each[min(self.count, len(self.each) - 1)])
        self.count += 1


def measured(clock: Clock, steps: dict[str, Steps]) -> dict[str, float]:
    return measure(steps, clock=clock, pause=clock.advance)


def test_the_least_of_each_step():
    """Of two runtimes that other work disturbs, the one that is disturbed more often can still be the faster."""
    clock = Clock()
    disturbed = Steps(clock, *[0.03, 0.03, 0.03, 0.03, 0.03, 0.02] * 10)
    found = measured(clock, {"a": disturbed, "b": Steps(clock, 0.1, 0.025)})
    assert found == {"a": pytest.approx(0.02), "b": pytest.approx(0.025)}


@given(st.lists(st.floats(1e-4, 0.2), min_size=2, max_size=6))
def test_the_measurement_takes_about_a_second(durations):
    """A third of a second for each that is timed to the end, or three of its steps."""
    clock = Clock()
    steps = {str(i): Steps(clock, seconds) for i, seconds in enumerate(durations)}
    found = measured(clock, steps)
    assert found == {name: pytest.approx(step.each[0]) for name, step in steps.items()}
    assert clock.now <= sum(0.4 + 5 * seconds for seconds in durations)


def test_slow_steps_get_two_rounds_and_very_slow_ones_get_one():
    clock = Clock()
    steps = {"fast": Steps(clock, 0.01), "slow": Steps(clock, 0.03), "very slow": Steps(clock, 0.3)}
    found = measured(clock, steps)
    assert (steps["slow"].count, steps["very slow"].count) == (4, 1)
    assert found["fast"] == pytest.approx(0.01) and found["slow"] == pytest.approx(0.03)


def test_noise_in_one_round_drops_no_step():
    """A step that is slow once is measured to the end."""
    clock = Clock()
    late = Steps(clock, *[0.03] * 2, 0.01)
    found = measured(clock, {"late": late, "steady": Steps(clock, 0.0101)})
    assert found["late"] == pytest.approx(0.01)
    assert late.count > 20


def workload(step=lambda denoiser: denoiser) -> Workload:
    """A denoiser is its own step."""
    return Workload(PRESETS["syncflow-tiny"].sequence, step)


@pytest.fixture
def hurry(monkeypatch):
    """Very short rounds."""
    for name in ("PAUSE", "ROUND", "BUDGET"):
        monkeypatch.setattr(timing, name, 1e-6)


def fail(*_: object) -> None:
    raise RuntimeError("the graph is broken\nin line 5")


def test_a_denoiser_that_raises_is_left_out(hurry):
    makers = {"a": lambda: fail, "b": lambda: list, "c": fail}
    with pytest.warns(UserWarning, match="the graph is broken; the runtime [ac] is left out"):
        times, made = time_denoisers(makers, workload())
    assert times.seconds.keys() == made.keys() == {"b"}
    assert times.failures == dict.fromkeys("ac", "the graph is broken")


def test_the_last_error_is_raised_if_all_fail(hurry):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="broken"):
        time_denoisers({"a": fail, "b": lambda: fail}, workload())


def test_a_slow_first_runtime_stops_the_timing(hurry, monkeypatch):
    monkeypatch.setattr(timing, "_seconds", lambda step: step())
    times, made = time_denoisers({"a": lambda: lambda: 4.9, "b": fail}, workload())
    assert times.seconds == {"a": 4.9} and made.keys() == {"a"}
    assert times.stopped == "a step in a takes 4.9 s, and the limit for timing others is 4 s"


def test_one_slow_first_step_does_not_stop_the_timing(hurry, monkeypatch):
    each = iter([4.9, 0.1, 0.1])
    monkeypatch.setattr(timing, "_seconds", lambda step: next(each))
    times, _ = time_denoisers({"a": lambda: list, "b": lambda: list}, workload())
    assert times.seconds.keys() == {"a", "b"} and not times.stopped


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_is_near_the_count(name):
    config = PRESETS[name]
    assert step_flops(config.ddit, config.sequence) == pytest.approx(counted(config, [text_guidance(6.0)]), rel=0.2)


def test_a_large_model_is_not_timed():
    tiny, large = PRESETS["syncflow-tiny"], PRESETS["syncflow-xl"]
    assert Workload(tiny.sequence, fail).reason_not_to_time(tiny.ddit) == ""
    said = Workload(large.sequence, fail).reason_not_to_time(large.ddit)
    assert "GFLOP" in said and "the limit for timing it is 0.5 s" in said
