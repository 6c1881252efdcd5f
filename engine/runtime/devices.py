"""Devices by their name, and what may be taken of their memory."""

from __future__ import annotations

from contextlib import suppress

import torch

from ..validation import refuse

UNLIMITED = 1 << 62  # bytes


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises ``ValueError`` for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device, (str, torch.device)) and not str(device).startswith("meta"):
        with suppress(RuntimeError, AssertionError, NotImplementedError):  # as PyTorch refuses what is not there
            return torch.empty(0, device=device).device  # with its index: each thread has a current device of its own
    gpu = "cuda" if torch.cuda.is_available() else "another that this PyTorch has (it finds no CUDA)"
    refuse("device", str(device), f"auto, cpu or {gpu}")


def memory_for_graphs(device: torch.device) -> int:
    """Bytes that graphs captured at the start may take: half of what is free on a GPU."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else UNLIMITED
