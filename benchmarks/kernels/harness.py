"""Compare the variants of an operation: check against float64, then time on the device, beside the roofline.

On a GPU a comparison is the median of CUDA graph replays over argument sets that together exceed the L2 cache; what
cannot be captured is timed with events around a loop and says so. On a CPU a single call is timed: that proves the
code, not the kernel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...kernels.launch import implementation, tiles
from .arguments import Arguments
from .cases import Case, Work, reference, syncflow_operation

CACHES = 3  # argument sets together are this many times the L2 cache
MOST_SETS = 32
LEAST_SECONDS = 2e-4  # of one replay
ROUNDS = 25
CHECKED_BYTES, CHECKED_FLOPS = 1 << 29, 1e12  # a larger case is checked at the batch of one
LIBRARY = ("linear_gelu", "gated_linear", "fp8_linear")  # operations that a GPU's library may do instead of a kernel
FAST_STEP, FAST_BITS = 32, 13  # products of 8 bits that a matrix unit of Hopper adds at once, bits that its sum keeps
ALLOWED = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # relative error of a baseline


@dataclass(frozen=True)
class Variant:
    """An implementation of an operation: its kernel or a baseline.

    ``setup`` makes what ``run`` takes, before the clock starts; ``restore(output, *arguments)`` then brings the output
    into the operation's own layout for the check. ``compiled``: ``run`` goes through ``torch.compile``. ``tiles`` are
    tried in place of the operation's own choice.
    """

    run: Callable[..., Any]
    setup: Callable[..., Arguments] | None = None
    restore: Callable[..., Any] | None = None
    compiled: bool = False
    tiles: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Roofline:
    """What the device can do, measured: bytes a second that a copy moves, FLOP a second by type of a matrix product."""

    copy: float
    matrix: Mapping[str, float]

    def floor(self, work: Work, dtype: torch.dtype) -> float:
        """Seconds below which the work cannot be done."""
        rate = self.matrix.get(name_of(dtype)) or max(self.matrix.values())
        return max(work.bytes / self.copy, work.flops / rate)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in every round. ``method``: ``graph``, ``events`` or ``host``; ``cold``: not from L2."""

    samples: tuple[float, ...]
    method: str
    cold: bool

    def percentile(self, share: float) -> float:
        """The sample below which ``share`` of them lie."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Outcome:
    """One variant at one case: its times, or the reason why it has none."""

    operation: str
    case: str
    shape: str
    dtype: str
    variant: str
    work: Work
    timing: Timing | None = None
    error: float | None = None
    roofline: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``: times in microseconds, GB/s, TFLOP/s, percent of the roofline."""
        named = {k: v for k, v in asdict(self).items() if k not in ("timing", "work", "roofline") and v is not None}
        row: dict[str, Any] = {**named, **asdict(self.work)}
        if self.timing is not None:
            p50 = self.timing.percentile(0.5)
            row |= {f"p{p}_us": round(1e6 * self.timing.percentile(p / 100), 2) for p in (20, 50, 80)}
            row |= {"method": self.timing.method, "cold": self.timing.cold}
            row |= {"gb_s": round(self.work.bytes / p50 / 1e9, 1), "tflop_s": round(self.work.flops / p50 / 1e12, 2)}
            if self.roofline is not None:
                row["roofline_percent"] = round(100 * self.roofline / p50, 1)
        return row


@dataclass(frozen=True)
class Truth:
    """Arguments of a case with the operation's result in float64, and in plain PyTorch in their own type.

    ``sum_error``: what the sums of a GPU's matrix units may lose, as a share of the largest result.
    """

    arguments: Arguments
    exact: list[Tensor]
    plain: list[Tensor]
    dtype: torch.dtype = field(default=torch.float32)
    sum_error: float = 0.0

    def margin(self, output: object) -> float:
        """Error over what the tolerance rule allows: twice that of plain PyTorch, one rounding of the largest, and
        what sums that are not kept in float32 lose."""
        worst = 0.0
        for a, p, e, eps in zip(readable(output), self.plain, self.exact, _roundings(output), strict=True):
            if a.shape != e.shape:
                raise ValueError(f"an output of shape {tuple(a.shape)} must be {tuple(e.shape)}")
            if not a.numel():
                continue
            allowed = 2 * (p.double() - e).abs().max().item() + (eps + self.sum_error) * e.abs().max().item()
            error = (a.double() - e).abs().max().item()
            worst = max(worst, error / allowed if error == error else math.inf)
        return worst

    def relative(self, output: object) -> float:
        """Norm of the error over the norm of the result."""
        pairs = list(zip(readable(output), self.exact, strict=True))
        wrong = sum((a.double() - e.double()).square().sum().item() for a, e in pairs)
        size = sum(e.double().square().sum().item() for _, e in pairs)
        return math.sqrt(wrong / size) if wrong == wrong and size else math.inf


def name_of(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def readable(output: object) -> list[Tensor]:
    """The tensors of an output; codes of one byte come with their scales as the numbers they stand for."""
    leaves = _tensors(output)
    if leaves[0].dtype == torch.float8_e4m3fn:
        codes, scales = leaves
        return [codes.to(scales.dtype) * scales[..., None], scales]
    return leaves


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _roundings(output: object) -> list[float]:
    """The unit of rounding of every tensor; scales of codes are sums in float32 even of the exact formula."""
    units = [torch.finfo(leaf.dtype).eps for leaf in _tensors(output)]
    return units if units[0] != torch.finfo(torch.float8_e4m3fn).eps else [units[0], 8 * units[1]]


@lru_cache(maxsize=2)
def truth(case: Case, dtype: torch.dtype, device: str) -> Truth:
    """The truth of a case; the last ones are kept."""
    arguments, formula = case.arguments(device, dtype), reference(case.operation)

    def widen(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.element_size() > 1:
            return leaf.double()
        return leaf

    with torch.no_grad():
        exact = readable(formula(*tree_map(widen, arguments)))
        return Truth(arguments, exact, readable(formula(*arguments)), dtype, sum_error(case.operation, arguments))


def sum_error(operation: str, arguments: Arguments) -> float:
    """What the sums of 8-bit products may lose, as a share of the largest.

    Hopper's matrix units keep 13 bits after the leading one of a running sum and cut the rest, once every 32 products:
    all K / 32 times with ``fast_accum``, else up to the next addition in float32, after 128 products.
    """
    if operation != "fp8_linear":
        return 0.0
    length, fast_accum = arguments[0].shape[-1], arguments[6]
    return (length if fast_accum else min(length, 128)) / FAST_STEP * 2.0**-FAST_BITS


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which is never written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def kernel(operation: str, device: str) -> Callable[..., Any]:
    """The operation with its Triton kernels; on a CPU in their interpreter."""
    function = syncflow_operation(operation)

    def run(*arguments: Any) -> Any:
        with implementation("auto" if torch.device(device).type == "cuda" else "triton"):
            return function(*arguments)

    return run


def choosing(operation: str, chosen: Mapping[str, int] | None) -> AbstractContextManager[None]:
    """Other tiles than the operation's own, or its own."""
    return nullcontext() if chosen is None else tiles.override(operation, chosen)


def kernels_of(operation: str) -> dict[str, Mapping[str, int] | None]:
    """The operation as it chooses for itself; where a library may be its choice, its Triton kernel too."""
    return {"kernel": None, **({"kernel, Triton": {"TRITON": 1}} if operation in LIBRARY else {})}


def compare(
    case: Case, name: str, variant: Variant, dtype: torch.dtype, device: str, roofline: Roofline | None = None
) -> Outcome:
    """Check a variant, then time it; a failure becomes the reason of the outcome."""
    work = case.work(dtype)
    about = (case.operation, str(case), case.shape, name_of(dtype), name, work)
    try:
        with torch.no_grad(), choosing(case.operation, variant.tiles):
            known = truth(
                case if work.bytes < CHECKED_BYTES and work.flops < CHECKED_FLOPS else case.at(1), dtype, device
            )
            run = _built(variant)
            with nullcontext() if variant.compiled else poisoned():  # the compiler would start again for either mode
                error = _error(known, name, variant, run)
            timing = time_calls(run, [_ready(variant, a) for a in argument_sets(case, dtype, device, work)], device)
    except Exception as failure:
        lines = str(failure).strip().splitlines()
        return Outcome(*about, reason=f"{type(failure).__name__}: {lines[0] if lines else ''}"[:200])
    finally:
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # what a graph held is of no use to the next one
    return Outcome(*about, timing, error, None if roofline is None else roofline.floor(work, dtype))


def _built(variant: Variant) -> Callable[..., Any]:
    if not variant.compiled:
        return variant.run
    torch._dynamo.reset()
    return torch.compile(variant.run, dynamic=False)


def _ready(variant: Variant, arguments: Arguments) -> Arguments:
    return arguments if variant.setup is None else variant.setup(*arguments)


def _error(known: Truth, name: str, variant: Variant, run: Callable[..., Any]) -> float:
    output = run(*_ready(variant, known.arguments))
    if variant.restore is not None:
        output = variant.restore(output, *known.arguments)
    error = known.relative(output)
    if name.startswith("kernel") and (ratio := known.margin(output)) > 1:
        raise ValueError(f"the result is wrong: its error is {ratio:.3g} times what the tolerance rule allows")
    if error > ALLOWED[known.dtype]:
        raise ValueError(f"the result is wrong: its relative error is {error:.3g}")
    return error


def argument_sets(case: Case, dtype: torch.dtype, device: str, work: Work) -> list[Arguments]:
    """Arguments to rotate through, so that a call does not find its inputs in the L2 cache."""
    count = 1
    if torch.device(device).type == "cuda":
        count = min(MOST_SETS, max(2, math.ceil(CACHES * _cache(device) / max(1, work.bytes))))
    return [case.arguments(device, dtype, seed) for seed in range(count)]


def time_calls(run: Callable[..., Any], sets: Sequence[Arguments], device: str) -> Timing:
    """Seconds a call, over all argument sets in turn."""
    if torch.device(device).type != "cuda":
        began = time.perf_counter()
        run(*sets[0])
        return Timing((time.perf_counter() - began,), "host", cold=False)
    for _ in range(2):
        for arguments in sets[:3]:
            run(*arguments)
    torch.cuda.synchronize()
    estimate = _events(lambda: [run(*a) for a in sets], 2)[-1] / len(sets)
    repeats = min(20, max(1, math.ceil(LEAST_SECONDS / (estimate * len(sets)))))
    calls = [a for _ in range(repeats) for a in sets]
    replay, method = _captured(run, calls), "graph"
    if replay is None:
        replay, method = (lambda: [run(*a) for a in calls]), "events"
    samples = tuple(seconds / len(calls) for seconds in _events(replay, ROUNDS))
    size = sum(leaf.nbytes for a in sets for leaf in tree_leaves(a) if isinstance(leaf, Tensor))
    return Timing(samples, method, cold=size >= 2 * _cache(device))


def _captured(run: Callable[..., Any], calls: Sequence[Arguments]) -> Callable[[], object] | None:
    """A CUDA graph of the calls, each with outputs of its own; None where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            outputs = [run(*arguments) for arguments in calls]
        del outputs
        graph.replay()
        torch.cuda.synchronize()
    except Exception:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _events(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of every round."""
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def _cache(device: str) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Outcomes as Markdown: a line for each variant, the reason in place of its times where it has none."""
    lines = [
        "| operation | case | dtype | variant | p20 us | p50 us | p80 us | GB/s | TFLOP/s | % of roofline |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row["operation"], row["case"], row["dtype"], row["variant"]]
        if "p50_us" in row:
            named = "p20_us", "p50_us", "p80_us", "gb_s", "tflop_s", "roofline_percent"
            cells += [str(row.get(name, "-")) for name in named]
            if row["method"] != "graph":
                cells[3] += f" ({row['method']})"
        else:
            cells += [row["reason"].replace("|", "/"), *["-"] * 5]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure_roofline(device: str, copy_bytes: int = 2 << 30, side: int = 8192) -> Roofline:
    """Copy bandwidth, counting bytes read and written, and the rate of square products of random numbers."""
    source = torch.randn(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = time_calls(target.copy_, [(source,)], device).percentile(0.5)
    copy = 2 * source.nbytes / seconds
    del source, target
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn):
        try:
            rates[name_of(dtype)] = 2 * side**3 / _product_seconds(device, dtype, side)
        except (RuntimeError, AttributeError, ValueError):
            continue
    return Roofline(copy, rates)


def _product_seconds(device: str, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    if dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=device)
        pair = a.to(dtype), b.to(dtype).t()
        # with the accumulator of the kernels, which Triton leaves in the matrix units
        options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        return time_calls(lambda x, y: torch._scaled_mm(x, y, one, one, **options), [pair], device).percentile(0.5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # float32 products in tf32, as the kernels' own
    try:
        return time_calls(torch.matmul, [(a.to(dtype), b.to(dtype))], device).percentile(0.5)
    finally:
        torch.set_float32_matmul_precision(before)
