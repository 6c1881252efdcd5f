"""A model's parts in memory, and their way to and from an engine package."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from .codecs import AudioCodec, TextEncoder, VideoCodec
from .codecs.files import building, check_weights, load_weights, read_config, read_weights, save_tensors, stored
from .config import DDiTConfig, ModelConfig
from .model import DDiT
from .package import INDEX, Package, open_package, write_manifest
from .quantization import is_quantized, quantized
from .residency import Residency

STEM = "diffusion_pytorch_model"
DDIT_WEIGHTS = f"{STEM}.safetensors"


@dataclass(frozen=True)
class Components:
    """The d-DiT, its codecs and its text encoder. ``digest`` is the package's hash, empty for an unsaved model.

    With a ``residency`` the parts have their weights while they are used, as it says.
    """

    config: ModelConfig
    ddit: DDiT
    video: VideoCodec
    audio: AudioCodec
    text: TextEncoder
    digest: str = ""
    residency: Residency | None = None

    def using(self, part: str) -> AbstractContextManager[None]:
        """Within, the part (``ddit``, ``video``, ``audio`` or ``text``) has its weights."""
        return nullcontext() if self.residency is None else self.residency.using(part)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read and verify a package. Raises ``ValueError`` for one that is missing, incomplete, damaged or foreign."""
        return cls.of(open_package(folder))

    @classmethod
    def of(cls, package: Package, *, values: bool = True) -> Self:
        """Read the parts of a verified package; without ``values`` they are on the meta device.

        Raises ``ValueError`` for parts that are not those of a model.
        """
        parts = cls(
            package.config,
            load_ddit(package, values=values),
            VideoCodec.from_pretrained(package.component("video_vae"), values=values),
            AudioCodec.from_pretrained(package.component("audio_vae"), values=values),
            TextEncoder.from_pretrained(package.component("text_encoder"), values=values),
            package.digest,
        )
        parts.check(package)
        return parts

    def under(self, package: Package, kept: Collection[str], device: torch.device) -> Self:
        """These parts without values, those of ``package``, loaded on ``device`` when they are used; ``kept`` stay."""
        ddit, text = dict(self.ddit.state_dict()), dict(self.text.encoder.state_dict())
        loaders: dict[str, Callable[[], nn.Module]] = {
            "text": lambda: TextEncoder.from_pretrained(package.component("text_encoder"), forms=text),
            "ddit": lambda: load_ddit(package, ddit),
            "video": lambda: VideoCodec.from_pretrained(package.component("video_vae")),
            "audio": lambda: AudioCodec.from_pretrained(package.component("audio_vae")),
        }
        parts = {name: getattr(self, name) for name in loaders}
        return dataclasses.replace(self, residency=Residency(parts, lambda name: loaders[name](), kept, device))

    def quantized(self) -> Self:
        """These parts with d-DiT and text encoder :func:`~syncflow.engine.quantization.quantized`."""
        return dataclasses.replace(self, ddit=quantized(self.ddit), text=quantized(self.text))

    def check(self, package: Package) -> None:
        """Whether the parts go together. Raises ``ValueError`` for the first number in which two of them differ."""
        ddit, sequence, video, audio = self.config.ddit, self.config.sequence, self.video, self.audio
        found = {
            "ddit": (self.ddit.config, ddit),
            "ddit.video_channels": (video.channels, ddit.video_channels),
            "ddit.audio_channels": (audio.channels, ddit.audio_channels),
            "ddit.text_width": (self.text.width, ddit.text_width),
            "ddit.text_tokens": (self.text.max_tokens, ddit.text_tokens),
            "ddit.patch": (ddit.patch, sequence.patch),
            "sequence.time_factor": (video.strides.time, sequence.time_factor),
            "sequence.chunk_frames": (video.chunk_frames, sequence.chunk_frames),
            "sequence.space_factor": (video.strides.space, sequence.space_factor),
            "sequence.audio_hop": (audio.hop, sequence.audio_hop),
            "sequence.audio_multiple": (audio.multiple, sequence.audio_multiple),
            "sequence.sample_rate": (audio.sample_rate, sequence.sample_rate),
        }
        if (prior := self.text.prior) is not None:
            found |= {
                "ddit.prior_tokens": (prior.tokens, ddit.prior_tokens),
                "ddit.prior_width": (prior.width, ddit.prior_width),
            }
        for name, (is_, said) in found.items():
            if is_ != said:
                values = "" if isinstance(is_, DDiTConfig) else f" ({said}, and {is_} there)"
                raise ValueError(f"{package.path / INDEX} says another {name} than the components{values}")

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Package:
        """Write a package beside ``folder``, then put it in its place.

        d-DiT and codecs are stored in ``dtype``, but for tensors with values that it cannot hold, which stay in
        float32. Raises ``ValueError`` for weights that are NaN or infinite or quantized, which no package may hold.
        """
        target = Path(folder)
        if is_quantized(self.ddit) or is_quantized(self.text):
            raise ValueError("quantized weights are not saved; load the model without quantization to save it")
        check_weights(dict(self.ddit.named_parameters()), target / "ddit" / DDIT_WEIGHTS)
        part = target.with_name(target.name + ".part")
        if part.exists():
            shutil.rmtree(part)
        (part / "ddit").mkdir(parents=True)
        (part / "ddit" / "config.json").write_text(json.dumps(self.config.ddit.to_dict(), indent=2) + "\n")
        weights = {name: stored(parameter, dtype) for name, parameter in self.ddit.named_parameters()}
        tables = dict(self.ddit.named_buffers())  # rotary frequencies: half precision would turn far positions
        save_tensors(weights | tables, part / "ddit" / DDIT_WEIGHTS)
        self.video.save_pretrained(part / "video_vae", dtype)
        self.audio.save_pretrained(part / "audio_vae", dtype)
        self.text.save_pretrained(part / "text_encoder")
        package = write_manifest(part, self.config)
        if target.exists():
            old = target.with_name(target.name + ".old")
            if old.exists():
                shutil.rmtree(old)
            os.replace(target, old)
            os.replace(part, target)
            shutil.rmtree(old)
        else:
            os.replace(part, target)
        return dataclasses.replace(package, path=target)


def load_ddit(package: Package, forms: Mapping[str, Tensor] | None = None, *, values: bool = True) -> DDiT:
    """The d-DiT of a package: in float32, or each tensor in the type of the one in ``forms``; as
    :meth:`Components.of`.
    """
    folder = package.component("ddit")
    config, tensors = DDiTConfig.from_dict(read_config(folder)), read_weights(folder, STEM, forms, values=values)
    with building(folder, tensors, all_stored=True):
        model = DDiT(config)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to((forms or {}).get(name, parameter).dtype)
    load_weights(model, tensors, folder)
    return model.eval().requires_grad_(False)
