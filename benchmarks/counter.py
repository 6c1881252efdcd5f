"""A model that counts instead of computing, for requests to be made ready and sampled with on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor

from syncflow.engine.components import Components
from syncflow.engine.config import DDiTConfig, ModelConfig
from syncflow.engine.model import DDiT
from syncflow.engine.model.denoiser import AudioInputs, JointInputs, VideoInputs
from syncflow.engine.runtime.delegate import Delegate

from .flops import flops


class CountingDenoiser(Delegate):
    """A :class:`~syncflow.engine.model.denoiser.Denoiser` of the given shape, without weights.

    A call whose arguments have shapes that were not seen before runs once on the meta device, where its floating-point
    operations are counted; later ones add the same count. ``flops`` are those of all calls so far, ``calls`` how often
    each method was called, ``rows`` the sum of the leading sizes of the
    first argument, or of the latents of a pass.
    """

    model: DDiT

    def __init__(self, config: DDiTConfig) -> None:
        with torch.device("meta"):
            super().__init__(DDiT(config).eval().requires_grad_(False))
        self.flops = 0
        self.calls: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self._seen: dict[Hashable, tuple[int, Any]] = {}

    def condition(self, *args: Any) -> Any:
        """Counts as its namesake of the d-DiT costs, like the methods below."""
        return self._count("condition", args, args[0])

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
        if key not in self._seen:
            results: list[Any] = []
            count = flops(lambda: results.append(getattr(self.model, name)(*args)))
            self._seen[key] = count, results[0]
        count, result = self._seen[key]
        self.flops += count
        self.calls[name] += 1
        self.rows[name] += len(rows)
        return result


def _shape(value: Any) -> Hashable:
    """What decides the cost of a call: the shapes of tensors, wherever they stand, and everything else as it is."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _shape(part)) for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_shape, value))
    if is_dataclass(value):
        return tuple(_shape(getattr(value, field.name)) for field in fields(value))
    return value


def outline(config: ModelConfig, denoiser: CountingDenoiser) -> Components:
    """A model of which only the shapes are there: enough to make requests ready for sampling, on the meta device."""
    parts = _Frames(config), _Sounds(config), _Prompts(config.ddit)
    return Components(config, denoiser.model, *cast("tuple[Any, Any, Any]", parts))


class _Frames:
    """A video codec's encoder."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def encode(self, frames: Tensor) -> Tensor:
        s, (count, length, height, width, _) = self.config.sequence, frames.shape
        sides = height // s.space_factor, width // s.space_factor
        return torch.empty(count, self.config.ddit.video_channels, -(-length // s.time_factor), *sides, device="meta")


class _Sounds:
    """An audio codec's encoder."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def encode(self, waveform: Tensor) -> Tensor:
        count, samples = waveform.shape
        length = -(-samples // self.config.sequence.audio_hop)
        return torch.empty(count, length, self.config.ddit.audio_channels, device="meta")


class _Prompts:
    """A text encoder."""

    def __init__(self, config: DDiTConfig) -> None:
        self.config = config

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        shape = len(prompts), self.config.text_tokens
        return torch.empty(*shape, self.config.text_width, device="meta"), torch.ones(shape, dtype=torch.bool)
