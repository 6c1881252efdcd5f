"""What the sampling loop asks of a d-DiT, whoever computes it: this package's modules, a compiled graph, a runtime.

The parts of :class:`~syncflow.engine.model.ddit.DDiT` that cost something, each once: text a prompt, times a schedule,
and a pass of a tower whenever its modality moves. Which rows a pass works on is data (index tensors), so that one graph
serves every guidance plan, task and mix of requests.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .bridges import Context


class Modulation(NamedTuple):
    """What the video tower needs of time and frame rate: ``rows`` (R, T or 1, 6, D) for the blocks, ``embedded``
    (R, T or 1, D) for the final layer."""

    rows: Tensor
    embedded: Tensor


class Sight(NamedTuple):
    """What audio rows read of the video: ``positions`` (M,) of a context's tokens on the clock of the audio, and the
    context that each row reads, ``context_of_row`` (R,) int64 with -1 for none, or ``None`` for its own."""

    positions: Tensor
    context_of_row: Tensor | None = None


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

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts: states (P, L, W), of which lengths (P,) count."""

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """Of the video's flow times t (R, T or 1), 0 = noise, and frame rates fps (R,)."""

    def audio_time(self, t: Tensor) -> Tensor:
        """Of the audio's flow times t (R,). -> (R, D)."""

    def sight_positions(self, frames: int, tokens: int) -> Tensor:
        """Where the tokens of a context stand on the clock of the audio, for T latent frames of S tokens. -> (M,)."""

    def video_pass(
        self,
        z: Tensor,
        times: Modulation,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        heard: Context | None = None,
        heard_of_row: Tensor | None = None,
        prefix_of_row: Tensor | None = None,
        num_outputs: int | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Context]:
        """The video tower of a one-way model: velocity (R, C_v, T, H, W), and the contexts that the audio reads.

        z (R, C_v, T, H, W). In an ``audio_rope`` model ``heard`` comes from :meth:`audio_pass`, row r hears its context
        ``heard_of_row[r]`` (-1: none; without the tensor, its own), and z, times and text_of_row may hold P prefixes,
        of which ``prefix_of_row`` (R,) says where each row begins: what layers before the first bridge compute once. In
        an ``adaptor`` model rows ``seen`` (C,) give the contexts; rows after the first ``num_outputs`` serve for these
        alone, and a velocity returned for them means nothing.
        """

    def audio_pass(
        self,
        z: Tensor,
        times: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        context: Context | None = None,
        sight: Sight | None = None,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Context]:
        """The audio tower alone: velocity (R, A, C_a), and in an ``audio_rope`` model what can be heard.

        z (R, A, C_a), times (R, D) from :meth:`audio_time`. In an ``adaptor`` model ``context`` comes from
        :meth:`video_pass`, with the ``sight`` of it; ``None`` where no row reads any. Rows after the first
        ``num_outputs`` serve for what is heard of them alone.
        """

    def joint_pass(
        self,
        z_v: Tensor,
        z_a: Tensor,
        times_v: Modulation,
        times_a: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        bridged: Tensor | None = None,
        reference: Tensor | None = None,
        drawn_video: Tensor | None = None,
        drawn_audio: Tensor | None = None,
    ) -> Velocities:
        """Both towers of a ``global_local`` model. Rows ``bridged`` (N,), or all, see each other.

        ``reference`` (N, A_r, C_a) latents of sounds whose style the bridged rows take. Velocities are those of rows
        ``drawn_video`` and ``drawn_audio``, or of all.
        """
