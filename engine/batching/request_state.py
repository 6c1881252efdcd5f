"""A submitted request: its terms, its position between queue and decoder, and what has been computed for it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from .handle import Handle
from .policy import MAX_PRIORITY

Q = TypeVar("Q")  # request
J = TypeVar("J")  # job: an encoded request
R = TypeVar("R")  # result
Preview = Callable[[], Any]
OnStep = Callable[[int, int, Preview], object]


class Phase(Enum):
    """Position of a request. Memory is reserved from PREPARING to DECODING, a slot of a batch while RUNNING."""

    WAITING = "waiting"
    PREPARING = "preparing"
    READY = "ready"
    RUNNING = "running"
    DECODING = "decoding"
    REMOVED = "removed"


@dataclass(eq=False, kw_only=True)
class RequestState(Generic[Q, J, R]):
    """One request.

    ``shape`` is its latent shape, ``memory`` the bytes that it needs, ``submitted_at`` a time on the batcher's clock;
    it expires ``timeout`` seconds later unless its steps are done. ``on_step(step, steps, preview)`` is called in the
    thread that steps, where ``preview()`` computes what the batch can show of the result. The scheduler sets
    ``phase``, ``rank`` and ``ready_at``, the batcher ``job`` and ``first_step_at``. Raises ``ValueError`` for a
    priority or a timeout that is out of range.
    """

    request: Q
    handle: Handle[R]
    shape: Hashable
    memory: int
    submitted_at: float
    priority: int = 0
    timeout: float | None = None
    on_step: OnStep | None = None
    phase: Phase = field(default=Phase.WAITING, init=False)
    rank: tuple[float, int] = field(default=(0.0, 0), init=False)
    ready_at: float = field(default=0.0, init=False)
    job: J | None = field(default=None, init=False)
    first_step_at: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.priority, int) or abs(self.priority) > MAX_PRIORITY:
            raise ValueError(
                f"priority is {self.priority}; it must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
            )
        if self.timeout is not None and not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ValueError(f"deadline is {self.timeout}; it must be a number of seconds above 0")
        assert self.memory >= 0

    @property
    def deadline(self) -> float:
        """The time on the clock at which the request expires; infinite without a timeout."""
        return math.inf if self.timeout is None else self.submitted_at + self.timeout


def without_frames(error: BaseException) -> BaseException:
    """The error with its traceback as text, in a note.

    A traceback references its frames, and through them jobs and latents, for as long as a caller keeps the error.
    """
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    chain: list[BaseException | None] = [error]
    visited: set[int] = set()
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in visited:
            visited.add(id(link))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
    return error
