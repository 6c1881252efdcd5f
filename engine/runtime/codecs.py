"""Codecs and text encoder through graphs; what no graph does, they do themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .graphs import Graphs


def through(parts: Any, run: Graphs, names: Collection[str]) -> Any:
    """``Components`` whose codecs and text encoder leave graphs ``names`` to ``run``."""
    return replace(
        parts,
        video=GraphVideo(parts.video, run, names),
        audio=GraphAudio(parts.audio, run, names),
        text=GraphText(parts.text, run, names),
    )


class _Through:
    """Stands for ``part``, of which it has all that it does not do itself."""

    def __init__(self, part: Any, run: Graphs, names: Collection[str]) -> None:
        self.part, self.run, self.names = part, run, frozenset(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


class GraphVideo(_Through):
    """A video codec: graphs know whole latents alone, so frames are padded at the front, or cut off there."""

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, C_v, T, H/8, W/8) of uint8 frames (B, F, H, W, 3)."""
        if "video_encoder" not in self.names or frames.dtype != torch.uint8:
            return self.part.encode(frames)
        missing = -frames.shape[1] % self.part.strides.time
        first = frames[:, :1].expand(-1, missing, -1, -1, -1)
        return self.run("video_encoder", {"frames": torch.cat((first, frames), 1)})["latents"]

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """The last ``frames`` of latents: uint8 (B, F, H, W, 3)."""
        if "video_decoder" not in self.names:
            return self.part.decode(latents, frames)
        return self.run("video_decoder", {"latents": latents.float()})["frames"][:, -frames:]


class GraphAudio(_Through):
    """An audio codec: graphs know whole latents alone, so there is silence after the end, or it is cut off."""

    def encode(self, waveform: Tensor) -> Tensor:
        """Latents (B, A, C_a) of a waveform (B, M)."""
        if "audio_encoder" not in self.names:
            return self.part.encode(waveform)
        padded = torch.nn.functional.pad(waveform.float(), (0, -waveform.shape[1] % self.part.hop))
        return self.run("audio_encoder", {"waveform": padded})["latents"]

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """The first ``samples`` of latents: (B, M)."""
        if "audio_decoder" not in self.names:
            return self.part.decode(latents, samples)
        return self.run("audio_decoder", {"latents": latents.float()})["waveform"][:, :samples]


class GraphText(_Through):
    """A text encoder, behind its own tokenizer."""

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """States (P, L, W) and mask (P, L)."""
        if "text_encoder" not in self.names:
            return self.part.encode(prompts)
        device = next(self.part.parameters()).device
        ids, mask = (x.to(device) for x in self.part.tokenize(prompts))
        return self.run("text_encoder", {"ids": ids, "mask": mask})["states"], mask
