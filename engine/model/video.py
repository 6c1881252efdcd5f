"""The video tower: Open-Sora's STDiT3, tensor for tensor (SyncFlow section 3.2).

z_v -> 2x2 patches -> (R, T, S, D) -> ``depth`` times a spatial and a temporal block (:mod:`.stdit`) -> velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...kernels import patch_embedding, rope_table
from ..config import DDiTConfig
from ..types import Conditioning
from .bridges import LayerBridge
from .denoiser import Modulation
from .layers import ScalarEmbedding, rope_frequencies
from .stdit import CaptionEmbedding, FinalLayer, STDiT, STDiTBlock, STDiTState


class PatchEmbedding(nn.Module):
    """z_v (R, C_v, T, H, W) -> tokens (R, T, S, D) by a strided 3-D convolution."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        patch = (1, config.patch, config.patch)
        self.proj = nn.Conv3d(config.video_channels, config.width, kernel_size=patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        assert self.proj.bias is not None
        return patch_embedding(z, self.proj.weight, self.proj.bias)


class Rope(nn.Module):
    """Holds the rotary frequencies under the name that Open-Sora's checkpoints use."""

    freqs: Tensor

    def __init__(self, head_width: int, theta: float) -> None:
        super().__init__()
        self.register_buffer("freqs", rope_frequencies(head_width, theta))


class VideoTower(STDiT):
    """The velocity of the video latents given time, frame rate and text.

    Reads audio only through what a bridge adds at the entry of a layer. :meth:`forward` is :meth:`embed`, :meth:`layer`
    for every layer (:meth:`run_layers`), :meth:`finish`.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.rope = Rope(config.head_width, config.rope_theta)
        self.x_embedder = PatchEmbedding(config)
        self.t_embedder = ScalarEmbedding(width)
        self.fps_embedder = ScalarEmbedding(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedding(config)
        self.spatial_blocks = nn.ModuleList(STDiTBlock(config) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(STDiTBlock(config) for _ in range(config.depth))
        channels = config.video_channels * (2 if config.sigma_head else 1)
        self.final_layer = FinalLayer(width, config.patch**2 * channels)
        self.initialize_blocks()
        for part in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1]):
            nn.init.normal_(part.get_parameter("weight"), std=0.02)

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """What the blocks and the final layer need of time and frame rate, once a step.

        t (R, T or 1) flow time, 0 = noise, in single or double precision; fps (R,).
        """
        time_embedding = self.t_embedder(1000 * (1 - t)) + self.fps_embedder(fps)[:, None]
        return Modulation(self.t_block(time_embedding).unflatten(-1, (6, -1)), time_embedding)

    def forward(
        self,
        latents: Tensor,
        modulation: Modulation,
        text: Conditioning,
        text_of_row: Tensor,
        layer_bridges: Mapping[int, LayerBridge] | None = None,
        prefix_of_row: Tensor | None = None,
        num_outputs: int | None = None,
        keep: Callable[[int, Tensor], Tensor] | None = None,
        pixels: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity (R, C_v, T, H, W) and, per layer, what ``keep(layer, x)`` makes of the tokens x (R, T, S, D) after
        its temporal attention, which are not kept themselves; nothing without it.

        ``layer_bridges``: by layer, what a bridge makes of the tokens at its entry and adds to them. With
        ``prefix_of_row`` (R,) int64 the arguments have a row for each of P prefixes, and only the layers from the first
        bridge on work on all R rows: row r goes on where prefix ``prefix_of_row[r]`` ends. Rows after the first
        ``num_outputs`` are wanted for their features alone and have no velocity. ``pixels`` (1,) as of
        :meth:`positions`.
        """
        state = self.embed(latents, modulation, text, text_of_row, pixels)
        state, kept = self.run_layers(state, layer_bridges or {}, prefix_of_row, num_outputs, keep)
        return self.finish(state), kept

    def run_layers(
        self,
        state: STDiTState,
        layer_bridges: Mapping[int, LayerBridge],
        prefix_of_row: Tensor | None,
        num_outputs: int | None,
        keep: Callable[[int, Tensor], Tensor] | None,
    ) -> tuple[STDiTState, list[Tensor]]:
        """The state after all layers, and what is kept of them; arguments as of :meth:`forward`."""
        kept, last = [], self.config.depth - 1
        for i in range(self.config.depth):
            if prefix_of_row is not None and i == min(layer_bridges, default=0):
                state = state.take(prefix_of_row)
            branch = layer_bridges[i](state.x) if i in layer_bridges else None
            state, feature = self.layer(
                i, state, branch, ahead=i + 1 not in layer_bridges, num_outputs=num_outputs if i == last else None
            )
            if keep is not None:
                kept.append(keep(i, feature))
        return state, kept

    def embed(
        self,
        latents: Tensor,
        modulation: Modulation,
        text: Conditioning,
        text_of_row: Tensor,
        pixels: Tensor | None = None,
    ) -> STDiTState:
        """Latents (R, C_v, T, H, W) before the first layer."""
        size = latents.shape[3] // self.config.patch, latents.shape[4] // self.config.patch
        x = self.x_embedder(latents) + self.positions(*size, pixels).to(latents.dtype)
        return STDiTState(x, None, *modulation, text, text_of_row, self.rope_table(latents.shape[2]), size)

    def finish(self, state: STDiTState) -> Tensor:
        """Velocity (R, C_v, T, H, W) after the last layer."""
        patch = self.config.patch
        patches = self.final_layer(state.x, state.time_embedding).unflatten(2, state.size)
        patches = patches.unflatten(-1, (patch, patch, -1))
        velocity = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(3, 4).flatten(4, 5)
        return velocity[:, : self.config.video_channels]

    def rope_table(self, frames: int) -> Tensor:
        """Cosines and sines of latent frames 0 .. T-1. -> (T, d / 2, 2)."""
        return rope_table(torch.arange(frames, device=self.rope.freqs.device)[:, None] * self.rope.freqs.float())

    def positions(self, height: int, width: int, pixels: Tensor | None = None) -> Tensor:
        """2-D sin-cos embedding (S, D), scaled so that a new resolution keeps the positions of the base resolution.

        Tokens (height, width); columns fill the first half of D, as in Open-Sora. ``pixels`` (1,): height times width
        of the clip where the tokens do not cover it exactly.
        """
        dim = self.config.width // 2
        side = (height * width) ** 0.5 * self.config.patch * 8 if pixels is None else pixels.sqrt()
        scale = side / self.config.base_size
        base = round((height * width) ** 0.5)
        device = self.rope.freqs.device
        ladder = rope_frequencies(dim, 10_000.0, device)

        def encode(count: int) -> Tensor:
            grid = torch.arange(count, device=device, dtype=torch.float32) / scale * (base / count)
            angles = grid[:, None] * ladder
            return torch.cat((angles.sin(), angles.cos()), -1)

        columns = encode(width)[None].expand(height, -1, -1)
        rows = encode(height)[:, None].expand(-1, width, -1)
        return torch.cat((columns, rows), -1).flatten(0, 1)
