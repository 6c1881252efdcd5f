"""Check the capacity planner against engines that run: ``python -m syncflow.benchmarks.replicas``.

Every replica is a process with an engine on some threads of its own. All of them time their steps at once, since they
share the memory of the machine, and then full batches of requests that come together, in which a request is prepared
and another decoded beside the steps: by as much as these take longer than simulated, all costs are raised. Then
requests come as a Poisson process, each to the replica with the fewest, and the measured latencies stand beside those
that the simulation predicts for the same arrivals. Costs are measured again after that, and the simulation takes the
mean, so that a machine that becomes slower meanwhile counts half as much.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from syncflow.engine.batching.policy import Limits, Policy

from .arrivals import Arrival, Outcome, StepCost, simulate
from .capacity import QUEUE, Load, Service, capacity, fit, summarize

WORKER = Path(__file__).with_name("replica_worker.py")
SIZES = (1, 2, 4, 8)
BATCHES = 2
Answer = dict[str, Any]
Answers = queue.Queue[tuple[int, Answer | None]]


class ReplicaProcess:
    """A replica whose answers come into a queue, as pairs of its index and the answer; None when it has ended."""

    def __init__(self, index: int, threads: int, runtime: str, answers: Answers) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), runtime],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.load = 0
        threading.Thread(target=self._read, args=(index, answers), daemon=True).start()

    def send(self, asked: dict[str, Any]) -> None:
        """Ask for something; the answer comes into the queue."""
        assert self._process.stdin is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)

    def _read(self, index: int, answers: Answers) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answers.put((index, json.loads(line)))
        answers.put((index, None))

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Fleet:
    """Replicas that run; every answer is waited for at most ``patience`` seconds."""

    def __init__(self, replicas: int, threads: int, runtime: str, patience: float = 300.0) -> None:
        self.patience = patience
        self._answers: Answers = queue.Queue()
        self.replicas = [ReplicaProcess(i, threads, runtime, self._answers) for i in range(replicas)]

    def __enter__(self) -> Self:
        for _ in self.replicas:
            self.answer()
        return self

    def __exit__(self, *exception: object) -> None:
        for replica in self.replicas:
            replica.stop()

    def answer(self, timeout: float | None = None) -> tuple[int, Answer] | None:
        """The next answer of any replica, or None after ``timeout`` seconds. Raises ``ValueError`` if one has ended."""
        try:
            index, found = self._answers.get(timeout=self.patience if timeout is None else timeout)
        except queue.Empty:
            if timeout is None:
                raise ValueError(f"no replica has answered for {self.patience:g} s") from None
            return None
        if found is None:
            raise ValueError("a replica has ended; its error is above")
        return index, found

    def step_cost(self, sizes: Sequence[int], steps: int) -> StepCost:
        """The cost of each pass of requests of so many steps, while all replicas work at once."""
        for replica in self.replicas:
            replica.send({"time": list(sizes), "steps": steps})
        answers = [event[1] for _ in self.replicas if (event := self.answer()) is not None]
        seconds = {size: statistics.median(one["seconds"][str(size)] for one in answers) for size in sizes}
        weights = [statistics.fmean(costs) for costs in zip(*(one["weights"] for one in answers), strict=True)]
        cost, average = fit(seconds, statistics.median(one["decode"] for one in answers)), statistics.fmean(weights)
        return replace(cost, weights=tuple(weight / average for weight in weights))

    def serve(self, arrivals: Sequence[Arrival], steps: int) -> list[float]:
        """Send requests of so many steps, each at its time, to the replica with the fewest. -> when each ended (s)."""
        began, ends, come, done = time.perf_counter(), [0.0] * len(arrivals), 0, 0
        while done < len(arrivals):
            left = arrivals[come].time + began - time.perf_counter() if come < len(arrivals) else None
            if left is not None and left <= 0:
                replica = min(self.replicas, key=lambda one: one.load)
                replica.load += 1
                replica.send({"request": come, "steps": steps})
                come += 1
            elif (event := self.answer(left)) is not None:
                index, found = event
                self.replicas[index].load -= 1
                ends[found["done"]] = time.perf_counter() - began
                done += 1
        return ends


def check(
    fleet: Fleet, load: float, steps: int, requests: int, batch: int, seed: int
) -> tuple[StepCost, Service, Service]:
    """The step cost, and the predicted and the measured service at a ``load`` (1: full batches in all replicas)."""
    before = serving_cost(fleet, steps, batch)
    passes = len(before.weights)
    rate = load * len(fleet.replicas) * capacity(before, passes, batch)
    arrivals = Load(rate, passes, requests, seed=seed).arrivals()
    ends = fleet.serve(arrivals, steps)
    cost = mean(before, serving_cost(fleet, steps, batch))
    predicted = simulate(arrivals, Limits(queue=QUEUE, batch=batch), Policy(), cost, len(fleet.replicas))
    latencies = tuple(end - one.time for end, one in zip(ends, arrivals, strict=True))
    measured = Outcome((), tuple(ends), latencies, 0, 0, busy=float("nan"))
    number = len(fleet.replicas)
    return cost, summarize(arrivals, predicted, number), summarize(arrivals, measured, number)


def serving_cost(fleet: Fleet, steps: int, batch: int) -> StepCost:
    """The cost of passes, times what :data:`BATCHES` full batches of each replica take over what they should."""
    cost, number = fleet.step_cost(SIZES, steps), len(fleet.replicas)
    together = [Arrival(0.0, len(cost.weights))] * (BATCHES * batch * number)
    simulated = simulate(together, Limits(queue=QUEUE, batch=batch), Policy(), cost, number)
    slower = max(fleet.serve(together, steps)) / simulated.makespan
    return replace(cost, fixed=slower * cost.fixed, each=slower * cost.each, decode=slower * cost.decode)


def mean(one: StepCost, other: StepCost) -> StepCost:
    """Halfway between two costs of as many passes."""
    fixed, each, decode = ((getattr(one, name) + getattr(other, name)) / 2 for name in ("fixed", "each", "decode"))
    weights = tuple((a + b) / 2 for a, b in zip(one.weights, other.weights, strict=True))
    return StepCost(fixed, each, decode, one.beside, weights)


def errors(predicted: Service, measured: Service) -> dict[str, float]:
    """The shares by which the predicted throughput and 95th percentile are too large."""
    return {name: getattr(predicted, name) / getattr(measured, name) - 1 for name in ("throughput", "p95")}


def table(predicted: Service, measured: Service) -> str:
    """Markdown: each figure as predicted and as measured, and the error of the prediction."""
    lines = ["| | predicted | measured | error |", "|---|--:|--:|--:|"]
    for name, label in (
        ("throughput", "requests a second"),
        ("mean", "mean latency, s"),
        ("p50", "p50, s"),
        ("p95", "p95, s"),
        ("p99", "p99, s"),
    ):
        expected, found = getattr(predicted, name), getattr(measured, name)
        lines.append(f"| {label} | {expected:.3g} | {found:.3g} | {expected / found - 1:+.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the step cost and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each replica")
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--load", type=float, default=0.6, help="1: full batches in all replicas")
    parser.add_argument("--steps", type=int, default=16, help="steps of a request")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-most", type=float, help="exit code 1 if throughput or p95 is off by more percent")
    given = parser.parse_args()
    if min(given.replicas, given.threads, given.steps, given.requests) < 1 or given.load <= 0:
        parser.error("--replicas, --threads, --steps, --requests must be 1 or more, and --load more than 0")
    with Fleet(given.replicas, given.threads, given.runtime) as fleet:
        cost, predicted, measured = check(fleet, given.load, given.steps, given.requests, Limits().batch, given.seed)
    each, fixed, decode = (f"{1e3 * seconds:.3g} ms" for seconds in (cost.each, cost.fixed, cost.decode))
    print(f"a pass takes {fixed} and {each} for each request, the rest of a request of {len(cost.weights)} {decode}\n")
    print(table(predicted, measured))
    if given.at_most is not None:
        worst = max(abs(error) for error in errors(predicted, measured).values())
        print(f"\nthroughput and p95 are predicted within {worst:.1%}; allowed are {given.at_most:g} %")
        raise SystemExit(worst > given.at_most / 100)


if __name__ == "__main__":
    main()
