"""Requests and batches that fail: which request ends with the error, and which go on."""

from __future__ import annotations

import threading

import pytest

from syncflow.engine.batching import Closed, Limits, Policy, State

from .helpers import eventually


def test_what_encode_or_decode_raises_fails_its_request_alone(start, ask, expected):
    batcher = start()
    asks = [ask(0), ask(1, bad="encode"), ask(2), ask(3, bad="decode"), ask(4)]
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
    assert eventually(lambda: 3 in model.encoded)
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


@pytest.mark.parametrize("method", ["join", "leave", "progress", "make_batch"])
def test_every_part_of_a_step_may_fail(start, model, ask, expected, method):
    failed = threading.Event()
    make = model.make_batch

    def raising(*_):
        failed.set()
        raise MemoryError("no room on the device")

    def once(shape):
        if not failed.is_set() and method == "make_batch":
            raising()
        batch = make(shape)
        if not failed.is_set():
            setattr(batch, method, raising)
        return batch

    model.make_batch = once
    batcher = start(policy=Policy(max_wait=5.0), limits=Limits(batch=2))
    handles = [batcher.submit(ask(seed)) for seed in range(2)]
    assert batcher.drain(30)
    assert failed.is_set()
    assert [handle.result(0).value for handle in handles] == [expected(ask(seed)) for seed in range(2)]


def test_a_failure_while_a_cancelled_request_leaves(blocked, model, ask, expected):
    """The batch is given up: the others start again alone."""
    batcher, first = blocked(first=ask(0, steps=50))
    others = [batcher.submit(ask(seed, steps=4)) for seed in (1, 2)]
    assert eventually(lambda: 2 in model.encoded)

    def spoil(batch):
        if len(batch.jobs) == 3:
            model.on_step = lambda batch: None
            first.cancel()
            batch.leave = lambda places: 1 / 0

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
    assert eventually(lambda: 1 in model.encoded)

    def spoil(batch):
        if len(batch.jobs) == 2:
            first.cancel()
            raise MemoryError

    model.on_step = spoil
    model.gate.set()
    assert batcher.drain(30)
    assert other.result(0).value == expected(ask(1, steps=4))
    assert [seeds for _, seeds in model.stepped] == [(0,), (0, 1)] + [(1,)] * 4
    assert batcher.stats().memory == 0


def test_nobody_is_left_when_the_step_thread_itself_fails(blocked, model, ask, caplog):
    batcher, first = blocked(Limits(batch=1, ahead=0))
    queued = batcher.submit(ask(1, shape="first"))
    batcher._scheduler.record_step = None
    model.gate.set()
    for handle in (first, queued):
        with pytest.raises(RuntimeError, match="the thread that steps has failed") as caught:
            handle.result(30)
        assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(Closed):
        batcher.submit(ask(2))
    assert batcher.drain(30)
    assert "the thread that steps has failed" in caplog.text
