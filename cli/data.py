"""``syncflow data``: make training data, or list published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options

app = typer.Typer(help="Make training data, or list published data.", no_args_is_help=True)


@app.command()
def impacts(
    out: Annotated[
        Path, typer.Argument(help="Folder for the clips and metadata.jsonl; a run that was interrupted continues.")
    ],
    clips: Annotated[int, typer.Option(min=1, help="Number of clips, at least 1.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed, from 0; clip i depends on the seed and i alone.")] = 0,
    split: Annotated[
        Literal["train", "unseen"], typer.Option(help="Kinds of objects: train, or unseen, which no training clip has.")
    ] = "train",
    seconds: Annotated[
        str, typer.Option(help="Length of the clips, 1 to 60; several, separated by commas, are taken in turn.")
    ] = "2",
    kinds: options.Kinds = "bounce",
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes; default: one per core.")] = None,
) -> None:
    """Render clips of objects that strike a floor, a wall or each other, with the sound and the exact time of every
    impact.
    """
    from ..training.data.impacts import render_impacts

    lengths = options.numbers("seconds", seconds)
    render_impacts(out, clips, seed, split=split, seconds=lengths, kinds=options.names(kinds), workers=workers)
    print(f"{out}: {clips} clips")


@app.command()
def shards(
    data: Annotated[list[Path], typer.Argument(help="Clips as syncflow train takes them.")],
    out: Annotated[Path, typer.Argument(help="Folder for 000000.tar, 000001.tar, …")],
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Clips of a shard, at least 1.")] = 1000,
) -> None:
    """Write clips with their captions and metadata into WebDataset shards."""
    from ..training.data.clips import find_clips
    from ..training.data.shards import write_shards

    entries = [entry for entry in find_clips(data) if not entry.fault]
    print(f"{out}: {len(entries)} clips in {len(write_shards(entries, out, clips_per_shard))} shards")


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Folder of the set, as it is distributed.")],
    set_: Annotated[
        Literal["vggsound", "greatest-hits", "avsync15"], typer.Option("--set", help="Which set of clips it is.")
    ],
) -> None:
    """List a published set of clips in train.jsonl and test.jsonl in its folder, split by source video."""
    from ..training.data.published import list_published

    print(f"{folder}: {list_published(folder, set_)}")
