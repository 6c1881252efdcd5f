"""The audio tower and the modality adaptors through which it reads the video (SyncFlow section 3.2).

Each layer: self-attention, cross-attention, MLP, every one followed by a LayerNorm before it is added back. The context
of layer l is the adapted video features of layer l and, as a tail that is the row's own, the embedding of the audio's
flow time as one token and the text where the tower reads it. Positions are times: a token at tau seconds is rotated by
tau * audio_rate * frequency, on both sides of every attention. A row without adapted features reads its tail alone; the
tower of a Syncphony or Harmony model never has any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ...kernels import rope_cross_attention, rope_table, temporal_attention
from ..config import DDiTConfig
from .bridges import NO_WINDOW, Context
from .denoiser import VideoContextRef, context_positions
from .layers import EPS, CrossAttention, Linear, Mlp, ScalarEmbedding, SelfAttention, rope_frequencies


def rotary_self_attention(attention: SelfAttention, x: Tensor, rope: Tensor) -> Tensor:
    """Rotary self-attention over one axis of tokens at ``rope`` (N, d / 2, 2): (R, N, D) -> (R, N, D)."""
    return attention.proj(rotary_attention(attention, attention.pack(x[:, :, None]), rope))


def rotary_attention(attention: SelfAttention, packed: Tensor, rope: Tensor) -> Tensor:
    """The attention itself: packed q, k, v (R, N, 1, 3, n, d) -> (R, N, D), before the projection."""
    return temporal_attention(packed, attention.q_norm.weight, attention.k_norm.weight, rope, EPS)[:, :, 0]


class ModalityAdaptor(nn.Module):
    """Multi-head self-attention over the video tokens, LayerNorm, Linear. (R, N, D) -> (R, N, D)."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.audio_heads)
        self.norm = nn.LayerNorm(config.width)
        self.linear = Linear(config.width, config.width)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        return self.linear(self.norm(rotary_self_attention(self.attn, x, rope)))


class AudioLayer(nn.Module):
    """One transformer layer of the audio tower."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = SelfAttention(width, config.audio_heads)
        self.cross_attn = CrossAttention(width, config.audio_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: Tensor, state: AudioState, context: Tensor | None = None, *, num_outputs: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The tokens x (R, A, D) after the layer, and after its self-attention; no style.

        context (C, M, 2, n, d); positions, tail and context_ref are those of ``state``. Only the first ``num_outputs``
        rows go on after the self-attention.
        """
        x = attended = self.self_attention(x, state.rope)
        if num_outputs is not None:
            x, state = x[:num_outputs], state.take(slice(num_outputs))
        return self.feed_forward(x, self.cross_attention(x, state, state.positions, context)), attended

    def with_style(
        self, x: Tensor, style: Tensor, state: AudioState, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens x (R, A, D) and style (N, A_r, D) after the layer, and x after its self-attention.

        context (C, M, 2, n, d) is that of x; the style reads the tail alone.
        """
        x, style = self.self_attention_with_style(x, style, state.rope, state.style_rows)
        attended, count = x, style.shape[1]
        tail = state.tail if state.style_rows is None else state.tail[state.style_rows]
        mixed = self.cross_attention(style, replace(state, tail=tail), state.positions[:count])
        style = self.feed_forward(style, mixed)
        x = self.feed_forward(x, self.cross_attention(x, state, state.positions[count:], context))
        return x, style, attended

    def self_attention(self, x: Tensor, rope: Tensor) -> Tensor:
        """x after self-attention: (R, A, D) -> (R, A, D)."""
        return x + self.norm1(rotary_self_attention(self.attn, x, rope))

    def self_attention_with_style(
        self, x: Tensor, style: Tensor, rope: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (R, A, D) and style (N, A_r, D) after self-attention over both, style first; rope (A_r + A, d / 2, 2).

        The style belongs to ``rows`` (N,), or to all; the other rows attend to themselves alone.
        """
        count = style.shape[1]
        packed = self.attn.pack(x[:, :, None])
        styled = packed if rows is None else packed[rows]
        both = rotary_attention(self.attn, torch.cat((self.attn.pack(style[:, :, None]), styled), 1), rope)
        mixed = both[:, count:]
        if rows is not None:
            mixed = rotary_attention(self.attn, packed, rope[count:]).index_copy(0, rows, mixed)
        proj = self.attn.proj
        return x + self.norm1(proj(mixed)), style + self.norm1(proj(both[:, :count]))

    def cross_attention(self, x: Tensor, state: AudioState, positions: Tensor, context: Tensor | None = None) -> Tensor:
        """From x (R, N, D) at ``positions`` (N,) to a context (C, M, 2, n, d) and the tail, before the projection."""
        queries, tail = self.cross_attn.queries(x), self.cross_attn.keys_values(state.tail)
        if context is None or state.context_ref is None:
            still = positions.new_zeros(state.tail.shape[1])
            return rope_cross_attention(queries, *tail, positions, still, state.frequencies, NO_WINDOW)
        keys, values = context.unbind(2)
        rope = positions, state.context_ref.positions, state.frequencies
        return rope_cross_attention(queries, keys, values, *rope, NO_WINDOW, state.context_ref.context_of_row, *tail)

    def feed_forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        """x after the projection of the cross-attention and after the MLP."""
        x = x + self.norm2(self.cross_attn.proj(mixed))
        return x + self.norm3(self.mlp(x))


@dataclass(frozen=True)
class AudioState:
    """R rows between two layers: tokens x (R, A, D) and what no layer changes.

    positions (A_r + A,) and rope (A_r + A, d / 2, 2); tail (R, 1 + L, D), the time token and the text that the
    tower reads; ``context_ref`` of the contexts that the layers get. ``style`` (N, A_r, D) are the reference tokens in
    front of the audio tokens of ``style_rows`` (N,), or of all.
    """

    x: Tensor
    positions: Tensor
    rope: Tensor
    tail: Tensor
    frequencies: Tensor
    context_ref: VideoContextRef | None = None
    style: Tensor | None = None
    style_rows: Tensor | None = None

    def take(self, rows: Tensor | slice) -> AudioState:
        """Some of the rows, without their style."""
        context_ref = self.context_ref
        if context_ref is not None and context_ref.context_of_row is not None:
            context_ref = context_ref._replace(context_of_row=context_ref.context_of_row[rows])
        first = 0 if self.style is None else self.style.shape[1]
        return replace(
            self,
            x=self.x[rows],
            positions=self.positions[first:],
            rope=self.rope[first:],
            tail=self.tail[rows],
            context_ref=context_ref,
            style=None,
            style_rows=None,
        )


class AudioTower(nn.Module):
    """The velocity of the audio latents given their time and the features of the video tower.

    :meth:`forward` is :meth:`embed`, :meth:`layer` for every layer, :meth:`finish`.
    """

    freqs: Tensor

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = Linear(config.audio_channels, width)
        self.t_embedder = ScalarEmbedding(width)
        self.adaptors = nn.ModuleList(
            ModalityAdaptor(config)
            for _ in range(config.depth)
            if config.bridge == "adaptor" and config.adaptor_tokens != "none"
        )
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(width)
        self.final_linear = Linear(width, config.audio_channels)
        self.register_buffer("freqs", rope_frequencies(config.audio_head_width, config.rope_theta))
        nn.init.zeros_(self.final_linear.weight)
        nn.init.zeros_(self.final_linear.bias)

    def time(self, t: Tensor) -> Tensor:
        """The token of the flow time, which every layer reads: t (R,), 0 = noise -> (R, D)."""
        return self.t_embedder(1000 * (1 - t))

    def pool(self, feature: Tensor) -> Tensor:
        """What an adaptor attends over of the features (R, T, S, D) of a layer. -> (R, T * S or T, D)."""
        return feature.mean(2) if self.config.adaptor_tokens == "frame" else feature.flatten(1, 2)

    def video_positions(self, frame_times: Tensor, tokens: int) -> Tensor:
        """Positions on the clock of the audio of pooled features of latent frames of ``tokens`` tokens.

        ``frame_times`` (T,): the middle of each in seconds. -> (T * S or T,).
        """
        return context_positions(self.config, frame_times, tokens)

    def rope_table(self, positions: Tensor) -> Tensor:
        """Cosines and sines at ``positions`` (M,) on the clock of the audio. -> (M, d / 2, 2)."""
        return rope_table(positions[:, None] * self.freqs.float())

    def adapt(self, index: int, pooled: Tensor, rope: Tensor) -> Tensor:
        """Pooled features (C, M, D) of layer ``index`` as the contexts (C, M, 2, n, d) that its audio layer reads."""
        assert self.config.bridge == "adaptor"
        adapted = self.adaptors[index](pooled, rope) if self.adaptors else pooled
        return self._layer(index).cross_attn.pack(adapted)

    def context(self, index: int, feature: Tensor, rows: Tensor | slice, rope: Tensor) -> Tensor:
        """:meth:`adapt` of rows (C,) of the features (R, T, S, D) of layer ``index``: once a video pass."""
        return self.adapt(index, self.pool(feature)[rows], rope)

    def forward(
        self,
        latents: Tensor,
        time_token: Tensor,
        context: Context | None = None,
        context_ref: VideoContextRef | None = None,
        text_tokens: Tensor | None = None,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity (R, A, C_a) and, per layer, the tokens after self-attention (R, A, D).

        latents (R, A, C_a); time_token (R, D) from :meth:`time`; context from :meth:`adapt` and the ``context_ref`` of
        it, or ``None`` for audio that reads no video; text_tokens (R, L, D), only when the model has ``audio_text``.
        Rows after the first ``num_outputs`` are wanted for their tokens alone and have no velocity.
        """
        state = self.embed(latents, time_token, text_tokens, context_ref=context_ref)
        state, attended = self.run_layers(state, context, num_outputs)
        return self.finish(state), attended

    def run_layers(
        self, state: AudioState, context: Context | None, num_outputs: int | None
    ) -> tuple[AudioState, list[Tensor]]:
        """The state after all layers, and the tokens after the self-attention of each; as in :meth:`forward`."""
        attended, last = [], self.config.depth - 1
        for i in range(self.config.depth):
            of_layer = None if context is None else context[i]
            state, tokens = self.layer(i, state, of_layer, num_outputs=num_outputs if i == last else None)
            attended.append(tokens)
        return state, attended

    def embed(
        self,
        latents: Tensor,
        time_token: Tensor,
        text_tokens: Tensor | None = None,
        *,
        context_ref: VideoContextRef | None = None,
        style: Tensor | None = None,
        style_rows: Tensor | None = None,
    ) -> AudioState:
        """Latents (R, A, C_a) with their time token (R, D) before the first layer.

        text_tokens (R, L, D); ``context_ref`` of the contexts that the layers will get; style (N, A_r, D) tokens to put
        in front of ``style_rows`` (N,), at the positions before 0.
        """
        tail = time_token[:, None] if text_tokens is None else torch.cat((time_token[:, None], text_tokens), 1)
        positions, rope = self.token_positions(0 if style is None else -style.shape[1], latents.shape[1])
        x, frequencies = self.x_embedder(latents), self.freqs.float()
        return AudioState(x, positions, rope, tail, frequencies, context_ref, style, style_rows)

    def token_positions(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Positions of audio tokens ``first`` to ``end`` - 1 (N,), and their cosines and sines (N, d / 2, 2)."""
        positions = torch.arange(first, end, device=self.freqs.device, dtype=torch.float32)
        return positions, self.rope_table(positions)

    def layer(
        self,
        index: int,
        state: AudioState,
        context: Tensor | None = None,
        branches: tuple[Tensor, Tensor] | None = None,
        *,
        num_outputs: int | None = None,
    ) -> tuple[AudioState, Tensor]:
        """The state after layer ``index``, and its tokens after self-attention (R, A, D).

        context (C, M, 2, n, d); ``branches`` (R, A, D) and (N, A_r, D) are added to the tokens and to the style at the
        entry. Only the first ``num_outputs`` rows go on after the self-attention.
        """
        layer, x, style = self._layer(index), state.x, state.style
        if branches is not None:
            x, style = x + branches[0], None if style is None else style + branches[1]
        if style is None:
            x, attended = layer(x, state, context, num_outputs=num_outputs)
            return replace(state if num_outputs is None else state.take(slice(num_outputs)), x=x), attended
        assert num_outputs is None, "rows that only serve others are those of a one-way model, which has no style"
        x, style, attended = layer.with_style(x, style, state, context)
        return replace(state, x=x, style=style), attended

    def finish(self, state: AudioState) -> Tensor:
        """Velocity (R, A, C_a) after the last layer; the style is dropped."""
        return self.final_linear(self.final_norm(state.x))

    def _layer(self, index: int) -> AudioLayer:
        return cast("AudioLayer", self.layers[index])


class NoAudioTower(AudioTower):
    """In the place of the audio tower in a model without sound: no weights, and a token for every time."""

    def __init__(self, config: DDiTConfig) -> None:
        nn.Module.__init__(self)
        self.config = config

    def time(self, t: Tensor) -> Tensor:
        """An empty token: t (R,) -> (R, 0)."""
        return t.new_zeros(len(t), 0)
