"""What lets the video tower read the audio: Syncphony's audio cross-attention and Harmony's global-local module.

Positions are counted in latent frames: with T latent frames and A audio tokens, audio token k stands at k T / A. Where
the video attends to the audio, a video token stands at the number of its frame and is rotated by the frequencies of the
video (Audio RoPE); where the audio attends to the video, a video token stands at the middle of its frame, and the
frequencies are those of the audio. A token attends to keys within the window. The output projection starts at zero.
SyncFlow's bridge, from which only the audio reads, is in :mod:`syncflow.engine.model.audio`, JavisDiT's in
:mod:`syncflow.engine.model.bidirectional`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ...kernels import rope_cross_attention
from ..config import DDiTConfig
from .layers import CrossAttention

NO_WINDOW = -1.0

LayerBridge = Callable[[Tensor], Tensor]
"""What a layer adds to its tokens (R, T, S, D) at its entry: what they read of the other tower."""
Context = list[Tensor]
"""What one tower reads of the other: for each layer that reads, keys and values (C, M, 2, n, d) of C contexts."""


class RopePositions(NamedTuple):
    """Positions of queries (N,) and of what they read (M,), and rotary frequencies (d / 2,)."""

    queries: Tensor
    context: Tensor
    frequencies: Tensor


def zero_init_cross_attention(width: int, heads: int) -> CrossAttention:
    """A cross-attention whose output starts at zero, so that a fresh one changes nothing."""
    attention = CrossAttention(width, heads)
    nn.init.zeros_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    return attention


def scatter_rows(branch: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """A branch (N, ...) of ``rows`` (N,) among ``count`` rows, the others 0; ``None`` for all rows."""
    return branch if rows is None else branch.new_zeros(count, *branch.shape[1:]).index_copy(0, rows, branch)


def video_rope_positions(
    config: DDiTConfig, frame_times: Tensor, tokens: int, audio: int, frequencies: Tensor
) -> RopePositions:
    """Positions in latent frames of T * S video tokens, at ``frame_times`` (T,) seconds, that read A audio tokens."""
    frames = _repeated(frame_times * config.latent_fps, tokens)
    return RopePositions(frames, _audio_positions(config, audio, frequencies.device), frequencies)


def audio_rope_positions(
    config: DDiTConfig, frame_times: Tensor, tokens: int, audio: int, frequencies: Tensor
) -> RopePositions:
    """Positions in latent frames of A audio tokens that read T * S video tokens at ``frame_times`` (T,) seconds.

    ``frequencies`` are radians an audio token; a latent frame has audio_rate / latent_fps of these.
    """
    frames = _repeated(frame_times * config.latent_fps, tokens)
    positions = _audio_positions(config, audio, frequencies.device)
    return RopePositions(positions, frames, frequencies * (config.audio_rate / config.latent_fps))


def _audio_positions(config: DDiTConfig, audio: int, device: torch.device) -> Tensor:
    """The start of each of A audio tokens, in latent frames. -> (A,)."""
    return torch.arange(audio, device=device, dtype=torch.float32) * (config.latent_fps / config.audio_rate)


def _repeated(positions: Tensor, times: int) -> Tensor:
    """Each position so many times; onnxscript writes ``repeat_interleave`` wrongly where the number is free."""
    return positions[:, None].expand(-1, times).flatten()


class AudioRopeBridge(nn.Module):
    """Syncphony: layers from ``first_block`` on add what the video tokens read of the audio, before the spatial block.

    ``x += proj(attention(q(x), k(a_l), v(a_l)))`` with a_l (R, A, D) the audio tokens after the self-attention of audio
    layer l, the mirror image of SyncFlow's F_l. ``layers[i]`` belongs to layer ``first_block + i``.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.first, self.window = config.first_block, config.window
        self.layers = nn.ModuleList(
            zero_init_cross_attention(config.width, config.heads) for _ in range(config.first_block, config.depth)
        )

    def adapt(self, audio_tokens: list[Tensor]) -> Context:
        """Audio tokens of every layer (C, A, D) as contexts of the bridged layers: once an audio pass."""
        bridged = zip(self.layers, audio_tokens[self.first :], strict=True)
        return [cast("CrossAttention", layer).pack(tokens) for layer, tokens in bridged]

    def layer_bridges(
        self, audio_context: Context, context_of_row: Tensor | None, positions: RopePositions
    ) -> dict[int, LayerBridge]:
        """By layer, what makes of video tokens (R, T, S, D) what the bridge adds to them.

        ``audio_context`` from :meth:`adapt`; ``context_of_row`` (R,) int64, which of its contexts each row reads, -1
        for none, or ``None`` for its own; ``positions`` from :func:`video_rope_positions`.
        """

        def read(layer: CrossAttention, context: Tensor, x: Tensor) -> Tensor:
            queries, (keys, values) = layer.queries(x.flatten(1, 2)), context.unbind(2)
            branch = layer.proj(rope_cross_attention(queries, keys, values, *positions, self.window, context_of_row))
            if context_of_row is not None:  # the projection has a bias
                branch = branch.masked_fill((context_of_row < 0)[:, None, None], 0)
            return branch.view_as(x)

        bridged = enumerate(zip(self.layers, audio_context, strict=True), self.first)
        return {i: partial(read, cast("CrossAttention", layer), context) for i, (layer, context) in bridged}


class GlobalLocalPositions(NamedTuple):
    """Of the video that reads audio, the audio that reads video, the reference that reads video."""

    video: RopePositions
    audio: RopePositions
    style: RopePositions


class GlobalLocalLayer(nn.Module):
    """The three cross-attentions of one layer: video reads audio, audio reads video, the reference reads the video."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.to_video = zero_init_cross_attention(config.width, config.heads)
        self.to_audio = zero_init_cross_attention(config.width, config.audio_heads)
        self.style = zero_init_cross_attention(config.width, config.audio_heads)


class GlobalLocalBridge(nn.Module):
    """Harmony: in every layer both towers read each other's tokens at the entry of that layer.

    Local: ``x_v += proj(attention(q(x_v), x_a))`` on the clock of the latent frames and ``x_a += proj(attention(q(x_a),
    x_v))``. Global: ``z_r += proj(attention(q(z_r), x_v))`` over
    all video tokens, without positions. z_r are the reference tokens in front of the audio tokens; ``silence`` (1, D)
    stands for no reference.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.window = config.window
        self.silence = nn.Parameter(torch.randn(1, config.width) / config.width**0.5)
        self.layers = nn.ModuleList(GlobalLocalLayer(config) for _ in range(config.depth))

    def forward(
        self,
        layer: int,
        x_v: Tensor,
        x_a: Tensor,
        style: Tensor,
        positions: GlobalLocalPositions,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What layer ``layer`` adds at its entry to the video, to the audio and to the reference tokens.

        x_v (R, T, S, D), x_a (R, A, D), style (N, A_r, D); ``positions`` from :func:`global_local_positions`; ``rows``
        (N,) whose towers read each other, or ``None`` for all; the others get 0. -> the same shapes.
        """
        part, count = cast("GlobalLocalLayer", self.layers[layer]), x_v.shape[0]
        if rows is not None:
            x_v, x_a = x_v[rows], x_a[rows]
        video = x_v.flatten(1, 2)

        def read(attention: CrossAttention, x: Tensor, of: Tensor, at: RopePositions, window: float) -> Tensor:
            found = rope_cross_attention(attention.queries(x), *attention.keys_values(of), *at, window)
            return attention.proj(found)

        to_video = read(part.to_video, video, x_a, positions.video, self.window).view_as(x_v)
        to_audio = read(part.to_audio, x_a, video, positions.audio, self.window)
        to_style = read(part.style, style, video, positions.style, NO_WINDOW)
        return scatter_rows(to_video, rows, count), scatter_rows(to_audio, rows, count), to_style


def global_local_positions(
    config: DDiTConfig,
    frame_times: Tensor,
    tokens: int,
    audio: int,
    style: int,
    video_frequencies: Tensor,
    audio_frequencies: Tensor,
) -> GlobalLocalPositions:
    """For T * S video tokens, A audio tokens and A_r reference tokens; the reference reads without positions."""
    to_audio = audio_rope_positions(config, frame_times, tokens, audio, audio_frequencies)
    still = to_audio.queries.new_zeros(style), torch.zeros_like(to_audio.context)
    to_video = video_rope_positions(config, frame_times, tokens, audio, video_frequencies)
    return GlobalLocalPositions(to_video, to_audio, RopePositions(*still, audio_frequencies))
