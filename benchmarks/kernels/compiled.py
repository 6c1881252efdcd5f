"""Registers, spills, shared memory and predicted time of every kernel at the shapes of the presets, without a GPU.

Cases with the same specialisation are compiled once, in worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import torch

from ...kernels.launch import Launch, tiles
from ...kernels.launch.aot import SHARED_LIMIT, Inspection, architecture, inspect, specialise
from ...kernels.launch.index_ranges import overflowing_products
from .cases import OPERATIONS, PRESETS, Case, cases, known
from .predicted import PREDICTED_ARCH, launch_work, predict

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HEAD = ("kernel", "shape", "dtype", "registers", "spills", "shared", "tensor core", "waits", "predicted us", "bound us")
# Of an attention for its matrix products in an iteration: for its logits and for its sums. Each of its four products in
# float32 is three of tf32, on operands that are split in registers between them.
MOST_WAITS = {"bfloat16": 3, "float16": 3, "float32": 12}
Overrides = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Task:
    """One launch of a case, and the cases that share its machine code, itself among them."""

    arch: str
    case: Case
    dtype: str
    position: int
    overrides: Overrides = field(default_factory=dict)
    same: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Row:
    """Resources of one kernel at one shape, in bytes (spills per thread); ``error`` if it did not compile.

    ``waits_per_loop`` and ``serialised`` as in :class:`~syncflow.kernels.launch.aot.Resources`; ``overflows``: products
    of indices and strides that can leave 32 bits in one of ``cases``. ``predicted_us`` and ``bound_us`` are those of an
    H100 (``predicted.py``), None for another architecture.
    """

    operation: str
    place: str
    kernel: str
    shape: str
    dtype: str
    tiles: dict[str, int]
    registers: int = 0
    spills: int = 0
    shared_bytes: int = 0
    tensor_core: str | None = None
    load_bytes: int = 0
    loads: dict[int, int] = field(default_factory=dict)
    waits_per_loop: int = 0
    serialised: str | None = None
    overflows: tuple[str, ...] = ()
    predicted_us: float | None = None
    bound_us: float | None = None
    cases: tuple[str, ...] = ()
    error: str | None = None

    def fault(self, arch: str) -> str | None:
        """Why the kernel must not be shipped, or None."""
        where = f"{self.operation} ({self.kernel}), {self.place}, at {self.shape} in {self.dtype}"
        if self.error is not None:
            return f"{where} does not compile: {self.error}"
        if self.spills:
            return f"{where} spills {self.spills} bytes a thread"
        if self.shared_bytes > SHARED_LIMIT[arch]:
            return f"{where} takes {self.shared_bytes} bytes of shared memory; {arch} has {SHARED_LIMIT[arch]}"
        if self.serialised is not None:
            return f"{where} waits after every matrix instruction: {self.serialised}"
        most = MOST_WAITS[self.dtype]
        if "attention" in self.operation and self.waits_per_loop > most:
            return f"{where} waits {self.waits_per_loop} times an iteration for its products, more than {most}"
        if self.overflows:
            return f"{where} has a 32-bit product that can overflow: {self.overflows[0]}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def plan(
    arch: str,
    dtypes: Sequence[str] = tuple(DTYPES),
    presets: Sequence[str] = PRESETS,
    operations: Sequence[str] = OPERATIONS,
    overrides: Overrides | None = None,
    **sizes: Sequence[int],
) -> list[Task]:
    """The tasks of presets and operations. Raises ``ValueError`` for names that do not exist."""
    return tasks_of(arch, cases(operations, presets, **sizes), dtypes, overrides)


def tasks_of(
    arch: str, chosen: Sequence[Case], dtypes: Sequence[str] = tuple(DTYPES), overrides: Overrides | None = None
) -> list[Task]:
    """One task for every distinct specialisation among the cases."""
    architecture(arch)
    tasks: dict[str, Task] = {}
    same: dict[str, list[Case]] = {}
    known(tuple(overrides or ()), OPERATIONS)
    with _choosing(arch, overrides or {}):
        for case in chosen:
            for dtype in known(dtypes, DTYPES):
                for position, launch in enumerate(case.launches(DTYPES[dtype])):
                    if 0 in launch.grid:
                        continue
                    key = repr((case.operation, launch.kernel.__name__, specialise(launch)))
                    tasks.setdefault(key, Task(arch, case, dtype, position, overrides or {}))
                    same.setdefault(key, []).append(case)
    return [Task(t.arch, t.case, t.dtype, t.position, t.overrides, tuple(same[key])) for key, t in tasks.items()]


def compile_one(task: Task) -> Row:
    """Compile the kernel of a task and read its report."""
    torch_dtype = DTYPES[task.dtype]
    with _choosing(task.arch, task.overrides):
        launches = [case.launches(torch_dtype)[task.position] for case in (task.case, *task.same)]
    launch, names = launches[0], tuple(map(str, task.same))
    options = {name: int(value) for name, value in launch.tiles.items()}
    about = (task.case.operation, task.case.place, _name(launch), task.case.shape, task.dtype, options)
    try:
        found: Inspection = inspect(launch, task.arch)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return Row(*about, cases=names, error=f"{type(error).__name__}: {lines[-1] if lines else ''}")
    overflows = dict.fromkeys(line for one in launches for line in overflowing_products(found.ttir, one))
    row = Row(*about, **asdict(found.resources), overflows=tuple(overflows), cases=names)
    if task.arch != PREDICTED_ARCH:
        return row
    work = launch_work(launch, task.case.work(torch_dtype))
    time = predict(launch, found.code, found.resources, work, task.dtype)
    return replace(row, predicted_us=time.predicted_us, bound_us=time.bound_us)


def compile_all(tasks: Sequence[Task], jobs: int | None = None, done: Callable[[], object] = lambda: None) -> list[Row]:
    """Compile in ``jobs`` processes (all cores); ``done()`` is called after each. Rows in the order of the tasks."""
    workers = max(1, min(jobs or os.cpu_count() or 1, len(tasks)))
    rows: dict[int, Row] = {}
    if workers == 1:
        for i, task in enumerate(tasks):
            rows[i] = compile_one(task)
            done()
    else:
        # a fork would inherit PyTorch's threads and locks in whatever state they are
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            futures = {pool.submit(compile_one, task): i for i, task in enumerate(tasks)}
            for future in as_completed(futures):
                rows[futures[future]] = future.result()
                done()
    return [rows[i] for i in range(len(tasks))]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---|--:|--:|--:|---|--:|--:|--:|"]
    for row in rows:
        cells: list[object] = [
            f"{row.operation}, {row.place} ({row.kernel})",
            row.shape,
            row.dtype,
            row.registers,
            row.spills,
            row.shared_bytes,
        ]
        times = ["-" if us is None else f"{us:.1f}" for us in (row.predicted_us, row.bound_us)]
        cells += [row.tensor_core or "-", row.waits_per_loop, *times] if row.error is None else ["failed", *"---"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@contextmanager
def _choosing(arch: str, overrides: Overrides) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(tiles.target(arch))
        for operation, chosen in overrides.items():
            stack.enter_context(tiles.override(operation, chosen))
        yield


def _name(launch: Launch) -> str:
    return str(launch.kernel.__name__)


def _one_thread() -> None:
    torch.set_num_threads(1)
