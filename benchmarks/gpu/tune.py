"""Better tiles for this GPU: from each operation's own choice uphill, one halving, doubling or stage at a time.

A round compiles the candidates of every target on all cores, then times them, then writes what was found so far. The
rules go to ``kernels/launch/gpus/<gpu>.json``, where ``kernels.launch.tiles`` finds them, and beside the results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...kernels.launch import tiles
from ..kernels import compiled, harness
from ..kernels.cases import Case, cases, micro_cases
from ..kernels.compiled import Task
from ..kernels.harness import Variant
from .machine import architecture
from .stages import Item, Run

DTYPE = torch.bfloat16
GAIN = 0.03  # a rule is written for at least this share less time
ROUNDS = 3
Tiles = Mapping[str, int]


@dataclass(frozen=True)
class Target:
    """A choice of tiles to improve: where ``tiles.choose`` is asked for ``name`` under the conditions ``when``, the
    tiles that it gives, and the cases that ask, from the smallest batch to the largest."""

    name: str
    when: Mapping[str, Any]
    start: Tiles
    cases: tuple[Case, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.cases[0].place} {self.cases[0].sizes.name.rpartition(' batch')[0]}"


def tune(run: Run) -> Iterator[Item]:
    """Rounds over every target of syncflow-xl at both sides."""
    chosen = micro_cases()[:1] if run.smoke else cases(presets=("syncflow-xl",), batches=(1, 16))
    found = targets(chosen)
    for number in range(1 if run.smoke else ROUNDS):
        tried = {str(target): candidates(run, target, number) for target in found}
        if not any(tried.values()):
            return
        if not run.smoke:
            yield Item(f"compile, round {number}", partial(compile_candidates, found, tried))
        for target in found:
            if tried[str(target)]:
                yield Item(f"{target}, round {number}", partial(climb, run, target, tried[str(target)], number))
        yield Item(f"rules, round {number}", partial(write, run))


def targets(chosen: Sequence[Case]) -> list[Target]:
    """What the cases ask ``tiles.choose`` for. Conditions that differ between batches of a case are left out: a choice
    of tiles must not depend on the number of clips in a batch."""
    asked: dict[tuple[str, str, str, int], list[tuple[Case, dict[str, Any], Tiles]]] = {}
    for case in chosen:
        with _recorded() as questions:
            case.launches(DTYPE)
        for position, (name, when, start) in enumerate(questions):
            place = name, case.place, str(case.at(1)), position
            asked.setdefault(place, []).append((case, when, start))
    merged: dict[str, Target] = {}
    for (name, *_), same in asked.items():
        first = same[0][1]
        when = {key: first[key] for key in first if all(other[key] == first[key] for _, other, _ in same)}
        target = Target(name, when, same[0][2], tuple(case for case, _, _ in same))
        merged.setdefault(f"{name} {sorted(when.items())}", target)
    return list(merged.values())


def candidates(run: Run, target: Target, number: int) -> list[dict[str, int]]:
    """What a round tries: the changes of the best tiles so far that have not been tried."""
    before = [_result(run, target, n) for n in range(number)]
    if any(result is None for result in before):
        return []  # an earlier round failed or did not come to it
    best = dict(before[-1]["tiles"]) if before and before[-1] else _with_kernel(target.start)
    seen = [tried for result in before if result for tried, _ in result["tried"]]
    fresh = [one for one in neighbours(best) if one not in seen]
    return fresh[:2] if run.smoke else fresh


def compile_candidates(found: Sequence[Target], tried: Mapping[str, Sequence[Tiles]]) -> dict[str, Any]:
    """All candidates on all cores, into Triton's cache; those that do not compile, spill or do not fit."""
    arch, tasks, owners = architecture(), [], []
    for target in found:
        for candidate in tried[str(target)]:
            with tiles.override(target.name, candidate):
                positions = range(len(target.cases[0].launches(DTYPE)))
            overrides = {target.name: dict(candidate)}
            tasks += [Task(arch, target.cases[0], harness.name_of(DTYPE), i, overrides) for i in positions]
            owners += [(str(target), dict(candidate)) for _ in positions]
    rows = compiled.compile_all(tasks)
    refused = [owner for owner, row in zip(owners, rows, strict=True) if row.fault(arch) is not None]
    return {"compiled": len(rows), "refused": refused}


def climb(run: Run, target: Target, tried: Sequence[Tiles], number: int) -> dict[str, Any]:
    """The best of the candidates and of what was best before, with times in microseconds at the smallest batch.

    The score of tiles is the mean logarithm of their times at the smallest and the largest batch.
    """
    earlier = _result(run, target, number - 1) if number else None
    start = _with_kernel(target.start)
    times: list[list[Any]] = list(earlier["tried"]) if earlier else [[start, _times(run, target, start)]]
    refused = run.found.get("tune", {}).get(f"compile, round {number}", {}).get("refused", [])
    for candidate in tried:
        if [str(target), dict(candidate)] not in [list(one) for one in refused]:
            times.append([dict(candidate), _times(run, target, candidate)])
    best, after = min(times, key=lambda one: _score(one[1]))
    before = times[0][1]
    found = {"operation": target.name, "when": dict(target.when), "tiles": best, "from": dict(target.start)}
    gain = 1 - math.exp(_score(after) - _score(before)) if math.isfinite(_score(before)) else 0.0
    return found | {"tried": times, "before_us": before[0], "after_us": after[0], "gain": round(gain, 4)}


def neighbours(choice: Tiles) -> Iterator[dict[str, int]]:
    """One change: a size halved or doubled, a stage more or less; never from the kernel to a library."""
    for name, value in choice.items():
        if name == "TRITON":
            continue
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        for other in steps:
            if other >= 1 and value >= 1:
                yield {**choice, name: other}


def write(run: Run) -> dict[str, Any]:
    """The rules of all targets that gained enough, by the last round that timed them."""
    last: dict[str, dict[str, Any]] = {}
    for key, result in run.found.get("tune", {}).items():
        if "tiles" in result:
            last[key.rpartition(", round")[0]] = result
    rules: dict[str, list[dict[str, Any]]] = {}
    for result in last.values():
        if result["gain"] > GAIN:
            rules.setdefault(result["operation"], []).append({"when": result["when"], "tiles": result["tiles"]})
    gpu = "smoke" if run.smoke else torch.cuda.get_device_name().lower().replace(" ", "_")
    text = json.dumps(rules, indent=2) + "\n"
    files = [run.output / f"{gpu}.json"] if run.smoke else [run.output / f"{gpu}.json", tiles.FOLDER / f"{gpu}.json"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    return {"files": [str(file) for file in files], "rules": sum(map(len, rules.values()))}


def _times(run: Run, target: Target, candidate: Tiles) -> list[float | None]:
    """Microseconds at the smallest and the largest batch; None where the kernel fails or is wrong."""
    found: list[float | None] = []
    for case in dict.fromkeys((target.cases[0], target.cases[-1])):
        with tiles.override(target.name, candidate):
            variant = Variant(harness.kernel(case.operation, run.device))
            timing = harness.compare(case, "kernel", variant, DTYPE, run.device).timing
        found.append(None if timing is None else round(1e6 * timing.percentile(0.5), 2))
    return found


def _score(times: Sequence[float | None]) -> float:
    return sum(math.inf if one is None else math.log(one) for one in times) / len(times)


def _result(run: Run, target: Target, number: int) -> dict[str, Any] | None:
    return run.found.get("tune", {}).get(f"{target}, round {number}")


def _with_kernel(choice: Tiles) -> dict[str, int]:
    """Where a library may be the choice, the tiles of the kernel are tuned."""
    return {**choice, **({"TRITON": 1} if "TRITON" in choice else {})}


@contextmanager
def _recorded() -> Iterator[list[tuple[str, dict[str, Any], dict[str, int]]]]:
    """What operations ask of ``tiles.choose``: name, key and what they were given."""
    asked: list[tuple[str, dict[str, Any], dict[str, int]]] = []
    plain = tiles.choose

    def choose(name: str, heuristic: Tiles, **key: Any) -> dict[str, int]:
        chosen = plain(name, heuristic, **key)
        known = {k: harness.name_of(v) if isinstance(v, torch.dtype) else v for k, v in key.items()}
        asked.append((name, known, dict(chosen)))
        return chosen

    tiles.choose = choose
    try:
        yield asked
    finally:
        tiles.choose = plain
