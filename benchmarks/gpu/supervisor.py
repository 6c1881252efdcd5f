"""Start the process that works, watch it, start another if it dies, and keep the report up to date.

This process never touches the GPU, so that nothing which goes wrong there costs more than the item that did it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from .guard import guarded
from .report import faults, headline, markdown, summary
from .stages import ITEM_SECONDS, Records

POLL = 0.1  # seconds
ENDING = 30.0  # seconds that a guard may take to end what it guards
SHOWN = ("ms", "s", "copy", "copy_percent", "difference")  # figures of an item that are printed while a run goes on
ANNOUNCED = ("setup", "roofline", "step", "clip")


@dataclass
class Signals:
    """The first signal that asks this process to end, or None."""

    number: int | None = None

    def catch(self) -> None:
        """From now on SIGTERM, SIGINT and SIGHUP end the run rather than the process."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number


@dataclass
class Report:
    """``STEM.json`` and ``STEM.md``: what a run has found so far, replaced as a whole whenever that is more.

    Beside them lie ``STEM.jsonl``, the records that the worker appends, and ``STEM.log``, what it prints.
    """

    stem: Path
    about: Mapping[str, Any]
    title: str
    start: float = field(default_factory=time.time)
    _size: int = -1
    _announced: int = 0

    @property
    def records(self) -> Records:
        """The records that the report is made of."""
        return Records(self.path("jsonl"))

    def path(self, suffix: str) -> Path:
        """A file of this run."""
        return self.stem.with_name(f"{self.stem.name}.{suffix}")

    def update(self, status: str = "running") -> None:
        """Write both files if there are new records or the run has ended."""
        size = self.records.path.stat().st_size if self.records.path.is_file() else 0
        if size == self._size and status == "running":
            return
        self._size, results = size, self.records.results()
        found = {**self.about, "status": status, "seconds": round(time.time() - self.start, 1)}
        found |= {"faults": faults(results), "headline": headline(results), "results": results}
        _replace(self.path("json"), json.dumps(found, indent=1))
        _replace(self.path("md"), markdown(results, self.title, status))
        self._announce()

    def conclude(self, status: str) -> int:
        """Write the final report and print its summary. -> the number of faults."""
        self.update(status)
        results = self.records.results()
        wrong = faults(results)
        for fault in wrong[:20]:
            print(f"FAULT {fault}")
        print(summary(results))
        print(f"\n{self.title}: {status}, {len(wrong)} faults; {self.path('md')}", flush=True)
        return len(wrong)

    def _announce(self) -> None:
        """Print figures and errors as they come, for whoever sees only the output of a run that was cut off."""
        ends = [record for record in self.records.read() if record["event"] == "end"]
        for end in ends[self._announced :]:
            result = end.get("result", {})
            figures = ", ".join(f"{name} {result[name]}" for name in SHOWN if name in result)
            if "error" in end or (figures and end["stage"].partition("-")[0] in ANNOUNCED):
                print(f"{end['stage']}, {end['key']}: {end.get('error', figures)}", flush=True)
        self._announced = len(ends)


def supervise(report: Report, worker: list[str], end: float, smoke: bool, signals: Signals) -> str:
    """Workers one after the other until every stage is through, the time is over, or a signal came; how it ended."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if smoke else "0"}
    records = report.records
    while True:
        before = len(records.read())
        with report.path("log").open("ab") as log:
            process = subprocess.Popen(
                guarded([sys.executable, *worker]), env=environment, start_new_session=True, stdout=log, stderr=log
            )
        try:
            reason = _watch(process, report, end, signals)
        finally:
            stop(process)
        over = signals.number is not None or time.time() > end
        if (item := records.unfinished()) is not None:
            records.add(event="end", stage=item["stage"], key=item["key"], **{"stopped" if over else "error": reason})
        if signals.number is not None:
            return f"ended by {signal.Signals(signals.number).name}"
        if process.returncode == 0:
            return "complete"
        if over:
            return "the time of the run was over"
        if len(records.read()) == before:
            records.add(event="end", stage="setup", key="worker", error=reason)
            return "the worker does not start"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a guard, which ends all that it guards."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _watch(process: subprocess.Popen[bytes], report: Report, end: float, signals: Signals) -> str:
    """Wait for the end of the worker, or for a reason to end it."""
    while process.poll() is None:
        time.sleep(POLL)
        report.update()
        if signals.number is not None:
            return "the run was ended by a signal"
        item = report.records.unfinished()
        if item is not None and time.time() - item["time"] > item.get("limit", ITEM_SECONDS):
            return f"ended after {item.get('limit', ITEM_SECONDS):.0f} s without a result"
        if time.time() > end:
            return "the time of the run was over"
    code = process.returncode
    return f"the worker ended with exit code {code if code < 128 else 128 - code}"


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
