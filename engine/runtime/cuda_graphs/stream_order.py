"""Order between the streams of a device: who waits for what another has been given."""

from __future__ import annotations

import torch

Mark = torch.cuda.Event | None


class Order:
    """A device with one stream: everything is in order."""

    def mark(self) -> Mark:
        """A point after all that the current stream has been given."""
        return None

    def wait(self, *marks: Mark) -> None:
        """The current stream goes on after these points."""

    def settle(self) -> None:
        """The host waits until nothing runs any more."""


class CudaOrder(Order):
    """By events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Mark:
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, *marks: Mark) -> None:
        stream = torch.cuda.current_stream(self.device)
        for mark in marks:
            if mark is not None:
                stream.wait_event(mark)

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)
