"""``syncflow bench``: all of its commands; here those of steps, kernels, approximate options and FLOPs."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from . import options
from .bench_engine import capacity, compare, profile
from .bench_gate import check_instructions, gate, limit_instructions
from .bench_limits import history, memory, quantization, roofline, scaling

app = typer.Typer(
    help="Measure steps, kernels and memory beside baselines and limits; find regressions.", no_args_is_help=True
)
Names = list[str] | None
Instructions = Annotated[
    str | None,
    typer.Option(
        help="Highest instruction level: baseline, x86-64-v3 (AVX2) or x86-64-v4 (AVX-512); default: no limit."
    ),
]

for command in (compare, gate, profile, roofline, scaling, memory, quantization, capacity, history):
    app.command()(command)


@app.command()
def step(
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size, at least 1; repeatable; default: 1 and 8.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each runtime, at least 1, in alternation.")] = 20,
    runtimes: Annotated[
        str,
        typer.Option(
            help="Runtimes, comma-separated: auto, torch, torch-plain, native, compiled, onnxruntime, openvino, aoti; "
            "or all: auto and what other software would use."
        ),
    ] = "auto",
    instructions: Instructions = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(help="wall: latency. cpu: CPU time of all threads together, for a machine under other load."),
    ] = "wall",
    precision: options.RuntimePrecision = "auto",
    cuda_graphs: options.CudaGraphs = None,
    overlap: options.Overlap = None,
    fp8: options.Fp8 = False,
    autotune: options.Autotune = False,
    clips: Annotated[
        bool, typer.Option("--clips", help="Time whole clips of 8 steps, from sentences to frames and sound, instead.")
    ] = False,
    at_least: Annotated[
        float | None,
        typer.Option(min=0, help="Exit code 1 unless auto is more than so many times as fast as the fastest other."),
    ] = None,
    history: options.History = None,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Time a denoising step with two branches beside the reference loop, in alternation.

    Runtimes of exported graphs need `syncflow export` first.
    """
    limit_instructions(instructions)
    import time

    from ..benchmarks import clip, diffusers_loop
    from ..benchmarks import step as steps
    from ..benchmarks.alternating import Timing
    from ..engine.engine import Engine
    from ..engine.runtime.selection.choose import RUNTIMES
    from ..engine.runtime.selection.settings import TorchOptions

    check_instructions(instructions)
    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    names = steps.available(engine, _say) if runtimes == "all" else options.choices("runtime", runtimes, RUNTIMES)
    if at_least is not None and "auto" not in names:
        raise ValueError("--at-least is about the runtime auto; --runtimes must have it")
    kind: Any = clip if clips else steps
    chosen = steps.runtimes(engine, names, precision, TorchOptions(cuda_graphs, overlap, fp8, autotune))
    seconds = time.perf_counter if clock == "wall" else time.process_time
    timing = Timing(rounds, seconds, options.rounds_bar, str(engine.device))
    rows: list[Any] = []
    for size in batch or (1, 8):
        work: dict[str, Any] = {}
        if runtimes == "all" and not clips:
            work["other_work"] = diffusers_loop.maker(engine.config, size, str(engine.device), _say)
        rows += kind.compare(engine, chosen, size, timing, **work)
    takes = [] if clips or engine.config.ddit.video_reads_audio else steps.takes(engine, chosen, timing)
    figures = {f"{row.name}, ms": row.ms_p50 for row in rows}
    figures |= {f"{row.name} over {row.fastest_other}": row.over_fastest.median for row in rows if row.over_fastest}
    options.record(history, "bench step --clips" if clips else "bench step", figures)
    if json:
        found = {"rows": [row.to_dict() for row in rows], "takes": [one.to_dict() for one in takes]}
        options.show_json({"clock": clock, **found})
    else:
        print(kind.table(rows))
        for one in takes:
            times = f"{one.eight_ms:.0f} ms, {one.ratio:.2f} times the {one.one_ms:.0f} of one"
            print(f"8 sounds of one video, {steps.TAKE_STEPS} steps, {one.name}: {times}")
        if clock == "cpu":
            print("times are CPU time of all threads together")
    if at_least is not None and any(row.over_fastest is not None and row.over_fastest.low <= at_least for row in rows):
        raise typer.Exit(1)


@app.command()
def calibrate(
    renew: Annotated[
        bool, typer.Option("--renew", help="Time the runtimes again, even if their times are cached.")
    ] = False,
    precision: options.Precision = "float32",
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Print the runtime that `auto` takes on this CPU, and the time of a step in each; timed once, then cached."""
    from ..engine.components import Components
    from ..engine.engine import workload
    from ..engine.exports import ExportLocations
    from ..engine.runtime.selection.choose import choose

    folder = options.model_folder(model)
    parts = Components.load(folder)
    locations, step = ExportLocations(folder, parts.digest), workload(parts.config.sequence)
    chosen = choose("auto", parts.ddit, locations, precision, step, renew=renew)
    if json:
        options.show_json({"model": parts.config.name, "precision": precision, **chosen.describe()})
        return
    if (timed := chosen.calibration) is not None:
        key = timed.key
        level = "" if key.instructions is None else f", {key.instructions}"
        print(f"{parts.config.name} in {precision} on {key.processor}{level}, {key.threads} threads, {timed.date}")
        for name, ms in timed.milliseconds().items():
            print(f"{name:20} {ms:9.2f} ms a step")
        print("not cached: the cache cannot be written" if timed.file is None else f"cached in {timed.file}")
    print(f"auto takes {chosen.runtime}: {chosen.why}")


@app.command()
def approximate(
    clips: Annotated[int, typer.Option(min=1, help="Clips to generate with every option, at least 1.")] = 8,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Euler steps of the exact clips, at least 2; default: the model's.")
    ] = None,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Measure the speedup of every approximate option, and its error against exact clips of the same seeds."""
    from ..benchmarks import approximate as comparisons
    from ..engine.engine import Engine
    from ..engine.progress import progress_bar

    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    count = engine.config.sampling.steps if steps is None else steps
    chosen, requests = comparisons.options(count), comparisons.requests(clips, count)
    total = clips * (1 + len(chosen))
    with progress_bar(total=total, desc="generating", unit="clip", leave=False) as bar:
        rows = comparisons.compare(engine, requests, chosen, bar.update)
    if json:
        options.show_json({"clips": clips, "steps": count, "rows": [row.to_dict() for row in rows]})
    else:
        print(comparisons.table(rows))


@app.command()
def flops(
    presets: Annotated[Names, typer.Argument(help="Presets; default: all.", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """Count the FLOPs of a preset's parts and samples, and of one more branch or take in a step."""
    from ..engine.cost import breakdown
    from ..engine.presets import PRESETS, preset

    configs = {name: preset(name) for name in presets or PRESETS}
    if json:
        options.show_json(breakdown.to_dict(configs))
    else:
        print(breakdown.tables(configs))


@app.command()
def kernels(
    aot: Annotated[
        str | None, typer.Option(help="Compile for an architecture (sm_90, sm_100) instead of timing; needs no GPU.")
    ] = None,
    dtype: Annotated[
        Names, typer.Option(help="bfloat16, float16 or float32; repeatable; default: bfloat16, or all with --aot.")
    ] = None,
    preset: Annotated[
        Names, typer.Option(help="Preset with the shapes; repeatable; default: syncflow-xl and syncflow-tiny.")
    ] = None,
    operation: Annotated[Names, typer.Option(help="Operation; repeatable; default: all.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size, at least 1; repeatable; default: 1, 4 and 16.")
    ] = None,
    tiles: Annotated[
        Names,
        typer.Option(help="OPERATION:NAME=VALUE,…: other tiles, with --aot; repeatable; default: the operation's own."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compiler processes, at least 1; default: one per core.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Time the kernels beside their baselines on a GPU, or (--aot) report registers, shared memory, predicted times.

    With --aot, exit code 1 if a kernel spills registers, needs more shared memory than the architecture has, waits
    after every matrix instruction, or can overflow an index.
    """
    os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are first imported, here and in the workers
    overrides = dict(map(_parse_tiles, tiles or []))
    if aot is not None:
        _report_aot(aot, dtype, preset, operation, batch, overrides, jobs, json)
    else:
        _time_kernels(dtype, preset, operation, batch, json)


def _report_aot(
    arch: str,
    dtypes: Names,
    presets: Names,
    operations: Names,
    batches: list[int] | None,
    overrides: dict[str, dict[str, int]],
    jobs: int | None,
    json: bool,
) -> None:
    from ..benchmarks.kernels import cases, compiled, predicted_step
    from ..engine.progress import progress_bar

    tasks = compiled.plan(
        arch,
        dtypes or tuple(compiled.DTYPES),
        presets or cases.PRESETS,
        operations or cases.OPERATIONS,
        overrides,
        batches=batches or cases.BATCHES,
    )
    with progress_bar(total=len(tasks), desc=f"compiling for {arch}", leave=False) as bar:
        rows = compiled.compile_all(tasks, jobs, bar.update)
    steps = []
    if arch == predicted_step.PREDICTED_ARCH and operations is None and "bfloat16" in (dtypes or compiled.DTYPES):
        steps = [predicted_step.predict_step(fp8=fp8) for fp8 in (False, True)]
    if json:
        found = {"rows": [row.to_dict() for row in rows], "steps": [one.to_dict() for one in steps]}
        options.show_json({"arch": arch, **found})
    else:
        print(compiled.table(rows))
        if steps:
            print(f"\n{predicted_step.table(steps)}")
    faults = [fault for row in rows if (fault := row.fault(arch)) is not None]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        _say(f"{faults[0]}{more}")
        raise typer.Exit(1)


def _time_kernels(dtypes: Names, presets: Names, operations: Names, batches: list[int] | None, json: bool) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ValueError("timing kernels needs a GPU, and there is none here; `--aot sm_90` compiles them without one")
    from ..benchmarks.kernels import cases, compiled, harness, variants
    from ..engine.progress import progress_bar

    chosen = cases.cases(operations or cases.OPERATIONS, presets or cases.PRESETS, batches or cases.BATCHES)
    torch_dtypes = [compiled.DTYPES[name] for name in cases.known(dtypes or ["bfloat16"], compiled.DTYPES)]
    roofline = harness.measure_roofline("cuda")
    rows = [
        harness.compare(case, name, variant, dtype, "cuda", roofline).to_dict()
        for case in progress_bar(chosen, desc="timing", leave=False)
        for dtype in torch_dtypes
        for name, variant in variants.variants(case.operation, "cuda").items()
    ]
    if json:
        options.show_json({"device": torch.cuda.get_device_name(), "roofline": asdict(roofline), "rows": rows})
    else:
        print(harness.table(rows))


def _say(sentence: str) -> None:
    print(f"syncflow: {sentence}", file=sys.stderr)


def _parse_tiles(text: str) -> tuple[str, dict[str, int]]:
    operation, colon, values = text.partition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not colon or not all(equals and value.isdecimal() for _, equals, value in pairs):
        raise ValueError(f"--tiles is {text!r}; write it as OPERATION:NAME=VALUE,NAME=VALUE")
    return operation, {name: int(value) for name, _, value in pairs}
