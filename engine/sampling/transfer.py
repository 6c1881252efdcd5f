"""Copies from the host to the device, for which neither waits."""

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
