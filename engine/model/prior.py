"""The spatio-temporal prior of a ``bidirectional`` model: where and when, as tokens that both towers read (JavisDiT).

A request has ``prior_tokens`` spatial and as many temporal tokens, made of its prompt, and the model has as many that
stand for none. All rows of a request read both, [its own; none], whatever their own text is: JavisDiT's code attends
over its whole batch, which is the prompted and the unprompted row of one request. Rows of other requests are not read.

After its spatial and temporal block a layer does, in either tower: ``x += gate * spatial_attention(modulate(LN(x)))``;
``x += gate * temporal_attention(modulate(LN(x)))``; ``x += gate * mlp(modulate(LN(x)))``.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...kernels import gated_residual, modulated_layer_norm, text_cross_attention
from ..config import DDiTConfig
from ..types import Conditioning
from .layers import EPS, CrossAttention, Linear, Mlp

SPATIAL, TEMPORAL, MLP = 0, 3, 6  # where the (shift, scale, gate) of each part of a block stands in its table
PRIOR_PARTS = 9


class PriorBlock(nn.Module):
    """What the tokens of one tower read of the prior after a layer."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.randn(PRIOR_PARTS, width) / width**0.5)
        self.spatial_cross_attn = CrossAttention(width, config.heads)
        self.temporal_cross_attn = CrossAttention(width, config.heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        for linear in (self.spatial_cross_attn.proj, self.temporal_cross_attn.proj, self.mlp.fc2):
            nn.init.zeros_(linear.weight)  # a fresh block passes its input on

    def forward(self, x: Tensor, modulation: Tensor, prior: Conditioning, index: int, prior_of_row: Tensor) -> Tensor:
        """x (R, T, S, D) -> (R, T, S, D).

        modulation (R, T or 1, 9, D); ``index`` is the place of the spatial part among the keys of the prior.
        """
        for part, attention in ((SPATIAL, self.spatial_cross_attn), (TEMPORAL, self.temporal_cross_attn)):
            queries = attention.queries(self._norm(x, modulation, part).flatten(1, 2))
            place = index + part // TEMPORAL
            keys, values = prior.keys[place], prior.values[place]
            mixed = text_cross_attention(queries, keys, values, prior.lengths, prior_of_row)
            x = self._add(x, attention.proj(mixed).view_as(x), modulation, part)
        return self._add(x, self.mlp(self._norm(x, modulation, MLP)), modulation, MLP)

    def _norm(self, x: Tensor, modulation: Tensor, part: int) -> Tensor:
        return modulated_layer_norm(x, self.scale_shift_table, modulation, part, EPS)

    def _add(self, x: Tensor, branch: Tensor, modulation: Tensor, part: int) -> Tensor:
        return gated_residual(x, branch, self.scale_shift_table, modulation, part)


class PriorEmbedding(nn.Module):
    """Tokens of a prior to the width of the towers, and those that stand for none (2 N, C)."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.y_embedding = nn.Parameter(torch.randn(2 * config.prior_tokens, config.prior_width))
        self.y_proj = Mlp(config.prior_width, config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.y_proj(tokens)


class SpatioTemporalPrior(nn.Module):
    """The embedding of the prior, its modulation, and its blocks in both towers."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.tokens = config.prior_tokens
        self.embedder = PriorEmbedding(config)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(config.width, PRIOR_PARTS * config.width))
        self.video_blocks = nn.ModuleList(PriorBlock(config) for _ in range(config.depth))
        self.audio_blocks = nn.ModuleList(PriorBlock(config) for _ in range(config.depth))

    def modulation(self, time_embedding: Tensor) -> Tensor:
        """What the blocks need of the times (R, T or 1, D). -> (R, T or 1, 9, D)."""
        return self.t_block(time_embedding).unflatten(-1, (PRIOR_PARTS, -1))

    def condition(self, priors: Tensor) -> Conditioning:
        """Keys and values of all blocks, spatial and temporal part of each, those of the video first.

        priors (P, 2 N, C), the spatial tokens first. -> keys (4 depth, P, 2 N, n, d), of which all count.
        """
        none = self.embedder.y_embedding.to(priors.dtype).expand_as(priors)
        spatial, temporal = self.embedder(torch.stack((priors, none), 1)).split(self.tokens, 2)
        parts = spatial.flatten(1, 2), temporal.flatten(1, 2)
        projected = [
            attention.keys_values(tokens)
            for block in (*self.video_blocks, *self.audio_blocks)
            for attention, tokens in zip(_attentions(block), parts, strict=True)
        ]
        keys, values = (torch.stack(each) for each in zip(*projected, strict=True))
        lengths = torch.full((len(priors),), 2 * self.tokens, device=priors.device)
        return Conditioning(keys, values, lengths)

    def video(self, layer: int, x: Tensor, modulation: Tensor, prior: Conditioning, prior_of_row: Tensor) -> Tensor:
        """The video tokens (R, T, S, D) after ``layer`` and what they read."""
        return self.video_blocks[layer](x, modulation, prior, 2 * layer, prior_of_row)

    def audio(self, layer: int, x: Tensor, modulation: Tensor, prior: Conditioning, prior_of_row: Tensor) -> Tensor:
        """The audio tokens (R, T, S, D) after ``layer`` and what they read."""
        index = 2 * (len(self.video_blocks) + layer)
        return self.audio_blocks[layer](x, modulation, prior, index, prior_of_row)


def _attentions(block: nn.Module) -> tuple[CrossAttention, CrossAttention]:
    block = cast("PriorBlock", block)
    return block.spatial_cross_attn, block.temporal_cross_attn
