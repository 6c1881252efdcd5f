"""One revision of the engine as a process that ``compare.py`` asks for times: a JSON line in, a JSON line out.

It imports ``syncflow`` from the folder that PYTHONPATH names, and uses nothing but ``Engine.from_pretrained``,
``describe``, ``generate`` and ``Clip.save``, so that it also works with older revisions. Run as a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

PROMPTS = (
    "a large red rubber ball bounces on a wooden floor",
    "a small blue glass ball falls on a stone floor",
    "a small green metal ball bounces on a metal floor",
    "a large white wooden ball rolls on a wooden floor",
)


def steps(engine: Any, batch: int, count: int, slow_down: float) -> dict[str, Any]:
    """Seconds of each of ``count`` steps of ``batch`` clips; each takes ``slow_down`` times as long again."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
    ends: list[float] = []

    def on_step(*_: object) -> None:
        if ends and slow_down:
            until = time.perf_counter() + slow_down * (time.perf_counter() - ends[-1])
            while time.perf_counter() < until:
                pass
        ends.append(time.perf_counter())

    clips = engine.generate(prompts, seed=7, steps=count + 1, on_step=on_step)
    seconds = [end - begin for begin, end in pairwise(ends)]
    return {"seconds": seconds, "digest": hashlib.sha256(clips[0].frames.tobytes()).hexdigest()}


def clip(engine: Any) -> dict[str, Any]:
    """Seconds from a sentence to an mp4, in an engine that is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        made = engine.generate(PROMPTS[0], seed=7)
        made.save(Path(folder) / "clip.mp4")
        seconds = time.perf_counter() - begin
    return {"seconds": [seconds], "digest": hashlib.sha256(made.frames.tobytes()).hexdigest()}


def main() -> None:
    """Load the engine, say what was loaded, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    import syncflow

    given = json.loads(sys.argv[1])
    model, runtime, slow_down = given["model"], given["runtime"], given["slow_down"]
    engine = syncflow.Engine.from_pretrained(*([model] if model else []), device="cpu", runtime=runtime)
    print(json.dumps({"package": syncflow.__file__, "runtime": engine.describe()["runtime"]}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        found = clip(engine) if asked["kind"] == "clip" else steps(engine, asked["batch"], asked["steps"], slow_down)
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
