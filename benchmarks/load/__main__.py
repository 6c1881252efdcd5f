"""Load a server of the bundled model: ``python -m syncflow.benchmarks.load`` (extra ``load``).

The exit code is 1 where a client saw a status of 500 or more or another failure, or where a cancelled video kept its
place for more than one step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .server import Server

MIB = 2**20
SMALL = {"prompt": "a red ball bounces", "seconds": 0.5, "size": "32x32", "num_inference_steps": 2}
SAMPLES = 5  # of the memory during the load
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and the cancellation."""
    parser = argparse.ArgumentParser(prog="python -m syncflow.benchmarks.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=200, help="clients at once")
    parser.add_argument("--seconds", type=int, default=60, help="duration of the load")
    parser.add_argument("--queue", type=int, default=64, help="jobs that may wait")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_media(folder)
        with Server(folder / "load", "--runtime", "torch", "--queue", str(given.queue)) as server:
            _fill(server, min(16, given.queue))  # so that what grows with the first requests has grown
            with _memory(server, given.seconds) as resident:
                failures = _print(_locust(server, folder, given.clients, given.seconds))
            _wait_until_idle(server)
            resident.append(server.resident)
            print(f"resident memory of the server: {', '.join(f'{each / MIB:.0f}' for each in resident)} MiB")
            steps = max(_cancel(server) for _ in range(3))
            print(f"steps after the deletion of a running video: {steps:g} (the most of 3)")
    return int(failures > 0 or steps > 1)


@contextmanager
def _memory(server: Server, seconds: float) -> Iterator[list[int]]:
    """Resident bytes of a server: now, and at equal intervals of ``seconds`` for as long as the block lasts."""
    samples, ended = [server.resident], threading.Event()

    def watch() -> None:
        while len(samples) < SAMPLES and not ended.wait(seconds / (SAMPLES - 1)):
            samples.append(server.resident)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _wait_until_idle(server: Server) -> None:
    while server.metric("syncflow_num_queue_reqs") + server.metric("syncflow_num_in_flight_reqs"):
        time.sleep(0.2)


def _write_media(folder: Path) -> None:
    from PIL import Image

    from ...engine.types import Clip

    frames = np.zeros((8, 64, 64, 3), np.uint8)
    frames[:, 20:40, 20:40] = (200, 40, 40)
    Clip(frames, np.zeros(24_000, np.float32), 16.0, 48_000).save(folder / "clip.mp4")
    Image.fromarray(frames[0]).save(folder / "picture.png")


def _locust(server: Server, folder: Path, clients: int, seconds: int) -> list[dict[str, Any]]:
    """The rows of locust, one for each kind of request."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--json", "--host", server.url]
    command += f"-u {clients} -r {clients} -t {seconds}s --stop-timeout 20 -L ERROR --only-summary".split()
    environment = {**os.environ, "SYNCFLOW_LOAD_MEDIA": str(folder)}
    finished = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    start = finished.stdout.find("[")
    if start < 0:
        said = finished.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"locust has not run ({''.join(said)}); pip install 'syncflow[load]' installs it")
    return json.loads(finished.stdout[start:])


def _print(rows: list[dict[str, Any]]) -> int:
    """A table of response times in milliseconds. -> the number of failures."""
    print(f"{'request':24} {'count':>7} {'failed':>7} {'p50':>7} {'p95':>7} {'p99':>7}  ms")
    every: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: row["name"]):
        if row["name"] == "429":
            continue
        times = {int(float(ms)): count for ms, count in row["response_times"].items()}
        for ms, count in times.items():
            every[ms] = every.get(ms, 0) + count
        _print_row(row["name"], row["num_requests"], row["num_failures"], times)
    failures = sum(row["num_failures"] for row in rows)
    _print_row("all", sum(every.values()), failures, every)
    refused = sum(row["num_requests"] for row in rows if row["name"] == "429")
    print(f"429 with Retry-After: {refused}; failures, with every status of 500 and more: {failures}")
    return failures


def _print_row(name: str, count: int, failed: int, times: dict[int, int]) -> None:
    cells = [f"{_percentile(times, share):7d}" for share in (0.5, 0.95, 0.99)]
    print(f"{name:24} {count:7d} {failed:7d} {' '.join(cells)}")


def _percentile(times: dict[int, int], share: float) -> int:
    """Of a histogram: milliseconds to counts."""
    left = share * sum(times.values())
    for ms, count in sorted(times.items()):
        left -= count
        if left <= 0:
            return ms
    return 0


def _cancel(server: Server) -> float:
    """Steps that a server makes after the response to the deletion of its only running video."""
    video = server.call("POST", "/v1/videos", {**SMALL, "num_inference_steps": 200, "seconds": 10})["id"]
    while server.call("GET", f"/v1/videos/{video}")["progress"] < 2:
        time.sleep(0.05)
    server.call("DELETE", f"/v1/videos/{video}")
    before = server.metric("syncflow_denoising_steps_total")
    while server.metric("syncflow_num_running_reqs"):
        time.sleep(0.02)
    time.sleep(1)
    return server.metric("syncflow_denoising_steps_total") - before


def _fill(server: Server, count: int) -> None:
    """Generate some videos."""
    for seed in range(count):
        server.call("POST", "/v1/videos", {**SMALL, "seed": seed})
    _wait_until_idle(server)


if __name__ == "__main__":
    sys.exit(main())
