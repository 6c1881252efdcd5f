"""Audio codec: waveform <-> latents, EnCodec's encoder and decoder with a KL bottleneck instead of the quantiser.

Strides 8*6*5*4 = 960: 48 kHz mono gives 50 latents a second (SyncFlow section 3.2, docs/method.md section 6).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..package import write_json
from ..validation import whole_between
from .files import (
    building,
    check_statistics,
    load_weights,
    read_config,
    read_weights,
    write_component,
)
from .seanet import Decoder, Encoder, SeanetConfig

STEM = "model"

LOUDNESS = 10.0

TINY_SETTINGS: dict[str, Any] = {
    "sampling_rate": 48_000,
    "num_filters": 8,
    "upsampling_ratios": [8, 6, 5, 4],
    "hidden_size": 64,
    "num_lstm_layers": 1,
    "use_causal_conv": False,
    "latent_channels": 16,
}


class AudioCodec(nn.Module):
    """Waveform float (B, M) in [-1, 1] <-> latents (B, A, C_a), per channel of mean 0 and deviation 1, A = M / 960.

    ``settings`` are those of :class:`~.seanet.SeanetConfig` and ``latent_channels`` (C_a); ``latents_mean`` and
    ``latents_std`` are the statistics of the latents over data.
    """

    shift: Tensor
    scale: Tensor
    multiple = 1
    """The number of latents is a multiple of it."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(TINY_SETTINGS if settings is None else settings)
        seanet = SeanetConfig.from_dict(self.config)
        self.channels = int(self.config["latent_channels"])
        self.sample_rate, self.hop = seanet.sampling_rate, seanet.hop
        self.encoder = Encoder(seanet)
        self.to_moments = nn.Conv1d(seanet.hidden_size, 2 * self.channels, 1)
        self.from_latents = nn.Conv1d(self.channels, seanet.hidden_size, 1)
        self.decoder = Decoder(seanet)
        self.register_buffer("shift", torch.zeros(self.channels), persistent=False)
        self.register_buffer("scale", torch.ones(self.channels), persistent=False)
        self._initialize()
        if "latents_mean" in self.config:
            self.set_statistics(torch.tensor(self.config["latents_mean"]), torch.tensor(self.config["latents_std"]))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, values: bool = True) -> Self:
        """Read ``config.json`` and ``model.safetensors``; without ``values`` a codec on the meta device.

        Raises ``ValueError`` for a missing, foreign or damaged folder.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config.get("_class_name") == NoAudioCodec.__name__:
            return cast("Self", NoAudioCodec(config))
        if config.get("_class_name") == "MelCodec":
            from .mel import MelCodec

            return cast("Self", MelCodec.from_pretrained(folder, values=values))
        if config.get("_class_name") != cls.__name__ or "latent_channels" not in config:
            raise ValueError(
                f"{folder} holds a {config.get('_class_name')!r}; an audio codec says {cls.__name__!r} "
                "and its latent_channels"
            )
        tensors = read_weights(folder, STEM, values=values)
        with building(folder, tensors):
            codec = cls(config)
        load_weights(codec, tensors, folder)
        check_statistics(codec.shift, codec.scale, folder)
        return codec.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` (statistics included) and ``model.safetensors``."""
        config = self.config | {"_class_name": type(self).__name__}
        config |= {"latents_mean": self.shift.tolist(), "latents_std": self.scale.tolist()}
        write_component(Path(folder), config, self, STEM, dtype)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Let a quiet signal through: variance kept layer by layer, no biases, input raised to about unit loudness."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
                taps = layer.kernel_size[0] / (layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1)
                layer.weight.normal_(0, (1.4 / (layer.in_channels * taps)) ** 0.5)
                if layer.bias is not None:
                    layer.bias.zero_()
        first, last = self.encoder.layers[0].get_submodule("conv"), self.decoder.layers[-1].get_submodule("conv")
        assert isinstance(first, nn.Conv1d) and isinstance(last, nn.Conv1d)
        first.weight.mul_(LOUDNESS)
        last.weight.div_(LOUDNESS)

    def set_statistics(self, shift: Tensor, scale: Tensor) -> None:
        """Set mean and deviation (C_a,) of the latents. Raises ``ValueError`` for another number of channels."""
        if shift.shape != self.shift.shape or scale.shape != self.scale.shape:
            raise ValueError(
                f"statistics of {len(shift)} and {len(scale)} channels do not fit a codec of {self.channels}"
            )
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def latent_length(self, samples: int) -> int:
        """A for M samples."""
        return -(-samples // self.hop)

    def encode(self, waveform: Tensor) -> Tensor:
        """Normalised latents (B, A, C_a) of ``waveform`` (B, M)."""
        if waveform.ndim != 2 or waveform.shape[1] < 1:
            raise ValueError(f"waveform has shape {tuple(waveform.shape)}; it must be (batch, samples)")
        mean, _ = self.posterior(waveform.to(self.shift))
        return (mean.mT - self.shift) / self.scale

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """Waveform float32 (B, M) in [-1, 1] of normalised ``latents``: the first ``samples`` of the 960 A."""
        return self.waveform((latents * self.scale + self.shift).mT, samples).float().clamp(-1, 1)

    def posterior(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, C_a, A) of the raw latents of ``waveform`` (B, M), silence after its end."""
        missing = self.latent_length(waveform.shape[1]) * self.hop - waveform.shape[1]
        states = self.encoder(nn.functional.pad(waveform, (0, missing)).unsqueeze(1))
        mean, logvar = self.to_moments(states).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def waveform(self, latents: Tensor, samples: int) -> Tensor:
        """Differentiable decoding of raw ``latents`` (B, C_a, A) to (B, M)."""
        count = latents.shape[2]
        if self.latent_length(samples) != count:
            allowed = f"{(count - 1) * self.hop + 1} to {count * self.hop}"
            raise ValueError(f"samples is {samples}; {count} audio latents decode to {allowed}")
        return self.decoder(self.from_latents(latents))[:, 0, :samples]


class NoAudioCodec(AudioCodec):
    """In the place of the audio codec in a model without sound: no weights, latents of zeros, waveforms of no samples.

    ``settings``: ``sampling_rate``, ``hop`` and ``latent_channels``, which the lengths of a clip are derived with.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = {"sampling_rate": 48_000, "hop": 960, "latent_channels": 1} | dict(settings or {})
        self.sample_rate = whole_between("sampling_rate", self.config["sampling_rate"], 1, 384_000)
        self.hop = whole_between("hop", self.config["hop"], 1, 100_000)
        self.channels = whole_between("latent_channels", self.config["latent_channels"], 1, 4096)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "config.json", self.config | {"_class_name": type(self).__name__})

    def encode(self, waveform: Tensor) -> Tensor:
        """Zeros (B, A, C_a) for a waveform (B, M)."""
        return waveform.new_zeros(len(waveform), self.latent_length(waveform.shape[1]), self.channels)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """No samples: (B, 0)."""
        return latents.new_zeros(len(latents), 0)
