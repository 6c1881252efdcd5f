"""Engines from their first request to their end: event loops, forks, and engines that nobody closes."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from syncflow import Cancelled, Closed, Engine, Handle
from syncflow.engine import forking
from syncflow.engine.batching import State

pytestmark = pytest.mark.slow

SETTINGS = {"steps": 1, "seconds": 0.25}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def load() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch")


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition holds before the time is over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    return condition()


def in_child(work: Callable[[], object], seconds: float = 60) -> str:
    """What ``work`` says in a forked child: its result or its exception, or nothing where it waits for ever."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child waits for ever")
        time.sleep(0.02)
    with os.fdopen(reader) as text:
        return text.read()


# Event loops


def finish_later(handle: Handle, seconds: float = 0.05) -> None:
    threading.Timer(seconds, lambda: handle.finish(State.DONE, 5)).start()


def test_asyncio_waits_for_handles():
    async def wait() -> None:
        first, second, never = Handle(), Handle(), Handle()
        finish_later(first)
        second.finish(State.DONE, 7)
        done, pending = await asyncio.wait([first, second], timeout=10)
        assert done == {first, second} and not pending
        done, pending = await asyncio.wait([never, first], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert done == {first} and pending == {never}
        done, pending = await asyncio.wait([never], timeout=0.05)
        assert not done and never._callbacks == []
        never.cancel()
        done, _ = await asyncio.wait([never], timeout=10, return_when=asyncio.FIRST_EXCEPTION)
        assert done == {never} and never.cancelled() and not first.cancelled()
        assert await asyncio.gather(first, second) == [5, 7]

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_a_callback_of_an_event_loop_runs_in_it():
    async def wait() -> int:
        handle, found = Handle(), asyncio.get_running_loop().create_future()
        handle.add_done_callback(lambda _: found.set_result(threading.get_ident()))
        finish_later(handle)
        return await found

    assert asyncio.run(wait()) == threading.get_ident()


def test_a_callback_can_be_removed():
    handle, called = Handle(), []
    handle.add_done_callback(called.append)
    handle.add_done_callback(called.append)
    assert (handle.remove_done_callback(called.append), handle.remove_done_callback(called.append)) == (2, 0)
    handle.cancel()
    assert called == []


# Forks


@needs_fork
def test_an_engine_answers_in_a_forked_child():
    """With two threads, which the child does not have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = load()
        before = engine.generate("a ball", **SETTINGS)

        def again() -> str:
            clip = engine.generate("a ball", **SETTINGS)
            return f"{abs(clip.waveform - before.waveform).max() < 1e-4} {torch.get_num_threads()}"

        with engine.backend.conditioning_cache._lock:
            assert in_child(again) == "True 1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@needs_fork
def test_what_was_submitted_before_a_fork_is_refused_in_the_child():
    with load() as engine:
        engine.submit("a ball", **SETTINGS).result()
        running = engine.submit("a ball", steps=200, seconds=0.25)

        def ask() -> str:
            found = []
            for call in (lambda: running.result(20), lambda: engine.submit("a ball", **SETTINGS)):
                try:
                    found.append(call())
                except (Cancelled, Closed) as error:
                    found.append(type(error).__name__)
            found.append(engine.drain(20))
            engine.close()
            return str(found)

        assert in_child(ask) == "['Cancelled', 'Closed', True]"
        assert running.result(120)[0].seconds == 0.25  # the parent's goes on


@needs_fork
def test_a_runtime_with_threads_of_its_own_is_refused_in_the_child(monkeypatch):
    engine = load()
    monkeypatch.setattr("syncflow.engine.engine.FORKABLE", ())
    said = in_child(lambda: engine.generate("a ball", **SETTINGS))
    assert said.startswith("RuntimeError: the process was forked after this engine was loaded")
    assert engine.generate("a ball", **SETTINGS).seconds == 0.25


@needs_fork
def test_a_fork_leaves_pytorch_alone_where_nothing_was_used(monkeypatch):
    monkeypatch.setattr(forking, "_used", weakref.WeakSet())
    threads = torch.get_num_threads()
    assert in_child(torch.get_num_threads) == str(threads)


# Engines that nobody closes


def test_an_engine_that_is_dropped_ends_its_threads():
    threads = threading.active_count()
    engine = load()
    model = weakref.ref(engine.denoiser)
    engine.submit("a ball", **SETTINGS).result()
    assert threading.active_count() > threads
    del engine
    assert within(20, lambda: threading.active_count() <= threads), threading.enumerate()
    assert within(20, lambda: model() is None)


def test_what_was_submitted_to_a_dropped_engine_is_finished():
    threads = threading.active_count()
    handles = [load().submit("a ball", seed=seed, **SETTINGS) for seed in range(2)]
    gc.collect()
    assert [handle.result(60)[0].provenance["seed"] for handle in handles] == [0, 1]
    assert within(20, lambda: threading.active_count() <= threads), threading.enumerate()


def test_the_cache_of_texts_has_a_limit():
    engine = Engine.from_pretrained(device="cpu", runtime="torch", cache_bytes=2_000_000)
    for i in range(6):
        engine.generate(f"ball number {i}", **SETTINGS)
    assert engine.conditioning_cache.size <= 2_000_000
    few = Engine.from_pretrained(device="cpu", runtime="torch", cache_bytes=1)
    for i in range(3):
        few.generate(f"ball number {i}", **SETTINGS)
    assert list(few.pipeline.texts._kept) == ["ball number 2"]
    with pytest.raises(ValueError, match="cache_bytes is -1; it must be a whole number from 0 to"):
        Engine.from_pretrained(device="cpu", cache_bytes=-1)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="memory is read from /proc")
def test_requests_of_every_kind_leave_nothing_behind():
    """The bounded form of ``python tests/engine/soak.py``."""
    script = Path(__file__).with_name("soak.py")
    done = subprocess.run([sys.executable, str(script), "0.05"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over all" in done.stdout
