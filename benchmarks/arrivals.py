"""Simulation of continuous against static batching: ``python -m syncflow.benchmarks.arrivals``.

The engine's scheduler runs on a simulated clock. Requests of several shapes and lengths arrive as a Poisson process; a
step of n requests takes fixed + each * n seconds, preparation and decoding take none. In static batching requests join
only empty batches; they leave at their own last step, which favours static batching over a padded loop. The unit of
time is a step of one request (fixed + each = 1), so the table does not depend on the machine.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from syncflow.engine.batching.handle import Handle
from syncflow.engine.batching.policy import Limits, Policy
from syncflow.engine.batching.request_state import RequestState
from syncflow.engine.batching.scheduler import Scheduler

STEPS = (20, 30, 50)
LOADS = (0.3, 0.6, 0.9, 1.2)


@dataclass(frozen=True)
class Arrival:
    """A request that comes at ``time`` and takes ``steps``; ``key`` is its shape, ``memory`` what it takes of it."""

    time: float
    steps: int
    key: int = 0
    priority: int = 0
    memory: int = 0


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of n requests: fixed + each * n."""

    fixed: float = 0.5
    each: float = 0.5

    def of(self, requests: int) -> float:
        """Seconds of one step."""
        return self.fixed + self.each * requests


@dataclass(frozen=True)
class Outcome:
    """When each request first stepped and when it ended (in the order of arrival), and the steps that were made."""

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    latencies: tuple[float, ...]
    batch_steps: int
    request_steps: int

    @property
    def makespan(self) -> float:
        """The end of the last request."""
        return max(self.ends)


@dataclass
class Remaining:
    """The arrival with this index, and the steps that it has yet to do."""

    index: int
    steps: int


Simulated = RequestState[Remaining, None, None]


def poisson(count: int, rate: float, shapes: int, seed: int) -> list[Arrival]:
    """``count`` requests, ``rate`` a second on average."""
    rng = random.Random(seed)
    time, arrivals = 0.0, []
    for _ in range(count):
        time += rng.expovariate(rate)
        arrivals.append(Arrival(time, rng.choice(STEPS), rng.randrange(shapes)))
    return arrivals


def simulate(arrivals: Sequence[Arrival], limits: Limits, policy: Policy, cost: StepCost) -> Outcome:
    """Every arrival (in the order of time) through the scheduler."""
    scheduler: Scheduler[Simulated] = Scheduler(limits, policy)
    starts, ends = [math.nan] * len(arrivals), [math.nan] * len(arrivals)
    now, come, batch_steps, request_steps = 0.0, 0, 0, 0
    while come < len(arrivals) or scheduler.requests:
        while come < len(arrivals) and arrivals[come].time <= now:
            scheduler.submit(_request(come, arrivals[come]))
            come += 1
        for admitted in scheduler.admit():
            scheduler.mark_ready(admitted, now)
        decision = scheduler.next_step(now)
        if decision is None:
            now = min(arrivals[come].time if come < len(arrivals) else math.inf, scheduler.next_event())
            continue
        for joining in decision.joining:
            starts[joining.request.index] = now
        running = tuple(decision.group.running)
        seconds = cost.of(len(running))
        now, batch_steps, request_steps = now + seconds, batch_steps + 1, request_steps + len(running)
        scheduler.record_step(decision.group, seconds)
        for state in running:
            state.request.steps -= 1
            if not state.request.steps:
                ends[state.request.index] = now
                scheduler.remove(state)
    latencies = tuple(end - one.time for end, one in zip(ends, arrivals, strict=True))
    return Outcome(tuple(starts), tuple(ends), latencies, batch_steps, request_steps)


def _request(index: int, one: Arrival) -> Simulated:
    return RequestState(
        request=Remaining(index, one.steps),
        handle=Handle(),
        shape=one.key,
        memory=one.memory,
        submitted_at=one.time,
        priority=one.priority,
    )


def table(count: int, shapes: int, batch: int, cost: StepCost, seed: int) -> str:
    """A Markdown row for each load and batching policy. Load 1 is the throughput of full batches."""
    limits = Limits(queue=count, batch=batch)
    capacity = batch / cost.of(batch) / statistics.mean(STEPS)
    lines = [
        "| load | batching | requests a second | mean latency | p95 latency | requests a step |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for load in LOADS:
        arrivals = poisson(count, load * capacity, shapes, seed)
        for continuous in (False, True):
            found = simulate(arrivals, limits, Policy(continuous=continuous), cost)
            p95 = statistics.quantiles(found.latencies, n=20)[-1]
            lines.append(
                f"| {load:g} | {'continuous' if continuous else 'static'} | {count / found.makespan:.4f} "
                f"| {statistics.mean(found.latencies):.1f} | {p95:.1f} "
                f"| {found.request_steps / found.batch_steps:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--shapes", type=int, default=1, help="latent shapes, equally likely")
    parser.add_argument("--batch", type=int, default=8, help="requests that step together at most")
    parser.add_argument("--fixed", type=float, default=0.5, help="share of a lone step that a batch pays once, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not 0 <= given.fixed <= 1:
        parser.error(f"--fixed is {given.fixed}; it must be from 0 to 1")
    if min(given.requests, given.shapes, given.batch) < 1:
        parser.error("--requests, --shapes and --batch must be 1 or more")
    print(table(given.requests, given.shapes, given.batch, StepCost(given.fixed, 1 - given.fixed), given.seed))


if __name__ == "__main__":
    main()
