"""Capturing a function as a CUDA graph, which replays the same kernels on the same memory in one launch.

A captured function must read only tensors whose addresses do not change. Its outputs are overwritten by the next replay
of any graph of the same memory pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch.utils._pytree import tree_leaves

from ..shared_lock import SharedLock

T = TypeVar("T")

CAPTURES = SharedLock()
"""Held exclusively by a capture, which clears the cuBLAS workspaces of all threads; other work that may multiply
matrices at the same time, such as decoding, holds it shared."""


class Capture(Protocol):
    """Captures ``function``; returns a callable that replays it and returns the same output tensors, rewritten.

    Graphs with the same ``pool`` share the memory of their intermediate values.
    """

    def __call__(self, function: Callable[[], T], pool: Hashable) -> Callable[[], T]: ...


def eager_capture(function: Callable[[], T], pool: Hashable) -> Callable[[], T]:
    """A :class:`Capture` for devices without CUDA graphs: a replay calls the function and copies into its outputs."""
    outputs = function()

    def replay() -> T:
        for output, value in zip(tree_leaves(outputs), tree_leaves(function()), strict=True):
            if output is not None:
                output.copy_(value)
        return outputs

    return replay


class CudaCapture:
    """Captures CUDA graphs, with one memory pool and one stream for each ``pool``.

    A replay may overwrite the outputs of every graph that was captured before it into the same memory pool. Passes
    whose outputs are needed at the same time therefore need different pools.

    cuBLAS works in memory that PyTorch keeps for each pair of handle and stream, and frees when a graph of that stream
    is destroyed (pytorch/pytorch#193402). A graph that kept the address of such memory would share it with the graphs
    of other pools, or outlive it. Each capture therefore begins and ends without cuBLAS workspaces, as in
    ``torch._inductor.cudagraph_trees``: a graph takes its workspace from its own memory pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slots: dict[Hashable, _Slot] = {}

    def __call__(self, function: Callable[[], T], pool: Hashable) -> Callable[[], T]:
        with CAPTURES.exclusive(), torch.cuda.device(self.device):
            return self._capture(function, self._slots.setdefault(pool, _Slot(torch.cuda.Stream(self.device))))

    def _capture(self, function: Callable[[], T], slot: _Slot) -> Callable[[], T]:
        current = torch.cuda.current_stream(self.device)
        slot.stream.wait_stream(current)
        with _own_workspaces(), torch.cuda.stream(slot.stream):  # warm-up: compiles kernels, loads libraries
            function()
        graph = torch.cuda.CUDAGraph()
        if slot.handle is None or not slot.graphs:  # the allocator frees a memory pool when its last graph is deleted
            slot.handle = torch.cuda.graph_pool_handle()
        # "thread_local": other threads may allocate during the capture
        options: dict[str, Any] = {"pool": slot.handle, "stream": slot.stream, "capture_error_mode": "thread_local"}
        with _own_workspaces(), torch.cuda.graph(graph, **options):
            outputs = function()
        current.wait_stream(slot.stream)
        slot.graphs.add(graph)

        def replay() -> T:
            graph.replay()
            return outputs

        return replay


@dataclass(eq=False)
class _Slot:
    """The stream, the memory pool and the living graphs of one ``pool``."""

    stream: torch.cuda.Stream
    handle: tuple[int, int] | None = None
    graphs: WeakSet[torch.cuda.CUDAGraph] = field(default_factory=WeakSet)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Within: no cuBLAS workspace from before, and none of it remains afterwards."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
