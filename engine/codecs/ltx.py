"""LTX-Video's autoencoder in plain PyTorch: the tensors and the numbers of diffusers' ``AutoencoderKLLTXVideo``.

An autoencoder on pixel patches with 3-D convolutions on the coarse grid and channel-wise norms only (HaCohen et al.,
"LTX-Video: Realtime Video Latent Diffusion", 2024). It is here because importing diffusers takes longer than drawing a
clip with the bundled model. It leaves out noise injection, time conditioning, residual and factored upsampling and the
blocks of LTX-Video 0.9.5: where :func:`supported` says no, diffusers' class takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...kernels.launch.eager import computes_as_on_cpu
from ..validation import number_between, truth, whole_between

CLASS_NAME = "AutoencoderKLLTXVideo"
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["LTXVideoDownBlock3D"] * 4,
    "decoder_block_out_channels": [128, 256, 512, 512],
    "layers_per_block": [4, 3, 3, 3, 4],
    "decoder_layers_per_block": [4, 3, 3, 3, 4],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_spatio_temporal_scaling": [True, True, True, False],
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
}
RMS_EPS = 1e-8
WHOLE = {
    "in_channels": (1, 64),
    "out_channels": (1, 64),
    "latent_channels": (1, 4096),
    "patch_size": (1, 64),
    "patch_size_t": (1, 64),
}


def supported(config: Mapping[str, Any]) -> bool:
    """Whether :class:`LTXVideoVAE` computes an autoencoder with these settings."""
    blocks = config.get("down_block_types", DEFAULTS["down_block_types"])
    return (
        all(block == "LTXVideoDownBlock3D" for block in blocks)
        and not config.get("timestep_conditioning", False)
        and not any(config.get("decoder_inject_noise", ()))
        and not any(config.get("upsample_residual", ()))
        and all(factor == 1 for factor in config.get("upsample_factor", ()))
    )


class LTXVideoVAE(nn.Module):
    """Speaks like a diffusers autoencoder: ``encode(pixels).latent_dist`` and ``decode(latents).sample``.

    Pixels are (B, C, F, H, W), latents (B, C_v, T, h, w); ``config`` holds the settings of diffusers' class.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = DEFAULTS | dict(config or {})
        for name, (low, high) in WHOLE.items():
            whole_between(name, self.config[name], low, high)
        for name in ("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"):
            for scaled in self.config[name]:
                truth(f"a value in {name}", scaled)
        number_between("resnet_norm_eps", self.config["resnet_norm_eps"], 0, 1, above=True)
        latents = self.config["latent_channels"]
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.register_buffer("latents_mean", torch.zeros(latents))
        self.register_buffer("latents_std", torch.ones(latents))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """With fresh weights, as diffusers' classes are made."""
        return cls(config)

    @property
    def factors(self) -> tuple[int, int]:
        """Frames, and pixels of each side, that one latent covers."""
        doublings = 2 ** sum(self.config["spatio_temporal_scaling"])
        return self.config["patch_size_t"] * doublings, self.config["patch_size"] * doublings

    @property
    def cropped_frames(self) -> int:
        """How many frames fewer than T times the time factor T latents are decoded to."""
        return self.config["patch_size_t"] * (2 ** sum(self.config["decoder_spatio_temporal_scaling"]) - 1)

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """The posterior: ``latent_dist`` with ``mean`` and ``logvar`` (B, C_v, T, h, w)."""
        mean, logvar = self.encoder(pixels).chunk(2, dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=logvar.clamp(-30, 20)))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """``sample``: the pixels of ``latents``."""
        return SimpleNamespace(sample=self.decoder(latents))


class Encoder(nn.Module):
    """Pixels (B, C, F, H, W) to mean and log variance (B, 2 C_v, T, h, w); one log variance for all channels."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.patch = int(config["patch_size_t"]), int(config["patch_size"])
        self.latents = int(config["latent_channels"])
        widths, layers, causal = config["block_out_channels"], config["layers_per_block"], config["encoder_causal"]
        channels, eps = config["in_channels"] * config["patch_size"] ** 2, config["resnet_norm_eps"]
        self.conv_in = Conv(channels, widths[0], causal=causal)
        self.down_blocks = nn.ModuleList(
            DownBlock(width, following, count, scaled, causal=causal, eps=eps)
            for width, following, count, scaled in zip(
                widths, [*widths[1:], widths[-1]], layers[:-1], config["spatio_temporal_scaling"], strict=True
            )
        )
        self.mid_block = MidBlock(widths[-1], layers[-1], causal=causal, eps=eps)
        self.conv_out = Conv(widths[-1], self.latents + 1, causal=causal)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(_to_patches(pixels, *self.patch))
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(nn.functional.silu(rms_norm(self.mid_block(x))))
        return torch.cat([x, x[:, -1:].repeat(1, self.latents - 1, 1, 1, 1)], dim=1)


class Decoder(nn.Module):
    """Latents (B, C_v, T, h, w) to pixels (B, C, F, H, W)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.patch = int(config["patch_size_t"]), int(config["patch_size"])
        widths, layers = config["decoder_block_out_channels"][::-1], config["decoder_layers_per_block"][::-1]
        scaling, causal = config["decoder_spatio_temporal_scaling"][::-1], config["decoder_causal"]
        channels, eps = config["out_channels"] * config["patch_size"] ** 2, config["resnet_norm_eps"]
        self.conv_in = Conv(config["latent_channels"], widths[0], causal=causal)
        self.mid_block = MidBlock(widths[0], layers[0], causal=causal, eps=eps)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, count, scaled, causal=causal, eps=eps)
            for before, width, count, scaled in zip([widths[0], *widths[:-1]], widths, layers[1:], scaling, strict=True)
        )
        self.conv_out = Conv(widths[-1], channels, causal=causal)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return _to_pixels(self.conv_out(nn.functional.silu(rms_norm(x))), *self.patch)


class DownBlock(nn.Module):
    """Residual blocks, a strided convolution where ``scaled``, and a residual block to ``following`` channels."""

    def __init__(self, width: int, following: int, layers: int, scaled: bool, *, causal: bool, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, causal=causal, eps=eps) for _ in range(layers))
        self.downsamplers = nn.ModuleList([Conv(width, width, stride=2, causal=causal)] if scaled else [])
        self.conv_out = None if following == width else ResBlock(width, following, causal=causal, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x if self.conv_out is None else self.conv_out(x)


class MidBlock(nn.Module):
    """Residual blocks."""

    def __init__(self, width: int, layers: int, *, causal: bool, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, causal=causal, eps=eps) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.resnets:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """A residual block from ``before`` channels, an upsampling where ``scaled``, and residual blocks."""

    def __init__(self, before: int, width: int, layers: int, scaled: bool, *, causal: bool, eps: float) -> None:
        super().__init__()
        self.conv_in = None if before == width else ResBlock(before, width, causal=causal, eps=eps)
        self.upsamplers = nn.ModuleList([Upsampler(width, causal=causal)] if scaled else [])
        self.resnets = nn.ModuleList(ResBlock(width, width, causal=causal, eps=eps) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_in is not None:
            x = self.conv_in(x)
        for layer in (*self.upsamplers, *self.resnets):
            x = layer(x)
        return x


class Upsampler(nn.Module):
    """Twice as many frames, less the first, of twice the size: a convolution to eight times the channels, unfolded."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.conv = Conv(width, 8 * width, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.conv(x).unflatten(1, (-1, 2, 2, 2))
        return folded.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, 1:]


class ResBlock(nn.Module):
    """Norm, SiLU and convolution twice, beside the input or, where the channels change, its norm and projection."""

    def __init__(self, width: int, out: int, *, causal: bool, eps: float) -> None:
        super().__init__()
        self.conv1 = Conv(width, out, causal=causal)
        self.conv2 = Conv(out, out, causal=causal)
        self.norm3 = None if width == out else nn.LayerNorm(width, eps=eps)
        self.conv_shortcut = None if width == out else Conv(width, out, kernel=1, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(nn.functional.silu(rms_norm(x)))
        y = self.conv2(nn.functional.silu(rms_norm(y)))
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return y + x


class Conv(nn.Module):
    """A convolution whose input repeats its first frame before it, and its last after it unless ``causal``."""

    def __init__(self, width: int, out: int, *, kernel: int = 3, stride: int = 1, causal: bool) -> None:
        super().__init__()
        self.before = kernel - 1 if causal else kernel // 2
        self.after = 0 if causal else kernel // 2
        self.padding = (0, kernel // 2, kernel // 2)
        self.conv = nn.Conv3d(width, out, kernel, stride=stride, padding=self.padding)

    def forward(self, x: Tensor) -> Tensor:
        first, last = x[:, :, :1].repeat(1, 1, self.before, 1, 1), x[:, :, -1:].repeat(1, 1, self.after, 1, 1)
        return self._convolved(torch.cat([first, x, last], dim=2))

    def _convolved(self, x: Tensor) -> Tensor:
        """By oneDNN on a CPU, where PyTorch would write out the windows of one small clip and multiply them."""
        conv, mkldnn = self.conv, torch.backends.mkldnn
        if x.dtype == torch.float32 and computes_as_on_cpu(x) and mkldnn.is_available() and mkldnn.enabled:
            return torch.mkldnn_convolution(x, conv.weight, conv.bias, self.padding, conv.stride, conv.dilation, 1)
        return conv(x)


def rms_norm(x: Tensor) -> Tensor:
    """Each position of (B, C, …) by the root mean square of its channels, without a weight."""
    last = x.movedim(1, -1)
    variance = last.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (last * torch.rsqrt(variance + RMS_EPS)).to(x.dtype).movedim(-1, 1)


def _to_patches(pixels: Tensor, time: int, side: int) -> Tensor:
    """(B, C, F, H, W) -> (B, C time side², F / time, H / side, W / side), in each patch columns before rows."""
    split = pixels.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, time))
    return split.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)


def _to_pixels(patches: Tensor, time: int, side: int) -> Tensor:
    """The inverse of :func:`_to_patches`."""
    split = patches.unflatten(1, (-1, time, side, side))
    return split.permute(0, 1, 5, 2, 6, 4, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
