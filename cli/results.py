"""Saving generated clips, for the commands that generate them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.types import Clip

STANDARD_OUTPUT = "-"
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".gif")
Takes = Annotated[
    int,
    typer.Option(
        help="Soundtracks for one video, 1 to 64, with consecutive audio seeds; saved as x-1.mp4, x-2.mp4, … for x.mp4."
    ),
]
KeepLatents = Annotated[
    bool,
    typer.Option(
        "--keep-latents", help="Save the video latents beside x.mp4, as x.latents.safetensors, for `syncflow retake`."
    ),
]


def outputs(output: Path, takes: int, *suffixes: str, keep_latents: bool) -> list[Path]:
    """Paths for the takes of a clip: ``x.mp4`` for one, ``x-1.mp4``, ``x-2.mp4``, … for several; ``-`` is standard
    output.

    Raises ``ValueError`` for a path that cannot be written.
    """
    if str(output) == STANDARD_OUTPUT:
        _check_standard_output(takes, suffixes, keep_latents=keep_latents)
        return [output]
    paths = [output] if takes == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(takes)]
    for path in paths:
        options.check_output(path, *suffixes)
    if keep_latents and output.suffix.lower() != ".mp4":
        raise ValueError(f"--keep-latents needs an .mp4 output, and the output is {output}")
    if keep_latents:
        from ..engine.media.writing import latents_path

        for path in paths:
            options.check_output(latents_path(path))
    return paths


def show_memory_plan(engine: Engine) -> None:
    """Print what an engine under a budget will take, on standard error, before anything is loaded."""
    if engine.memory_plan is not None:
        print(f"syncflow: {engine.memory_plan}", file=sys.stderr)


def check_json(output: Path, *, json: bool) -> None:
    """Raise ``ValueError`` where a clip and JSON would both go to standard output."""
    if json and str(output) == STANDARD_OUTPUT:
        raise ValueError("--json prints to standard output, where -o - writes the clip; name a file with -o")


def _check_standard_output(takes: int, suffixes: Sequence[str], *, keep_latents: bool) -> None:
    if takes > 1 or keep_latents:
        raise ValueError("standard output takes one clip and no latents; name a file with -o")
    if suffixes and ".mp4" not in suffixes:
        raise ValueError(f"standard output takes an mp4, and this is {' or '.join(suffixes)}; name a file with -o")
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal; send it to a file or a program, or name a file with -o")


class Stopwatch:
    """Wall times of a command, from the construction on."""

    def __init__(self) -> None:
        self.began = self.loaded = time.perf_counter()

    def model_loaded(self) -> None:
        """The model has been loaded."""
        self.loaded = time.perf_counter()


def write(clips: Sequence[Clip], paths: Sequence[Path], watch: Stopwatch, *, keep_latents: bool, json: bool) -> None:
    """Save the takes of one clip, and print a line for each, or one JSON object."""
    sampled = time.perf_counter()
    streamed = str(paths[0]) == STANDARD_OUTPUT
    if streamed:
        from ..engine.media import stream_clip

        stream_clip(clips[0], sys.stdout.buffer)
    else:
        for clip, path in zip(clips, paths, strict=True):
            clip.save(path, latents=keep_latents)
    total, first, several = time.perf_counter() - watch.began, clips[0], len(clips) > 1
    if not json:
        for clip, path in zip(clips, paths, strict=True):
            kind = "sound alone" if path.suffix.lower() == ".wav" else f"{clip.frames.shape[2]}x{clip.frames.shape[1]}"
            ending = f"audio seed {_seed(clip)}" if several else f"{total:.1f} s"
            print(f"{path}: {clip.seconds:g} s, {kind}, {ending}", file=sys.stderr if streamed else sys.stdout)
        if several:
            print(f"{len(clips)} takes, {total:.1f} s")
        return
    frames, height, width, _ = first.frames.shape
    made = {name: value for name, value in first.provenance.items() if not (several and name == "audio_seed")}
    options.show_json(
        {
            **({"paths": [str(path) for path in paths]} if several else {"path": str(paths[0])}),
            "seconds": first.seconds,
            "frames": frames,
            **({"width": width, "height": height, "fps": first.fps} if frames else {}),
            "sample_rate": first.sample_rate,
            "load_s": round(watch.loaded - watch.began, 3),
            "sampling_s": round(sampled - watch.loaded, 3),
            "total_s": round(total, 3),
            **made,
            **({"audio_seeds": [_seed(clip) for clip in clips]} if several else {}),
        }
    )


def _seed(clip: Clip) -> int:
    """The seed of the audio."""
    return int(clip.provenance.get("audio_seed", clip.provenance["seed"]))
