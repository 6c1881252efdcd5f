"""The web page of an evaluation: its scores, and every clip to play beside its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.progress import progress_bar
from .contact_sheet import contact_sheet
from .inspection import inspect_clip
from .report import draw_report

if TYPE_CHECKING:
    from ...engine.types import Clip
    from .run import Evaluation, TaskScores

TEMPLATE = Path(__file__).with_name("page.html")
ON_SHEET = 16
HEADINGS = {"clip": "Clips from prompts", "v2a": "Soundtracks for given videos", "a2v": "Videos for given sounds"}


def write_page(
    evaluation: Evaluation,
    clips: Mapping[str, Sequence[Clip]],
    files: Mapping[str, Sequence[Path]],
    page: Path,
    *,
    title: str,
) -> Path:
    """Write ``page`` for clips by kind (``clip``, ``v2a``, ``a2v``), which are saved in ``files`` beside it, a plot of
    each and ``contact_sheet.png`` of the first 16 of a kind with a new video.
    """
    from jinja2 import Environment

    folder = page.parent
    first = next(clips[kind] for kind in ("clip", "a2v", "v2a") if kind in clips)[:ON_SHEET]
    contact_sheet(first, [_prompt(clip) for clip in first]).save(folder / "contact_sheet.png")
    sections = []
    with progress_bar(total=sum(map(len, clips.values())), desc="drawing plots", unit="clip") as bar:
        for kind in (kind for kind in HEADINGS if kind in clips):
            rows = []
            for clip, file in zip(clips[kind], files[kind], strict=True):
                inspection = inspect_clip(clip)
                plot = draw_report(clip, inspection, file.with_suffix(".png"))
                rows.append({"prompt": _prompt(clip), "video": file.name, "plot": plot.name, "f1": inspection.f1})
                bar.update()
            sections.append({"heading": HEADINGS[kind], "clips": rows})
    tables = [_rows(task) for task in evaluation.tasks.values()]
    if evaluation.networks:
        tables.append([_row(name, value, truth) for name, value, truth in evaluation.network_rows()])
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text())
    page.write_text(template.render(title=title, tables=tables, sections=sections), encoding="utf-8")
    return page


def _prompt(clip: Clip) -> str:
    return str(clip.provenance.get("prompt", ""))


def _rows(task: TaskScores) -> list[dict[str, object]]:
    """What a table has in each row."""
    truth = {name: value for _, name, value in task.truth.rows()} if task.truth else {}
    intervals = task.scores.intervals
    return [_row(label, value, truth.get(name), intervals.get(name)) for label, name, value in task.scores.rows()]


def _row(
    label: str, value: float | None, truth: float | None, interval: tuple[float, float] | None = None
) -> dict[str, object]:
    return {
        "label": label.strip(),
        "value": value,
        "interval": interval,
        "truth": truth,
        "part": label.startswith(" "),
    }
