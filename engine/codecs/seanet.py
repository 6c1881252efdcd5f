"""SEANet, EnCodec's convolutional encoder and decoder, in plain PyTorch: the tensors and numbers of transformers'.

Défossez et al., "High Fidelity Neural Audio Compression", 2022. Weight normalisation is folded into plain weights, and
paddings are plain numbers, so that graphs export as convolutions. It is here because importing transformers takes
longer than drawing a clip with the bundled model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor, nn

from ...kernels.launch.eager import computes_as_on_cpu
from ..validation import refuse, shown, whole_between

NORMS = ("weight_norm", "time_group_norm")
PAD_MODES = ("reflect", "constant", "replicate", "circular")
WHOLE = {
    "sampling_rate": (1, 384_000),
    "audio_channels": (1, 1),
    "hidden_size": (1, 65_536),
    "num_filters": (1, 65_536),
    "num_residual_layers": (0, 64),
    "kernel_size": (1, 1024),
    "last_kernel_size": (1, 1024),
    "residual_kernel_size": (1, 1024),
    "dilation_growth_rate": (1, 16),
    "compress": (1, 1024),
    "num_lstm_layers": (0, 64),
}


@dataclass(frozen=True)
class SeanetConfig:
    """Settings of transformers' ``EncodecConfig`` that describe encoder and decoder, with its defaults.

    The strides are ``upsampling_ratios`` in the decoder, and reversed in the encoder; their product is :attr:`hop`.
    Raises ``ValueError`` for a setting out of its range.
    """

    sampling_rate: int = 24_000
    audio_channels: int = 1
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    use_conv_shortcut: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE.items():
            whole_between(name, getattr(self, name), low, high)
        if not self.upsampling_ratios or not isinstance(self.upsampling_ratios, (list, tuple)):
            refuse("upsampling_ratios", self.upsampling_ratios, "a list of strides")
        for ratio in self.upsampling_ratios:
            whole_between("a stride in upsampling_ratios", ratio, 1, 1000)
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode is {shown(self.pad_mode)}; it must be one of {', '.join(PAD_MODES)}")
        if self.norm_type not in NORMS:
            raise ValueError(f"norm_type is {self.norm_type!r}; it must be one of {', '.join(NORMS)}")
        if self.trim_right_ratio != 1 and not self.use_causal_conv:
            raise ValueError(f"trim_right_ratio is {self.trim_right_ratio}; it must be 1 without use_causal_conv")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings among ``values``; others are left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @property
    def hop(self) -> int:
        """Samples that one latent covers."""
        return math.prod(self.upsampling_ratios)


class Encoder(nn.Module):
    """Waveform (B, audio_channels, M), M a multiple of the hop, to states (B, hidden_size, M / hop)."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        width = config.num_filters
        layers: list[nn.Module] = [Conv(config, config.audio_channels, width, config.kernel_size)]
        for ratio in reversed(config.upsampling_ratios):
            layers += _residual_layers(config, width)
            layers += [nn.ELU(), Conv(config, width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        layers += [Lstm(width, config.num_lstm_layers), nn.ELU()]
        layers.append(Conv(config, width, config.hidden_size, config.last_kernel_size))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(nn.Module):
    """States (B, hidden_size, A) to a waveform (B, audio_channels, A hop)."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        width = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers: list[nn.Module] = [Conv(config, config.hidden_size, width, config.kernel_size)]
        layers.append(Lstm(width, config.num_lstm_layers))
        for ratio in config.upsampling_ratios:
            layers += [nn.ELU(), TransposedConv(config, width, width // 2, 2 * ratio, ratio)]
            width //= 2
            layers += _residual_layers(config, width)
        layers += [nn.ELU(), Conv(config, width, config.audio_channels, config.last_kernel_size)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Conv(nn.Module):
    """A convolution (B, C, N) -> (B, C', N / stride), its padding before the signal where it is causal."""

    def __init__(
        self, config: SeanetConfig, width: int, out: int, kernel: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, kernel, stride, dilation=dilation)
        self.norm = _norm(config, out)
        self.mode = config.pad_mode
        total = (kernel - 1) * dilation + 1 - stride
        after = 0 if config.use_causal_conv else total // 2
        self.sides = total - after, after

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self._padded(x)))

    def _padded(self, x: Tensor) -> Tensor:
        """A reflection needs more samples than it adds: those that are missing are zeros, for the time being."""
        if self.mode != "reflect" or x.shape[-1] > max(self.sides):
            return nn.functional.pad(x, self.sides, self.mode)
        missing = max(self.sides) - x.shape[-1] + 1
        padded = nn.functional.pad(nn.functional.pad(x, (0, missing)), self.sides, self.mode)
        return padded[..., : padded.shape[-1] - missing]


class TransposedConv(nn.Module):
    """A transposed convolution (B, C, N) -> (B, C', N stride), what overhangs cut off.

    PyTorch computes it on a CPU as products and a sum: oneDNN takes a second to prepare its own for every new number of
    samples. Graphs have the convolution.
    """

    def __init__(self, config: SeanetConfig, width: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, out, kernel, stride)  # whose kernel is some strides long
        self.norm = _norm(config, out)
        total = kernel - stride
        after = math.ceil(total * config.trim_right_ratio) if config.use_causal_conv else total // 2
        self.sides = total - after, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self._convolved(x) if computes_as_on_cpu(x) else self.conv(x))
        return x[..., self.sides[0] : x.shape[-1] - self.sides[1]]

    def _convolved(self, x: Tensor) -> Tensor:
        """Each stride of the kernel makes a stride of samples of every x; these are added, shifted."""
        weight, bias = self.conv.weight, self.conv.get_parameter("bias")
        parts = weight.split(self.conv.stride[0], 2)
        made = [(part.flatten(1).T @ x).unflatten(1, part.shape[1:]).transpose(2, 3) for part in parts]
        total = nn.functional.pad(made[0], (0, 0, 0, len(parts) - 1))
        for j, part in enumerate(made[1:], 1):
            total[:, :, j : j + x.shape[-1]] += part
        return total.flatten(2).add_(bias[:, None])


class Lstm(nn.Module):
    """An LSTM over time beside its input, (B, C, N)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class ResBlock(nn.Module):
    """Two convolutions through fewer channels, beside the input or its projection."""

    def __init__(self, config: SeanetConfig, width: int, dilation: int) -> None:
        super().__init__()
        hidden = width // config.compress
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                Conv(config, width, hidden, config.residual_kernel_size, dilation=dilation),
                nn.ELU(),
                Conv(config, hidden, width, 1),
            ]
        )
        self.shortcut = Conv(config, width, width, 1) if config.use_conv_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y)
        return self.shortcut(x) + y


def _residual_layers(config: SeanetConfig, width: int) -> Iterator[nn.Module]:
    return (ResBlock(config, width, config.dilation_growth_rate**j) for j in range(config.num_residual_layers))


def _norm(config: SeanetConfig, width: int) -> nn.Module:
    return nn.GroupNorm(1, width) if config.norm_type == "time_group_norm" else nn.Identity()
