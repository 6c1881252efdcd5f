"""The audio tower and the modality adaptors through which it reads the video (SyncFlow section 3.2).

Each layer: self-attention, cross-attention, MLP, every one followed by a LayerNorm before it is added back. The context
of layer l is the adapted video features of layer l and the embedding of the audio's flow time as one token. Positions
are times: a token at tau seconds is rotated by tau * audio_rate * frequency, on both sides of every attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import rope_cross_attention, rotation, temporal_attention
from ..config import DDiTConfig
from .layers import EPS, CrossAttention, Mlp, ScalarEmbedding, SelfAttention, rope_frequencies

NO_WINDOW = -1.0


class Clocks(NamedTuple):
    """Positions of a layer's audio tokens (A,) and of its context (M,), in audio tokens, and rotary frequencies."""

    queries: Tensor
    context: Tensor
    frequencies: Tensor


def self_attend(attention: SelfAttention, x: Tensor, turns: Tensor) -> Tensor:
    """Rotary self-attention over one axis of tokens at ``turns`` (N, d / 2, 2): (R, N, D) -> (R, N, D)."""
    packed = attention.pack(x[:, :, None])
    mixed = temporal_attention(packed, attention.q_norm.weight, attention.k_norm.weight, turns, EPS)
    return attention.proj(mixed[:, :, 0])


class ModalityAdaptor(nn.Module):
    """Multi-head self-attention over the video tokens, LayerNorm, Linear. (R, N, D) -> (R, N, D)."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.audio_heads)
        self.norm = nn.LayerNorm(config.width)
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        return self.linear(self.norm(self_attend(self.attn, x, turns)))


class AudioLayer(nn.Module):
    """One transformer layer of the audio tower."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = SelfAttention(width, config.audio_heads)
        self.cross_attn = CrossAttention(width, config.audio_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, turns: Tensor, context: Tensor, clocks: Clocks) -> Tensor:
        x = x + self.norm1(self_attend(self.attn, x, turns))
        keys, values = self.cross_attn.keys_values(context)
        read = rope_cross_attention(self.cross_attn.queries(x), keys, values, *clocks, NO_WINDOW)
        x = x + self.norm2(self.cross_attn.proj(read))
        return x + self.norm3(self.mlp(x))


class AudioTower(nn.Module):
    """The velocity of the audio latents given their time and the features of the video tower."""

    freqs: Tensor

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = nn.Linear(config.audio_channels, width)
        self.t_embedder = ScalarEmbedding(width)
        self.adaptors = nn.ModuleList(
            ModalityAdaptor(config) for _ in range(config.depth) if config.adaptor_tokens != "none"
        )
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(width)
        self.final_linear = nn.Linear(width, config.audio_channels)
        self.register_buffer("freqs", rope_frequencies(config.audio_head_width, config.rope_theta))
        nn.init.zeros_(self.final_linear.weight)
        nn.init.zeros_(self.final_linear.bias)

    def adapt(self, features: list[Tensor]) -> list[Tensor]:
        """Video features of every layer (R, T, S, D) as context tokens (R, T * S or T, D): once per video pass."""
        if self.config.adaptor_tokens == "none":
            return [feature.flatten(1, 2) for feature in features]
        pooled = [f.mean(2) if self.config.adaptor_tokens == "frame" else f.flatten(1, 2) for f in features]
        frames = features[0].shape[1]
        turns = rotation(self._video_positions(frames, pooled[0].shape[1] // frames)[:, None] * self.freqs.float())
        return [adaptor(x, turns) for adaptor, x in zip(self.adaptors, pooled, strict=True)]

    def forward(self, z: Tensor, t: Tensor, context: list[Tensor], frames: int, text: Tensor | None = None) -> Tensor:
        """Velocity (R, A, C_a).

        z (R, A, C_a); t (R,); context per layer (R, M, D) from :meth:`adapt` over ``frames`` latent frames; text (R, L,
        D) projected tokens, only when the model has ``audio_text``.
        """
        time = self.t_embedder(1000 * (1 - t))[:, None]
        tail = [time] if text is None else [time, text]
        frequencies = self.freqs.float()
        positions = torch.arange(z.shape[1], device=z.device, dtype=torch.float32)
        video = self._video_positions(frames, context[0].shape[1] // frames)
        still = video.new_zeros(sum(part.shape[1] for part in tail))
        clocks = Clocks(positions, torch.cat((video, still)), frequencies)
        turns = rotation(positions[:, None] * frequencies)
        x = self.x_embedder(z)
        for layer, tokens in zip(self.layers, context, strict=True):
            x = layer(x, turns, torch.cat((tokens, *tail), 1), clocks)
        return self.final_linear(self.final_norm(x))

    def _video_positions(self, frames: int, tokens: int) -> Tensor:
        """Middles of latent frames, each ``tokens`` times, on the clock of the audio. -> (frames * tokens,)."""
        middle = (torch.arange(frames, device=self.freqs.device) + 0.5) / self.config.latent_fps
        return (middle * self.config.audio_rate).repeat_interleave(tokens)
