"""Synchronisation between the CUDA streams of a device."""

from __future__ import annotations

import torch

Event = torch.cuda.Event | None


class StreamOrder:
    """Synchronisation for a device with a single stream, where nothing has to wait."""

    def record_event(self) -> Event:
        """Record an event on the current stream."""
        return None

    def wait_events(self, *events: Event) -> None:
        """Make the current stream wait for these events."""

    def synchronize(self) -> None:
        """Block the host until the device is idle."""


class CudaStreamOrder(StreamOrder):
    """Synchronisation by CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record_event(self) -> Event:
        return torch.cuda.current_stream(self.device).record_event()

    def wait_events(self, *events: Event) -> None:
        stream = torch.cuda.current_stream(self.device)
        for event in events:
            if event is not None:
                stream.wait_event(event)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)
