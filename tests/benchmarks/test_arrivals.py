"""The simulation, by hand on small cases; continuous batching against static on the same arrivals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.benchmarks.arrivals import Arrival, StepCost, poisson, simulate, table
from syncflow.engine.batching import Limits, Policy

STATIC, CONTINUOUS = Policy(continuous=False), Policy()
COSTS = st.floats(0, 1).map(lambda fixed: StepCost(fixed, 1 - fixed))
GAPS = st.sampled_from([0.0, 0.3, 1.0, 4.0])


@st.composite
def several(draw, gaps=GAPS, shapes=3):
    """Requests in the order of time."""
    time, found = 0.0, []
    for _ in range(draw(st.integers(1, 14))):
        time += draw(gaps)
        found.append(Arrival(time, draw(st.integers(1, 12)), draw(st.integers(0, shapes - 1))))
    return found


def both(arrivals, batch, cost):
    limits = Limits(queue=len(arrivals), batch=batch)
    return (simulate(arrivals, limits, policy, cost) for policy in (CONTINUOUS, STATIC))


def test_by_hand():
    arrivals = [Arrival(0.0, 4), Arrival(1.0, 2), Arrival(1.0, 1)]
    continuous, static = both(arrivals, 2, StepCost(1.0, 0.5))
    # alone to 1.5; two to 3.5 and 5.5; then the third joins the first for its last step
    assert continuous.ends == (7.5, 5.5, 7.5)
    assert continuous.starts == (0.0, 1.5, 5.5)
    # alone to 6; two to 8; alone to 9.5
    assert static.ends == (6.0, 9.5, 8.0)
    assert (continuous.batch_steps, static.batch_steps) == (4, 6)
    assert continuous.request_steps == static.request_steps == 7
    assert continuous.makespan == 7.5


@given(several(st.just(0.0)), st.integers(1, 5), COSTS)
def test_of_a_backlog_continuous_batching_is_done_no_later(arrivals, batch, cost):
    continuous, static = both(arrivals, batch, cost)
    assert continuous.makespan <= static.makespan + 1e-9


@pytest.mark.slow
@settings(max_examples=300)
@given(several(shapes=1), st.integers(1, 5), COSTS)
def test_continuous_batching_takes_no_more_steps_and_is_done_at_most_a_step_later(arrivals, batch, cost):
    """A step later, because the last may come just after a fuller, longer step has begun."""
    continuous, static = both(arrivals, batch, cost)
    assert continuous.batch_steps <= static.batch_steps
    assert continuous.request_steps == static.request_steps
    assert continuous.makespan <= static.makespan + cost.of(batch) + 1e-9


@pytest.mark.slow
@settings(max_examples=300)
@given(several(shapes=3), st.integers(1, 5), COSTS)
def test_of_several_shapes_it_is_done_at_most_a_step_of_each_later(arrivals, batch, cost):
    continuous, static = both(arrivals, batch, cost)
    assert continuous.request_steps == static.request_steps
    assert continuous.makespan <= static.makespan + 3 * cost.of(batch) + 1e-9


@given(several(), st.integers(1, 5), COSTS, st.booleans())
def test_of_equal_shapes_who_comes_first_steps_first(arrivals, batch, cost, continuous):
    limits = Limits(queue=len(arrivals), batch=batch)
    found = simulate(arrivals, limits, CONTINUOUS if continuous else STATIC, cost)
    for key in range(3):
        starts = [start for start, one in zip(found.starts, arrivals, strict=True) if one.key == key]
        assert starts == sorted(starts)


@pytest.mark.parametrize("cost", [StepCost(1, 0), StepCost(0, 1), StepCost(0.5, 0.5)], ids=str)
def test_a_busy_shape_starves_no_odd_one(cost):
    """Between two of its steps (weight 1) the busy shape (weight 16 at most) gets 16 times as long, and a step."""
    busy = [Arrival(0.0, 50) for _ in range(100)]
    odd = Arrival(0.0, 20, key=1)
    found = simulate([*busy, odd], Limits(queue=101), CONTINUOUS, cost)
    allowed = 20 * (17 * cost.of(1) + cost.of(8))
    assert found.latencies[-1] <= allowed
    assert found.latencies[-1] < found.makespan / 2


def test_poisson_arrivals_come_at_their_rate():
    arrivals = poisson(5000, 2.0, 3, seed=1)
    times = [one.time for one in arrivals]
    assert times == sorted(times)
    assert 5000 / times[-1] == pytest.approx(2.0, rel=0.05)
    assert {one.key for one in arrivals} == {0, 1, 2}


def test_the_table_has_a_row_for_each_load_and_way():
    lines = table(60, shapes=2, batch=4, cost=StepCost(), seed=0).splitlines()
    assert len(lines) == 2 + 4 * 2
    assert sum("continuous" in line for line in lines) == 4
