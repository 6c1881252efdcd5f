"""The throughput of a server beside ``syncflow batch``: ``python -m syncflow.benchmarks.load.throughput``.

Both make the same videos, in alternating rounds. A window begins and ends while both are full of work; in it, clips per
second and the processor time of a clip are measured. Progress is read from the files that are written, which costs a
server nothing: its clients, too, would be on other hosts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..alternating import Ratio, ratio
from .server import Server

EDGE = 16  # videos before a window, and behind it: those that are in flight at once
WAITING = 32  # videos in the queue of the server
PAUSE = 0.1  # seconds between two looks at the files
PROMPT = "a red ball bounces"


@dataclass(frozen=True)
class Window:
    """Of one video on average: seconds by the clock, and seconds of the processor."""

    elapsed: float
    processor: float


@dataclass(frozen=True)
class Videos:
    """``count`` videos of a window, all of one kind."""

    count: int
    seconds: float
    width: int
    height: int
    steps: int

    @property
    def total(self) -> int:
        """With those at both edges."""
        return self.count + 2 * EDGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every round, and the ratios of all."""
    parser = argparse.ArgumentParser(prog="python -m syncflow.benchmarks.load.throughput", description=__doc__)
    parser.add_argument("--requests", type=int, default=32, help="videos of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a video; those of the model by default")
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--steps", type=int, default=50, help="Euler steps of a video")
    parser.add_argument("--at-least", type=float, default=0.0, help="ratio of clips/s below which the exit code is 1")
    given = parser.parse_args(arguments)
    width, height = (int(side) for side in given.size.split("x"))
    videos = Videos(given.requests, given.seconds, width, height, given.steps)
    rounds: list[tuple[Window, Window]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        Server(Path(name) / "server", "--runtime", "torch", "--queue", str(2 * WAITING)) as server,
    ):
        folder = Path(name)
        _warm_up(server, videos)
        for number in range(given.rounds):
            pair = _serve(server, videos), _generate(folder, number, videos)
            rounds.append(pair)
            served, made = (f"{1 / each.elapsed:.2f} clips/s, {1000 * each.processor:.1f} ms" for each in pair)
            print(f"round {number + 1}: server {served}; syncflow batch {made} of processor time a clip", flush=True)
    clips = compared([(batch.elapsed, served.elapsed) for served, batch in rounds])
    processor = compared([(batch.processor, served.processor) for served, batch in rounds])
    print(f"server / syncflow batch: {clips} of the clips/s, {processor} by processor time of a clip")
    return int(clips.median < given.at_least)


def compared(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """From the seconds of ``syncflow batch`` and of the server in each round: how fast the server is beside it."""
    batch, served = zip(*pairs, strict=True)
    return ratio(batch, served)


def _warm_up(server: Server, videos: Videos) -> None:
    """Make as many videos as are in flight at once, so that what grows with the first ones has grown."""
    results = server.data / "results"
    for seed in range(EDGE):
        _create(server, videos, seed)
    _wait(server.process, lambda: _entries(results), EDGE)


def _serve(server: Server, videos: Videos) -> Window:
    """A window of a server in whose queue there are always videos."""
    results = server.data / "results"
    before, created = _entries(results), 0

    def done() -> int:
        """Videos that are done; others are created in their place."""
        nonlocal created
        found = _entries(results) - before
        while created < min(videos.total, found + EDGE + WAITING):
            _create(server, videos, created)
            created += 1
        return found

    return _window(server.process, done, videos)


def _create(server: Server, videos: Videos, seed: int) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "seconds": videos.seconds, "size": f"{videos.width}x{videos.height}"}
    server.call("POST", "/v1/videos", {**body, "num_inference_steps": videos.steps, "seed": seed})


def _entries(results: Path) -> int:
    return sum(1 for path in results.iterdir() if not path.name.startswith("."))


def _generate(folder: Path, number: int, videos: Videos) -> Window:
    """A window of ``syncflow batch``."""
    prompts, clips = folder / "prompts.jsonl", folder / f"clips-{number}"
    row = {"prompt": PROMPT, "seconds": videos.seconds, "width": videos.width, "height": videos.height}
    rows = ({**row, "steps": videos.steps, "seed": seed} for seed in range(videos.total))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "syncflow", "batch", str(prompts), "-o", str(clips), "--runtime", "torch"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL) as process:
        try:
            return _window(process, lambda: _lines(clips / "manifest.jsonl"), videos)
        except BaseException:
            process.kill()
            raise


def _lines(manifest: Path) -> int:
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def _window(process: Any, done: Callable[[], int], videos: Videos) -> Window:
    """From the end of the first edge to the beginning of the second one; returns when all is done."""
    import psutil

    marks = []
    for count in (EDGE, EDGE + videos.count):
        found = _wait(process, done, count)
        used = psutil.Process(process.pid).cpu_times()
        marks.append((found, time.perf_counter(), used.user + used.system))
    _wait(process, done, videos.total)
    made, elapsed, processor = (end - begin for begin, end in zip(*marks, strict=True))
    return Window(elapsed / made, processor / made)


def _wait(process: Any, done: Callable[[], int], count: int) -> int:
    """Wait for this many videos. -> how many are done."""
    while (found := done()) < count:
        if process.poll() is not None:
            raise RuntimeError(f"the process ended after {found} videos with the code {process.returncode}")
        time.sleep(PAUSE)
    return found


if __name__ == "__main__":
    sys.exit(main())
