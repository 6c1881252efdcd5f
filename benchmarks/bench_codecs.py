"""Decoding a clip of 2 s: latents to frames, latents to sound."""

from __future__ import annotations

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.engine.engine import Engine
from syncflow.engine.types import Clip
from syncflow.training.data.impacts import sample_clip

ENVELOPE = 960


def rendered() -> Clip:
    """A clip of the kind that the codecs were trained on, and never saw."""
    clip, _, _ = sample_clip(seed=1, index=0, split="unseen")
    return clip


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio (dB) of 8-bit pictures."""
    return float(10 * np.log10(255**2 / np.square(made.astype(float) - true).mean()))


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Root mean square of every latent's worth of samples."""
    return np.sqrt(np.square(waveform.reshape(-1, ENVELOPE)).mean(axis=1))


def test_video_decoder(measured: BenchmarkFixture, engine: Engine) -> None:
    """(16, 8, 8, 8) latents to (32, 64, 64, 3) frames, for the bundled model."""
    codec, clip = engine.components.video, rendered()
    with torch.inference_mode():
        latents = codec.encode(torch.from_numpy(clip.frames)[None])
        made = codec.decode(latents, len(clip.frames))[0].numpy()
        assert psnr(made, clip.frames) > 25
        measured.pedantic(codec.decode, args=(latents, len(clip.frames)), rounds=20, warmup_rounds=3)
    measured.extra_info["psnr_db"] = round(psnr(made, clip.frames), 1)


def test_audio_decoder(measured: BenchmarkFixture, engine: Engine) -> None:
    """(100, 16) latents to 96 000 samples, for the bundled model."""
    codec, clip = engine.components.audio, rendered()
    with torch.inference_mode():
        latents = codec.encode(torch.from_numpy(clip.waveform)[None])
        made = codec.decode(latents, len(clip.waveform))[0].numpy()
        likeness = np.corrcoef(loudness(made), loudness(clip.waveform))[0, 1]
        assert likeness > 0.9
        measured.pedantic(codec.decode, args=(latents, len(clip.waveform)), rounds=20, warmup_rounds=3)
    measured.extra_info["loudness_correlation"] = round(float(likeness), 3)
