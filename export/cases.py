"""Inputs for comparing graphs: the smallest lengths, the model's own clip, other lengths, and rows without context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.exports import Axis
from .graphs import Graph

INDICES = {"text_of_row": "P", "video_context_of_row": "C", "audio_context_of_row": "C", "prefix_of_row": "Q"}
OPTIONAL_INDICES = ("video_context_of_row", "audio_context_of_row")
BYTES = 256  # token ids that every text encoder knows


@dataclass(frozen=True)
class Case:
    """Lengths of the dynamic axes; ``without_context``: texts of one token, and rows that read no context."""

    name: str
    lengths: Mapping[str, int]
    without_context: bool = False


def cases_of(axes: Mapping[str, Axis]) -> list[Case]:
    """The cases of a graph with these dynamic axes.

    The smallest comes first: a runtime may compile its kernels for the lengths of the first run.
    """
    usual = {name: axis.usual for name, axis in axes.items()}
    least = {name: axis.least for name, axis in axes.items()}
    odd = {name: _odd(axis, i) for i, (name, axis) in enumerate(axes.items())}
    return [
        Case("smallest", least),
        Case("usual", usual),
        Case("one row", usual | dict.fromkeys(set(axes) & set("RPCQBNK"), 1)),
        Case("other", odd),
        Case("without context", usual, without_context=True),
    ]


def inputs_of(graph: Graph, case: Case, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a graph with the lengths of a case, on the graph's device."""
    generator = torch.Generator().manual_seed(seed)
    lengths = dict(case.lengths)
    if "N" in lengths and "R" in lengths:
        lengths["N"] = min(lengths["N"], lengths["R"])
    made = {}
    for name, example in graph.inputs.items():
        free = graph.dynamic.get(name, {})
        shape = [lengths[free[i]] if i in free else length for i, length in enumerate(example.shape)]
        made[name] = _fill(name, example, shape, lengths, case.without_context, generator).to(
            example.device, example.dtype
        )
    return made


def _fill(
    name: str,
    example: Tensor,
    shape: list[int],
    lengths: Mapping[str, int],
    without_context: bool,
    generator: torch.Generator,
) -> Tensor:
    if name in INDICES:
        if without_context and name in OPTIONAL_INDICES:
            return torch.full(shape, -1)
        return _integers(shape, -1 if name in OPTIONAL_INDICES else 0, lengths[INDICES[name]] - 1, generator)
    if name == "bridged_rows":
        return torch.randperm(lengths["R"], generator=generator)[: lengths["N"]]
    if name == "lengths":
        return _integers(shape, 1, 1 if without_context else int(example.max()), generator)
    if name == "mask":
        return torch.arange(shape[1]) < _integers([shape[0], 1], 1, 1 if without_context else shape[1], generator)
    if name == "t":
        return torch.rand(shape, generator=generator)
    if name in ("video_token_positions", "frame_times"):
        return torch.rand(shape, generator=generator).cumsum(0)
    if not example.dtype.is_floating_point:
        return _integers(shape, 0, BYTES - 1, generator)
    return torch.randn(shape, generator=generator)


def _integers(shape: list[int], least: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randint(least, most + 1, shape, generator=generator)


def _odd(axis: Axis, index: int) -> int:
    """A length other than the usual one, different between neighbouring axes."""
    length = axis.usual + (index % 3 + 1) * axis.step
    return length if axis.most is None else min(length, axis.most)
