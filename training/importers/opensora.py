"""Open-Sora 1.2: its published STDiT3, video autoencoder and T5 encoder, to an engine package and back.

The tensors keep their names (docs/method.md section 9), behind ``video.`` in the d-DiT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...engine.codecs.opensora import CLASS_NAME, OpenSoraVAE
from ...engine.config import CodecConfig, DDiTConfig, SequenceConfig
from ...engine.package import Package, write_json, write_manifest
from ...engine.presets import OPEN_SORA
from .parts import Progress, import_text, import_vae, package_folder
from .tensors import TensorInfo
from .transformer import Layout, import_transformer

ARCHITECTURE = "STDiT3"


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


LAYOUT = Layout("open-sora-1.2", ARCHITECTURE, "Open-Sora 1.2", stdit3_config, inferred_config, {})


def video_sequence(base: SequenceConfig, ddit: DDiTConfig, video: OpenSoraVAE) -> SequenceConfig:
    """The lengths of a model whose video autoencoder is Open-Sora's."""
    factor = 2 ** (len(video.images.config["block_out_channels"]) - 1)
    return base.replace(
        patch=ddit.patch, chunk_frames=video.chunk_frames, space_factor=factor, time_factor=video.time_factor
    )


def video_codec(video: OpenSoraVAE) -> CodecConfig:
    """What a package says of Open-Sora's video autoencoder."""
    return CodecConfig(CLASS_NAME, {"micro_frame_size": video.chunk_frames or None})


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
    with package_folder(target) as part:
        ddit = import_transformer(LAYOUT, transformer, part / "ddit", dtype, progress)
        video = import_vae(vae, part / "video_vae", dtype, progress)
        text = import_text(text_encoder, tokenizer, part / "text_encoder", ddit, dtype, progress)
        (part / "audio_vae").mkdir()
        audio = OPEN_SORA.audio_vae.settings | {"_class_name": OPEN_SORA.audio_vae.class_name}
        write_json(part / "audio_vae" / "config.json", audio)
        config = dataclasses.replace(
            OPEN_SORA,
            name=name,
            ddit=ddit,
            sequence=video_sequence(OPEN_SORA.sequence, ddit, video),
            video_vae=video_codec(video),
            text_encoder=text,
        )
        package = write_manifest(part, config)
    return dataclasses.replace(package, path=target)
