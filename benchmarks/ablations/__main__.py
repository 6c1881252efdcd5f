"""``python -m syncflow.benchmarks.ablations FOLDER``: measure the ablations and write their tables.

Each variant is measured with each seed, by sampling a given model or by a short training run of its own, and kept as a
cell in ``FOLDER/cells``, so that the same command continues where it was interrupted. ``FOLDER/ablations.md`` and
``ablations.json`` have the tables of all cells in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from syncflow.engine.progress import progress_bar

from .ablation import Ablation
from .catalogue import select
from .measuring import Measurement
from .report import write_tables
from .scoring import Size


def run(measurement: Measurement, ablations: list[Ablation], seeds: int) -> None:
    """Measure every cell, one ablation after the other."""
    cells = [(one, variant, seed) for one in ablations for seed in range(seeds) for variant in one.variants]
    bar = progress_bar(cells, unit="cell")
    for ablation, variant, seed in bar:
        bar.set_description(f"{ablation.name}, {variant.name}")
        measurement.measure(ablation, variant, seed)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of cells and tables; an interrupted run continues.")],
    only: Annotated[
        str | None, typer.Option(help="Names of ablations with commas between; default: all whose model is there.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Seeds of each variant; 0: only write the tables.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a training run.")] = Size.steps,
    batch: Annotated[int, typer.Option(min=1, help="Clips of an optimiser step.")] = Size.batch,
    clips: Annotated[int, typer.Option(min=2, help="Clips of each task that a cell is scored on.")] = Size.clips,
    sampling_steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Sampling steps where an ablation does not name others.")
    ] = Size.sampling_steps,
    data: Annotated[
        Path | None, typer.Option(help="Folder of captioned clips to train on; default: rendered ones.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a model that is not bundled; repeatable.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="Runtime that samples; default: auto.")] = "auto",
) -> None:
    """Measure the cells that FOLDER does not have, and print the tables."""
    size = Size(clips, sampling_steps, steps, batch)
    try:
        measurement = Measurement(folder, size, data=data, models=_folders(model or []), runtime=runtime)
        ablations = select(only)
        if only is None:
            ablations = [one for one in ablations if measurement.has_model(one)]
        run(measurement, ablations, seeds)
        print(write_tables(folder))
    except ValueError as error:
        sys.exit(f"error: {error}")


def _folders(pairs: list[str]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--model takes NAME=FOLDER, not {pair!r}")
        found[name] = Path(path)
    return found


if __name__ == "__main__":
    typer.run(main)
