"""A handle ends once, tells everybody who waits, and keeps nothing it need not."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter

import pytest

from syncflow.engine.batching import Cancelled, Expired, Handle, Progress, State

ENDS = {
    State.DONE: {"result": 7},
    State.FAILED: {"error": ValueError("bad")},
    State.CANCELLED: {"error": Cancelled("cancelled")},
    State.EXPIRED: {"error": Expired("late")},
}


@pytest.fixture
def finals() -> list[State]:
    return []


@pytest.fixture
def handle(finals) -> Handle:
    return Handle(finals.append)


def test_a_new_handle_waits(handle):
    assert (handle.state, handle.progress, handle.done()) == (State.QUEUED, Progress(0, 0), False)
    with pytest.raises(TimeoutError, match=r"still queued after 0\.01 s"):
        handle.result(0.01)


@pytest.mark.parametrize("state", ENDS, ids=str)
def test_the_first_end_is_the_only_one(handle, finals, state):
    assert handle.finish(state, **ENDS[state])
    for other, values in ENDS.items():
        assert not handle.finish(other, **values)
    assert not handle.cancel()
    assert not handle.advance(State.RUNNING, Progress(1, 2))
    assert (handle.state, handle.progress, finals) == (state, Progress(0, 0), [state])
    error = ENDS[state].get("error")
    assert handle.exception(0) is error
    if error is None:
        assert handle.result(0) == 7
    else:
        with pytest.raises(type(error), match=str(error)):
            handle.result()


def test_times_are_those_of_the_first_arrival_in_a_state(handle):
    for state in (State.PREPARING, State.RUNNING):
        handle.advance(state)
    began = handle.times[State.RUNNING]
    handle.advance(State.RUNNING, Progress(1, 2))
    handle.cancel()
    handle.advance(State.DECODING)
    times = handle.times
    assert times[State.RUNNING] == began
    assert [*times] == [State.QUEUED, State.PREPARING, State.RUNNING, State.CANCELLED]
    assert sorted(times.values()) == [*times.values()]


def test_of_many_who_end_it_at_once_one_does(finals):
    for _ in range(50):
        finals.clear()
        handle = Handle(finals.append)
        start, won = threading.Barrier(4), Counter()

        def end(state, handle=handle, start=start, won=won):
            start.wait(30)
            won[handle.finish(state, **ENDS[state])] += 1

        threads = [threading.Thread(target=end, args=(state,)) for state in ENDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert won == {True: 1, False: 3}
        assert finals == [handle.state]


def test_callbacks_come_once_each_and_their_errors_stop_nobody(handle, caplog):
    called = []

    def bad(_):
        raise RuntimeError("in a callback")

    handle.add_done_callback(bad)
    handle.add_done_callback(lambda one: called.append((one, one.state)))
    assert not called
    handle.finish(State.DONE, 7)
    handle.add_done_callback(lambda one: called.append("late"))
    assert called == [(handle, State.DONE), "late"]
    assert "in a callback" in caplog.text


def test_a_callback_may_use_the_handle(handle):
    found = []
    handle.add_done_callback(lambda one: found.append((one.result(0), one.cancel())))
    handle.finish(State.DONE, 7)
    assert found == [(7, False)]


def advance_in_turn(handle, seen, state=State.DONE, **values):
    """Steps 1 to 3 of 3, each when the one before has been seen."""
    for step in range(1, 4):
        handle.advance(State.RUNNING, Progress(step, 3))
        deadline = time.monotonic() + 30
        while (not seen or seen[-1].done < step) and time.monotonic() < deadline:
            time.sleep(0.001)
    handle.finish(state, **values)


@pytest.mark.parametrize("state", ENDS, ids=str)
def test_iteration_gives_every_change_and_ends_with_the_request(handle, state):
    seen = []
    thread = threading.Thread(target=advance_in_turn, args=(handle, seen, state), kwargs=ENDS[state])
    thread.start()
    for progress in handle:
        seen.append(progress)
    thread.join(30)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert list(handle) == [(3, 3)]


def test_iteration_of_a_request_that_never_ran_is_empty(handle):
    handle.cancel()
    assert list(handle) == []


def test_async_iteration_and_several_waiters():
    async def main():
        handle = Handle()
        seen = []

        async def watch():
            async for progress in handle:
                seen.append(progress)

        async def outcome():
            return await handle

        tasks = [asyncio.create_task(coroutine) for coroutine in (watch(), outcome(), outcome())]
        await asyncio.sleep(0)
        thread = threading.Thread(target=advance_in_turn, args=(handle, seen), kwargs={"result": 7})
        thread.start()
        found = await asyncio.wait_for(asyncio.gather(*tasks), 20)
        thread.join(30)
        assert found == [None, 7, 7]
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert await handle == 7
        assert not handle._watchers

    asyncio.run(main())


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED], ids=str)
def test_await_raises_what_the_request_ended_with(state):
    async def main():
        handle = Handle()
        threading.Timer(0.02, handle.finish, args=(state,), kwargs=ENDS[state]).start()
        with pytest.raises(type(ENDS[state]["error"])):
            await handle

    asyncio.run(main())


def test_a_waiter_that_gives_up_leaves_the_request_alone():
    async def main():
        handle = Handle()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.02)
        assert not handle.done()
        assert not handle._watchers
        handle.finish(State.DONE, 7)
        assert await handle == 7

    asyncio.run(main())


def test_the_end_may_come_after_the_loop_is_closed():
    handle = Handle()
    loop = asyncio.new_event_loop()
    iterator = handle.__aiter__()
    waiting = loop.create_task(anext(iterator))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(handle._watchers) == 1
    loop.close()
    assert handle.finish(State.DONE, 7)
    assert handle.result(0) == 7
    waiting._log_destroy_pending = False


def test_waiting_does_not_run_the_loop():
    """A busy wait would let the loop count far; a waiter wakes it only when something changes."""

    async def main():
        handle = Handle()
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        turns = 0
        select = loop._selector.select

        def counted(timeout):
            nonlocal turns
            turns += 1
            return select(timeout)

        loop._selector.select = counted
        threading.Timer(0.2, handle.finish, args=(State.DONE, 7)).start()
        assert await waiting == 7
        assert turns <= 5

    asyncio.run(main())


@pytest.mark.slow
def test_an_ended_handle_holds_nothing_but_its_result():
    class Thing:
        pass

    held, callback_holds = Thing(), Thing()
    gone = weakref.ref(held), weakref.ref(callback_holds)
    handle = Handle(lambda state, held=held: None)
    handle.add_done_callback(lambda one, held=callback_holds: None)
    handle.cancel()
    del held, callback_holds
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_an_error_that_was_raised_keeps_no_handle_alive():
    handle, kept = Handle(), ValueError("bad")
    handle.finish(State.FAILED, error=kept)
    gone = weakref.ref(handle)
    with pytest.raises(ValueError, match="bad"):
        handle.result()
    del handle
    assert gone() is None
    assert kept.__traceback__ is not None
