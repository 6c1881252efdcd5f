"""The process that does the work of a run: ``python -m syncflow.benchmarks.gpu.child``, started by ``__main__``.

It goes through the items that have not been started yet. A failure is recorded and the work goes on; when the GPU no
longer answers the process ends, and the one that started it starts another for the rest.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from . import correctness, kernels, machine, model, tune
from .stages import BUDGETS, Item, Records, Run, Stage, spent

LOST = 70  # exit code: the GPU does not answer any more
STAGES: dict[str, Stage] = {
    "setup": machine.setup,
    "roofline": machine.roofline,
    "correctness": correctness.correctness,
    "kernels": kernels.kernels,
    "step": model.step,
    "clip": model.clip,
    "tune": tune.tune,
}


def main() -> int:
    """Run the stages that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    records = Records(given.records)
    run = Run("cpu" if given.smoke else "cuda", given.smoke, given.output)
    for name in given.stages.split(","):
        if not work_through(name, run, records, BUDGETS[name] * given.scale):
            return LOST
    return 0


def work_through(name: str, run: Run, records: Records, budget: float) -> bool:
    """The items of a stage while its budget lasts; whether the GPU still answers."""
    started = {(record["stage"], record["key"]) for record in records.read()}
    for earlier, ends in records.results().items():
        run.found[earlier] = {key: record["result"] for key, record in ends.items() if "result" in record}
    deadline = time.monotonic() + budget - spent(records, name)
    late = 0
    try:
        for item in STAGES[name](run):
            if (name, item.key) in started:
                continue
            if time.monotonic() > deadline:
                late += 1
                continue
            if not _one(name, item, run, records):
                return False
    except Exception:
        records.add(event="end", stage=name, key="stage", error=_last_lines())
    if late:
        result = {"items": late, "reason": f"the {budget:.0f} s of the stage were over"}
        records.add(event="end", stage=name, key="left out", result=result)
    return True


def _one(stage: str, item: Item, run: Run, records: Records) -> bool:
    records.add(event="start", stage=stage, key=item.key)
    began = time.monotonic()
    ended: dict[str, Any]
    try:
        ended = {"result": item.work()}
        run.found.setdefault(stage, {})[item.key] = ended["result"]
    except Exception:
        ended = {"error": _last_lines()}
    answers = True
    try:
        if run.device == "cuda":
            torch.cuda.synchronize()
    except Exception:
        ended, answers = {"error": _last_lines()}, False
    records.add(event="end", stage=stage, key=item.key, seconds=round(time.monotonic() - began, 3), **ended)
    return answers


def _last_lines() -> str:
    """The message of the exception and the place in this package that raised it."""
    kind, error, trace = sys.exc_info()
    frames = traceback.extract_tb(trace)
    place = frames[-1] if frames else None
    where = f" ({Path(place.filename).name}:{place.lineno} in {place.name})" if place else ""
    lines = str(error).strip().splitlines()
    return f"{kind.__name__ if kind else 'error'}: {lines[0][:300] if lines else ''}{where}"


if __name__ == "__main__":
    sys.exit(main())
