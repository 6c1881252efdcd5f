"""Compare a denoising step of several runtimes with the reference loop, in alternation.

The baseline is the reference loop (``engine/sampling/reference.py``) in plain PyTorch operations. Every runtime steps
the same requests from the same noise, with both modalities at a shared time; its velocities are compared with the
baseline's before anything is timed.
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

from syncflow.engine.cost.flops import flops
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
from .library_only import LIBRARIES, LibraryOnly

PROMPTS = (
    "a large red rubber ball bounces on a wooden floor",
    "a small blue glass ball falls on a stone floor",
    "a small green metal ball bounces on a metal floor",
    "a large white wooden ball rolls on a wooden floor",
)
Work = tuple[int, int, int]
PAUSE = 0.02  # seconds
STEPS = 200  # of the schedule: more than a run takes
TAKE_STEPS, TAKE_ROUNDS = 8, 5
COUNTED = ("torch", "torch-plain")  # runtimes whose operations PyTorch can count


def quiet(rounds: Sequence[int], desc: str) -> Iterable[int]:
    """No progress bar: takes the place of ``tqdm``."""
    return rounds


@dataclass(frozen=True)
class Timing:
    """Timed ``rounds``, a ``clock`` in seconds, and ``progress``, called like ``tqdm``.

    ``time.perf_counter`` measures latency. ``time.process_time`` adds up the CPU time of all threads, spinning ones
    included: for machines under other load.
    """

    rounds: int = 20
    clock: Callable[[], float] = time.perf_counter
    progress: Callable[..., Iterable[int]] = quiet


@dataclass(frozen=True)
class Row:
    """``ms_p50`` of a step; ``ratio`` of the reference loop's time to it; ``rel_err`` of its velocities.

    ``instructions``: the highest instruction level in use ("x86-64-v3", …). ``flops`` of a step: of the reference loop
    its own, of a runtime those of the batched step in PyTorch, of which a runtime may need fewer; ``gflops`` is the
    rate, in 1e9 a second. ``launches`` are operations sent to the device and ``bytes`` the size of their arguments and
    results; None for runtimes that do not run PyTorch operations.
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


class PlainReferenceLoop(ReferenceLoop):
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
    """The model of an engine in several runtimes, by name; "auto" becomes "auto (NAME)".

    Raises ``ValueError`` for an unknown runtime, one that is not installed, and an option that does not apply.
    """
    found: dict[str, RuntimeChoice] = {}
    for name in names:
        task = workload(engine.config.sequence)
        chosen = choose(name, engine.components.ddit, engine.export_locations, precision, task, options=options)
        found[name if name == chosen.runtime else f"{name} ({chosen.runtime})"] = chosen
    return found


def compare(engine: Engine, chosen: Mapping[str, RuntimeChoice], batch: int, timing: Timing) -> list[Row]:
    """Rows for a batch: the reference loop, then every runtime, one step of each in every round.

    A runtime of exported graphs is followed by its library alone, with the same graphs.
    """
    jobs = requests(engine, batch)
    reference, counted = (PlainReferenceLoop(engine.components.ddit, jobs) for _ in range(2))
    steppers: dict[str, Any] = {"reference": reference}
    runtime_of, before, errors = {"reference": "reference"}, reference.latents, {"reference": 0.0}
    launches, reference_flops, traffic = _work(counted.step)
    counts: dict[str, tuple[int, int]] = {"reference": (launches, traffic)}
    reference.step()
    expected = reference.latents
    for name, runtime in chosen.items():
        steppers[name], runtime_of[name] = batch_of(runtime.denoiser, overlap=runtime.overlap), runtime.runtime
        steppers[name].join(jobs)
        steppers[name].step()
        errors[name] = _error(steppers[name].latents, expected, before)
        if runtime.runtime in COUNTED:
            launches, _, traffic = _work(steppers[name].step)
            counts[name] = launches, traffic
        if isinstance(runtime.denoiser, GraphDenoiser) and name in LIBRARIES:
            alone = LibraryOnly(name, runtime.denoiser, jobs)
            steppers[f"{name} alone"], errors[f"{name} alone"] = alone, alone.error
            runtime_of[f"{name} alone"] = name
    plain = batch_of(engine.components.ddit)
    plain.join(jobs)
    batched_flops = flops(plain.step)
    seconds = alternate({name: stepper.step for name, stepper in steppers.items()}, timing, f"batch {batch}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name in steppers:
        count = reference_flops if name == "reference" else batched_flops
        launched, moved = counts.get(name, (None, None))
        rows.append(
            Row(
                name=f"{name}, batch {batch}",
                runtime=runtime_of[name],
                instructions=instructions.used(),
                ms_p50=round(1e3 * median[name], 3),
                ratio=round(median["reference"] / median[name], 3),
                gflops=round(count / median[name] / 1e9, 2),
                rel_err=errors[name],
                launches=launched,
                flops=count,
                bytes=moved,
            )
        )
    return rows


def alternate(
    functions: Mapping[str, Callable[[], object]], timing: Timing, desc: str = "timing"
) -> dict[str, list[float]]:
    """Seconds of every function in every round, in alternation, after two warm-up rounds.

    Each timed call follows a pause, in which the spinning threads of the function before go to sleep, and one untimed
    call, after which threads and caches are as in a running loop.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for k in timing.progress(range(timing.rounds + 2), desc=desc):
        for name, function in functions.items():
            time.sleep(PAUSE)
            function()
            _synchronize()
            start = timing.clock()
            function()
            _synchronize()
            if k >= 2:
                seconds[name].append(timing.clock() - start)
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


def takes(engine: Engine, chosen: Mapping[str, RuntimeChoice], timing: Timing, steps: int = TAKE_STEPS) -> list[Takes]:
    """Medians for every runtime, in alternation, at the model's own lead."""

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
    for name, runtime in chosen.items():
        cache = ConditioningCache(runtime.denoiser)
        works |= {
            f"{name} {count}": sampling(runtime.denoiser, cache, count, overlap=runtime.overlap) for count in (1, 8)
        }
    seconds = alternate(works, replace(timing, rounds=min(timing.rounds, TAKE_ROUNDS)), "eight sounds")
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    pairs = {name: (ms[f"{name} 1"], ms[f"{name} 8"]) for name in chosen}
    return [Takes(name, round(one, 1), round(eight, 1), round(eight / one, 3)) for name, (one, eight) in pairs.items()]


class Traffic(TorchDispatchMode):
    """Counts operations that reach the device, which views do not, and the bytes of their arguments and results."""

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
        "| step | ms | reference / own | GFLOP/s | error | launches | GFLOP | MB |",
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
    """The largest difference of velocities over the largest velocity, of the worse modality."""
    errors = []
    for name in ("video", "audio"):
        own, reference = (getattr(latents, name) - getattr(before, name) for latents in (found, expected))
        errors.append(float((own - reference).abs().max() / reference.abs().max()))
    return max(errors)


def _work(step: Callable[[], object]) -> Work:
    with Traffic() as traffic:
        step()
    return traffic.launches, flops(step), traffic.bytes
