"""``syncflow bench``: a step beside its limits, how its cost grows, its memory, and the history of all figures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from . import options

PICTURES = (".png", ".svg")
Plot = Annotated[Path | None, typer.Option("--output", "-o", help="Plot, a .png or .svg file; default: none.")]


def roofline(
    preset: Annotated[str, typer.Option(help="Preset whose step is counted.")] = "syncflow-tiny",
    batch: Annotated[int, typer.Option(min=1, help="Batch size, at least 1.")] = 1,
    device_name: Annotated[
        str | None,
        typer.Option(help="Device of a data sheet: h100, h200, a100 or b200; default: this machine, measured."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps, at least 1.")] = 20,
    output: Plot = None,
    history: options.History = None,
    json: options.Json = False,
) -> None:
    """Print FLOPs, bytes and launches of a step by component, and where the step stands beside the matrix rate.

    On this machine the step of the bundled model is timed. On an H100 the step of a preset is predicted from the
    machine code of its kernels.
    """
    if output is not None:
        options.check_output(output, *PICTURES)
    from ..benchmarks import roofline as rooflines
    from ..benchmarks import standing

    found, standings = standing.roofline(preset, batch, device_name, rounds, options.rounds_bar)
    if output is not None:
        rooflines.plot(found, standings, output)
    options.record(history, "bench roofline", {f"{one.name}, ms": one.ms for one in standings})
    if json:
        options.show_json({**found.to_dict(), "steps": [{"name": one.name, "ms": one.ms} for one in standings]})
    else:
        print(rooflines.table(found, standings))


def scaling(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of every value, at least 1, in alternation.")] = 5,
    runtime: options.Runtime = "auto",
    output: Plot = None,
    history: options.History = None,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Time sampling against frames, size, steps, batch, branches and takes, beside how the FLOPs grow."""
    if output is not None:
        options.check_output(output, *PICTURES)
    from ..benchmarks import scaling as scalings
    from ..benchmarks.alternating import Timing
    from ..benchmarks.step import runtimes
    from ..engine.engine import Engine

    engine = Engine.from_pretrained(options.model_folder(model), runtime="torch", precision="float32")
    ((name, chosen),) = runtimes(engine, [runtime], "float32").items()
    timing = Timing(rounds, progress=options.rounds_bar, device=str(engine.device))
    curves = [scalings.measure(engine, chosen, axis, timing) for axis in scalings.axes(engine)]
    if output is not None:
        scalings.plot(curves, output)
    options.record(history, "bench scaling", {f"exponent of {one.axis}": one.exponent for one in curves})
    if json:
        options.show_json({"runtime": chosen.runtime, "rows": [one.to_dict() for one in curves]})
    else:
        print(f"{engine.config.name} in {name}, from noise to latents\n\n{scalings.table(curves)}")


def memory(
    size: Annotated[
        list[str] | None,
        typer.Option(help="Model: tiny (the bundled one) or mid (wider, at 128x128); repeatable; default: both."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests that are sampled together, at least 1.")] = 2,
    at_most: Annotated[
        float | None,
        typer.Option(min=0, help="Exit code 1 if a prediction is off by more percent; default: print."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Preset, such as syncflow-xl, with random weights: one step and decoding under --memory."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the package of --preset, which is kept; default: a temporary one."),
    ] = None,
    allowed: options.Memory = None,
    precision: options.Precision = "bfloat16",
    quantization: options.Quantization = None,
    history: options.History = None,
    json: options.Json = False,
) -> None:
    """Compare the predicted peak memory of requests with the measured one, in PyTorch's allocator.

    With --preset of the whole process: text, one step and decoding of a clip by a model of full size.
    """
    if preset is not None:
        _full_size(preset, folder, allowed, precision, quantization, at_most, json=json)
        return
    if folder is not None or allowed is not None:
        raise ValueError("--folder and --memory belong to --preset; name one, such as --preset syncflow-xl")
    from ..benchmarks import memory as memories

    rows = [memories.measure(name, batch, quantization) for name in dict.fromkeys(size or memories.MODELS)]
    options.record(history, "bench memory", {f"{one.model}, peak in MB": one.measured / 1e6 for one in rows})
    if json:
        options.show_json({"rows": [one.to_dict() for one in rows]})
    else:
        print(memories.table(rows))
    if at_most is not None and any(abs(one.error) > at_most / 100 for one in rows):
        raise typer.Exit(1)


def _full_size(
    preset: str,
    folder: Path | None,
    allowed: str | None,
    precision: str,
    quantization: str | None,
    at_most: float | None,
    *,
    json: bool,
) -> None:
    if allowed is None:
        raise ValueError("--preset needs --memory, such as --memory 12GB")
    from ..benchmarks import full_size

    with tempfile.TemporaryDirectory(prefix="syncflow-") as temporary:
        found = full_size.measure(preset, folder or Path(temporary) / preset, precision, allowed, quantization)
    if json:
        options.show_json(found.to_dict())
    else:
        print(full_size.table(found))
    if at_most is not None and abs(found.whole.error) > at_most / 100:
        raise typer.Exit(1)


def quantization(
    size: Annotated[
        list[str] | None,
        typer.Option(help="Model: tiny (the bundled one) or mid (wider, random weights); repeatable; default: both."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Euler steps of the clip; default: the model's.")] = None,
    json: options.Json = False,
) -> None:
    """Measure the error of weights in 8 bits against float32: of velocities, step by step, and of a guided clip."""
    from ..benchmarks import memory as memories
    from ..benchmarks import quantization as errors

    rows = [errors.measure(name, steps) for name in dict.fromkeys(size or memories.MODELS)]
    if json:
        options.show_json({"rows": [one.to_dict() for one in rows]})
    else:
        print(errors.table(rows))


def history(
    folder: Annotated[Path, typer.Argument(help="Folder that `--history` and `make bench` wrote to.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page of trends, an .html file.")] = Path(
        "trends.html"
    ),
) -> None:
    """Write a page of trends from a history: a section for each kind of machine, a chart for each figure."""
    options.check_output(output, ".html")
    from ..benchmarks import history as histories

    print(f"{output}: {histories.write_page(folder, output)} runs")
