"""Stand-ins for CUDA streams, and a race detector for the memory of tensors."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]  # how far each stream is known to be


@dataclass
class Event:
    clock: Clock

    def synchronize(self) -> None:
        """The host waits, as in :meth:`Stream.synchronize`."""
        HOST.wait_event(self)


@dataclass
class Stream:
    """Knows of its own past, and of others' what it has waited for."""

    name: str
    clock: Clock = field(default_factory=dict)

    device = torch.device("cpu")

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event({})
        event.clock = dict(self.clock)
        return event

    def wait_event(self, event: Event) -> None:
        for name, at in event.clock.items():
            self.clock[name] = max(self.clock.get(name, 0), at)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        """The host waits; what it gives to any stream after that comes after all of this one."""
        self.record_event().synchronize()


HOST = Stream("host")


@dataclass
class Memory:
    """A storage: the stream that it was made on, its last write and the reads since, each a stream and a time."""

    home: str
    write: tuple[str, int]
    reads: list[tuple[str, int]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)


class Races(TorchDispatchMode):
    """Follows every operation on the fake streams; ``found`` says what was not in order.

    Memory that is let go belongs to the stream that it was made on, which may use it again at its next allocation;
    ``hold`` stands for ``Tensor.record_stream``, after which that waits for another stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = Stream("main"), Stream("side")
        self.current = self.main
        self.found: list[str] = []
        self.operations: Counter[str] = Counter()
        self._memory: dict[int, Memory] = {}
        self._freed: defaultdict[str, list[Memory]] = defaultdict(list)
        HOST.clock.clear()

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def hold(self, tensor: Tensor, stream: Stream) -> None:
        memory = self._memory.get(tensor.untyped_storage()._cdata)
        if memory is not None:
            memory.held.add(stream.name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        written = set()
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written |= {leaf.untyped_storage()._cdata for leaf in _tensors(value)}
        stream = self.current
        now = stream.name, stream.clock.get(stream.name, 0) + 1
        stream.clock[stream.name] = now[1]
        self.operations[stream.name] += 1
        if not func.is_view:
            for leaf in _tensors((args, kwargs)):
                key = leaf.untyped_storage()._cdata
                self._touch(key, leaf, now, str(func), write=key in written)
        for leaf in _tensors(result):
            if leaf.untyped_storage()._cdata not in self._memory:
                self._made(leaf, now, str(func))
        return result

    def _touch(self, key: int, tensor: Tensor, now: tuple[str, int], what: str, *, write: bool) -> None:
        memory = self._memory.get(key)
        if memory is None:  # older than this witness
            memory = self._add(tensor, ("main", 0))
        self._check(memory.write, what, "reads or writes what is not written yet")
        if write:
            for read in memory.reads:
                self._check(read, what, "writes over what is still read")
            memory.write, memory.reads = now, []
        else:
            memory.reads.append(now)

    def _made(self, tensor: Tensor, now: tuple[str, int], what: str) -> None:
        for memory in self._freed[now[0]]:
            for access in (memory.write, *memory.reads):
                if access[0] not in memory.held:
                    self._check(access, what, "may take memory that is still in use")
        self._freed[now[0]] = []
        self._add(tensor, now)

    def _add(self, tensor: Tensor, now: tuple[str, int]) -> Memory:
        storage = tensor.untyped_storage()
        memory = self._memory[storage._cdata] = Memory(now[0], now)
        weakref.finalize(storage, self._free, storage._cdata)
        return memory

    def _free(self, key: int) -> None:
        memory = self._memory.pop(key)
        self._freed[memory.home].append(memory)

    def _check(self, access: tuple[str, int], what: str, fault: str) -> None:
        name, at = access
        if max(self.current.clock.get(name, 0), HOST.clock.get(name, 0)) < at:
            self.found.append(f"{what} on the {self.current.name} stream {fault} on the {name} stream")


def races(patch: pytest.MonkeyPatch) -> Races:
    """A witness whose streams stand for CUDA's."""
    witness = Races()
    patch.setattr(torch.cuda, "current_stream", lambda device=None: witness.current)
    patch.setattr(torch.cuda, "stream", witness.on)
    patch.setattr(torch.cuda, "Event", lambda blocking: Event({}))
    patch.setattr(Tensor, "record_stream", lambda tensor, stream: witness.hold(tensor, stream))
    return witness


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
