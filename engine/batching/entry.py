"""A request as the scheduler sees it: its shape, its memory and its urgency; nothing of what it is."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from .limits import MAX_PRIORITY

if TYPE_CHECKING:
    from .bucket import Bucket


class Phase(Enum):
    """Where a request stands. Memory is reserved from PREPARING to DECODING, a place in a batch while RUNNING."""

    WAITING = "waiting"
    PREPARING = "preparing"
    READY = "ready"
    RUNNING = "running"
    DECODING = "decoding"
    GONE = "gone"


@dataclass(eq=False, kw_only=True)
class Entry:
    """One request. ``key`` is its latent shape, ``cost`` its memory in bytes, ``submitted`` the time on the clock.

    ``timeout`` seconds from submission are its deadline. The scheduler sets the rest. Raises ``ValueError`` with what
    is allowed.
    """

    key: Hashable
    cost: int
    submitted: float
    priority: int = 0
    timeout: float | None = None
    phase: Phase = field(default=Phase.WAITING, init=False)
    rank: tuple[float, int] = field(default=(0.0, 0), init=False)
    bucket: Bucket[Any] | None = field(default=None, init=False)
    ready_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.priority, int) or abs(self.priority) > MAX_PRIORITY:
            raise ValueError(
                f"priority is {self.priority}; it must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
            )
        if self.timeout is not None and not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ValueError(f"deadline is {self.timeout}; it must be a number of seconds above 0")
        assert self.cost >= 0

    @property
    def deadline(self) -> float:
        """The time on the clock at which it expires; infinite without one."""
        return math.inf if self.timeout is None else self.submitted + self.timeout
