"""Open-Sora 1.2's video autoencoder: an image autoencoder per frame, a causal temporal one on its latents.

Settings: docs/method.md section 6. Tensor names follow the published checkpoint (``hpcai-tech/OpenSora-VAE-v1.2``):
``spatial_vae.module.…`` is a diffusers ``AutoencoderKL``, ``temporal_vae.…`` the MAGVIT-like causal network of this
file. The temporal network codes ``micro_frame_size`` frames at a time: 17 frames, behind 3 zeros, are 5 latent frames,
so that 51 frames are 15 and 32 frames 9. Without a size (``null``) it codes the whole clip, and 32 frames are 8.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..validation import whole_between
from .files import INSTALL

CLASS_NAME = "VideoAutoencoderPipeline"
IMAGE_FACTOR = 0.18215
IMAGES_AT_ONCE = 4
CHUNK_FRAMES, MOST_CHUNK_FRAMES = 17, 1024

SHIFT = (-0.10, 0.34, 0.27, 0.98)
SCALE = (3.85, 2.32, 2.33, 3.06)
SDXL_SETTINGS: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEMPORAL_SETTINGS: dict[str, Any] = {
    "filters": 128,
    "num_res_blocks": 4,
    "channel_multipliers": [1, 2, 2, 4],
    "temporal_downsample": [False, True, True],
    "num_groups": 32,
}
POINTERS = ("type", "from_pretrained", "subfolder", "micro_batch_size", "local_files_only", "cache_dir")


class OpenSoraVAE(nn.Module):
    """Speaks like a diffusers autoencoder: ``encode(pixels).latent_dist`` and ``decode(latents).sample``.

    Pixels are (B, 3, F, H, W), latents (B, 4, T, H/8, W/8).

    ``config`` is the checkpoint's; ``vae_2d`` and ``vae_temporal`` may carry sizes that differ from the published ones.
    ``chunk_frames`` is its ``micro_frame_size``, or 0. A chunk whose frames 4 does not divide begins with latents of
    zeros, which decoding cuts off. H and W may have a rest after the division by 8.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise ValueError(f"the autoencoder {CLASS_NAME!r} needs diffusers; {INSTALL}") from None

        super().__init__()
        values = dict(config or {})
        image = SDXL_SETTINGS | _sizes(values.get("vae_2d"))
        temporal = TEMPORAL_SETTINGS | _sizes(values.get("vae_temporal"))
        self.config: dict[str, Any] = (
            {"model_type": CLASS_NAME} | values | {"latent_channels": image["latent_channels"]}
        )
        self.chunk_frames = whole_between(
            "micro_frame_size", values.get("micro_frame_size", CHUNK_FRAMES) or 0, 0, MOST_CHUNK_FRAMES
        )
        self.time_factor = 2 ** sum(temporal["temporal_downsample"])
        self.spatial_vae = nn.Module()
        self.spatial_vae.module = AutoencoderKL.from_config(image)
        self.temporal_vae = TemporalVAE(image["latent_channels"], **temporal)
        self.register_buffer("shift", _per_channel(values.get("shift"), SHIFT))
        self.register_buffer("scale", _per_channel(values.get("scale"), SCALE))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """With fresh weights, as diffusers' classes are made."""
        return cls(config)

    @property
    def latents_mean(self) -> Tensor:
        """Mean of the latents (4,)."""
        return self.shift.view(-1)

    @property
    def latents_std(self) -> Tensor:
        """Deviation of the latents (4,)."""
        return self.scale.view(-1)

    @property
    def images(self) -> Any:
        """The autoencoder of single frames, a diffusers ``AutoencoderKL``."""
        return self.spatial_vae.module

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """The posterior of the temporal autoencoder over the image latents' means."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        images = pixels.movedim(2, 1).flatten(0, 1)
        coded = [self.images.encode(part).latent_dist.mean for part in images.split(IMAGES_AT_ONCE)]
        latents = torch.cat(coded).unflatten(0, (pixels.shape[0], pixels.shape[2])).movedim(1, 2) * IMAGE_FACTOR
        chunks = latents.split(self.chunk_frames or latents.shape[2], 2)
        missing = [-chunk.shape[2] % self.time_factor for chunk in chunks]
        padded = [F.pad(chunk, (0, 0, 0, 0, count, 0)) for chunk, count in zip(chunks, missing, strict=True)]
        moments = torch.cat([self.temporal_vae.moments(chunk) for chunk in padded], 2)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: Tensor, frames: int | None = None, at_once: int = IMAGES_AT_ONCE) -> SimpleNamespace:
        """The ``frames`` that ``latents`` were encoded from, ``at_once`` so many; without a number, the most that they
        hold.
        """
        images = self.decode_images(latents, frames) / IMAGE_FACTOR
        parts = images.movedim(2, 1).flatten(0, 1).split(at_once)
        pixels = torch.cat([self.images.decode(part).sample for part in parts])
        return SimpleNamespace(sample=pixels.unflatten(0, (images.shape[0], images.shape[2])).movedim(1, 2))

    def decode_images(self, latents: Tensor, frames: int | None = None) -> Tensor:
        """Image latents (B, 4, F, H/8, W/8) of latents (B, 4, T, H/8, W/8), chunk by chunk."""
        size = -(-self.chunk_frames // self.time_factor) or latents.shape[2]
        whole, rest = divmod(latents.shape[2], size)
        if frames is None:
            frames = whole * (self.chunk_frames or size * self.time_factor) + rest * self.time_factor
        parts = []
        for chunk in latents.split(size, 2):
            count = min(frames, self.chunk_frames or frames)
            parts.append(self.temporal_vae.decode(chunk)[:, :, -count:])
            frames -= count
        return torch.cat(parts, 2)


class TemporalVAE(nn.Module):
    """Latents (B, C, F, H, W) of frames <-> latents (B, C, F/4, H, W); convolutions look back in time only."""

    def __init__(
        self,
        channels: int,
        filters: int,
        num_res_blocks: int,
        channel_multipliers: list[int],
        temporal_downsample: list[bool],
        num_groups: int,
    ) -> None:
        super().__init__()
        widths = [filters * multiplier for multiplier in channel_multipliers]
        self.encoder = TemporalEncoder(channels, 2 * channels, widths, temporal_downsample, num_res_blocks, num_groups)
        self.quant_conv = CausalConv(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv(channels, channels, 1)
        self.decoder = TemporalDecoder(channels, channels, widths, temporal_downsample, num_res_blocks, num_groups)

    def moments(self, latents: Tensor) -> Tensor:
        """Mean and log variance, (B, 2 C, T, H, W)."""
        return self.quant_conv(self.encoder(latents))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, 4 T, H, W)."""
        return self.decoder(self.post_quant_conv(latents))


class CausalConv(nn.Module):
    """3-D convolution, zero-padded before the first frame and around every frame."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=(time_stride, 1, 1), bias=bias)
        self.padding = (*[kernel // 2] * 4, kernel - time_stride, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, beside a 1x1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = CausalConv(inputs, outputs, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = CausalConv(outputs, outputs, 3, bias=False)
        self.conv3 = CausalConv(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv3 is None else self.conv3(x))


def _stage(inputs: int, outputs: int, blocks: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))


class TemporalEncoder(nn.Module):
    """Stages of residual blocks; where ``downsample`` says so, a convolution of time stride 2 between them."""

    def __init__(
        self, inputs: int, outputs: int, widths: list[int], downsample: list[bool], blocks: int, groups: int
    ) -> None:
        super().__init__()
        before = [widths[0], *widths[:-1]]
        self.conv_in = CausalConv(inputs, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(_stage(a, b, blocks, groups) for a, b in zip(before, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, width, 3, time_stride=2) if down else nn.Identity()
            for width, down in zip(widths[:-1], downsample, strict=True)
        )
        self.res_blocks = _stage(widths[-1], widths[-1], blocks, groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv(widths[-1], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage, between in zip(self.block_res_blocks, [*self.conv_blocks, nn.Identity()], strict=True):
            for block in stage.children():
                x = block(x)
            x = between(x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """The encoder's mirror: a convolution to twice the width whose halves become neighbouring frames."""

    def __init__(
        self, outputs: int, inputs: int, widths: list[int], downsample: list[bool], blocks: int, groups: int
    ) -> None:
        super().__init__()
        before = [*widths[1:], widths[-1]]
        self.conv1 = CausalConv(inputs, widths[-1], 3)
        self.res_blocks = _stage(widths[-1], widths[-1], blocks, groups)
        self.block_res_blocks = nn.ModuleList(_stage(a, b, blocks, groups) for a, b in zip(before, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, 2 * width, 3) if down else nn.Identity()
            for width, down in zip(widths[1:], downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv(widths[0], outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for i in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[i].children():
                x = block(x)
            if i > 0 and isinstance(self.conv_blocks[i - 1], CausalConv):
                x = self.conv_blocks[i - 1](x).unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)
        return self.conv_out(F.silu(self.norm1(x)))


def _sizes(values: dict[str, Any] | None) -> dict[str, Any]:
    """What a sub-configuration says besides where its weights came from."""
    return {name: value for name, value in (values or {}).items() if name not in POINTERS}


def _per_channel(given: Any, default: tuple[float, ...]) -> Tensor:
    return torch.tensor(default if given is None else given, dtype=torch.float32).view(1, -1, 1, 1, 1)
