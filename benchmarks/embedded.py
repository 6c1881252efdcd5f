"""The C++ example ``generate`` against ``syncflow generate``: ``python -m syncflow.benchmarks.embedded PROGRAM``.

Both make the same clip of the bundled model, each time in a fresh process, on the same two CPUs and in alternation, so
that what disturbs the machine disturbs both. Python computes with its C++ blocks (``--runtime native``). A ratio is
that of Python to C++: above 1 C++ is faster, or takes less. It is the median over the rounds, with a bootstrap
interval.
``PROGRAM`` is ``csrc/examples/generate``, which the test ``installed_examples`` builds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .alternating import median_interval

PROMPT = "a large red rubber ball bounces on a wooden floor"
SEED = 7
THREADS = 2
CHILD = Path(__file__).with_name("child.py")
PRINTED = r"first step after ([\d.]+) s \(processor ([\d.]+) s\), steps ([\d.]+) s \(processor ([\d.]+) s\)"
# By the name of what both print or what is measured of them, what the table calls it and its unit.
ROWS = {
    "steps": ("steps after the first", "s"),
    "steps_cpu": ("the same, processor time", "s"),
    "first_step": ("start to the end of the first step", "s"),
    "first_step_cpu": ("the same, processor time", "s"),
    "whole": ("start to exit", "s"),
    "peak": ("peak memory", "MB"),
}


def parse(printed: str) -> dict[str, float]:
    """The times (s) in what the example prints."""
    found = re.search(PRINTED, printed)
    if found is None:
        raise ValueError(f"the program printed no times: {printed.strip()[-200:]!r}")
    return dict(zip(("first_step", "first_step_cpu", "steps", "steps_cpu"), map(float, found.groups()), strict=True))


def python_clip(started: float, output: Path) -> dict[str, float]:
    """What ``syncflow generate --runtime native`` does, in this process, started at ``started`` (s since the epoch)."""
    from ..cli import GC_THRESHOLD
    from ..engine.engine import Engine, bundled_model

    gc.set_threshold(GC_THRESHOLD)
    engine = Engine.from_pretrained(bundled_model(), runtime="native")
    times: list[tuple[float, float]] = []
    clip = engine.generate(PROMPT, seed=SEED, on_step=lambda *_: times.append((time.time(), time.process_time())))
    clip.save(output)
    (first, first_cpu), (last, last_cpu) = times[0], times[-1]
    return {
        "first_step": first - started,
        "first_step_cpu": first_cpu,
        "steps": last - first,
        "steps_cpu": last_cpu - first_cpu,
    }


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Wall time and peak memory (MB) of a command, and its output."""
    done = subprocess.run(
        [sys.executable, CHILD, *command], capture_output=True, text=True, check=True, env=environment
    )
    measured, printed = json.loads(done.stdout), done.stderr  # where child.py sends what the command prints
    if measured["code"] != 0:
        raise ValueError(f"{command[0]} failed: {printed.strip()[-300:]}")
    return {"whole": measured["seconds"], "peak": measured["peak_bytes"] / 1e6}, printed


def measure(program: Path, rounds: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """All figures of C++ and of Python, of each round; one round before does not count."""
    from ..engine.engine import bundled_model

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "SYNCFLOW_CALIBRATION": "off"}
    cpp, python = [], []
    with TemporaryDirectory() as folder:
        output = os.path.join(folder, "clip.mp4")
        for k in range(rounds + 1):
            for language in ("cpp", "python") if k % 2 else ("python", "cpp"):
                if language == "cpp":
                    figures, printed = run([str(program), str(bundled_model()), PROMPT, output, str(SEED)], environment)
                    cpp.append(figures | parse(printed))
                else:
                    child = [sys.executable, "-m", __spec__.name, "--child", output, repr(time.time())]
                    figures, printed = run(child, environment)
                    python.append(figures | json.loads(printed.splitlines()[-1]))
    return cpp[1:], python[1:]


def table(cpp: Sequence[Mapping[str, float]], python: Sequence[Mapping[str, float]]) -> str:
    """Medians of both, and the ratio with its 95 % interval, as Markdown."""
    lines = ["| | C++ | Python | ratio | 95 % interval |", "|---|--:|--:|--:|--:|"]
    for key, (name, unit) in ROWS.items():
        own, other = (np.array([figures[key] for figures in found]) for found in (cpp, python))
        low, high = median_interval(other / own)
        medians = (f"{statistics.median(found):.3g} {unit}" for found in (own, other))
        lines.append(f"| {name} | {' | '.join(medians)} | {np.median(other / own):.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def sizes(program: Path) -> str:
    """The sizes of the program and of the shared library that it loads."""
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libsyncflow\.so\S* => (\S+)", linked)
    library = f", libsyncflow {Path(found[1]).stat().st_size / 1e6:.2f} MB" if found else ""
    return f"program {program.stat().st_size / 1e6:.2f} MB{library}"


def main() -> None:
    """Print the table; with ``--child`` make one clip in Python and print JSON."""
    if sys.argv[1:2] == ["--child"]:
        output, started = sys.argv[2:]
        print(json.dumps(python_clip(float(started), Path(output))))
        return
    parser = argparse.ArgumentParser(description="The C++ example `generate` against `syncflow generate`.")
    parser.add_argument(
        "program", type=Path, help="the built example, such as build/tests/installed/examples/generate/generate"
    )
    parser.add_argument("--rounds", type=int, default=10, help="how often each runs (default 10)")
    arguments = parser.parse_args()
    print(table(*measure(arguments.program, arguments.rounds)))
    print(sizes(arguments.program))


if __name__ == "__main__":
    main()
