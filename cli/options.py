"""Options and helpers that several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="Model package (a folder), or the name of a bundled one: syncflow-tiny-4step, syncphony-tiny or "
        "harmony-tiny; default: syncflow-tiny.",
    ),
]
Kinds = Annotated[
    str,
    typer.Option(help="Kinds of events of rendered clips: bounce, hammer, swing, collision; several in turn."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
History = Annotated[
    Path | None,
    typer.Option("--history", help="Folder to add the figures to (see `syncflow bench history`); default: none."),
]
Runtime = Annotated[
    str,
    typer.Option(
        help="Runtime: torch, torch-plain, native, compiled, onnxruntime, openvino, aoti or tensorrt; default: auto, "
        "the fastest (see `syncflow bench calibrate`)."
    ),
]
RuntimePrecision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--precision", help="Precision to compute in; auto: float32 on a CPU, bfloat16 or float16 on a GPU."),
]
CudaGraphs = Annotated[
    bool | None,
    typer.Option("--cuda-graphs/--no-cuda-graphs", help="Capture passes as CUDA graphs; on for auto on a GPU."),
]
Overlap = Annotated[
    bool | None,
    typer.Option(
        "--overlap/--no-overlap",
        help="Compute the second tower beside the next step of the first, in a one-way model on a GPU; on for auto.",
    ),
]
Fp8 = Annotated[
    bool, typer.Option("--fp8", help="8-bit floats in linear layers of the video blocks, approximate; GPU only.")
]
Autotune = Annotated[
    bool, typer.Option("--autotune", help="Time tile sizes when --runtime compiled compiles, which takes minutes.")
]
BlockOffload = Annotated[
    bool,
    typer.Option("--block-offload", help="Weights of the video blocks on the host, moved one block ahead; GPU only."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="Most that weights and tensors may take, such as 12GB: parts of the model are loaded when they are used, "
        "and kept or released in turn; default: everything is kept.",
    ),
]
Quantization = Annotated[
    Literal["int8_weight_only"] | None,
    typer.Option(
        "--quantization",
        help="Weights of the blocks of d-DiT and text encoder in 8 bits, approximate: int8_weight_only; default: none.",
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the computation; bfloat16 and float16 are approximate (see `syncflow verify`)."),
]


def model_folder(model: Path | None) -> Path:
    """The folder of a model: a bundled one for None and for its name."""
    from ..engine import engine

    return engine.model_folder(model)


def choices(name: str, text: str, known: Sequence[Any]) -> list[Any]:
    """Comma-separated values, without duplicates; each must be one of ``known``."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        if one not in known:
            raise ValueError(f"{name} is {one!r}; it must be one of {', '.join(known)}")
    return found


def numbers(name: str, text: str) -> list[float]:
    """Comma-separated finite numbers, at least one."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} is {text!r}; write a number, or several with commas between them, for example 2,4,8")
    return found


def names(text: str) -> list[Any]:
    """Comma-separated names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(name: str, text: str, most: int) -> list[int]:
    """Comma-separated whole numbers from 1 to ``most``, at least one."""
    found = numbers(name, text)
    for one in found:
        if not (one.is_integer() and 1 <= one <= most):
            raise ValueError(f"{name} is {one:g}; it must be a whole number from 1 to {most}")
    return [int(one) for one in found]


def size(text: str | None) -> tuple[int | None, int | None]:
    """``WxH`` in pixels -> (width, height)."""
    if text is None:
        return None, None
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {text!r}; write it as WIDTHxHEIGHT, for example 64x64")
    return int(width), int(height)


def check_output(path: Path, *suffixes: str) -> None:
    """Check that an output can be written, and make its folder. Raises ``ValueError`` if not."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"the output {path} must end in {' or '.join(suffixes)}")
    from ..engine.media.destinations import check_destination

    check_destination(path)
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; it must be a folder or not exist yet")
    if folder.exists() and not os.access(folder, os.W_OK):
        raise ValueError(f"the folder {folder} cannot be written to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made ({error.strerror})") from None


def show_json(values: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(values, indent=2))


def record(history: Path | None, command: str, figures: Mapping[str, float]) -> None:
    """Add figures to the history in a folder, unless that is None."""
    if history is not None:
        from ..benchmarks.history import record

        record(history, command, figures)


def rounds_bar(rounds: Sequence[int], desc: str) -> Iterable[int]:
    """Rounds with a progress bar on standard error."""
    from ..engine.progress import progress_bar

    return progress_bar(rounds, desc=desc, unit="round", leave=False)
