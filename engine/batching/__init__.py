"""Continuous batching: a bounded queue, a scheduler, handles, and the threads that encode, step and decode."""

from .batcher import Batcher
from .handle import Cancelled, Closed, Expired, Full, Handle, Progress, State
from .policy import Limits, Policy
from .request_state import OnStep
from .running_batch import Backend, BackendBatch
from .statistics import Percentiles, Stats

__all__ = [
    "Backend",
    "BackendBatch",
    "Batcher",
    "Cancelled",
    "Closed",
    "Expired",
    "Full",
    "Handle",
    "Limits",
    "OnStep",
    "Percentiles",
    "Policy",
    "Progress",
    "State",
    "Stats",
]
