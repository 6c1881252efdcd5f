"""Video codec: frames <-> latents with any diffusers video autoencoder (method.md section 7).

The tiny codec is ``AutoencoderKLLTXVideo`` on 2x4x4 pixel patches with one strided convolution: 4x in time, 8x in space, all
convolutions on the coarse grids, channel-wise norms only, so that sizes and durations not seen in training behave alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .files import load_weights, read_config, read_weights, write_component

STEM = "diffusion_pytorch_model"

TINY_CLASS = "AutoencoderKLLTXVideo"
TINY_SETTINGS: dict[str, Any] = {
    "in_channels": 6,
    "out_channels": 6,
    "latent_channels": 16,
    "block_out_channels": [32, 96],
    "decoder_block_out_channels": [32, 96],
    "down_block_types": ["LTXVideoDownBlock3D", "LTXVideoDownBlock3D"],
    "layers_per_block": [1, 0, 1],
    "decoder_layers_per_block": [1, 0, 2],
    "spatio_temporal_scaling": [True, False],
    "decoder_spatio_temporal_scaling": [True, False],
    "decoder_inject_noise": [False, False, False],
    "upsample_residual": [False, False],
    "upsample_factor": [1, 1],
    "patch_size": 4,
    "patch_size_t": 2,
    "encoder_causal": False,
    "decoder_causal": False,
}


class VideoCodec(nn.Module):
    """Frames uint8 (B, F, H, W, 3) <-> latents (B, C_v, T, H/8, W/8), per channel of mean 0 and deviation 1.

    ``vae`` is a diffusers autoencoder; ``shift`` and ``scale`` (C_v,) are mean and deviation of its latents over data. A 2-D
    ``AutoencoderKL`` is applied frame by frame. Frame counts that the time factor does not divide are padded at the front.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: nn.Module, shift: Tensor | None = None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.config: Any = vae.config
        self.per_frame = type(vae).__name__ == "AutoencoderKL"
        self.channels: int = self.config.latent_channels
        self.time_factor = 1 if self.per_frame else int(getattr(vae, "temporal_compression_ratio", 4))
        self.space_factor = int(getattr(vae, "spatial_compression_ratio", 8))
        self.register_buffer("shift", torch.zeros(self.channels) if shift is None else shift.float())
        self.register_buffer("scale", torch.ones(self.channels) if scale is None else scale.float())

    @classmethod
    def build(cls, class_name: str = TINY_CLASS, settings: dict[str, Any] | None = None) -> Self:
        """A codec with fresh weights; the tiny one by default."""
        return cls(_autoencoder(class_name).from_config(TINY_SETTINGS if settings is None else settings))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder in the diffusers layout. Raises ``ValueError`` for a missing, foreign or damaged one."""
        folder = Path(folder)
        config = read_config(folder)
        kind = _autoencoder(config.get("_class_name"))
        known = {name: value for name, value in config.items() if name not in ("latents_mean", "latents_std")}
        vae = kind.from_config(known)
        load_weights(vae, read_weights(folder, STEM), folder)
        codec = cls(vae.eval())
        codec.set_statistics(*_statistics(vae, config, codec.channels))
        return codec.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and weights in the diffusers layout; shift and scale stand as ``latents_mean`` and ``latents_std``."""
        config = {name: value for name, value in dict(self.config).items() if name != "_name_or_path"}
        config["_class_name"] = type(self.vae).__name__
        config["latents_mean"] = self.shift.tolist()
        config["latents_std"] = self.scale.tolist()
        write_component(Path(folder), config, self.vae, STEM, dtype)

    def set_statistics(self, shift: Tensor, scale: Tensor) -> None:
        """Set mean and deviation (C_v,) of the latents, here and in the autoencoder's own buffers where it has them."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        if isinstance(getattr(self.vae, "latents_mean", None), Tensor):
            self.vae.latents_mean.copy_(shift)  # type: ignore[operator, union-attr]
            self.vae.latents_std.copy_(scale)  # type: ignore[operator, union-attr]

    def centre(self, colour: Tensor) -> None:
        """Start the decoder of a fresh codec from the mean ``colour`` (3,) in [-1, 1]; it saves hundreds of steps."""
        out = self.vae.get_submodule("decoder.conv_out")
        layer = out if isinstance(out, nn.Conv3d) else out.get_submodule("conv")
        assert isinstance(layer, nn.Conv3d) and layer.bias is not None
        with torch.no_grad():
            layer.bias.copy_(colour.repeat_interleave(len(layer.bias) // 3))

    def latent_frames(self, frames: int) -> int:
        """T for F frames."""
        return -(-frames // self.time_factor)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents (B, C_v, T, H/8, W/8) of ``frames`` (B, F, H, W, 3), uint8 or float in [-1, 1]."""
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[1] < 1:
            raise ValueError(f"frames have shape {tuple(frames.shape)}; it must be (batch, frames, height, width, 3)")
        if frames.shape[2] % self.space_factor or frames.shape[3] % self.space_factor:
            raise ValueError(
                f"frames are {frames.shape[3]}x{frames.shape[2]}; both sides must be multiples of {self.space_factor}"
            )
        pixels = frames.to(self.shift.device)
        if pixels.dtype == torch.uint8:
            pixels = pixels.to(self.shift.dtype) / 127.5 - 1
        mean, _ = self.posterior(pixels.to(self.shift.dtype).movedim(-1, 1))
        return self.normalize(mean)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """uint8 (B, F, H, W, 3) of normalised ``latents``; ``frames`` says how many of the 4 T are wanted, the first are cut."""
        pixels = self.pixels(self.denormalize(latents), frames)
        return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder to mean 0 and deviation 1 per channel."""
        return (latents - self.shift.view(1, -1, 1, 1, 1)) / self.scale.view(1, -1, 1, 1, 1)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return latents * self.scale.view(1, -1, 1, 1, 1) + self.shift.view(1, -1, 1, 1, 1)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the raw latents of ``pixels`` (B, 3, F, H, W) in [-1, 1]."""
        batch, _, frames = pixels.shape[:3]
        if self.per_frame:
            moments = self.vae.encode(pixels.movedim(2, 1).flatten(0, 1)).latent_dist  # type: ignore[operator]
            mean, logvar = (x.unflatten(0, (batch, frames)).movedim(1, 2) for x in (moments.mean, moments.logvar))
            return mean, logvar
        missing = self.latent_frames(frames) * self.time_factor - frames
        pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, missing, -1, -1), pixels], dim=2)
        moments = self.vae.encode(pixels).latent_dist  # type: ignore[operator]
        return moments.mean, moments.logvar

    def pixels(self, latents: Tensor, frames: int) -> Tensor:
        """Differentiable decoding of raw ``latents`` to (B, 3, F, H, W), about [-1, 1]."""
        count = latents.shape[2]
        if self.latent_frames(frames) != count:
            allowed = f"from {(count - 1) * self.time_factor + 1} to {count * self.time_factor}"
            raise ValueError(f"frames is {frames}; {count} latent frames decode to {allowed}")
        if self.per_frame:
            images = self.vae.decode(latents.movedim(2, 1).flatten(0, 1)).sample  # type: ignore[operator]
            return images.unflatten(0, (len(latents), count)).movedim(1, 2)
        # Decoders with temporal upsampling drop leading frames; a repeated first latent gives them something to drop.
        padded = torch.cat([latents[:, :, :1], latents], dim=2)
        return self.vae.decode(padded).sample[:, :, -frames:]  # type: ignore[operator]


def _autoencoder(class_name: object) -> Any:
    import diffusers

    if (
        not isinstance(class_name, str)
        or not class_name.startswith("AutoencoderKL")
        or not hasattr(diffusers, class_name)
    ):
        raise ValueError(
            f"class {class_name!r} is no video autoencoder; it must be one of diffusers' AutoencoderKL… classes"
        )
    return getattr(diffusers, class_name)


def _statistics(vae: nn.Module, config: dict[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Shift and scale (C_v,) as the folder states them: per channel, or one scaling factor for all."""
    factor = float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return torch.tensor(mean), torch.tensor(std)
    if isinstance(getattr(vae, "latents_mean", None), Tensor):
        return vae.latents_mean.float(), vae.latents_std.float() / factor  # type: ignore[operator, union-attr]
    shift = float(config.get("shift_factor") or 0.0)
    return torch.full((channels,), shift), torch.full((channels,), 1 / factor)
