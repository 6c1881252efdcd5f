"""The stages of a run, their time, and how they report: every piece of work is an item with its record on disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Stage -> seconds, in the order in which they run: what matters most comes first. A ``-rest`` stage belongs to the
# section of the report without the suffix. What a stage does not use is left to those after it.
FULL = {
    "setup": 30,
    "roofline": 15,
    "compile": 45,
    "correctness": 60,
    "step": 150,
    "clip": 25,
    "kernels": 80,
    "compile-rest": 40,
    "correctness-rest": 40,
    "step-rest": 30,
    "kernels-rest": 40,
}
QUICK = {"setup": 20, "roofline": 10, "compile": 35, "correctness": 40, "step": 70, "clip": 20, "kernels": 40}
NAMED = {"tune": 300}  # only when asked for
SECONDS = {**FULL, **NAMED}
REST = "-rest"
ITEM_SECONDS = 100.0  # until an item counts as hung
GRACE = 30.0  # seconds that the last item of a stage may take beyond the time of the stage
PLANTED = "planted kill"  # the item of a smoke run that kills its own process


@dataclass(frozen=True)
class Item:
    """A piece of work with a name; its result is a dictionary ready for JSON."""

    key: str
    work: Callable[[], dict[str, Any]]
    seconds: float = ITEM_SECONDS


@dataclass(frozen=True)
class Run:
    """What a run was asked for, and what it has found so far: section -> item -> result."""

    device: str
    smoke: bool
    output: Path
    found: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    quick: bool = False


Stage = Callable[[Run], Iterator[Item]]


def section(stage: str) -> str:
    """The part of the report to which a stage contributes."""
    return stage.removesuffix(REST)


def deadlines(stages: Sequence[str], budgets: Mapping[str, float], seconds: float, start: float) -> dict[str, float]:
    """Stage -> the time at which it must end: budgets one after the other, all smaller if ``seconds`` are too few."""
    total = sum(budgets[name] for name in stages)
    scale = min(1.0, seconds / total)
    found, end = {}, start
    for name in stages:
        end += scale * budgets[name]
        found[name] = end
    return found


@dataclass(frozen=True)
class Records:
    """A file of JSON lines: an item's start, and its end with a result or an error. It outlives its writers."""

    path: Path

    def add(self, **record: Any) -> None:
        """One line, on disk when this returns."""
        line = json.dumps({"time": round(time.time(), 3), **record}) + "\n"
        with self.path.open("ab") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                line = "\n" + line  # the writer before this one died within a line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut off by the death of its writer
        return found

    def unfinished(self) -> dict[str, Any] | None:
        """The item that has started and not ended."""
        last: dict[str, Any] | None = None
        for record in self.read():
            last = record if record["event"] == "start" else None
        return last

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Section -> item -> its end."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for record in self.read():
            if record["event"] == "end":
                found.setdefault(section(record["stage"]), {})[record["key"]] = record
        return found
