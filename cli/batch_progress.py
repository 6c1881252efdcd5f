"""Progress of ``syncflow batch`` on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..engine.offline import Plan, Record

LINE_SECONDS = 10.0
LISTED = 50  # failures; the manifest has all of them


class BatchProgress:
    """Counts records; the time that is left follows from the ``work`` of a plan, not from the number of clips."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.failures: list[tuple[str, str]] = []
        self.done = self.skipped = self.total = 0
        self._places: Mapping[str, str] = {}
        self._work: Mapping[str, float] = {}
        self._bar: Any = None
        self._task: Any = None
        self._began = self._said = time.perf_counter()  # the first becomes that of the first record
        self._first_work = self._work_done = 0.0

    def planned(self, plan: Plan) -> None:
        """What there is to do."""
        self._work = {item.entry.id: item.work for item in plan.items}
        self._places = {item.entry.id: item.entry.place for item in plan.items}
        self.skipped, self.total = plan.done, len(plan.items)
        self._began = self._said = time.perf_counter()
        if self.quiet or not self.total:
            return
        if sys.stderr.isatty():
            self._show_bar()
        else:
            print(f"{self.total} to generate, {self.skipped} done before", file=sys.stderr)

    def ended(self, record: Record) -> None:
        """An entry is done or has failed."""
        if not self.ended_count:  # until here the model was loaded
            self._began, self._first_work = time.perf_counter(), self._work[record.id]
        self._work_done += self._work[record.id]
        if record.status == "failed":
            self.failures.append((record.id, record.error or ""))
            if not self.quiet:
                self._list(f"{self._places[record.id]}: {record.error}")
        else:
            self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work_done, status=self._status())
        elif not self.quiet and (now := time.perf_counter()) - self._said >= LINE_SECONDS:
            self._said = now
            speed = (self._work_done - self._first_work) / (now - self._began)
            left = sum(self._work.values()) - self._work_done
            ending = f", {_duration(left / speed)} left" if speed else ""
            print(f"{self._status()}{ending}", file=sys.stderr)

    @property
    def ended_count(self) -> int:
        """Entries that are done or have failed."""
        return self.done + len(self.failures)

    @property
    def rate(self) -> float:
        """Entries per second since the first had ended; 0 before the second."""
        return max(0, self.ended_count - 1) / max(time.perf_counter() - self._began, 1e-9)

    def _status(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        rate = f", {self.rate:.3g} clips/s" if self.rate else ""
        return f"{self.ended_count} of {self.total}{failed}{rate}"

    def _list(self, line: str) -> None:
        if len(self.failures) > LISTED:
            return
        more = "; further failures are in the manifest alone" if len(self.failures) == LISTED else ""
        said = f"syncflow: {line}{more}"
        if self._bar is not None:
            self._bar.console.print(said, markup=False, highlight=False, soft_wrap=True)
        else:
            print(said, file=sys.stderr)

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=sum(self._work.values()), status=self._status())
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
