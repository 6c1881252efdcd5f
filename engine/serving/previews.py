"""Previews of a video that is being sampled: its latents by a linear map to RGB, without the video decoder.

    rgb = [z, 1] W,   W = argmin |[z, 1] W - mean colour of the pixels of a latent|^2

The map is fitted once to smooth random pictures that the video codec encodes, so it serves every codec.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.video import VideoCodec
from ..config import SequenceConfig

PICTURES, COARSE = 12, 4  # pictures of the fit, and random colours along each of their sides
MOST_FRAMES = 16  # of a strip


class LatentProjection:
    """``weights`` (C_v + 1, 3): latents, and 1, to RGB from 0 to 1."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    @classmethod
    @torch.inference_mode()
    def fit(cls, codec: VideoCodec, sequence: SequenceConfig, device: torch.device) -> LatentProjection:
        """The map of a codec, at the size of the model's own clip (256x256 at most)."""
        step = sequence.space_factor * sequence.patch
        height, width = (max(step, min(side, 256) // step * step) for side in (sequence.height, sequence.width))
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(PICTURES, 3, COARSE, COARSE, generator=generator)
        pictures = F.interpolate(colours, (height, width), mode="bicubic").clamp(0, 1)
        frames = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None]
        frames = frames.expand(-1, sequence.time_factor, -1, -1, -1).contiguous()
        latents = codec.encode(frames.to(device)).float().cpu()[:, :, -1]  # (N, C_v, H, W)
        pooled = F.adaptive_avg_pool2d(pictures, (latents.shape[-2], latents.shape[-1]))
        z, rgb = (values.movedim(1, -1).flatten(0, 2).double() for values in (latents, pooled))
        return cls(torch.linalg.lstsq(_with_one(z), rgb).solution.float())

    @torch.inference_mode()
    def project(self, latents: Tensor) -> np.ndarray:
        """Latents (C_v, T, H, W) as pictures, uint8 (T, H, W, 3)."""
        rgb = _with_one(latents.float().cpu().movedim(0, -1)) @ self.weights
        return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def strip(self, latents: Tensor) -> tuple[bytes, int]:
        """A PNG of latent frames (at most 16, evenly chosen) side by side, and their number."""
        from PIL import Image

        frames = self.project(latents)
        chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int)]
        file = io.BytesIO()
        Image.fromarray(np.concatenate(list(chosen), axis=1)).save(file, "png")
        return file.getvalue(), len(chosen)


def _with_one(z: Tensor) -> Tensor:
    return torch.cat((z, z.new_ones(*z.shape[:-1], 1)), -1)
