"""Device time is shared by weight, and no group waits longer than that allows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.batching.scheduler import FairShare

GROUPS = st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 16)), min_size=2, max_size=5)


def run(shares, costs, seconds):
    """Selections of groups 0, 1, … that can always step, for some seconds of the device."""
    order, spent = [], 0.0
    while spent < seconds:
        selected = shares.select(range(len(costs)))
        cost, weight = costs[selected]
        shares.charge(selected, cost, weight)
        order.append(selected)
        spent += cost
    return order


@pytest.mark.slow
@given(GROUPS)
def test_the_wait_between_two_steps_is_bounded(costs):
    shares = FairShare()
    for group in range(len(costs)):
        shares.add(group)
    order = run(shares, costs, 50 * max(cost for cost, _ in costs))
    for group, (cost, weight) in enumerate(costs):
        own = [i for i, selected in enumerate(order) if selected == group]
        for first, second in pairwise(own):
            for other, (theirs, heavier) in enumerate(costs):
                between = order[first + 1 : second].count(other) * theirs
                assert other == group or between <= heavier * cost / weight + theirs + 1e-6


def test_time_goes_by_weight_whatever_a_step_costs():
    costs = [(1.0, 1), (0.1, 1), (0.5, 4)]
    shares = FairShare()
    for group in range(3):
        shares.add(group)
    order = run(shares, costs, 600.0)
    times = [order.count(group) * cost for group, (cost, _) in enumerate(costs)]
    assert times == pytest.approx([100, 100, 400], rel=0.02)


def test_steps_that_take_no_time_go_round():
    shares = FairShare()
    for group in range(3):
        shares.add(group)
    order = []
    for _ in range(6):
        order.append(shares.select(range(3)))
        shares.charge(order[-1], 0.0, 1)
    assert order == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("added", [False, True], ids=["away", "new"])
def test_idle_time_earns_nothing(added):
    shares = FairShare()
    shares.add("busy")
    if not added:
        shares.add("late")
    for _ in range(100):
        assert shares.select(["busy"]) == "busy"
        shares.charge("busy", 1.0, 1)
    if added:
        shares.add("late")
    order = []
    for _ in range(10):
        order.append(shares.select(["busy", "late"]))
        shares.charge(order[-1], 1.0, 1)
    assert order.count("late") in (5, 6)
