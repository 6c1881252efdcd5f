"""Training of the codecs: ``train_video_codec`` and ``train_audio_codec``.

The latents must be easy for a small diffusion transformer: decoders see latents with noise on them, so that imperfect
latents decode well, and a small KL term keeps the latents bounded. Statistics of the latents over data are measured at
the end and travel with the codec.
"""

from __future__ import annotations

from .audio import AUDIO_RECIPE, train_audio_codec
from .fit import CodecRecipe
from .video import VIDEO_RECIPE, train_video_codec

__all__ = ["AUDIO_RECIPE", "VIDEO_RECIPE", "CodecRecipe", "train_audio_codec", "train_video_codec"]
