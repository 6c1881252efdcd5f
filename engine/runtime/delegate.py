"""A denoiser that wraps another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import native
from ...kernels.launch import current_implementation, launches_kernels
from ..config import DDiTConfig
from ..model import DDiT
from ..model.denoiser import Denoiser, Modulation
from ..types import Conditioning
from .fp8 import has_fp8_linears


class Delegate:
    """All of a :class:`~syncflow.engine.model.denoiser.Denoiser` but the passes, as ``model`` does it."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.config: DDiTConfig = model.config

    @property
    def device(self) -> torch.device:
        """Where tensors are expected."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the latents that are read."""
        return self.model.dtype

    @property
    def null_text(self) -> Tensor:
        """The states (L, W) that stand for no prompt."""
        return self.model.null_text

    @property
    def null_prior(self) -> Tensor:
        """The prior (2 N, C) that stands for no prompt."""
        return self.model.null_prior

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts."""
        return self.model.condition(states, lengths)

    def condition_prior(self, priors: Tensor) -> Conditioning:
        """Keys and values of all prior blocks for P priors."""
        return self.model.condition_prior(priors)

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """Of the video's flow times and frame rates."""
        return self.model.modulation(t, fps)

    def audio_time(self, t: Tensor) -> Tensor:
        """Of the audio's flow times."""
        return self.model.audio_time(t)

    def video_token_positions(self, frame_times: Tensor, tokens: int) -> Tensor:
        """Where the tokens of a context stand on the clock of the audio."""
        return self.model.video_token_positions(frame_times, tokens)

    def describe(self) -> dict[str, Any]:
        """The options that are on."""
        return describe(self.model)


def describe(model: Denoiser) -> dict[str, Any]:
    """The options of a denoiser: CUDA graphs, overlap, compile, dtype, fp8, and the implementation of the kernels."""
    if isinstance(model, Delegate):
        return model.describe()
    return {
        "cuda_graphs": False,
        "overlap": False,
        "compile": False,
        "dtype": str(model.dtype).removeprefix("torch."),
        "fp8": isinstance(model, DDiT) and has_fp8_linears(model),
        "kernels": _kernels(model),
    }


def _kernels(model: Denoiser) -> str:
    if launches_kernels(model.device):
        return "triton"
    chosen = current_implementation()
    on_cpu = model.device.type == "cpu" and model.dtype == torch.float32
    if chosen == "auto" and on_cpu and native.EXTENSION is not None:
        return f"native {native.instructions()}"
    return "torch" if chosen == "torch" else "reference"
