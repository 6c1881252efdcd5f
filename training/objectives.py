"""The training objectives: rectified flow on both modalities, each at its own time, Syncphony's motion-aware loss and
Harmony's cross-task synergy (``docs/method.md`` 1 and 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from ..engine.model.denoiser import VideoInputs
from ..engine.types import Conditioning
from .config import TrainConfig
from .recompute import recomputing
from .stages import trained_modules


@dataclass(frozen=True)
class Batch:
    """Latents and tokenised captions of R clips."""

    video: Tensor  # (R, C_v, T, H, W)
    audio: Tensor  # (R, A, C_a)
    ids: Tensor  # (R, L)
    mask: Tensor  # (R, L)
    fps: Tensor  # (R,)
    frame_times: Tensor  # (T,)


@dataclass(frozen=True)
class FlowSample:
    """The random values of one training step."""

    noise_video: Tensor
    noise_audio: Tensor
    t_video: Tensor  # (R,)
    t_audio: Tensor  # (R,)
    drop_text: Tensor  # (R,) bool
    learn_video: Tensor  # (R,) weights of the video loss, of mean 1, or all 0
    bridged: Tensor | None = None  # (R,) bool, whether the towers read each other; None: all do


Rows = TypeVar("Rows")


def take(values: Rows, rows: slice) -> Rows:
    """Rows of a dataclass whose tensors all have them, but ``frame_times``."""
    tensors = {field.name: getattr(values, field.name) for field in fields(values)}  # type: ignore[arg-type]
    own = {name: tensor[rows] for name, tensor in tensors.items() if tensor is not None and name != "frame_times"}
    return replace(values, **own)  # type: ignore[type-var]


def rows_of_lengths(batch: int, parts: int, frames: Sequence[int]) -> list[int]:
    """Rows of a step for clips of each length: ``parts`` times as many as have the tokens of ``batch`` of the first."""
    return [parts * max(1, round(batch * frames[0] / length)) for length in frames]


def mean_weights(counts: Tensor) -> Tensor:
    """Weights of mean 1 for the rows (R,) bool that count, so that means over parts of a step are one over its rows."""
    return counts.float() * (len(counts) / counts.sum().clamp(min=1))


def pair_by_transport(noise: Tensor, data: Tensor) -> Tensor:
    """The order of ``noise`` rows that minimises the summed squared distance to ``data`` rows (Tong et al. 2024).

    noise, data (R, E). -> (R,) int64 permutation. The squared norms do not depend on the assignment, so -<x0, x1> is
    the cost.
    """
    cost = -(data @ noise.T)
    _, order = linear_sum_assignment(cost.double().cpu().numpy())
    return torch.from_numpy(order).to(noise.device)


def sample_flow(batch: Batch, config: TrainConfig, generator: torch.Generator) -> FlowSample:
    """Noise, times and text dropout of one step."""
    rows, device = len(batch.video), batch.video.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(device)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=generator.device).to(device)

    noise_video, noise_audio = normal(batch.video), normal(batch.audio)
    if config.optimal_transport:
        joint_noise = torch.cat((noise_video.flatten(1), noise_audio.flatten(1)), 1)
        order = pair_by_transport(joint_noise, torch.cat((batch.video.flatten(1), batch.audio.flatten(1)), 1))
        noise_video, noise_audio = noise_video[order], noise_audio[order]
    # Stratified times: the same distribution with less variance from step to step.
    strata = (torch.randperm(rows, generator=generator, device=generator.device).to(device) + uniform(rows)) / rows
    t_video = training_times(strata, config)
    t_audio = t_video.clone()
    learn_video = torch.ones(rows, dtype=torch.bool, device=device)
    if config.stage == "sync":
        t_audio = torch.ones_like(t_video)
    elif config.stage != "video":
        kind = uniform(rows)
        clean = kind < config.clean_video
        free = (kind >= config.clean_video) & (kind < config.clean_video + config.independent)
        t_other = training_times(uniform(rows), config)
        t_audio = torch.where(clean | free, t_other, t_audio)
        t_video = torch.where(clean, torch.ones_like(t_video), t_video)
        learn_video = ~clean
    drop_text = uniform(rows) < config.text_dropout
    bridged = uniform(rows) >= config.bridge_dropout if config.bridge_dropout else None
    return FlowSample(noise_video, noise_audio, t_video, t_audio, drop_text, mean_weights(learn_video), bridged)


def training_times(u: Tensor, config: TrainConfig) -> Tensor:
    """Flow times of uniform values ``u``: themselves, or sigmoid(z) of a standard normal z with these quantiles, the
    logit-normal distribution of Stable Diffusion 3 (Esser et al. 2024), then shifted.
    """
    if config.times == "logit-normal":
        u = torch.special.ndtri(u.double()).sigmoid().to(u.dtype)
    return shift_time(u, config.time_shift)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t / (t + shift (1 - t)): shift above 1 moves times towards noise (t = 0)."""
    return t / (t + shift * (1 - t))


def motion_aware(error: Tensor, clean: Tensor, weight: float) -> Tensor:
    """Squared error per row plus ``weight`` times the error where neighbouring clean latent frames differ (Syncphony).

    error, clean (R, C, T, H, W). -> (R,) means; the motion term is a mean over the same elements, frame 0 contributing
    nothing.
    """
    loss = error.square()
    if weight:
        motion = torch.zeros_like(clean)
        motion[:, :, 1:] = clean[:, :, 1:] - clean[:, :, :-1]
        loss = loss + weight * (error * motion).square()
    return loss.flatten(1).mean(1)


class Objective(nn.Module):
    """A loss of one batch, whose ``forward`` gives ``loss`` and its parts.

    Modules that a stage freezes require no gradients and stay in evaluation mode, without dropout, as in sampling.
    """

    def __init__(self, model: DDiT, text_encoder: TextEncoder, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.text_encoder, self.config = model, text_encoder, config

    def train(self, mode: bool = True) -> Self:
        """Training mode for what the stage trains, evaluation mode for the rest."""
        super().train(False)
        self.training = mode
        for module in trained_modules(self.model, self.text_encoder, self.config):
            module.train(mode)
        return self


@contextmanager
def evaluating(objective: Objective) -> Iterator[None]:
    """Within, no module of the objective is in training mode."""
    objective.eval()
    try:
        yield
    finally:
        objective.train()


class FlowObjective(Objective):
    """The loss of rectified flow, of every stage but ``distill``."""

    def forward(self, batch: Batch, sample: FlowSample) -> dict[str, Tensor]:
        """``loss`` and its parts, as scalars.

        The loss of the stages video and sync is that of the video, of the stage audio that of the audio, of joint both:

            L = L_video + L_audio + synergy_video L(video | clean audio) + synergy_audio L(audio | clean video)

        whose driven terms are Harmony's cross-task synergy (weights 0.1 and 0.3 there): the same clips and noise, the
        driving modality at its flow time 1. Rows that see clean video have no part in the losses of the video.
        """
        config = self.config
        text = self._text(batch, sample)
        video, audio = self._losses(batch, sample, text)
        parts = {"video": video} if config.stage in ("video", "sync") else {"video": video, "audio": audio}
        loss = {"video": video, "sync": video, "audio": audio, "joint": video + audio}[config.stage]
        clean = torch.ones_like(sample.t_video)
        if config.synergy_video:
            parts["video_driven"], _ = self._losses(batch, replace(sample, t_audio=clean), text)
            loss = loss + config.synergy_video * parts["video_driven"]
        if config.synergy_audio:
            _, parts["audio_driven"] = self._losses(batch, replace(sample, t_video=clean), text)
            loss = loss + config.synergy_audio * parts["audio_driven"]
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def _text(self, batch: Batch, sample: FlowSample) -> Conditioning:
        """The captions, those of some rows dropped."""
        states = self.text_encoder(batch.ids, batch.mask)
        null = self.model.video.y_embedder.y_embedding[None, : states.shape[1]]
        states = torch.where(sample.drop_text[:, None, None], null, states)
        return self.model.video.condition(states, batch.mask.sum(1))

    def _losses(self, batch: Batch, sample: FlowSample, text: Conditioning) -> tuple[Tensor, Tensor]:
        """Losses of the video and of the audio at the times of the sample, as scalars."""
        z_v = torch.lerp(sample.noise_video, batch.video, sample.t_video[:, None, None, None, None])
        z_a = torch.lerp(sample.noise_audio, batch.audio, sample.t_audio[:, None, None])
        with recomputing(self.model, active=self.config.recompute):
            v_video, v_audio = self._velocities(batch, sample, text, z_v, z_a)
        error = v_video.float() - (batch.video - sample.noise_video)
        per_row = motion_aware(error, batch.video, self.config.motion_weight)
        return (per_row * sample.learn_video).mean(), (
            v_audio.float() - (batch.audio - sample.noise_audio)
        ).square().mean()

    def _velocities(
        self, batch: Batch, sample: FlowSample, text: Conditioning, z_v: Tensor, z_a: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of both towers; that of the audio is 0 in the stage video, which leaves the audio tower out."""
        row = torch.arange(len(z_v), device=z_v.device)
        if self.config.stage == "video":
            times = self.model.modulation(sample.t_video[:, None], batch.fps)
            inputs = VideoInputs(z_v, times, text, row, frame_times=batch.frame_times)
            return self.model.video_pass(inputs)[0], torch.zeros_like(z_a)
        given = sample.t_video, sample.t_audio, batch.fps, text, row
        found = self.model(z_v, z_a, *given, bridged=sample.bridged, frame_times=batch.frame_times)
        return found.video, found.audio
