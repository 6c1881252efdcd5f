"""Guidance as data: branches and weights (``docs/method.md`` section 4).

Every guidance is a linear combination of velocities, v = sum_i w_i v_i with sum_i w_i = 1 per modality. A branch says
which conditions are on. A direction moves away from a branch, v_full + s (v_full - v_branch), and directions add up:

| guidance | away from | strength |
|---|---|---|
| classifier-free guidance w (SyncFlow) | no text | w - 1 on both |
| sync guidance g (Syncphony's Audio Sync Guidance) | bridge skipped | g on both |
| SyncCFG s_v (Harmony) | muted audio | s_v - 1 on the video |
| SyncCFG s_a (Harmony) | static video | s_a - 1 on the audio |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Branch:
    """Conditions of one forward: the prompt's text (or the negative prompt, or the null text); the layers between the
    towers; silence, clean, in place of the audio; a still picture, clean, in place of the video."""

    text: bool = True
    bridge: bool = True
    muted: bool = False
    static: bool = False


FULL = Branch()


@dataclass(frozen=True)
class GuidancePlan:
    """Branches and, per modality, the weight of each.

    Outside ``interval`` (flow times of each modality, 0 = noise) a plan that has the branch ``full`` is that one alone.
    ``rescale`` in [0, 1] brings the deviation of the guided velocity back to that of the full branch. With a
    ``branch_interval`` above 1 the other branches are evaluated at some steps only (``caching.py``). Raises
    ``ValueError`` unless the weights of a modality sum to 1.
    """

    branches: tuple[Branch, ...]
    video: tuple[float, ...]
    audio: tuple[float, ...]
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    full: Branch = FULL
    branch_interval: int = 1

    def __post_init__(self) -> None:
        for name, weights in (("video", self.video), ("audio", self.audio)):
            if len(weights) != len(self.branches):
                raise ValueError(f"{len(self.branches)} branches need as many {name} weights; there are {len(weights)}")
            if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
                raise ValueError(f"{name} weights {weights} sum to {sum(weights):g}; they must sum to 1")
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"the guidance interval is {self.interval}; it must be two rising times from 0 to 1")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"the guidance rescale is {self.rescale}; it must be from 0 to 1")
        if self.branch_interval < 1:
            raise ValueError(f"the branch interval is {self.branch_interval}; it must be at least 1")

    def at(self, modality: str, time: float) -> dict[Branch, float]:
        """Weights of the branches of ``modality`` ("video" or "audio") at a flow time; those of 0 are left out."""
        time = max(0.0, time)  # a grid in single precision begins a rounding before 0
        if self.full in self.branches and not self.interval[0] <= time < self.interval[1]:
            return {self.full: 1.0}
        weights = zip(self.branches, getattr(self, modality), strict=True)
        return {branch: weight for branch, weight in weights if weight != 0}


@dataclass(frozen=True)
class Direction:
    """Away from a branch, with a strength per modality."""

    branch: Branch
    video: float
    audio: float


def combine(
    directions: Iterable[Direction],
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    branch_interval: int = 1,
) -> GuidancePlan:
    """The plan of the full branch and any directions."""
    weights = {FULL: [1.0, 1.0]}
    for direction in directions:
        for i, strength in enumerate((direction.video, direction.audio)):
            weights[FULL][i] += strength
            weights.setdefault(direction.branch, [0.0, 0.0])[i] -= strength
    kept = {branch: pair for branch, pair in weights.items() if any(pair)}
    video, audio = zip(*kept.values(), strict=True)
    return GuidancePlan(tuple(kept), video, audio, interval, rescale, branch_interval=branch_interval)


def unbridged(plan: GuidancePlan) -> GuidancePlan:
    """The plan of towers that do not read each other, as for a sound alone: every branch with its bridge skipped."""
    branches = tuple(replace(branch, bridge=False) for branch in plan.branches)
    return replace(plan, branches=branches, full=replace(plan.full, bridge=False))


def text_guidance(weight: float) -> Direction:
    """Classifier-free guidance; 1 is off."""
    return Direction(replace(FULL, text=False), weight - 1, weight - 1)


def sync_guidance(strength: float) -> Direction:
    """Away from the towers that do not read each other; 0 is off."""
    return Direction(replace(FULL, bridge=False), strength, strength)


def sync_cfg_video(weight: float) -> Direction:
    """SyncCFG of the video: away from the video of silence; 1 is off."""
    return Direction(replace(FULL, muted=True), weight - 1, 0.0)


def sync_cfg_audio(weight: float) -> Direction:
    """SyncCFG of the audio: away from the sound of a still picture; 1 is off."""
    return Direction(replace(FULL, static=True), 0.0, weight - 1)


def cfg(weight: float) -> GuidancePlan:
    """Classifier-free guidance alone: ``weight`` on the text, 1 - ``weight`` on its absence (SyncFlow, w = 6)."""
    return combine([text_guidance(weight)])
