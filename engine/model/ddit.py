"""The dual diffusion transformer: both towers and what crosses between them (``DDiTConfig.bridge``).

| bridge | layer l of the video tower reads | layer l of the audio tower reads |
|---|---|---|
| ``adaptor`` (SyncFlow) | no audio | adapted video tokens after the temporal attention of video layer l |
| ``audio_rope`` (Syncphony) | audio tokens after the self-attention of audio layer l, l >= first_block | no video |
| ``global_local`` (Harmony) | audio tokens at the entry of layer l | video tokens at the entry of layer l |
| ``bidirectional`` (JavisDiT) | audio tokens at the end of layer l | video tokens at the end of layer l |
| ``none`` (Open-Sora) | no audio | there is no audio tower |

In a one-way model the tower that reads nothing runs first, whole; in the two where each reads the other they run layer
by layer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .audio import AudioTower, NoAudioTower
from .bidirectional import BidirectionalBridge
from .bridges import AudioRopeBridge, Context, GlobalLocalBridge, global_local_positions, video_rope_positions
from .denoiser import (
    ALL_ROWS,
    AudioInputs,
    JointInputs,
    Modulation,
    VideoContextRef,
    VideoInputs,
    frame_times_of,
    spatial_tokens,
    split_modulation,
)
from .lora import RowWeights
from .mel import MelTower
from .prior import SpatioTemporalPrior
from .video import VideoTower


class DDiT(nn.Module):
    """u(z_v, z_a, t_v, t_a, text) -> (v_v, v_a) (SyncFlow Eq. 2).

    :meth:`forward` is the plain definition: every row through both towers. The other methods are its parts, for a
    sampling loop that keeps what does not change: a :class:`~syncflow.engine.model.denoiser.Denoiser`.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoTower(config)
        self.audio = make_audio_tower(config)
        self.bridge = make_bridge(config)
        self.prior = SpatioTemporalPrior(config) if config.bridge == "bidirectional" else None
        self.adapter_rows: RowWeights | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.video.y_embedder.y_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the latents that the towers read."""
        return self.video.y_embedder.y_embedding.dtype

    @property
    def null_text(self) -> Tensor:
        """The states (L, W) that stand for no prompt."""
        return self.video.y_embedder.y_embedding

    @property
    def mel_tower(self) -> MelTower:
        """The audio tower of a ``bidirectional`` model."""
        assert self.prior is not None
        return cast("MelTower", self.audio)

    @property
    def null_prior(self) -> Tensor:
        """The prior (2 N, C) of no prompt; empty in a model whose bridge is not ``bidirectional``."""
        return self.null_text.new_empty(0, 0) if self.prior is None else self.prior.embedder.y_embedding

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts: states (P, L, W), of which lengths (P,) count."""
        found = self.video.condition(states, lengths)
        if self.prior is None:
            return found
        audio = self.mel_tower.condition(states, lengths)
        return Conditioning(torch.cat((found.keys, audio.keys)), torch.cat((found.values, audio.values)), lengths)

    def condition_prior(self, priors: Tensor) -> Conditioning:
        """Keys and values of all prior blocks of a ``bidirectional`` model, for P priors (P, 2 N, C)."""
        assert self.prior is not None
        return self.prior.condition(priors)

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """What the video tower needs of its times t (R, T or 1) and the frame rates fps (R,).

        In a ``bidirectional`` model both towers need it, with that of the prior blocks behind: (R, T or 1, 6 + 9, D).
        """
        found = self.video.modulation(t, fps)
        if self.prior is None:
            return found
        parts = found.block_modulation, self.prior.modulation(found.time_embedding)
        return found._replace(block_modulation=torch.cat(parts, 2))

    def audio_time(self, t: Tensor) -> Tensor:
        """What the audio tower needs of its times: t (R,) -> (R, D); not in a ``bidirectional`` model."""
        return self.audio.time(t)

    def video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        """Velocity of the first ``num_outputs`` rows, and the contexts of ``context_rows``."""
        weights = inputs.text.adapter_weights
        if weights is None or self.adapter_rows is None:
            return self._video_pass(inputs)
        with self.adapter_rows.set(weights[inputs.text_of_row]):
            return self._video_pass(inputs)

    def _video_pass(self, inputs: VideoInputs) -> tuple[Tensor, Context]:
        z, context = inputs.latents, inputs.audio_context
        layer_bridges = keep = None
        if context is not None:
            assert isinstance(self.bridge, AudioRopeBridge)
            times, frequencies = frame_times_of(self.config, z, inputs.frame_times), self.video.rope.freqs.float()
            positions = video_rope_positions(
                self.config, times, spatial_tokens(self.config, z), context[0].shape[1], frequencies
            )
            layer_bridges = self.bridge.layer_bridges(context, inputs.audio_context_of_row, positions)
        if inputs.context_rows is not None:
            times = frame_times_of(self.config, z, inputs.frame_times)
            rope = self.audio.rope_table(self.video_token_positions(times, spatial_tokens(self.config, z)))
            keep = partial(self.audio.context, rows=inputs.context_rows, rope=rope)
        rows = inputs.modulation, inputs.text, inputs.text_of_row
        if inputs.pixels is None:
            return self.video(z, *rows, layer_bridges, inputs.prefix_of_row, inputs.num_outputs, keep)
        assert layer_bridges is None and keep is None and inputs.prefix_of_row is None
        padded = whole_patches(z, self.config.patch)
        velocity, _ = self.video(padded, *rows, num_outputs=inputs.num_outputs, pixels=inputs.pixels)
        return velocity[..., : z.shape[3], : z.shape[4]], []

    def audio_pass(self, inputs: AudioInputs) -> tuple[Tensor, Context]:
        """Velocity of the first ``num_outputs`` rows, and in an ``audio_rope`` model the context of every row."""
        context, text_tokens = (inputs.video_context, inputs.video_context_ref), self._text_tokens(inputs)
        velocity, attended = self.audio(inputs.latents, inputs.time_token, *context, text_tokens, inputs.num_outputs)
        return velocity, self.bridge.adapt(attended) if isinstance(self.bridge, AudioRopeBridge) else []

    def joint_pass(self, inputs: JointInputs) -> Velocities:
        """Velocities of a model whose towers read each other, layer by layer."""
        if self.prior is not None:
            return self.run_bidirectional(inputs, self.prior)
        style = self.silence if inputs.reference is None else self.style(inputs.reference)
        return self.run_both_towers(inputs, self._text_tokens(inputs), style)

    @property
    def silence(self) -> Tensor:
        """The style (1, 1, D) of no reference, in a ``global_local`` model."""
        assert isinstance(self.bridge, GlobalLocalBridge)
        return self.bridge.silence[None]

    def style(self, reference: Tensor) -> Tensor:
        """Style tokens of a reference sound: (N, A_r, C_a) -> (N, A_r, D)."""
        return self.audio.x_embedder(reference)

    def run_both_towers(self, inputs: JointInputs, text_tokens: Tensor | None, style: Tensor) -> Velocities:
        """:meth:`joint_pass` with the text tokens (R, L, D) that the audio reads, and the style (N or 1, A_r, D)."""
        assert isinstance(self.bridge, GlobalLocalBridge)
        z_v, z_a, bridged = inputs.video_latents, inputs.audio_latents, inputs.bridged_rows
        style = style.expand((z_a if bridged is None else bridged).shape[0], -1, -1)  # len() would fix it in a trace
        frequencies = self.video.rope.freqs.float(), self.audio.freqs.float()
        video_tokens = frame_times_of(self.config, z_v, inputs.frame_times), spatial_tokens(self.config, z_v)
        positions = global_local_positions(self.config, *video_tokens, z_a.shape[1], style.shape[1], *frequencies)
        video = self.video.embed(z_v, inputs.modulation, inputs.text, inputs.text_of_row)
        assert inputs.time_token is not None
        audio = self.audio.embed(z_a, inputs.time_token, text_tokens, style=style, style_rows=bridged)
        for i in range(self.config.depth):
            assert audio.style is not None
            to_video, to_audio, to_style = self.bridge(i, video.x, audio.x, audio.style, positions, bridged)
            if i == self.config.depth - 1 and inputs.video_output_rows is not None:
                video, to_video = video.take(inputs.video_output_rows), to_video[inputs.video_output_rows]
            video, _ = self.video.layer(i, video, to_video, ahead=False)
            audio, _ = self.audio.layer(i, audio, branches=(to_audio, to_style))
        if inputs.audio_output_rows is not None:
            audio = audio.take(inputs.audio_output_rows)
        return Velocities(self.video.finish(video), self.audio.finish(audio))

    def run_bidirectional(self, inputs: JointInputs, prior: SpatioTemporalPrior) -> Velocities:
        """:meth:`joint_pass` of a ``bidirectional`` model: after each layer the prior, then the bridge."""
        assert isinstance(self.bridge, BidirectionalBridge)
        assert inputs.audio_modulation is not None
        assert inputs.prior is not None and inputs.prior_of_row is not None
        z_v, z_a, text = inputs.video_latents, inputs.audio_latents, (inputs.text, inputs.text_of_row)
        of_video, of_prior_video = split_modulation(inputs.modulation)
        of_audio, of_prior_audio = split_modulation(inputs.audio_modulation)
        prior_rows = inputs.prior, inputs.prior_of_row
        video = self.video.embed(whole_patches(z_v, self.config.patch), of_video, *text, inputs.pixels)
        rope = self.video.rope_table(z_a.shape[1] // self.config.audio_patch)
        tower = self.mel_tower
        audio = tower.embed(z_a, of_audio, *text, rope)
        for i in range(self.config.depth):
            x_v = self.video.layer(i, video, ahead=False)[0].x
            x_a = tower.layer(i, audio, ahead=False)[0].x
            x_v = prior.video(i, x_v, of_prior_video, *prior_rows)
            x_a = prior.audio(i, x_a, of_prior_audio, *prior_rows)
            x_v, x_a = self.bridge(i, x_v, x_a, inputs.bridged_rows)
            video, audio = replace(video, x=x_v), replace(audio, x=x_a)
        if inputs.video_output_rows is not None:
            video = video.take(inputs.video_output_rows)
        if inputs.audio_output_rows is not None:
            audio = audio.take(inputs.audio_output_rows)
        velocity = self.video.finish(video)[..., : z_v.shape[3], : z_v.shape[4]]
        return Velocities(velocity, tower.finish(audio))

    def video_token_positions(self, frame_times: Tensor, tokens: int) -> Tensor:
        """Positions on the clock of the audio of the tokens of a context from :meth:`video_pass`. -> (M,)."""
        return self.audio.video_positions(frame_times, tokens)

    def forward(
        self,
        z_v: Tensor,
        z_a: Tensor,
        t_v: Tensor,
        t_a: Tensor,
        fps: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        bridged: Tensor | None = None,
        reference: Tensor | None = None,
        frame_times: Tensor | None = None,
        pixels: Tensor | None = None,
        priors: Tensor | None = None,
    ) -> Velocities:
        """Velocities of both modalities; those of the audio are 0 in a model without an audio tower.

        z_v (R, C_v, T, H, W), z_a (R, A, C_a), t_v (R,) or (R, T), t_a (R,), fps (R,), text_of_row (R,) int. Rows where
        ``bridged`` (R,) bool is false skip the bridge in every layer: their towers do not read each other.
        ``reference`` (R, A_r, C_a), latents of a sound whose style is wanted, belongs to the bridge ``global_local``.
        Raises ``ValueError`` for it in another model. ``frame_times`` (T,) and ``pixels`` (1,) as of
        :class:`~syncflow.engine.model.denoiser.VideoInputs`. ``priors`` (R, 2 N, C) are those of the rows in a
        ``bidirectional`` model; without them no row has any.
        """
        if reference is not None and self.config.bridge != "global_local":
            raise ValueError(f"a reference sound needs the bridge global_local; this model has {self.config.bridge}")
        rows = torch.arange(len(z_v), device=z_v.device)
        times_v = self.modulation(t_v if t_v.ndim == 2 else t_v[:, None], fps)
        bridged_rows = None if bridged is None else rows[bridged]
        if self.config.bridge == "bidirectional":
            return self.joint_pass(
                JointInputs(
                    z_v,
                    z_a,
                    times_v,
                    None,
                    text,
                    text_of_row,
                    bridged_rows=bridged_rows,
                    pixels=pixels,
                    audio_modulation=self.modulation(t_a[:, None], fps),
                    prior=self.condition_prior(self.null_prior.expand(len(z_v), -1, -1) if priors is None else priors),
                    prior_of_row=rows,
                )
            )
        times_a = self.audio_time(t_a)
        of_row = None if bridged is None else torch.where(bridged, rows, -1)
        video = z_v, times_v, text, text_of_row
        audio = z_a, times_a, text, text_of_row
        frame_times = frame_times_of(self.config, z_v, frame_times)
        if not self.config.has_audio:
            v_video, _ = self.video_pass(VideoInputs(*video, frame_times=frame_times, pixels=pixels))
            return Velocities(v_video, torch.zeros_like(z_a))
        if self.config.bridge == "global_local":
            style = reference if reference is None or bridged_rows is None else reference[bridged_rows]
            return self.joint_pass(
                JointInputs(
                    z_v,
                    z_a,
                    times_v,
                    times_a,
                    text,
                    text_of_row,
                    bridged_rows=bridged_rows,
                    reference=style,
                    frame_times=frame_times,
                )
            )
        if self.config.bridge == "audio_rope":
            v_audio, context = self.audio_pass(AudioInputs(*audio))
            inputs = VideoInputs(*video, audio_context=context, audio_context_of_row=of_row, frame_times=frame_times)
            return Velocities(self.video_pass(inputs)[0], v_audio)
        v_video, context = self.video_pass(VideoInputs(*video, context_rows=ALL_ROWS, frame_times=frame_times))
        ref = VideoContextRef(self.video_token_positions(frame_times, spatial_tokens(self.config, z_v)), of_row)
        v_audio, _ = self.audio_pass(AudioInputs(*audio, video_context=context, video_context_ref=ref))
        return Velocities(v_video, v_audio)

    def _text_tokens(self, inputs: AudioInputs | JointInputs) -> Tensor | None:
        """The text tokens that the audio tower reads (R, L, D), if it reads any in its tail."""
        tokens = inputs.text.text_tokens
        return tokens[inputs.text_of_row] if self.config.audio_text and tokens is not None else None


def make_audio_tower(config: DDiTConfig) -> AudioTower:
    """The audio tower of a model; that of a ``bidirectional`` one is a :class:`MelTower`."""
    if config.bridge == "bidirectional":
        return cast("AudioTower", MelTower(config))
    return AudioTower(config) if config.has_audio else NoAudioTower(config)


def make_bridge(config: DDiTConfig) -> AudioRopeBridge | GlobalLocalBridge | BidirectionalBridge | None:
    """The module through which the video reads the audio, or None in a model whose video does not."""
    if config.bridge == "audio_rope":
        return AudioRopeBridge(config)
    if config.bridge == "bidirectional":
        return BidirectionalBridge(config)
    return GlobalLocalBridge(config) if config.bridge == "global_local" else None


def whole_patches(z: Tensor, patch: int) -> Tensor:
    """Latents (R, C_v, T, H, W) with zeros at the right and lower edge, up to whole patches."""
    return nn.functional.pad(z, (0, -z.shape[4] % patch, 0, -z.shape[3] % patch))
