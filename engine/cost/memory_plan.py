"""How the parts of a model fit into a budget of memory, before their weights are loaded.

A request goes through stages, each with one part of the model: its text is encoded, its latents are sampled, its frames
and its sound are decoded. A part that is not kept is in memory in its own stages alone. The peak of a stage is the
weights of the parts that are kept, those of its own part, and the tensors that it works with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..config import SequenceConfig
from ..sampling.guidance import GuidancePlan
from ..types import WHOLE, DecodeTiles
from .memory import MemoryEstimator

TITLES = {"text": "text encoder", "ddit": "d-DiT", "video": "video codec", "audio": "audio codec"}


@dataclass(frozen=True)
class Stage:
    """A ``name``, the ``part`` that it needs, and the bytes of the tensors that it works with."""

    name: str
    part: str
    working: int


@dataclass(frozen=True)
class MemoryPlan:
    """The parts that are ``kept`` under a ``budget``. ``weights``: bytes of every part; ``stages`` of a request."""

    budget: int
    weights: Mapping[str, int]
    stages: tuple[Stage, ...]
    kept: tuple[str, ...]

    def at(self, stage: Stage) -> int:
        """The bytes that weights and tensors take in a stage."""
        return stage.working + sum(size for part, size in self.weights.items() if part in (*self.kept, stage.part))

    @property
    def peak(self) -> int:
        """The most bytes that weights and tensors take."""
        return max(self.at(stage) for stage in self.stages)

    @property
    def bytes_for_requests(self) -> int:
        """The bytes that the tensors of requests may take together, beside the weights of the stage that has most."""
        return max(1, self.budget - max(self.at(stage) - stage.working for stage in self.stages))

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise ``ValueError`` where the stages of a request need more than the budget."""
        largest = max(stages, key=self.at)
        if (needed := self.at(largest)) > self.budget:
            raise ValueError(
                f"the request needs {gigabytes(needed)} of memory in the stage {largest.name} and "
                f"{gigabytes(self.budget)} are allowed; ask for a smaller clip, or allow memory={_enough(needed)!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        stages = {stage.name: self.at(stage) for stage in self.stages}
        return {"budget": self.budget, "predicted": self.peak, "kept": list(self.kept), "stages": stages}

    def __str__(self) -> str:
        in_turn = [TITLES[part] for part in self.weights if part not in self.kept]
        kept = [TITLES[part] for part in self.weights if part in self.kept]
        each = ", ".join(f"{stage.name} {gigabytes(self.at(stage))}" for stage in self.stages)
        ways = [f"{', '.join(names)} {how}" for names, how in ((kept, "kept"), (in_turn, "in turn")) if names]
        return f"memory: {gigabytes(self.peak)} of {gigabytes(self.budget)} predicted ({each}); {'; '.join(ways)}"


def plan_memory(budget: int, weights: Mapping[str, int], stages: Sequence[Stage]) -> MemoryPlan:
    """The plan that keeps the most bytes of weights within the budget.

    Raises ``ValueError`` where not even one part after the other fits.
    """
    parts = list(weights)
    choices = [chosen for count in range(len(parts) + 1) for chosen in combinations(parts, count)]
    plans = [MemoryPlan(budget, dict(weights), tuple(stages), kept) for kept in choices]
    fitting = [plan for plan in plans if plan.peak <= budget]
    if fitting:
        return max(fitting, key=lambda plan: (sum(weights[part] for part in plan.kept), len(plan.kept)))
    least = min(plans, key=lambda plan: plan.peak)
    largest = max(least.stages, key=least.at)
    sizes = f"{TITLES[largest.part]} {gigabytes(weights[largest.part])}, tensors {gigabytes(largest.working)}"
    raise ValueError(
        f"memory is {gigabytes(budget)}; with one part of the model after the other the stage {largest.name} needs "
        f"{gigabytes(least.peak)} ({sizes}): allow at least memory={_enough(least.peak)!r}"
    )


def stages_of(
    memory: MemoryEstimator,
    sequence: SequenceConfig,
    plan: GuidancePlan,
    requests: int = 1,
    takes: int = 1,
    tiles: DecodeTiles = WHOLE,
) -> tuple[Stage, ...]:
    """The stages of requests of a kind that are sampled together and decoded one after the other, by ``tiles``."""
    found = [
        Stage("text", "text", memory.encode_text_bytes()),
        Stage("steps", "ddit", memory.steps_bytes(sequence, plan, requests, takes)),
        Stage("frames", "video", memory.decode_video_bytes(sequence, tiles)),
        Stage("sound", "audio", memory.decode_audio_bytes(sequence)),
    ]
    return tuple(stage for stage in found if stage.working or stage.part != "audio")


def gigabytes(size: int, *, up: bool = False) -> str:
    """``1.2 GB``, or for less than one ``34 MB``; ``up`` rounds up."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    tenths = -(-10 * size // unit) if up else round(10 * size / unit)
    return f"{tenths / 10:g} {name}"


def _enough(size: int) -> str:
    """The setting that allows so many bytes."""
    return gigabytes(size, up=True).replace(" ", "")
