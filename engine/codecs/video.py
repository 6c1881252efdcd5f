"""Video codec: frames <-> latents with any diffusers video autoencoder (docs/method.md section 6).

The tiny codec is LTX-Video's (:mod:`.ltx`, which needs no diffusers) on 2x4x4 pixel patches with one strided
convolution: 4x in time, 8x in space, all convolutions on the coarse grids, channel-wise norms only, so that sizes and
durations not seen in training behave alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ..types import WHOLE, DecodeTiles
from . import ltx
from .files import (
    INSTALL,
    bounded,
    building,
    check_statistics,
    load_weights,
    read_config,
    read_weights,
    write_component,
)
from .opensora import CLASS_NAME as OPEN_SORA
from .opensora import IMAGES_AT_ONCE, OpenSoraVAE
from .tiles import decode_tiles

T = TypeVar("T")

STATISTICS = ("latents_mean", "latents_std")
OF_THE_LOADING = ("_name_or_path", "_use_default_values")  # of which the second has another order in every process

TINY_CLASS = ltx.CLASS_NAME
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


@dataclass(frozen=True)
class Strides:
    """What one latent covers, and what an autoencoder wants in front.

    ``first_frame``: the encoder codes one frame alone before groups of ``time``. ``first_latent``: the decoder gives
    fewer than ``time`` frames for its first latent.
    """

    time: int
    space: int
    first_frame: bool = False
    first_latent: bool = False


class VideoCodec(nn.Module):
    """Frames uint8 (B, F, H, W, 3) <-> latents (B, C_v, T, H/8, W/8) of mean 0 and deviation 1.

    T = ceil(F / 4), or of every ``chunk_frames`` where the autoencoder codes so many at a time (0: all at once).

    ``vae`` is a diffusers autoencoder, :class:`~.ltx.LTXVideoVAE` or :class:`OpenSoraVAE`; ``shift`` and ``scale``
    (C_v,) are mean and deviation of its latents over data. A 2-D ``AutoencoderKL`` is applied frame by frame (T = F).
    Frame counts that the time factor does not divide are padded at the front with the first frame; so is what
    autoencoders want that treat their first frame apart.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: nn.Module, shift: Tensor | None = None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.vae = vae
        settings: Any = vae.config
        self.config: Any = settings
        self.per_frame = type(vae).__name__ == "AutoencoderKL"
        self.channels = _channels(vae)
        self.chunk_frames = vae.chunk_frames if isinstance(vae, OpenSoraVAE) else 0
        self.strides = Strides(1, 2 ** (len(settings["block_out_channels"]) - 1)) if self.per_frame else _strides(vae)
        self.register_buffer("shift", torch.zeros(self.channels) if shift is None else shift.float())
        self.register_buffer("scale", torch.ones(self.channels) if scale is None else scale.float())

    @classmethod
    def build(cls, class_name: str = TINY_CLASS, settings: dict[str, Any] | None = None) -> Self:
        """A codec with fresh weights; the tiny one by default."""
        values = TINY_SETTINGS if settings is None else settings
        return cls(_autoencoder(class_name, values).from_config(values))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, values: bool = True) -> Self:
        """Read a folder in the diffusers layout, or Open-Sora's; without ``values`` a codec on the meta device.

        Raises ``ValueError`` for a missing, foreign or damaged one.
        """
        folder = Path(folder)
        config = read_config(folder)
        tensors: dict[str, Tensor] = {}
        with bounded(folder, tensors):
            kind = _autoencoder(config.get("_class_name") or config.get("model_type"), config)
        tensors = renamed(read_weights(folder, _stem(kind), values=values))
        accepted = inspect.signature(kind.__init__).parameters
        settings = {n: value for n, value in config.items() if n not in STATISTICS or n in accepted}
        with building(folder, tensors, initialized=kind is not ltx.LTXVideoVAE):
            vae = kind.from_config(settings)
        load_weights(vae, tensors, folder)
        with building(folder, tensors, initialized=True):
            codec = cls(vae)
            codec.set_statistics(*_statistics(vae, config, codec.channels))
        check_statistics(codec.shift, codec.scale, folder)
        return codec.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and weights in the layout they came in; shift and scale stand as ``latents_mean`` and
        ``latents_std``.
        """
        config = {name: value for name, value in dict(self.config).items() if name not in OF_THE_LOADING}
        if not isinstance(self.vae, OpenSoraVAE):
            config["_class_name"] = _class_name(self.vae)
        config |= {"latents_mean": self.shift.tolist(), "latents_std": self.scale.tolist()}
        write_component(Path(folder), config, self.vae, _stem(type(self.vae)), dtype)

    @torch.no_grad()
    def set_statistics(self, shift: Tensor, scale: Tensor) -> None:
        """Set mean and deviation (C_v,) of the latents, here and in the autoencoder's own buffers where it has them."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        own = getattr(self.vae, "latents_mean", None), getattr(self.vae, "latents_std", None)
        if isinstance(own[0], Tensor) and isinstance(own[1], Tensor):
            own[0].copy_(shift)
            own[1].copy_(scale)

    @torch.no_grad()
    def centre(self, colour: Tensor) -> None:
        """Start the decoder of a fresh codec from the mean ``colour`` (3,) in [-1, 1]; it saves hundreds of steps."""
        out = self.vae.get_submodule("decoder.conv_out")
        layer = out if isinstance(out, nn.Conv3d) else out.get_submodule("conv")
        assert isinstance(layer, nn.Conv3d) and layer.bias is not None
        layer.bias.copy_(colour.repeat_interleave(len(layer.bias) // 3))

    def latent_frames(self, frames: int) -> int:
        """T for F frames."""
        chunks, rest = divmod(frames, self.chunk_frames) if self.chunk_frames else (0, frames)
        return chunks * -(-self.chunk_frames // self.strides.time) - (-rest // self.strides.time)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents (B, C_v, T, H/8, W/8) of ``frames`` (B, F, H, W, 3), uint8 or float in [-1, 1]."""
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[1] < 1:
            raise ValueError(f"frames have shape {tuple(frames.shape)}; it must be (batch, frames, height, width, 3)")
        whole = not (frames.shape[2] % self.strides.space or frames.shape[3] % self.strides.space)
        if not (whole or isinstance(self.vae, OpenSoraVAE)):
            raise ValueError(
                f"frames are {frames.shape[3]}x{frames.shape[2]}; both sides must be multiples of {self.strides.space}"
            )
        pixels = frames.to(self.shift.device)
        pixels = pixels.to(self.shift.dtype) / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.to(self.shift.dtype)
        mean, _ = self.posterior(pixels.movedim(-1, 1))
        return self.normalize(mean)

    def decode(self, latents: Tensor, frames: int, tiles: DecodeTiles = WHOLE) -> Tensor:
        """uint8 (B, F, H, W, 3) of normalised ``latents``: the last ``frames`` of the 4 T that they hold.

        ``tiles``: how much is decoded at once.
        """
        raw, space = self.denormalize(latents), self.strides.space
        if tiles.side is None:
            pixels = self.pixels(raw, frames, tiles.images)
        else:
            decode = partial(self.pixels, frames=frames, images=tiles.images)
            pixels = decode_tiles(decode, raw, max(1, tiles.side // space), space)
        return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder to mean 0 and deviation 1 per channel."""
        return (latents - self.shift.view(1, -1, 1, 1, 1)) / self.scale.view(1, -1, 1, 1, 1)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return latents * self.scale.view(1, -1, 1, 1, 1) + self.shift.view(1, -1, 1, 1, 1)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the raw latents of ``pixels`` (B, 3, F, H, W) in [-1, 1]."""
        if self.per_frame:
            images = pixels.movedim(2, 1).flatten(0, 1)
            found = [self.vae.encode(part).latent_dist for part in images.split(IMAGES_AT_ONCE)]  # type: ignore[operator]
            mean = torch.cat([part.mean for part in found]).unflatten(0, (len(pixels), -1)).movedim(1, 2)
            logvar = torch.cat([part.logvar for part in found]).unflatten(0, (len(pixels), -1)).movedim(1, 2)
            return mean, logvar
        if isinstance(self.vae, OpenSoraVAE):
            moments = self.vae.encode(pixels).latent_dist
            return moments.mean, moments.logvar
        lead = int(self.strides.first_frame)
        missing = self.latent_frames(pixels.shape[2]) * self.strides.time - pixels.shape[2] + lead
        padded = torch.cat([pixels[:, :, :1].expand(-1, -1, missing, -1, -1), pixels], dim=2)
        moments = self.vae.encode(padded).latent_dist  # type: ignore[operator]
        return moments.mean[:, :, lead:], moments.logvar[:, :, lead:]

    def pixels(self, latents: Tensor, frames: int, images: int = WHOLE.images) -> Tensor:
        """Differentiable decoding of raw ``latents`` to (B, 3, F, H, W), about [-1, 1].

        ``images`` at once, in an autoencoder of single frames.
        """
        count, time = latents.shape[2], self.strides.time
        if self.latent_frames(frames) != count:
            allowed = [n for n in range(1, count * time + 1) if self.latent_frames(n) == count] or [0]
            raise ValueError(f"frames is {frames}; {count} latent frames decode to {allowed[0]} to {allowed[-1]}")
        if self.per_frame:
            parts = latents.movedim(2, 1).flatten(0, 1).split(images)
            decoded = torch.cat([self.vae.decode(part).sample for part in parts])  # type: ignore[operator]
            return decoded.unflatten(0, (len(latents), count)).movedim(1, 2)
        if isinstance(self.vae, OpenSoraVAE):
            return self.vae.decode(latents, frames, images).sample
        if self.strides.first_latent:
            latents = torch.cat([latents[:, :, :1], latents], dim=2)
        return self.vae.decode(latents).sample[:, :, -frames:]  # type: ignore[operator]


def _autoencoder(class_name: object, config: dict[str, Any]) -> Any:
    """The class of an autoencoder with these settings, by the name that diffusers knows it by."""
    if class_name == OPEN_SORA:
        return OpenSoraVAE
    if class_name == ltx.CLASS_NAME and ltx.supported(config):
        return ltx.LTXVideoVAE
    try:
        import diffusers
    except ImportError:
        raise ValueError(f"the autoencoder {class_name!r} needs diffusers; {INSTALL}") from None
    if (
        not isinstance(class_name, str)
        or not class_name.startswith("AutoencoderKL")
        or not hasattr(diffusers, class_name)
    ):
        raise ValueError(
            f"class {class_name!r} is no video autoencoder; it must be one of diffusers' AutoencoderKL… classes"
        )
    return getattr(diffusers, class_name)


def _class_name(vae: nn.Module) -> str:
    return ltx.CLASS_NAME if isinstance(vae, ltx.LTXVideoVAE) else type(vae).__name__


def _stem(kind: type) -> str:
    return "model" if issubclass(kind, OpenSoraVAE) else "diffusion_pytorch_model"


def _channels(vae: Any) -> int:
    return int(vae.config.get("latent_channels") or vae.config["z_dim"])


def _strides(vae: Any) -> Strides:
    """Ask a twin without weights (on the meta device) how many frames it makes of two, three and four latents."""
    if isinstance(vae, ltx.LTXVideoVAE):
        (time, space), cropped = vae.factors, vae.cropped_frames
        return Strides(time, space, first_frame=cropped == time - 1 > 0, first_latent=cropped > 0)
    with torch.device("meta"), torch.no_grad():
        twin = type(vae).from_config(vae.config).eval()
        try:
            made = {n: twin.decode(torch.empty(1, _channels(vae), n, 8, 8)).sample.shape for n in (2, 3, 4)}
        except NotImplementedError as error:
            raise ValueError(f"{type(vae).__name__} cannot be used as a video codec: {error}") from None
    time, space = (made[4][2] - made[2][2]) // 2, made[4][3] // 8
    missing = {n: n * time - shape[2] for n, shape in made.items()}
    return Strides(time, space, first_frame=missing[4] == time - 1 > 0, first_latent=any(missing.values()))


def renamed(tensors: Mapping[str, T]) -> dict[str, T]:
    """Attention weights of folders written before diffusers 0.15 under their names of today."""
    names = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

    def today(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new) if ".attentions." in name else name
        return name

    return {today(name): tensor for name, tensor in tensors.items()}


def _statistics(vae: nn.Module, config: dict[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Shift and scale (C_v,) as the folder states them: per channel, or one scaling factor for all."""
    factor = float(config.get("scaling_factor") or 1.0)
    given = [config.get(name) for name in STATISTICS]
    own = [getattr(vae, name, None) for name in STATISTICS]
    if given[0] is not None and given[1] is not None:
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in given)
    elif isinstance(own[0], Tensor) and isinstance(own[1], Tensor):
        mean, std = own[0].float(), own[1].float() / factor
    else:
        mean = torch.full((channels,), float(config.get("shift_factor") or 0.0))
        std = torch.full((channels,), 1 / factor)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"config.json gives {mean.numel()} means and {std.numel()} deviations for {channels} latent channels"
        )
    return mean, std
