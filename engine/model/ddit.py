"""The dual diffusion transformer: both towers and what crosses between them (``DDiTConfig.bridge``).

| bridge | layer l of the video tower reads | layer l of the audio tower reads |
|---|---|---|
| ``adaptor`` (SyncFlow) | no audio | adapted video tokens after the temporal attention of video layer l |
| ``audio_rope`` (Syncphony) | audio tokens after the self-attention of audio layer l, l >= first_block | no video |
| ``global_local`` (Harmony) | audio tokens at the entry of layer l | video tokens at the entry of layer l |

In a one-way model the tower that reads nothing runs first, whole; in ``global_local`` they run layer by layer.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .audio import AudioTower
from .bridges import AudioRopeBridge, Context, GlobalLocalBridge, global_local_clocks, make_bridge, video_clock
from .denoiser import Modulation, Sight
from .video import VideoTower


class DDiT(nn.Module):
    """u(z_v, z_a, t_v, t_a, text) -> (v_v, v_a) (SyncFlow Eq. 2).

    :meth:`forward` is the plain definition: every row through both towers. The other methods are its parts, for who
    keeps what does not change: a :class:`~syncflow.engine.model.denoiser.Denoiser`.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoTower(config)
        self.audio = AudioTower(config)
        self.bridge = make_bridge(config)

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

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks for P prompts: states (P, L, W), of which lengths (P,) count."""
        return self.video.condition(states, lengths)

    def modulation(self, t: Tensor, fps: Tensor) -> Modulation:
        """What the video tower needs of its times t (R, T or 1) and the frame rates fps (R,)."""
        return Modulation(*self.video.modulation(t, fps))

    def audio_time(self, t: Tensor) -> Tensor:
        """What the audio tower needs of its times: t (R,) -> (R, D)."""
        return self.audio.time(t)

    def video_pass(
        self,
        z: Tensor,
        times: Modulation,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        heard: Context | None = None,
        heard_of_row: Tensor | None = None,
        prefix_of_row: Tensor | None = None,
        num_outputs: int | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Context]:
        """Velocity (R, C_v, T, H, W) of the first ``num_outputs`` rows, and what the audio reads of rows ``seen``.

        See :class:`~syncflow.engine.model.denoiser.Denoiser`.
        """
        readers = None
        if heard is not None:
            assert isinstance(self.bridge, AudioRopeBridge)
            clocks = video_clock(z.shape[2], self._tokens(z), heard[0].shape[1], self.video.rope.freqs.float())
            readers = self.bridge.readers(heard, heard_of_row, clocks)
        keep = None
        if seen is not None:
            rope = self.audio.rope_table(self.sight_positions(z.shape[2], self._tokens(z)))
            keep = partial(self.audio.context, rows=seen, rope=rope)
        return self.video(z, *times, text, text_of_row, readers, prefix_of_row, num_outputs, keep)

    def audio_pass(
        self,
        z: Tensor,
        times: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        context: Context | None = None,
        sight: Sight | None = None,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Context]:
        """Velocity (R, A, C_a) of the first ``num_outputs`` rows, and what the video hears of every row.

        See :class:`~syncflow.engine.model.denoiser.Denoiser`.
        """
        velocity, sounds = self.audio(z, times, context, sight, self._words(text, text_of_row), num_outputs)
        return velocity, self.bridge.adapt(sounds) if isinstance(self.bridge, AudioRopeBridge) else []

    def joint_pass(
        self,
        z_v: Tensor,
        z_a: Tensor,
        times_v: Modulation,
        times_a: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        *,
        bridged: Tensor | None = None,
        reference: Tensor | None = None,
        drawn_video: Tensor | None = None,
        drawn_audio: Tensor | None = None,
    ) -> Velocities:
        """Velocities of a ``global_local`` model, layer by layer.

        See :class:`~syncflow.engine.model.denoiser.Denoiser`.
        """
        style = self.silence if reference is None else self.style(reference)
        rows = text_of_row, self._words(text, text_of_row), bridged, style
        return self.together(z_v, z_a, times_v, times_a, text, *rows, drawn_video, drawn_audio)

    @property
    def silence(self) -> Tensor:
        """The style (1, 1, D) of no reference, in a ``global_local`` model."""
        assert isinstance(self.bridge, GlobalLocalBridge)
        return self.bridge.silence[None]

    def style(self, reference: Tensor) -> Tensor:
        """Style tokens of a reference sound: (N, A_r, C_a) -> (N, A_r, D)."""
        return self.audio.x_embedder(reference)

    def together(
        self,
        z_v: Tensor,
        z_a: Tensor,
        times_v: Modulation,
        times_a: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        words: Tensor | None,
        bridged: Tensor | None,
        style: Tensor,
        drawn_video: Tensor | None = None,
        drawn_audio: Tensor | None = None,
    ) -> Velocities:
        """:meth:`joint_pass` with the words (R, L, D) that the audio reads, and the style (N or 1, A_r, D)."""
        assert isinstance(self.bridge, GlobalLocalBridge)
        style = style.expand((z_a if bridged is None else bridged).shape[0], -1, -1)  # len() would fix it in a trace
        frequencies = self.video.rope.freqs.float(), self.audio.freqs.float()
        clocks = global_local_clocks(z_v.shape[2], self._tokens(z_v), z_a.shape[1], style.shape[1], *frequencies)
        video = self.video.enter(z_v, *times_v, text, text_of_row)
        audio = self.audio.enter(z_a, times_a, words, style=style, styled=bridged)
        for i in range(self.config.depth):
            assert audio.style is not None
            to_video, to_audio, to_style = self.bridge(i, video.x, audio.x, audio.style, clocks, bridged)
            if i == self.config.depth - 1 and drawn_video is not None:
                video, to_video = video.take(drawn_video), to_video[drawn_video]
            video, _ = self.video.layer(i, video, to_video, ahead=False)
            audio, _ = self.audio.layer(i, audio, branches=(to_audio, to_style))
        if drawn_audio is not None:
            audio = audio.take(drawn_audio)
        return Velocities(self.video.finish(video), self.audio.finish(audio))

    def sight_positions(self, frames: int, tokens: int) -> Tensor:
        """Where the tokens of a context from :meth:`video_pass` stand on the clock of the audio. -> (M,)."""
        return self.audio.video_positions(frames, tokens)

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
    ) -> Velocities:
        """Velocities of both modalities.

        z_v (R, C_v, T, H, W), z_a (R, A, C_a), t_v (R,) or (R, T), t_a (R,), fps (R,), text_of_row (R,) int. Rows where
        ``bridged`` (R,) bool is false skip the bridge in every layer: their towers do not see each other. ``reference``
        (R, A_r, C_a), latents of a sound whose style is wanted, belongs to the bridge ``global_local``. Raises
        ``ValueError`` for it in another model.
        """
        if reference is not None and self.config.bridge != "global_local":
            raise ValueError(f"a reference sound needs the bridge global_local; this model has {self.config.bridge}")
        rows, times_a = torch.arange(len(z_v), device=z_v.device), self.audio_time(t_a)
        times_v = self.modulation(t_v if t_v.ndim == 2 else t_v[:, None], fps)
        of_row = None if bridged is None else torch.where(bridged, rows, -1)
        if self.config.bridge == "global_local":
            bridging = None if bridged is None else rows[bridged]
            style = reference if reference is None or bridging is None else reference[bridging]
            return self.joint_pass(z_v, z_a, times_v, times_a, text, text_of_row, bridged=bridging, reference=style)
        if self.config.bridge == "audio_rope":
            v_audio, heard = self.audio_pass(z_a, times_a, text, text_of_row)
            v_video, _ = self.video_pass(z_v, times_v, text, text_of_row, heard=heard, heard_of_row=of_row)
            return Velocities(v_video, v_audio)
        v_video, context = self.video_pass(z_v, times_v, text, text_of_row, seen=rows)
        sight = Sight(self.sight_positions(z_v.shape[2], self._tokens(z_v)), of_row)
        v_audio, _ = self.audio_pass(z_a, times_a, text, text_of_row, context=context, sight=sight)
        return Velocities(v_video, v_audio)

    def _tokens(self, z: Tensor) -> int:
        """S of video latents z (R, C_v, T, H, W)."""
        return (z.shape[3] // self.config.patch) * (z.shape[4] // self.config.patch)

    def _words(self, text: Conditioning, text_of_row: Tensor) -> Tensor | None:
        """The text tokens that the audio tower reads (R, L, D), if it reads text at all."""
        return text.audio[text_of_row] if self.config.audio_text and text.audio is not None else None
