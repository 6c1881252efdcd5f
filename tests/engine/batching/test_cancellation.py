"""Requests that are cancelled, or expire, in every phase."""

from __future__ import annotations

import threading

import pytest

from syncflow.engine.batching import Cancelled, Expired, Limits, State

from .helpers import eventually


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
    assert 1 not in model.encoded


def test_a_running_request_leaves_within_a_step(blocked, model, ask):
    batcher, first = blocked(first=ask(0, steps=50))
    other = batcher.submit(ask(1, steps=3))
    assert eventually(lambda: 1 in model.encoded)
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
    assert eventually(lambda: 1 in model.encoded)
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
    assert model.encoded == [0]
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


def test_a_deadline_wakes_an_idle_batcher(start, model, ask):
    release = threading.Event()
    encode = model.encode
    model.encode = lambda one: (release.wait(30), encode(one))[1]
    batcher = start()
    handle = batcher.submit(ask(0), deadline=0.05)
    with pytest.raises(Expired):
        handle.result(30)
    release.set()
    assert batcher.drain(30)
    assert model.stepped == []


def test_a_deadline_far_away_is_no_trouble(start, ask):
    assert start().submit(ask(0), deadline=1e300).result(30)
