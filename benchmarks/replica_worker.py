"""One engine as a process that ``replicas.py`` sends requests to: JSON lines in, JSON lines out. Run as a program.

``{"time": [1, 2, 4, 8], "steps": n}`` is answered with seconds of a pass of so many requests, what each pass costs
relative to their mean, and seconds of the rest of a request; ``{"request": id, "steps": n}`` is submitted at once, and
answered when its clip is there. A step that moves one modality at a time is two passes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from typing import Any

PROMPT = "a large red rubber ball bounces on a wooden floor"


def pass_times(engine: Any, sizes: list[int], steps: int) -> dict[str, Any]:
    """Mean seconds of a pass by number of requests, the relative cost of every pass, and what the rest takes."""
    seconds, rest, relative = {}, [], []
    for size in sizes:
        ends: list[float] = []
        settings = {"seed": 1, "steps": steps, "on_step": lambda *_, to=ends: to.append(time.perf_counter())}
        began = time.perf_counter()
        engine.generate([PROMPT] * size, **settings)
        whole, passes = time.perf_counter() - began, [end - begin for begin, end in pairwise(ends)]
        passes.insert(0, passes[0])  # the first comes with the preparation
        seconds[size] = statistics.fmean(passes)
        relative.append([one / seconds[size] for one in passes])
        rest.append((whole - sum(passes)) / size)
    weights = [statistics.median(costs) for costs in zip(*relative, strict=True)]
    return {"seconds": seconds, "weights": weights, "decode": statistics.median(rest)}


def main() -> None:
    """Load the engine, say so, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    lock = threading.Lock()

    def answer(found: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(found), file=answers)

    def done(request: int, _: object) -> None:
        answer({"done": request})

    from syncflow.engine.engine import Engine

    with Engine.from_pretrained(device="cpu", runtime=sys.argv[1]) as engine:
        engine.submit(PROMPT, steps=2).result()
        answer({"loaded": engine.describe()["runtime"]})
        for line in sys.stdin:
            asked = json.loads(line)
            if "time" in asked:
                answer(pass_times(engine, asked["time"], asked["steps"]))
                continue
            handle = engine.submit(PROMPT, seed=asked["request"], steps=asked["steps"])
            handle.add_done_callback(partial(done, asked["request"]))


if __name__ == "__main__":
    main()
