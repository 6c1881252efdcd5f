"""The device's time is shared by weight, and nobody waits longer than that allows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.batching.turns import Turns

BUCKETS = st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 16)), min_size=2, max_size=5)


def run(turns, costs, seconds):
    """Turns of buckets 0, 1, … that can always step, for some seconds of the device."""
    order, spent = [], 0.0
    while spent < seconds:
        chosen = turns.pick(range(len(costs)))
        cost, weight = costs[chosen]
        turns.charge(chosen, cost, weight)
        order.append(chosen)
        spent += cost
    return order


@given(BUCKETS)
def test_the_wait_between_two_turns_is_bounded(costs):
    turns = Turns()
    for bucket in range(len(costs)):
        turns.open(bucket)
    order = run(turns, costs, 50 * max(cost for cost, _ in costs))
    for bucket, (cost, weight) in enumerate(costs):
        own = [i for i, chosen in enumerate(order) if chosen == bucket]
        for first, second in pairwise(own):
            for other, (theirs, heavier) in enumerate(costs):
                between = order[first + 1 : second].count(other) * theirs
                assert other == bucket or between <= heavier * cost / weight + theirs + 1e-6


def test_time_goes_by_weight_whatever_a_step_costs():
    costs = [(1.0, 1), (0.1, 1), (0.5, 4)]
    turns = Turns()
    for bucket in range(3):
        turns.open(bucket)
    order = run(turns, costs, 600.0)
    times = [order.count(bucket) * cost for bucket, (cost, _) in enumerate(costs)]
    assert times == pytest.approx([100, 100, 400], rel=0.02)


def test_steps_that_take_no_time_go_round():
    turns = Turns()
    for bucket in range(3):
        turns.open(bucket)
    order = []
    for _ in range(6):
        order.append(turns.pick(range(3)))
        turns.charge(order[-1], 0.0, 1)
    assert order == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("opened", [False, True], ids=["away", "new"])
def test_nobody_saves_up_turns(opened):
    turns = Turns()
    turns.open("busy")
    if not opened:
        turns.open("late")
    for _ in range(100):
        assert turns.pick(["busy"]) == "busy"
        turns.charge("busy", 1.0, 1)
    if opened:
        turns.open("late")
    order = []
    for _ in range(10):
        order.append(turns.pick(["busy", "late"]))
        turns.charge(order[-1], 1.0, 1)
    assert order.count("late") in (5, 6)
