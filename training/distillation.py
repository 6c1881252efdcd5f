"""Distillation into few steps: a student whose Euler step is what the teacher's solver makes of many.

Guidance is folded in as in guided distillation (Meng et al., CVPR 2023): the teacher's trajectory is that of its guided
velocity, and the student's velocity of the prompt alone learns it. The trajectory is cut into as many segments as the
student has steps, and the student learns the mean velocity across each, as in piecewise rectified flow (PeRFlow, Yan et
al., NeurIPS 2024) and, with the teacher's many steps for two, progressive distillation (Salimans and Ho, ICLR 2022).
With one segment and ``between_steps`` 1 it is the reflow of rectified flow (Liu et al., ICLR 2023).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.codecs.text import TextEncoder
from ..engine.config import ModelConfig
from ..engine.model.denoiser import ALL_ROWS, AudioInputs, VideoContextRef, VideoInputs, spatial_tokens
from ..engine.types import Request
from .batches import CaptionedSets
from .config import StudentTowers, TrainConfig
from .objectives import Objective, mean_weights, motion_aware
from .recompute import recomputing
from .trajectories import TrajectorySet


@dataclass(frozen=True)
class SegmentBatch:
    """R points on segments of trajectories, with the velocities that lead to the segments' ends."""

    video: Tensor  # (R, C_v, T, H, W)
    audio: Tensor  # (R, A, C_a)
    t_video: Tensor  # (R,)
    t_audio: Tensor  # (R,)
    target_video: Tensor  # as video
    target_audio: Tensor  # as audio
    learn_video: Tensor  # (R,) weights of the video loss, of mean 1, or all 0
    learn_audio: Tensor  # (R,)
    clean_video: Tensor  # as video: the end of the trajectory, 0 where only its beginning is known
    ids: Tensor  # (R, L)
    mask: Tensor  # (R, L)
    no_text: Tensor  # (R,) bool
    fps: Tensor  # (R,)
    frame_times: Tensor  # (T,)


def segment(latents: Tensor, times: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A point of a trajectory's chord, its time, and the mean velocity of the segment.

        z = (1 - a) z_j + a z_{j+1}     t = (1 - a) t_j + a t_{j+1}     v = (z_{j+1} - z_j) / (t_{j+1} - t_j)

    latents (R, n + 1, ...) at times (n + 1,); place (R,) = j + a in [0, n]. At n it is the last point, and v is 0.
    """
    rows, last = torch.arange(len(place), device=place.device), len(times) - 1
    before = place.floor().long().clamp(0, last)
    after = (before + 1).clamp(max=last)
    share = place - before
    shape = (-1, *[1] * (latents.ndim - 2))
    start, end = latents[rows, before], latents[rows, after]
    duration = times[after] - times[before]
    duration = torch.where(duration > 0, duration, torch.ones_like(duration))
    point = torch.lerp(start, end, share.reshape(shape))
    return point, torch.lerp(times[before], times[after], share), (end - start) / duration.reshape(shape)


class SegmentBatches(CaptionedSets[TrajectorySet]):
    """Random segments of trajectories, or of their beginnings, on the device, addressed by step; each step is of one
    length, in ``parts`` of ``config.batch`` rows.

    A row is a step of the student, chosen evenly among those of all sets that move a tower in training; a share
    ``config.between_steps`` of the rows lies at a random time within its segment, the rest at its start. Raises
    ``ValueError`` for trajectories of which none moves a tower in training.
    """

    def __init__(
        self,
        sets: Sequence[TrajectorySet],
        text_encoder: TextEncoder,
        config: TrainConfig,
        device: torch.device,
        parts: int = 1,
    ) -> None:
        super().__init__(sets, text_encoder, config, device, parts)
        self.config = config
        self.choices = [self._choices(one) for one in sets]
        self.shares = torch.tensor([len(one) / rows for one, rows in zip(self.choices, self.rows, strict=True)])

    def _choices(self, one: TrajectorySet) -> Tensor:
        """Pairs of a trajectory and a step of the student's clock that the towers in training learn from. (M, 2)."""
        stored = (one.video.shape[1] - 1) * self.config.student_steps // one.steps
        clock = torch.arange(stored + self._lead(one) if one.whole else stored)
        trajectory = torch.arange(len(one))[:, None].expand(-1, len(clock))
        video, audio = self._learns(one, trajectory, clock.expand_as(trajectory))
        towers = self.config.student_towers
        found = {"video": video, "audio": audio, "both": video | audio}[towers].nonzero()
        if not len(found):
            raise ValueError(
                f"of {len(one)} trajectories none has {'a video' if towers != 'audio' else 'a sound'} to learn; take "
                "more trajectories or a lower clean_video"
            )
        return found

    def _learns(self, one: TrajectorySet, trajectory: Tensor, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Whether video and audio move at a step of the student's clock, and are not given."""
        known = torch.from_numpy(one.known)[trajectory]
        video, audio = clock < self.config.student_steps, clock >= self._lead(one)
        return (video & ~known, audio) if one.given == "video" else (video, audio & ~known)

    def _lead(self, one: TrajectorySet) -> int:
        return one.lead * self.config.student_steps // one.steps

    def at(self, generator: torch.Generator) -> SegmentBatch:
        """The batch of a generator."""
        config = self.config
        chosen = self.choose(generator)
        one, choices, count = self.sets[chosen], self.choices[chosen], self.rows[chosen]
        picks, clock = choices[torch.randint(len(choices), (count,), generator=generator)].T
        between = torch.rand(count, generator=generator) < config.between_steps
        place = clock + torch.rand(count, generator=generator) * between
        stride, rows = one.steps // config.student_steps, picks.numpy()
        video, audio = (torch.from_numpy(latents[rows, ::stride]) for latents in (one.video, one.audio))
        times = [torch.from_numpy(grid[::stride]).float() for grid in (one.times_video, one.times_audio)]
        end = torch.tensor(float(config.student_steps))
        z_v, t_v, target_video = segment(video, times[0], place.minimum(end))
        z_a, t_a, target_audio = segment(audio, times[1], (place - self._lead(one)).clamp(min=0.0))
        learn_video, learn_audio = self._learns(one, picks, clock)
        given = torch.from_numpy(one.known[rows] & one.clean)
        if one.given == "video":
            t_v = t_v.masked_fill(given, 1.0)
        else:
            t_a = t_a.masked_fill(given, 1.0)
        ids, mask = self.tokens(chosen, picks)
        drawn = {
            "video": z_v,
            "audio": z_a,
            "t_video": t_v,
            "t_audio": t_a,
            "target_video": target_video,
            "target_audio": target_audio,
            "learn_video": mean_weights(learn_video),
            "learn_audio": mean_weights(learn_audio),
            "clean_video": video[:, -1] if one.whole else torch.zeros_like(video[:, 0]),
            "ids": ids,
            "mask": mask,
            "no_text": torch.from_numpy(one.no_text[rows]),
            "fps": torch.full((count,), float(one.fps)),
            "frame_times": torch.tensor(one.frame_times),
        }
        return SegmentBatch(**{name: tensor.to(self.device) for name, tensor in drawn.items()})


class DistillationObjective(Objective):
    """Loss of one batch: |u(z_t, t, text) - (z_{j+1} - z_j) / (t_{j+1} - t_j)|^2 of each modality (module docstring).

    The video's has the weight of Syncphony's motion where the trajectory's end moves, as in training.
    """

    def forward(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """``loss`` and its parts, as scalars."""
        with recomputing(self.model, active=self.config.recompute):
            v_video, v_audio = self._velocities(batch)
        losses = {}
        if v_video is not None:
            error = v_video.float() - batch.target_video
            per_row = motion_aware(error, batch.clean_video, self.config.motion_weight)
            losses["video"] = (per_row * batch.learn_video).mean()
        if v_audio is not None:
            per_row = (v_audio.float() - batch.target_audio).square().flatten(1).mean(1)
            losses["audio"] = (per_row * batch.learn_audio).mean()
        parts = {name: loss.detach() for name, loss in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **parts}

    def _velocities(self, batch: SegmentBatch) -> tuple[Tensor | None, Tensor | None]:
        """Those of the towers in training."""
        model, towers = self.model, self.config.student_towers
        states = self.text_encoder(batch.ids, batch.mask)
        null = model.null_text[None, : states.shape[1]]
        lengths = torch.where(batch.no_text, null.shape[1], batch.mask.sum(1))
        text = model.condition(torch.where(batch.no_text[:, None, None], null, states), lengths)
        row = torch.arange(len(batch.video), device=batch.video.device)
        if towers == "both":
            latents = batch.video, batch.audio, batch.t_video, batch.t_audio
            found = model(*latents, batch.fps, text, row, frame_times=batch.frame_times)
            return found.video, found.audio if model.config.has_audio else None
        times = model.modulation(batch.t_video[:, None], batch.fps)
        context_rows = ALL_ROWS if towers == "audio" else None
        inputs = VideoInputs(batch.video, times, text, row, context_rows=context_rows, frame_times=batch.frame_times)
        v_video, context = model.video_pass(inputs)
        if towers == "video":
            return v_video, None
        tokens = spatial_tokens(model.config, batch.video)
        ref = VideoContextRef(model.video_token_positions(batch.frame_times, tokens))
        time_token = model.audio_time(batch.t_audio)
        v_audio, _ = model.audio_pass(
            AudioInputs(batch.audio, time_token, text, row, video_context=context, video_context_ref=ref)
        )
        return None, v_audio


def student_config(teacher: ModelConfig, request: Request, steps: int, towers: StudentTowers = "both") -> ModelConfig:
    """The teacher's configuration with the student's sampling: ``steps`` steps, no guidance, the teacher's time grid.

    ``request`` is what the teacher was asked for. Sync guidance stays that of a teacher whose audio tower the student
    has, since its video tower alone learns.
    """
    sampling = teacher.sampling.replace(steps=steps, guidance=1.0, sync_cfg_audio=1.0, sync_cfg_video=1.0)
    if towers != "video":
        sampling = sampling.replace(sync_guidance=0.0, v2a_sync_guidance=0.0)
    if request.video_lead is not None:
        sampling = sampling.replace(video_lead=request.video_lead)
    if request.shift is not None:
        sampling = sampling.replace(shift=request.shift, size_shift=False)
    return teacher.replace(name=f"{re.sub(r'-[0-9]+step$', '', teacher.name)}-{steps}step", sampling=sampling)
