"""Compare a denoising step of several runtimes with the reference loop, in alternation.

The baseline is the reference loop (``engine/sampling/reference.py``) in plain PyTorch operations. Every runtime steps
the same requests from the same noise, with both modalities at a shared time; its velocities are compared with the
baseline's before anything is timed.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from syncflow.engine.cost.flops import flops
from syncflow.engine.engine import Engine, workload
from syncflow.engine.model.denoiser import Denoiser
from syncflow.engine.runtime.exported import GraphDenoiser
from syncflow.engine.runtime.selection.choose import RuntimeChoice, choose
from syncflow.engine.runtime.selection.libraries import LIBRARIES, export_for, version_of
from syncflow.engine.runtime.selection.settings import TorchOptions
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Latents, Request
from syncflow.kernels.launch import implementation

from . import instructions
from .alternating import Ratio, Timing, alternate, ratio
from .library_only import LIBRARIES as LIBRARY_ONLY
from .library_only import LibraryOnly

PROMPTS = (
    "a large red rubber ball bounces on a wooden floor",
    "a small blue glass ball falls on a stone floor",
    "a small green metal ball bounces on a metal floor",
    "a large white wooden ball rolls on a wooden floor",
)
Work = tuple[int, int, int]
STEPS = 200  # of the schedule: more than a run takes
TAKE_STEPS, TAKE_ROUNDS = 8, 5
BASELINES = ("torch-plain", "compiled", "onnxruntime", "openvino")  # what other software would use
OTHER_WORK = "diffusers"  # a variant of as many FLOPs that computes something else
UNLIMITED = ("onnxruntime",)  # runtimes that use every instruction of the processor
COUNTED = ("torch", "torch-plain")  # runtimes whose operations PyTorch can count


@dataclass(frozen=True)
class Variant:
    """A way to make a step: ``step`` makes one, ``rel_err`` is the error of its velocities, None for other work.

    ``launches`` are operations sent to the device and ``bytes`` the size of their arguments and results; None for
    runtimes that do not run PyTorch operations. ``flops`` of a step: of the reference loop its own, of a runtime those
    of the batched step in PyTorch, of which a runtime may need fewer.
    """

    name: str
    runtime: str
    step: Callable[[], object]
    rel_err: float | None
    flops: int
    launches: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RuntimeRow:
    """``ms_p50`` of what a runtime did; ``ratio`` of the reference loop's time to it, which is within ``low`` and
    ``high`` with 95 % confidence.

    ``instructions``: the highest instruction level in use ("x86-64-v3", …). Of ``auto`` alone, ``fastest_other`` is the
    fastest of the others, and ``over_fastest`` how many times as fast ``auto`` is.
    """

    name: str
    runtime: str
    instructions: str
    ms_p50: float
    ratio: float
    low: float
    high: float
    fastest_other: str | None = None
    over_fastest: Ratio | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Row(RuntimeRow):
    """A step: ``rel_err`` of its velocities, ``gflops`` its rate in 1e9 a second, the rest as in :class:`Variant`."""

    gflops: float
    rel_err: float | None
    launches: int | None
    flops: int
    bytes: int | None


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


def available(engine: Engine, report: Callable[[str], object] = lambda _: None) -> list[str]:
    """``auto``, and the runtimes that other software would use for this model here, in order of :data:`BASELINES`.

    A runtime that cannot be limited to the instruction level of this process is left out, and reported in a sentence.
    """
    found = ["auto"]
    for name in BASELINES:
        if name in UNLIMITED and instructions.is_limited():
            report(f"{name} is left out: it cannot be limited to {instructions.used()}")
            continue
        try:
            if name in LIBRARIES:
                export_for(name, engine.components.ddit, engine.export_locations, "float32")
                version_of(name)
        except ValueError:
            continue
        if name != "compiled" or engine.device.type == "cuda" or shutil.which(os.environ.get("CXX", "c++")):
            found.append(name)
    return found


def variants(engine: Engine, chosen: Mapping[str, RuntimeChoice], batch: int) -> list[Variant]:
    """The reference loop and every runtime, each after its first step, whose velocities were compared.

    A runtime of exported graphs is followed by its library alone, with the same graphs.
    """
    jobs = requests(engine, batch)
    reference, counted = (PlainReferenceLoop(engine.components.ddit, jobs) for _ in range(2))
    before = reference.latents
    launches, reference_flops, traffic = _work(counted.step)
    reference.step()
    expected = reference.latents
    plain = batch_of(engine.components.ddit)
    plain.join(jobs)
    batched_flops = flops(plain.step)
    found = [Variant("reference", "reference", reference.step, 0.0, reference_flops, launches, traffic)]
    for name, runtime in chosen.items():
        stepper = batch_of(runtime.denoiser, overlap=runtime.overlap)
        stepper.join(jobs)
        stepper.step()
        error, counts = _error(stepper.latents, expected, before), {}
        if runtime.runtime in COUNTED:
            launches, _, traffic = _work(stepper.step)
            counts = {"launches": launches, "bytes": traffic}
        found.append(Variant(name, runtime.runtime, stepper.step, error, batched_flops, **counts))
        if isinstance(runtime.denoiser, GraphDenoiser) and name in LIBRARY_ONLY:
            alone = LibraryOnly(name, runtime.denoiser, jobs)
            found.append(Variant(f"{name} alone", name, alone.step, alone.error, batched_flops))
    return found


def compare(
    engine: Engine,
    chosen: Mapping[str, RuntimeChoice],
    batch: int,
    timing: Timing,
    other_work: Callable[[int], Variant] | None = None,
) -> list[Row]:
    """Rows for a batch: the reference loop, then every runtime, one step of each in every round.

    ``other_work`` makes the variant :data:`OTHER_WORK` of so many FLOPs, which is timed with the others and is none of
    those that ``auto`` is compared with.
    """
    every = variants(engine, chosen, batch)
    if other_work is not None:
        every.append(other_work(every[-1].flops))
    seconds = alternate({one.name: one.step for one in every}, timing, f"batch {batch}")
    return [
        Row(
            **runtime_fields(seconds, one.name, one.runtime, batch, digits=3),
            gflops=round(one.flops / statistics.median(seconds[one.name]) / 1e9, 2),
            rel_err=one.rel_err,
            launches=one.launches,
            flops=one.flops,
            bytes=one.bytes,
        )
        for one in every
    ]


def runtime_fields(
    seconds: Mapping[str, Sequence[float]], name: str, runtime: str, batch: int, digits: int
) -> dict[str, Any]:
    """The fields of a :class:`RuntimeRow` of ``name``, milliseconds with so many digits after the point."""
    against = ratio(seconds["reference"], seconds[name])
    return {
        "name": f"{name}, batch {batch}",
        "runtime": runtime,
        "instructions": instructions.used(),
        "ms_p50": round(1e3 * statistics.median(seconds[name]), digits),
        "ratio": against.median,
        "low": against.low,
        "high": against.high,
        **(over_fastest(seconds, name) if name.startswith("auto") else {}),
    }


def over_fastest(seconds: Mapping[str, Sequence[float]], own: str) -> dict[str, Any]:
    """The fields of :class:`RuntimeRow` about the fastest of the others that do the same work as ``own``."""
    others = {name: statistics.median(times) for name, times in seconds.items() if name not in (own, OTHER_WORK)}
    fastest = min(others, key=lambda name: others[name])
    return {"fastest_other": fastest, "over_fastest": ratio(seconds[fastest], seconds[own])}


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
    """Rows as Markdown, and a sentence on ``auto``."""
    lines = [
        "| step | ms | reference / own | 95 % interval | GFLOP/s | error | launches | GFLOP | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        launches = "" if row.launches is None else f"{row.launches}"
        traffic = "" if row.bytes is None else f"{row.bytes / 1e6:.0f}"
        speed = f"{row.ms_p50:.1f}", f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}", f"{row.gflops:.1f}"
        error = "" if row.rel_err is None else f"{row.rel_err:.1e}"
        cells = (row.name, *speed, error, launches, f"{row.flops / 1e9:.2f}", traffic)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + over_fastest_sentences(rows))


def over_fastest_sentences(rows: Sequence[RuntimeRow]) -> list[str]:
    """A sentence for each row of ``auto``."""
    return [
        f"{row.name} is {row.over_fastest} times as fast as {row.fastest_other}, the fastest of the others"
        for row in rows
        if row.over_fastest is not None
    ]


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
