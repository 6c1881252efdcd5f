"""Many threads, everything at once: no handle without an end, no place lost, no wrong result."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest

from syncflow.engine.batching import Cancelled, Expired, Full, Limits, Policy, State

THREADS, EACH = 6, 60

pytestmark = pytest.mark.slow

LIMITS = Limits(queue=24, batch=4, memory=40, prepare_threads=2, decode_threads=2)
BAD = (None, None, None, None, None, None, None, None, None, "encode", "step", "decode")


class Injected(Exception):
    """A step that fails for no fault of its requests."""


class Client(threading.Thread):
    """Submits requests, and cancels some of them a little later."""

    def __init__(self, batcher, ask, seed):
        super().__init__(name=f"client-{seed}")
        self.batcher, self.ask, self.draw = batcher, ask, random.Random(seed)
        self.asks, self.handles, self.called, self.refused = [], [], Counter(), 0
        self.error = None

    def run(self):
        try:
            for number in range(EACH):
                self.submit(number)
                if self.draw.random() < 0.2:
                    self.draw.choice(self.handles).cancel()
                if self.draw.random() < 0.3:
                    time.sleep(self.draw.random() * 0.004)
        except BaseException as error:
            self.error = error

    def submit(self, number):
        draw = self.draw
        one = self.ask(
            seed=draw.getrandbits(32),
            steps=draw.randint(1, 12),
            shape=draw.choice("aaabc"),
            cost=draw.randint(1, 20),
            bad=draw.choice(BAD),
        )
        deadline = draw.choice([None, None, None, 0.001, 0.02, 5.0])
        while True:
            try:
                handle = self.batcher.submit(one, priority=draw.randint(-2, 2), deadline=deadline)
                break
            except Full:
                self.refused += 1
                time.sleep(0.001)
        handle.add_done_callback(lambda _: self.called.update([number]))
        self.asks.append(one)
        self.handles.append(handle)


def check(one, handle, expected):
    """The end of a request is one that it may have."""
    error = handle.exception(0)
    if handle.state is State.DONE:
        assert one.bad is None
        assert handle.result(0).value == expected(one)
        assert handle.progress == (one.steps, one.steps)
    elif handle.state is State.FAILED:
        wanted = {"encode": ValueError, "step": ArithmeticError, "decode": OSError}.get(one.bad, Injected)
        assert isinstance(error, (wanted, Injected))
    else:
        assert isinstance(error, {State.CANCELLED: Cancelled, State.EXPIRED: Expired}[handle.state])


@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "static"])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_has_one_end_and_leaves_nothing_behind(start, model, ask, expected, seed, continuous):
    draw = random.Random(seed)
    batcher = start(LIMITS, Policy(continuous=continuous, max_wait=draw.choice([0.0, 0.002]), ageing=0.05))
    scheduler = batcher._scheduler
    most_memory = 0

    def disturb(batch):
        nonlocal most_memory
        most_memory = max(most_memory, scheduler.reserved)
        time.sleep(draw.choice([0.0, 0.0, 0.001]))
        if draw.random() < 0.03:
            raise Injected

    model.on_step = disturb
    clients = [Client(batcher, ask, 100 * seed + i) for i in range(THREADS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
        assert not client.is_alive() and client.error is None
    assert batcher.drain(60)

    states = Counter()
    for client in clients:
        assert client.called == Counter(range(EACH))
        for one, handle in zip(client.asks, client.handles, strict=True):
            check(one, handle, expected)
            states[handle.state] += 1
    found = batcher.stats()
    assert {state: count for state, count in found.states.items() if count} == states
    assert sum(states.values()) == THREADS * EACH
    assert states[State.DONE] > THREADS * EACH / 8
    assert all(states[state] for state in (State.FAILED, State.CANCELLED, State.EXPIRED))
    assert model.most <= LIMITS.batch
    assert 0 < most_memory <= LIMITS.memory
    assert (found.queue, found.running, found.batches, found.memory) == (0, 0, 0, 0)
    assert not scheduler.requests and not batcher._batches


@pytest.mark.parametrize("seed", range(3))
def test_closing_in_the_middle_ends_everybody(start, model, ask, expected, seed):
    batcher = start(LIMITS)
    draw = random.Random(seed)
    handles, stop = [], threading.Event()

    def feed():
        while not stop.is_set():
            one = ask(draw.getrandbits(32), steps=draw.randint(1, 30), shape=draw.choice("ab"), cost=1)
            try:
                handles.append((one, batcher.submit(one)))
            except Full:
                time.sleep(0.0005)
            except RuntimeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    time.sleep(0.1)
    batcher.close()
    stop.set()
    feeder.join(30)
    assert not feeder.is_alive()
    for one, handle in handles:
        assert handle.state in (State.DONE, State.CANCELLED)
        check(one, handle, expected)
    assert batcher.stats().memory == 0
