"""Benchmark cases: operations at the sizes of both presets, at their own side and twice it, and odd sizes for tests.

The least work of a call, bytes and FLOPs, is counted from its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ... import kernels
from ...engine.cost.flops import flops
from ...kernels.launch import Launch
from .arguments import FACTORIES, MICRO, ODD, Arguments, RandomTensors, Sizes

PRESETS = ("syncflow-xl", "syncflow-tiny")
BATCHES = (1, 4, 16)
SCALES = (1, 2)
OPERATIONS = tuple(name for name in FACTORIES if hasattr(kernels, name))


@dataclass(frozen=True)
class Case:
    """An operation at one place of the model and one size."""

    operation: str
    place: str
    sizes: Sizes

    def __str__(self) -> str:
        return f"{self.place} {self.sizes.name}"

    @property
    def id(self) -> str:
        """Its name without spaces."""
        return str(self).replace(" ", "-")

    @property
    def shape(self) -> str:
        """Lengths and widths in the symbols of ``docs/method.md``."""
        s, template = self.sizes, FACTORIES[self.operation][self.place][0]
        q, widths = s.frames * s.tokens, {"d": s.channels // s.heads, "a": s.channels // s.audio_heads}
        return template.format(s=s, q=q, m=s.rows * q, three=3 * s.channels, **widths)

    def arguments(self, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Arguments:
        """Fresh arguments of the operation."""
        return FACTORIES[self.operation][self.place][1](RandomTensors(device, dtype, seed), self.sizes)

    def at(self, batch: int) -> Case:
        """The same place and size with another number of clips."""
        name = f"{self.sizes.name.rpartition(' ')[0]} {batch}"
        return replace(self, sizes=replace(self.sizes, name=name, batch=batch))

    def work(self, dtype: torch.dtype) -> Work:
        """The least work of a call."""
        arguments = self.arguments("meta", dtype)
        function = reference(self.operation)
        with torch.no_grad():
            outputs = function(*arguments)
        moved = bytes_of(arguments) + bytes_of(outputs)
        return Work(moved, flops(lambda: function(*arguments)))

    def launches(self, dtype: torch.dtype) -> list[Launch]:
        """The launches of its kernels, without running them; none where the reference does the work."""
        plan_launches = syncflow_operation(self.operation).plan_launches
        planned = None if plan_launches is None else plan_launches(*self.arguments("meta", dtype))
        return [] if planned is None else planned[1]


@dataclass(frozen=True)
class Work:
    """Bytes that a call moves (each input read once, each output written once) and floating-point operations of its
    matrix products."""

    bytes: int
    flops: int


def syncflow_operation(operation: str) -> Any:
    """The function that the model calls."""
    return getattr(kernels, operation)


def reference(operation: str) -> Callable[..., Any]:
    """Its formula in plain PyTorch."""
    return syncflow_operation(operation).__wrapped__


def cases(
    operations: Sequence[str] = OPERATIONS,
    presets: Sequence[str] = PRESETS,
    batches: Sequence[int] = BATCHES,
    scales: Sequence[int] = SCALES,
) -> list[Case]:
    """The cases of some operations or of all: by preset, size and batch. Raises ``ValueError`` for an unknown name."""
    named = known(presets, PRESETS)
    sizes = [Sizes.of(name, batch, scale) for name in named for scale in scales for batch in batches]
    return [Case(name, place, s) for name in known(operations, OPERATIONS) for s in sizes for place in FACTORIES[name]]


def known(names: Sequence[str], among: Iterable[str]) -> Sequence[str]:
    """The names. Raises ``ValueError`` for one that does not exist."""
    for name in names:
        if name not in among:
            raise ValueError(f"{name!r} is none of {', '.join(among)}")
    return names


def micro_cases(operations: Sequence[str] = OPERATIONS) -> list[Case]:
    """Cases so small that an interpreter runs them."""
    return [Case(name, place, MICRO) for name in operations for place in FACTORIES[name]]


def odd_cases(operations: Sequence[str] = OPERATIONS) -> list[Case]:
    """Cases with lengths and widths that no tile divides."""
    return [Case(name, place, s) for name in operations for s in ODD for place in FACTORIES[name]]


def bytes_of(tensors: object) -> int:
    """Bytes of the distinct elements of all tensors; a repeated axis counts once."""
    return sum(map(_bytes, tree_leaves(tensors)))


def _bytes(leaf: object) -> int:
    if not isinstance(leaf, Tensor):
        return 0
    extents = (size for size, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride)
    return prod(extents) * leaf.element_size()
