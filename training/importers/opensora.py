"""Open-Sora 1.2: its published STDiT3, video autoencoder and T5 encoder, to an engine package and back.

The tensors keep their names (docs/method.md section 9), behind ``video.`` in the d-DiT. What a package has no place
for, the published configuration and whether ``rope.freqs`` was stored, is kept in ``ddit/source.json``, from which
:func:`export_opensora` writes the STDiT3 folder back.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.codecs.captions import OPEN_SORA as CAPTION_STYLE
from ...engine.codecs.files import bounded, read_config
from ...engine.codecs.opensora import CLASS_NAME, OpenSoraVAE
from ...engine.codecs.t5 import T5Encoder
from ...engine.codecs.video import renamed
from ...engine.components import DDIT_WEIGHTS
from ...engine.config import CodecConfig, DDiTConfig
from ...engine.model.layers import rope_frequencies
from ...engine.model.video import VideoTower
from ...engine.package import Package, open_package, read_json, write_json, write_manifest
from ...engine.presets import OPEN_SORA
from .tensors import TensorInfo, finite, mismatches, open_tensors, refuse, write_tensors

ARCHITECTURE = "STDiT3"
PREFIX = "video."
OPTIONAL = "rope.freqs"
SOURCE = "source.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip

Progress = Callable[[str], None]


def stdit3_config(published: Mapping[str, Any]) -> DDiTConfig:
    """The configuration of the tower of a published ``config.json``. Raises ``ValueError`` for one of another kind."""
    patch = published.get("patch_size", [1, 2, 2])
    if not isinstance(patch, (list, tuple)) or len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise ValueError(f"patch_size is {patch}; it must be 1 in time and the same in height and width")
    if published.get("qk_norm", True) is not True:
        raise ValueError("qk_norm is false; queries and keys must be normalised, as in Open-Sora 1.2")
    names = {
        "width": "hidden_size",
        "depth": "depth",
        "heads": "num_heads",
        "mlp_ratio": "mlp_ratio",
        "video_channels": "in_channels",
        "text_width": "caption_channels",
        "text_tokens": "model_max_length",
        "sigma_head": "pred_sigma",
        "base_size": "input_sq_size",
    }
    given = {name: published[key] for name, key in names.items() if key in published}
    return OPEN_SORA.ddit.replace(**given, patch=patch[1])


def inferred_config(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The ``config.json`` of a bare file, from the shapes of its tensors.

    Raises ``ValueError`` where they do not tell the size.
    """
    named = {
        "patch": "x_embedder.proj.weight",
        "text": "y_embedder.y_embedding",
        "norm": "spatial_blocks.0.attn.q_norm.weight",
        "mlp": "spatial_blocks.0.mlp.fc1.weight",
        "last": "final_layer.linear.weight",
    }
    shapes = {key: infos[name].shape for key, name in named.items() if name in infos}
    ranks = {"patch": 5, "text": 2, "norm": 1, "mlp": 2, "last": 2}
    for key, rank in ranks.items():
        if len(shapes.get(key, ())) != rank or 0 in shapes[key]:
            raise ValueError(f"no config.json is there, and {named[key]} does not tell the size of an STDiT3")
    width, channels, *patch = shapes["patch"]
    depth = 1 + max(int(name.split(".")[1]) for name in infos if name.startswith("spatial_blocks."))
    return {
        "model_type": ARCHITECTURE,
        "hidden_size": width,
        "depth": depth,
        "num_heads": width // shapes["norm"][0],
        "mlp_ratio": shapes["mlp"][0] / width,
        "in_channels": channels,
        "patch_size": patch,
        "caption_channels": shapes["text"][1],
        "model_max_length": shapes["text"][0],
        "pred_sigma": shapes["last"][0] == 2 * channels * patch[1] * patch[2],
    }


def stdit3_shapes(config: DDiTConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of an STDiT3, by name."""
    with torch.device("meta"):
        tower = VideoTower(config)
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def import_opensora(
    transformer: Path,
    vae: Path,
    text_encoder: Path,
    target: Path,
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    name: str = OPEN_SORA.name,
    progress: Progress = lambda name: None,
) -> Package:
    """Make a package of an STDiT3 (folder or file), Open-Sora's video autoencoder and a T5 encoder (folders).

    Weights keep their precision, or take ``dtype``. ``tokenizer`` is the folder of the tokenizer, by default that of
    the text encoder. Every tensor is accounted for: raises ``ValueError`` with a sentence for each that is missing,
    unknown, misshapen or not finite, and for a folder of another kind. Nothing is left of a package that fails.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; name a new folder")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        ddit = _import_tower(transformer, part / "ddit", dtype, progress)
        video = _import_vae(vae, part / "video_vae", dtype, progress)
        text = _import_text(text_encoder, tokenizer, part / "text_encoder", ddit, dtype, progress)
        audio = OPEN_SORA.audio_vae.settings | {"_class_name": OPEN_SORA.audio_vae.class_name}
        (part / "audio_vae").mkdir()
        write_json(part / "audio_vae" / "config.json", audio)
        factor = 2 ** (len(video.images.config["block_out_channels"]) - 1)
        sequence = OPEN_SORA.sequence.replace(
            patch=ddit.patch, chunk_frames=video.chunk_frames, space_factor=factor, time_factor=video.time_factor
        )
        config = dataclasses.replace(
            OPEN_SORA,
            name=name,
            ddit=ddit,
            sequence=sequence,
            video_vae=CodecConfig(CLASS_NAME, {"micro_frame_size": video.chunk_frames or None}),
            text_encoder=text,
        )
        package = write_manifest(part, config)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return dataclasses.replace(package, path=target)


def export_opensora(package_folder: Path, target: Path, progress: Progress = lambda name: None) -> Path:
    """Write the STDiT3 of a package back as ``config.json`` and ``model.safetensors``, the bits of the tensors as they
    are in the package. -> the file.

    Raises ``ValueError`` for a package that was not imported, and for an existing folder.
    """
    package = open_package(package_folder)
    folder = package.component("ddit")
    if not (folder / SOURCE).is_file():
        raise ValueError(f"{package_folder} was not imported from Open-Sora; it has no ddit/{SOURCE}")
    source = read_json(folder, SOURCE)
    if target.exists():
        raise ValueError(f"{target} exists already; name a new folder")
    files = open_tensors(folder / DDIT_WEIGHTS)
    infos = {name.removeprefix(PREFIX): info for name, info in files.infos.items() if name.startswith(PREFIX)}
    if not source.get(OPTIONAL):
        infos.pop(OPTIONAL, None)
    target.mkdir(parents=True)
    write_json(target / "config.json", source.get("config", {}))
    write_tensors(target / "model.safetensors", infos, lambda name: files.read(PREFIX + name), progress)
    return target / "model.safetensors"


def _import_tower(source: Path, folder: Path, dtype: torch.dtype | None, progress: Progress) -> DDiTConfig:
    files = open_tensors(source)
    published = read_config(source) if (source / "config.json").is_file() else inferred_config(files.infos)
    kind = published.get("model_type")
    if kind != ARCHITECTURE:
        raise ValueError(f"{source} holds a {kind!r} model; an Open-Sora 1.2 transformer says {ARCHITECTURE!r}")
    config = stdit3_config(published)
    expected = stdit3_shapes(config)
    found, table = dict(files.infos), rope_frequencies(config.head_width, config.rope_theta)
    if not (has_table := OPTIONAL in found):
        found[OPTIONAL] = TensorInfo(table.dtype, tuple(table.shape))
    refuse(source, "an STDiT3", mismatches(found, expected, "an STDiT3"))
    infos = {name: _stored(info, None if name == OPTIONAL else dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        name = name.removeprefix(PREFIX)
        tensor = table if name == OPTIONAL and not has_table else files.read(name)
        return finite(source, tensor, name, infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / DDIT_WEIGHTS, {PREFIX + name: info for name, info in infos.items()}, read, progress)
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / SOURCE, {"layout": "open-sora-1.2", OPTIONAL: has_table, "config": published})
    return config


def _import_vae(source: Path, folder: Path, dtype: torch.dtype | None, progress: Progress) -> OpenSoraVAE:
    published, files = read_config(source), open_tensors(source)
    if published.get("model_type") != CLASS_NAME:
        raise ValueError(f"{source} holds a {published.get('model_type')!r} model; Open-Sora's VAE says {CLASS_NAME!r}")
    with torch.device("meta"), bounded(source, {n: torch.empty(i.shape) for n, i in files.infos.items()}):
        vae = OpenSoraVAE(published)
    expected = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    original = dict(zip(renamed(files.infos), files.infos, strict=True))
    found = renamed(files.infos)
    refuse(source, "Open-Sora's VAE", mismatches(found, expected, "the VAE"))
    kept = ("shift", "scale")  # a few numbers that all latents pass through
    infos = {name: _stored(info, None if name in kept else dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        return finite(source, files.read(original[name]), original[name], infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / "model.safetensors", infos, read, progress)
    write_json(folder / "config.json", published)
    return vae


def _import_text(
    source: Path, tokenizer: Path | None, folder: Path, ddit: DDiTConfig, dtype: torch.dtype | None, progress: Progress
) -> CodecConfig:
    """The encoder of a T5, its decoder left out, with its tokenizer and the captions of Open-Sora."""
    published, files = read_config(source), open_tensors(source)
    if published.get("model_type") != "t5":
        raise ValueError(f"{source} holds a {published.get('model_type')!r} model; a text encoder must be a T5 ('t5')")
    with torch.device("meta"), bounded(source, {n: torch.empty(i.shape) for n, i in files.infos.items()}):
        encoder = T5Encoder(published)
    if encoder.config["d_model"] != ddit.text_width:
        raise ValueError(f"{source} has states of {encoder.config['d_model']}; the transformer reads {ddit.text_width}")
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    unused = {"encoder.embed_tokens.weight", "lm_head.weight"} - expected.keys()
    found = {n: i for n, i in files.infos.items() if n not in unused and not n.startswith("decoder.")}
    names = dict(zip(found, found, strict=True))
    if "shared.weight" not in found and "encoder.embed_tokens.weight" in files.infos:
        found["shared.weight"] = files.infos["encoder.embed_tokens.weight"]
        names["shared.weight"] = "encoder.embed_tokens.weight"
    refuse(source, "a T5 encoder", mismatches(found, expected, "the encoder"))
    infos = {name: _stored(info, dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        return finite(source, files.read(names[name]), names[name], infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / "model.safetensors", infos, read, progress)
    copied = [f for f in TOKENIZER_FILES if ((tokenizer or source) / f).is_file()]
    for file in copied:
        shutil.copyfile((tokenizer or source) / file, folder / file)
    if not copied and encoder.config["vocab_size"] != 384:
        raise ValueError(f"{tokenizer or source} holds no tokenizer; it must hold tokenizer.json or spiece.model")
    settings = published | {"architectures": ["T5EncoderModel"], "max_tokens": ddit.text_tokens}
    write_json(folder / "config.json", settings | {"caption_style": CAPTION_STYLE})
    return CodecConfig("T5EncoderModel", {name: encoder.config[name] for name in OPEN_SORA.text_encoder.settings})


def _stored(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    return info if dtype is None else dataclasses.replace(info, dtype=dtype)
