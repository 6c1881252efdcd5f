"""The history of benchmarks: a JSON line for every run in a file for each kind of machine, and a page of trends.

Runs are comparable within a kind of machine: processor, instruction level and number of threads. The page needs no
network and no script.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from syncflow.engine.media.destinations import destination

from .machine import Machine, this_machine

WIDTH, HEIGHT, MARGIN = 300, 84, 8
STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --quiet: #60646c; --line: #0b68cb; --edge: #d9d9e0; --page: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #edeef0; --quiet: #b0b4ba; --line: #70b8ff; --edge: #43484e; --page: #111113 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem }
h2 { margin-top: 2.5rem; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
.quiet, figcaption small { color: var(--quiet) }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }
figure { border: 1px solid var(--edge); border-radius: 6px; margin: 0; padding: .75rem }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .5rem; justify-content: space-between }
svg { display: block; width: 100%; height: auto; margin-top: .5rem }
polyline { fill: none; stroke: var(--line); stroke-width: 1.5 }
circle { fill: var(--line) }
svg line { stroke: var(--edge) }
"""


@dataclass(frozen=True)
class Run:
    """The ``figures`` of one run of a ``command``, by name; ``date`` in ISO 8601."""

    command: str
    date: str
    machine: Machine
    figures: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def record(folder: Path, command: str, figures: Mapping[str, float], device: str = "cpu") -> None:
    """Add a run of this process, now, to the history in a folder."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    append(folder, Run(command, date, this_machine(device), figures))


def append(folder: Path, run: Run) -> Path:
    """Add a run to the file of its kind of machine. Raises ``ValueError`` for a folder that cannot be written."""
    path = folder / f"{run.machine.kind}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run.to_dict()) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write the history {path}: {error.strerror}") from None
    return path


def read(folder: Path) -> dict[str, list[Run]]:
    """Runs by kind of machine, in the order of time.

    Raises ``ValueError`` for a folder without a history, and for a line that is none of :func:`append`.
    """
    found: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        runs = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                machine = Machine(**values["machine"])
                figures = {str(name): float(value) for name, value in values["figures"].items()}
                runs.append(Run(str(values["command"]), str(values["date"]), machine, figures))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number} is no run of a benchmark ({error})") from None
        if runs:
            found[path.stem] = sorted(runs, key=lambda run: run.date)
    if not found:
        raise ValueError(f"{folder} holds no history; benchmarks with `--history {folder}` write one")
    return found


def page(history: Mapping[str, Sequence[Run]]) -> str:
    """The trends of all figures as HTML: a section for each kind of machine, a chart for each figure."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>syncflow: benchmarks</title><style>{STYLE}</style></head><body>",
        "<h1>Benchmarks</h1>",
        '<p class="quiet">Each point is a run, from the oldest on the left to the newest on the right. The scale of '
        "every chart begins at 0. Point at a value for its date and revision.</p>",
    ]
    for runs in history.values():
        newest = runs[-1].machine
        parts += [
            f"<h2>{escape(newest.processor)}, {escape(newest.instructions)}</h2>",
            f'<p class="quiet">{escape(str(newest))}; {len(runs)} runs, the newest of {escape(runs[-1].date)}</p>',
        ]
        for command in dict.fromkeys(run.command for run in runs):
            parts.append(f'<h3>{escape(command)}</h3><div class="charts">')
            parts += _charts([run for run in runs if run.command == command])
            parts.append("</div>")
    return "\n".join([*parts, "</body></html>", ""])


def write_page(folder: Path, path: Path) -> int:
    """Write the page of a history. -> the number of runs in it."""
    history = read(folder)
    with destination(path) as beside:
        beside.write_text(page(history), encoding="utf-8")
    return sum(map(len, history.values()))


def _charts(runs: Sequence[Run]) -> Iterable[str]:
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        points = [(run, run.figures[name]) for run in runs if name in run.figures]
        newest, least, most = points[-1][1], min(p[1] for p in points), max(p[1] for p in points)
        yield (
            f"<figure><figcaption><span>{escape(name)}</span><strong>{newest:.4g}</strong>"
            f"<small>{least:.4g} to {most:.4g}</small></figcaption>{_chart(name, points)}</figure>"
        )


def _chart(name: str, points: Sequence[tuple[Run, float]]) -> str:
    top = max(value for _, value in points) or 1.0
    across = (WIDTH - 2 * MARGIN) / max(1, len(points) - 1)
    places = [
        (MARGIN + i * across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(0.0, value) / top)
        for i, (_, value) in enumerate(points)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(_about(run, value))}</title></circle>'
        for (x, y), (run, value) in zip(places, points, strict=True)
    )
    base = f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{HEIGHT - MARGIN}" y2="{HEIGHT - MARGIN}"/>'
    label = escape(f"{name}: {len(points)} runs", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'{base}<polyline points="{line}"/>{dots}</svg>'
    )


def _about(run: Run, value: float) -> str:
    revision = f", {run.machine.revision}" if run.machine.revision else ""
    return f"{value:.4g}: {run.date}{revision}, load {run.machine.load:g}"
