"""The processes of a run, as ``torchrun`` or ``accelerate launch`` started them, on CPUs too."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState

LONGEST_WAIT = timedelta(days=7)  # of the others for the first one, which trains codecs and encodes all clips


def processes() -> PartialState:
    """This process among those of the run."""
    return PartialState(cpu=_on_cpu(), timeout=LONGEST_WAIT)


def make_accelerator(**settings: Any) -> Accelerator:
    """What prepares an objective and optimisers for all processes."""
    processes()
    return Accelerator(cpu=_on_cpu(), **settings)


def end_together() -> None:
    """Wait for the other processes, then close the connections to them. The last that a process does in a run.

    One that ends with connections open can crash, or close them while another still reads.
    """
    processes().wait_for_everyone()
    processes().destroy_process_group()


def _on_cpu() -> bool:
    # accelerate takes CPUs launched by torchrun for single processes unless it is told.
    return not torch.accelerator.is_available()
