"""Continuous batching: a bounded queue, a scheduler, handles, and the threads that step, prepare and decode."""

from .batcher import Batcher
from .errors import Cancelled, Closed, Expired, Full
from .handle import Handle, Progress, State
from .limits import Limits, Policy
from .stages import Stages, Stepper
from .stats import Percentiles, Stats

__all__ = [
    "Batcher",
    "Cancelled",
    "Closed",
    "Expired",
    "Full",
    "Handle",
    "Limits",
    "Percentiles",
    "Policy",
    "Progress",
    "Stages",
    "State",
    "Stats",
    "Stepper",
]
