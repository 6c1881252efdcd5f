"""Parts of a model in memory under a budget: loaded when they are used, and kept or released in turn.

A part is a module of ``Components``. Without its weights it is on the meta device, where tensors have shapes and no
values; its weights come from the package, memory-mapped, and take their place in the same module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from .forking import remember


class Residency:
    """Which of the ``parts`` are in memory. ``load`` gives a part by its name, with its weights; ``kept`` are the names
    of those that stay once they are loaded.

    One part is in use at a time, by one thread. The others that are not kept are released before.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        load: Callable[[str], nn.Module],
        kept: Collection[str],
        device: torch.device,
    ) -> None:
        self.parts, self.kept, self.device = dict(parts), frozenset(kept), device
        self.loads = 0
        self._load = load
        self._loaded: set[str] = set()
        self.after_fork()
        remember(self)

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the parts that have their weights."""
        return frozenset(self._loaded)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Within, the part has its weights; a part that is not kept loses them when another one is used."""
        with self._lock:
            for other in self._loaded - self.kept - {name}:
                self._release(other)
            if name not in self._loaded:
                with torch.inference_mode(False):
                    take_tensors(self.parts[name], self._load(name).to(self.device))
                self._loaded.add(name)
                self.loads += 1
            yield

    def release(self) -> None:
        """Release all parts that are not kept."""
        with self._lock:
            for name in self._loaded - self.kept:
                self._release(name)

    def after_fork(self) -> None:
        """In a forked child, where the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()

    def _release(self, name: str) -> None:
        with torch.inference_mode(False):
            self.parts[name].to("meta")
        self._loaded.discard(name)


class ResidentBatch:
    """A batch of a part that is in memory within ``using()``, while requests join, are stepped and leave."""

    def __init__(self, batch: Any, using: Callable[[], AbstractContextManager[None]]) -> None:
        self._batch, self._using = batch, using

    def join(self, jobs: Sequence[Any]) -> None:
        """Add requests to the batch."""
        with self._using():
            self._batch.join(jobs)

    def step(self) -> Any:
        """One step of all requests."""
        with self._using():
            return self._batch.step()

    def leave(self, places: Sequence[int]) -> Any:
        """Take requests out of the batch."""
        with self._using():
            return self._batch.leave(places)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def take_tensors(module: nn.Module, other: nn.Module) -> None:
    """Put the parameters and buffers of ``other``, a module of the same structure, in the place of the module's own."""
    for own, given in zip(module.modules(), other.modules(), strict=True):
        own._parameters.update(given._parameters)
        own._buffers.update(given._buffers)
