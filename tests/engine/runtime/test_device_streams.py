"""Encoding, steps and decoding on streams of their own: nothing is read too early, no memory is taken too soon."""

from __future__ import annotations

import threading

import pytest
import torch

from syncflow.engine.backend import ModelBackend
from syncflow.engine.engine import Engine
from syncflow.engine.runtime import device_streams
from syncflow.engine.runtime.device_streams import CudaStreams, streams_of
from syncflow.engine.runtime.shared_lock import SharedLock
from syncflow.engine.sampling import batch as batch_module
from syncflow.engine.types import Request

from .timeline import Stream, races

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained(device="cpu", runtime="torch-plain")


@pytest.fixture(scope="module")
def clip(engine):
    return engine.generate("a ball", steps=1, seconds=0.5)


@pytest.fixture
def witness(monkeypatch):
    """Watches an engine whose streams are those of a GPU, as far as that can be had without one."""
    names = iter(("step", "encode", "decode"))
    with races(monkeypatch) as witness:
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names)))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(batch_module, "record_event", lambda device: witness.current.record_event())
        yield witness


def serve(engine, clip, rounds=2):
    """Clips of a few requests with known latents, each decoded while the next is encoded and stepped."""
    backend = ModelBackend(engine.components, engine.pipeline, engine.denoiser)
    backend.streams = CudaStreams(CPU)
    for seed in range(rounds):
        request = Request("a ball", seed=seed, steps=1, video=clip, strength=0.5, negative_prompt=f"{seed}")
        prepared = engine.pipeline.prepare(request)
        job = backend.encode(prepared)
        with backend.stepping():
            batch = backend.make_batch()
            batch.join([job])
            batch.step()
            latents = batch.leave([0])[0]
        del job, batch
        backend.decode(prepared, latents)
        del latents


def test_each_has_a_stream_and_all_is_in_order(engine, clip, witness):
    serve(engine, clip)
    assert all(witness.operations[name] > 0 for name in ("step", "encode", "decode"))
    assert not witness.found


def test_a_job_is_there_before_it_is_stepped(engine, clip, witness, monkeypatch):
    monkeypatch.setattr(Stream, "synchronize", lambda self: None)
    serve(engine, clip)
    assert any(
        "on the step stream reads or writes what is not written yet on the encode" in one for one in witness.found
    )


def test_latents_are_there_before_they_are_decoded(engine, clip, witness, monkeypatch):
    monkeypatch.setattr(batch_module, "record_event", lambda device: None)
    serve(engine, clip)
    assert any(
        "on the decode stream reads or writes what is not written yet on the step" in one for one in witness.found
    )


def test_memory_of_a_job_waits_for_the_steps(engine, clip, witness, monkeypatch):
    monkeypatch.setattr(CudaStreams, "_hold", lambda self, tensors, stream: None)
    serve(engine, clip, rounds=3)
    assert any("may take memory that is still in use on the step" in one for one in witness.found)


def test_a_device_with_one_stream_needs_nothing():
    assert type(streams_of(CPU)) is device_streams.DeviceStreams


def test_threads_of_a_batcher_begin_with_the_device(engine, monkeypatch):
    """Each thread of CUDA begins with device 0."""
    started = []
    monkeypatch.setattr(
        ModelBackend, "start_thread", lambda self: started.append(threading.current_thread().name.rpartition("_")[0])
    )
    with Engine(engine.components, runtime="torch-plain") as other:
        other.submit("a ball", steps=1, seconds=0.5).result(60)
    assert sorted(set(started)) == ["", "syncflow-decode", "syncflow-prepare"]  # the step thread has no number


def test_a_thread_takes_the_device_of_the_engine(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("any"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    streams_of(torch.device("cuda", 1)).start_thread()
    assert taken == [torch.device("cuda", 1)]


def test_a_lock_is_shared_or_held_alone():
    lock, order = SharedLock(), []
    shared, release = threading.Barrier(3), threading.Event()

    def share():
        with lock.shared():
            shared.wait()
            release.wait()
            order.append("shared")

    def alone():
        with lock.exclusive():
            order.append("alone")

    threads = [threading.Thread(target=share) for _ in range(2)]
    for thread in threads:
        thread.start()
    shared.wait()  # both hold it
    threads.append(threading.Thread(target=alone))
    threads[-1].start()
    while not lock._waiting:
        pass
    late = threading.Thread(target=lambda: [order.append("late") for _ in (lock.shared().__enter__(),)])
    late.start()
    release.set()
    for thread in (*threads, late):
        thread.join()
    assert order == ["shared", "shared", "alone", "late"]
