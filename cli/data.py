"""``syncflow data``: make training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Make training data.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keeps ``impacts`` a command of its own while it is the only one."""


@app.command()
def impacts(
    out: Annotated[Path, typer.Argument(help="Folder for the clips and metadata.jsonl; an interrupted run goes on.")],
    clips: Annotated[int, typer.Option(min=1, help="How many clips.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Clip i depends on the seed and i alone.")] = 0,
    split: Annotated[
        Literal["train", "unseen"], typer.Option(help="Kinds of object that training sees, or those it never sees.")
    ] = "train",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
) -> None:
    """Render balls that fall, bounce and strike a floor, with the sound of every impact and its exact time."""
    from ..training.data.impacts import render_impacts

    render_impacts(out, clips, seed, split=split, workers=workers)
    print(f"{out}: {clips} clips")
