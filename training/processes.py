"""The processes of a run, as ``torchrun`` or ``accelerate launch`` started them, on CPUs too."""

from __future__ import annotations

import gc
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.nn.functional  # default arguments there keep the connections of a run that began before
from accelerate import Accelerator, PartialState
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

LONGEST_WAIT = timedelta(days=7)  # of the others for the first one, which trains codecs and encodes all clips
_meshes: dict[str, DeviceMesh] = {}  # by type of device


def processes() -> PartialState:
    """This process among those of the run."""
    return PartialState(cpu=_on_cpu(), timeout=LONGEST_WAIT)


def make_accelerator(**settings: Any) -> Accelerator:
    """What prepares an objective and optimisers for all processes."""
    processes()
    return Accelerator(cpu=_on_cpu(), **settings)


def process_mesh(device: torch.device) -> DeviceMesh:
    """All processes of the run in one dimension, over which weights are sharded."""
    if device.type not in _meshes:
        _meshes[device.type] = init_device_mesh(device.type, (processes().num_processes,))
    return _meshes[device.type]


def end_together() -> None:
    """Wait for the other processes, then close the connections to them. The last that a process does in a run.

    A process that ends with connections open can close them while another still reads, or crash: their threads may
    release a tensor when the interpreter is half gone. They end when nothing in Python keeps the connections.
    """
    processes().wait_for_everyone()
    processes().destroy_process_group()
    while _meshes:  # which PyTorch's caches of sharded tensors keep for good, with the connections in recent versions
        getattr(_meshes.popitem()[1], "_pg_registry", {}).clear()
    gc.collect()  # sharded modules refer to themselves


def _on_cpu() -> bool:
    # accelerate takes CPUs launched by torchrun for single processes unless it is told.
    return not torch.accelerator.is_available()
