"""Guidance as data: branches and weights (``docs/method.md`` section 3).

Every guidance is a linear combination of velocities, v = sum_i w_i v_i with sum_i w_i = 1 per modality. A branch says
which conditions are on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Branch:
    """One conditional forward: with the prompt's text, or with the null text."""

    text: bool = True


@dataclass(frozen=True)
class GuidancePlan:
    """Branches and, per modality, the weight of each. Raises ``ValueError`` unless weights of a modality sum to 1."""

    branches: tuple[Branch, ...]
    video: tuple[float, ...]
    audio: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, weights in (("video", self.video), ("audio", self.audio)):
            if len(weights) != len(self.branches):
                raise ValueError(f"{len(self.branches)} branches need as many {name} weights; there are {len(weights)}")
            if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
                raise ValueError(f"{name} weights {weights} sum to {sum(weights):g}; they must sum to 1")


def cfg(weight: float) -> GuidancePlan:
    """Classifier-free guidance: ``weight`` on the text, 1 - ``weight`` on the null text (SyncFlow, w = 6); 1 is off."""
    if weight == 1:
        return GuidancePlan((Branch(),), (1.0,), (1.0,))
    if weight == 0:
        return GuidancePlan((Branch(text=False),), (1.0,), (1.0,))
    weights = (weight, 1 - weight)
    return GuidancePlan((Branch(), Branch(text=False)), weights, weights)
