"""Requests of one latent shape that are stepped together, and that join and leave between steps.

What does not depend on the step is computed when a request joins (``conditioning_cache.py``). A step computes the rows
that its weights ask for (``step_plan.py``), as the model's bridge allows (``oneway.py``, ``joint.py``), and moves
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
from .transfer import record_event, upload

Index = dict[str, Tensor]


class Batch(ABC):
    """B requests on their way from noise to data; every take of a sound has audio latents of its own.

    ``jobs`` are the requests in order of their places, ``owner`` the place of the request that each of the audio
    latents belongs to. ``streams`` say where the towers of a one-way model run. Nothing in a step makes the host wait
    for the device, but a model may limit how many steps the host is ahead.
    """

    def __init__(self, model: Denoiser, cache: ConditioningCache, streams: Streams | None = None) -> None:
        self.model, self.cache, self.streams = model, cache, streams or Streams()
        self.jobs: list[Job] = []
        self.owner: list[int] = []
        self._plans: dict[Hashable, tuple[Any, Index]] = {}
        self._stepped: set[Modality] = set()  # those that the model has moved in this step

    # Requests

    @torch.inference_mode()
    def join(self, jobs: Sequence[Job]) -> None:
        """Requests of the batch's latent shape begin at their first step. They take the places after the last."""
        shapes = {job.shape for job in (*self.jobs, *jobs)}
        assert len(shapes) <= 1, f"requests of one batch must share their latent shape; these have {sorted(shapes)}"
        self.streams.join()
        video, audio = ([], []) if not self.jobs else (self.video.unstack(), self.audio.unstack())
        for job in jobs:
            video_grid, audio_grid = grid_of(job.schedule.video, job.video), grid_of(job.schedule.audio, job.audio)
            if not self.model.config.has_audio:
                audio_grid = np.ones_like(audio_grid)
            video_phases, audio_phases = cache_phases_of(job.plan, video_grid, audio_grid)
            video.append(self._begin_video(job, video_grid, video_phases))
            audio.extend(self._begin_audio(job, audio_grid, audio_phases, seed) for seed in job.sounds)
        self._stack_latents([*self.jobs, *jobs], video, audio)

    @torch.inference_mode()
    def leave(self, places: Sequence[int]) -> list[Latents]:
        """Requests go, wherever they are; what they have become: video (1, C_v, T, H, W), audio (takes, A, C_a)."""
        self.streams.join()
        video, audio = self.video.unstack(), self.audio.unstack()
        taken = [
            (
                video[b].latents[None].clone(),
                torch.stack([take.latents for take, owner in zip(audio, self.owner, strict=True) if owner == b]),
            )
            for b in places
        ]
        ready = record_event(self.model.device)
        gone = [Latents(*pair, ready) for pair in taken]
        stay = [b for b in range(len(self.jobs)) if b not in set(places)]
        stay_audio = [take for take, owner in zip(audio, self.owner, strict=True) if owner in set(stay)]
        self._leave(stay)
        self._stack_latents([self.jobs[b] for b in stay], [video[b] for b in stay], stay_audio)
        return gone

    def progress(self, place: int) -> tuple[int, int]:
        """Steps that a request has done, and how many there are."""
        return self.video.each[place].step, len(self.jobs[place].schedule)

    @torch.inference_mode()
    def preview(self, place: int) -> Tensor:
        """The video that a request reaches at time 1 if its mean velocity goes on: latents (C_v, T, H, W).

        z_t = (1 - t) noise + t z_1 along a straight path, so z_1 = noise + (z_t - noise) / t; at time 0 the noise.
        """
        self.streams.join()
        state = self.video.each[place]
        noise, latents = self.video.noise[place], self.video.latents[place]
        return noise + (latents - noise) / state.time if state.time > 0 else noise

    @property
    def latents(self) -> Latents:
        """Where all requests are now: video (B, C_v, T, H, W), audio (takes of all, A, C_a)."""
        self.streams.join()
        return Latents(self.video.snapshot(), self.audio.snapshot())

    def _begin_video(self, job: Job, grid: np.ndarray, phases: CachePhases) -> LatentState:
        times = self.cache.video_times(_and_clean(grid), float(job.sequence.fps))
        noise = video_noise(job, self.model.config.video_channels)
        return LatentState.begin(upload(noise, self.model.device), grid, times, job.video, phases)

    def _begin_audio(self, job: Job, grid: np.ndarray, phases: CachePhases, seed: int) -> LatentState:
        noise = audio_noise(job, self.model.config.audio_channels, seed)
        times = self.cache.audio_times(_and_clean(grid), float(job.sequence.fps))
        return LatentState.begin(upload(noise, self.model.device), grid, times, job.audio, phases)

    def _stack_latents(self, jobs: list[Job], video: list[LatentState], audio: list[LatentState]) -> None:
        """Stack the latents of these requests."""
        self.jobs, self._plans = jobs, {}
        self.owner = [b for b, job in enumerate(jobs) for _ in job.sounds]
        if not jobs:
            return
        self._wants_estimate = any(branch.static for job in jobs for branch in job.plan.branches)
        self._rescales = any(job.plan.rescale for job in jobs)
        self.video = BatchedLatents("video", video, self.model.dtype)
        self.audio = BatchedLatents("audio", audio, self.model.dtype)
        sequence = jobs[0].sequence  # whose shape all of the batch share
        self.frame_times = self._tensor(list(sequence.frame_times))
        area = float(sequence.width * sequence.height)
        self.pixels = None if sequence.whole_patches else self._tensor([area])
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
        self.prior = self.cache.priors(jobs) if self.model.config.prior_tokens else None

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

    def _weights(self, batched: BatchedLatents) -> list[Weights]:
        owners = self.owner if batched.modality == "audio" else range(len(self.jobs))
        found: list[Weights] = []
        for b, state in zip(owners, batched.each, strict=True):
            weights = self.jobs[b].plan.at(batched.modality, state.time) if state.moves else None
            found.append(first_of(weights) if weights and state.phase == "reuse" else weights)
        return found

    def _key(self, video: list[Weights], audio: list[Weights]) -> tuple[Hashable, ...]:
        """What the rows of a step depend on."""
        return *map(frozen, video), *map(frozen, audio), self.video.phases, self.audio.phases

    def _move(self, velocities: Mapping[Modality, Tensor], index: Index, *modalities: BatchedLatents) -> None:
        """The step of these modalities: Euler's where there is a velocity, and the time after it."""
        if moving := [batched for batched in modalities if batched.modality in velocities]:
            self._euler(moving, velocities, index)
        for batched in modalities:
            if batched.modality in self._stepped:
                batched.advance_in_place()
            else:
                batched.advance()
        self._stepped -= {batched.modality for batched in modalities}

    def _euler(self, moving: Sequence[BatchedLatents], velocities: Mapping[Modality, Tensor], index: Index) -> None:
        copy = self.model.dtype if self.model.dtype != torch.float32 else None
        arguments = [self._euler_arguments(one, velocities[one.modality], index) for one in moving]
        stepped = [guided_euler_step(*each, dtype=copy) for each in arguments]
        for one, (latents, *copies) in zip(moving, stepped, strict=True):
            if self._wants_estimate and one is self.video:
                self._update_estimate(latents)
            one.move_to(latents, copies[0] if copies else latents)

    def _euler_arguments(self, batched: BatchedLatents, velocity: Tensor, index: Index) -> tuple[Tensor | None, ...]:
        """Arguments of the Euler step of one modality."""
        rows, weights = index[f"{batched.modality}_rows"], index[f"{batched.modality}_weights"]
        if batched.differences is not None:
            velocity = self._cached(batched, batched.differences, velocity, index)
        dt = batched.next_flow_time - batched.flow_time
        if self._rescales:
            dt = dt * self._rescaled(batched, velocity, rows, weights)
        return batched.latents, velocity, rows, weights, dt, *batched.held()

    def _cached(self, batched: BatchedLatents, kept: Tensor, velocity: Tensor, index: Index) -> Tensor:
        """The velocities, behind the differences that are kept where one of them is reused; renews the others."""
        name, phases = batched.modality, batched.phases
        if "reuse" in phases:
            velocity = torch.cat((kept.to(velocity), velocity))
        if "renew" in phases:
            renewed = index[f"{name}_renewed"].reshape(-1, *[1] * (kept.ndim - 1))
            start = kept.masked_fill(renewed, 0.0)
            rows, weights = index[f"{name}_rows"], index[f"{name}_differences"]
            ones = torch.ones(len(kept), device=kept.device)
            (batched.differences,) = guided_euler_step(start, velocity, rows, weights, ones)
        return velocity

    def _rescaled(self, batched: BatchedLatents, velocity: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """The factor that brings each guided velocity back to the deviation of its full branch. -> (n,)."""
        branches = velocity[rows].flatten(2).float()
        guided = (weights[..., None] * branches).sum(1)
        ratio = branches[:, 0].std(-1) / guided.std(-1).clamp_min(1e-12)
        share = self.rescale[batched.modality]
        return (share * ratio + (1 - share)).masked_fill(weights.abs().sum(1) == 0, 1.0)

    # What rows read

    def _text_index(self, rows: Sequence[tuple[int, bool]]) -> Tensor:
        """Rows of the text for requests and whether they are prompted; any row for a text that no tower reads."""
        return self._tensor([self.text_rows.get(row, 0) for row in rows])

    def _video_rows(self, samples: Tensor, static: Tensor | None) -> tuple[Tensor, Modulation]:
        """Latents and modulation of videos ``samples`` (R,), ``static`` (R,) ones as a still picture at time 1."""
        z, clean = self.video.model_latents[samples], self.video.clean_frames()
        if clean is not None:
            clean = clean[samples]
        if static is not None:
            z = torch.where(static[:, None, None, None, None], self._static_video()[samples].to(z), z)
            clean = static[:, None] if clean is None else clean | static[:, None]
        return z, Modulation(*self.video.times(samples, clean))

    def _audio_rows(self, samples: Tensor, muted: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Latents of sounds ``samples`` (R,), ``muted`` (R,) ones as silence at time 1, and what the tower needs of
        their times, each (R, 1, ...)."""
        z = self.audio.model_latents[samples]
        if muted is not None:
            z = torch.where(muted[:, None, None], self.silence[samples].to(z), z)
        return z, self.audio.times(samples, muted)

    def _static_video(self) -> Tensor:
        """The first frame of the known, finished or estimated video, repeated: (B, C_v, T, H, W)."""
        finished = self.video.flow_time[:, None, None, None, None] >= 1
        picture = torch.where(finished, self.video.latents, self.video.estimate)
        if self.video.known_mask is not None and self.video.known is not None:
            picture = torch.where(self.video.known_mask, self.video.known, picture)
        return picture[:, :, :1].expand_as(picture)

    def _update_estimate(self, stepped: Tensor) -> None:
        """The clean video as this step expects it: z + (1 - t) v, where v is what moved z."""
        video = self.video
        t, dt = video.flow_time, video.next_flow_time - video.flow_time
        reach = ((1 - t) / dt.clamp_min(1e-6))[:, None, None, None, None]
        ahead = video.latents + reach * (stepped - video.latents)
        video.estimate = torch.where(dt[:, None, None, None, None] > 0, ahead, video.estimate)

    # Index tensors

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return upload(torch.tensor(values, dtype=None if values else torch.long), self.model.device)

    def _sums(self, modality: Modality, sums: Sums) -> Index:
        """Rows and weights (n, G); a sum of fewer rows repeats its first with weight 0, an empty one takes row 0."""
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
