"""The audio tower of a ``bidirectional`` model: a second STDiT, over latents of a mel spectrogram (JavisDiT).

z_a (R, A, C_a) are A latent frames of ``audio_bins`` mel bins; ``audio_patch`` frames are a token at each bin, so that
bins stand where the video has the tokens of a frame, and time where the video has its latent frames. Flow time, frame
rate and rotary frequencies are embedded by the video tower, for both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import DDiTConfig
from ..types import Conditioning
from .denoiser import Modulation
from .layers import rope_frequencies
from .stdit import CaptionEmbedding, FinalLayer, STDiT, STDiTBlock, STDiTState


class MelEmbedding(nn.Module):
    """z (R, C, A, bins) -> tokens (R, T, bins, D) of ``audio_patch`` latent frames each."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        patch = (config.audio_patch, 1)
        channels = config.audio_channels // config.audio_bins
        self.proj = nn.Conv2d(channels, config.width, kernel_size=patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        return self.proj(z).movedim(1, -1)


class MelTower(STDiT):
    """The velocity of the audio latents; reads video and prior only through what is added between two layers."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config, self.first_text = config, 2 * config.depth
        self.channels = config.audio_channels // config.audio_bins
        self.x_embedder = MelEmbedding(config)
        self.y_embedder = CaptionEmbedding(config)
        self.spatial_blocks = nn.ModuleList(STDiTBlock(config) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(STDiTBlock(config) for _ in range(config.depth))
        channels = self.channels * (2 if config.sigma_head else 1)
        self.final_layer = FinalLayer(config.width, config.audio_patch * channels)
        self.initialize_blocks()

    def embed(
        self, latents: Tensor, modulation: Modulation, text: Conditioning, text_of_row: Tensor, rope: Tensor
    ) -> STDiTState:
        """Latents (R, A, C_a) before the first layer; modulation as of the video, rope (A / audio_patch, d / 2, 2)."""
        bins = self.config.audio_bins
        x = self.x_embedder(latents.unflatten(-1, (self.channels, bins)).movedim(2, 1))
        x = x + self.positions(bins).to(x.dtype)
        return STDiTState(x, None, *modulation, text, text_of_row, rope, (x.shape[1], bins))

    def finish(self, state: STDiTState) -> Tensor:
        """Velocity (R, A, C_a) after the last layer."""
        frames = self.final_layer(state.x, state.time_embedding).unflatten(-1, (self.config.audio_patch, -1))
        return frames.permute(0, 1, 3, 4, 2).flatten(1, 2)[:, :, : self.channels].flatten(2)

    def positions(self, bins: int) -> Tensor:
        """1-D sin-cos embedding of the mel bins (bins, D)."""
        width, device = self.config.width, self.y_embedder.y_embedding.device
        angles = torch.arange(bins, device=device, dtype=torch.float32)[:, None] * rope_frequencies(width, 1e4, device)
        return torch.cat((angles.sin(), angles.cos()), -1)
