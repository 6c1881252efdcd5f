"""The memory of ``syncflow batch`` through many small requests: ``python -m syncflow.benchmarks.load.offline``.

Every request has a prompt of its own. Prints the resident memory after each tenth of them (with ``--ray``, of all
processes of the workers), and fails where it grows by more than 10 % in the second half.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MIB = 2**20
SMALL = {"seconds": 0.5, "width": 32, "height": 32, "steps": 2}
GROWTH = 0.1  # share, in the second half


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``syncflow batch`` and watch it."""
    parser = argparse.ArgumentParser(prog="python -m syncflow.benchmarks.load.offline", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--ray", action="store_true", help="with two workers of a Ray cluster on this host")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({**SMALL, "prompt": f"a ball of {i} kinds", "seed": i} for i in range(given.requests))
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-m", "syncflow", "batch", str(prompts), "-o", str(folder / "clips"), "--json"]
        command += ["--runtime", "torch", *(("--ray", "--workers", "2", "--cpus", "1") if given.ray else ())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            samples = _watch(process, folder / "clips" / "manifest.jsonl", given.requests, workers=given.ray)
            said = json.loads(process.stdout.read() if process.stdout else "{}")
    half, end = samples[len(samples) // 2 - 1], samples[-1]
    print(f"{said['generated']} generated, {said['failed']} failed, {said['clips_per_second']} clips/s")
    print(f"resident memory in the second half: {(end - half) / MIB:+.1f} MiB ({(end - half) / half:+.1%})")
    return int(said["generated"] != given.requests or end > half * (1 + GROWTH))


def _watch(process: subprocess.Popen[str], manifest: Path, count: int, *, workers: bool) -> list[int]:
    """Resident bytes after each tenth of the requests."""
    samples: list[int] = []
    lines = now = 0
    while len(samples) < 10:
        now = _resident(process.pid, workers=workers) or now  # workers end as soon as all is done
        ended = process.poll() is not None
        if manifest.exists():
            with manifest.open() as file:
                lines = sum(1 for _ in file)
        while now and len(samples) < 10 and lines * 10 >= count * (len(samples) + 1):
            samples.append(now)
            print(f"{lines:6d} requests: {now / MIB:7.1f} MiB", flush=True)
        if ended:
            break
        time.sleep(0.1)
    if len(samples) < 10:
        raise SystemExit(f"syncflow batch ended after {lines} of {count} requests")
    return samples


def _resident(pid: int, *, workers: bool) -> int:
    """Bytes of a process, or of the Ray actors among those that it has started."""
    import psutil

    try:
        process = psutil.Process(pid)
        if not workers:
            return int(process.memory_info().rss)
        children = process.children(recursive=True)
        actors = [child for child in children if any("ClipActor" in part for part in child.cmdline())]
        return sum(child.memory_info().rss for child in actors)
    except psutil.Error:
        return 0


if __name__ == "__main__":
    sys.exit(main())
