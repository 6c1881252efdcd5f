"""Cells: the scores of one variant with one seed, each a file, so that an interrupted run continues where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ablation import Ablation, Variant

FOLDER = "cells"


@dataclass(frozen=True)
class Cell:
    """``settings``: everything besides ablation, variant and seed that the scores depend on."""

    ablation: str
    variant: str
    seed: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float]
    processor_seconds: float


def cell_file(folder: Path, ablation: Ablation, variant: Variant, seed: int) -> Path:
    """Where the cell lies; variants are numbered in the order of the ablation."""
    return folder / FOLDER / ablation.name / f"{ablation.variants.index(variant)}-{seed}.json"


def read_cell(file: Path) -> Cell | None:
    """A finished cell, or ``None``. Raises ``ValueError`` for a file that is none."""
    if not file.is_file():
        return None
    try:
        return Cell(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no cell of an ablation ({error}); remove it to measure it again") from None


def measured(
    folder: Path,
    ablation: Ablation,
    variant: Variant,
    seed: int,
    settings: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
) -> Cell:
    """The cell, read where it is finished, else from ``measure``, whose numbers are kept.

    Raises ``ValueError`` where the folder holds it with other settings.
    """
    file = cell_file(folder, ablation, variant, seed)
    if known := read_cell(file):
        changed = [f"{key} {known.settings.get(key)!r} not {value!r}" for key, value in settings.items()
                   if known.settings.get(key) != value]  # fmt: skip
        if changed:
            raise ValueError(f"{file} was measured with other settings ({', '.join(changed)}); choose another folder")
        return known
    start = time.process_time()
    numbers = {name: float(value) for name, value in measure().items() if isinstance(value, int | float)}
    seconds = round(time.process_time() - start, 1)
    cell = Cell(ablation.name, variant.name, seed, settings, numbers, seconds)
    _write(file, cell)
    return cell


def finished(folder: Path, ablation: Ablation) -> list[Cell]:
    """The cells of an ablation that the folder holds, by variant and then by seed."""
    files = sorted(
        (folder / FOLDER / ablation.name).glob("*-*.json"), key=lambda file: [*map(int, file.stem.split("-"))]
    )
    return [cell for file in files if (cell := read_cell(file))]


def _write(file: Path, cell: Cell) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(vars(cell), indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
