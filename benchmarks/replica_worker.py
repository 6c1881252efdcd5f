"""One engine as a process that ``replicas.py`` sends requests to: JSON lines in, JSON lines out. Run as a program.

``{"time": [1, 2, 4, 8]}`` is answered with seconds of a step of so many requests, and of a decoding; ``{"request": id,
"steps": n}`` is submitted at once, and answered when its clip is there.
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
STEPS = 12  # timed of every batch size


def step_times(engine: Any, sizes: list[int]) -> dict[str, Any]:
    """Median seconds of a step by number of requests, and of a decoding."""
    seconds, decodings = {}, []
    for size in sizes:
        ends: list[float] = []
        engine.generate(
            [PROMPT] * size, seed=1, steps=STEPS + 1, on_step=lambda *_, to=ends: to.append(time.perf_counter())
        )
        decodings.append((time.perf_counter() - ends[-1]) / size)
        seconds[size] = statistics.median(end - begin for begin, end in pairwise(ends))
    return {"seconds": seconds, "decode": statistics.median(decodings)}


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
                answer(step_times(engine, asked["time"]))
                continue
            handle = engine.submit(PROMPT, seed=asked["request"], steps=asked["steps"])
            handle.add_done_callback(partial(done, asked["request"]))


if __name__ == "__main__":
    main()
