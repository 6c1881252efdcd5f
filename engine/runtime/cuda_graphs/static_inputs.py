"""Input tensors of captured graphs: allocated once, padded to few sizes, and filled before every replay."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def padded_size(count: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, …: few shapes are captured, and padding adds less than half."""
    power = 1 << max(0, count - 1).bit_length()
    if count == 0:
        return 0
    return 3 * power // 4 if power > 2 and count <= 3 * power // 4 else power


@dataclass(frozen=True)
class GraphInput:
    """A tensor that a captured graph reads.

    ``axis`` is the axis whose size varies (rows, prompts, contexts); it is padded unless ``exact``. An ``immutable``
    tensor is never written in place, and is copied only when it is a different tensor object than the last one. A
    tensor with a ``version`` is state: the graph updates its static input, from which it is copied back after the
    replay as the next version. It is copied in only where that is not what the static input holds.
    """

    value: Tensor
    axis: int = 0
    immutable: bool = False
    exact: bool = False
    version: int | None = None

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The shape of the static input that holds this tensor."""
        shape = list(self.value.shape)
        if not self.exact:
            shape[self.axis] = padded_size(shape[self.axis])
        return tuple(shape)


class StaticInput:
    """A tensor with a fixed address, of shape ``shape``, whose first entries along ``axis`` are the current input.

    The padding holds valid values whose results nobody reads: earlier inputs (initially copies of the first entry), and
    for index tensors always copies of the first entry, because earlier indices may exceed the current bounds.
    """

    def __init__(self, value: Tensor, axis: int, shape: tuple[int, ...]) -> None:
        self.axis = axis
        first = value.narrow(axis, 0, min(1, value.shape[axis]))
        self.tensor = torch.empty(shape, dtype=value.dtype, device=value.device).copy_(first.expand(shape))
        self._source: weakref.ref[Tensor] | None = None
        self._version: int | None = None

    def copy_from(self, source: GraphInput) -> None:
        """Copy its value in, unless it is there already: an immutable one, or this version of a state."""
        value, keeps = source.value, source.immutable or source.version is not None
        if keeps and self._source is not None and self._source() is value and self._version == source.version:
            return
        self.fill(value)
        self._source, self._version = weakref.ref(value), source.version

    def copy_back(self, source: GraphInput) -> None:
        """Copy the state that the graph has updated back into its tensor, as the next version."""
        assert source.version is not None
        source.value.copy_(self.tensor.narrow(self.axis, 0, source.value.shape[self.axis]), non_blocking=True)
        self._source, self._version = weakref.ref(source.value), source.version + 1

    def fill(self, value: Tensor) -> None:
        """Copy ``value`` in."""
        count, size = value.shape[self.axis], self.tensor.shape[self.axis]
        self.tensor.narrow(self.axis, 0, count).copy_(value, non_blocking=True)
        if count < size and not value.is_floating_point():
            padding = self.tensor.narrow(self.axis, count, size - count)
            padding.copy_(value.narrow(self.axis, 0, 1).expand_as(padding), non_blocking=True)


class StaticInputs:
    """The static inputs of graphs that run one after the other, shared by name, shape and type.

    They are held by weak references: a static input is freed with the last graph that reads it.
    """

    def __init__(self) -> None:
        self._tensors: weakref.WeakValueDictionary[tuple[object, ...], StaticInput] = weakref.WeakValueDictionary()

    def copy_from(self, inputs: Mapping[str, GraphInput]) -> dict[str, StaticInput]:
        """Copy every input into its static input."""
        static_inputs = {}
        for name, graph_input in inputs.items():
            shape = graph_input.padded_shape
            key = name, shape, graph_input.value.dtype
            static = self._tensors.get(key)
            if static is None:
                static = self._tensors[key] = StaticInput(graph_input.value, graph_input.axis, shape)
            static.copy_from(graph_input)
            static_inputs[name] = static
        return static_inputs
