"""What a forked child does with what was used before the fork: its threads are not there, and their locks may be held.

PyTorch then computes with one thread, since a region of several would wait for the parent's for ever.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something with locks or threads."""

    def after_fork(self) -> None:
        """Called in the child, in its only thread."""


_used: WeakSet[Forked] = WeakSet()


def remember(thing: Forked) -> None:
    """Call ``thing.after_fork()`` in every child that this process forks from now on."""
    _used.add(thing)


def _in_child() -> None:
    things = list(_used)
    if not things:
        return
    import torch

    torch.set_num_threads(1)
    for thing in things:
        with suppress(Exception):
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
