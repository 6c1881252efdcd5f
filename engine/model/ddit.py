"""The dual diffusion transformer: both towers and the one-way rule between them (the video never reads the audio)."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import DDiTConfig
from ..types import Conditioning, Velocities
from .audio import AudioTower
from .video import VideoTower


class DDiT(nn.Module):
    """u(z_v, z_a, t_v, t_a, text) -> (v_v, v_a) (SyncFlow Eq. 2)."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoTower(config)
        self.audio = AudioTower(config)

    def video_velocity(
        self, z: Tensor, t: Tensor, fps: Tensor, text: Conditioning, text_of_row: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity of the video and its features per layer. t (R,) or per frame (R, T)."""
        rows, embedded = self.video.modulation(t if t.ndim == 2 else t[:, None], fps)
        return self.video(z, rows, embedded, text, text_of_row)

    def audio_velocity(
        self, z: Tensor, t: Tensor, context: list[Tensor], frames: int, text: Conditioning, text_of_row: Tensor
    ) -> Tensor:
        """Velocity of the audio given adapted video features over ``frames`` latent frames."""
        words = text.audio[text_of_row] if self.config.audio_text and text.audio is not None else None
        return self.audio(z, t, context, frames, words)

    def forward(
        self, z_v: Tensor, z_a: Tensor, t_v: Tensor, t_a: Tensor, fps: Tensor, text: Conditioning, text_of_row: Tensor
    ) -> Velocities:
        """Velocities of both modalities.

        z_v (R, C_v, T, H, W), z_a (R, A, C_a), t_v (R,) or (R, T), t_a (R,), fps (R,), text_of_row (R,) int.
        """
        v_video, features = self.video_velocity(z_v, t_v, fps, text, text_of_row)
        context = self.audio.adapt(features)
        return Velocities(v_video, self.audio_velocity(z_a, t_a, context, z_v.shape[2], text, text_of_row))
