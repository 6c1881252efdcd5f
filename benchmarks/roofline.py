"""The roofline of a denoising step: FLOPs, bytes and launches by component, and the time below which it cannot be done.

The sampling loop makes a step on the meta device and every operation is counted: its FLOPs (as in
``engine/cost/flops.py``), and its bytes, each argument read and each result written once. The floor of an operation is
the larger of its FLOPs at the matrix rate and its bytes at the bandwidth; that of a step is the sum over its operations
(``floor_ms``). What fuses operations or keeps values in a cache moves fewer bytes: below ``matrix_ms``, the FLOPs alone
at the matrix rate, nothing can come that computes the same.

Rates are measured on the device at hand (S. Williams et al., "Roofline", CACM 2009), or those of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from syncflow.engine.config import ModelConfig
from syncflow.engine.cost.counting import meta_model
from syncflow.engine.cost.flops import OPERATIONS
from syncflow.engine.cost.jobs import synthetic_job
from syncflow.engine.media.destinations import destination
from syncflow.engine.runtime.selection.processor import processor
from syncflow.engine.sampling.sequential import batch_of
from syncflow.kernels import native
from syncflow.kernels.launch import tiles

from .kernels.cases import bytes_of
from .step_recorder import PARTS, StepRecorder

COPY_BYTES = 1 << 28
SECONDS = 0.2
CALLS = 8
PRODUCT_SIDE = 1024


@dataclass(frozen=True)
class Rates:
    """``matrix`` FLOP/s and ``bandwidth`` bytes a second of ``device``; ``source`` says where they come from."""

    device: str
    matrix: float
    bandwidth: float
    source: str


# Dense rates in bfloat16 without sparsity, and memory bandwidth.
DATA_SHEETS = {
    "h100": Rates("NVIDIA H100 SXM", 989.4e12, 3.35e12, "data sheet"),
    "h200": Rates("NVIDIA H200 SXM", 989.4e12, 4.8e12, "data sheet"),
    "a100": Rates("NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, "data sheet"),
    "b200": Rates("NVIDIA B200", 2.25e15, 8e12, "data sheet"),
}


@dataclass(frozen=True)
class Component:
    """FLOPs, bytes and launches of a part of a step, its floor in ms, and the share of the floor bound by memory."""

    name: str
    flops: int
    bytes: int
    launches: int
    floor_ms: float
    memory_share: float


@dataclass(frozen=True)
class StepRoofline:
    """The components of a step of ``batch`` clips with two branches, at ``rates``."""

    preset: str
    batch: int
    dtype: str
    rates: Rates
    components: tuple[Component, ...]

    @property
    def total(self) -> Component:
        """The sum of all components."""
        parts = self.components
        floor = sum(one.floor_ms for one in parts)
        memory = sum(one.floor_ms * one.memory_share for one in parts)
        return Component(
            name="step",
            flops=sum(one.flops for one in parts),
            bytes=sum(one.bytes for one in parts),
            launches=sum(one.launches for one in parts),
            floor_ms=floor,
            memory_share=memory / floor,
        )

    @property
    def matrix_ms(self) -> float:
        """The FLOPs alone, at the matrix rate."""
        return 1e3 * self.total.flops / self.rates.matrix

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return {**asdict(self), "total": asdict(self.total), "matrix_ms": self.matrix_ms}


@dataclass(frozen=True)
class Standing:
    """Where a step stands: ``ms`` in ``name``, which says whether that was measured or predicted."""

    name: str
    ms: float


@dataclass
class _Counts:
    flops: int = 0
    bytes: int = 0
    launches: int = 0
    floor: float = 0.0
    memory: float = 0.0


def step_roofline(config: ModelConfig, rates: Rates, batch: int = 1, dtype: str = "float32") -> StepRoofline:
    """Count a step of both modalities with classifier-free guidance, at the model's own clip."""
    least = config.ddit.first_block + 1  # every layer after it is like the next one
    shallow = [_count(config, depth, rates, batch, dtype) for depth in (least, least + 1)]
    layers = config.ddit.depth - least
    components = []
    for part in PARTS:
        one, two = (vars(counts[part]) for counts in shallow)
        whole = {name: one[name] + layers * (two[name] - one[name]) for name in one}
        if whole["launches"]:
            floor, memory = 1e3 * whole["floor"], 1e3 * whole["memory"]
            counts = int(whole["flops"]), int(whole["bytes"]), int(whole["launches"])
            components.append(Component(part, *counts, floor, memory / floor if floor else 0.0))
    return StepRoofline(config.name, batch, dtype, rates, tuple(components))


def _count(config: ModelConfig, depth: int, rates: Rates, batch: int, dtype: str) -> dict[str, _Counts]:
    found = {part: _Counts() for part in PARTS}

    def record(part: str, name: str, arguments: tuple[Any, ...], output: object) -> None:
        counts, operations = found[part], _operation_flops(name, arguments)
        moved = bytes_of(arguments) + bytes_of(output)
        compute, memory = operations / rates.matrix, moved / rates.bandwidth
        counts.flops += operations
        counts.bytes += moved
        counts.launches += 1
        counts.floor += max(compute, memory)
        counts.memory += memory if memory > compute else 0.0

    shallow = config.replace(ddit=config.ddit.replace(depth=depth))
    model = meta_model(shallow.ddit).to(getattr(torch, dtype))
    with torch.no_grad(), tiles.target("sm_90"):
        running = batch_of(model)
        running.join([synthetic_job(shallow, 3) for _ in range(batch)])
        running.step()  # makes what later steps keep
        with StepRecorder(model, record):
            running.step()
    return found


def _operation_flops(name: str, arguments: tuple[Any, ...]) -> int:
    """FLOPs of one operation; 0 of one that multiplies no matrices."""
    namespace, _, rest = name.rpartition("::")
    packet = getattr(getattr(torch.ops, namespace or "aten"), rest, None)
    if packet is None or (packet not in OPERATIONS and not namespace and packet not in _multiplying()):
        return 0
    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        packet(*arguments)
    return counter.get_total_flops()


def _multiplying() -> set[Any]:
    aten = torch.ops.aten
    return {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.convolution}


def measured_rates(device: str = "cpu") -> Rates:
    """The matrix rate and the bandwidth of this machine in float32, or in bfloat16 on a GPU.

    On a CPU the faster of a loop of multiply-adds on every thread at once and a product of PyTorch.
    """
    if torch.device(device).type == "cuda":
        from .kernels.harness import measure_roofline

        found = measure_roofline(device)
        return Rates(torch.cuda.get_device_name(device), found.matrix["bfloat16"], found.copy, "measured")
    a, b = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE) for _ in range(2))
    product = 2 * PRODUCT_SIDE**3 / _best(lambda: torch.mm(a, b))
    source = torch.ones(COPY_BYTES // 4)  # not zeros, whose pages would be one and the same
    target = torch.empty_like(source)
    copy = 2 * COPY_BYTES / _best(lambda: target.copy_(source))
    return Rates(processor().name, max(product, _multiply_add_flops()), copy, "measured")


def _multiply_add_flops() -> float:
    if native.EXTENSION is None:
        return 0.0
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return 2 * sum(pool.map(native.EXTENSION.multiply_add_rate, [SECONDS] * threads))


def _best(work: Callable[[], object]) -> float:
    """The least seconds of a call, of :data:`CALLS` or more."""
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < CALLS or time.perf_counter() - began < 2 * SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def table(found: StepRoofline, standings: list[Standing]) -> str:
    """Components as Markdown, and where measured or predicted steps stand beside the floor."""
    rates = found.rates
    lines = [
        f"{found.preset}, batch {found.batch}, {found.dtype}, on {rates.device}: {rates.matrix / 1e9:,.0f} GFLOP/s, "
        f"{rates.bandwidth / 1e9:,.1f} GB/s ({rates.source})",
        "",
        "| component | GFLOP | MB | launches | FLOP / byte | floor by operation, ms | of it bound by memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in (*found.components, found.total):
        counts = f"{one.flops / 1e9:,.2f} | {one.bytes / 1e6:,.1f} | {one.launches}"
        lines.append(
            f"| {one.name} | {counts} | {one.flops / one.bytes:.1f} | {one.floor_ms:.3f} | {one.memory_share:.0%} |"
        )
    lines += ["", "| step | ms | of the matrix rate | floor / step |", "|---|--:|--:|--:|"]
    lines.append(f"| matrix products alone | {found.matrix_ms:.3f} | 100% | |")
    lines += [
        f"| {one.name} | {one.ms:.3f} | {found.matrix_ms / one.ms:.0%} | {found.total.floor_ms / one.ms:.0%} |"
        for one in standings
    ]
    return "\n".join(lines)


def plot(found: StepRoofline, standings: list[Standing], path: Path) -> None:
    """Draw the roofline with the components at their intensity, and the standings, to a ``.png`` or ``.svg`` file."""
    from matplotlib.figure import Figure

    rates, total = found.rates, found.total
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ridge = rates.matrix / rates.bandwidth
    span = [min(0.25, ridge / 30), max(ridge * 30, 2 * max(one.flops / one.bytes for one in found.components))]
    axes.plot(
        [span[0], ridge, span[1]], [1e-9 * x for x in (span[0] * rates.bandwidth, rates.matrix, rates.matrix)], "k-"
    )
    for one in found.components:
        if one.flops:
            rate = one.flops / one.floor_ms / 1e6
            axes.plot(one.flops / one.bytes, rate, "o", label=f"{one.name}: floor {one.floor_ms:.3g} ms")
    for standing in standings:
        rate = total.flops / standing.ms / 1e6
        axes.plot(total.flops / total.bytes, rate, "*", markersize=14, label=f"{standing.name}: {standing.ms:.3g} ms")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP a byte (operations unfused)",
        ylabel="GFLOP/s",
        title=f"{found.preset}, batch {found.batch}, {found.dtype}: {rates.device} ({rates.source})",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    with destination(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."))
