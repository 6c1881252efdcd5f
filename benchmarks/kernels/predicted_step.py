"""The time of a denoising step on an H100, predicted operation by operation: no GPU has confirmed it.

The sampling loop itself makes a step on the meta device, with the guidance and the lengths of the model's own clip, and
every operation that reaches the device is recorded. A kernel of this package takes the time of ``predicted.py``; a
matrix product of a library that of its waves of tiles at the sustained rate (``product_us``); any other operation the
time to move its arguments and results. Every launch adds ``LAUNCH_US``, as between the kernels of a CUDA graph.
``ms`` is the sum, as if all ran one after the other; ``overlapped_ms`` leaves the audio tower out, which in a one-way
model runs beside the next step of the video: the time if it hides there whole. A model of two depths is recorded; the
rest of the layers repeat the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...engine.cost.counting import meta_model
from ...engine.cost.flops import flops
from ...engine.cost.jobs import synthetic_job
from ...engine.presets import preset
from ...engine.runtime.fp8 import with_fp8
from ...engine.sampling.sequential import batch_of
from ...kernels.launch import Launch, tiles
from ...kernels.launch.aot import Inspection, inspect, specialise
from ..step_recorder import StepRecorder, product_sizes
from .cases import Work, bytes_of, reference, syncflow_operation
from .predicted import CLOCK, LAUNCH_US, MATRIX, MEMORY, PREDICTED_ARCH, SMS, START, launch_work, predict

TILES = ((128, 256), (256, 128), (128, 192), (128, 128))
SMALL_TILES = ((64, 128), (64, 64))  # for products that do not fill the multiprocessors with the others
EDGE = 1.7e-6 / (
    128 * 256
)  # seconds a wave and output of a tile, in which it fills its pipeline and writes its results
LIBRARY = ("linear_gelu", "gated_linear", "fp8_linear")


@dataclass(frozen=True)
class Call:
    """An operation of a step: where, what, and at which sizes; ``us`` of one, its launches and how many there are."""

    part: str
    operation: str
    shape: str
    us: float
    launches: int
    count: int = 1


@dataclass(frozen=True)
class PredictedStep:
    """A step of a preset: the sum of all ``calls`` and of the time between their launches."""

    preset: str
    batch: int
    fp8: bool
    calls: tuple[Call, ...]

    @property
    def launches(self) -> int:
        """Kernels of a step."""
        return sum(call.count * call.launches for call in self.calls)

    def parts(self) -> dict[str, float]:
        """Milliseconds by part and kind of operation, and ``between launches``; they add up to ``ms``."""
        found: Counter[str] = Counter()
        for call in self.calls:
            found[f"{call.part}: {kind(call.operation)}"] += call.count * call.us / 1e3  # type: ignore[assignment]
        return {**dict(found.most_common()), "between launches": self.launches * LAUNCH_US / 1e3}

    @property
    def ms(self) -> float:
        """Milliseconds of the step, all operations one after the other."""
        return sum(self.parts().values())

    @property
    def overlapped_ms(self) -> float:
        """Milliseconds of the step without its audio tower."""
        others = (call for call in self.calls if call.part != "audio tower")
        return sum(call.count * (call.us + call.launches * LAUNCH_US) for call in others) / 1e3

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        parts = {name: round(ms, 3) for name, ms in self.parts().items()}
        about = {"preset": self.preset, "batch": self.batch, "dtype": "bfloat16", "fp8": self.fp8}
        calls = [asdict(call) for call in sorted(self.calls, key=lambda call: -call.count * call.us)]
        return {
            **about,
            "predicted_ms": round(self.ms, 2),
            "overlapped_ms": round(self.overlapped_ms, 2),
            "launches": self.launches,
            "parts_ms": parts,
            "calls": calls,
        }


def kind(operation: str) -> str:
    """``attention``, ``linear`` or ``other`` operations."""
    return next((word for word in ("attention", "linear") if word in operation), "other")


def predict_step(name: str = "syncflow-xl", batch: int = 1, *, fp8: bool = False) -> PredictedStep:
    """A step of ``batch`` clips of a preset in bfloat16, both modalities, with classifier-free guidance."""
    config = preset(name)
    counts: list[Counter[Call]] = []
    times = _Times()
    for depth in (1, 2):
        shallow = config.replace(ddit=config.ddit.replace(depth=depth))
        model = meta_model(shallow.ddit).to(torch.bfloat16)
        model = with_fp8(model) if fp8 else model
        with torch.no_grad(), tiles.target(PREDICTED_ARCH):
            running = batch_of(model)
            running.join([synthetic_job(shallow, 3) for _ in range(batch)])
            running.step()  # makes what later steps keep
            calls: Counter[Call] = Counter()
            with StepRecorder(model, partial(times.count, calls)):
                running.step()
        counts.append(calls)
    total = {call: counts[0][call] + (config.ddit.depth - 1) * (n - counts[0][call]) for call, n in counts[1].items()}
    all_calls = (Call(**{**asdict(call), "count": count}) for call, count in total.items() if count)
    return PredictedStep(name, batch, fp8, tuple(all_calls))


def product_us(m: int, n: int, k: int, dtype: str, bytes_moved: int) -> float:
    """Microseconds of x (M, K) times W (N, K) in a library, in the best of the usual tiles.

    Tiles come in waves that fill the multiprocessors: 4096 x 1152 outputs are 288 tiles of 128 x 128, 3 waves for the
    work of 2.2. A wave takes its products at the sustained rate and ``EDGE``, which is what the time of cuBLAS for 8192
    x 8192 x K on an H100 leaves at K = 0 (588 TFLOP/s at K = 1024, 646 at 4096: Triton's tutorial on persistent
    products).
    """
    outputs = min(_wave_outputs(m, n, rows, columns) for rows, columns in TILES)
    if -(-m // 128) * -(-n // 128) < SMS:
        outputs = min(outputs, *(_wave_outputs(m, n, rows, columns) for rows, columns in SMALL_TILES))
    seconds = outputs * (2 * k * SMS / MATRIX[dtype] + EDGE)
    return 1e6 * (max(seconds, bytes_moved / MEMORY) + START / CLOCK)


def _wave_outputs(m: int, n: int, rows: int, columns: int) -> int:
    """Outputs that one multiprocessor makes one after the other: those of a tile, in every wave of tiles."""
    return -(-(-(-m // rows) * -(-n // columns)) // SMS) * rows * columns


class _Times:
    """Microseconds of operations; every kernel is compiled once."""

    def __init__(self) -> None:
        self._inspected: dict[str, Inspection] = {}

    def count(self, calls: Counter[Call], part: str, name: str, arguments: tuple[Any, ...], output: object) -> None:
        """Add an operation to ``calls``."""
        us, launches = self.of(name, arguments, output)
        calls[Call(part, name.removeprefix("syncflow::"), _shape(name, arguments, output), us, launches)] += 1

    def of(self, name: str, arguments: tuple[Any, ...], output: object) -> tuple[float, int]:
        """Microseconds and launches of an operation of PyTorch or of this package."""
        if name.startswith("syncflow::"):
            return self._own(name.removeprefix("syncflow::"), arguments)
        moved = bytes_of(arguments) + bytes_of(output)
        sizes = product_sizes(name, arguments, output)
        if sizes is not None:
            return product_us(*sizes, "bfloat16", moved), 1
        return 1e6 * moved / MEMORY, 1

    def _own(self, name: str, arguments: tuple[Any, ...]) -> tuple[float, int]:
        operation, whole = syncflow_operation(name), _work(name, arguments)
        if name not in LIBRARY:
            return self._launched(operation.plan_launches(*arguments)[1], whole)
        x, weight = arguments[0], arguments[2 if name == "fp8_linear" else 1]
        rows, inner, outer = prod(x.shape[:-1]), x.shape[-1], weight.shape[0]
        dtype = str(x.dtype).removeprefix("torch.")
        moved = bytes_of((x, weight)) + 2 * rows * outer
        us, launches = product_us(rows, outer, inner, dtype, moved), 1
        if name == "gated_linear":
            residual, table, modulation, part = arguments[3:]
            gate = (residual, torch.empty_like(residual), table, modulation, part)
            plan = syncflow_operation("gated_residual").plan_launches
            more, count = self._launched(plan(*gate)[1], _work("gated_residual", gate))
            return us + more, launches + count
        if name == "fp8_linear" and arguments[5]:  # its GELU is a pass of its own
            return us + 1e6 * 2 * 2 * rows * outer / MEMORY, launches + 1
        return us, launches

    def _launched(self, launches: list[Launch], whole: Work) -> tuple[float, int]:
        found = 0.0
        for launch in launches:
            key = repr((launch.kernel.__name__, specialise(launch)))
            if key not in self._inspected:
                self._inspected[key] = inspect(launch, PREDICTED_ARCH)
            one = self._inspected[key]
            found += predict(launch, one.code, one.resources, launch_work(launch, whole), "bfloat16").predicted_us
        return found, len(launches)


def _work(name: str, arguments: tuple[Any, ...]) -> Work:
    """The least work of an operation of this package, as in ``cases.py``."""
    function: Callable[..., Any] = reference(name)
    output = function(*arguments)
    return Work(bytes_of(arguments) + bytes_of(output), flops(lambda: function(*arguments)))


def _shape(name: str, args: tuple[Any, ...], output: object) -> str:
    sizes = product_sizes(name, args, output)
    if sizes is not None:
        return "M={} N={} K={}".format(*sizes)
    first = next((leaf for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)), None)
    return "" if first is None else "x".join(map(str, first.shape))


def table(steps: list[PredictedStep]) -> str:
    """Milliseconds by part as Markdown, a column for each step."""
    columns: list[Mapping[str, float]] = [step.parts() for step in steps]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = [f"{step.preset}, batch {step.batch}, {'fp8' if step.fp8 else 'bfloat16'}" for step in steps]
    lines = [f"| predicted ms of a step on an H100 | {' | '.join(heads)} |", f"|---|{'--:|' * len(steps)}"]
    lines += [f"| {name} | {' | '.join(f'{column.get(name, 0):.2f}' for column in columns)} |" for name in names]
    lines += [f"| sum | {' | '.join(f'{step.ms:.2f}' for step in steps)} |"]
    overlapped = " | ".join(f"{step.overlapped_ms:.2f}" for step in steps)
    return "\n".join([*lines, f"| with the audio tower beside the next video step | {overlapped} |"])
