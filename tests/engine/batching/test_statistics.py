"""Counts and times, on a clock set by hand."""

from __future__ import annotations

import dataclasses

import pytest

from syncflow.engine.batching import Percentiles, State
from syncflow.engine.batching.statistics import KEPT, Statistics


def snapshot(statistics, now, live=()):
    return statistics.snapshot(now, live, queue=0, batches=0, memory=0)


def test_percentiles_are_nearest_ranks():
    assert Percentiles.of(range(1, 101), 500) == Percentiles(500, 50, 90, 99)
    assert Percentiles.of([3.0], 1) == Percentiles(1, 3.0, 3.0, 3.0)
    assert Percentiles.of([], 0) == Percentiles()


def test_times_are_those_of_the_newest_requests():
    statistics = Statistics(0.0)
    for seconds in range(KEPT + 10):
        statistics.wait.add(seconds)
    found = snapshot(statistics, 1.0).wait
    assert found.count == KEPT + 10
    assert found.p50 == 10 + KEPT // 2 - 1


def test_the_rate_is_that_of_the_last_ten_seconds():
    statistics = Statistics(100.0)
    for i in range(40):
        statistics.record_step(100.0 + i / 10, requests=3)
    assert snapshot(statistics, 104.0).steps_per_second == pytest.approx(10.0)
    assert snapshot(statistics, 110.0).steps_per_second == pytest.approx(3.9)
    later = snapshot(statistics, 200.0)
    assert (later.steps_per_second, later.steps, later.request_steps) == (0.0, 40, 120)


def test_states_count_who_is_there_and_who_has_ended():
    statistics = Statistics(0.0)
    statistics.finished.update([State.DONE, State.DONE, State.EXPIRED])
    found = snapshot(statistics, 1.0, [State.RUNNING, State.QUEUED, State.RUNNING])
    assert found.states == {
        State.QUEUED: 1,
        State.PREPARING: 0,
        State.RUNNING: 2,
        State.DECODING: 0,
        State.DONE: 2,
        State.FAILED: 0,
        State.CANCELLED: 0,
        State.EXPIRED: 1,
    }
    assert found.running == 2


def test_a_snapshot_does_not_change():
    statistics = Statistics(0.0)
    found = snapshot(statistics, 1.0)
    statistics.finished[State.DONE] += 1
    assert found.states[State.DONE] == 0
    with pytest.raises(TypeError):
        found.states[State.DONE] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.steps = 1
