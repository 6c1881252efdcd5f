"""Time the stages of ``syncflow generate`` in fresh processes: ``python -m syncflow.benchmarks.startup``.

Nothing but the standard library is imported before the stage that needs it.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PROMPT = "a large red rubber ball bounces on a wooden floor"
SEED = 7
RUNS = 5


class Stages:
    """Seconds of consecutive named stages, of which the first began at ``started`` (seconds since the epoch)."""

    def __init__(self, started: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = started

    def end(self, name: str) -> None:
        """End the stage ``name`` and begin the next."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def ending(self, codec: object, name: str) -> Iterator[None]:
        """Within the block, the stage ``name`` ends with each call of ``codec.decode``."""
        decode: Callable[..., object] = codec.decode  # type: ignore[attr-defined]

        def timed(*arguments: object) -> object:
            result = decode(*arguments)
            self.end(name)
            return result

        vars(codec)["decode"] = timed
        try:
            yield
        finally:
            del vars(codec)["decode"]


def run(started: float, output: Path) -> dict[str, float]:
    """Seconds of the stages of one clip in this process, started at ``started``, and of a second clip as a whole."""
    stages = Stages(started)
    stages.end("interpreter")
    from ..cli import GC_THRESHOLD

    gc.set_threshold(GC_THRESHOLD)
    stages.end("command line")
    import torch  # noqa: F401  (a stage of its own)

    stages.end("PyTorch")
    from ..engine.components import Components
    from ..engine.engine import Engine, bundled_model
    from ..engine.package import open_package
    from ..engine.sampling.loop import sample
    from ..engine.types import Latents, Request

    stages.end("syncflow")
    package = open_package(bundled_model())
    stages.end("check of the package")
    components = Components.of(package)
    stages.end("weights")
    engine = Engine(components, runtime="auto", folder=package.path)
    stages.end("choice of the runtime")

    def clip(request: Request) -> None:
        pipeline = engine.pipeline
        prepared = pipeline.prepare(request)
        job = pipeline.encode(prepared)
        stages.end("text")

        def on_step(step: int, steps: int, latents: Latents) -> None:
            if step == 1:
                stages.end("first step")

        latents = sample(engine.denoiser, [job], on_step, engine.conditioning_cache)
        stages.end("other steps")
        parts = pipeline.components
        with stages.ending(parts.video, "video decoder"), stages.ending(parts.audio, "audio decoder"):
            (made,) = pipeline.decode(prepared, latents)
        made.save(output)
        stages.end("mp4")

    clip(Request(PROMPT, seed=SEED))
    first = dict(stages.seconds)
    began = time.time()
    engine.generate(PROMPT, seed=SEED + 1).save(output)
    return first | {"second clip": time.time() - began}


def measure(runs: int = RUNS) -> dict[str, list[float]]:
    """Seconds of every stage in each of several processes; "end" is the time from the last stage to the exit."""
    found: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        for _ in range(runs):
            command = [sys.executable, "-m", __spec__.name, "--child", folder]
            done = subprocess.run([*command, repr(time.time())], capture_output=True, text=True, check=True)
            ended, seconds = time.time(), json.loads(done.stdout)
            seconds["end"] = ended - seconds.pop("now")
            for name, value in seconds.items():
                found.setdefault(name, []).append(value)
    return found


def table(found: dict[str, list[float]]) -> str:
    """Medians as Markdown: the stages of the first clip, their sum, and a second clip of the same engine."""
    second = found["second clip"]
    stages = {name: times for name, times in found.items() if name != "second clip"}
    whole = [sum(times) for times in zip(*stages.values(), strict=True)]
    rows = [*stages.items(), ("**together**", whole), ("a second clip of the same engine", second)]
    lines = [f"| {name} | {statistics.median(times):.2f} s |" for name, times in rows]
    return "\n".join(["| stage | median |", "|---|--:|", *lines])


def main() -> None:
    """Print the table; with ``--child`` run once and print JSON."""
    if sys.argv[1:2] == ["--child"]:
        folder, started = sys.argv[2:]
        seconds = run(float(started), Path(folder) / "clip.mp4")
        print(json.dumps(seconds | {"now": time.time()}))
        from ..cli import end_process

        end_process(0)
    else:
        print(table(measure()))


if __name__ == "__main__":
    main()
