"""What a caller sees of the batcher, one behaviour at a time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from syncflow.engine.batching import Batcher, Cancelled, Closed, Expired, Full, Limits, Policy, State


def eventually(condition, seconds=30.0):
    """Whether it comes true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture
def blocked(start, model, ask):
    """Starts a batcher whose step thread stands in a step of its first request until the gate opens."""

    def begin(limits=None, policy=None, first=None, clock=time.monotonic, **settings):
        model.gate.clear()
        batcher = start(limits, policy, clock)
        handle = batcher.submit(first or ask(0, steps=2, shape="first"), **settings)
        assert model.stepping_now.wait(30)
        return batcher, handle

    return begin


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
    assert eventually(lambda: 1 in model.prepared)
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
    assert model.prepared == [0, 3, 4, 1, 2]


def test_a_full_queue_refuses_and_recovers(blocked, model, ask):
    batcher, first = blocked(Limits(queue=2, batch=1, ahead=0))
    handles = [batcher.submit(ask(seed, shape="first")) for seed in (1, 2)]
    with pytest.raises(Full, match="the queue is full: 2 requests wait and 2 may; try again later"):
        batcher.submit(ask(3, shape="first"))
    handles[0].cancel()
    again = batcher.submit(ask(4, shape="first"))
    model.gate.set()
    assert again.result(30) and first.result(30)
    assert 3 not in model.prepared


def test_a_request_that_cannot_fit_is_refused_before_anything_is_done(start, model, ask):
    batcher = start(Limits(memory=100))
    with pytest.raises(ValueError, match="the request needs"):
        batcher.submit(ask(0, cost=101))
    assert model.prepared == []
    assert batcher.stats().states[State.QUEUED] == 0


@pytest.mark.parametrize("values", [{"priority": 101}, {"deadline": 0}, {"deadline": float("nan")}], ids=str)
def test_settings_out_of_range_are_refused(start, ask, values):
    with pytest.raises(ValueError, match="it must be"):
        start().submit(ask(0), **values)


def test_memory_is_held_from_preparation_to_the_end_of_decoding(start, model, ask):
    decoding, go_on = threading.Event(), threading.Event()
    decode = model.decode

    def slow(one, job, latents):
        decoding.set()
        assert go_on.wait(30)
        return decode(one, job, latents)

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


def test_cancelling_a_queued_request_frees_its_place_at_once(blocked, model, ask):
    batcher, _ = blocked(Limits(batch=1, ahead=0))
    waits = batcher.submit(ask(1, shape="first"))
    assert batcher.stats().queue == 1
    assert waits.cancel()
    assert (waits.state, batcher.stats().queue) == (State.CANCELLED, 0)
    with pytest.raises(Cancelled):
        waits.result(0)
    model.gate.set()
    batcher.drain(30)
    assert 1 not in model.prepared


def test_a_running_request_leaves_within_a_step(blocked, model, ask):
    batcher, first = blocked(first=ask(0, steps=50))
    other = batcher.submit(ask(1, steps=3))
    assert eventually(lambda: 1 in model.prepared)
    told = threading.Event()
    first.add_done_callback(lambda handle: told.wait(30))
    cancelling = threading.Thread(target=first.cancel)
    cancelling.start()
    assert eventually(first.done)
    model.gate.set()
    other.result(30)
    told.set()
    cancelling.join(30)
    assert batcher.drain(30)
    assert [seeds for _, seeds in model.stepped] == [(0,), (1,), (1,), (1,)]


def test_a_running_request_leaves_though_another_batch_steps(blocked, model, ask):
    """Its place and its memory are free at the next boundary, whosever turn comes."""
    batcher, first = blocked(Limits(memory=10), first=ask(0, steps=50, shape="first", cost=6))
    second = batcher.submit(ask(1, steps=2, shape="other", cost=3))
    third = batcher.submit(ask(2, steps=1, shape="third", cost=6))
    assert eventually(lambda: 1 in model.prepared)
    first.cancel()
    model.gate.set()
    assert third.result(30) and second.result(30)
    assert [shape for shape, _ in model.stepped].count("first") == 1


def test_a_cancelled_request_is_not_decoded(start, model, ask):
    decoded, go_on = [], threading.Event()
    model.decode = lambda one, *_: (decoded.append(one.seed), go_on.wait(30))
    batcher = start()
    handles = [batcher.submit(ask(seed)) for seed in range(2)]
    assert eventually(lambda: [handle.state for handle in handles] == [State.DECODING] * 2)
    handles[1].cancel()
    go_on.set()
    assert batcher.drain(30)
    assert decoded == [0]


def test_cancelling_while_decoding(start, model, ask):
    decoding, go_on = threading.Event(), threading.Event()
    model.decode = lambda *_: (decoding.set(), go_on.wait(30))
    batcher = start()
    handle = batcher.submit(ask(0))
    assert decoding.wait(30)
    assert handle.cancel()
    go_on.set()
    assert batcher.drain(30)
    assert handle.state is State.CANCELLED
    assert batcher.stats().states[State.CANCELLED] == 1


def test_a_deadline_ends_a_queued_and_a_running_request(blocked, model, ask):
    now = 100.0
    batcher, running = blocked(Limits(batch=1, ahead=0), first=ask(0, steps=10**9), clock=lambda: now, deadline=7.0)
    queued = batcher.submit(ask(1), deadline=2.5)
    model.gate.set()
    for handle, seconds, passed in ((queued, "2.5", 102.5), (running, "7", 107.0)):
        assert not handle.done()
        now = passed
        with pytest.raises(Expired, match=f"not done within its deadline of {seconds} s"):
            handle.result(30)
        assert handle.state is State.EXPIRED
    assert batcher.drain(30)
    assert model.prepared == [0]
    assert batcher.stats().memory == 0


def test_a_deadline_counts_no_more_once_the_steps_are_done(start, model, ask):
    now = 100.0
    decoding, go_on = threading.Event(), threading.Event()
    model.decode = lambda *_: (decoding.set(), go_on.wait(30))
    batcher = start(clock=lambda: now)
    handle = batcher.submit(ask(0), deadline=5.0)
    assert decoding.wait(30)
    now = 200.0
    go_on.set()
    assert handle.result(30)


def test_a_deadline_wakes_an_idle_worker(start, model, ask):
    release = threading.Event()
    prepare = model.prepare
    model.prepare = lambda one: (release.wait(30), prepare(one))[1]
    batcher = start()
    handle = batcher.submit(ask(0), deadline=0.05)
    with pytest.raises(Expired):
        handle.result(30)
    release.set()
    assert batcher.drain(30)
    assert model.stepped == []


def test_a_deadline_far_away_is_no_trouble(start, ask):
    assert start().submit(ask(0), deadline=1e300).result(30)


def test_what_prepare_or_decode_raises_fails_its_request_alone(start, ask, expected):
    batcher = start()
    asks = [ask(0), ask(1, bad="prepare"), ask(2), ask(3, bad="decode"), ask(4)]
    handles = [batcher.submit(one) for one in asks]
    assert batcher.drain(30)
    assert [handle.state for handle in handles] == [
        State.DONE,
        State.FAILED,
        State.DONE,
        State.FAILED,
        State.DONE,
    ]
    with pytest.raises(ValueError, match="request 1 is bad"):
        handles[1].result(0)
    with pytest.raises(OSError, match="request 3 is bad"):
        handles[3].result(0)
    assert handles[4].result(0).value == expected(asks[4])


def test_a_bad_request_takes_no_neighbour_along(blocked, model, ask, expected):
    batcher, first = blocked(first=ask(0, steps=4))
    asks = [ask(1, steps=4), ask(2, steps=4, bad="step"), ask(3, steps=4)]
    handles = [batcher.submit(one) for one in asks]
    assert eventually(lambda: 3 in model.prepared)
    model.gate.set()
    assert batcher.drain(30)
    assert first.result(0).value == expected(ask(0, steps=4))
    assert [handle.state for handle in handles] == [State.DONE, State.FAILED, State.DONE]
    assert [handles[i].result(0).value for i in (0, 2)] == [expected(asks[i]) for i in (0, 2)]
    with pytest.raises(ArithmeticError, match="a bad request"):
        handles[1].result(0)
    sizes = [len(seeds) for _, seeds in model.stepped]
    assert sizes[:2] == [1, 4]
    assert set(sizes[2:]) == {1}
    assert [seeds for _, seeds in model.stepped].count((2,)) == 1


def test_a_request_that_fails_alone_is_not_tried_again(start, model, ask):
    batcher = start()
    handle = batcher.submit(ask(7, bad="step"))
    with pytest.raises(ArithmeticError, match="a bad request") as caught:
        handle.result(30)
    assert model.stepped == [("small", (7,))]
    assert "in step" in caught.value.__notes__[0]


@pytest.mark.parametrize("method", ["join", "leave", "progress", "make"])
def test_every_part_of_a_step_may_fail(start, model, ask, expected, method):
    failed = threading.Event()
    make = model.make

    def raising(*_):
        failed.set()
        raise MemoryError("no room on the device")

    def once(shape):
        if not failed.is_set() and method == "make":
            raising()
        stepper = make(shape)
        if not failed.is_set():
            setattr(stepper, method, raising)
        return stepper

    model.make = once
    batcher = start(policy=Policy(max_wait=5.0), limits=Limits(batch=2))
    handles = [batcher.submit(ask(seed)) for seed in range(2)]
    assert batcher.drain(30)
    assert failed.is_set()
    assert [handle.result(0).value for handle in handles] == [expected(ask(seed)) for seed in range(2)]


def test_a_failure_while_a_cancelled_request_leaves(blocked, model, ask, expected):
    """The batch is given up: the others start again alone."""
    batcher, first = blocked(first=ask(0, steps=50))
    others = [batcher.submit(ask(seed, steps=4)) for seed in (1, 2)]
    assert eventually(lambda: 2 in model.prepared)

    def spoil(stepper):
        if len(stepper.jobs) == 3:
            model.on_step = lambda stepper: None
            first.cancel()
            stepper.leave = lambda places: 1 / 0

    # a step of the first, one of all three, and four of each of the two alone

    model.on_step = spoil
    model.gate.set()
    assert batcher.drain(30)
    assert [len(seeds) for _, seeds in model.stepped] == [1, 3] + [1] * 8
    assert [handle.result(0).value for handle in others] == [expected(ask(seed, steps=4)) for seed in (1, 2)]
    assert first.state is State.CANCELLED


def test_a_request_that_is_cancelled_in_a_step_that_fails_does_not_start_again(blocked, model, ask, expected):
    batcher, first = blocked(first=ask(0, steps=4))
    other = batcher.submit(ask(1, steps=4))
    assert eventually(lambda: 1 in model.prepared)

    def spoil(stepper):
        if len(stepper.jobs) == 2:
            first.cancel()
            raise MemoryError

    model.on_step = spoil
    model.gate.set()
    assert batcher.drain(30)
    assert other.result(0).value == expected(ask(1, steps=4))
    assert [seeds for _, seeds in model.stepped] == [(0,), (0, 1)] + [(1,)] * 4
    assert batcher.stats().memory == 0


def test_drain_finishes_what_is_there_and_takes_no_more(blocked, model, ask):
    batcher, first = blocked()
    second = batcher.submit(ask(1))
    assert not batcher.drain(0.02)
    with pytest.raises(Closed):
        batcher.submit(ask(2))
    model.gate.set()
    assert batcher.drain(30)
    assert (first.state, second.state) == (State.DONE, State.DONE)


def test_close_cancels_everything(blocked, model, ask):
    batcher, first = blocked(Limits(batch=1, ahead=0))
    queued = batcher.submit(ask(1, shape="first"))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(Closed):
        while True:
            batcher.submit(ask(9, shape="first"))
            time.sleep(0.001)
    model.gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert (first.state, queued.state) == (State.CANCELLED, State.CANCELLED)
    with pytest.raises(Cancelled, match="the batcher was closed"):
        queued.result(0)
    assert batcher.stats().memory == 0
    batcher.close()


def test_close_drops_what_waits_for_the_pools(start, model, ask):
    preparing, go_on = threading.Event(), threading.Event()
    model.prepare = lambda one: (preparing.set(), go_on.wait(30), 1 / 0)
    batcher = start()
    handles = [batcher.submit(ask(seed)) for seed in range(5)]
    assert preparing.wait(30)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert eventually(lambda: all(handle.state is State.CANCELLED for handle in handles))
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert batcher.stats().states[State.CANCELLED] == 5


def test_close_from_a_callback(start, ask):
    batcher = start()
    first = batcher.submit(ask(0))
    closed = threading.Event()
    first.add_done_callback(lambda handle: (batcher.close(), closed.set()))
    assert closed.wait(30)
    with pytest.raises(Closed):
        batcher.submit(ask(1))


def test_the_context_manager_finishes_what_is_there(model, ask):
    model.gate.clear()
    with Batcher(model.stages()) as batcher:
        handle = batcher.submit(ask(0, steps=3))
        assert model.stepping_now.wait(30)
        threading.Timer(0.05, model.gate.set).start()
    assert handle.state is State.DONE


def test_the_context_manager_cancels_after_an_exception(model, ask):
    with pytest.raises(KeyError), Batcher(model.stages()) as batcher:
        handle = batcher.submit(ask(1, steps=10**9))
        raise KeyError
    assert handle.state is State.CANCELLED


def test_nobody_is_left_when_the_step_thread_itself_fails(blocked, model, ask, caplog):
    batcher, first = blocked(Limits(batch=1, ahead=0))
    queued = batcher.submit(ask(1, shape="first"))
    batcher._worker._scheduler.stepped = None
    model.gate.set()
    for handle in (first, queued):
        with pytest.raises(RuntimeError, match="the thread that steps has failed") as caught:
            handle.result(30)
        assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(Closed):
        batcher.submit(ask(2))
    assert batcher.drain(30)
    assert "the thread that steps has failed" in caplog.text


def test_an_idle_worker_sleeps(start, ask):
    batcher = start()
    batcher.submit(ask(0)).result(30)
    assert batcher.drain(30)
    scheduler = batcher._worker._scheduler
    asked, turn = [], scheduler.turn
    scheduler.turn = lambda now: (asked.append(now), turn(now))[1]
    time.sleep(0.2)
    assert len(asked) <= 1


@pytest.mark.parametrize("bad", [None, "prepare", "step", "decode"])
def test_nothing_of_a_finished_request_is_kept(start, model, ask, bad):
    held = []
    for name in ("prepare", "decode"):
        stage = getattr(model, name)

        def watched(*values, stage=stage):
            held.extend(weakref.ref(value) for value in values)
            return stage(*values)

        setattr(model, name, watched)
    model.on_step = lambda stepper: held.extend(map(weakref.ref, [stepper, *stepper.jobs, *stepper.latents]))
    batcher = start()
    handle = batcher.submit(ask(0, bad=bad))
    error = handle.exception(30)
    assert (error is None) == (bad is None)
    assert eventually(lambda: not batcher._worker._scheduler.entries)
    result = weakref.ref(handle.result() if bad is None else handle)
    model.on_step = lambda stepper: None
    assert len(held) >= 1
    assert eventually(lambda: (gc.collect(), all(ref() is None for ref in held))[1])
    del handle, error
    assert eventually(lambda: (gc.collect(), result() is None)[1])


def test_stats_follow_the_requests(blocked, model, ask):
    batcher, first = blocked(Limits(batch=1, ahead=0))
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


def test_a_program_that_forgets_to_close_ends_all_the_same():
    program = """
import time
from syncflow.engine.batching import Batcher, Stages

class Stepper:
    def join(self, jobs): pass
    def leave(self, places): return [None for _ in places]
    def step(self): time.sleep(0.01); return []
    def progress(self, place): return 0, 1

batcher = Batcher(Stages(lambda q: 0, lambda q: 0, lambda q: q, lambda key: Stepper(), lambda *_: None))
handle = batcher.submit(1)
handle.add_done_callback(lambda one: print(one.state, flush=True))
time.sleep(0.1)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "cancelled\n", "")


def test_drain_waits_for_callbacks(start, model, ask):
    told, called = threading.Event(), threading.Event()
    decoding, go_on = threading.Event(), threading.Event()
    model.decode = lambda *_: (decoding.set(), go_on.wait(30))
    batcher = start()
    handle = batcher.submit(ask(0))
    handle.add_done_callback(lambda one: (called.set(), told.wait(30)))
    assert decoding.wait(30)
    cancelling = threading.Thread(target=handle.cancel)
    cancelling.start()
    go_on.set()
    assert called.wait(30)
    assert eventually(lambda: not batcher._worker._scheduler.entries)
    assert not batcher.drain(0.02)
    told.set()
    assert batcher.drain(30)
    cancelling.join(30)
