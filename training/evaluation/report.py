"""A clip on one page: frames, motion, waveform and spectrogram over one time axis, with visible events and audio
onsets.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .inspection import SILENCE_DB, Inspection, inspect_clip
from .mel import hz_to_mel, mel_spectrogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...engine.types import Clip

__all__ = ["Inspection", "draw_report", "inspect_clip"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM, GAP = 12.0, 0.8, 0.2, 0.95, 0.5, 0.14
PICTURE_HEIGHT, MOTION_HEIGHT, WAVE_HEIGHT, SPECTRUM_HEIGHT = 0.9, 1.2, 1.1, 1.4
DPI = 120
INK, QUIET, EDGE = "#1f2933", "#6b7785", "#cbd2d9"
EVENT, ONSET, MOTION, WAVE = "#0b7285", "#e8590c", "#3b8ea5", "#52606d"
QUIETEST_DB, LOUDEST_DB = -75.0, -15.0
LEAST_HEIGHT = 0.05
MEL_BANDS, LABELLED_HZ = 96, (250, 1000, 4000, 16000)
LONGEST_TITLE, LONGEST_LINE, LONGEST_FACT = 110, 165, 24
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8,
}


def draw_report(clip: Clip, inspection: Inspection, path: str | Path) -> Path:
    """Draw ``clip`` and its ``inspection`` as a PNG and return its path.

    Raises ``ValueError`` for a name that does not end in .png and for a place that cannot be written.
    """
    from matplotlib import rc_context

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"cannot write {path.name}: the report is a picture, its name must end in .png")
    with rc_context(STYLE):
        figure = _figure(clip, inspection)
        try:
            _save(figure, path)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _figure(clip: Clip, inspection: Inspection) -> Figure:
    from matplotlib.figure import Figure

    span = max(inspection.seconds, inspection.sound_seconds)
    strip = (WIDTH - LEFT - RIGHT) * inspection.seconds / span
    shape = inspection.width / inspection.height
    count = int(np.clip(strip / (PICTURE_HEIGHT * shape), 1, inspection.frames))
    heights = [min(strip / count / shape, 2 * PICTURE_HEIGHT), MOTION_HEIGHT, WAVE_HEIGHT, SPECTRUM_HEIGHT]
    total = TOP + sum(heights) + GAP * (len(heights) - 1) + BOTTOM
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    panels: list[Axes] = []
    edge = total - TOP
    for height in heights:
        edge -= height
        box = (LEFT / WIDTH, edge / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total)
        panels.append(figure.add_axes(box, sharex=panels[0] if panels else None))
        edge -= GAP
    _draw_frames(panels[0], clip, count)
    _draw_motion(panels[1], inspection)
    _draw_waveform(panels[2], clip)
    _draw_spectrogram(panels[3], clip)
    _mark(panels, inspection)
    for panel in panels[:-1]:
        panel.tick_params(axis="x", labelbottom=False, length=0)
    panels[0].set_xlim(0, span)
    panels[-1].set_xlabel("time (s)")
    figure.align_ylabels(panels)
    _write_heading(figure, clip, inspection)
    return figure


def _draw_frames(panel: Axes, clip: Clip, count: int) -> None:
    """``count`` frames side by side, each over its own stretch of time."""
    slot = clip.seconds / count
    for k in range(count):
        picture = clip.frames[min(len(clip.frames) - 1, round((k + 0.5) * slot * clip.fps))]
        panel.imshow(picture, extent=(k * slot, (k + 1) * slot, 0, 1), aspect="auto", interpolation="nearest")
        panel.axvline((k + 1) * slot, color="white", linewidth=1.5)
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    panel.set_ylabel("frames")


def _draw_motion(panel: Axes, inspection: Inspection) -> None:
    energy = np.array(inspection.motion)
    panel.fill_between(inspection.motion_times, energy, color=MOTION, alpha=0.25, linewidth=0)
    panel.plot(inspection.motion_times, energy, color=MOTION, linewidth=1.3)
    panel.set_ylim(0, 1.35 * max(float(energy.max(initial=0.0)), 0.5))
    panel.locator_params(axis="y", nbins=3)
    panel.set_ylabel("motion\n(grey levels)")


def _draw_waveform(panel: Axes, clip: Clip) -> None:
    """Highest and lowest sample of every column of the picture."""
    columns = int(WIDTH * DPI)
    pieces = [piece for piece in np.array_split(clip.waveform, columns) if len(piece)]
    if pieces:
        times = (np.arange(len(pieces)) + 0.5) * len(clip.waveform) / clip.sample_rate / len(pieces)
        low, high = [piece.min() for piece in pieces], [piece.max() for piece in pieces]
        panel.fill_between(times, low, high, color=WAVE, linewidth=0.4, edgecolor=WAVE)
    height = max(1.15 * float(np.abs(clip.waveform).max(initial=0.0)), LEAST_HEIGHT)
    panel.set_ylim(-height, height)
    panel.locator_params(axis="y", nbins=3)
    panel.set_ylabel("waveform")


def _draw_spectrogram(panel: Axes, clip: Clip) -> None:
    panel.set_ylabel("spectrum\n(kHz)")
    if len(clip.waveform) < clip.sample_rate // 50:
        panel.set_yticks([])
        return
    window = 1 << round(np.log2(clip.sample_rate / 40))
    energy = mel_spectrogram(clip.waveform, clip.sample_rate, size=window, hop=window // 8, bands=MEL_BANDS)
    level = 10 * np.log10(np.maximum(energy / (window / 4) ** 2, 1e-12))
    top = float(hz_to_mel(clip.sample_rate / 2))
    seconds = len(clip.waveform) / clip.sample_rate
    panel.imshow(
        level,
        extent=(0, seconds, 0, top),
        origin="lower",
        aspect="auto",
        cmap="BuPu",
        vmin=QUIETEST_DB,
        vmax=LOUDEST_DB,
    )
    labelled = [hz for hz in LABELLED_HZ if hz < clip.sample_rate / 2]
    panel.set_yticks([float(hz_to_mel(hz)) for hz in labelled], [f"{hz / 1000:g}" for hz in labelled])
    panel.set_ylim(0, top)


def _mark(panels: list[Axes], inspection: Inspection) -> None:
    """Onsets as lines through all panels, events as triangles above the motion; hollow and dashed without a partner."""
    matched_events, matched_onsets = {event for event, _ in inspection.pairs}, {onset for _, onset in inspection.pairs}
    for onset in inspection.onsets:
        for panel in panels:
            panel.axvline(
                onset, color=ONSET, linewidth=1.2, linestyle="-" if onset in matched_onsets else (0, (2, 3)), zorder=3
            )
    motion = panels[1]
    height = 0.9 * motion.get_ylim()[1]
    for event in inspection.events:
        face = EVENT if event in matched_events else "white"
        motion.plot(event, height, marker="v", markersize=9, markeredgecolor=EVENT, markerfacecolor=face, zorder=4)


def _write_heading(figure: Figure, clip: Clip, inspection: Inspection) -> None:
    from matplotlib.lines import Line2D

    total = figure.get_size_inches()[1]
    facts = dict(clip.provenance)
    prompt = str(facts.pop("prompt", "") or "clip")
    size = f"{inspection.seconds:.2f} s · {inspection.width}x{inspection.height} at {inspection.fps:g} fps"
    level = f"peak {inspection.peak_db:.1f} dB" if inspection.peak_db > SILENCE_DB else "silence"
    sound = f"{inspection.sample_rate / 1000:g} kHz, {level}"
    left = LEFT / WIDTH
    figure.text(
        left,
        1 - 0.28 / total,
        textwrap.shorten(prompt, LONGEST_TITLE, placeholder=" …"),
        parse_math=False,
        fontsize=14,
        weight="bold",
        va="center",
    )
    origin = [
        f"{key.replace('_', ' ')} {_brief(value)}" for key, value in facts.items() if len(_brief(value)) <= LONGEST_FACT
    ]
    described = " · ".join([size, sound, *origin])
    figure.text(
        left,
        1 - 0.53 / total,
        textwrap.shorten(described, LONGEST_LINE, placeholder=" …"),
        parse_math=False,
        color=QUIET,
        fontsize=9,
        va="center",
    )
    triangle = Line2D([], [], color=EVENT, marker="v", linestyle="none", markersize=8)
    line = Line2D([], [], color=ONSET, linewidth=1.4)
    hollow = Line2D([], [], color=QUIET, marker="v", linestyle=(0, (2, 3)), markersize=7, markerfacecolor="white")
    alone = len(inspection.events) + len(inspection.onsets) - 2 * len(inspection.pairs)
    figure.legend(
        [triangle, line, hollow],
        [
            f"{len(inspection.events)} {inspection.event_kind}s in the video",
            f"{len(inspection.onsets)} onsets in the sound",
            f"{alone} unmatched within {1000 * inspection.tolerance:.0f} ms",
        ],
        loc="center left",
        bbox_to_anchor=(left - 0.006, 1 - 0.77 / total),
        ncols=3,
        frameon=False,
        fontsize=9,
        handletextpad=0.4,
        columnspacing=1.6,
        borderpad=0,
    )


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _save(figure: Figure, path: Path) -> None:
    """Write beside ``path``, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        figure.savefig(part, format="png")
        os.replace(part, path)
