"""Better tiles for this GPU: from each operation's own choice uphill, one halving, doubling or stage at a time.

The rules go to ``kernels/launch/gpus/<gpu>.json``, where ``kernels.launch.tiles`` finds them, and beside the results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ...kernels.launch import tiles
from ..kernels import harness
from ..kernels.cases import Case, cases, micro_cases
from ..kernels.harness import Variant
from .stages import Item, Run

DTYPE = torch.bfloat16
GAIN = 0.03  # a rule is written for at least this share less time
TRIALS = 40


def tune(run: Run) -> Iterator[Item]:
    """Every operation of syncflow-xl at its smallest and largest batch, then the file of rules."""
    chosen = micro_cases()[:1] if run.smoke else cases(presets=("syncflow-xl",), batches=(1, 16))
    for case in chosen:
        yield Item(f"{case.operation} {case}", partial(climb, case, run.device, 2 if run.smoke else TRIALS))
    yield Item("rules", partial(write, run))


def climb(case: Case, device: str, trials: int) -> dict[str, Any]:
    """The best tiles found, what they were chosen by, and the times of both in microseconds."""
    with _recorded() as asked:
        launches = case.launches(DTYPE)
    if not asked or not launches:
        return {"note": "no tiles to choose"}
    name, key, start = asked[0]
    tried: dict[tuple[tuple[str, int], ...], float] = {}

    def time_of(candidate: Mapping[str, int]) -> float:
        frozen = tuple(sorted(candidate.items()))
        if frozen not in tried:
            baseline = Variant(harness.kernel(case.operation, device), tiles=dict(candidate))
            timing = harness.compare(case, "tiles", baseline, DTYPE, device).timing
            tried[frozen] = float("inf") if timing is None else timing.percentile(0.5)
        return tried[frozen]

    first = time_of(start)
    best, improved = {**start, **({"TRITON": 1} if "TRITON" in start else {})}, True
    while improved and len(tried) < trials:
        improved = False
        for candidate in neighbours(best):
            if len(tried) >= trials:
                break
            if time_of(candidate) < time_of(best):
                best, improved = candidate, True
    found = {"operation": name, "when": key, "tiles": best, "from": dict(start), "trials": len(tried)}
    return found | {"before_us": round(1e6 * first, 2), "after_us": round(1e6 * time_of(best), 2)}


def neighbours(choice: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """One change: a size halved or doubled, a stage more or less; never from the kernel to a library."""
    for name, value in choice.items():
        if name == "TRITON":
            continue
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        for other in steps:
            if other >= 1 and value >= 1:
                yield {**choice, name: other}


def write(run: Run) -> dict[str, Any]:
    """The rules of all items that gained enough."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for result in run.found.get("tune", {}).values():
        if "tiles" in result and result["after_us"] < (1 - GAIN) * result["before_us"]:
            rules.setdefault(result["operation"], []).append({"when": result["when"], "tiles": result["tiles"]})
    gpu = "smoke" if run.smoke else torch.cuda.get_device_name().lower().replace(" ", "_")
    text = json.dumps(rules, indent=2) + "\n"
    targets = [run.output / f"{gpu}.json"] if run.smoke else [run.output / f"{gpu}.json", tiles.FOLDER / f"{gpu}.json"]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    return {"files": [str(target) for target in targets], "rules": sum(map(len, rules.values()))}


@contextmanager
def _recorded() -> Iterator[list[tuple[str, dict[str, Any], dict[str, int]]]]:
    """What operations ask of ``tiles.choose``: name, key and what they were given."""
    asked: list[tuple[str, dict[str, Any], dict[str, int]]] = []
    plain = tiles.choose

    def choose(name: str, heuristic: Mapping[str, int], **key: Any) -> dict[str, int]:
        chosen = plain(name, heuristic, **key)
        known = {k: harness.name_of(v) if isinstance(v, torch.dtype) else v for k, v in key.items()}
        asked.append((name, known, chosen))
        return chosen

    tiles.choose = choose
    try:
        yield asked
    finally:
        tiles.choose = plain
