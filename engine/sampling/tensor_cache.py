"""A cache of tensors by key that is limited in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from ..forking import remember

CAPACITY = 1 << 30
T = TypeVar("T")


class TensorCache(Generic[T]):
    """Values by key; the least recently used leave first, once their tensors exceed ``capacity`` bytes.

    ``tensors`` gives those of a value. The newest value stays, however large. Threads may compute different values at
    the same time; of two that compute the same one, the first counts.
    """

    def __init__(self, tensors: Callable[[T], Sequence[Tensor]], capacity: int = CAPACITY) -> None:
        self.tensors, self.capacity, self.size = tensors, capacity, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        remember(self)

    def after_fork(self) -> None:
        """In a forked child: nobody holds the lock."""
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value that is kept under ``key``, or what ``compute`` returns."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = compute()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self.size += self._bytes(found)
                while self.size > self.capacity and len(self._kept) > 1:
                    _, dropped = self._kept.popitem(last=False)
                    self.size -= self._bytes(dropped)
            return self._kept[key]

    def clear(self) -> None:
        """Forget everything, after what the values were computed from has changed."""
        with self._lock:
            self._kept.clear()
            self.size = 0

    def _bytes(self, value: T) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(value))
