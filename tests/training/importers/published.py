"""Small models in the published layouts of Open-Sora 1.2, with weights that depend on their names alone.

The same weights were loaded into Open-Sora's own code (tag v1.2.0, commit 17cce90) to make ``opensora.safetensors``.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from syncflow.engine.codecs.opensora import OpenSoraVAE
from syncflow.engine.codecs.t5 import T5Encoder
from syncflow.engine.model.layers import rope_frequencies
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.training.importers.opensora import LAYOUT, stdit3_config

STDIT3: dict[str, Any] = {
    "architectures": ["STDiT3"],
    "model_type": "STDiT3",
    "hidden_size": 96,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "in_channels": 4,
    "patch_size": [1, 2, 2],
    "caption_channels": 48,
    "model_max_length": 40,
    "qk_norm": True,
    "pred_sigma": True,
    "input_sq_size": 512,
    "class_dropout_prob": 0.1,
}
VAE: dict[str, Any] = {
    "architectures": ["VideoAutoencoderPipeline"],
    "model_type": "VideoAutoencoderPipeline",
    "micro_frame_size": 17,
    "cal_loss": False,
    "scale": [3.85, 2.32, 2.33, 3.06],
    "shift": [-0.10, 0.34, 0.27, 0.98],
    "vae_2d": {
        "type": "VideoAutoencoderKL",
        "micro_batch_size": 4,
        "block_out_channels": [4, 4, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "vae_temporal": {"type": "VAE_Temporal_SD", "filters": 8, "num_res_blocks": 1, "num_groups": 2},
}
T5: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 384,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}


def values(name: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """Normal weights of the deviation gain / sqrt(inputs), small biases, norms about 1."""
    x = torch.from_numpy(normal(zlib.crc32(name.encode()), Stream.VIDEO, shape or (1,))).reshape(shape)
    if "norm" in name and name.endswith("weight"):
        return 1 + x / 5
    if len(shape) < 2:
        return x / 20
    return x * gain / math.sqrt(math.prod(shape[1:]))


def stdit3_tensors() -> dict[str, Tensor]:
    config = stdit3_config(STDIT3)
    tensors = {name: values(name, shape, 1.2) for name, shape in LAYOUT.shapes(config).items()}
    return tensors | {"rope.freqs": rope_frequencies(config.head_width, config.rope_theta)}


def vae_tensors() -> dict[str, Tensor]:
    vae = OpenSoraVAE(VAE)
    own = vae.state_dict()
    drawn = {name: values(name, tuple(x.shape), 1.5) for name, x in own.items() if name not in ("shift", "scale")}
    return drawn | {name: own[name] for name in ("shift", "scale")}


def t5_tensors() -> dict[str, Tensor]:
    return {name: values(name, tuple(x.shape), 1.0) for name, x in T5Encoder(T5).state_dict().items()}


def write_published(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_all(folder: Path) -> tuple[Path, Path, Path]:
    """Folders of the transformer, the autoencoder and the text encoder."""
    return (
        write_published(folder / "stdit3", STDIT3, stdit3_tensors()),
        write_published(folder / "vae", VAE, vae_tensors()),
        write_published(folder / "t5", T5, t5_tensors()),
    )
