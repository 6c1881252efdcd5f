"""The processes of a run, as ``torchrun`` or ``accelerate launch`` started them, on CPUs too."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, PartialState


def processes() -> PartialState:
    """This process among those of the run."""
    return PartialState(cpu=_on_cpu())


def make_accelerator(**settings: Any) -> Accelerator:
    """What prepares an objective and optimisers for all processes."""
    return Accelerator(cpu=_on_cpu(), **settings)


def _on_cpu() -> bool:
    # accelerate takes CPUs launched by torchrun for single processes unless it is told.
    return not torch.accelerator.is_available()
