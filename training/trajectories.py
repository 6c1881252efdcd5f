"""Trajectories of a teacher: the latents that its sampling passes through, from which a few-step student learns.

A cache is a folder: ``video.npy`` (N, P + 1, C_v, T, H, W) and ``audio.npy`` (N, P + 1, A, C_a) in float32 and
``index.json`` with the rest. It is made anew when the teacher, its settings or the clips change; sampling that was
interrupted continues after the last batch that was finished.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..engine.engine import Engine
from ..engine.progress import progress_bar
from ..engine.replacement import replacement
from ..engine.sampling.job import Job, known_audio, known_video
from ..engine.sampling.latent_state import Modality
from ..engine.sampling.schedule import Schedule
from ..engine.settings import make_request
from ..engine.tasks import default
from ..engine.types import Request
from .config import TrainConfig
from .data.latents import LatentSet

SCHEMA = 3  # of the index
FINEST = 8  # steps that are stored at least, so that students of 1, 2, 4 and 8 steps learn from one cache
SAME_TIME = 1e-6
SEEDS = 1 << 32, 1 << 40  # above those that people choose


@dataclass(frozen=True)
class TrajectorySet:
    """N trajectories of one length, at the P + 1 flow times of each modality's own grid, or beginnings of them.

    ``video`` (N, Q + 1, C_v, T, H, W) and ``audio`` (N, Q + 1, A, C_a) are the latents at the first Q + 1 of
    ``times_video`` and ``times_audio`` (P + 1,). Q is P, or in beginnings, which are not ``whole``, that of the
    student's first steps; their audio is there where it is not behind the video. ``lead`` is the number of steps of P
    by which the video is ahead of the audio. Where ``known`` (N,), the modality ``given`` is that of a clip, ``clean``
    at time 1 or noised to its grid, and where ``no_text`` (N,), there is no prompt.
    """

    video: np.ndarray
    audio: np.ndarray
    times_video: np.ndarray
    times_audio: np.ndarray
    lead: int
    known: np.ndarray
    given: Modality
    no_text: np.ndarray
    captions: list[str]
    fps: float
    frame_times: tuple[float, ...]
    clean: bool = False
    whole: bool = True

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def steps(self) -> int:
        """P."""
        return len(self.times_video) - 1


def stored_steps(student_steps: int) -> int:
    """P of a student of so many steps: a multiple of them."""
    return student_steps * max(1, FINEST // student_steps)


def teacher_request(engine: Engine, config: TrainConfig, steps: int) -> Request:
    """What the teacher is asked for: its own defaults, or ``config.teacher``, with a multiple of ``steps`` steps.

    Raises ``ValueError`` for settings that are none of a request.
    """
    request = make_request("a clip", config.teacher)
    asked = request.steps or engine.config.sampling.steps
    return replace(request, steps=steps * max(1, round(asked / steps)))


def cached_trajectories(
    engine: Engine,
    latents: LatentSet,
    seconds: float,
    count: int,
    config: TrainConfig,
    cache: Path,
    *,
    beginnings: bool = False,
) -> TrajectorySet:
    """``count`` trajectories of ``engine`` from the cache when it fits, else sampled now with a progress bar.

    Prompts are the captions of ``latents``, in random order. A share ``config.clean_video`` is video-to-audio of
    their clips (audio-to-video in a model whose audio reads no video) as the engine samples it, of which a share
    ``config.text_dropout`` has no prompt. ``beginnings`` end after the student's first ``config.beginning_steps``;
    other noise is theirs, and they have no given video. Raises ``ValueError`` for a lead of the video that is no whole
    number of the student's steps.
    """
    steps = stored_steps(config.student_steps)
    request = replace(teacher_request(engine, config, steps), seconds=seconds)
    plan = _Plan.sampled(engine, latents, count, config, beginnings=beginnings)
    stored = steps // config.student_steps * config.beginning_steps if beginnings else steps
    wanted = plan.fingerprint(engine, latents, request, steps, stored)
    index = cache / "index.json"
    if index.is_file() and json.loads(index.read_text())["fingerprint"] == wanted:
        return open_trajectories(cache)
    _student_schedule(engine, request, config.student_steps)
    grids, lead = _student_schedule(engine, request, steps)
    first = Schedule(grids.video[: stored + 1], grids.audio[: stored + 1])
    writer = _Writer(cache, wanted, first, {"video": latents.video, "audio": latents.audio}, count)
    what, end = ("beginnings", float(first.video[-1])) if beginnings else ("trajectories", math.inf)
    with progress_bar(total=count, initial=writer.done, desc=f"sampling {what}", unit="clip") as bar:
        for rows in plan.batches(config.batch, writer.done):
            jobs = [plan.job(engine, request, latents, row) for row in rows.tolist()]
            for step, (video, audio) in enumerate(_sampled(engine, jobs, end)):
                times = {name: float(getattr(jobs[0].schedule, name)[step]) for name in writer.parts}
                writer.write(rows, times, {"video": video, "audio": audio})
            writer.finish(len(rows))
            bar.update(len(rows))
    writer.close(
        {
            "times_video": grids.video.tolist(),
            "times_audio": grids.audio.tolist(),
            "lead": lead,
            "known": plan.known.tolist(),
            "given": plan.given,
            "clean": plan.clean,
            "whole": not beginnings,
            "no_text": plan.no_text.tolist(),
            "captions": plan.captions,
            "fps": latents.fps,
            "frame_times": latents.frame_times,
        }
    )
    return open_trajectories(cache)


def open_trajectories(cache: Path) -> TrajectorySet:
    """A cache that is already there."""
    index: dict[str, Any] = json.loads((cache / "index.json").read_text())
    del index["fingerprint"]
    for name in ("times_video", "times_audio", "known", "no_text"):
        index[name] = np.array(index[name])
    video, audio = (np.load(cache / f"{name}.npy", mmap_mode="r") for name in ("video", "audio"))
    return TrajectorySet(video, audio, **index | {"frame_times": tuple(index["frame_times"])})


@dataclass(frozen=True)
class _Plan:
    """What each trajectory is sampled from: a clip of the latents, its caption, a seed."""

    rows: np.ndarray
    captions: list[str]
    seeds: np.ndarray
    known: np.ndarray
    no_text: np.ndarray
    given: Modality
    clean: bool

    @classmethod
    def sampled(cls, engine: Engine, latents: LatentSet, count: int, config: TrainConfig, *, beginnings: bool) -> Self:
        rng, model = np.random.default_rng((config.seed, 1) if beginnings else config.seed), engine.config.ddit
        rows = np.concatenate([rng.permutation(len(latents)) for _ in range(-(-count // len(latents)))])[:count]
        known = (rng.random(count) < config.clean_video) & model.has_audio
        no_text = known & (rng.random(count) < config.text_dropout)
        captions = [latents.captions[row] for row in rows]
        given: Modality = "video" if model.audio_reads_video else "audio"
        if beginnings and given == "video":
            known = no_text = np.zeros(count, dtype=bool)
        clean = given == "audio" or model.is_joint
        return cls(rows, captions, rng.integers(*SEEDS, count), known, no_text, given, clean)

    def fingerprint(self, engine: Engine, latents: LatentSet, request: Request, steps: int, stored: int) -> str:
        made_from = {
            "schema": SCHEMA,
            "teacher": engine.components.digest,
            "request": repr(request),
            "sync_guidance": self._sync_guidance(engine, request),
            "clean": self.clean,
            "steps": steps,
            "stored": stored,
            "captions": self.captions,
            "seeds": self.seeds.tolist(),
            "known": self.known.tolist(),
            "no_text": self.no_text.tolist(),
        }
        digest = hashlib.sha256(json.dumps(made_from).encode())
        for row in self.rows[self.known]:
            digest.update(latents.video[row].tobytes() + latents.audio[row].tobytes())
        return digest.hexdigest()

    def batches(self, size: int, done: int) -> Iterator[np.ndarray]:
        """Trajectories that share their schedule, after the first ``done``; a batch has at most ``size``."""
        for kind in (np.flatnonzero(~self.known), np.flatnonzero(self.known)):
            left, done = kind[done:], max(0, done - len(kind))
            for first in range(0, len(left), size):
                yield left[first : first + size]

    def job(self, engine: Engine, request: Request, latents: LatentSet, i: int) -> Job:
        request = replace(request, prompt=self.captions[i], seed=int(self.seeds[i]))
        if not self.known[i]:
            return _job(engine, request)
        job = _job(engine, replace(request, sync_guidance=self._sync_guidance(engine, request)))
        given = torch.from_numpy(getattr(latents, self.given)[self.rows[i]].astype(np.float32))
        if self.given == "video":
            video = known_video(given, engine.config.ddit)
            job = replace(job, schedule=job.schedule.known_video(), video=video)
        else:
            job = replace(job, schedule=job.schedule.known_audio(), audio=known_audio(given))
        return replace(job, text=None) if self.no_text[i] else job

    def _sync_guidance(self, engine: Engine, request: Request) -> float:
        """Of the trajectories with a known modality, whose default is that of their task."""
        task = "video-to-audio" if self.given == "video" else "audio-to-video"
        return default(request.sync_guidance, engine.config.sampling.sync_guidance_of(task))


class _Writer:
    """Files of trajectories beside their place, with the number of trajectories that are ``done``."""

    def __init__(self, cache: Path, fingerprint: str, grids: Schedule, like: dict[str, np.ndarray], count: int) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self.cache, self.fingerprint, self.grids, self.done = cache, fingerprint, grids, 0
        self.progress = cache / "progress.json"
        if self.progress.is_file() and all((cache / f"{name}.part.npy").is_file() for name in like):
            found = json.loads(self.progress.read_text())
            self.done = found["trajectories"] if found["fingerprint"] == fingerprint else 0
        self.parts: dict[str, np.memmap] = {
            name: np.lib.format.open_memmap(
                cache / f"{name}.part.npy",
                mode="r+" if self.done else "w+",
                dtype=np.float32,
                shape=(count, len(grids) + 1, *latents.shape[1:]),
            )
            for name, latents in like.items()
        }

    def write(self, rows: np.ndarray, times: dict[str, float], latents: dict[str, Tensor]) -> None:
        """Store latents of ``rows`` whose time is one of the grid."""
        for name, part in self.parts.items():
            gaps = np.abs(getattr(self.grids, name) - times[name])
            if gaps.min() < SAME_TIME:
                part[rows, int(gaps.argmin())] = latents[name].float().cpu().numpy()

    def finish(self, count: int) -> None:
        """So many trajectories more are done."""
        for part in self.parts.values():
            part.flush()
        self.done += count
        self._put(self.progress, {"fingerprint": self.fingerprint, "trajectories": self.done})

    def close(self, index: dict[str, Any]) -> None:
        (self.cache / "index.json").unlink(missing_ok=True)  # which is that of the files that are replaced
        for name in self.parts:
            os.replace(self.cache / f"{name}.part.npy", self.cache / f"{name}.npy")
        self._put(self.cache / "index.json", {"fingerprint": self.fingerprint} | index)
        self.progress.unlink()

    def _put(self, file: Path, values: dict[str, Any]) -> None:
        with replacement(file) as part:
            part.write_text(json.dumps(values))


def _job(engine: Engine, request: Request) -> Job:
    return engine.pipeline.encode(engine.pipeline.prepare(request))


def _student_schedule(engine: Engine, request: Request, steps: int) -> tuple[Schedule, int]:
    """Both grids of a student, each from its own start to its end, and the lead of the video in steps.

    Raises ``ValueError`` where the steps of the student are none of the teacher's.
    """
    teacher, student = (_job(engine, replace(request, steps=n)).schedule for n in (request.steps, steps))
    lead = len(student) - steps
    pairs = np.stack((teacher.video, teacher.audio), 1)
    for pair in np.stack((student.video, student.audio), 1):
        if np.abs(pairs - pair).max(1).min() > SAME_TIME:
            raise ValueError(
                f"the lead of the video is no whole number of a student's {steps} steps; choose another video_lead"
            )
    return Schedule(student.video[: steps + 1], student.audio[lead:]), lead


@torch.inference_mode()
def _sampled(engine: Engine, jobs: list[Job], end: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents of video and audio before every step of the engine's loop, up to the video's time ``end``, and after the
    last.
    """
    with engine.backend.stepping():
        batch = engine.backend.make_batch()
        batch.join(jobs)
        yield batch.latents.video, batch.latents.audio
        for time in jobs[0].schedule.video[:-1]:
            if time > end - SAME_TIME:
                return
            batch.step()
            yield batch.latents.video, batch.latents.audio
