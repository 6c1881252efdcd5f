"""Capturing without a GPU: which stream waits for which, which graphs share a memory pool, and who owns workspaces."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.runtime.cuda_graphs.capture import CAPTURES, CudaCapture

CPU = torch.device("cpu")


@dataclass(eq=False)
class Workspace:
    """Memory of cuBLAS, from the memory pool of a graph or, for None, from that of all other work."""

    pool: int | None
    freed: bool = False


class Stream:
    device = CPU

    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """A CUDA graph; replaying checks the workspaces whose addresses it holds."""

    def __init__(self, cuda):
        self.cuda, self.pool, self.stream, self.workspaces = cuda, None, None, []

    def replay(self):
        for workspace in self.workspaces:
            assert workspace.pool == self.pool or not workspace.freed, "the workspace belongs to others now"

    def __del__(self):
        self.cuda.free(lambda stream: stream is self.stream)


class Cuda:
    """``torch.cuda`` as far as a capture uses it, with the workspaces that PyTorch keeps for each stream."""

    def __init__(self, patch):
        self.log, self.current, self.recording = [], [], None
        self.main, self.workspaces = Stream(self, "main"), {}
        names, handles = (f"side {i}" for i in range(100)), iter(range(100))
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(self, next(names)))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.stream)
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "device", lambda device: self.on(self.stream))
        patch.setattr(torch.cuda, "graph", self.graph)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.free(lambda _: True), raising=False)

    @property
    def stream(self):
        return self.current[-1] if self.current else self.main

    @contextmanager
    def on(self, stream):
        self.current.append(stream)
        yield
        self.current.pop()

    @contextmanager
    def graph(self, made, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        made.pool, made.stream, self.recording = pool, stream, made
        self.log.append(f"record into {pool}")
        with self.on(stream):
            yield
        self.recording = None

    def free(self, matches):
        for stream in [stream for stream in self.workspaces if matches(stream)]:
            self.workspaces.pop(stream).freed = True

    def multiply(self):
        """A matrix product of cuBLAS on the current stream."""
        pool = None if self.recording is None else self.recording.pool
        workspace = self.workspaces.setdefault(self.stream, Workspace(pool))
        if self.recording is not None:
            self.recording.workspaces.append(workspace)
        self.log.append(f"work on {self.stream.name}")


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_work_is_warmed_up_aside_and_captured_once(cuda):
    CudaCapture(CPU)(cuda.multiply, "pool")
    assert cuda.log == [
        "side 0 waits for main",
        "work on side 0",
        "record into 0",
        "work on side 0",
        "main waits for side 0",
    ]


def test_pools_are_shared_by_name_while_they_are_in_use(cuda):
    capture = CudaCapture(CPU)
    first, second, other = (capture(lambda: None, pool) for pool in ("a", "a", "b"))
    pools = [entry for entry in cuda.log if entry.startswith("record")]
    assert pools == ["record into 0", "record into 0", "record into 1"]
    del first, second  # nothing is left of pool 0, which the allocator may forget
    capture(lambda: None, "a")
    assert cuda.log[-2] == "record into 2"
    del other


def test_each_pool_is_captured_on_a_stream_of_its_own(cuda):
    capture = CudaCapture(CPU)
    for pool in ("a", "b", "a"):
        capture(cuda.multiply, pool)
    assert [entry.split()[-1] for entry in cuda.log if entry.startswith("work")] == ["0", "0", "1", "1", "0", "0"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=50)
def test_a_graph_works_in_memory_of_its_own_pool(events):
    """Whatever is captured and evicted between its replays, and whatever else is multiplied meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        cuda, graphs = Cuda(patch), []
        capture = CudaCapture(CPU)
        for pool, evict in events:
            cuda.multiply()
            graphs.append(capture(cuda.multiply, pool))
            if evict:
                del graphs[0]
            for replay in graphs:
                replay()
        for replay in graphs:
            graph = next(cell.cell_contents for cell in replay.__closure__ if isinstance(cell.cell_contents, Graph))
            assert {workspace.pool for workspace in graph.workspaces} == {graph.pool}


def test_nothing_is_encoded_or_decoded_during_a_capture(cuda):
    held = []
    CudaCapture(CPU)(lambda: held.append(CAPTURES._alone), "pool")
    assert held == [True, True]
    assert not CAPTURES._alone
