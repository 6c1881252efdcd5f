"""Capturing without a GPU: which stream waits for which, and which graphs share a memory pool."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from syncflow.engine.runtime.cuda_graphs.capture import CudaCapture


class Graph:
    """Stands for a CUDA graph; replaying runs the work again."""

    def __init__(self):
        self.work, self.pool = None, None

    def replay(self):
        self.work()


class Stream:
    device = torch.device("cpu")

    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What happens, in order; ``torch.cuda`` is a fake."""
    log, current, handles = [], [], iter(range(10))
    main = Stream(log, "main")

    @contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    @contextmanager
    def graph(made, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        made.pool = pool
        log.append(f"record into {pool}")
        with on(stream):
            yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1] if current else main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    return log


def test_work_is_warmed_up_aside_and_captured_once(log):
    capture = CudaCapture(torch.device("cpu"))

    def work():
        log.append(f"work on {torch.cuda.current_stream().name}")
        return len(log)

    replay = capture(work, "pool")
    assert log == [
        "side waits for main",
        "work on side",
        "record into 0",
        "work on side",
        "main waits for side",
    ]
    assert replay.__closure__ is not None


def test_pools_are_shared_by_name_while_they_are_in_use(log):
    capture = CudaCapture(torch.device("cpu"))
    first, second, other = (capture(lambda: None, pool) for pool in ("a", "a", "b"))
    pools = [entry for entry in log if entry.startswith("record")]
    assert pools == ["record into 0", "record into 0", "record into 1"]
    del first, second  # nothing is left of pool 0, which the allocator may forget
    capture(lambda: None, "a")
    assert log[-2] == "record into 2"
    del other
