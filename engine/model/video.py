"""The video tower: Open-Sora's STDiT3, tensor for tensor (SyncFlow section 3.2).

z_v -> 2x2 patches -> (R, T, S, D) -> ``depth`` times a spatial and a temporal block -> velocity. Each block:
``x += gate * attention(modulate(LN(x)))``; ``x += text_cross_attention(x)``; ``x += gate * mlp(modulate(LN(x)))``.
A residual and the norm that follows it, in the same block or at the start of the next, are one operation. What a bridge
adds at the entry of a layer is such a residual, without a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ...kernels import (
    gated_linear,
    gated_residual,
    gated_residual_norm,
    modulated_layer_norm,
    patch_embedding,
    rope_table,
    spatial_attention,
    temporal_attention,
    text_cross_attention,
)
from ..config import DDiTConfig
from ..types import Conditioning
from .bridges import LayerBridge
from .denoiser import Modulation
from .layers import EPS, CrossAttention, Linear, Mlp, ScalarEmbedding, SelfAttention, rope_frequencies

ATTENTION, MLP = 0, 3  # where the (shift, scale, gate) of each half of a block stands in its table


def add_and_norm(
    x: Tensor, branch: Tensor, modulation: Tensor, block: STDiTBlock | None, half: int, gate: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """x + gate * branch, and the modulated norm of that with which a ``half`` of ``block`` begins, in one operation.

    ``gate`` is the table of the block whose MLP made the branch, and then ``block`` is the one that follows, or
    ``None`` after the last, where there is no norm. The branches of the text and of a bridge have no gate.
    """
    if block is not None:
        return gated_residual_norm(x, branch, gate, modulation, MLP, block.scale_shift_table, half, EPS)
    assert gate is not None
    return gated_residual(x, branch, gate, modulation, MLP), None


class STDiTBlock(nn.Module):
    """A spatial block, or a temporal one when it is given the rotation of the latent frames."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = SelfAttention(width, config.heads)
        self.cross_attn = CrossAttention(width, config.heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(
        self,
        x: Tensor,
        normed: Tensor | None,
        state: VideoState,
        index: int,
        following: STDiTBlock | None,
        *,
        branch: Tensor | None = None,
        temporal: bool = False,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The tokens x (R, T, S, D) after the block, their norm that the ``following`` block begins with, and the
        tokens after this block's attention.

        ``normed`` is the norm of x that this block begins with, where it came with the last residual; ``branch``
        (R, T, S, D) is what a bridge adds to x first. Modulation, rope and text are those of ``state``, ``index`` the
        place of this block among the keys and values of the text. Only the first ``num_outputs`` rows go on after the
        attention.
        """
        modulation, text_of_row = state.block_modulation, state.text_of_row
        x, normed = self.begin(x, normed, branch, modulation)
        # x += gate * attention(modulate(LN(x)))
        x = attended = self.gated_attention(x, normed, modulation, state.rope if temporal else None)
        if num_outputs is not None:
            x, modulation, text_of_row = x[:num_outputs], modulation[:num_outputs], text_of_row[:num_outputs]
        # x += text_cross_attention(x)
        text = self.text_attention(x, state.text, index, text_of_row)
        x, normed = add_and_norm(x, text, modulation, self, MLP)
        # x += gate * mlp(modulate(LN(x)))
        x, normed = add_and_norm(x, self.mlp(normed), modulation, following, ATTENTION, self.scale_shift_table)
        return x, normed, attended

    def begin(
        self, x: Tensor, normed: Tensor | None, branch: Tensor | None, modulation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x with the branch of a bridge added, and its norm, from which the attention begins."""
        if branch is not None:
            x, normed = add_and_norm(x, branch, modulation, self, ATTENTION)
        elif normed is None:
            normed = modulated_layer_norm(x, self.scale_shift_table, modulation, ATTENTION, EPS)
        assert normed is not None
        return x, normed

    def gated_attention(self, x: Tensor, normed: Tensor, modulation: Tensor, rope: Tensor | None) -> Tensor:
        """x + gate * attention(normed): (R, T, S, D) -> (R, T, S, D)."""
        packed = self.attn.pack(normed)
        q_weight, k_weight = self.attn.q_norm.weight, self.attn.k_norm.weight
        if rope is None:
            mixed = spatial_attention(packed, q_weight, k_weight, EPS)
        else:
            mixed = temporal_attention(packed, q_weight, k_weight, rope, EPS)
        proj, table = self.attn.proj, self.scale_shift_table
        x = gated_linear(mixed, proj.weight, proj.bias, x, table, modulation, ATTENTION)
        added = proj.delta(mixed)
        return x if added is None else gated_residual(x, added, table, modulation, ATTENTION)

    def text_attention(self, x: Tensor, text: Conditioning, index: int, text_of_row: Tensor) -> Tensor:
        """Cross-attention from x to the text of every row, without norm or gate: (R, T, S, D) -> (R, T, S, D)."""
        queries = self.cross_attn.queries(x.flatten(1, 2))
        mixed = text_cross_attention(queries, text.keys[index], text.values[index], text.lengths, text_of_row)
        return self.cross_attn.proj(mixed).view_as(x)


class CaptionEmbedding(nn.Module):
    """Text encoder states to the width of the tower, and the learned null text (L, W) that stands for no prompt."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.y_embedding = nn.Parameter(torch.randn(config.text_tokens, config.text_width) / config.text_width**0.5)
        self.y_proj = Mlp(config.text_width, config.width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        return self.y_proj(states)


class PatchEmbedding(nn.Module):
    """z_v (R, C_v, T, H, W) -> tokens (R, T, S, D) by a strided 3-D convolution."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        patch = (1, config.patch, config.patch)
        self.proj = nn.Conv3d(config.video_channels, config.width, kernel_size=patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        assert self.proj.bias is not None
        return patch_embedding(z, self.proj.weight, self.proj.bias)


class FinalLayer(nn.Module):
    """Modulated norm and a linear map to the patch; ``scale_shift_table`` (2, D) goes with the un-blocked embedding."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        channels = config.video_channels * (2 if config.sigma_head else 1)
        self.scale_shift_table = nn.Parameter(torch.randn(2, config.width) / config.width**0.5)
        self.linear = Linear(config.width, config.patch**2 * channels)

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        modulation = time_embedding[:, :, None].expand(-1, -1, 2, -1)
        return self.linear(modulated_layer_norm(x, self.scale_shift_table, modulation, 0, EPS))


class Rope(nn.Module):
    """Holds the rotary frequencies under the name that Open-Sora's checkpoints use."""

    freqs: Tensor

    def __init__(self, head_width: int, theta: float) -> None:
        super().__init__()
        self.register_buffer("freqs", rope_frequencies(head_width, theta))


@dataclass(frozen=True)
class VideoState:
    """R rows between two layers: tokens x (R, T, S, D) and what no layer changes.

    ``normed`` is the norm that the next layer begins with, where it came with the last residual. Modulation as from
    :meth:`VideoTower.modulation`; rope (T, d / 2, 2); ``size`` tokens of a frame, down and across.
    """

    x: Tensor
    normed: Tensor | None
    block_modulation: Tensor
    time_embedding: Tensor
    text: Conditioning
    text_of_row: Tensor
    rope: Tensor
    size: tuple[int, int]

    def take(self, index: Tensor | slice) -> VideoState:
        """Rows ``index``, which may repeat: branches that agree up to here share what came before."""
        names = ("x", "block_modulation", "time_embedding", "text_of_row")
        normed = None if self.normed is None else self.normed[index]
        return replace(self, normed=normed, **{name: getattr(self, name)[index] for name in names})


class VideoTower(nn.Module):
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
        self.final_layer = FinalLayer(config)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for part in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1]):
            nn.init.normal_(part.get_parameter("weight"), std=0.02)
        for _, block in self.layers:  # a fresh temporal block passes its input on
            for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def layers(self) -> list[tuple[STDiTBlock, STDiTBlock]]:
        """The spatial and the temporal block of every layer."""
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return cast("list[tuple[STDiTBlock, STDiTBlock]]", list(pairs))

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks (spatial and temporal of layer 0, of layer 1, …) for P prompts, once a prompt.

        states (P, L, W) of the text encoder, lengths (P,) tokens that count.
        """
        text = self.y_embedder(states)
        projected = [block.cross_attn.keys_values(text) for layer in self.layers for block in layer]
        keys, values = (torch.stack(parts) for parts in zip(*projected, strict=True))
        return Conditioning(keys, values, lengths, text)

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
        state: VideoState,
        layer_bridges: Mapping[int, LayerBridge],
        prefix_of_row: Tensor | None,
        num_outputs: int | None,
        keep: Callable[[int, Tensor], Tensor] | None,
    ) -> tuple[VideoState, list[Tensor]]:
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
    ) -> VideoState:
        """Latents (R, C_v, T, H, W) before the first layer."""
        size = latents.shape[3] // self.config.patch, latents.shape[4] // self.config.patch
        x = self.x_embedder(latents) + self.positions(*size, pixels).to(latents.dtype)
        return VideoState(x, None, *modulation, text, text_of_row, self.rope_table(latents.shape[2]), size)

    def layer(
        self,
        index: int,
        state: VideoState,
        branch: Tensor | None = None,
        *,
        ahead: bool = True,
        num_outputs: int | None = None,
    ) -> tuple[VideoState, Tensor]:
        """The state after layer ``index``, and its tokens after temporal attention (R, T, S, D).

        ``branch`` (R, T, S, D) is added at the entry. ``ahead`` takes the norm that the next layer begins with along;
        wasted where that layer has a branch, with the same result. Only the first ``num_outputs`` rows go on after the
        temporal attention.
        """
        spatial, temporal = self._blocks(index)
        following = self._blocks(index + 1)[0] if ahead and index + 1 < self.config.depth else None
        x, normed, _ = spatial(state.x, state.normed, state, 2 * index, temporal, branch=branch)
        x, normed, feature = temporal(
            x, normed, state, 2 * index + 1, following, temporal=True, num_outputs=num_outputs
        )
        if num_outputs is not None:
            state = state.take(slice(num_outputs))
        return replace(state, x=x, normed=normed), feature

    def finish(self, state: VideoState) -> Tensor:
        """Velocity (R, C_v, T, H, W) after the last layer."""
        patch = self.config.patch
        patches = self.final_layer(state.x, state.time_embedding).unflatten(2, state.size)
        patches = patches.unflatten(-1, (patch, patch, -1))
        velocity = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(3, 4).flatten(4, 5)
        return velocity[:, : self.config.video_channels]

    def _blocks(self, index: int) -> tuple[STDiTBlock, STDiTBlock]:
        return cast("tuple[STDiTBlock, STDiTBlock]", (self.spatial_blocks[index], self.temporal_blocks[index]))

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
