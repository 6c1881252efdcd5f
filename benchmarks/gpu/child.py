"""The process that does the work of a run: ``python -m syncflow.benchmarks.gpu.child``, started by ``supervisor.py``.

It goes through the items that have not been started yet. A failure is recorded and the work goes on; when the GPU no
longer answers the process ends, and the supervisor starts another for the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from . import correctness, kernels, machine, model, tune
from .stages import GRACE, Item, Records, Run, Stage, section

ALWAYS = "setup"  # what a report cannot do without, however long libraries took to load
LOST = 70  # exit code: the GPU does not answer any more
STAGES: dict[str, Stage] = {
    "setup": machine.setup,
    "roofline": machine.roofline,
    "compile": machine.compile_first,
    "correctness": correctness.first,
    "step": model.step,
    "clip": model.clip,
    "kernels": kernels.first,
    "compile-rest": machine.compile_rest,
    "correctness-rest": correctness.rest,
    "step-rest": model.step_rest,
    "kernels-rest": kernels.rest,
    "tune": tune.tune,
}


def main() -> int:
    """Run the stages that the command line names, each until its deadline (in seconds since the epoch)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deadlines", type=json.loads, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    records = Records(given.records)
    run = Run("cpu" if given.smoke else "cuda", given.smoke, given.output, quick=given.quick)
    for name, deadline in given.deadlines.items():
        if not work_through(name, run, records, deadline):
            return LOST
    return 0


def work_through(name: str, run: Run, records: Records, deadline: float) -> bool:
    """The items of a stage until its deadline; whether the GPU still answers."""
    started = {(record["stage"], record["key"]) for record in records.read()}
    for earlier, ends in records.results().items():
        run.found[earlier] = {key: record["result"] for key, record in ends.items() if "result" in record}
    late = 0
    try:
        for item in STAGES[name](run):
            if (name, item.key) in started:
                continue
            if time.time() > deadline and name != ALWAYS:
                late += 1
                continue
            if not _one(name, item, run, records, min(item.seconds, max(deadline - time.time(), 0) + GRACE)):
                return False
    except Exception:
        records.add(event="end", stage=name, key="stage", error=_last_lines())
    if late and (name, f"left out of {name}") not in started:
        result = {"items": late, "reason": "the time of the stage was over"}
        records.add(event="end", stage=name, key=f"left out of {name}", result=result)
    return True


def _one(stage: str, item: Item, run: Run, records: Records, seconds: float) -> bool:
    records.add(event="start", stage=stage, key=item.key, limit=round(seconds, 1))
    began = time.monotonic()
    ended: dict[str, Any]
    try:
        ended = {"result": item.work()}
        run.found.setdefault(section(stage), {})[item.key] = ended["result"]
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
