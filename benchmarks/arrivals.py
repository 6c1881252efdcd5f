"""Simulation of continuous against static batching: ``python -m syncflow.benchmarks.arrivals``.

The engine's scheduler runs on a simulated clock, in one replica of the engine or in several, of which a request goes to
the one with the fewest. Requests of several shapes and lengths arrive as a Poisson process; a step of n requests takes
fixed + each * n seconds. In static batching requests join only empty batches; they leave at their own last step, which
favours static batching over a padded loop. In the table, preparation and decoding take no time, and the unit of time is
a step of one request (fixed + each = 1), so that it does not depend on the machine. ``capacity.py`` puts measured
times in their place.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from syncflow.engine.batching.handle import Full, Handle
from syncflow.engine.batching.policy import Limits, Policy
from syncflow.engine.batching.request_state import RequestState
from syncflow.engine.batching.scheduler import Scheduler

STEPS = (20, 30, 50)
LOADS = (0.3, 0.6, 0.9, 1.2)


@dataclass(frozen=True)
class Arrival:
    """A request that comes at ``time`` and takes ``steps``; ``key`` is its shape, ``memory`` what it takes of it.

    It is dropped when its last step is not done ``timeout`` seconds later.
    """

    time: float
    steps: int
    key: int = 0
    priority: int = 0
    memory: int = 0
    timeout: float | None = None


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of n requests: fixed + each * n; and of the ``decode`` of one request after its last step.

    Decoding holds up the next step, as on a CPU, unless it runs ``beside`` the steps, as on a stream of its own.
    ``weights`` are what the steps of a request cost relative to ``each``, in order, where they differ: those that move
    one modality alone take less than those of the other. Their mean is 1.
    """

    fixed: float = 0.5
    each: float = 0.5
    decode: float = 0.0
    beside: bool = False
    weights: tuple[float, ...] = ()

    def of(self, requests: int) -> float:
        """Seconds of one step of so many requests, on average."""
        return self.fixed + self.each * requests

    def of_steps(self, left: Sequence[int]) -> float:
        """Seconds of one step of requests that have so many steps left, this one included."""
        return self.fixed + self.each * sum(self.weights[-steps] if self.weights else 1.0 for steps in left)


@dataclass(frozen=True)
class Outcome:
    """When each request first stepped and when it ended (in the order of arrival), and the steps that were made.

    A request that was refused by a full queue, or dropped at its deadline, has no end (NaN) and no latency.
    ``busy`` are the seconds in which replicas worked, of all together.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    latencies: tuple[float, ...]
    batch_steps: int
    request_steps: int
    busy: float
    refused: int = 0
    expired: int = 0

    @property
    def makespan(self) -> float:
        """The end of the last request."""
        return max(end for end in self.ends if not math.isnan(end))


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


class Replica:
    """One engine on a simulated clock; ``starts`` and ``ends`` of its requests by their index.

    ``wake`` is when it has something to do next: at the end of its step, with the first request, or later.
    """

    def __init__(self, limits: Limits, policy: Policy, cost: StepCost) -> None:
        self.cost = cost
        self.scheduler: Scheduler[Simulated] = Scheduler(limits, policy)
        self.starts: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.batch_steps = self.request_steps = self.refused = self.expired = 0
        self.busy, self.wake, self._free_at = 0.0, math.inf, 0.0

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.scheduler.requests)

    def submit(self, index: int, arrival: Arrival) -> None:
        """A request arrives now."""
        try:
            self.scheduler.submit(_request(index, arrival))
        except Full:
            self.refused += 1
        else:
            self.wake = max(self._free_at, arrival.time)

    def work(self, now: float) -> None:
        """What is due at ``wake``: drop requests past their deadline, and make one step."""
        for overdue in self.scheduler.expire(now):
            self.scheduler.remove(overdue)
            self.expired += 1
        for admitted in self.scheduler.admit():
            self.scheduler.mark_ready(admitted, now)
        decision = self.scheduler.next_step(now)
        if decision is None:
            self.wake = self.scheduler.next_event()
            return
        for joining in decision.joining:
            self.starts[joining.request.index] = now
        running = tuple(decision.group.running)
        seconds = self.cost.of_steps([state.request.steps for state in running])
        self.batch_steps, self.request_steps = self.batch_steps + 1, self.request_steps + len(running)
        self.scheduler.record_step(decision.group, seconds)
        end = free_at = now + seconds
        for state in running:
            state.request.steps -= 1
            if not state.request.steps:
                end += self.cost.decode
                self.ends[state.request.index] = end
                self.scheduler.remove(state)
        self._free_at = self.wake = free_at if self.cost.beside else end
        self.busy += self.wake - now


def simulate(arrivals: Sequence[Arrival], limits: Limits, policy: Policy, cost: StepCost, replicas: int = 1) -> Outcome:
    """Every arrival (in the order of time) through the schedulers of so many replicas."""
    fleet = [Replica(limits, policy, cost) for _ in range(replicas)]
    come = 0
    while come < len(arrivals) or any(replica.load for replica in fleet):
        first = min(fleet, key=lambda replica: replica.wake)
        if come < len(arrivals) and arrivals[come].time <= first.wake:
            min(fleet, key=lambda replica: replica.load).submit(come, arrivals[come])
            come += 1
        else:
            first.work(first.wake)
    starts = {index: start for replica in fleet for index, start in replica.starts.items()}
    ends = {index: end for replica in fleet for index, end in replica.ends.items()}
    return Outcome(
        starts=tuple(starts.get(i, math.nan) for i in range(len(arrivals))),
        ends=tuple(ends.get(i, math.nan) for i in range(len(arrivals))),
        latencies=tuple(ends[i] - one.time for i, one in enumerate(arrivals) if i in ends),
        batch_steps=sum(replica.batch_steps for replica in fleet),
        request_steps=sum(replica.request_steps for replica in fleet),
        busy=sum(replica.busy for replica in fleet),
        refused=sum(replica.refused for replica in fleet),
        expired=sum(replica.expired for replica in fleet),
    )


def _request(index: int, one: Arrival) -> Simulated:
    return RequestState(
        request=Remaining(index, one.steps),
        handle=Handle(),
        shape=one.key,
        memory=one.memory,
        submitted_at=one.time,
        priority=one.priority,
        timeout=one.timeout,
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
