"""Interrupts smoke runs of ``benchmarks/gpu/run`` at random moments, and checks what they leave.

    python tests/benchmarks/interruptions.py FOLDER MOMENTS [SEED]

The report is read again and again until the signal comes and must be valid JSON every time. Afterwards it is valid
still, and no process of the run is left, however deep or in a session of its own. Signals are SIGTERM; every third one
is SIGINT, and with ``--kill`` every one is SIGKILL to the process that was started.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "GPU_RUN_UNDER_TEST"  # in the environment of every process of a run
SPAN = 40.0  # seconds after the first report in which a moment may lie
PATIENCE = 60.0


def marked(value: str) -> list[int]:
    """The living processes that have ``MARK=value`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            living = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
            if living and f"{MARK}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def report_of(folder: Path) -> Path | None:
    """The report of the only run in a folder, if it has been written."""
    return next(folder.glob("*.json"), None) if folder.is_dir() else None


def interrupt(folder: Path, after: float, number: signal.Signals) -> dict[str, object]:
    """Start a smoke run, send it a signal ``after`` seconds from its first report on; the report that it leaves."""
    environment = {**os.environ, "PYTHON": sys.executable, MARK: str(folder)}
    command = [str(ROOT / "benchmarks" / "gpu" / "run"), "--smoke", "--output", str(folder)]
    with (folder.parent / f"{folder.name}.out").open("wb") as out:
        run = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + PATIENCE
        while (path := report_of(folder)) is None:
            assert time.monotonic() < deadline and run.poll() is None, "no report"
            time.sleep(0.02)
        moment, reads = time.monotonic() + after, 0
        while time.monotonic() < moment and run.poll() is None:
            json.loads(path.read_text(encoding="utf-8"))
            reads += 1
            time.sleep(0.02)
        run.send_signal(number)
        code = run.wait(PATIENCE)
    if number == signal.SIGKILL:  # what was below it dies a moment later
        deadline = time.monotonic() + PATIENCE
        while marked(str(folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not marked(str(folder)), f"processes are left: {marked(str(folder))}"
    assert code in (-number, 128 + number, 0), f"exit code {code}"
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    results = found["results"]
    assert isinstance(results, dict)
    ends = sum(len(items) for items in results.values())
    print(
        f"{number.name} after {after:4.1f} s: exit code {code}, {found['status']}, {ends} items, {reads} reads, 0 left"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("moments", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--kill", action="store_true")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    for i in range(given.moments):
        number = signal.SIGKILL if given.kill else signal.SIGINT if i % 3 == 2 else signal.SIGTERM
        folder = given.folder.resolve() / f"{number.name}-{i}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        interrupt(folder, moments.uniform(0, SPAN), number)


if __name__ == "__main__":
    main()
