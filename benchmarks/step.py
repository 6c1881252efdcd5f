"""One denoising step, in every way there is, beside the naive loop, in one alternating run.

The naive loop is the reference loop (``engine/sampling/reference.py``) in plain PyTorch operations. Every way steps the
same requests from the same noise, with both modalities at a shared time, and its velocities are held against the naive
ones before anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from syncflow.engine.engine import Engine, workload
from syncflow.engine.model.denoiser import Denoiser
from syncflow.engine.runtime.exported import GraphDenoiser
from syncflow.engine.runtime.selection.choose import RuntimeChoice, choose
from syncflow.engine.runtime.selection.settings import TorchOptions
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Latents, Request
from syncflow.kernels.launch import implementation

from . import instructions
from .bare import LIBRARIES, Bare
from .flops import flops

PROMPTS = (
    "a large red rubber ball bounces on a wooden floor",
    "a small blue glass ball falls on a stone floor",
    "a small green metal ball bounces on a metal floor",
    "a large white wooden ball rolls on a wooden floor",
)
Work = tuple[int, int, int]
REST = 0.02  # seconds
STEPS = 200  # of the schedule: more than a run takes
TAKE_STEPS, TAKE_ROUNDS = 8, 5
COUNTED = ("torch", "torch-plain")  # runtimes whose operations PyTorch can count


def quiet(rounds: Sequence[int], desc: str) -> Iterable[int]:
    """No progress bar: takes the place of ``tqdm``."""
    return rounds


@dataclass(frozen=True)
class Timing:
    """How ways are timed: ``rounds`` that count, a ``clock`` in seconds, and ``progress``, which is called as ``tqdm``
    is.

    ``time.perf_counter`` measures what a user waits. ``time.process_time`` measures what the threads of this process
    compute, added up, including threads that wait awake: of use on a machine where others compute too.
    """

    rounds: int = 20
    clock: Callable[[], float] = time.perf_counter
    progress: Callable[..., Iterable[int]] = quiet


@dataclass(frozen=True)
class Row:
    """``ms_p50`` of a step; ``ratio`` naive time over its own; ``rel_err`` of its velocities against the naive ones.

    ``runtime`` computes it, with at most these ``instructions`` ("x86-64-v3", …). ``flops`` are floating-point
    operations of a step: of the naive loop its own, of the others those of a step in plain PyTorch, which a runtime may
    undercut; ``gflops`` are billions of these a second. ``launches`` are operations sent to the device and ``bytes``
    what their arguments and results take; None for a way that does not run PyTorch's operations.
    """

    name: str
    runtime: str
    instructions: str
    ms_p50: float
    ratio: float
    gflops: float
    rel_err: float
    launches: int | None
    flops: int
    bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


class Naive(ReferenceLoop):
    """The reference loop in plain PyTorch operations."""

    def step(self) -> None:
        """One Euler step of all requests."""
        with implementation("reference"):
            super().step()


def requests(engine: Engine, batch: int, takes: int = 1) -> list[Job]:
    """Jobs of the model's own clip with two branches, both modalities at a shared time."""
    jobs = []
    for i in range(batch):
        request = Request(PROMPTS[i % len(PROMPTS)], seed=i, guidance=6.0, steps=STEPS, video_lead=0.0, takes=takes)
        jobs.append(engine.pipeline.encode(engine.pipeline.prepare(request)))
    return jobs


def runtimes(
    engine: Engine, names: Sequence[str], precision: str = "auto", options: TorchOptions | None = None
) -> dict[str, RuntimeChoice]:
    """The model of an engine in several runtimes, by name; "auto" also says which it is.

    Raises ``ValueError`` for one that is not there and for an option that does not apply.
    """
    ways: dict[str, RuntimeChoice] = {}
    for name in names:
        task = workload(engine.config.sequence)
        chosen = choose(name, engine.components.ddit, engine.places, precision, task, options=options)
        ways[name if name == chosen.runtime else f"{name} ({chosen.runtime})"] = chosen
    return ways


def compare(engine: Engine, ways: Mapping[str, RuntimeChoice], batch: int, timing: Timing) -> list[Row]:
    """Rows for a batch: the naive loop, then every way, each round one step of each in turn.

    Beside a way that runs the graphs of a library stands the library alone with the same graphs.
    """
    jobs = requests(engine, batch)
    naive, counted = Naive(engine.components.ddit, jobs), Naive(engine.components.ddit, jobs)
    steppers: dict[str, Any] = {"naive": naive}
    runtime_of, before, errors = {"naive": "naive"}, naive.latents, {"naive": 0.0}
    launches, of_naive, traffic = _work(counted.step)
    seen: dict[str, tuple[int, int]] = {"naive": (launches, traffic)}
    naive.step()
    expected = naive.latents
    for name, way in ways.items():
        steppers[name], runtime_of[name] = batch_of(way.denoiser, overlap=way.overlap), way.runtime
        steppers[name].join(jobs)
        steppers[name].step()
        errors[name] = _error(steppers[name].latents, expected, before)
        if way.runtime in COUNTED:
            launches, _, traffic = _work(steppers[name].step)
            seen[name] = launches, traffic
        if isinstance(way.denoiser, GraphDenoiser) and name in LIBRARIES:
            alone = Bare(name, way.denoiser, jobs)
            steppers[f"{name} alone"], errors[f"{name} alone"] = alone, alone.error
            runtime_of[f"{name} alone"] = name
    plain = batch_of(engine.components.ddit)
    plain.join(jobs)
    of_others = flops(plain.step)
    seconds = alternate({name: stepper.step for name, stepper in steppers.items()}, timing, f"batch {batch}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name in steppers:
        count = of_naive if name == "naive" else of_others
        launched, moved = seen.get(name, (None, None))
        rows.append(
            Row(
                name=f"{name}, batch {batch}",
                runtime=runtime_of[name],
                instructions=instructions.used(),
                ms_p50=round(1e3 * median[name], 3),
                ratio=round(median["naive"] / median[name], 3),
                gflops=round(count / median[name] / 1e9, 2),
                rel_err=errors[name],
                launches=launched,
                flops=count,
                bytes=moved,
            )
        )
    return rows


def alternate(ways: Mapping[str, Callable[[], object]], timing: Timing, desc: str = "timing") -> dict[str, list[float]]:
    """Seconds of every way in every round, in turn, after two rounds that do not count.

    Before each there is a rest, in which threads of the last that wait awake fall asleep, and the same work once: what
    is timed finds threads and caches as a loop does that goes on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in timing.progress(range(timing.rounds + 2), desc=desc):
        for name, work in ways.items():
            time.sleep(REST)
            work()
            _synchronize()
            began = timing.clock()
            work()
            _synchronize()
            if k >= 2:
                seconds[name].append(timing.clock() - began)
    return seconds


@dataclass(frozen=True)
class Takes:
    """Milliseconds from noise to latents of one video with one sound and with eight, and their ratio."""

    name: str
    one_ms: float
    eight_ms: float
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def takes(engine: Engine, ways: Mapping[str, RuntimeChoice], timing: Timing, steps: int = TAKE_STEPS) -> list[Takes]:
    """Medians for every way, all of them in turn, at the model's own lead."""

    def sampling(denoiser: Denoiser, cache: ConditioningCache, count: int, *, overlap: bool) -> Callable[[], object]:
        request = Request(PROMPTS[0], steps=steps, takes=count)
        job = engine.pipeline.encode(engine.pipeline.prepare(request))

        def work() -> None:
            batch = batch_of(denoiser, cache, overlap=overlap)
            batch.join([job])
            while not batch.step():
                pass

        return work

    works: dict[str, Callable[[], object]] = {}
    for name, way in ways.items():
        cache = ConditioningCache(way.denoiser)
        works |= {f"{name} {count}": sampling(way.denoiser, cache, count, overlap=way.overlap) for count in (1, 8)}
    seconds = alternate(works, replace(timing, rounds=min(timing.rounds, TAKE_ROUNDS)), "eight sounds")
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    pairs = {name: (ms[f"{name} 1"], ms[f"{name} 8"]) for name in ways}
    return [Takes(name, round(one, 1), round(eight, 1), round(eight / one, 3)) for name, (one, eight) in pairs.items()]


class Traffic(TorchDispatchMode):
    """Counts operations that reach the device, and the bytes of their arguments and results; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.launches += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        "| step | ms | naive / own | GFLOP/s | error | launches | GFLOP | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        launches = "" if row.launches is None else f"{row.launches}"
        traffic = "" if row.bytes is None else f"{row.bytes / 1e6:.0f}"
        speed = f"{row.ms_p50:.1f}", f"{row.ratio:.2f}", f"{row.gflops:.1f}"
        cells = (row.name, *speed, f"{row.rel_err:.1e}", launches, f"{row.flops / 1e9:.2f}", traffic)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _synchronize() -> None:
    """Wait until a GPU has computed all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _error(found: Latents, expected: Latents, before: Latents) -> float:
    """Of the velocities of both modalities, the largest difference by the largest value."""
    errors = []
    for name in ("video", "audio"):
        own, naive = (getattr(latents, name) - getattr(before, name) for latents in (found, expected))
        errors.append(float((own - naive).abs().max() / naive.abs().max()))
    return max(errors)


def _work(step: Callable[[], object]) -> Work:
    with Traffic() as traffic:
        step()
    return traffic.launches, flops(step), traffic.bytes
