"""The capacity planner: the fitted cost, simulated replicas against queueing theory, and engines that really run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.benchmarks import capacity, replicas
from syncflow.benchmarks.arrivals import Arrival, StepCost, simulate
from syncflow.engine.batching import Limits, Policy


@given(st.floats(0, 1), st.floats(0.01, 1))
def test_the_cost_of_steps_is_fitted_from_their_times(fixed, each):
    cost = capacity.fit({n: fixed + each * n for n in (1, 2, 4, 8)}, decode=0.5)
    assert cost.fixed == pytest.approx(fixed, abs=1e-6) and cost.each == pytest.approx(each, rel=1e-6)
    assert cost.decode == 0.5


def test_a_batch_that_costs_more_than_its_requests_has_no_fixed_part():
    cost = capacity.fit({1: 1.0, 2: 2.4, 4: 5.5})
    assert cost.fixed == 0 and 1.0 < cost.each < 1.4


def test_a_batch_that_costs_less_than_one_request_costs_as_much():
    """A measurement on a machine that was busy at first."""
    cost = capacity.fit({1: 1.2, 2: 1.1, 4: 1.0})
    assert cost.each == 0 and 1.0 < cost.fixed < 1.2


def test_one_batch_size_is_too_few():
    with pytest.raises(ValueError, match="two or more batch sizes"):
        capacity.fit({1: 1.0})


def test_requests_go_to_the_replica_with_the_fewest():
    arrivals = [Arrival(0.0, 4), Arrival(0.5, 2), Arrival(1.0, 1)]
    found = simulate(arrivals, Limits(batch=1), Policy(), StepCost(0.0, 1.0), replicas=2)
    assert found.starts == (0.0, 0.5, 4.0)  # both have one request: the first replica takes the third
    assert found.ends == (4.0, 2.5, 5.0)
    assert found.busy == 7.0


@pytest.mark.parametrize("beside", [False, True])
def test_decoding_holds_up_the_next_step_unless_it_is_beside(beside):
    arrivals = [Arrival(0.0, 1), Arrival(0.0, 1)]
    found = simulate(arrivals, Limits(batch=1), Policy(), StepCost(0.0, 1.0, decode=0.5, beside=beside))
    assert found.ends == ((1.5, 2.5) if beside else (1.5, 3.0))


def test_requests_past_their_deadline_are_dropped_and_full_queues_refuse():
    arrivals = [Arrival(0.0, 3, timeout=1.5), Arrival(0.0, 2), Arrival(0.1, 1), Arrival(0.2, 1)]
    found = simulate(arrivals, Limits(queue=2, batch=1, ahead=0), Policy(), StepCost(0.0, 1.0))
    assert found.expired == 1 and found.refused == 1
    assert math.isnan(found.ends[0]) and found.ends[1:3] == (4.0, 5.0) and math.isnan(found.ends[3])
    assert len(found.latencies) == 2


@pytest.mark.slow
def test_one_replica_with_single_batches_waits_as_queueing_theory_says():
    """M/D/1: the mean wait is rho / (2 (1 - rho)) service times."""
    load = capacity.Load(rate=0.6, steps=10, requests=3_000)
    found = capacity.predict(load, StepCost(0.0, 0.1), replicas=1, batch=1)
    assert found.mean == pytest.approx(1 + 0.6 / (2 * 0.4), rel=0.1)
    assert found.utilization == pytest.approx(0.6, rel=0.05) and found.throughput == pytest.approx(0.6, rel=0.05)
    assert found.missed == 0 and found.mean_batch == 1


def test_the_plan_ends_with_the_first_number_that_is_enough():
    load, cost = capacity.Load(rate=20, steps=50, requests=500), StepCost(0.010, 0.014, 0.1, beside=True)
    services = capacity.plan(load, cost, batch=8, p95=4.0, most=64)
    assert [one.replicas for one in services] == list(range(services[0].replicas, services[-1].replicas + 1))
    assert services[-1].p95 <= 4.0 and all(one.p95 > 4.0 for one in services[:-1])
    lines = capacity.table(services).splitlines()
    assert len(lines) == 2 + len(services)


def test_what_cannot_be_served_is_refused():
    cost = StepCost(0.010, 0.014)
    with pytest.raises(ValueError, match=r"takes 1\.2 s alone; p95 is 1 s"):
        capacity.plan(capacity.Load(rate=1, steps=50), cost, batch=8, p95=1.0, most=4)
    with pytest.raises(ValueError, match="4 replicas do not serve 20 requests"):
        capacity.plan(capacity.Load(rate=20, steps=50, requests=200), cost, batch=8, p95=2.0, most=4)


@pytest.mark.slow
def test_replicas_run_what_was_predicted(monkeypatch):
    monkeypatch.setattr(replicas, "SIZES", (1, 2))
    with replicas.Fleet(2, threads=1, runtime="torch") as fleet:
        cost, predicted, measured = replicas.check(fleet, load=0.5, steps=2, requests=4, batch=2, seed=0)
        assert all(one.load == 0 for one in fleet.replicas)
    assert cost.each >= 0 and cost.of_steps([1]) > 0 and cost.decode > 0
    assert 0 < measured.p95 < math.inf and 0 < predicted.p95 < math.inf
    assert "requests a second" in replicas.table(predicted, measured)


def test_the_mean_of_two_costs_is_halfway():
    one, other = StepCost(1.0, 2.0, 3.0, weights=(1.5, 0.5)), StepCost(3.0, 4.0, 5.0, weights=(1.25, 0.75))
    assert replicas.mean(one, other) == StepCost(2.0, 3.0, 4.0, weights=(1.375, 0.625))


def test_steps_of_unequal_cost():
    """Two requests of two steps, the first three times as long; the second comes after the first's first step."""
    cost = StepCost(0.1, 1.0, weights=(1.5, 0.5))
    assert cost.of_steps([2, 1]) == pytest.approx(2.1)
    arrivals = [Arrival(0.0, 2), Arrival(1.0, 2)]
    found = simulate(arrivals, Limits(batch=2), Policy(), cost)
    assert found.ends == pytest.approx((1.6 + 2.1, 1.6 + 2.1 + 0.6))


def test_the_error_of_a_prediction_is_relative_to_what_was_measured():
    load, cost = capacity.Load(rate=1, steps=4, requests=100), StepCost(0.01, 0.02)
    predicted = capacity.predict(load, cost, 2, 8)
    measured = replace(predicted, p95=predicted.p95 / 1.1, throughput=predicted.throughput / 0.95)
    assert replicas.errors(predicted, measured) == pytest.approx({"p95": 0.1, "throughput": -0.05})
    assert "| +10.0% |" in replicas.table(predicted, measured)
