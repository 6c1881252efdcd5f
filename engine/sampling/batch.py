"""Requests of one latent shape that are stepped together, and that join and leave between steps.

What does not depend on the step is computed when a request joins (``conditioning_cache.py``). A step computes the rows
that its weights ask for (``step_plan.py``), in the way of the model's bridge (``oneway.py``, ``joint.py``), and moves
all latents in one operation. Every request has a step of its own, and a modality that stands still at it costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import guided_euler_step
from ..model.denoiser import Denoiser, Modulation
from ..types import Latents
from .caching import CachePhases, cache_phases_of, first_of, renewing, reusing
from .conditioning_cache import ConditioningCache
from .job import Job, audio_noise, video_noise
from .latent_state import BatchedLatents, LatentState, Modality, grid_of
from .step_plan import JointStepPlan, StepPlan, Sums, Weights
from .streams import Streams
from .transfer import upload

Index = dict[str, Tensor]


class Batch(ABC):
    """B requests on their way from noise to data; the takes of a request are tracks of the audio.

    ``jobs`` are the requests in order of their places, ``owner`` the place of every audio track. ``streams`` say where
    the towers of a one-way model run. Nothing in a step makes the host wait for the device.
    """

    def __init__(self, model: Denoiser, cache: ConditioningCache, streams: Streams | None = None) -> None:
        self.model, self.cache, self.streams = model, cache, streams or Streams()
        self.jobs: list[Job] = []
        self.owner: list[int] = []
        self._plans: dict[Hashable, tuple[Any, Index]] = {}

    # Coming and going

    @torch.inference_mode()
    def join(self, jobs: Sequence[Job]) -> None:
        """Requests of the batch's latent shape begin at their first step. They take the places after the last."""
        shapes = {job.shape for job in (*self.jobs, *jobs)}
        assert len(shapes) <= 1, f"requests of one batch must share their latent shape; these have {sorted(shapes)}"
        self.streams.join()
        video, audio = ([], []) if not self.jobs else (self.video.apart(), self.audio.apart())
        for job in jobs:
            seen, heard = grid_of(job.schedule.video, job.video), grid_of(job.schedule.audio, job.audio)
            of_video, of_audio = cache_phases_of(job.plan, seen, heard)
            video.append(self._begin_video(job, seen, of_video))
            audio.extend(self._begin_audio(job, heard, of_audio, seed) for seed in job.sounds)
        self._settle([*self.jobs, *jobs], video, audio)

    @torch.inference_mode()
    def leave(self, places: Sequence[int]) -> list[Latents]:
        """Requests go, wherever they are; what they have become: video (1, C_v, T, H, W), audio (takes, A, C_a)."""
        self.streams.join()
        video, audio = self.video.apart(), self.audio.apart()
        gone = [
            Latents(
                video[b].latents[None].clone(),
                torch.stack([track.latents for track, owner in zip(audio, self.owner, strict=True) if owner == b]),
            )
            for b in places
        ]
        stay = [b for b in range(len(self.jobs)) if b not in set(places)]
        heard = [track for track, owner in zip(audio, self.owner, strict=True) if owner in set(stay)]
        self._leave(stay)
        self._settle([self.jobs[b] for b in stay], [video[b] for b in stay], heard)
        return gone

    def progress(self, place: int) -> tuple[int, int]:
        """Steps that a request has done, and how many there are."""
        return self.video.each[place].step, len(self.jobs[place].schedule)

    @property
    def latents(self) -> Latents:
        """Where all requests are now: video (B, C_v, T, H, W), audio (takes of all, A, C_a)."""
        self.streams.join()
        return Latents(self.video.latents, self.audio.latents)

    def _begin_video(self, job: Job, grid: np.ndarray, phases: CachePhases) -> LatentState:
        times = self.cache.video_times(_and_clean(grid), float(job.sequence.fps))
        noise = video_noise(job, self.model.config.video_channels)
        return LatentState.begin(upload(noise, self.model.device), grid, times, job.video, phases)

    def _begin_audio(self, job: Job, grid: np.ndarray, phases: CachePhases, seed: int) -> LatentState:
        noise = audio_noise(job, self.model.config.audio_channels, seed)
        times = self.cache.audio_times(_and_clean(grid))
        return LatentState.begin(upload(noise, self.model.device), grid, times, job.audio, phases)

    def _settle(self, jobs: list[Job], video: list[LatentState], audio: list[LatentState]) -> None:
        """Stack what is there now."""
        self.jobs, self._plans = jobs, {}
        self.owner = [b for b, job in enumerate(jobs) for _ in job.sounds]
        if not jobs:
            return
        self.video = BatchedLatents("video", video, self.model.dtype)
        self.audio = BatchedLatents("audio", audio, self.model.dtype)
        owned = [jobs[b] for b in self.owner]
        self.rescale: dict[Modality, Tensor] = {
            "video": self._tensor([float(job.plan.rescale) for job in jobs]),
            "audio": self._tensor([float(job.plan.rescale) for job in owned]),
        }
        self.silence = _stacked([job.silence for job in owned], self.audio.noise[0])
        self.reference = _stacked([job.reference for job in jobs], self.audio.noise[:1, 0])
        wanted = dict.fromkeys((b, branch.text) for b, job in enumerate(jobs) for branch in job.plan.branches)
        self.text_rows = {key: i for i, key in enumerate(wanted)}
        self.text = self.cache.texts([self.cache.text_of(jobs[b], prompted) for b, prompted in wanted])

    def _leave(self, stay: Sequence[int]) -> None:  # noqa: B027
        """Forget what belongs to requests that go; those at places ``stay`` move up."""

    # Steps

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One Euler step of every request; the places of those that have now done their last."""
        with getattr(self.model, "operations", nullcontext)():
            self._step(self._weights(self.video), self._weights(self.audio))
        return [b for b, job in enumerate(self.jobs) if self.video.each[b].step >= len(job.schedule)]

    @abstractmethod
    def plan(self) -> StepPlan | JointStepPlan:
        """The rows of the step that comes next."""

    @abstractmethod
    def _step(self, video: list[Weights], audio: list[Weights]) -> None:
        """Compute the rows that the weights of both modalities ask for, and move the latents with them."""

    def _weights(self, tracks: BatchedLatents) -> list[Weights]:
        owners = self.owner if tracks.modality == "audio" else range(len(self.jobs))
        found: list[Weights] = []
        for b, track in zip(owners, tracks.each, strict=True):
            weights = self.jobs[b].plan.at(tracks.modality, track.time) if track.moves else None
            found.append(first_of(weights) if weights and track.phase == "reuse" else weights)
        return found

    def _key(self, video: list[Weights], audio: list[Weights]) -> tuple[Hashable, ...]:
        """What the rows of a step depend on."""
        return *map(frozen, video), *map(frozen, audio), self.video.phases, self.audio.phases

    def _move(self, velocities: Mapping[Modality, Tensor], index: Index, *modalities: BatchedLatents) -> None:
        """The step of these modalities: Euler's where there is a velocity, and the time after it."""
        if moving := [tracks for tracks in modalities if tracks.modality in velocities]:
            self._euler(moving, velocities, index)
        for tracks in modalities:
            tracks.advance()

    def _euler(self, tracks: Sequence[BatchedLatents], velocities: Mapping[Modality, Tensor], index: Index) -> None:
        copy = self.model.dtype if self.model.dtype != torch.float32 else None
        stepped = [guided_euler_step(*self._entry(one, velocities[one.modality], index), dtype=copy) for one in tracks]
        looks = any(branch.static for job in self.jobs for branch in job.plan.branches)
        for one, (latents, *copies) in zip(tracks, stepped, strict=True):
            if looks and one is self.video:
                self._look_ahead(latents)
            one.latents, one.reads = latents, copies[0] if copies else latents

    def _entry(self, tracks: BatchedLatents, velocity: Tensor, index: Index) -> tuple[Tensor | None, ...]:
        """Arguments of the Euler step of one modality."""
        rows, weights = index[f"{tracks.modality}_rows"], index[f"{tracks.modality}_weights"]
        if tracks.differences is not None:
            velocity = self._cached(tracks, tracks.differences, velocity, index)
        dt = tracks.then - tracks.now
        if any(job.plan.rescale for job in self.jobs):
            dt = dt * self._rescaled(tracks, velocity, rows, weights)
        return tracks.latents, velocity, rows, weights, dt, *tracks.held()

    def _cached(self, tracks: BatchedLatents, kept: Tensor, velocity: Tensor, index: Index) -> Tensor:
        """The velocities, behind the differences that are kept where one of them is reused; renews the others."""
        name, phases = tracks.modality, tracks.phases
        if "reuse" in phases:
            velocity = torch.cat((kept.to(velocity), velocity))
        if "renew" in phases:
            renewed = index[f"{name}_renewed"].reshape(-1, *[1] * (kept.ndim - 1))
            start = kept.masked_fill(renewed, 0.0)
            rows, weights = index[f"{name}_rows"], index[f"{name}_differences"]
            ones = torch.ones(len(kept), device=kept.device)
            (tracks.differences,) = guided_euler_step(start, velocity, rows, weights, ones)
        return velocity

    def _rescaled(self, tracks: BatchedLatents, velocity: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """By how much each guided velocity is drawn back to the deviation of its full branch. -> (n,)."""
        branches = velocity[rows].flatten(2).float()
        guided = (weights[..., None] * branches).sum(1)
        ratio = branches[:, 0].std(-1) / guided.std(-1).clamp_min(1e-12)
        share = self.rescale[tracks.modality]
        return (share * ratio + (1 - share)).masked_fill(weights.abs().sum(1) == 0, 1.0)

    # What rows read

    def _text_index(self, rows: Sequence[tuple[int, bool]]) -> Tensor:
        """Rows of the text for requests and whether they are prompted; any row for a text that nobody reads."""
        return self._tensor([self.text_rows.get(row, 0) for row in rows])

    def _video_rows(self, track: Tensor, static: Tensor | None) -> tuple[Tensor, Modulation]:
        """Latents and modulation of video tracks (R,), ``static`` (R,) ones as a still picture at time 1."""
        z, clean = self.video.reads[track], self.video.clean_frames()
        if clean is not None:
            clean = clean[track]
        if static is not None:
            z = torch.where(static[:, None, None, None, None], self._still()[track].to(z), z)
            clean = static[:, None] if clean is None else clean | static[:, None]
        return z, Modulation(*self.video.times(track, clean))

    def _audio_rows(self, track: Tensor, muted: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents and time tokens of audio tracks (R,), ``muted`` (R,) ones as silence at time 1."""
        z = self.audio.reads[track]
        if muted is not None:
            z = torch.where(muted[:, None, None], self.silence[track].to(z), z)
        (times,) = self.audio.times(track, muted)
        return z, times[:, 0]

    def _still(self) -> Tensor:
        """The first frame of what is known, drawn or expected of the video, repeated: (B, C_v, T, H, W)."""
        drawn = self.video.now[:, None, None, None, None] >= 1
        picture = torch.where(drawn, self.video.latents, self.video.estimate)
        if self.video.holds is not None and self.video.known is not None:
            picture = torch.where(self.video.holds, self.video.known, picture)
        return picture[:, :, :1].expand_as(picture)

    def _look_ahead(self, stepped: Tensor) -> None:
        """The clean video as this step expects it: z + (1 - t) v, where v is what moved z."""
        tracks = self.video
        t, dt = tracks.now, tracks.then - tracks.now
        reach = ((1 - t) / dt.clamp_min(1e-6))[:, None, None, None, None]
        ahead = tracks.latents + reach * (stepped - tracks.latents)
        tracks.estimate = torch.where(dt[:, None, None, None, None] > 0, ahead, tracks.estimate)

    # Index tensors

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return upload(torch.tensor(values, dtype=None if values else torch.long), self.model.device)

    def _sums(self, modality: Modality, sums: Sums) -> Index:
        """Rows and weights (n, G); a track with fewer rows repeats its first with weight 0, one without takes row 0."""
        phases = (self.video if modality == "video" else self.audio).phases
        if "reuse" in phases:
            sums = reusing(sums, phases)
        most = max(map(len, sums), default=0)
        padded = tuple((*pairs, *[((pairs or ((0, 0.0),))[0][0], 0.0)] * (most - len(pairs))) for pairs in sums)
        index = {
            f"{modality}_rows": self._tensor([[row for row, _ in pairs] for pairs in padded]),
            f"{modality}_weights": self._tensor([[weight for _, weight in pairs] for pairs in padded]),
        }
        if "renew" in phases:
            index[f"{modality}_differences"] = self._tensor(renewing(padded, phases))
            index[f"{modality}_renewed"] = self._tensor([phase == "renew" for phase in phases])
        return index


def _and_clean(grid: np.ndarray) -> np.ndarray:
    """The times of all steps, and time 1."""
    return np.append(grid[:-1], 1.0)


def _stacked(each: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """What requests have, zeros shaped as ``like`` for those that have none of it."""
    return torch.stack([torch.zeros_like(like) if one is None else upload(one, like.device).to(like) for one in each])


def frozen(weights: Weights) -> Hashable:
    """Weights as part of a key."""
    return None if weights is None else tuple(weights.items())
