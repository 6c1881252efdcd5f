"""Results, batches, queue and memory of a batcher, one behaviour at a time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from syncflow.engine.batching import Full, Limits, Policy, State

from .helpers import eventually


def test_results_are_those_of_running_alone(start, ask, expected):
    batcher = start(Limits(batch=3))
    asks = [ask(seed, steps=1 + seed % 5, shape="ab"[seed % 2]) for seed in range(12)]
    handles = [batcher.submit(one) for one in asks]
    assert [handle.result(30).value for handle in handles] == [expected(one) for one in asks]
    assert {handle.state for handle in handles} == {State.DONE}
    assert all(handle.progress == (one.steps, one.steps) for handle, one in zip(handles, asks, strict=True))


def test_requests_join_a_running_batch(blocked, model, ask):
    batcher, first = blocked(first=ask(0, steps=3))
    second = batcher.submit(ask(1, steps=3))
    assert eventually(lambda: 1 in model.encoded)
    model.gate.set()
    first.result(30)
    second.result(30)
    assert [seeds for _, seeds in model.stepped] == [(0,), (0, 1), (0, 1), (1,)]
    assert model.made == ["small"]


def test_a_static_batch_takes_nobody_in(blocked, model, ask):
    batcher, first = blocked(policy=Policy(continuous=False), first=ask(0, steps=3))
    second = batcher.submit(ask(1, steps=2))
    model.gate.set()
    first.result(30)
    second.result(30)
    assert [seeds for _, seeds in model.stepped] == [(0,), (0,), (0,), (1,), (1,)]


def test_a_batch_waits_for_company(start, model, ask):
    batcher = start(Limits(batch=3), Policy(max_wait=30.0))
    handles = [batcher.submit(ask(seed, steps=1)) for seed in range(3)]
    for handle in handles:
        handle.result(30)
    assert [len(seeds) for _, seeds in model.stepped] == [3]


def test_a_batch_does_not_wait_for_ever(start, model, ask):
    batcher = start(Limits(batch=3), Policy(max_wait=0.05))
    batcher.submit(ask(0, steps=1)).result(30)
    assert [len(seeds) for _, seeds in model.stepped] == [1]


def test_priority_goes_first_and_equals_in_turn(blocked, model, ask):
    batcher, _ = blocked(Limits(batch=1, ahead=0))
    low = [batcher.submit(ask(seed, shape="first"), priority=-1) for seed in (1, 2)]
    high = [batcher.submit(ask(seed, shape="first"), priority=1) for seed in (3, 4)]
    model.gate.set()
    for handle in low + high:
        handle.result(30)
    assert model.encoded == [0, 3, 4, 1, 2]


def test_a_full_queue_refuses_and_recovers(blocked, model, ask):
    batcher, first = blocked(Limits(queue=2, batch=1, ahead=0))
    handles = [batcher.submit(ask(seed, shape="first")) for seed in (1, 2)]
    with pytest.raises(Full, match="the queue is full: 2 requests wait and 2 may; try again later"):
        batcher.submit(ask(3, shape="first"))
    handles[0].cancel()
    again = batcher.submit(ask(4, shape="first"))
    model.gate.set()
    assert again.result(30) and first.result(30)
    assert 3 not in model.encoded


def test_a_request_that_cannot_fit_is_refused_before_anything_is_done(start, model, ask):
    batcher = start(Limits(memory=100))
    with pytest.raises(ValueError, match="the request needs"):
        batcher.submit(ask(0, cost=101))
    assert model.encoded == []
    assert batcher.stats().states[State.QUEUED] == 0


@pytest.mark.parametrize("values", [{"priority": 101}, {"deadline": 0}, {"deadline": float("nan")}], ids=str)
def test_settings_out_of_range_are_refused(start, ask, values):
    with pytest.raises(ValueError, match="it must be"):
        start().submit(ask(0), **values)


def test_memory_is_held_from_preparation_to_the_end_of_decoding(start, model, ask):
    decoding, go_on = threading.Event(), threading.Event()
    decode = model.decode

    def slow(one, latents):
        decoding.set()
        assert go_on.wait(30)
        return decode(one, latents)

    model.decode = slow
    batcher = start(Limits(memory=10))
    first = batcher.submit(ask(0, cost=6))
    second = batcher.submit(ask(1, cost=5))
    assert decoding.wait(30)
    assert batcher.stats().memory == 6
    assert (first.state, second.state) == (State.DECODING, State.QUEUED)
    go_on.set()
    assert second.result(30) and first.result(30)
    assert batcher.drain(30)
    assert batcher.stats().memory == 0


def test_memory_is_predicted_for_a_limit_alone(start, model, ask):
    model.memory = None  # would raise
    assert start(Limits(batch=2)).submit(ask(0)).result(30)


def test_an_idle_batcher_sleeps(start, ask):
    batcher = start()
    batcher.submit(ask(0)).result(30)
    assert batcher.drain(30)
    scheduler = batcher._scheduler
    asked, next_step = [], scheduler.next_step
    scheduler.next_step = lambda now: (asked.append(now), next_step(now))[1]
    time.sleep(0.2)
    assert len(asked) <= 1


def test_stats_follow_the_requests(blocked, model, ask):
    batcher, first = blocked(Limits(batch=1, ahead=0, memory=100))
    waits = [batcher.submit(ask(seed, steps=3, shape="first", cost=5)) for seed in (1, 2)]
    waits[1].cancel()
    found = batcher.stats()
    assert (found.queue, found.running, found.batches, found.memory) == (1, 1, 1, 1)
    assert (found.states[State.QUEUED], found.states[State.CANCELLED]) == (1, 1)
    model.gate.set()
    assert first.result(30) and waits[0].result(30)
    assert batcher.drain(30)
    found = batcher.stats()
    assert (found.steps, found.request_steps, found.batches, found.queue) == (5, 5, 0, 0)
    assert (found.states[State.DONE], found.wait.count, found.run.count) == (2, 2, 2)
    assert found.steps_per_second > 0
    assert 0 <= found.wait.p50 <= found.wait.p99


def test_from_an_event_loop(start, ask, expected):
    async def main():
        batcher = start(Limits(batch=4))
        asks = [ask(seed, steps=1 + seed % 3) for seed in range(10)]
        handles = [batcher.submit(one) for one in asks]
        steps = [progress async for progress in handles[2]]
        assert steps[-1] == (3, 3)
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        results = await asyncio.gather(*handles)
        assert [result.value for result in results] == [expected(one) for one in asks]

    asyncio.run(main())


def test_a_callback_of_steps_sees_the_latents_of_its_own_request(start, ask):
    batcher = start()
    seen: list[tuple[int, int, int]] = []
    handle = batcher.submit(ask(7), on_step=lambda step, steps, preview: seen.append((step, steps, preview())))
    other = batcher.submit(ask(8, steps=5))
    value, of_other = handle.result(30).value, other.result(30).value
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == value != of_other


def test_a_callback_of_steps_that_fails_harms_nobody(start, ask, expected):
    def fail(step, steps, preview):
        raise ArithmeticError("a bad callback")

    request = ask(3)
    assert start().submit(request, on_step=fail).result(30).value == expected(request)
