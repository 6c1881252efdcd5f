"""Which lengths an engine is built for: optimisation profiles, from the free axes of a graph.

TensorRT chooses kernels for the usual lengths of a profile and reserves memory for its largest, when it is used. The
first profile is the model's own clip, with any number of rows; the second takes clips up to twice as long and as wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ...engine.exports import Axis, TensorSpec

COUNT = 32  # most rows, prompts, contexts, …
COUNTS: Mapping[str, int] = {"K": 4096, "A_r": 1024}  # times of a schedule, tokens of a reference
GROWTH = 2  # how much longer, and wider, than the model's own clip


@dataclass(frozen=True)
class Span:
    """Lengths of an axis: ``usual`` is what kernels are chosen for."""

    least: int
    usual: int
    most: int


Profile: TypeAlias = Mapping[str, Span]
"""By the name of a free axis."""


def profiles_of(axes: Mapping[str, Axis]) -> list[Profile]:
    """The profiles of a graph with these free axes; one where no length tells clips apart."""
    own = {name: _span(name, axis, 1) for name, axis in axes.items()}
    other = {name: _span(name, axis, GROWTH) for name, axis in axes.items()}
    return [own] if own == other else [own, other]


def bounded(axes: Mapping[str, Axis]) -> dict[str, Axis]:
    """The lengths for which there is a profile."""
    spans = profiles_of(axes)[-1]
    return {name: replace(axis, least=spans[name].least, most=spans[name].most) for name, axis in axes.items()}


def shapes_of(spec: TensorSpec, profile: Profile) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The least, the usual and the largest shape of an input."""
    spans = [Span(n, n, n) if isinstance(n, int) else profile[n] for n in spec.shape]
    return [s.least for s in spans], [s.usual for s in spans], [s.most for s in spans]


def _span(name: str, axis: Axis, growth: int) -> Span:
    if axis.most is None:  # a count, or a number of tokens, of which there are as many as of frames, rows and columns
        return Span(axis.least, axis.usual, COUNTS.get(name, max(COUNT, GROWTH**3 * axis.usual)))
    if growth == 1:
        return Span(axis.usual, axis.usual, axis.usual)
    return Span(axis.least, axis.usual, min(axis.most, growth * axis.usual))
