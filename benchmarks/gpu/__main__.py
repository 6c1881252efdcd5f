"""``benchmarks/gpu/run``: correctness, step, clip and kernels on a GPU, with a report that is valid at any moment."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .stages import FULL, NAMED, QUICK, SECONDS, deadlines
from .supervisor import Report, Signals, supervise

LIMIT, QUICK_LIMIT = 555.0, 235.0
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Exit code 0 when nothing failed, 1 when something did, 2 for a mistake in the command, 128 + n after signal n."""
    signals = Signals()
    signals.catch()
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four minutes: the numbers of the README")
    parser.add_argument("--stages", help=f"of {', '.join(SECONDS)}; {', '.join(NAMED)} only when named")
    parser.add_argument("--output", type=Path, help="folder for the results; $OUT, or benchmarks/gpu/results")
    parser.add_argument("--seconds", type=float, help=f"for everything; {LIMIT:.0f}, with --quick {QUICK_LIMIT:.0f}")
    parser.add_argument("--smoke", action="store_true", help="every stage on the CPU, tiny, to prove that it runs")
    given = parser.parse_args()
    budgets: Mapping[str, float] = {**SECONDS, **QUICK} if given.quick else SECONDS
    stages = given.stages.split(",") if given.stages else list(QUICK if given.quick else FULL)
    if unknown := [name for name in stages if name not in SECONDS]:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(SECONDS)}")
    if given.smoke and given.output is None:
        parser.error("--smoke needs --output: its times mean nothing and are not kept with the results")
    seconds = given.seconds if given.seconds is not None else QUICK_LIMIT if given.quick else LIMIT
    if not seconds > 0:
        parser.error(f"--seconds is {seconds:g}; it must be more than 0")

    output = (given.output or Path(os.environ.get("OUT") or RESULTS)).resolve()
    gpu, now = "Smoke run" if given.smoke else gpu_name(), datetime.datetime.now()
    try:
        output.mkdir(parents=True, exist_ok=True)
        report = Report(
            output / f"{now:%Y-%m-%d-%H%M%S}-{'smoke' if given.smoke else gpu.lower().replace(' ', '-')}",
            {"date": f"{now:%Y-%m-%d}", "gpu": gpu, "smoke": given.smoke, "quick": given.quick, "stages": stages},
            f"{gpu}, {now:%Y-%m-%d}",
        )
        report.update()
    except OSError as error:
        parser.error(f"--output {output} cannot be written: {error.strerror}")
    start = time.time()
    budgets = dict.fromkeys(stages, seconds) if given.smoke else budgets  # nothing is left out of a smoke run
    ends = deadlines(stages, budgets, seconds * (len(stages) if given.smoke else 1), start)
    worker = ["-m", f"{__package__}.child", "--deadlines", json.dumps(ends)]
    worker += ["--records", str(report.records.path), "--output", str(output)]
    worker += ["--quick"] * given.quick + ["--smoke"] * given.smoke
    status = supervise(report, worker, start + seconds, given.smoke, signals)
    wrong = report.conclude(status)
    return 128 + signals.number if signals.number is not None else int(wrong > 0)


def gpu_name() -> str:
    """The name of the first GPU by its driver, without a library; ``Unknown GPU`` where that says nothing."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "Model" and value.strip():
                return value.strip()
    return "Unknown GPU"


if __name__ == "__main__":
    sys.exit(main())
