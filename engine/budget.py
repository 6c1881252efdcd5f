"""An engine under a budget of memory: what is refused, which parts stay, and how many requests fit together."""

from __future__ import annotations

from pathlib import Path

import torch

from .codecs.tiles import CHOICES
from .components import Components
from .config import SequenceConfig
from .cost.memory import MemoryEstimator, tensor_bytes
from .cost.memory_plan import MemoryPlan, Stage, plan_memory, stages_of
from .package import Package
from .pipeline import Pipeline, PreparedRequest
from .runtime.selection.settings import TorchOptions
from .types import DecodeTiles, Request

RUNTIMES = ("torch", "torch-plain")  # whose weights can be released and loaded again, or have 8 bits
PARTS = ("text", "ddit", "video", "audio")


def runtime_with(setting: str, runtime: str, options: TorchOptions) -> str:
    """The runtime with ``memory`` or ``quantization``, ``torch`` for ``auto``.

    Raises ``ValueError`` for one with weights of its own, and for options that it excludes.
    """
    found = "torch" if runtime == "auto" else runtime
    if found not in RUNTIMES:
        raise ValueError(f"{setting} is a setting of the runtimes {' and '.join(RUNTIMES)}; this one is {runtime}")
    if options.requested:
        raise ValueError(f"{setting} and {options.requested[0]} exclude each other; leave one of them out")
    return found


def under_budget(
    components: Components, folder: Path | None, device: torch.device, budget: int
) -> tuple[Components, MemoryPlan]:
    """``components`` without values as they are loaded under a budget, and its plan for the model's own clip.

    Raises ``ValueError`` for a budget that is too small, and for a model that was loaded already.
    """
    if folder is None or components.ddit.device.type != "meta":
        raise ValueError("memory is a setting of Engine.from_pretrained; this model was loaded before")
    plan = Pipeline(components, device).plan(Request("a clip"))
    memory = MemoryEstimator(components, device=device)
    weights = {name: size for name in PARTS if (size := tensor_bytes(getattr(components, name)))}
    whole = stages_of(memory, components.config.sequence, plan)
    video = Stage("frames", "video", memory.decode_video_bytes(components.config.sequence, CHOICES[-1]))
    least = [video if stage.name == "frames" else stage for stage in whole]
    try:
        found = plan_memory(budget, weights, whole)
    except ValueError:
        found = plan_memory(budget, weights, least)  # requests choose their tiles (tiles_that_fit)
    package = Package(folder, components.config, components.digest)
    return components.under(package, found.kept, device), found


def tiles_that_fit(plan: MemoryPlan, memory: MemoryEstimator, sequence: SequenceConfig) -> DecodeTiles:
    """How much of a clip is decoded at once: whole frames where they fit, else the largest tiles that do."""

    def needed(tiles: DecodeTiles) -> int:
        return plan.at(Stage("frames", "video", memory.decode_video_bytes(sequence, tiles)))

    return next((tiles for tiles in CHOICES if needed(tiles) <= plan.budget), CHOICES[-1])


def requests_that_fit(plan: MemoryPlan, memory: MemoryEstimator, one: PreparedRequest, most: int) -> int:
    """How many requests of this kind may be sampled together, at most ``most``. Raises ``ValueError`` for none."""
    tiles = tiles_that_fit(plan, memory, one.sequence)
    for requests in range(most, 0, -1):
        stages = stages_of(memory, one.sequence, one.plan, requests, one.request.takes, tiles)
        if requests == 1:
            plan.check(stages)
        if all(plan.at(stage) <= plan.budget for stage in stages):
            return requests
    raise AssertionError("a request that does not fit is refused")
