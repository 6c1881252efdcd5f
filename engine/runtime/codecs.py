"""Codecs and text encoder as exported graphs, with PyTorch for whatever no graph computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..exports import GraphSpec
from ..types import WHOLE, DecodeTiles
from .exported import Graphs


def with_graph_codecs(parts: Any, run: Graphs, graphs: Mapping[str, GraphSpec]) -> Any:
    """``Components`` whose codecs and text encoder run these ``graphs`` with ``run``."""
    return replace(
        parts,
        video=GraphVideo(parts.video, run, graphs),
        audio=GraphAudio(parts.audio, run, graphs),
        text=GraphText(parts.text, run, graphs),
    )


class _WithGraphs:
    """``part`` with some of its methods computed by graphs."""

    def __init__(self, part: Any, run: Graphs, graphs: Mapping[str, GraphSpec]) -> None:
        self.part, self.run, self.graphs = part, run, graphs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def _has(self, name: str, **shapes: Sequence[int]) -> bool:
        """Whether there is such a graph, for inputs of these shapes."""
        return name in self.graphs and self.graphs[name].accepts(shapes)


class GraphVideo(_WithGraphs):
    """A video codec: graphs know whole latents alone, so frames are padded at the front, or cut off there."""

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, C_v, T, H/8, W/8) of uint8 frames (B, F, H, W, 3)."""
        count, length, *rest = frames.shape
        missing = -length % self.part.strides.time
        whole = (count, length + missing, *rest)
        if frames.dtype != torch.uint8 or not self._has("video_encoder", frames=whole):
            return self.part.encode(frames)
        first = frames[:, :1].expand(-1, missing, -1, -1, -1)
        return self.run("video_encoder", {"frames": torch.cat((first, frames), 1)})["latents"]

    def decode(self, latents: Tensor, frames: int, tiles: DecodeTiles = WHOLE) -> Tensor:
        """The last ``frames`` of latents: uint8 (B, F, H, W, 3). Tiles are decoded without a graph."""
        if tiles != WHOLE or not self._has("video_decoder", latents=latents.shape):
            return self.part.decode(latents, frames, tiles)
        return self.run("video_decoder", {"latents": latents.float()})["frames"][:, -frames:]


class GraphAudio(_WithGraphs):
    """An audio codec: graphs know whole latents alone, so there is silence after the end, or it is cut off."""

    def encode(self, waveform: Tensor) -> Tensor:
        """Latents (B, A, C_a) of a waveform (B, M)."""
        count, length = waveform.shape
        missing = -length % self.part.hop
        if not self._has("audio_encoder", waveform=(count, length + missing)):
            return self.part.encode(waveform)
        padded = torch.nn.functional.pad(waveform.float(), (0, missing))
        return self.run("audio_encoder", {"waveform": padded})["latents"]

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """The first ``samples`` of latents: (B, M)."""
        if not self._has("audio_decoder", latents=latents.shape):
            return self.part.decode(latents, samples)
        return self.run("audio_decoder", {"latents": latents.float()})["waveform"][:, :samples]


class GraphText(_WithGraphs):
    """A text encoder, behind its own tokenizer."""

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """States (P, L, W) and mask (P, L)."""
        if "text_encoder" not in self.graphs:
            return self.part.encode(prompts)
        device = next(self.part.parameters()).device
        ids, mask = (x.to(device) for x in self.part.tokenize(prompts))
        return self.run("text_encoder", {"ids": ids, "mask": mask})["states"], mask
