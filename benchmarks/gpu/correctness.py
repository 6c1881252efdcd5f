"""Every kernel against float64 by the tolerance rule, at the presets' own shapes and at shapes that no tile divides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..kernels import harness
from ..kernels.cases import Case, cases, micro_cases, odd_cases
from .stages import Item, Run

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
Chosen = Iterable[tuple[Case, torch.dtype]]


def first(run: Run) -> Iterator[Item]:
    """In bfloat16 at the sizes of the presets: what every later figure depends on."""
    if run.smoke:
        return _items(run, ((case, torch.float32) for case in micro_cases()))
    return _items(run, ((case, torch.bfloat16) for case in cases(batches=(1,), scales=(1,))))


def rest(run: Run) -> Iterator[Item]:
    """Odd shapes in every type, twice the side in bfloat16, then the sizes of the presets in the other types."""
    if run.smoke:
        yield from _items(run, ((case, torch.bfloat16) for case in micro_cases(["gated_residual"])))
        return
    chosen = [(case, dtype) for dtype in DTYPES for case in odd_cases()]
    chosen += [(case, torch.bfloat16) for case in cases(batches=(1,), scales=(2,))]
    chosen += [(case, dtype) for dtype in DTYPES[1:] for case in cases(batches=(1,))]
    yield from _items(run, chosen)


def _items(run: Run, chosen: Chosen) -> Iterator[Item]:
    for case, dtype in chosen:
        for name, tiles in harness.kernels_of(case.operation).items():
            key = f"{case.operation} {case} {harness.name_of(dtype)}{name.removeprefix('kernel')}"
            yield Item(key, partial(check, case, dtype, run.device, tiles))


def check(case: Case, dtype: torch.dtype, device: str, chosen: Mapping[str, int] | None) -> dict[str, Any]:
    """Error over what is allowed, and whether a second run gives the same bits."""
    known = harness.truth(case, dtype, device)
    compute = harness.kernel(case.operation, device)
    with torch.no_grad(), harness.poisoned(), harness.choosing(case.operation, chosen):
        first, second = compute(*known.arguments), compute(*known.arguments)
    margin = known.margin(first)
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs if a.numel())
    return {
        "shape": case.shape,
        "margin": round(margin, 4),
        "repeatable": same,
        "kernels": [launch.kernel.__name__ for launch in case.launches(dtype)],
        "ok": bool(margin <= 1 and same),
    }
