"""The operations beside their baselines, the most valuable first; what ``torch.compile`` takes long for comes last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..kernels import harness
from ..kernels.cases import Case, cases, micro_cases
from ..kernels.harness import Variant
from ..kernels.variants import variants
from .machine import roofline_of
from .stages import Item, Run

DTYPE = torch.bfloat16
FIRST = (("syncflow-xl", 1, 1), ("syncflow-xl", 16, 1))  # preset, batch, side; by value
REST = (
    ("syncflow-xl", 1, 2),
    ("syncflow-xl", 4, 1),
    ("syncflow-xl", 4, 2),
    ("syncflow-xl", 16, 2),
    ("syncflow-tiny", 1, 1),
    ("syncflow-tiny", 16, 1),
)


def first(run: Run) -> Iterator[Item]:
    """The kernels of syncflow-xl, then what they are compared with, but for what ``torch.compile`` takes long for."""
    if run.smoke:
        for case in {case.operation: case for case in micro_cases()}.values():
            offered = variants(case.operation, run.device)
            yield from (_item(case, name, offered[name], run) for name in ("kernel", "eager"))
        return
    yield from _items(FIRST[:1], run, compiled=False, kernels=True)
    yield from _items(FIRST[:1], run, compiled=False, kernels=False)
    yield from _items(FIRST[1:], run, compiled=False, kernels=True)
    yield from _items(FIRST[1:], run, compiled=False, kernels=False)


def rest(run: Run) -> Iterator[Item]:
    """Baselines that are compiled, then the other sizes."""
    if run.smoke:
        case = micro_cases(["guided_euler_step"])[0]
        yield _item(case, "kernel", variants(case.operation, run.device)["kernel"], run)
        return
    yield from _items(FIRST, run, compiled=True, kernels=False)
    for compiled in (False, True):
        for kernels in (True, False):
            yield from _items(REST, run, compiled=compiled, kernels=kernels)


def _items(sizes: Sequence[tuple[str, int, int]], run: Run, *, compiled: bool, kernels: bool) -> Iterator[Item]:
    for preset, batch, scale in sizes:
        for case in cases(presets=(preset,), batches=(batch,), scales=(scale,)):
            for name, variant in variants(case.operation, run.device).items():
                if variant.compiled == compiled and name.startswith("kernel") == kernels:
                    yield _item(case, name, variant, run)


def _item(case: Case, name: str, variant: Variant, run: Run) -> Item:
    def work() -> dict[str, Any]:
        roofline = roofline_of(run)
        outcome = harness.compare(case, name, variant, DTYPE, run.device, roofline).to_dict()
        if name.startswith("kernel") and "p50_us" not in outcome:
            raise RuntimeError(outcome["reason"])
        if roofline is not None and "gb_s" in outcome:
            outcome["copy_percent"] = round(1e11 * outcome["gb_s"] / roofline.copy, 1)
        return outcome

    return Item(f"{case.operation} {case} {name}", work)
