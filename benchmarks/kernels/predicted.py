"""How long a kernel takes on an H100, predicted from its machine code: no GPU has confirmed these times.

The time of a launch is the longest of three:

- **compute**: the programs of a multiprocessor share its four schedulers. A warp's instruction takes an issue slot and
  cycles of a pipe (``PIPES``, from the throughput table of the CUDA programming guide); a product of 64 x N takes N / 2
  cycles of the matrix units, at their sustained rate. Resident programs together take as long as the busiest of these,
  and at least the ``latency`` of one: its slots, its products and its waits in turn. Programs come in waves of all that
  are resident at once.
- **memory**: the bytes of the operation, each input read and each output written once.
- **cache**: what the load instructions of all programs ask for, all of it from the L2 cache.

Its bound is the larger of memory and matrix products at the rates below. The body of the main loop counts as often as
the loop runs (``TRIPS``), every other instruction once. Not modelled: conflicts in shared memory, misses of the
instruction cache, skipped branches, limits of power beyond the sustained rates. Rates are those of an H100 SXM, from
what is public of copies, L2 reads and large matrix products.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...kernels.launch import Launch
from ...kernels.launch.aot import Resources
from ...kernels.launch.machine_code import Instruction, MachineCode
from .cases import Work

PREDICTED_ARCH = "sm_90"
CLOCK, SMS, SCHEDULERS = 1.755e9, 132, 4
MEMORY, CACHE = 3.0e12, 6.5e12  # bytes a second: a copy, reads and writes together; reads of the L2 cache
MATRIX = {"bfloat16": 788e12, "float16": 788e12, "float32": 394e12, "float8_e4m3fn": 1576e12}  # FLOP/s, float32 as tf32
PEAK = 4096 * SMS * CLOCK  # FLOP/s of bfloat16 at the clock; what the cycles of a matrix instruction are counted for
SUSTAINED = PEAK / MATRIX["bfloat16"]
LAUNCH_US = 1.0  # from the end of one kernel in a graph to the start of the next
START = 1500  # cycles of a program's first loads and last stores, in which it computes nothing
WAIT = 60  # cycles from the end of a matrix product to the next instruction that uses it
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 233472, 64, 32  # of a multiprocessor

# Operation -> pipe and cycles of a warp instruction on it; the first match counts, others take the issue slot alone.
PIPES: tuple[tuple[re.Pattern[str], str, float], ...] = tuple(
    (re.compile(pattern), pipe, cycles)
    for pattern, pipe, cycles in (
        (r"MUFU", "special", 8),
        (r"SHFL", "shared", 4),
        (r"(LDS|STS|LDSM|STSM|LDG|LDGSTS|STG)\b.*128|LDSM.*4|STSM.*4", "shared", 16),
        (r"(LDS|STS|LDG|LDGSTS|STG)\b.*64|LDSM.*2|STSM.*2", "shared", 8),
        (r"LDS|STS|LDG|STG|LDSM", "shared", 4),
        (r"F2F|I2F|F2I|FRND", "integer", 2),
        (r"IADD|LOP|SHF|ISETP|SEL|FSEL|PRMT|IMNMX|VIMNMX|FMNMX|FSETP|LEA|F2FP|MOV|VIADD|PLOP|P2R|R2P", "integer", 2),
        (r"IMAD|IDP|HFMA2|HMUL2|HADD2", "multiply", 2),
        (r"FFMA|FADD|FMUL", "multiply", 1),
    )
)
_SHAPE = re.compile(r"\.64x(\d+)x(\d+)")
_WIDTH = re.compile(r"^(?:LDG|LDGSTS)\b(?:.*\.(64|128)\b)?")

# Kernel -> iterations of its main loop in this launch.
TRIPS: dict[str, Callable[[Launch], float]] = {
    "flash_attention_kernel": lambda one: -(-_value(one, "length") // _value(one, "BLOCK_K")),
    "text_cross_attention_kernel": lambda one: -(-_tensor(one, "k").shape[1] // _value(one, "BLOCK_K")),
    "rope_cross_attention_kernel": lambda one: (
        -(-(_value(one, "keys") + _value(one, "own_keys")) // (_value(one, "BLOCK_K") * _value(one, "SPLITS")))
    ),
    "rotate_keys_kernel": lambda one: _value(one, "HEADS"),
    "matmul_kernel": lambda one: -(-_value(one, "K") // _value(one, "BLOCK_K")),
}


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one launch: ``predicted_us`` and its parts, and ``bound_us``, which no kernel can beat."""

    predicted_us: float
    compute_us: float
    memory_us: float
    cache_us: float
    bound_us: float


def launch_work(launch: Launch, whole: Work) -> Work:
    """The least work of one launch of an operation whose work is ``whole``: of a pass before or after it, its own."""
    if launch.kernel.__name__ == "rotate_keys_kernel":
        return Work(2 * _tensor(launch, "out").nbytes, 0)
    parts = ("parts", "totals", "tops")
    if launch.kernel.__name__ == "combine_parts_kernel":
        return Work(sum(_tensor(launch, name).nbytes for name in (*parts, "out")), 0)
    if launch.constants.get("SPLITS", launch.tiles.get("SPLITS", 1)) > 1:
        return Work(whole.bytes + sum(_tensor(launch, name).nbytes for name in parts), whole.flops)
    return whole


def bound(work: Work, dtype: str) -> float:
    """Seconds below which the bytes and the matrix products of an operation cannot be done."""
    return max(work.bytes / MEMORY, work.flops / MATRIX[dtype])


def predict(launch: Launch, code: MachineCode, resources: Resources, work: Work, dtype: str) -> Prediction:
    """The time of a launch; ``work`` is what it must move and compute at the least, ``dtype`` that of its products."""
    warps = int(launch.tiles["num_warps"])
    programs, trips = _product(launch.grid), _trips(launch, code)
    cost = _cost(code, trips, warps)
    resident = _resident(resources, warps)
    cycles, left = 0.0, programs
    while left > 0:
        wave = min(left, SMS * resident)
        waves = left // wave if wave == SMS * resident else 1
        cycles += waves * _wave(cost, -(-wave // SMS))
        left -= waves * wave
    compute = cycles / CLOCK
    loaded = sum(n * _load_bytes(one) for one, n in _loads(code, trips)) * 32 * warps * programs
    memory, cache = work.bytes / MEMORY, loaded / CACHE
    x = launch.arguments.get("x")
    dtype = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else dtype  # codes of 8 bits have another rate
    parts = (max(compute, memory, cache), compute, memory, cache, bound(work, dtype))
    return Prediction(*(round(1e6 * seconds, 3) for seconds in parts))


def _wave(cost: Mapping[str, float], resident: int) -> float:
    """Cycles of so many programs on one multiprocessor: the busiest resource, or one program by itself."""
    busiest = max(value for name, value in cost.items() if name not in ("latency", "start"))
    return cost["start"] + max(resident * busiest, cost["latency"])


def _cost(code: MachineCode, trips: float, warps: int) -> dict[str, float]:
    """Cycles of one program by resource, and the latency of the program when it runs alone."""
    share = max(1, warps / SCHEDULERS) if warps >= SCHEDULERS else warps / SCHEDULERS
    cost = dict.fromkeys(("issue", "special", "shared", "integer", "multiply", "matrix"), 0.0)
    waits = 0.0
    for one, count in _counted(code, trips):
        cost["issue"] += count
        if one.multiplies_matrices:
            cost["matrix"] += count * _matrix_cycles(one)
        elif (found := _pipe(one.operation)) is not None:
            cost[found[0]] += count * found[1]
        waits += count * one.operation.startswith("WARPGROUP.DEPBAR")
    cost = {name: value * share for name, value in cost.items()}
    others = max(value for name, value in cost.items() if name != "matrix")
    return {**cost, "latency": others + cost["matrix"] + waits * WAIT, "start": START}


def _counted(code: MachineCode, trips: float) -> list[tuple[Instruction, float]]:
    first, last = code.main_loop or (0, -1)
    return [(one, trips if first <= i <= last else 1.0) for i, one in enumerate(code.instructions)]


def _loads(code: MachineCode, trips: float) -> list[tuple[Instruction, float]]:
    """The same without the copies before the main loop: they are those of its first iterations, ahead of time."""
    first = (code.main_loop or (0, -1))[0]
    counted = enumerate(_counted(code, trips))
    return [pair for i, pair in counted if i >= first or not pair[0].operation.startswith("LDGSTS")]


def _trips(launch: Launch, code: MachineCode) -> float:
    """Iterations of the main loop; 1 where the compiler has unrolled it whole."""
    known = TRIPS.get(launch.kernel.__name__)
    if known is None or code.main_loop is None:
        return 1.0
    return float(known(launch))


def _matrix_cycles(one: Instruction) -> float:
    """Cycles of the matrix units for 64 x N: N / 2, or what shared memory takes to bring the operands."""
    shape = _SHAPE.search(one.operation)
    n = int(shape.group(1)) if shape else 64
    both_shared = len(re.findall(r"(?<!U)\bR\d+", one.operands)) <= 2
    from_shared = 32 * n + (2048 if both_shared else 0)  # bytes of a step of 32 bytes along K
    return SUSTAINED * max(n / 2, from_shared / 128)


def _pipe(operation: str) -> tuple[str, float] | None:
    return next(((pipe, cycles) for pattern, pipe, cycles in PIPES if pattern.match(operation)), None)


def _load_bytes(one: Instruction) -> int:
    found = _WIDTH.match(one.operation)
    return 0 if found is None else int(found.group(1) or 32) // 8


def _resident(resources: Resources, warps: int) -> int:
    """Programs that share a multiprocessor."""
    registers = -(-resources.registers // 8) * 8 * 32 * warps
    shared = resources.shared_bytes + 1024
    return max(1, min(REGISTERS // registers, SHARED // shared, WARPS // warps, PROGRAMS))


def _tensor(launch: Launch, name: str) -> Tensor:
    value = launch.arguments[name]
    assert isinstance(value, Tensor)
    return value


def _value(launch: Launch, name: str) -> int:
    for values in (launch.arguments, launch.constants, launch.tiles):
        if name in values:
            return int(values[name])
    raise KeyError(name)


def _product(grid: tuple[int, ...]) -> int:
    count = 1
    for axis in grid:
        count *= axis
    return count
