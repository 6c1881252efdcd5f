"""The recorded computations of one pass, and the order in which they use their memory.

A lane runs one computation at a time. Its results lie in a slot until that slot is used again; with two slots those of
the step before may still be read, on another stream, while the next are written.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .capture import Capture
from .static_inputs import Input, Static, Statics
from .stream_order import Mark, Order

Tensors = Mapping[str, Tensor]


@dataclass(eq=False)
class Recording:
    """A recorded computation with the memory it uses; ``reads`` is the recording whose results it reads in place."""

    replay: Callable[[], Any]
    result: Any
    statics: Sequence[Static]
    reads: Recording | None
    number: int

    @property
    def bytes(self) -> int:
        """Of its results; what it has besides is shared."""
        storages = (leaf.untyped_storage() for leaf in tree_leaves(self.result) if leaf is not None)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(eq=False)
class Slot:
    """Where results lie: those of ``last``, written at ``written`` and read until ``read``.

    ``lent`` are the tensors by which contexts among them were given out.
    """

    pool: Hashable
    last: Recording | None = None
    lent: list[weakref.ref[Tensor]] = field(default_factory=list)
    written: Mark = None
    read: list[Mark] = field(default_factory=list)

    def lend(self, contexts: Sequence[Tensor]) -> None:
        """Remember what is given out."""
        self.lent = [weakref.ref(context) for context in contexts]

    def has_lent(self, contexts: Sequence[Tensor]) -> bool:
        """Whether these are the contexts that were last given out."""
        pairs = zip(self.lent, contexts, strict=False)
        return bool(contexts) and len(self.lent) == len(contexts) and all(ref() is one for ref, one in pairs)


class Recordings:
    """All of a model's, by key; the least recently used go first when there are too many or they hold too much."""

    def __init__(self, capture: Capture, order: Order, most: int, most_bytes: int | None) -> None:
        self.capture, self.order, self.most, self.most_bytes = capture, order, most, most_bytes
        self.captured = 0
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of results and inputs; not of intermediate values, which share one memory in every pool."""
        statics = {id(static): static.tensor.nbytes for one in self._kept.values() for static in one.statics}
        return sum(one.bytes for one in self._kept.values()) + sum(statics.values())

    def get(self, key: Hashable) -> Recording | None:
        """The recording of ``key``, used now."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def make(
        self,
        key: Hashable,
        pool: Hashable,
        work: Callable[[Tensors], Any],
        statics: Mapping[str, Static],
        reads: Recording | None,
    ) -> Recording:
        """Record ``work`` on the statics."""
        tensors = {name: static.tensor for name, static in statics.items()}
        replay = self.capture(lambda: work(tensors), pool)
        self.captured += 1
        made = Recording(replay, replay(), list(statics.values()), reads, next(self._numbers))
        self._kept[key] = made
        self._make_room(made)
        return made

    def _make_room(self, newest: Recording) -> None:
        spare = {newest.number} | ({newest.reads.number} if newest.reads is not None else set())
        while len(self._kept) > self.most or (self.most_bytes is not None and self.bytes > self.most_bytes):
            oldest = next((one for one in self._kept.values() if one.number not in spare), None)
            if oldest is None:
                return
            self.order.settle()  # its memory goes to others
            self._kept = OrderedDict(
                (key, one) for key, one in self._kept.items() if one is not oldest and one.reads is not oldest
            )


class Lane:
    """Runs the recordings of one pass, each on inputs of its own shape.

    ``slots`` take turns for results that are lent.
    """

    def __init__(self, name: str, recordings: Recordings, order: Order, slots: int = 1) -> None:
        self.name, self.recordings, self.order = name, recordings, order
        self.slots = [Slot((name, i)) for i in range(slots)]
        self._statics = Statics()
        self._turn = 0
        self._last: Mark = None

    def run(
        self,
        fixed: Hashable,
        inputs: Mapping[str, Input],
        work: Callable[[Tensors], Any],
        *,
        reads: Slot | None = None,
        lends: bool = False,
    ) -> tuple[Any, Slot]:
        """``work`` on the statics of ``inputs``, by replay; its result, and the slot in which that lies.

        ``fixed`` is all that it depends on besides the inputs' shapes; ``reads`` a slot of another lane whose last
        results it reads where they are; ``lends`` says that others will read its own.
        """
        slot = self.slots[self._turn % len(self.slots)]
        self._turn += lends
        source = None if reads is None else reads.last
        self.order.wait(self._last, *slot.read, None if reads is None else reads.written)
        statics = self._statics.put(inputs)
        shapes = tuple((name, static.tensor.shape, static.tensor.dtype) for name, static in statics.items())
        key = slot.pool, fixed, shapes, None if source is None else source.number
        recording = self.recordings.get(key)
        if recording is None:
            recording = self.recordings.make(key, slot.pool, work, statics, source)
        else:
            recording.replay()
        slot.last, slot.lent, slot.read = recording, [], []
        slot.written = self._last = self.order.mark()
        if reads is not None:
            reads.read.append(slot.written)
        return recording.result, slot

    def lender(self, contexts: Sequence[Tensor] | None) -> Slot | None:
        """The slot that has lent these contexts and still holds them."""
        return None if contexts is None else next((slot for slot in self.slots if slot.has_lent(contexts)), None)
