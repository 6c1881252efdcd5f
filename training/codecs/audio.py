"""Training of the audio codec: windows with sound in them, spectral losses at five resolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...engine.codecs.audio import AudioCodec
from .fit import CodecRecipe, divergence, fit, noised

AUDIO_RECIPE = CodecRecipe(steps=1200, batch=8, rate=1e-2, noise=0.15, warmup=60, kl=1e-3)

WINDOWS = (16, 16, 16, 75)  # audio tokens; those that are longer than the clips are left out
LOUD = 0.1
QUIET = 3e-4
SPECTRAL_SIZES = (2048, 1024, 512, 256, 128)


def train_audio_codec(
    waves: np.ndarray,
    out: str | Path,
    *,
    recipe: CodecRecipe = AUDIO_RECIPE,
    settings: dict[str, Any] | None = None,
    start: AudioCodec | None = None,
) -> AudioCodec:
    """Train on ``waves`` float (N, M), write the codec to ``out``; goes on from ``<out>-training`` after a kill.

    ``settings`` are those of :class:`AudioCodec`, the tiny codec's by default; ``start`` is a codec to train further
    instead of a new one. Raises ``ValueError`` for clips that are too short.
    """
    torch.manual_seed(recipe.seed)
    codec = AudioCodec(settings) if start is None else start
    if waves.ndim != 2 or not len(waves) or waves.shape[1] < min(WINDOWS) * codec.hop:
        raise ValueError(
            f"waves have shape {waves.shape}; they must be (clips, at least {min(WINDOWS) * codec.hop} samples)"
        )

    def losses(codec: AudioCodec, rng: np.random.Generator, noise: float) -> dict[str, Tensor]:
        wave = audio_batch(waves, recipe.batch, codec.hop, rng).to(codec.shift.device)
        mean, logvar = codec.posterior(wave)
        made = codec.waveform(noised(mean, logvar, noise), wave.shape[1])
        return audio_losses(made, wave) | {"kl": recipe.kl * divergence(mean, logvar)}

    def latents(codec: AudioCodec) -> Tensor:
        chosen = np.linspace(0, len(waves) - 1, min(len(waves), 128)).astype(int)
        parts = [codec.encode(torch.from_numpy(waves[i : i + 1].astype(np.float32))) for i in chosen]
        return (torch.cat(parts) * codec.scale + codec.shift).flatten(0, 1)

    return fit(codec, Path(out), recipe, losses, latents)


def audio_batch(waves: np.ndarray, batch: int, hop: int, rng: np.random.Generator) -> Tensor:
    """Windows (B, M) of one length, nearly all with a loud sound in their first half, of random loudness.

    ``batch`` windows of the smallest length, or fewer longer ones.
    """
    length = int(rng.choice([window for window in WINDOWS if window * hop <= waves.shape[1]]))
    samples = length * hop
    count = max(1, batch * min(WINDOWS) // length)
    chosen: list[np.ndarray] = []
    while len(chosen) < count:
        index, first = rng.integers(len(waves)), rng.integers(waves.shape[1] - samples + 1)
        wave = waves[index, first : first + samples].astype(np.float32)
        if np.abs(wave[: samples // 2]).max() > LOUD or rng.random() < 0.05:
            chosen.append(wave * np.float32(rng.uniform(0.7, 1.1)))
    return torch.from_numpy(np.stack(chosen))


def audio_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """L1 of samples; linear and log magnitudes of spectra (B, M) with windows of 2.7 to 43 ms.

    The log term is a mean over audible bins, so that silence between sounds does not outweigh them.
    """
    linear, log = [], []
    for size in SPECTRAL_SIZES:
        a, b = (_spectrum(x, size) for x in (made, true))
        audible = (torch.maximum(a, b) > QUIET).float().mean().clamp_min(0.01)
        linear.append((a - b).norm() / b.norm().clamp_min(1e-4))
        log.append(((a + QUIET).log() - (b + QUIET).log()).abs().mean() / audible)
    return {
        "samples": 2 * F.l1_loss(made, true),
        "linear": torch.stack(linear).mean(),
        "log": torch.stack(log).mean(),
    }


def _spectrum(wave: Tensor, size: int) -> Tensor:
    """Magnitudes; a sine of full scale gives one half."""
    window = torch.hann_window(size, device=wave.device)
    bins = torch.stft(wave, size, size // 4, window=window, return_complex=True)
    return (bins.real.square() + bins.imag.square() + 1e-12).sqrt() * (2 / size)
