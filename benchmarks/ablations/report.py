"""Tables of an ablation: means over seeds, differences from the baseline by seed, and the paper's sign beside ours.

Intervals hold 95 % of Student's t with one degree of freedom less than seeds. A difference pairs the cells of one seed,
which share prompts, clips and noise.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syncflow.training.evaluation.intervals import CONFIDENCE

from .ablation import Ablation, Score, Variant
from .catalogue import ABLATIONS
from .cells import Cell, finished

SIGNS = {1: "better", -1: "worse", 0: ""}


@dataclass(frozen=True)
class Estimate:
    """A mean over ``seeds`` seeds, from ``low`` to ``high`` with 95 % confidence; NaN for one seed."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        between = "" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f}{between}"


@dataclass(frozen=True)
class Row:
    """A variant by one score. ``difference`` is ``None`` for the baseline. ``paper``: 1 better than the baseline, -1
    worse, 0 not said or not of this score; ``ours``: the same of the difference, 0 undecided.
    """

    variant: str
    score: str
    value: Estimate
    difference: Estimate | None
    paper: int
    reported: str
    ours: int

    @property
    def agreement(self) -> str:
        """Of our sign with the paper's."""
        if self.difference is None or not self.paper:
            return ""
        return {0: "undecided", self.paper: "the same", -self.paper: "the opposite"}[self.ours]


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with its interval."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def rows(ablation: Ablation, cells: Sequence[Cell]) -> list[Row]:
    """A row for each score of each variant that has cells; differences are over the seeds that both have."""
    by_variant = {v.name: {c.seed: c.scores for c in cells if c.variant == v.name} for v in ablation.variants}
    baseline = ablation.variants[0]
    found = []
    for score in ablation.scores:
        base = _of(score, by_variant[baseline.name])
        for variant in ablation.variants:
            if own := _of(score, by_variant[variant.name]):
                found.append(_row(score, variant, own, {} if variant is baseline else base))
    return found


def _of(score: Score, cells: dict[int, Any]) -> dict[int, float]:
    return {seed: scores[score.name] for seed, scores in cells.items() if score.name in scores}


def _row(score: Score, variant: Variant, own: dict[int, float], base: dict[int, float]) -> Row:
    differences = [value - base[seed] for seed, value in own.items() if seed in base]
    difference = estimate(differences) if differences else None
    ours = difference.sign * score.better if difference else 0
    paper = variant.sign if score.compared else 0
    return Row(variant.name, score.label, estimate([*own.values()]), difference, paper, variant.reported, ours)


def markdown(ablation: Ablation, cells: Sequence[Cell]) -> str:
    """A heading, the question, the source, and the table."""
    lines = [
        f"### {ablation.name}",
        f"{ablation.question} ({ablation.source})",
        "\n".join(
            [
                f"| variant | score | mean | seeds | minus {ablation.variants[0].name} | ours | paper | sign |",
                "|---|---|--:|--:|--:|---|---|---|",
                *(_line(row) for row in rows(ablation, cells)),
            ]
        ),
    ]
    return "\n\n".join(lines)


def _line(row: Row) -> str:
    ours = "" if row.difference is None else SIGNS[row.ours] or "undecided"
    paper = f"{SIGNS[row.paper]}: {row.reported}" if row.paper else ""
    difference = "" if row.difference is None else str(row.difference)
    columns = row.variant, row.score, str(row.value), str(row.value.seeds), difference, ours, paper, row.agreement
    return f"| {' | '.join(columns)} |"


def as_json(ablation: Ablation, cells: Sequence[Cell]) -> dict[str, Any]:
    """The same for programs; an interval that one seed does not have is ``null``."""

    def numbers(found: Estimate | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {name: None if math.isnan(value) else value for name, value in vars(found).items()}

    table = [
        vars(row) | {"value": numbers(row.value), "difference": numbers(row.difference), "agreement": row.agreement}
        for row in rows(ablation, cells)
    ]
    head = {"ablation": ablation.name, "question": ablation.question, "source": ablation.source}
    return head | {"baseline": ablation.variants[0].name, "rows": table}


def write_tables(folder: Path) -> str:
    """Write the tables of all cells in ``folder``, and return those in Markdown."""
    found = [(ablation, cells) for ablation in ABLATIONS if (cells := finished(folder, ablation))]
    tables = "\n\n".join(markdown(*one) for one in found)
    objects = json.dumps([as_json(*one) for one in found], indent=1)
    for name, text in (("ablations.md", tables), ("ablations.json", objects)):
        part = folder / f"{name}.part"
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, folder / name)
    return tables
