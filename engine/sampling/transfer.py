"""Copies from the host to the device, for which neither waits, and events between streams."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, in order on its current stream.

    A copy from pageable memory would hold the host until the stream has caught up with it, one from pinned memory does
    not; the allocator of pinned memory keeps the source until the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """An event after all that the current stream has been given so far; None on a CPU, which is never behind."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
