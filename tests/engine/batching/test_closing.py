"""Draining and closing a batcher; what it keeps of finished requests."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from syncflow.engine.batching import Batcher, Cancelled, Closed, Limits, State

from .helpers import eventually


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
    encoding, go_on = threading.Event(), threading.Event()
    model.encode = lambda one: (encoding.set(), go_on.wait(30), 1 / 0)
    batcher = start()
    handles = [batcher.submit(ask(seed)) for seed in range(5)]
    assert encoding.wait(30)
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
    with Batcher(model) as batcher:
        handle = batcher.submit(ask(0, steps=3))
        assert model.stepping_now.wait(30)
        threading.Timer(0.05, model.gate.set).start()
    assert handle.state is State.DONE


def test_the_context_manager_cancels_after_an_exception(model, ask):
    with pytest.raises(KeyError), Batcher(model) as batcher:
        handle = batcher.submit(ask(1, steps=10**9))
        raise KeyError
    assert handle.state is State.CANCELLED


@pytest.mark.slow
@pytest.mark.parametrize("bad", [None, "encode", "step", "decode"])
def test_nothing_of_a_finished_request_is_kept(start, model, ask, bad):
    held = []
    for name in ("encode", "decode"):
        stage = getattr(model, name)

        def watched(*values, stage=stage):
            held.extend(weakref.ref(value) for value in values)
            return stage(*values)

        setattr(model, name, watched)
    model.on_step = lambda batch: held.extend(map(weakref.ref, [batch, *batch.jobs, *batch.latents]))
    batcher = start()
    handle = batcher.submit(ask(0, bad=bad))
    error = handle.exception(30)
    assert (error is None) == (bad is None)
    assert eventually(lambda: not batcher._scheduler.requests)
    result = weakref.ref(handle.result() if bad is None else handle)
    model.on_step = lambda batch: None
    assert len(held) >= 1
    assert eventually(lambda: (gc.collect(), all(ref() is None for ref in held))[1])
    del handle, error
    assert eventually(lambda: (gc.collect(), result() is None)[1])


def test_a_program_that_forgets_to_close_ends_all_the_same():
    program = """
import time
from contextlib import nullcontext
from syncflow.engine.batching import Batcher

class Batch:
    def join(self, jobs): pass
    def leave(self, places): return [None for _ in places]
    def step(self): time.sleep(0.01); return []
    def progress(self, place): return 0, 1

class Backend:
    def start_thread(self): pass
    def stepping(self): return nullcontext()
    def shape(self, request): return 0
    def memory(self, request): return 0
    def encode(self, request): return request
    def make_batch(self, shape): return Batch()

batcher = Batcher(Backend())
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
    assert eventually(lambda: not batcher._scheduler.requests)
    assert not batcher.drain(0.02)
    told.set()
    assert batcher.drain(30)
    cancelling.join(30)
