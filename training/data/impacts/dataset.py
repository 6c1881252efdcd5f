"""Clips of impacts in memory and as a folder of mp4 files with captions and exact event times."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ....engine.types import Clip
from .captions import sample_caption
from .kinds import Kind, check_kinds, sample_scene
from .looks import Split
from .render import render_frames
from .scene import Event, Format, Scene
from .sound import render_sound

SETTINGS_FILE = ".render.json"
METADATA_FILE = "metadata.jsonl"
MAX_CLIPS = 1_000_000


@dataclass(frozen=True)
class RenderSettings:
    """What a folder of rendered clips depends on, apart from the number of clips; ``seconds`` are its lengths, one clip
    after the other, and ``kinds`` the kinds of events, each at every length in turn.
    """

    seed: int
    split: Split
    seconds: tuple[float, ...]
    kinds: tuple[Kind, ...]
    fps: int
    size: int
    sample_rate: int

    def kind(self, index: int) -> Kind:
        """Of clip ``index``."""
        return self.kinds[index // len(self.seconds) % len(self.kinds)]

    def scene(self, index: int) -> tuple[Scene, str]:
        """Scene and caption of clip ``index``: a function of (seed, index) and the settings alone."""
        rng = np.random.default_rng((self.seed, index))
        given = Format(
            seconds=self.seconds[index % len(self.seconds)],
            fps=self.fps,
            size=self.size,
            sample_rate=self.sample_rate,
        )
        kind = self.kind(index)
        scene = sample_scene(rng, self.split, kind, given)
        return scene, sample_caption(rng, scene.look, kind)

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``; a single length is a number."""
        lengths = self.seconds[0] if len(self.seconds) == 1 else list(self.seconds)
        return asdict(self) | {"seconds": lengths, "kinds": list(self.kinds)}


def render_clip(scene: Scene) -> tuple[Clip, list[Event]]:
    """Render the frames and the sound of a scene in memory, with its exact events."""
    return Clip(render_frames(scene), render_sound(scene), scene.fps, scene.sample_rate), scene.events()


def sample_clip(
    seed: int,
    index: int,
    split: Split = "train",
    *,
    seconds: float = 2.0,
    kinds: Sequence[Kind] = ("bounce",),
    fps: int = 16,
    size: int = 64,
    sample_rate: int = 48_000,
) -> tuple[Clip, str, list[Event]]:
    """Clip ``index`` of the data set of ``seed``, in memory: clip, caption, events. Its kind is number ``index``."""
    scene, text = RenderSettings(seed, split, (seconds,), tuple(kinds), fps, size, sample_rate).scene(index)
    clip, events = render_clip(scene)
    return clip, text, events


def render_impacts(
    out: str | Path,
    clips: int,
    seed: int = 0,
    split: Split = "train",
    *,
    seconds: float | Sequence[float] = 2.0,
    kinds: Sequence[Kind] = ("bounce",),
    fps: int = 16,
    size: int = 64,
    sample_rate: int = 48_000,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Render ``clip_000000.mp4`` ... and ``metadata.jsonl`` (Hugging Face folder convention) into ``out``.

    Each line of the metadata has ``file_name``, ``text``, ``events`` (time in seconds, speed, surface), ``kind`` and
    ``object``.
    Of several lengths in ``seconds``, clip i has number i, counted round and round; the kind of event is the next one
    of ``kinds`` after each round. A second run with the same settings
    renders only what is missing, so it resumes or extends. ``workers`` processes (all cores by default). Raises
    ``ValueError`` for a bad setting, for a folder that holds other settings and for an output that cannot be written.
    """
    lengths = tuple(map(float, seconds)) if isinstance(seconds, Sequence) else (float(seconds),)
    settings = RenderSettings(seed, split, lengths, tuple(kinds), fps, size, sample_rate)
    _check(settings, clips, workers)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, settings)
        missing = [index for index in range(clips) if not (out / _name(index)).exists()]
        for _ in _progress(_render_all(out, settings, missing, workers), len(missing), progress):
            pass
        lines = (json.dumps(_metadata(settings, index)) + "\n" for index in range(clips))
        _write(out / METADATA_FILE, "".join(lines))
    except OSError as error:
        raise ValueError(f"cannot write clips to {out}: {error.strerror or error}") from error
    return out


def _check(settings: RenderSettings, clips: int, workers: int | None) -> None:
    if not 1 <= clips <= MAX_CLIPS:
        raise ValueError(f"clips is {clips}; it must be from 1 to {MAX_CLIPS}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if settings.seed < 0:
        raise ValueError(f"seed is {settings.seed}; it must not be negative")
    if settings.split not in ("train", "unseen"):
        raise ValueError(f"split is {settings.split!r}; it must be 'train' or 'unseen'")
    check_kinds(settings.kinds)
    if not settings.seconds:
        raise ValueError("seconds names no length; it needs at least one, from 1 to 60")
    for seconds in settings.seconds:
        if not 1 <= seconds <= 60:
            raise ValueError(f"seconds is {seconds}; it must be from 1 to 60")
    if not 8 <= settings.fps <= 120:
        raise ValueError(f"fps is {settings.fps}; it must be from 8 to 120")
    if settings.size % 2 or not 32 <= settings.size <= 1024:
        raise ValueError(f"size is {settings.size}; it must be an even number from 32 to 1024")
    if not 8_000 <= settings.sample_rate <= 96_000:
        raise ValueError(f"sample rate is {settings.sample_rate}; it must be from 8000 to 96000")


def _claim(out: Path, settings: RenderSettings) -> None:
    """Write the settings into a new folder; refuse one that was rendered with others."""
    path = out / SETTINGS_FILE
    if not path.exists():
        _write(path, json.dumps(settings.to_dict()))
    elif (found := json.loads(path.read_text())) != (wanted := settings.to_dict()):
        changed = ", ".join(f"{k} {found.get(k)!r} not {v!r}" for k, v in wanted.items() if found.get(k) != v)
        raise ValueError(f"{out} holds clips rendered with other settings ({changed}); choose another folder")


def _render_all(out: Path, settings: RenderSettings, indices: list[int], workers: int | None) -> Iterator[None]:
    workers = min(workers or os.cpu_count() or 1, max(1, len(indices)))
    render = partial(_render_one, out, settings)
    if workers == 1:
        yield from map(render, indices)
        return
    with _pool(workers) as pool:
        yield from pool.map(render, indices, chunksize=8)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are not left running clips nobody waits for."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _render_one(out: Path, settings: RenderSettings, index: int) -> None:
    scene, text = settings.scene(index)
    clip, _ = render_clip(scene)
    provenance = {"prompt": text, "renderer": "impacts", "seed": settings.seed, "index": index}
    replace(clip, provenance=provenance).save(out / _name(index))


def _metadata(settings: RenderSettings, index: int) -> dict[str, Any]:
    scene, text = settings.scene(index)
    return {
        "file_name": _name(index),
        "text": text,
        "events": [event.to_dict() for event in scene.events()],
        "kind": settings.kind(index),
        "object": asdict(scene.look) | {"radius": round(scene.radius, 3)},
    }


def _name(index: int) -> str:
    return f"clip_{index:06d}.mp4"


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(text)
    os.replace(beside, path)


def _progress(steps: Iterator[None], total: int, show: bool) -> Iterator[None]:
    from ....engine.progress import progress_bar

    yield from progress_bar(steps, total=total, unit="clip", desc="rendering", disable=not show)
