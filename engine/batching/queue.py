"""Who waits, in which order: priority with ageing, first come first served within a priority.

A request of priority p that has waited w seconds counts p + w / ageing. All age at one rate, so the order of two
requests never changes: it is that of the rank submitted / ageing - p, which is fixed when the request enters. Whoever
is overtaken is overtaken only by requests of a higher priority q that came at most (q - p) * ageing seconds later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from itertools import count
from operator import attrgetter
from typing import Generic, TypeVar

from .entry import Entry
from .errors import Full

E = TypeVar("E", bound=Entry)
by_rank = attrgetter("rank")


class Queue(Generic[E]):
    """At most ``places`` entries, in a line for each shape."""

    def __init__(self, places: int, ageing: float) -> None:
        self.places, self.ageing = places, ageing
        self._lines: dict[Hashable, list[E]] = {}
        self._serial = count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting(self, key: Hashable) -> int:
        """How many of a shape wait."""
        return len(self._lines.get(key, ()))

    def push(self, entry: E) -> None:
        """Raises :class:`Full`."""
        if self._length >= self.places:
            raise Full(f"the queue is full: {self._length} requests wait and {self.places} may; try again later")
        entry.rank = entry.submitted / self.ageing - entry.priority, next(self._serial)
        insort(self._lines.setdefault(entry.key, []), entry, key=by_rank)
        self._length += 1

    def first(self, allowed: Callable[[Hashable], bool]) -> E | None:
        """The first of all whose shape is allowed."""
        heads = [line[0] for key, line in self._lines.items() if allowed(key)]
        return min(heads, key=by_rank, default=None)

    def remove(self, entry: E) -> None:
        """Take an entry out, wherever it stands."""
        line = self._lines[entry.key]
        place = bisect_left(line, entry.rank, key=by_rank)
        assert line[place] is entry
        del line[place]
        if not line:
            del self._lines[entry.key]
        self._length -= 1
