"""Synchronisation between the CUDA streams of a device, and of the host with the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Event = torch.cuda.Event | None
MAX_STEPS_AHEAD = 2


class StreamOrder:
    """Synchronisation for a device with a single stream, where nothing has to wait."""

    def record_event(self, *, for_host: bool = False) -> Event:
        """Record an event on the current stream, and one for which the host sleeps rather than spins ``for_host``."""
        return None

    def wait_events(self, *events: Event) -> None:
        """Make the current stream wait for these events."""

    def block_host(self, event: Event) -> None:
        """Block the host until the device has reached an event."""

    def synchronize(self) -> None:
        """Block the host until the device is idle."""


class CudaStreamOrder(StreamOrder):
    """Synchronisation by CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record_event(self, *, for_host: bool = False) -> Event:
        stream = torch.cuda.current_stream(self.device)
        return stream.record_event(torch.cuda.Event(blocking=True) if for_host else None)

    def wait_events(self, *events: Event) -> None:
        stream = torch.cuda.current_stream(self.device)
        for event in events:
            if event is not None:
                stream.wait_event(event)

    def block_host(self, event: Event) -> None:
        if event is not None:
            event.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


class StepLimit:
    """Lets the host begin a step only once the device has ended that of ``max_steps`` steps before.

    A graphed step takes the host a fraction of its time on the device. Without a limit, the host would queue all steps
    of a request at once: a request that joins, a cancellation and the times of steps would all come as much too late.
    With two steps the device always has the next one while the host waits for the last.
    """

    def __init__(self, order: StreamOrder, max_steps: int = MAX_STEPS_AHEAD) -> None:
        self.order, self.max_steps = order, max_steps
        self._ends: deque[Event] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within: one step is given to the current stream."""
        while len(self._ends) >= self.max_steps:
            self.order.block_host(self._ends.popleft())
        yield
        self._ends.append(self.order.record_event(for_host=True))


def order_of(device: torch.device) -> StreamOrder:
    """The synchronisation of a device."""
    return CudaStreamOrder(device) if device.type == "cuda" else StreamOrder()
