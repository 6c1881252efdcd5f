"""The dual diffusion transformer: both towers and what crosses between them (``DDiTConfig.bridge``).

| bridge | layer l of the video tower reads | layer l of the audio tower reads |
|---|---|---|
| ``adaptor`` (SyncFlow) | no audio | adapted video tokens after the temporal attention of video layer l |
| ``audio_rope`` (Syncphony) | audio tokens after the self-attention of audio layer l, l >= first_block | no video |
| ``global_local`` (Harmony) | audio tokens at the entry of layer l | video tokens at the entry of layer l |

In a one-way model the tower that reads nothing runs first, whole; in ``global_local`` they run layer by layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .audio import AudioTower
from .bridges import (
    AudioRopeBridge,
    GlobalLocalBridge,
    KeysValues,
    Reader,
    global_local_clocks,
    make_bridge,
    video_clock,
)
from .video import VideoTower


class DDiT(nn.Module):
    """u(z_v, z_a, t_v, t_a, text) -> (v_v, v_a) (SyncFlow Eq. 2).

    :meth:`forward` is the plain definition: every row through both towers. The other methods are its parts for who
    keeps what does not change: what one tower reads of the other, the modulation of a schedule.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoTower(config)
        self.audio = AudioTower(config)
        self.bridge = make_bridge(config)

    def video_velocity(
        self,
        z: Tensor,
        t: Tensor,
        fps: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        heard: list[KeysValues] | None = None,
        bridged: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity of the video and its features per layer. t (R,) or per frame (R, T).

        ``heard`` from :meth:`hear` in an ``audio_rope`` model, without which the video reads no audio.
        """
        rows, embedded = self.video.modulation(t if t.ndim == 2 else t[:, None], fps)
        readers = None if heard is None else self.readers(z, heard, bridged)
        return self.video(z, rows, embedded, text, text_of_row, readers)

    def readers(self, z: Tensor, heard: list[KeysValues], bridged: Tensor | None = None) -> dict[int, Reader]:
        """What ``video`` takes to read the audio: ``heard`` from :meth:`hear`, for latents z (R, C_v, T, H, W)."""
        assert isinstance(self.bridge, AudioRopeBridge)
        audio = heard[0][0].shape[1]
        clocks = video_clock(z.shape[2], self._tokens(z), audio, self.video.rope.freqs.float())
        return self.bridge.readers(heard, clocks, bridged)

    def audio_velocity(
        self,
        z: Tensor,
        t: Tensor,
        context: list[Tensor] | None,
        frames: int,
        text: Conditioning,
        text_of_row: Tensor,
        bridged: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the audio given adapted video features over ``frames`` latent frames; ``None`` skips them."""
        return self.audio(z, t, context, frames, self._words(text, text_of_row), bridged)

    def hear(self, z: Tensor, t: Tensor, text: Conditioning, text_of_row: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Velocity of the audio and what the video reads of it, in an ``audio_rope`` model. z (R, A, C_a), t (R,)."""
        assert isinstance(self.bridge, AudioRopeBridge)
        state = self.audio.enter(z, t, self._words(text, text_of_row))
        sounds = []
        for i in range(self.config.depth):
            state, sound = self.audio.layer(i, state)
            sounds.append(sound)
        return self.audio.finish(state), self.bridge.adapt(sounds)

    def together(
        self,
        z_v: Tensor,
        z_a: Tensor,
        rows: Tensor,
        embedded: Tensor,
        t_a: Tensor,
        text: Conditioning,
        text_of_row: Tensor,
        bridged: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Velocities:
        """Velocities of a ``global_local`` model, layer by layer; rows and embedded from ``video.modulation``.

        ``reference`` (R, A_r, C_a) latents of a sound whose style is wanted.
        """
        assert isinstance(self.bridge, GlobalLocalBridge)
        no_style = self.bridge.silence.expand(len(z_a), -1, -1)
        style = no_style if reference is None else self.audio.x_embedder(reference)
        frequencies = self.video.rope.freqs.float(), self.audio.freqs.float()
        clocks = global_local_clocks(z_v.shape[2], self._tokens(z_v), z_a.shape[1], style.shape[1], *frequencies)
        video = self.video.enter(z_v, rows, embedded, text, text_of_row)
        audio = self.audio.enter(z_a, t_a, self._words(text, text_of_row), style=style)
        for i in range(self.config.depth):
            assert audio.style is not None
            to_video, to_audio, to_style = self.bridge(i, video.x, audio.x, audio.style, clocks, bridged)
            video, _ = self.video.layer(i, video, to_video, ahead=False)
            audio, _ = self.audio.layer(i, audio, branches=(to_audio, to_style), bridged=bridged)
        return Velocities(self.video.finish(video), self.audio.finish(audio))

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
        (R, A_r, C_a) belongs to the bridge ``global_local``. Raises ``ValueError`` for it in another model.
        """
        if reference is not None and self.config.bridge != "global_local":
            raise ValueError(f"a reference sound needs the bridge global_local; this model has {self.config.bridge}")
        if self.config.bridge == "global_local":
            rows, embedded = self.video.modulation(t_v if t_v.ndim == 2 else t_v[:, None], fps)
            return self.together(z_v, z_a, rows, embedded, t_a, text, text_of_row, bridged, reference)
        if self.config.bridge == "audio_rope":
            v_audio, heard = self.hear(z_a, t_a, text, text_of_row)
            v_video, _ = self.video_velocity(z_v, t_v, fps, text, text_of_row, heard, bridged)
            return Velocities(v_video, v_audio)
        v_video, features = self.video_velocity(z_v, t_v, fps, text, text_of_row)
        context = self.audio.adapt(features)
        frames = z_v.shape[2]
        return Velocities(v_video, self.audio_velocity(z_a, t_a, context, frames, text, text_of_row, bridged))

    def _tokens(self, z: Tensor) -> int:
        """S of video latents z (R, C_v, T, H, W)."""
        return (z.shape[3] // self.config.patch) * (z.shape[4] // self.config.patch)

    def _words(self, text: Conditioning, text_of_row: Tensor) -> Tensor | None:
        """The text tokens that the audio tower reads (R, L, D), if it reads text at all."""
        return text.audio[text_of_row] if self.config.audio_text and text.audio is not None else None
