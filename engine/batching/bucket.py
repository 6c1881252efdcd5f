"""The requests of one latent shape between the queue and the decoders."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .entry import Entry

E = TypeVar("E", bound=Entry)


@dataclass(eq=False)
class Bucket(Generic[E]):
    """At most ``places`` running; ``ready`` stands in the order of ranks. ``alone``: of one request, set apart."""

    key: Hashable
    places: int
    alone: bool = False
    preparing: list[E] = field(default_factory=list)
    ready: list[E] = field(default_factory=list)
    running: list[E] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.preparing) + len(self.ready) + len(self.running)

    def remove(self, entry: E) -> None:
        """Take a member out, wherever it stands."""
        for group in (self.preparing, self.ready, self.running):
            if entry in group:
                group.remove(entry)

    def begins_at(self, max_wait: float) -> float:
        """When a batch that nobody runs in begins: at once when it is full, or when its first has waited enough."""
        if len(self.ready) >= self.places:
            return float("-inf")
        return min((entry.ready_at for entry in self.ready), default=float("inf")) + max_wait
