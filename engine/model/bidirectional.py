"""The bidirectional bridge: at the end of a layer each tower attends to the other, without positions (JavisDiT).

    s = q k^T / sqrt(d),  q = m1_proj(LN(x_v)),  k = m2_proj(LN(x_a))
    x_v += gamma_m1 * out_m1_proj(softmax(s) values_m2_proj(LN(x_a)))
    x_a += gamma_m2 * out_m2_proj(softmax(s^T) values_m1_proj(LN(x_v)))

in half the heads of the towers, each as wide as theirs. Layer norms have no affine part; gammas start at zero.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from ..config import DDiTConfig
from .layers import EPS, Linear


class BidirectionalAttention(nn.Module):
    """Attention of two sets of tokens to each other: the queries of one are the keys of the other."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.m1_proj, self.m2_proj = Linear(width, inner), Linear(width, inner)
        self.values_m1_proj, self.values_m2_proj = Linear(width, inner), Linear(width, inner)
        self.out_m1_proj, self.out_m2_proj = Linear(inner, width), Linear(inner, width)

    def forward(self, x_1: Tensor, x_2: Tensor) -> tuple[Tensor, Tensor]:
        """What (R, N, D) reads of (R, M, D), and the other way round."""
        one, two = self._heads(self.m1_proj(x_1)), self._heads(self.m2_proj(x_2))
        read_1 = scaled_dot_product_attention(one, two, self._heads(self.values_m2_proj(x_2)))
        read_2 = scaled_dot_product_attention(two, one, self._heads(self.values_m1_proj(x_1)))
        return self.out_m1_proj(_merged(read_1)), self.out_m2_proj(_merged(read_2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BidirectionalLayer(nn.Module):
    """The bridge after one layer. Parameter names are those of JavisDiT: m1 is the video, m2 the audio."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.cross_attn = BidirectionalAttention(config.width, config.heads // 2, config.head_width)
        self.gamma_m1 = nn.Parameter(torch.zeros(config.width))
        self.gamma_m2 = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_v: Tensor, x_a: Tensor) -> tuple[Tensor, Tensor]:
        """Video tokens (R, N, D) and audio tokens (R, M, D) after they have read each other."""
        to_video, to_audio = self.cross_attn(_normed(x_v), _normed(x_a))
        return torch.addcmul(x_v, self.gamma_m1, to_video), torch.addcmul(x_a, self.gamma_m2, to_audio)


class BidirectionalBridge(nn.Module):
    """JavisDiT: both towers read each other's tokens at the end of every layer."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BidirectionalLayer(config) for _ in range(config.depth))

    def forward(self, layer: int, x_v: Tensor, x_a: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tokens of both towers (R, T, S, D) after the bridge of ``layer``.

        ``rows`` (N,) whose towers read each other, or ``None`` for all; the others stay as they are.
        """
        bridge = cast("BidirectionalLayer", self.layers[layer])
        video, audio = (x if rows is None else x[rows] for x in (x_v, x_a))
        found = bridge(video.flatten(1, 2), audio.flatten(1, 2))
        video, audio = (tokens.view_as(x) for tokens, x in zip(found, (video, audio), strict=True))
        if rows is None:
            return video, audio
        return x_v.index_copy(0, rows, video), x_a.index_copy(0, rows, audio)


def _normed(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=EPS)


def _merged(x: Tensor) -> Tensor:
    """Heads (R, n, N, d) side by side: (R, N, n * d)."""
    return x.transpose(1, 2).flatten(2)
