"""Options that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Model = Annotated[
    Path | None, typer.Option("--model", help="Model folder (an engine package); the bundled syncflow-tiny by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Runtime = Annotated[
    str,
    typer.Option(
        help="Who computes: torch, torch-plain, native, compiled, onnxruntime, openvino, aoti, …; auto takes the "
        "fastest, which it times on a CPU (`syncflow bench calibrate`)."
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="Precision to compute in; less than float32 is approximate, and `syncflow verify` says how far."),
]


def model_folder(model: Path | None) -> Path:
    """The folder of a model; the bundled one where none is named, or by its name."""
    from ..engine.engine import bundled_model

    bundled = bundled_model()
    return bundled if model is None or (str(model) == bundled.name and not model.exists()) else model


def choices(name: str, text: str, known: Sequence[Any]) -> list[Any]:
    """Several of what is known, written with commas, each once."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        if one not in known:
            raise ValueError(f"{name} is {one!r}; it must be one of {', '.join(known)}")
    return found


def size(text: str | None) -> tuple[int | None, int | None]:
    """``WxH`` in pixels -> (width, height)."""
    if text is None:
        return None, None
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {text!r}; write it as WIDTHxHEIGHT, for example 64x64")
    return int(width), int(height)


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse an output that cannot be written before any work is done."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"the output {path} must end in {' or '.join(suffixes)}")
    from ..engine.media.destinations import check_destination

    check_destination(path)
    folder = path.parent
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"the folder {folder} cannot be written to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made ({error.strerror})") from None


def show_json(values: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(values, indent=2))
