"""The audio tower and the modality adaptors through which it reads the video (SyncFlow section 3.2).

Each layer: self-attention, cross-attention, MLP, every one followed by a LayerNorm before it is added back. The context
of layer l is the adapted video features of layer l and the embedding of the audio's flow time as one token. Positions
are times: a token at tau seconds is rotated by tau * audio_rate * frequency, on both sides of every attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import rope_cross_attention, temporal_attention
from ..config import DDiTConfig
from .layers import EPS, CrossAttention, Mlp, ScalarEmbedding, SelfAttention, rope_frequencies


def self_attend(attention: SelfAttention, x: Tensor, angles: Tensor) -> Tensor:
    """Rotary self-attention over one axis of tokens: (R, N, D) -> (R, N, D)."""
    packed = attention.pack(x[:, :, None])
    mixed = temporal_attention(packed, attention.q_norm.weight, attention.k_norm.weight, angles, EPS)
    return attention.proj(mixed[:, :, 0])


class ModalityAdaptor(nn.Module):
    """Multi-head self-attention over the video tokens, LayerNorm, Linear. (R, N, D) -> (R, N, D)."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.audio_heads)
        self.norm = nn.LayerNorm(config.width)
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        return self.linear(self.norm(self_attend(self.attn, x, angles)))


class AudioLayer(nn.Module):
    """One transformer layer of the audio tower."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = SelfAttention(width, config.audio_heads)
        self.cross_attn = CrossAttention(width, config.audio_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, angles: Tensor, context_angles: Tensor) -> Tensor:
        x = x + self.norm1(self_attend(self.attn, x, angles))
        keys, values = self.cross_attn.keys_values(context)
        read = rope_cross_attention(self.cross_attn.queries(x), keys, values, angles, context_angles)
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
        angles = self._video_angles(frames, pooled[0].shape[1] // frames)
        return [adaptor(x, angles) for adaptor, x in zip(self.adaptors, pooled, strict=True)]

    def forward(self, z: Tensor, t: Tensor, context: list[Tensor], frames: int, text: Tensor | None = None) -> Tensor:
        """Velocity (R, A, C_a).

        z (R, A, C_a); t (R,); context per layer (R, M, D) from :meth:`adapt` over ``frames`` latent frames; text (R, L,
        D) projected tokens, only when the model has ``audio_text``.
        """
        time = self.t_embedder(1000 * (1 - t))[:, None]
        tail = [time] if text is None else [time, text]
        angles = self._angles(torch.arange(z.shape[1], device=z.device) / self.config.audio_rate)
        video = self._video_angles(frames, context[0].shape[1] // frames)
        still = angles.new_zeros(sum(part.shape[1] for part in tail), angles.shape[1])
        context_angles = torch.cat((video, still))
        x = self.x_embedder(z)
        for layer, tokens in zip(self.layers, context, strict=True):
            x = layer(x, torch.cat((tokens, *tail), 1), angles, context_angles)
        return self.final_linear(self.final_norm(x))

    def _angles(self, seconds: Tensor) -> Tensor:
        return (seconds * self.config.audio_rate)[:, None] * self.freqs.float()

    def _video_angles(self, frames: int, tokens: int) -> Tensor:
        """Angles of the middles of latent frames, ``tokens`` a frame. -> (frames * tokens, d / 2)."""
        middle = (torch.arange(frames, device=self.freqs.device) + 0.5) / self.config.latent_fps
        return self._angles(middle.repeat_interleave(tokens))
