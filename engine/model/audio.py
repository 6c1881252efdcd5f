"""The audio tower and the modality adaptors through which it reads the video (SyncFlow section 3.2).

Each layer: self-attention, cross-attention, MLP, every one followed by a LayerNorm before it is added back. The context
of layer l is the adapted video features of layer l and the embedding of the audio's flow time as one token. Positions
are times: a token at tau seconds is rotated by tau * audio_rate * frequency, on both sides of every attention. Without
adapted features the context is the time token alone; the tower of a Syncphony or Harmony model never has any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ...kernels import rope_cross_attention, rotation, temporal_attention
from ..config import DDiTConfig
from .bridges import NO_WINDOW, Clocks
from .layers import EPS, CrossAttention, Mlp, ScalarEmbedding, SelfAttention, rope_frequencies


def self_attend(attention: SelfAttention, x: Tensor, turns: Tensor) -> Tensor:
    """Rotary self-attention over one axis of tokens at ``turns`` (N, d / 2, 2): (R, N, D) -> (R, N, D)."""
    return attention.proj(mix(attention, attention.pack(x[:, :, None]), turns))


def mix(attention: SelfAttention, packed: Tensor, turns: Tensor) -> Tensor:
    """The attention itself: packed q, k, v (R, N, 1, 3, n, d) -> (R, N, D), before the projection."""
    return temporal_attention(packed, attention.q_norm.weight, attention.k_norm.weight, turns, EPS)[:, :, 0]


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

    def attend(self, x: Tensor, turns: Tensor) -> Tensor:
        """x after self-attention: (R, A, D) -> (R, A, D)."""
        return x + self.norm1(self_attend(self.attn, x, turns))

    def attend_with_style(
        self, x: Tensor, style: Tensor, turns: Tensor, bridged: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (R, A, D) and style (R, A_r, D) after self-attention over both, style first; turns (A_r + A, d / 2, 2).

        Rows that ``bridged`` (R,) leaves out do not see the style.
        """
        count = style.shape[1]
        packed = self.attn.pack(x[:, :, None])
        both = mix(self.attn, torch.cat((self.attn.pack(style[:, :, None]), packed), 1), turns)
        mixed = both[:, count:]
        if bridged is not None:
            mixed = torch.where(bridged[:, None, None], mixed, mix(self.attn, packed, turns[count:]))
        proj = self.attn.proj
        return x + self.norm1(proj(mixed)), style + self.norm1(proj(both[:, :count]))

    def read(self, x: Tensor, context: Tensor, clocks: Clocks) -> Tensor:
        """What x (R, N, D) reads of a context (R, M, D): (R, N, D), before the projection."""
        keys, values = self.cross_attn.keys_values(context)
        return rope_cross_attention(self.cross_attn.queries(x), keys, values, *clocks, NO_WINDOW)

    def feed(self, x: Tensor, read: Tensor) -> Tensor:
        """x after what it has read and the MLP."""
        x = x + self.norm2(self.cross_attn.proj(read))
        return x + self.norm3(self.mlp(x))


@dataclass(frozen=True)
class AudioState:
    """R rows between two layers: tokens x (R, A, D) and what no layer changes.

    turns (A_r + A, d / 2, 2); tail (R, 1 + L, D), the time token and the text that the tower reads; ``clocks`` for the
    tail as context and ``clocks_of_video`` for adapted features and the tail. ``style`` (R, A_r, D) are the reference
    tokens in front of the audio tokens, ``clocks_of_style`` theirs.
    """

    x: Tensor
    turns: Tensor
    tail: Tensor
    clocks: Clocks
    clocks_of_video: Clocks
    clocks_of_style: Clocks
    style: Tensor | None = None


class AudioTower(nn.Module):
    """The velocity of the audio latents given their time and the features of the video tower.

    :meth:`forward` is :meth:`enter`, :meth:`layer` for every layer, :meth:`finish`.
    """

    freqs: Tensor

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = nn.Linear(config.audio_channels, width)
        self.t_embedder = ScalarEmbedding(width)
        self.adaptors = nn.ModuleList(
            ModalityAdaptor(config)
            for _ in range(config.depth)
            if config.bridge == "adaptor" and config.adaptor_tokens != "none"
        )
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(width)
        self.final_linear = nn.Linear(width, config.audio_channels)
        self.register_buffer("freqs", rope_frequencies(config.audio_head_width, config.rope_theta))
        nn.init.zeros_(self.final_linear.weight)
        nn.init.zeros_(self.final_linear.bias)

    def adapt(self, features: list[Tensor]) -> list[Tensor]:
        """Video features of every layer (R, T, S, D) as context tokens (R, T * S or T, D): once per video pass."""
        assert self.config.bridge == "adaptor"
        if self.config.adaptor_tokens == "none":
            return [feature.flatten(1, 2) for feature in features]
        pooled = [f.mean(2) if self.config.adaptor_tokens == "frame" else f.flatten(1, 2) for f in features]
        frames = features[0].shape[1]
        turns = rotation(self._video_positions(frames, pooled[0].shape[1] // frames)[:, None] * self.freqs.float())
        return [adaptor(x, turns) for adaptor, x in zip(self.adaptors, pooled, strict=True)]

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        context: list[Tensor] | None,
        frames: int,
        text: Tensor | None = None,
        bridged: Tensor | None = None,
    ) -> Tensor:
        """Velocity (R, A, C_a).

        z (R, A, C_a); t (R,); context per layer (R, M, D) from :meth:`adapt` over ``frames`` latent frames, or ``None``
        for audio that reads no video, as in the rows that ``bridged`` (R,) leaves out; text (R, L, D) projected tokens,
        only when the model has ``audio_text``.
        """
        tokens = 0 if context is None else context[0].shape[1] // frames
        state = self.enter(z, t, text, video=self._video_positions(frames, tokens))
        for i in range(self.config.depth):
            state, _ = self.layer(i, state, None if context is None else context[i], bridged=bridged)
        return self.finish(state)

    def enter(
        self,
        z: Tensor,
        t: Tensor,
        text: Tensor | None = None,
        *,
        video: Tensor | None = None,
        style: Tensor | None = None,
    ) -> AudioState:
        """z (R, A, C_a) at times t (R,) before the first layer.

        text (R, L, D) projected tokens; video (M,) positions of the context that the layers will get; style (R, A_r, D)
        tokens to put in front, at the positions before 0.
        """
        time = self.t_embedder(1000 * (1 - t))[:, None]
        tail = time if text is None else torch.cat((time, text), 1)
        frequencies = self.freqs.float()
        first = 0 if style is None else -style.shape[1]
        positions = torch.arange(first, z.shape[1], device=z.device, dtype=torch.float32)
        turns = rotation(positions[:, None] * frequencies)
        still = positions.new_zeros(tail.shape[1])
        clocks, before = (Clocks(part, still, frequencies) for part in (positions[-first:], positions[:-first]))
        seen = clocks if video is None else clocks._replace(context=torch.cat((video, still)))
        return AudioState(self.x_embedder(z), turns, tail, clocks, seen, before, style)

    def layer(
        self,
        index: int,
        state: AudioState,
        context: Tensor | None = None,
        branches: tuple[Tensor, Tensor] | None = None,
        bridged: Tensor | None = None,
    ) -> tuple[AudioState, Tensor]:
        """The state after layer ``index``, and its tokens after self-attention (R, A, D).

        ``branches`` (R, A, D) and (R, A_r, D) are added to the tokens and to the style at the entry. Rows that
        ``bridged`` (R,) leaves out read the tail instead of ``context`` and the tail, and do not see the style.
        """
        layer, x, style = cast("AudioLayer", self.layers[index]), state.x, state.style
        if branches is not None and style is not None:
            x, style = x + branches[0], style + branches[1]
        if style is None:
            x = sound = layer.attend(x, state.turns)
        else:
            x, style = layer.attend_with_style(x, style, state.turns, bridged)
            sound = x
            style = layer.feed(style, layer.read(style, state.tail, state.clocks_of_style))
        if context is None:
            read = layer.read(x, state.tail, state.clocks)
        else:
            read = layer.read(x, torch.cat((context, state.tail), 1), state.clocks_of_video)
            if bridged is not None:
                read = torch.where(bridged[:, None, None], read, layer.read(x, state.tail, state.clocks))
        return replace(state, x=layer.feed(x, read), style=style), sound

    def finish(self, state: AudioState) -> Tensor:
        """Velocity (R, A, C_a) after the last layer; the style is dropped."""
        return self.final_linear(self.final_norm(state.x))

    def _video_positions(self, frames: int, tokens: int) -> Tensor:
        """Middles of latent frames, each ``tokens`` times, on the clock of the audio. -> (frames * tokens,)."""
        middle = (torch.arange(frames, device=self.freqs.device) + 0.5) / self.config.latent_fps
        return (middle * self.config.audio_rate).repeat_interleave(tokens)
