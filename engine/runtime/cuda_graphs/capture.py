"""Capturing a function as a CUDA graph, which replays the same kernels on the same memory in one launch.

A captured function must read only tensors whose addresses do not change. Its outputs are overwritten by the next replay
of any graph of the same memory pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


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
    """Captures CUDA graphs, with one memory pool for each ``pool``.

    A replay may overwrite the outputs of every graph that was captured before it into the same memory pool. Passes
    whose outputs are needed at the same time therefore need different pools.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pools: dict[Hashable, tuple[tuple[int, int], WeakSet[torch.cuda.CUDAGraph]]] = {}

    def __call__(self, function: Callable[[], T], pool: Hashable) -> Callable[[], T]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # warm-up: compiles kernels and allocates the workspaces of libraries
            function()
        graph = torch.cuda.CUDAGraph()
        handle, graphs = self._pools.get(pool, (None, WeakSet[torch.cuda.CUDAGraph]()))
        if handle is None or not graphs:  # the allocator frees a memory pool when its last graph is deleted
            handle = torch.cuda.graph_pool_handle()
        # "thread_local": other threads, which decode and encode, may allocate during the capture
        options: dict[str, Any] = {"pool": handle, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **options):
            outputs = function()
        current.wait_stream(self._stream)
        graphs.add(graph)
        self._pools[pool] = handle, graphs

        def replay() -> T:
            graph.replay()
            return outputs

        return replay
