"""A computation recorded once and replayed: the same kernels on the same memory, in one call of the driver.

What is recorded must read nothing but memory that stays where it is, and its results are overwritten by the next replay
of anything that shares its pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class Capture(Protocol):
    """Records ``work``; returns what replays it, and with it the same result tensors, rewritten.

    Recordings of one ``pool`` share the memory of their intermediate values.
    """

    def __call__(self, work: Callable[[], T], pool: Hashable) -> Callable[[], T]: ...


def called(work: Callable[[], T], pool: Hashable) -> Callable[[], T]:
    """No recording but the work itself, for where there are no graphs; its results are copied to where they were."""
    result = work()

    def replay() -> T:
        for place, value in zip(tree_leaves(result), tree_leaves(work()), strict=True):
            if place is not None:
                place.copy_(value)
        return result

    return replay


class CudaCapture:
    """CUDA graphs.

    Every pool is a memory pool of its own, and not one for all: a replay may write over the results of any recording
    of its pool that was made before it, and passes whose results are wanted together must not do that to each other.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pools: dict[Hashable, tuple[tuple[int, int], WeakSet[torch.cuda.CUDAGraph]]] = {}

    def __call__(self, work: Callable[[], T], pool: Hashable) -> Callable[[], T]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # kernels are compiled and libraries take their workspaces before
            work()
        graph = torch.cuda.CUDAGraph()
        handle, graphs = self._pools.get(pool, (None, WeakSet[torch.cuda.CUDAGraph]()))
        if handle is None or not graphs:  # the allocator forgets a pool that no graph uses any more
            handle = torch.cuda.graph_pool_handle()
        # other threads, which decode and encode, go on allocating
        options: dict[str, Any] = {"pool": handle, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **options):
            result = work()
        current.wait_stream(self._stream)
        graphs.add(graph)
        self._pools[pool] = handle, graphs

        def replay() -> T:
            graph.replay()
            return result

        return replay
