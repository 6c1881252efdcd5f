"""Small models in the published layouts of JavisDiT 0.1, with weights that depend on their names alone.

The same weights were loaded into JavisDiT's own code (commit b505b37) to make ``javisdit.safetensors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncflow.engine.codecs.mel import MelCodec
from syncflow.engine.codecs.prior import PriorEncoder
from syncflow.engine.model.layers import rope_frequencies
from syncflow.training.importers.javisdit import LAYOUT, SPARE, TEXT, vastdit3_config

from .published import STDIT3, T5, VAE, t5_tensors, vae_tensors, values, write_published

VASTDIT3: dict[str, Any] = STDIT3 | {
    "architectures": ["VASTDiT3"],
    "model_type": "VASTDiT3",
    "audio_in_channels": 8,
    "audio_patch_size": [4, 1],
    "spatial_prior_len": 6,
    "temporal_prior_len": 6,
    "st_prior_channel": 20,
    "st_prior_utilize": "cross_attn",
}
MEL_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 8,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.4110932946205139,
}
VOCODER: dict[str, Any] = {
    "architectures": ["SpeechT5HifiGan"],
    "model_type": "hifigan",
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_initial_channel": 32,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "normalize_before": False,
}
PRIOR: dict[str, Any] = {
    "model_type": "STIBPriorExtractor",
    "text_emb_dim": 128,
    "spatial_token_num": 6,
    "temporal_token_num": 6,
    "hidden_size": 32,
    "out_dim": 20,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "feedforward_scale": 4,
    "apply_sampling": True,
}
TEXT_TOWER: dict[str, int] = {"text_layers": 2, "text_heads": 2, "text_length": 77, "vocab_size": 384}


class Published(NamedTuple):
    """Folders and the file of a published model, in the order of ``import_javisdit``."""

    transformer: Path
    vae: Path
    text_encoder: Path
    audio_vae: Path
    prior: Path
    imagebind: Path


def vastdit3_tensors() -> dict[str, Tensor]:
    config = vastdit3_config(VASTDIT3)
    tensors = {name: values(name, shape, 1.2) for name, shape in LAYOUT.shapes(config).items()}
    tensors["audio_y_embedder.y_embedding"] = tensors["y_embedder.y_embedding"].clone()  # JavisDiT's code shares them
    for name, tensor in tensors.items():
        if ".gamma_m" in name:
            tensor += 0.5
    return tensors | {"rope.freqs": rope_frequencies(config.head_width, config.rope_theta)}


def mel_tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the autoencoder, and of the vocoder."""
    own = MelCodec({"vae": MEL_VAE, "vocoder": VOCODER}).state_dict()
    drawn = {n: values(n, tuple(x.shape), 1.2) for n, x in own.items()} | {"vocoder.scale": own["vocoder.scale"]}
    vae, vocoder = (
        {n.removeprefix(part): x for n, x in drawn.items() if n.startswith(part)} for part in ("vae.", "vocoder.")
    )
    return vae, vocoder


def prior_tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the prior extractor, and of ImageBind."""
    own = PriorEncoder(PRIOR | TEXT_TOWER).state_dict()
    drawn = {name: values(name, tuple(x.shape), 1.0) for name, x in own.items()}
    text = {name.removeprefix(TEXT): x for name, x in drawn.items() if name.startswith(TEXT)}
    text |= {
        SPARE[0].removeprefix(TEXT): torch.zeros(77, 77),
        "modality_trunks.audio.blocks.0.norm_1.bias": torch.ones(3),
    }
    return {name: x for name, x in drawn.items() if not name.startswith(TEXT)}, text


def write_all(folder: Path) -> Published:
    """All parts of a model, published."""
    vae, vocoder = mel_tensors()
    prior, text = prior_tensors()
    write_published(folder / "audioldm2" / "vae", MEL_VAE, vae)
    write_published(folder / "audioldm2" / "vocoder", VOCODER, vocoder)
    torch.save(text, folder / "imagebind.pth")
    return Published(
        write_published(folder / "vastdit3", VASTDIT3, vastdit3_tensors()),
        write_published(folder / "vae", VAE, vae_tensors()),
        write_published(folder / "t5", T5, t5_tensors()),
        folder / "audioldm2",
        write_published(folder / "prior", PRIOR, prior),
        folder / "imagebind.pth",
    )
