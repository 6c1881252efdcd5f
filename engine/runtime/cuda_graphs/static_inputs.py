"""Memory that stays where it is, for the inputs of recorded computations."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..buckets import round_up


@dataclass(frozen=True)
class Input:
    """A tensor that a recorded computation reads.

    ``axis`` counts what comes and goes (rows, prompts, contexts) and is rounded up, unless ``exact``. ``steady``: it is
    copied only when it is another tensor than the last one, so it must not be written to in place.
    """

    value: Tensor
    axis: int = 0
    steady: bool = False
    exact: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """With room."""
        shape = list(self.value.shape)
        if not self.exact:
            shape[self.axis] = round_up(shape[self.axis])
        return tuple(shape)


class Static:
    """A tensor with an address of its own.

    Beyond what was last put there stands what computing goes well with and nobody asks for: earlier values, at first
    the first one repeated, and of indices the first one always, for earlier ones may point beyond what is there now.
    """

    def __init__(self, value: Tensor, axis: int, shape: tuple[int, ...]) -> None:
        self.axis = axis
        first = value.narrow(axis, 0, min(1, value.shape[axis]))
        self.tensor = torch.empty(shape, dtype=value.dtype, device=value.device).copy_(first.expand(shape))
        self._holds: weakref.ref[Tensor] | None = None

    def put(self, value: Tensor, *, steady: bool) -> None:
        """Copy ``value`` in; a steady one only if it is not there already."""
        if steady and self._holds is not None and self._holds() is value:
            return
        count, size = value.shape[self.axis], self.tensor.shape[self.axis]
        self.tensor.narrow(self.axis, 0, count).copy_(value, non_blocking=True)
        if count < size and not value.is_floating_point():
            rest = self.tensor.narrow(self.axis, count, size - count)
            rest.copy_(value.narrow(self.axis, 0, 1).expand_as(rest), non_blocking=True)
        self._holds = weakref.ref(value)


class Statics:
    """The statics of computations that run one after the other, by name and shape; gone when nobody holds them."""

    def __init__(self) -> None:
        self._kept: weakref.WeakValueDictionary[tuple[object, ...], Static] = weakref.WeakValueDictionary()

    def put(self, inputs: Mapping[str, Input]) -> dict[str, Static]:
        """Each input in its place."""
        found = {}
        for name, one in inputs.items():
            key = name, one.shape, one.value.dtype
            static = self._kept.get(key)
            if static is None:
                static = self._kept[key] = Static(one.value, one.axis, one.shape)
            static.put(one.value, steady=one.steady)
            found[name] = static
        return found
