"""Branch caching: what guidance adds to the full branch, evaluated at some steps and kept between them.

The guided velocity sum_i w_i v_i is v_1 + d, where v_1 is the velocity of the first branch, the full one, and
d = sum_i w_i (v_i - v_1) changes slowly from step to step. With a branch interval of N a request renews d at every
N-th step and reuses it between, where the first branch is all that it computes. Exact for N = 1, approximate above.
Source: the CFG cache of FasterCache (Lv et al. 2024), without its weights of frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from .guidance import Branch, GuidancePlan
from .step_plan import Sums

CachePhase = Literal["renew", "reuse"]
"""What becomes of a difference at a step."""
CachePhases = tuple[CachePhase | None, ...]


def cache_phases_of(plan: GuidancePlan, video: np.ndarray, audio: np.ndarray) -> tuple[CachePhases, CachePhases]:
    """What the video and the audio, with flow times (K + 1,), do at each of K steps; None where no guidance holds.

    They renew together, because a branch of one is read by the other: at the first step that is guided, at every N-th
    after it, and where one of them is guided that was not when the differences were last evaluated. Nothing for N = 1.
    """
    if plan.branch_interval == 1:
        return (), ()
    grids = {"video": video, "audio": audio}
    found: dict[str, list[CachePhase | None]] = {"video": [], "audio": []}
    kept: set[str] = set()
    age = 0
    for k in range(len(video) - 1):
        guided = {
            name for name, grid in grids.items() if grid[k + 1] > grid[k] and len(plan.at(name, float(grid[k]))) > 1
        }
        renews = age >= plan.branch_interval or not guided <= kept
        if guided and renews:
            kept, age = guided, 0
        age += 1
        for name, phases in found.items():
            phases.append(None if name not in guided else "renew" if renews else "reuse")
    return tuple(found["video"]), tuple(found["audio"])


def first_of(weights: Mapping[Branch, float]) -> dict[Branch, float]:
    """The branch that a reused difference is added to, alone."""
    return {next(iter(weights)): 1.0}


def reusing(sums: Sums, phases: Sequence[CachePhase | None]) -> Sums:
    """Sums over the n differences with the rows behind them; where a difference is reused, it is added."""
    return tuple(
        (*((len(sums) + row, weight) for row, weight in pairs), *(((sample, 1.0),) if phase == "reuse" else ()))
        for sample, (pairs, phase) in enumerate(zip(sums, phases, strict=True))
    )


def renewing(sums: Sums, phases: Sequence[CachePhase | None]) -> list[list[float]]:
    """For every pair of ``sums`` its weight in the new difference, 0 where the difference is kept."""
    return [
        [weight - (i == 0) if phase == "renew" else 0.0 for i, (_, weight) in enumerate(pairs)]
        for pairs, phase in zip(sums, phases, strict=True)
    ]
