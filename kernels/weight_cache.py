"""Values computed from a weight once and kept as long as the weight lives and does not change.

A weight that requires gradients is about to change, and a tensor made in inference mode has no version counter: of
these every call computes the value anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

Key = tuple[Callable[[Tensor], Tensor], int]


class CacheEntry(NamedTuple):
    """A value, the weight it was computed from, and that weight's version and address at the time."""

    value: Tensor
    weight: weakref.ref[Tensor]
    version: tuple[int, int]


_entries: dict[Key, CacheEntry] = {}


def cacheable(weight: Tensor) -> bool:
    """Whether a change of the weight can be detected, and none is expected."""
    return not weight.requires_grad and not weight.is_inference()


def cached(make: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """``make(weight)``, computed again only when the weight has changed.

    ``make`` must live as long as the process. A change through ``Tensor.data`` that keeps the address is not detected.
    """
    if not cacheable(weight):
        return make(weight)
    key = make, id(weight)
    version = weight._version, weight.data_ptr()
    entry = _entries.get(key)
    if entry is None or entry.version != version or entry.weight() is not weight:
        entry = CacheEntry(make(weight), weakref.ref(weight, partial(_evict, key)), version)
        _entries[key] = entry
    return entry.value


def _evict(key: Key, dead: weakref.ref[Tensor]) -> None:
    entry = _entries.get(key)
    if entry is not None and entry.weight is dead:
        _entries.pop(key, None)
