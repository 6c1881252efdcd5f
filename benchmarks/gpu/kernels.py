"""The operations beside their baselines, the most valuable first; what ``torch.compile`` takes long for comes last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..kernels import harness
from ..kernels.cases import Case, cases, micro_cases
from ..kernels.harness import Variant
from ..kernels.variants import variants
from .machine import roofline_of
from .stages import Item, Run

DTYPE = torch.bfloat16
ORDER = (("syncflow-xl", 1, 1), ("syncflow-xl", 16, 1), ("syncflow-xl", 1, 2), ("syncflow-xl", 4, 1))
REST = (("syncflow-xl", 4, 2), ("syncflow-xl", 16, 2), ("syncflow-tiny", 1, 1), ("syncflow-tiny", 16, 1))


def kernels(run: Run) -> Iterator[Item]:
    """Preset, batch and side by value; within them every variant of every operation."""
    if run.smoke:
        for case in micro_cases():
            offered = variants(case.operation, run.device)
            yield from (_item(case, name, offered[name], run) for name in ("kernel", "eager"))
        return
    for group in (ORDER, REST):
        for slow in (False, True):
            for preset, batch, scale in group:
                for case in cases(presets=(preset,), batches=(batch,), scales=(scale,)):
                    found = variants(case.operation, run.device)
                    yield from (_item(case, n, one, run) for n, one in found.items() if one.compiled == slow)


def _item(case: Case, name: str, variant: Variant, run: Run) -> Item:
    def work() -> dict[str, Any]:
        outcome = harness.compare(case, name, variant, DTYPE, run.device, roofline_of(run)).to_dict()
        if name.startswith("kernel") and "p50_us" not in outcome:
            raise RuntimeError(outcome["reason"])
        return outcome

    return Item(f"{case.operation} {case} {name}", work)
