"""Audio codec: waveform <-> latents, EnCodec's encoder and decoder with a KL bottleneck instead of the quantiser.

Strides 8*6*5*4 = 960: 48 kHz mono gives 50 latents a second (SyncFlow section 3.2, method.md section 7).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .files import load_weights, read_config, read_weights, write_component

if TYPE_CHECKING:
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

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

    ``settings`` are those of ``transformers.EncodecConfig`` and ``latent_channels`` (C_a); ``latents_mean`` and
    ``latents_std`` are the statistics of the latents over data.
    """

    shift: Tensor
    scale: Tensor

    @torch.inference_mode(False)  # weight normalisation cannot be folded under inference mode
    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        from transformers import EncodecConfig
        from transformers.models.encodec.modeling_encodec import EncodecDecoder, EncodecEncoder

        super().__init__()
        self.config: dict[str, Any] = dict(TINY_SETTINGS if settings is None else settings)
        ours = {"latent_channels", "latents_mean", "latents_std", "_class_name"}
        encodec = EncodecConfig(**{name: value for name, value in self.config.items() if name not in ours})
        self.channels = int(self.config["latent_channels"])
        self.sample_rate: int = encodec.sampling_rate
        self.hop: int = encodec.hop_length
        self.encoder = _plain(EncodecEncoder(encodec))
        self.to_moments = nn.Conv1d(encodec.hidden_size, 2 * self.channels, 1)
        self.from_latents = nn.Conv1d(self.channels, encodec.hidden_size, 1)
        self.decoder = _plain(EncodecDecoder(encodec))
        self.register_buffer("shift", torch.zeros(self.channels), persistent=False)
        self.register_buffer("scale", torch.ones(self.channels), persistent=False)
        self._initialize()
        if "latents_mean" in self.config:
            self.set_statistics(torch.tensor(self.config["latents_mean"]), torch.tensor(self.config["latents_std"]))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read ``config.json`` and ``model.safetensors``.

        Raises ``ValueError`` for a missing, foreign or damaged folder.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config.get("_class_name") != cls.__name__ or "latent_channels" not in config:
            raise ValueError(
                f"{folder} holds a {config.get('_class_name')!r}; an audio codec says {cls.__name__!r} "
                "and its latent_channels"
            )
        codec = cls(config)
        load_weights(codec, read_weights(folder, STEM), folder)
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
        encoder, decoder = self.encoder.get_submodule("layers"), self.decoder.get_submodule("layers")
        assert isinstance(encoder, nn.ModuleList) and isinstance(decoder, nn.ModuleList)
        first, last = encoder[0].get_submodule("conv"), decoder[-1].get_submodule("conv")
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


class PaddedConv(nn.Module):
    """EnCodec's convolution of a length that its stride divides, with its paddings as plain numbers.

    The library keeps them in tensors, which neither shapes alone nor a traced graph can read.
    """

    def __init__(self, layer: EncodecConv1d) -> None:
        super().__init__()
        self.conv, self.mode, self.pad = layer.conv, layer.pad_mode, layer._pad1d
        self.norm = layer.norm if layer.norm_type == "time_group_norm" else nn.Identity()
        (kernel,), (stride,), (dilation,) = layer.conv.kernel_size, layer.conv.stride, layer.conv.dilation
        total = (kernel - 1) * dilation + 1 - stride
        right = 0 if layer.causal else total // 2
        self.sides = total - right, right

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C', N / stride)."""
        return self.norm(self.conv(self.pad(x, self.sides, mode=self.mode)))


def _plain(module: nn.Module) -> nn.Module:
    """Fold weight normalisation into plain weights and paddings into plain numbers: graphs export as convolutions."""
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, EncodecConv1d):
                setattr(parent, name, PaddedConv(child))
    return module
