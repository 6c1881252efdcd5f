"""``syncflow bench``: the engine beside another revision, the profile of a step, and the capacity of replicas."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options


def compare(
    revision: Annotated[str, typer.Argument(help="Commit, branch or tag to compare the working tree with.")],
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size, at least 1; repeatable; default: 1 and 8.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Timed rounds of both, at least 5, in alternation.")] = 20,
    clip: Annotated[bool, typer.Option("--clip", help="Also time whole clips, from a sentence to an mp4.")] = False,
    runtime: options.Runtime = "auto",
    at_least: Annotated[
        float | None,
        typer.Option(min=0, help="Exit code 1 if a ratio is below this with 95 % confidence; default: only print."),
    ] = None,
    slow_down: Annotated[
        float,
        typer.Option(min=0, help="Percent by which steps of the working tree are slowed, to see --at-least fail."),
    ] = 0.0,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Time steps of the working tree beside those of another git revision, in alternation.

    The ratio is the revision's time over the working tree's: above 1 the working tree is faster.
    """
    from ..benchmarks import compare as comparisons

    found = comparisons.compare_revision(
        revision,
        comparisons.workloads(batch or (1, 8), clip=clip),
        rounds,
        model=model,
        runtime=runtime,
        slow_down=slow_down / 100,
        progress=options.rounds_bar,
        report=lambda text: print(f"syncflow: {text}", file=sys.stderr),
    )
    if json:
        options.show_json(found | {"rows": [row.to_dict() for row in found["rows"]]})
    else:
        print(comparisons.table(found))
    slower = [] if at_least is None else comparisons.faults(found["rows"], at_least)
    for fault in slower:
        print(f"syncflow: {fault}", file=sys.stderr)
    if slower:
        raise typer.Exit(1)


def profile(
    batch: Annotated[int, typer.Option(min=1, help="Batch size, at least 1.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Profiled steps, at least 1, after two others.")] = 10,
    operations: Annotated[int, typer.Option(min=1, help="Operations to print, slowest first, at least 1.")] = 15,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the Chrome trace (JSON).")] = Path(
        "trace.json"
    ),
    runtime: options.Runtime = "auto",
    precision: options.RuntimePrecision = "auto",
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Profile a denoising step: time by part and by operation, and a trace for Perfetto or chrome://tracing."""
    from ..benchmarks import profiling
    from ..benchmarks.step import runtimes
    from ..engine.engine import Engine

    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    ((name, chosen),) = runtimes(engine, [runtime], precision).items()
    found = profiling.profile(engine, chosen, batch, steps, output)
    if json:
        options.show_json({"runtime": chosen.runtime, "batch": batch, "trace": str(output), **found.to_dict()})
    else:
        print(profiling.table(found, operations))
        print(f"runtime {name}, batch {batch}, {steps} steps; trace: {output}")


def capacity(
    rate: Annotated[float, typer.Option(min=1e-6, help="Requests a second, on average, above 0.")],
    p95: Annotated[float, typer.Option(min=0, help="Seconds in which 95 % of the requests are to be done.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a request, at least 1; default: the model's.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which a request is dropped; default: none.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests that a replica steps together at most, at least 1.")] = 8,
    most: Annotated[int, typer.Option(min=1, help="Replicas to try at most, at least 1.")] = 64,
    step_ms: Annotated[
        tuple[float, float] | None,
        typer.Option(help="FIXED and EACH: a step of n requests takes FIXED + EACH * n ms; default: timed here."),
    ] = None,
    decode_ms: Annotated[
        float, typer.Option(min=0, help="With --step-ms: milliseconds of decoding a clip, beside the steps.")
    ] = 0.0,
    runtime: options.Runtime = "auto",
    precision: options.RuntimePrecision = "auto",
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Simulate how many replicas of the engine serve a load in time; requests arrive as a Poisson process."""
    from ..benchmarks import capacity as planning
    from ..benchmarks.alternating import Timing
    from ..benchmarks.arrivals import StepCost
    from ..engine.engine import Engine

    if step_ms is None:
        engine = Engine.from_pretrained(options.model_folder(model), runtime=runtime, precision=precision)
        cost = planning.measured_cost(engine, (1, 2, 4, 8), Timing(10, progress=options.rounds_bar))
        count = engine.config.sampling.steps if steps is None else steps
    else:
        fixed, each = (1e-3 * ms for ms in step_ms)
        cost, count = StepCost(fixed, each, 1e-3 * decode_ms, beside=True), 50 if steps is None else steps
    services = planning.plan(planning.Load(rate, count, timeout=deadline), cost, batch, p95, most)
    if json:
        options.show_json({"cost": asdict(cost), "rows": [one.to_dict() for one in services]})
    else:
        print(planning.table(services))
        print(f"{services[-1].replicas} replicas serve {rate:g} requests a second of {count} steps within {p95:g} s")
