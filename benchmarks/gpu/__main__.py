"""``benchmarks/gpu/run``: start the process that works, watch it, start another if it dies, write what was found.

This process never touches the GPU, so that nothing which goes wrong there costs more than the item that did it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .report import faults, markdown, summary
from .stages import BUDGETS, DEFAULT, Records

ITEM_LIMIT = 150.0  # seconds until an item counts as hung
LIMIT = 555.0
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Exit code 0 when nothing failed, 1 when something did, 2 for a mistake in the command."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", default=",".join(DEFAULT), help=f"of {', '.join(BUDGETS)}; tune only when named")
    parser.add_argument("--output", type=Path, help="folder for the results; $OUT, or benchmarks/gpu/results")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="for everything; the stages share them")
    parser.add_argument("--smoke", action="store_true", help="every stage on the CPU, tiny, to prove that it runs")
    given = parser.parse_args()
    stages = given.stages.split(",")
    if unknown := [name for name in stages if name not in BUDGETS]:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(BUDGETS)}")
    if given.smoke and given.output is None:
        parser.error("--smoke needs --output: its times mean nothing and are not kept with the results")
    output = given.output or Path(os.environ.get("OUT") or RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder, "records.jsonl"))
        try:
            supervise(records, stages, output, given.seconds, given.smoke)
        except KeyboardInterrupt:
            print("interrupted; what was found so far follows", file=sys.stderr)
        return conclude(records, output, given.smoke)


def supervise(records: Records, stages: Sequence[str], output: Path, seconds: float, smoke: bool) -> None:
    """Workers one after the other until every stage is through or the time is over."""
    deadline = time.monotonic() + seconds
    command = [sys.executable, "-m", "syncflow.benchmarks.gpu.child", "--stages", ",".join(stages)]
    command += ["--records", str(records.path), "--output", str(output)]
    command += ["--scale", str(seconds / max(seconds, sum(BUDGETS[name] for name in stages)))]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if smoke else "0"}
    while time.monotonic() < deadline:
        before = len(records.read())
        worker = subprocess.Popen(command + ["--smoke"] * smoke, env=environment, start_new_session=True)
        reason = _watch(worker, records, deadline)
        if (item := records.unfinished()) is not None:
            records.add(event="end", stage=item["stage"], key=item["key"], error=reason)
        if worker.returncode == 0:
            return
        if len(records.read()) == before:
            records.add(event="end", stage=stages[0], key="worker", error=reason)
            return


def conclude(records: Records, output: Path, smoke: bool) -> int:
    """Write JSON and Markdown, print the summary last."""
    results = records.results()
    about = results.get("setup", {}).get("machine", {}).get("result", {})
    gpu = "smoke" if smoke else str(about.get("gpu", "unknown")).lower().replace(" ", "-")
    day = datetime.date.today().isoformat()
    stem = output / f"{day}-{gpu}"
    title = f"{'Smoke run' if smoke else about.get('gpu', 'Unknown GPU')}, {day}"
    _write(stem.with_name(stem.name + ".json"), json.dumps({"date": day, "smoke": smoke, "results": results}, indent=1))
    _write(stem.with_name(stem.name + ".md"), markdown(results, title))
    wrong = faults(results)
    for fault in wrong[:20]:
        print(f"FAULT {fault}")
    print(summary(results))
    print(f"\n{title}: {len(wrong)} faults; {stem}.md")
    return 1 if wrong else 0


def _watch(worker: subprocess.Popen[bytes], records: Records, deadline: float) -> str:
    """Wait for the end of the worker, or end it; why it ended."""
    try:
        while worker.poll() is None:
            time.sleep(0.2)
            item, now = records.unfinished(), time.time()
            if item is not None and now - item["time"] > ITEM_LIMIT:
                return f"ended after {ITEM_LIMIT:.0f} s without a result"
            if time.monotonic() > deadline:
                return "the time of the run was over"
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)  # and the processes that it started
            worker.wait()
    return f"the worker ended with exit code {worker.returncode}"


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
