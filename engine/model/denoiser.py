"""What the sampling loop asks of a d-DiT: this package's modules, a compiled model, exported graphs.

The parts of :class:`~syncflow.engine.model.ddit.DDiT` that cost something, each once: text a prompt, times a schedule,
and a pass of a tower whenever its modality moves. A pass takes one dataclass. Which rows it works on is data (index
tensors), so that one graph serves every guidance plan, task and mix of requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .bridges import Context
from .tower_step import TowerStep

ALL_ROWS = slice(None)
"""A selection of every row in its place: a view, for which nothing is copied."""


class Modulation(NamedTuple):
    """What a tower needs of time and frame rate: ``block_modulation`` (R, T or 1, 6, D), shift, scale and gate of both
    halves of a block, and ``time_embedding`` (R, T or 1, D) for the final layer. In a ``bidirectional`` model those of
    the three parts of a prior block follow: (R, T or 1, 15, D)."""

    block_modulation: Tensor
    time_embedding: Tensor


def split_modulation(modulation: Modulation) -> tuple[Modulation, Tensor]:
    """That of the blocks, and that of the prior blocks, of a ``bidirectional`` model."""
    blocks, prior = modulation.block_modulation.split((6, modulation.block_modulation.shape[2] - 6), 2)
    return modulation._replace(block_modulation=blocks), prior


class VideoContextRef(NamedTuple):
    """How audio rows read contexts of the video: ``positions`` (M,) of a context's tokens on the clock of the audio,
    and the context that each row reads, ``context_of_row`` (R,) int64 with -1 for none, or ``None`` for its own."""

    positions: Tensor
    context_of_row: Tensor | None = None


@dataclass(frozen=True)
class VideoInputs:
    """Inputs of the video tower of a one-way model, R rows.

    Every model: ``latents`` (R, C_v, T, H, W), their ``modulation``, the ``text`` of P prompts and the prompt of every
    row, ``text_of_row`` (R,).

    An ``audio_rope`` model: ``audio_context`` from :meth:`Denoiser.audio_pass`, of which row r reads
    ``audio_context_of_row[r]`` (-1: none; without the tensor, its own). Latents, modulation and text_of_row may hold P
    prefixes, of which ``prefix_of_row`` (R,) says where each row begins: the layers before the first bridge compute
    each prefix once.

    ``frame_times`` (T,): the middle of each latent frame in seconds from the start of the clip; without the tensor that
    of frames without padding, (l + 1/2) / latent_fps.

    ``pixels`` (1,): height times width of the clip where it is not of whole patches. The latents are then padded with
    zeros to whole patches at the right and lower edge, and the positions of the tokens are scaled by this size.

    An ``adaptor`` model: the pass returns contexts of ``context_rows``, an index (C,) or :data:`ALL_ROWS`, or none
    without it. Rows after the first ``num_outputs`` serve for contexts alone, and a velocity returned for them means
    nothing.
    """

    latents: Tensor
    modulation: Modulation
    text: Conditioning
    text_of_row: Tensor
    audio_context: Context | None = None
    audio_context_of_row: Tensor | None = None
    prefix_of_row: Tensor | None = None
    num_outputs: int | None = None
    context_rows: Tensor | slice | None = None
    frame_times: Tensor | None = None
    pixels: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.text_of_row if self.prefix_of_row is None else self.prefix_of_row)


@dataclass(frozen=True)
class AudioInputs:
    """Inputs of the audio tower of a one-way model, or of any model where the audio reads no video; R rows.

    ``latents`` (R, A, C_a) and their ``time_token`` (R, D) from :meth:`Denoiser.audio_time`; ``text`` and
    ``text_of_row`` (R,) as of :class:`VideoInputs`. In an ``adaptor`` model ``video_context`` comes from
    :meth:`Denoiser.video_pass`, and ``video_context_ref`` says which of it each row reads; both are ``None`` where no
    row reads any. Rows after the first ``num_outputs`` serve for the contexts of the audio alone.
    """

    latents: Tensor
    time_token: Tensor
    text: Conditioning
    text_of_row: Tensor
    video_context: Context | None = None
    video_context_ref: VideoContextRef | None = None
    num_outputs: int | None = None


@dataclass(frozen=True)
class JointInputs:
    """Inputs of both towers of a model in which each reads the other, R rows.

    ``video_latents`` (R, C_v, T, H, W) with their ``modulation``, ``audio_latents`` (R, A, C_a), ``text`` and
    ``text_of_row`` (R,) as of :class:`VideoInputs`. The towers of rows ``bridged_rows`` (N,), or of all, read each
    other. ``frame_times`` (T,) as of :class:`VideoInputs`. Velocities are those of ``video_output_rows`` and
    ``audio_output_rows``, or of all.

    A ``global_local`` model: the ``time_token`` (R, D) of the audio; bridged rows take the style of ``reference``
    (N, A_r, C_a), latents of sounds.

    A ``bidirectional`` model: ``audio_modulation`` in place of the time token; ``prior`` of P requests from
    :meth:`Denoiser.condition_prior`, of which row r reads ``prior_of_row[r]``; ``pixels`` as of :class:`VideoInputs`.
    """

    video_latents: Tensor
    audio_latents: Tensor
    modulation: Modulation
    time_token: Tensor | None
    text: Conditioning
    text_of_row: Tensor
    bridged_rows: Tensor | None = None
    reference: Tensor | None = None
    video_output_rows: Tensor | None = None
    audio_output_rows: Tensor | None = None
    frame_times: Tensor | None = None
    audio_modulation: Modulation | None = None
    prior: Conditioning | None = None
    prior_of_row: Tensor | None = None
    pixels: Tensor | None = None


def frame_times_of(config: DDiTConfig, latents: Tensor, given: Tensor | None) -> Tensor:
    """``given``, or the middle (T,) in seconds of every latent frame of a video (R, C_v, T, H, W) without padding."""
    if given is not None:
        return given
    frames = torch.arange(latents.shape[2], device=latents.device, dtype=torch.float32)
    return (frames + 0.5) / config.latent_fps


def spatial_tokens(config: DDiTConfig, latents: Tensor) -> int:
    """S of video latents (R, C_v, T, H, W)."""
    return (latents.shape[3] // config.patch) * (latents.shape[4] // config.patch)


def context_positions(config: DDiTConfig, frame_times: Tensor, tokens: int) -> Tensor:
    """Positions on the clock of the audio of a context's tokens, for latent frames at ``frame_times`` (T,) seconds.

    One for each of the ``tokens`` of a frame, or one for a frame where the adaptors read means. -> (T * S or T,).
    """
    each = 1 if config.adaptor_tokens == "frame" else tokens
    return (frame_times * config.audio_rate).repeat_interleave(each)


class Denoiser(Protocol):
    """The parts of a d-DiT. Index tensors are int64 on ``device``; latents come in ``dtype``, velocities too."""

    config: DDiTConfig

    @property
    def device(self) -> torch.device:
        """Where tensors are expected."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the latents that are read."""

    @property
    def null_text(self) -> Tensor:
        """The states (L, W) that stand for no prompt."""

    @property
    def null_prior(self) -> Tensor:
        """The prior (2 N, C) that stands for no prompt, in a ``bidirectional`` model."""

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts: states (P, L, W), of which lengths (P,) count."""

    def condition_prior(self, priors: Tensor) -> Conditioning:
        """Keys and values of all prior blocks of a ``bidirectional`` model, for P priors (P, 2 N, C)."""

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """Of the video's flow times t (R, T or 1), 0 = noise, and frame rates fps (R,)."""

    def audio_time(self, t: Tensor) -> Tensor:
        """Of the audio's flow times t (R,). -> (R, D)."""

    def video_token_positions(self, frame_times: Tensor, tokens: int) -> Tensor:
        """Positions of a context's tokens on the clock of the audio, for latent frames (T,) of S tokens. -> (M,)."""

    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """The video tower of a one-way model: velocity (R, C_v, T, H, W), and the contexts that the audio reads."""

    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """The audio tower alone: velocity (R, A, C_a), and in an ``audio_rope`` model the context of every row."""

    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """Both towers of a model in which each reads the other."""


@runtime_checkable
class StepDenoiser(Denoiser, Protocol):
    """A denoiser of a one-way model that also computes whole steps of a tower, of at most ``max_rows`` rows.

    ``step`` takes the place of latents, modulation and time tokens in the inputs, whose own are those of its samples.
    Its latents and steps are updated in place. The methods return the contexts of the pass.
    """

    max_rows: int

    def video_step(self, inputs: VideoInputs, step: TowerStep) -> Context:
        """:meth:`video_pass`, and the Euler step of its velocity."""

    def audio_step(self, inputs: AudioInputs, step: TowerStep) -> Context:
        """:meth:`audio_pass`, and the Euler step of its velocity."""
