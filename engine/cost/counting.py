"""A denoiser that counts FLOPs instead of computing, and components on the meta device to prepare requests with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..components import Components
from ..config import DDiTConfig, ModelConfig
from ..model import DDiT
from ..model.denoiser import AudioInputs, JointInputs, VideoInputs
from ..runtime.delegate import Delegate
from .flops import flops


class CountingDenoiser(Delegate):
    """A :class:`~syncflow.engine.model.denoiser.Denoiser` on the meta device that counts FLOPs.

    A call with new argument shapes runs once on the meta device and its FLOPs are counted; calls with the same shapes
    add the same count. ``flops`` is the sum over all calls; ``calls`` counts the calls of each method, and ``rows``
    adds up the rows of their inputs.
    """

    model: DDiT

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__(meta_model(config))
        self.flops = 0
        self.calls: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self._results: dict[Hashable, tuple[int, Any]] = {}

    def condition(self, *args: Any) -> Any:
        """Counts the FLOPs of the d-DiT's method of this name, as do the methods below."""
        return self._count("condition", args, args[0])

    def condition_prior(self, *args: Any) -> Any:
        """See :meth:`condition`."""
        return self._count("condition_prior", args, args[0])

    def modulation(self, *args: Any) -> Any:
        """See :meth:`condition`."""
        return self._count("modulation", args, args[0])

    def audio_time(self, *args: Any) -> Any:
        """See :meth:`condition`."""
        return self._count("audio_time", args, args[0])

    def video_pass(self, inputs: VideoInputs) -> Any:
        """See :meth:`condition`."""
        return self._count("video_pass", (inputs,), inputs.latents)

    def audio_pass(self, inputs: AudioInputs) -> Any:
        """See :meth:`condition`."""
        return self._count("audio_pass", (inputs,), inputs.latents)

    def joint_pass(self, inputs: JointInputs) -> Any:
        """See :meth:`condition`."""
        return self._count("joint_pass", (inputs,), inputs.video_latents)

    def _count(self, name: str, args: tuple[Any, ...], rows: Tensor) -> Any:
        key = name, _shape(args)
        if key not in self._results:
            results: list[Any] = []
            count = flops(lambda: results.append(getattr(self.model, name)(*args)))
            self._results[key] = count, results[0]
        count, result = self._results[key]
        self.flops += count
        self.calls[name] += 1
        self.rows[name] += len(rows)
        return result


def _shape(value: Any) -> Hashable:
    """The key of a call: shapes and dtypes of tensors at any depth, and every other value itself."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if isinstance(value, Mapping):
        return tuple((name, _shape(part)) for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_shape, value))
    if is_dataclass(value):
        return tuple(_shape(getattr(value, field.name)) for field in fields(value))
    return value


def meta_model(config: DDiTConfig) -> DDiT:
    """A d-DiT on the meta device: shapes without values."""
    with torch.device("meta"):
        return DDiT(config).eval().requires_grad_(False)


def meta_components(config: ModelConfig, denoiser: CountingDenoiser) -> Components:
    """Components whose encoders return tensors of the meta device: enough to prepare requests."""
    parts = _MetaVideoEncoder(config), _MetaAudioEncoder(config), _MetaTextEncoder(config.ddit)
    return Components(config, denoiser.model, *cast("tuple[Any, Any, Any]", parts))


class _MetaVideoEncoder:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def encode(self, frames: Tensor) -> Tensor:
        count, length, height, width, _ = frames.shape
        s = self.config.sequence.replace(seconds=length / self.config.sequence.fps)
        sides = height // s.space_factor, width // s.space_factor
        return torch.empty(count, self.config.ddit.video_channels, s.latent_frames, *sides, device="meta")


class _MetaAudioEncoder:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def encode(self, waveform: Tensor) -> Tensor:
        count, samples = waveform.shape
        s = self.config.sequence
        length = -(-samples // (s.audio_hop * s.audio_multiple)) * s.audio_multiple
        return torch.empty(count, length, self.config.ddit.audio_channels, device="meta")


class _MetaTextEncoder:
    def __init__(self, config: DDiTConfig) -> None:
        self.config = config

    def encode_prior(self, prompt: str) -> None:
        """None: the null prior has the same shape."""

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        shape = len(prompts), self.config.text_tokens
        return torch.empty(*shape, self.config.text_width, device="meta"), torch.ones(shape, dtype=torch.bool)
