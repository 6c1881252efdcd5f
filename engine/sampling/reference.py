"""The sampling loop as the papers write it: the place to start reading.

Every branch of the guidance is a full forward of both towers, with the text projected and the times embedded anew at
every step. The batched loop (``batch.py``) computes the same with less work; benchmarks compare it with this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import SequenceConfig
from ..model import DDiT
from ..types import Latents
from .guidance import Branch
from .job import Job, Known, Text, audio_noise, text_of, video_noise
from .latent_state import Modality


class ReferenceLoop:
    """Samples requests of one latent shape that share their schedule and guidance, with one sound each.

    ``latents`` are those before the next step. Raises ``ValueError`` for guidance that reuses branches
    (``branch_interval``), an approximation of this loop.
    """

    def __init__(self, model: DDiT, jobs: Sequence[Job]) -> None:
        if jobs[0].plan.branch_interval > 1:
            raise ValueError("the reference loop evaluates every branch at every step; branch_interval must be 1")
        self.model, self.jobs, self.k = model, jobs, 0
        self.schedule, self.plan = jobs[0].schedule, jobs[0].plan
        channels = model.config.video_channels, model.config.audio_channels
        self.noise = Latents(
            torch.stack([video_noise(job, channels[0]) for job in jobs]).to(model.device),
            torch.stack([audio_noise(job, channels[1], job.sounds[0]) for job in jobs]).to(model.device),
        )
        self.latents = Latents(self._start("video"), self._start("audio"))
        self.estimate = torch.zeros_like(self.latents.video)  # of the clean video, by the last step that moved it

    @torch.inference_mode()
    def step(self) -> None:
        """One Euler step: z += (t' - t) v, where v is the guided velocity of each modality."""
        (t_v, next_v), (t_a, next_a) = (
            times[self.k : self.k + 2].tolist() for times in (self.schedule.video, self.schedule.audio)
        )
        video, audio = self._insert_known("video", t_v), self._insert_known("audio", t_a)
        branches = dict.fromkeys((self.plan.full, *self.plan.branches))
        found = {branch: self._forward(branch, video, audio, t_v, t_a) for branch in branches}
        v_video = self._guide("video", t_v, {branch: v.video for branch, v in found.items()})
        v_audio = self._guide("audio", t_a, {branch: v.audio for branch, v in found.items()})
        if next_v > t_v:
            self.estimate = video + (1 - t_v) * v_video
        self.latents = Latents(video + (next_v - t_v) * v_video, audio + (next_a - t_a) * v_audio)
        self.k += 1

    def run(self) -> Latents:
        """All steps. -> latents at time 1: video (B, C_v, T, H, W), audio (B, A, C_a)."""
        while self.k < len(self.schedule):
            self.step()
        end = float(self.schedule.video[-1]), float(self.schedule.audio[-1])
        return Latents(self._insert_known("video", end[0]), self._insert_known("audio", end[1]))

    def _guide(self, modality: Modality, t: float, velocities: dict[Branch, Tensor]) -> Tensor:
        """v + sum of s (v - v_branch), away from the branch without a prompt (classifier-free guidance), without the
        bridge (sync guidance), or with the other modality muted or static (SyncCFG).

        In a plan the weight of a branch is -s, and that of v is 1 + sum of s.
        """
        weights = self.plan.at(modality, t)
        full = velocities[next(iter(weights))]
        guided = full.clone()
        for branch, weight in list(weights.items())[1:]:
            guided -= weight * (full - velocities[branch])
        if (share := self.plan.rescale) == 0:
            return guided
        axes = tuple(range(1, full.ndim))  # brings the deviation back to that of the full branch
        return guided * (share * full.std(axes, keepdim=True) / guided.std(axes, keepdim=True) + 1 - share)

    def _forward(self, branch: Branch, video: Tensor, audio: Tensor, t_v: float, t_a: float) -> Latents:
        """Velocities of both modalities under the conditions of one branch."""
        model, jobs, device = self.model, self.jobs, self.model.device
        precision = torch.float64 if model.config.is_stdit else torch.float32
        times_v = torch.stack([_frame_times(job.video, video.shape[2], t_v, precision) for job in jobs]).to(device)
        clean = [job.audio is not None and job.audio.clean for job in jobs]
        times_a = torch.tensor([1.0 if known else t_a for known in clean], dtype=precision, device=device)
        if branch.muted and model.config.video_reads_audio:
            audio, times_a = torch.stack([_present(job.silence) for job in jobs]).to(audio), torch.ones_like(times_a)
        if branch.static:
            video, times_v = self._still(video, t_v), torch.ones_like(times_v)
        texts = [self._text(job, branch) for job in jobs]
        text = model.condition(
            torch.stack([text.states for text in texts]).to(device, model.dtype),
            torch.tensor([text.length for text in texts], device=device),
        )
        reference = None if jobs[0].reference is None else torch.stack([_present(job.reference) for job in jobs])
        found = model(
            video.to(model.dtype),
            audio.to(model.dtype),
            times_v,
            times_a,
            torch.tensor([float(job.sequence.fps) for job in jobs], device=device),
            text,
            torch.arange(len(jobs), device=device),
            None if branch.bridge else torch.zeros(len(jobs), dtype=torch.bool, device=device),
            None if reference is None else reference.to(device, model.dtype),
            torch.tensor(jobs[0].sequence.frame_times, device=device),
            _pixels(jobs[0].sequence, device),
            self._priors(),
        )
        return Latents(_present(found.video).float(), _present(found.audio).float())

    def _text(self, job: Job, branch: Branch) -> Text:
        return text_of(job, branch.text, self.model.null_text)

    def _priors(self) -> Tensor | None:
        if self.model.prior is None:
            return None
        none = self.model.null_prior
        return torch.stack([none if job.prior is None else job.prior.states.to(none) for job in self.jobs])

    def _start(self, modality: Modality) -> Tensor:
        """Noise, or for a variation the known latents at the time that it starts from."""
        rows = zip(self._known(modality), getattr(self.noise, modality), strict=True)
        return torch.stack(
            [x if known is None else torch.lerp(x, known.latents.to(x), known.start or 0.0) for known, x in rows]
        )

    def _insert_known(self, modality: Modality, t: float) -> Tensor:
        """Latents with those that are given in their place, at time t of their path from noise to data, or clean."""
        known, latents = self._known(modality), getattr(self.latents, modality)
        if not any(known):
            return latents
        rows = zip(known, latents, getattr(self.noise, modality), strict=True)
        return torch.stack([_insert(*row, modality, t) for row in rows])

    def _known(self, modality: Modality) -> list[Known | None]:
        return [getattr(job, modality) for job in self.jobs]

    def _still(self, video: Tensor, t: float) -> Tensor:
        """The first frame of the clean video, as far as it is known or can be estimated, repeated."""
        clean = video if t >= 1 else self.estimate
        given = [None if job.video is None else replace(job.video, clean=True) for job in self.jobs]
        pictures = [_insert(k, x, x, "video", 1.0)[:, :1] for k, x in zip(given, clean, strict=True)]
        return torch.stack(pictures).expand_as(video)


def _insert(known: Known | None, latents: Tensor, noise: Tensor, modality: Modality, t: float) -> Tensor:
    if known is None or known.start is not None:
        return latents
    given = torch.lerp(noise, known.latents.to(noise), 1.0 if known.clean else t)
    if known.mask is None:
        return given
    mask = known.mask.to(noise.device)
    return torch.where(mask[:, None, None] if modality == "video" else mask[:, None], given, latents)


def _frame_times(known: Known | None, frames: int, t: float, precision: torch.dtype) -> Tensor:
    """The flow time of every latent frame (T,): 1 where it is known and clean."""
    times = torch.full((frames,), t, dtype=precision)
    if known is None or known.start is not None or not known.clean:
        return times
    return torch.ones_like(times) if known.mask is None else torch.where(known.mask, 1.0, times)


def _pixels(sequence: SequenceConfig, device: torch.device) -> Tensor | None:
    if sequence.whole_patches:
        return None
    return torch.tensor([float(sequence.width * sequence.height)], device=device)


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
