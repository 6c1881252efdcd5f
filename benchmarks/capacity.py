"""Capacity planning: how many replicas serve a load, from step times that were measured or given.

A step of n requests is taken to cost fixed + each * n seconds, which is fitted to measured batches; decoding a clip
costs the same each time. With these the schedulers of all replicas run on a simulated clock (``arrivals.py``).
``replicas.py`` compares the prediction with engines that really run.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from syncflow.engine.batching.policy import Limits, Policy
from syncflow.engine.engine import Engine
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Request

from .alternating import Timing, alternate
from .arrivals import Arrival, Outcome, StepCost, simulate
from .step import PROMPTS, requests

QUEUE = 100_000  # requests that may wait: enough that none is refused
WARM_UP = 0.1  # share of the first requests, which find empty replicas and do not count


@dataclass(frozen=True)
class Load:
    """``rate`` requests a second of ``steps`` steps each, as a Poisson process, to be done in ``timeout`` seconds."""

    rate: float
    steps: int
    requests: int = 2000
    timeout: float | None = None
    seed: int = 0

    def arrivals(self) -> list[Arrival]:
        """Requests in the order of time."""
        rng, time, found = random.Random(self.seed), 0.0, []
        for _ in range(self.requests):
            time += rng.expovariate(self.rate)
            found.append(Arrival(time, self.steps, timeout=self.timeout))
        return found


@dataclass(frozen=True)
class Service:
    """What ``replicas`` do under a load: requests a second, ``utilization`` from 0 to 1, latencies in seconds.

    ``missed`` is the share of requests that were not done at their deadline, ``mean_batch`` the requests in a step.
    """

    replicas: int
    throughput: float
    utilization: float
    mean: float
    p50: float
    p95: float
    p99: float
    missed: float
    mean_batch: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def fit(seconds: Mapping[int, float], decode: float = 0.0, *, beside: bool = False) -> StepCost:
    """The cost of steps, by least squares of the relative error, from seconds of a step by batch size.

    Neither part is negative, whatever the times: larger batches that were faster, on a machine that was busy at first,
    cost the same. Raises ``ValueError`` with fewer than two batch sizes.
    """
    if len(seconds) < 2:
        raise ValueError(f"a step cost needs the times of two or more batch sizes; there are {len(seconds)}")
    sizes, times = np.array(list(seconds), dtype=float), np.array(list(seconds.values()))
    terms = np.stack([np.ones_like(sizes), sizes], 1) / times[:, None]
    (fixed, each), _ = nnls(terms, np.ones_like(times))
    return StepCost(float(fixed), float(each), decode, beside)


def predict(load: Load, cost: StepCost, replicas: int, batch: int) -> Service:
    """Simulate a load on some replicas, each with batches of at most ``batch`` requests."""
    arrivals = load.arrivals()
    found = simulate(arrivals, Limits(queue=QUEUE, batch=batch), Policy(), cost, replicas)
    return summarize(arrivals, found, replicas)


def summarize(arrivals: Sequence[Arrival], found: Outcome, replicas: int) -> Service:
    """The figures of an outcome; the first requests, which find empty replicas, do not count in its latencies."""
    first = int(WARM_UP * len(arrivals))
    ended = [(one, end) for one, end in zip(arrivals, found.ends, strict=True) if not math.isnan(end)]
    latencies = [end - one.time for one, end in ended[first:]] or [math.inf]
    p50, p95, p99 = (float(np.percentile(latencies, percent)) for percent in (50, 95, 99))
    span = found.makespan - arrivals[0].time if ended else math.inf
    return Service(
        replicas=replicas,
        throughput=len(ended) / span,
        utilization=found.busy / replicas / span,
        mean=statistics.fmean(latencies),
        p50=p50,
        p95=p95,
        p99=p99,
        missed=1 - len(ended) / len(arrivals),
        mean_batch=found.request_steps / max(1, found.batch_steps),
    )


def capacity(cost: StepCost, steps: int, batch: int) -> float:
    """Requests a second that one replica with full batches finishes."""
    return batch / (steps * cost.of(batch) + (0 if cost.beside else batch * cost.decode))


def measured_cost(engine: Engine, sizes: Sequence[int], timing: Timing) -> StepCost:
    """The step cost of an engine on this machine: batches of these sizes in alternation, and the decoding of a clip."""
    steps: dict[str, Callable[[], object]] = {}
    for size in sizes:
        batch = batch_of(engine.denoiser, overlap=engine.chosen.overlap)
        batch.join(requests(engine, size))
        steps[str(size)] = batch.step
    prepared = engine.pipeline.prepare(Request(PROMPTS[0], steps=1))
    latents = sample(engine.denoiser, [engine.pipeline.encode(prepared)])
    steps["decode"] = partial(engine.pipeline.decode, prepared, latents)
    with torch.inference_mode():
        seconds = {name: statistics.median(times) for name, times in alternate(steps, timing).items()}
    decode = seconds.pop("decode")
    return fit({int(name): value for name, value in seconds.items()}, decode, beside=engine.device.type == "cuda")


def plan(load: Load, cost: StepCost, batch: int, p95: float, most: int) -> list[Service]:
    """From the fewest replicas that keep up with the load to the first with a 95th percentile of ``p95`` seconds.

    Raises ``ValueError`` where a lone request takes longer than ``p95``, and where ``most`` replicas do not suffice.
    """
    alone = load.steps * cost.of(1) + cost.decode
    if alone > p95:
        raise ValueError(f"a request takes {alone:.3g} s alone; p95 is {p95:g} s and must be more than that")
    services: list[Service] = []
    fewest = max(1, math.ceil(load.rate / capacity(cost, load.steps, batch)))
    for replicas in range(fewest, most + 1):
        services.append(predict(load, cost, replicas, batch))
        if services[-1].p95 <= p95 and services[-1].missed == 0:
            return services
    raise ValueError(
        f"{most} replicas do not serve {load.rate:g} requests a second within {p95:g} s; "
        f"at least {fewest} are needed to keep up with them"
    )


def table(services: Sequence[Service]) -> str:
    """A Markdown row for each number of replicas."""
    lines = [
        "| replicas | requests a second | busy | mean, s | p50, s | p95, s | p99, s | missed | requests a step |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in services:
        seconds = " | ".join(f"{value:.3g}" for value in (one.mean, one.p50, one.p95, one.p99))
        lines.append(
            f"| {one.replicas} | {one.throughput:.3g} | {one.utilization:.0%} | {seconds} | {one.missed:.1%} "
            f"| {one.mean_batch:.2f} |"
        )
    return "\n".join(lines)
