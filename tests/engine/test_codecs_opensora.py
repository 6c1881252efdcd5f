"""Open-Sora's video autoencoder: the published tensors, causality, its folder format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from syncflow.engine.codecs import VideoCodec
from syncflow.engine.codecs.opensora import OpenSoraVAE

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "architectures": ["VideoAutoencoderPipeline"],
    "model_type": "VideoAutoencoderPipeline",
    "micro_frame_size": 17,
    "cal_loss": False,
    "freeze_vae_2d": False,
    "from_pretrained": None,
    "scale": [3.85, 2.32, 2.33, 3.06],
    "shift": [-0.10, 0.34, 0.27, 0.98],
    "vae_2d": {
        "type": "VideoAutoencoderKL",
        "from_pretrained": "somewhere/else",
        "subfolder": "vae",
        "micro_batch_size": 4,
        "block_out_channels": [4, 4, 4, 4],
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "vae_temporal": {
        "type": "VAE_Temporal_SD",
        "from_pretrained": None,
        "filters": 4,
        "num_res_blocks": 1,
        "num_groups": 2,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("opensora")
    (path / "config.json").write_text(json.dumps(SMALL))
    save_file(OpenSoraVAE(SMALL).state_dict(), path / "model.safetensors")
    return path


def test_published_tensors() -> None:
    with torch.device("meta"):
        tensors = {name: tuple(x.shape) for name, x in OpenSoraVAE().state_dict().items()}
    temporal = {name: shape for name, shape in tensors.items() if name.startswith("temporal_vae.")}
    assert temporal["temporal_vae.encoder.conv_in.conv.weight"] == (128, 4, 3, 3, 3)
    assert temporal["temporal_vae.encoder.block_res_blocks.3.0.conv3.conv.weight"] == (512, 256, 1, 1, 1)
    assert temporal["temporal_vae.encoder.conv_blocks.2.conv.bias"] == (256,)
    assert "temporal_vae.encoder.conv_blocks.0.conv.weight" not in temporal
    assert temporal["temporal_vae.encoder.conv2.conv.weight"] == (8, 512, 1, 1, 1)
    assert temporal["temporal_vae.quant_conv.conv.weight"] == (8, 8, 1, 1, 1)
    assert temporal["temporal_vae.post_quant_conv.conv.weight"] == (4, 4, 1, 1, 1)
    assert temporal["temporal_vae.decoder.conv_blocks.2.conv.weight"] == (1024, 512, 3, 3, 3)
    assert temporal["temporal_vae.decoder.conv_blocks.1.conv.weight"] == (512, 256, 3, 3, 3)
    assert temporal["temporal_vae.decoder.block_res_blocks.0.0.conv3.conv.weight"] == (128, 256, 1, 1, 1)
    assert temporal["temporal_vae.decoder.conv_out.conv.weight"] == (4, 128, 3, 3, 3)
    assert tensors["spatial_vae.module.encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert tensors["shift"] == tensors["scale"] == (1, 4, 1, 1, 1)


def test_clip_there_and_back(folder: Path) -> None:
    codec = VideoCodec.from_pretrained(folder)
    assert codec.strides.time == 4
    torch.testing.assert_close(codec.shift, torch.tensor([-0.10, 0.34, 0.27, 0.98]))
    frames = torch.randint(0, 256, (1, 9, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        latents = codec.encode(frames)
        assert latents.shape == (1, 4, 3, 2, 2)
        assert codec.decode(latents, 9).shape == frames.shape


def test_latents_follow_the_published_scales(folder: Path) -> None:
    codec = VideoCodec.from_pretrained(folder)
    vae = codec.vae
    assert isinstance(vae, OpenSoraVAE)
    pixels = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    with torch.inference_mode():
        images = vae.spatial_vae.module.encode(pixels[0].movedim(1, 0)).latent_dist.mean * 0.18215
        raw = vae.temporal_vae.moments(images.movedim(0, 1)[None])[:, :4]
        shift, scale = (torch.tensor(SMALL[name]).view(-1, 1, 1, 1) for name in ("shift", "scale"))
        expected = (raw - shift) / scale
        torch.testing.assert_close(codec.encode(pixels.movedim(1, -1)), expected)


def test_convolutions_look_back_only(folder: Path) -> None:
    """Group norms mix all frames, so they are taken out to see the convolutions alone."""
    temporal = OpenSoraVAE(SMALL).temporal_vae.eval()
    for module in temporal.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    latents = torch.randn(1, 4, 8, 2, 2)
    later = latents.clone()
    later[:, :, 4:] += 1
    with torch.inference_mode():
        a, b = temporal.moments(latents), temporal.moments(later)
        torch.testing.assert_close(a[:, :, :1], b[:, :, :1])
        assert not torch.allclose(a[:, :, 1:], b[:, :, 1:])
        z = torch.randn(1, 4, 2, 2, 2)
        y = z.clone()
        y[:, :, 1] += 1
        torch.testing.assert_close(temporal.decode(z)[:, :, :4], temporal.decode(y)[:, :, :4])


def test_saved_folder_reads_the_same(folder: Path, tmp_path: Path) -> None:
    codec = VideoCodec.from_pretrained(folder)
    codec.save_pretrained(tmp_path)
    frames = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(VideoCodec.from_pretrained(tmp_path).encode(frames), codec.encode(frames))
