"""Profile a denoising step: the time by part of the step and by operation, and a Chrome trace.

PyTorch's profiler slows a step by what it records, so that shares count and not the times themselves. An operation in
C++ (the runtime ``native`` computes a whole tower in one) or a captured graph is one line; the parts of the step are
the same in every runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from syncflow.engine.engine import Engine
from syncflow.engine.media.destinations import destination
from syncflow.engine.model.denoiser import Denoiser
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.engine.sampling.sequential import batch_of

from .step import requests

WARM_UP = 2
PASSES = ("condition", "modulation", "audio_time", "video_pass", "audio_pass", "joint_pass")
STEP = "step"
OUTSIDE = "outside of PyTorch's operations"


@dataclass(frozen=True)
class Operation:
    """An operation, or a part of the step: ``calls`` a step, ``ms`` a step without what it calls, ``share`` of a step.

    Of a part of the step, ``ms`` includes what it calls.
    """

    name: str
    calls: float
    ms: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """``step_ms`` under the profiler, its ``parts``, and its ``operations`` in order of their time.

    ``outside`` is the time outside of PyTorch's operations: Python, and the blocks of the runtime ``native``.
    """

    step_ms: float
    parts: tuple[Operation, ...]
    operations: tuple[Operation, ...]
    outside: Operation

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


@contextmanager
def annotated(denoiser: Denoiser) -> Iterator[None]:
    """Within the block, the methods of a denoiser are named ranges of the profile."""

    def in_range(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def named(*arguments: Any) -> Any:
            with record_function(name):
                return method(*arguments)

        return named

    for name in PASSES:
        vars(denoiser)[name] = in_range(name, getattr(denoiser, name))
    try:
        yield
    finally:
        for name in PASSES:
            del vars(denoiser)[name]


@torch.inference_mode()
def profile(engine: Engine, chosen: RuntimeChoice, batch: int, steps: int, trace: Path) -> Profile:
    """Profile ``steps`` steps of ``batch`` clips with two branches, and write the Chrome trace to ``trace``.

    The trace opens in Perfetto or ``chrome://tracing``.
    """
    stepper = batch_of(chosen.denoiser, overlap=chosen.overlap)
    on_gpu = engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    stepper.join(requests(engine, batch))
    for _ in range(WARM_UP):
        stepper.step()
    with annotated(chosen.denoiser), torch.profiler.profile(activities=activities) as recorded:
        for _ in range(steps):
            with record_function(STEP):
                stepper.step()
        if on_gpu:
            torch.cuda.synchronize()
    with destination(trace) as beside:
        recorded.export_chrome_trace(str(beside))
    events = {event.key: event for event in recorded.key_averages()}
    whole = events[STEP].cpu_time_total
    ranges = [name for name in PASSES if name in events]

    def row(name: str, microseconds: float) -> Operation:
        ms, share = microseconds / steps / 1e3, microseconds / whole
        return Operation(name, events[name].count / steps, round(ms, 4), round(share, 4))

    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    operations = [row(name, own_time(event)) for name, event in events.items() if name not in (STEP, *ranges)]
    outside = sum(events[name].self_cpu_time_total for name in (STEP, *ranges))
    return Profile(
        step_ms=round(whole / steps / 1e3, 4),
        parts=tuple(row(name, events[name].cpu_time_total) for name in ranges),
        operations=tuple(sorted(operations, key=lambda one: -one.ms)),
        outside=Operation(OUTSIDE, 1, round(outside / steps / 1e3, 4), round(outside / whole, 4)),
    )


def table(found: Profile, most: int) -> str:
    """The parts of a step and its ``most`` slowest operations as Markdown."""
    lines = [f"| of a step ({found.step_ms:.2f} ms under the profiler) | calls | ms | share |", "|---|--:|--:|--:|"]
    rows: list[Operation] = [*found.parts, found.outside, *found.operations[:most]]
    if rest := found.operations[most:]:
        calls, ms, share = (sum(getattr(one, name) for one in rest) for name in ("calls", "ms", "share"))
        rows.append(Operation(f"{len(rest)} other operations", calls, ms, share))
    for one in rows:
        name = f"**{one.name}**" if one in found.parts else f"`{one.name}`" if one in found.operations else one.name
        lines.append(f"| {name} | {one.calls:g} | {one.ms:.3f} | {one.share:.1%} |")
    return "\n".join(lines)
