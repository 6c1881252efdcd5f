"""The stages of a run and how they report: every piece of work is an item, fenced, with its record on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Stage -> seconds that it may take; together less than ten minutes.
BUDGETS = {"setup": 60, "roofline": 20, "correctness": 110, "kernels": 160, "step": 120, "clip": 50, "tune": 300}
DEFAULT = tuple(name for name in BUDGETS if name != "tune")


@dataclass(frozen=True)
class Item:
    """A piece of work with a name; its result is a dictionary ready for JSON."""

    key: str
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What a run was asked for, and what it has found so far: stage -> item -> result."""

    device: str
    smoke: bool
    output: Path
    found: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


Stage = Callable[[Run], Iterator[Item]]


@dataclass(frozen=True)
class Records:
    """A file of JSON lines: an item's start, and its end with a result or an error. It outlives its writer."""

    path: Path

    def add(self, **record: Any) -> None:
        """One line, on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        if not self.path.is_file():
            return []
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def unfinished(self) -> dict[str, Any] | None:
        """The item that has started and not ended."""
        last: dict[str, Any] | None = None
        for record in self.read():
            last = record if record["event"] == "start" else None
        return last

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Stage -> item -> its end."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for record in self.read():
            if record["event"] == "end":
                found.setdefault(record["stage"], {})[record["key"]] = record
        return found


def spent(records: Records, stage: str) -> float:
    """Seconds that the items of a stage have taken."""
    return sum(record.get("seconds", 0.0) for record in records.results().get(stage, {}).values())
