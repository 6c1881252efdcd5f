"""AudioLDM2's audio codec: a mel spectrogram autoencoder of diffusers, a HiFi-GAN vocoder of transformers.

16 kHz mono -> 100 frames a second of 64 mel bins -> latents of 8 channels, 25 a second, of 16 bins. The spectrogram is
made as JavisDiT's ``AudioLDM2MelTransform`` does it, in whole blocks of 32 frames.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .audio import STEM, AudioCodec
from .files import INSTALL, building, load_weights, read_config, read_weights, write_component

CLASS_NAME = "MelCodec"
BLOCK = 32  # frames of the spectrogram, of which a clip has whole blocks
WINDOW = 1024  # samples of a frame of the spectrogram
LOUDEST, QUIETEST = 0.5, 1e-5  # of a waveform before its spectrogram is made, and of a bin
VAE_SETTINGS: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 8,
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
}


class MelCodec(AudioCodec):
    """Waveform float (B, M) in [-1, 1] <-> latents (B, A, C_a), C_a = channels * bins, A in multiples of ``multiple``.

    ``settings``: ``vae``, the configuration of a diffusers ``AutoencoderKL``, and ``vocoder``, that of a transformers
    ``SpeechT5HifiGan``.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        try:
            from diffusers import AutoencoderKL
            from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
        except ImportError as error:
            raise ValueError(f"the audio codec {CLASS_NAME} needs {error.name}; {INSTALL}") from None

        nn.Module.__init__(self)
        vae = VAE_SETTINGS | dict(settings.get("vae") or {})
        vocoder = SpeechT5HifiGanConfig(**_sizes(settings.get("vocoder") or {}))
        self.config = {"vae": vae, "vocoder": dict(settings.get("vocoder") or {})}
        self.vae = AutoencoderKL.from_config(vae)
        self.vocoder = SpeechT5HifiGan(vocoder)
        self.factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.frame_hop = math.prod(vocoder.upsample_rates)
        self.mel_bins, self.sample_rate = int(vocoder.model_in_dim), int(vocoder.sampling_rate)
        if self.mel_bins % self.factor or BLOCK % self.factor:
            raise ValueError(f"{self.mel_bins} mel bins cannot be coded by an autoencoder of stride {self.factor}")
        self.bins, self.hop = self.mel_bins // self.factor, self.frame_hop * self.factor
        self.multiple = BLOCK // self.factor
        self.channels = int(vae["latent_channels"]) * self.bins

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, values: bool = True) -> Self:
        """Read ``config.json`` and ``model.safetensors``; without ``values`` a codec on the meta device.

        Raises ``ValueError`` for a missing, foreign or damaged folder.
        """
        folder = Path(folder)
        tensors = read_weights(folder, STEM, values=values)
        with building(folder, tensors, initialized=True):
            codec = cls(read_config(folder))
        load_weights(codec, tensors, folder)
        return codec.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        write_component(Path(folder), self.config | {"_class_name": CLASS_NAME}, self, STEM, dtype)

    def latent_length(self, samples: int) -> int:
        """A for M samples."""
        return -(-samples // (self.hop * self.multiple)) * self.multiple

    def encode(self, waveform: Tensor) -> Tensor:
        """Latents (B, A, C_a) of ``waveform`` (B, M), whatever its loudness."""
        if waveform.ndim != 2 or waveform.shape[1] < 1:
            raise ValueError(f"waveform has shape {tuple(waveform.shape)}; it must be (batch, samples)")
        frames = self.latent_length(waveform.shape[1]) * self.factor
        spectrogram = self.spectrogram(waveform.to(self._dtype))[:, :frames]
        spectrogram = F.pad(spectrogram, (0, 0, 0, frames - spectrogram.shape[1]))
        latents = self.vae.encode(spectrogram[:, None]).latent_dist.mean * self.vae.config.scaling_factor
        return latents.movedim(1, 2).flatten(2)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """Waveform float32 (B, M) in [-1, 1] of ``latents``: the first ``samples``."""
        if self.latent_length(samples) != latents.shape[1]:
            raise ValueError(
                f"samples is {samples}; they have {self.latent_length(samples)} latents, not {latents.shape[1]}"
            )
        scaled = latents.to(self._dtype).unflatten(2, (-1, self.bins)).movedim(2, 1) / self.vae.config.scaling_factor
        spectrogram = self.vae.decode(scaled).sample[:, 0]
        return self.vocoder(spectrogram)[:, :samples].float().clamp(-1, 1)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Logarithms of the mel spectrogram of a waveform (B, M) without its mean, at half loudness: (B, L, bins)."""
        waveform = waveform - waveform.mean(1, keepdim=True)
        waveform = waveform / (waveform.abs().amax(1, keepdim=True) + 1e-8) * LOUDEST
        missing = max(0, WINDOW // 2 + 1 - waveform.shape[1])  # what is mirrored at the ends must be there
        window = torch.hann_window(WINDOW, dtype=waveform.dtype, device=waveform.device)
        found = torch.stft(
            F.pad(waveform, (0, missing)),
            WINDOW,
            self.frame_hop,
            window=window,
            pad_mode="reflect",
            return_complex=True,
        )
        mel = self._filters().to(found.abs()).T @ found.abs()
        return mel.clamp_min(QUIETEST).log().mT

    @property
    def _dtype(self) -> torch.dtype:
        return self.vocoder.conv_pre.weight.dtype

    def _filters(self) -> Tensor:
        """Slaney's mel filters (WINDOW / 2 + 1, bins)."""
        from transformers.audio_utils import mel_filter_bank

        rate = self.sample_rate
        return torch.from_numpy(
            mel_filter_bank(WINDOW // 2 + 1, self.mel_bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
        )


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration of transformers says of the model, without where it came from."""
    foreign = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
    return {name: value for name, value in config.items() if name not in foreign}
