"""Who sits at which place of a running batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from .handle import Handle, Progress, State
from .stages import Stepper


class Seated(Protocol):
    """A task whose request has been prepared."""

    job: Any
    handle: Handle[Any]


T = TypeVar("T", bound=Seated)


class Seats(Generic[T]):
    """A stepper and its tasks, in the order of places."""

    def __init__(self, stepper: Stepper[Any, Any]) -> None:
        self.stepper = stepper
        self.tasks: list[T] = []

    def join(self, tasks: Sequence[T]) -> None:
        """Seat more at the end."""
        if tasks:
            self.stepper.join([task.job for task in tasks])
            self.tasks += tasks

    def step(self) -> list[tuple[T, Any]]:
        """One step; those who have made their last one leave, with their latents."""
        places = sorted(self.stepper.step())
        for place, task in enumerate(self.tasks):
            task.handle.advance(State.RUNNING, Progress(*self.stepper.progress(place)))
        return self._leave(places)

    def leave(self, tasks: Sequence[T]) -> None:
        """Those who are here go, wherever they are."""
        self._leave([place for place, task in enumerate(self.tasks) if task in tasks])

    def _leave(self, places: list[int]) -> list[tuple[T, Any]]:
        if not places:
            return []
        latents = self.stepper.leave(places)
        left = [self.tasks[place] for place in places]
        self.tasks = [task for place, task in enumerate(self.tasks) if place not in places]
        return list(zip(left, latents, strict=True))
