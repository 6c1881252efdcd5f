"""``syncflow bench``: how fast a step is, what approximate options gain, and what the kernels take of a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from . import options

app = typer.Typer(help="How fast a step is, and what the kernels take of a GPU.", no_args_is_help=True)
Names = list[str] | None


@app.command()
def step(
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at a time; may be repeated. 1 and 8.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each way that count, in turn.")] = 20,
    runtimes: Annotated[
        str,
        typer.Option(
            help="Runtimes, with commas: auto, torch, torch-plain, native, compiled, onnxruntime, openvino, aoti."
        ),
    ] = "auto",
    instructions: Annotated[
        str | None,
        typer.Option(
            help="Limit the C++ part and PyTorch to a level of this processor: baseline, x86-64-v3 (AVX2) or "
            "x86-64-v4 (AVX-512)."
        ),
    ] = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(
            help="wall: what a user waits. cpu: CPU time of all threads together, for a machine where others compute "
            "too; it says how much work a step is, not how soon it is done."
        ),
    ] = "wall",
    precision: options.RuntimePrecision = "auto",
    cuda_graphs: options.CudaGraphs = None,
    overlap: options.Overlap = None,
    fp8: options.Fp8 = False,
    autotune: options.Autotune = False,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Time a denoising step with two branches beside the naive loop, in one alternating run on this machine.

    Runtimes of graphs need those that `syncflow export` writes.
    """
    from ..benchmarks import instructions as levels

    if instructions is not None:
        levels.limit(instructions)
    import time

    from ..benchmarks import step as steps
    from ..engine.engine import Engine
    from ..engine.runtime.selection.choose import RUNTIMES
    from ..engine.runtime.selection.settings import TorchOptions

    if instructions is not None:
        levels.check(instructions)
    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    names = options.choices("runtime", runtimes, RUNTIMES)
    ways = steps.runtimes(engine, names, precision, TorchOptions(cuda_graphs, overlap, fp8, autotune))
    timing = steps.Timing(rounds, time.perf_counter if clock == "wall" else time.process_time, _bar)
    rows = [row for size in batch or (1, 8) for row in steps.compare(engine, ways, size, timing)]
    takes = [] if engine.config.ddit.video_reads_audio else steps.takes(engine, ways, timing)
    if json:
        found = {"rows": [row.to_dict() for row in rows], "takes": [one.to_dict() for one in takes]}
        options.show_json({"clock": clock, **found})
    else:
        print(steps.table(rows))
        for one in takes:
            times = f"{one.eight_ms:.0f} ms, {one.ratio:.2f} times the {one.one_ms:.0f} of one"
            print(f"8 sounds of one video, {steps.TAKE_STEPS} steps, {one.name}: {times}")
        if clock == "cpu":
            print("ms are CPU time of all threads together")


@app.command()
def calibrate(
    renew: Annotated[bool, typer.Option("--renew", help="Time again, whatever is known.")] = False,
    precision: options.Precision = "float32",
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Which runtime `auto` takes on this CPU and what a step takes in each, timed now if it is not known yet."""
    from ..engine.components import Components
    from ..engine.engine import workload
    from ..engine.exports import Places
    from ..engine.runtime.selection.choose import choose

    folder = options.model_folder(model)
    parts = Components.load(folder)
    places, step = Places(folder, parts.digest), workload(parts.config.sequence)
    chosen = choose("auto", parts.ddit, places, precision, step, renew=renew)
    if json:
        options.show_json({"model": parts.config.name, "precision": precision, **chosen.describe()})
        return
    if (timed := chosen.calibration) is not None:
        key = timed.key
        level = "" if key.instructions is None else f", {key.instructions}"
        print(f"{parts.config.name} in {precision} on {key.processor}{level}, {key.threads} threads, {timed.date}")
        for name, ms in timed.milliseconds().items():
            print(f"{name:20} {ms:9.2f} ms a step")
        print(
            "kept in this process alone: the cache cannot be written" if timed.file is None else f"kept in {timed.file}"
        )
    print(f"auto takes {chosen.runtime}: {chosen.why}")


@app.command()
def gate(
    instructions: Annotated[
        str | None, typer.Option(help="Check one instruction level; every level of this machine otherwise.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Fail where a kernel or the automatic choice is slow: two ratios at every instruction level, within one process.

    The linear kernel must reach half the rate of a loop of multiply-adds, and a step of the chosen runtime must be no
    slower than plain PyTorch. Exit code 1 where a check fails.
    """
    from ..benchmarks import instructions as levels

    if instructions is not None:
        levels.limit(instructions)
    from ..benchmarks import gate as gates

    if instructions is not None:
        levels.check(instructions)
    checks = gates.check_all_levels() if instructions is None else gates.check_level()
    if json:
        options.show_json({"checks": [check.to_dict() for check in checks]})
    else:
        print(gates.table(checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@app.command()
def approximate(
    clips: Annotated[int, typer.Option(min=1, help="Clips, each drawn with every option in turn.")] = 8,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of the exact clips; the model's default.")] = None,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """What every approximate option gains, and how far its clips are from the exact ones with the same seeds."""
    from tqdm import tqdm

    from ..benchmarks import approximate as comparisons
    from ..engine.engine import Engine

    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    count = engine.config.sampling.steps if steps is None else steps
    chosen, asked = comparisons.options(count), comparisons.requests(clips, count)
    total = clips * (1 + len(chosen))
    with tqdm(total=total, desc="drawing", unit="clip", file=sys.stderr, leave=False, disable=None) as bar:
        rows = comparisons.compare(engine, asked, chosen, bar.update)
    if json:
        options.show_json({"clips": clips, "steps": count, "rows": [row.to_dict() for row in rows]})
    else:
        print(comparisons.table(rows))


@app.command()
def kernels(
    aot: Annotated[
        str | None, typer.Option(help="Compile for this architecture (sm_90, sm_100) instead of timing; needs no GPU.")
    ] = None,
    dtype: Annotated[Names, typer.Option(help="bfloat16, float16, float32; may be repeated. All, or bfloat16.")] = None,
    preset: Annotated[Names, typer.Option(help="Whose shapes; may be repeated. Both presets by default.")] = None,
    operation: Annotated[Names, typer.Option(help="Only this operation; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Clips at a time; may be repeated. 1, 4, 16.")] = None,
    tiles: Annotated[
        Names, typer.Option(help="OPERATION:NAME=VALUE,...: try other tiles than the operation's own; with --aot.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that compile; one per core by default.")] = None,
    json: options.Json = False,
) -> None:
    """Registers, spills and shared memory of every kernel without a GPU (--aot), or times beside baselines with one.

    Ends with exit code 1 when a kernel spills registers or needs more shared memory than there is.
    """
    os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are first imported, here and in the workers
    overrides = dict(map(_tiles, tiles or []))
    if aot is not None:
        _report(aot, dtype, preset, operation, batch, overrides, jobs, json)
    else:
        _time(dtype, preset, operation, batch, json)


def _bar(rounds: Sequence[int], desc: str) -> Iterable[int]:
    """Rounds under a progress bar on standard error."""
    from tqdm import tqdm

    return tqdm(rounds, desc=desc, unit="round", file=sys.stderr, leave=False, disable=None)


def _report(
    arch: str,
    dtypes: Names,
    presets: Names,
    operations: Names,
    batches: list[int] | None,
    overrides: dict[str, dict[str, int]],
    jobs: int | None,
    json: bool,
) -> None:
    from tqdm import tqdm

    from ..benchmarks.kernels import cases, compiled

    tasks = compiled.plan(
        arch,
        dtypes or tuple(compiled.DTYPES),
        presets or cases.PRESETS,
        operations or cases.OPERATIONS,
        overrides,
        batches=batches or cases.BATCHES,
    )
    with tqdm(total=len(tasks), desc=f"compiling for {arch}", file=sys.stderr, leave=False, disable=None) as bar:
        rows = compiled.compile_all(tasks, jobs, bar.update)
    if json:
        options.show_json({"arch": arch, "rows": [row.to_dict() for row in rows]})
    else:
        print(compiled.table(rows))
    faults = [fault for row in rows if (fault := row.fault(arch)) is not None]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        print(f"syncflow: {faults[0]}{more}", file=sys.stderr)
        raise typer.Exit(1)


def _time(dtypes: Names, presets: Names, operations: Names, batches: list[int] | None, json: bool) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "timing kernels needs a GPU, and there is none here; `--aot sm_90` reports on them without one"
        )
    from tqdm import tqdm

    from ..benchmarks.kernels import cases, compiled, harness

    chosen = cases.cases(operations or cases.OPERATIONS, presets or cases.PRESETS, batches or cases.BATCHES)
    types = [compiled.DTYPES[name] for name in cases.known(dtypes or ["bfloat16"], compiled.DTYPES)]
    roofline = harness.measure_roofline("cuda")
    rows = [
        harness.compare(case, name, baseline, dtype, "cuda", roofline).to_dict()
        for case in tqdm(chosen, desc="timing", file=sys.stderr, leave=False, disable=None)
        for dtype in types
        for name, baseline in harness.contenders(case.operation, "cuda").items()
    ]
    if json:
        options.show_json({"device": torch.cuda.get_device_name(), "roofline": asdict(roofline), "rows": rows})
    else:
        print(harness.table(rows))


def _tiles(text: str) -> tuple[str, dict[str, int]]:
    operation, colon, values = text.partition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not colon or not all(equals and value.isdecimal() for _, equals, value in pairs):
        raise ValueError(f"tiles are {text!r}; write them as OPERATION:NAME=VALUE,NAME=VALUE")
    return operation, {name: int(value) for name, _, value in pairs}
