"""Steps timed in turn, on a clock that the steps themselves move: how long that takes, and what is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.cost.breakdown import step_flops as counted
from syncflow.engine.presets import PRESETS
from syncflow.engine.runtime import timing
from syncflow.engine.runtime.estimate import step_flops
from syncflow.engine.runtime.timing import Workload, measure, race
from syncflow.engine.sampling.guidance import text_guidance


class Clock:
    """Time that passes when somebody steps or rests."""

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
    return measure(steps, clock=clock, rest=clock.advance)


def test_a_median_for_each():
    clock = Clock()
    found = measured(clock, {"a": Steps(clock, 0.02), "b": Steps(clock, 0.1, 0.025)})
    assert found == {"a": pytest.approx(0.02), "b": pytest.approx(0.025)}


@given(st.lists(st.floats(1e-4, 0.2), min_size=2, max_size=6))
def test_it_takes_about_a_second(durations):
    """A third of a second for each that is timed to the end, or three of its steps."""
    clock = Clock()
    steps = {str(i): Steps(clock, seconds) for i, seconds in enumerate(durations)}
    found = measured(clock, steps)
    assert found == {name: pytest.approx(step.each[0]) for name, step in steps.items()}
    assert clock.now <= sum(0.4 + 5 * seconds for seconds in durations)


def test_a_slow_one_gets_two_turns_and_a_very_slow_one_gets_one():
    clock = Clock()
    steps = {"fast": Steps(clock, 0.01), "slow": Steps(clock, 0.03), "very slow": Steps(clock, 0.3)}
    found = measured(clock, steps)
    assert (steps["slow"].count, steps["very slow"].count) == (4, 1)
    assert found["fast"] == pytest.approx(0.01) and found["slow"] == pytest.approx(0.03)


def test_noise_of_one_turn_leaves_none_out():
    """What is late once is timed to the end."""
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
    """Turns of a moment."""
    for name in ("REST", "TURN", "BUDGET"):
        monkeypatch.setattr(timing, name, 1e-6)


def fail(*_: object) -> None:
    raise RuntimeError("the graph is broken\nin line 5")


def test_one_that_does_not_step_is_left_out(hurry):
    makers = {"a": lambda: fail, "b": lambda: list, "c": fail}
    with pytest.warns(UserWarning, match="the graph is broken; the runtime [ac] is left out"):
        times, made = race(makers, workload())
    assert times.seconds.keys() == made.keys() == {"b"}
    assert times.failures == dict.fromkeys("ac", "the graph is broken")


def test_where_none_steps_the_last_says_why(hurry):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="broken"):
        race({"a": fail, "b": lambda: fail}, workload())


def test_after_a_slow_first_step_nothing_else_is_made(hurry, monkeypatch):
    monkeypatch.setattr(timing, "_seconds", lambda step: step())
    times, made = race({"a": lambda: lambda: 4.9, "b": fail}, workload())
    assert times.seconds == {"a": 4.9} and made.keys() == {"a"}
    assert times.stopped == "a step in a takes 4.9 s, and the limit for timing others is 4 s"


def test_a_first_step_that_is_slow_once_stops_nothing(hurry, monkeypatch):
    each = iter([4.9, 0.1, 0.1])
    monkeypatch.setattr(timing, "_seconds", lambda step: next(each))
    times, _ = race({"a": lambda: list, "b": lambda: list}, workload())
    assert times.seconds.keys() == {"a", "b"} and not times.stopped


@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_is_near_the_count(name):
    config = PRESETS[name]
    assert step_flops(config.ddit, config.sequence) == pytest.approx(counted(config, [text_guidance(6.0)]), rel=0.2)


def test_what_is_too_large_to_be_timed():
    tiny, large = PRESETS["syncflow-tiny"], PRESETS["syncflow-xl"]
    assert Workload(tiny.sequence, fail).objection(tiny.ddit) == ""
    said = Workload(large.sequence, fail).objection(large.ddit)
    assert "GFLOP" in said and "the limit for timing it is 0.5 s" in said
