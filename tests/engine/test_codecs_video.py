"""The video codec: shapes, padding, statistics, folders of its own and of other classes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.codecs import VideoCodec
from syncflow.engine.codecs.video import TINY_SETTINGS

MICRO: dict[str, Any] = TINY_SETTINGS | {
    "latent_channels": 4,
    "block_out_channels": [4, 8],
    "decoder_block_out_channels": [4, 8],
    "layers_per_block": [1, 0, 0],
    "decoder_layers_per_block": [1, 0, 0],
}
FOREIGN: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": [4, 4, 4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": [4, 4, 4, 4],
        "down_block_types": ["CogVideoXDownBlock3D"] * 4,
        "up_block_types": ["CogVideoXUpBlock3D"] * 4,
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "latent_channels": 4,
    },
    "AutoencoderKLWan": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latents_mean": [0.5, -0.5, 0.25, 0.0],
        "latents_std": [2.0, 1.0, 0.5, 4.0],
    },
    "AutoencoderKLHunyuanVideo": {
        "block_out_channels": [4, 4, 4, 4],
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.476986,
    },
}


def clip(frames: int, height: int = 16, width: int = 16, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    torch.manual_seed(0)
    codec = VideoCodec.build(settings=MICRO).eval()
    codec.set_statistics(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.0, 2.0, 0.25]))
    return codec


@settings(max_examples=15)
@given(frames=st.integers(1, 11), height=st.integers(1, 4), width=st.integers(1, 4), batch=st.integers(1, 2))
def test_shapes(codec: VideoCodec, frames: int, height: int, width: int, batch: int) -> None:
    with torch.inference_mode():
        latents = codec.encode(clip(frames, 8 * height, 8 * width, batch))
        decoded = codec.decode(latents, frames)
    assert latents.shape == (batch, 4, -(-frames // 4), height, width)
    assert decoded.shape == (batch, frames, 8 * height, 8 * width, 3)
    assert decoded.dtype == torch.uint8


def test_tiny_codec_maps_the_standard_clip() -> None:
    codec = VideoCodec.build().eval()
    assert (codec.channels, codec.strides.time, codec.strides.space) == (16, 4, 8)
    assert sum(p.numel() for p in codec.parameters()) < 2.6e6
    with torch.inference_mode():
        assert codec.encode(clip(32, 64, 64)).shape == (1, 16, 8, 8, 8)


def test_padding_stands_in_front(codec: VideoCodec) -> None:
    frames = clip(6)
    with torch.inference_mode():
        padded = torch.cat([frames[:, :1], frames[:, :1], frames], dim=1)
        torch.testing.assert_close(codec.encode(frames), codec.encode(padded))
        latents = codec.encode(padded)
        assert torch.equal(codec.decode(latents, 6), codec.decode(latents, 8)[:, 2:])


def test_pixels_have_one_scale(codec: VideoCodec) -> None:
    frames = clip(4)
    with torch.inference_mode():
        torch.testing.assert_close(codec.encode(frames), codec.encode(frames.double() / 127.5 - 1))


def test_latents_are_normalised_by_the_statistics(codec: VideoCodec) -> None:
    with torch.inference_mode():
        mean, _ = codec.posterior(clip(4).movedim(-1, 1) / 127.5 - 1)
        expected = (mean - codec.shift.view(-1, 1, 1, 1)) / codec.scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(codec.encode(clip(4)), expected)
        torch.testing.assert_close(codec.denormalize(codec.normalize(mean)), mean)


def test_training_reaches_every_parameter(codec: VideoCodec) -> None:
    mean, _ = codec.posterior(clip(8).movedim(-1, 1) / 127.5 - 1)
    codec.pixels(mean, 8).square().mean().backward()
    grown = [name for name, p in codec.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    codec.zero_grad()
    assert set(grown) == {name for name, _ in codec.named_parameters()}


def test_half_precision(codec: VideoCodec) -> None:
    with torch.inference_mode():
        half = VideoCodec.build(settings=MICRO).eval().to(torch.bfloat16)
        latents = half.encode(clip(4))
        assert latents.dtype == torch.bfloat16
        assert half.decode(latents, 4).dtype == torch.uint8


def test_round_trip_on_disk(codec: VideoCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLLTXVideo"
    torch.testing.assert_close(torch.tensor(config["latents_mean"]), codec.shift)
    again = VideoCodec.from_pretrained(tmp_path)
    assert torch.equal(again.scale, codec.scale)
    with torch.inference_mode():
        assert torch.equal(again.encode(clip(5)), codec.encode(clip(5)))


def test_no_order_of_this_process_is_saved(codec: VideoCodec, tmp_path: Path) -> None:
    """diffusers keeps a set of names as a list; a package would have another hash in every process."""
    codec.save_pretrained(tmp_path / "first")
    again = VideoCodec.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("first", "second"))
    assert first == second
    assert "_use_default_values" not in second


def test_diffusers_reads_our_folder(codec: VideoCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    torch.testing.assert_close(torch.as_tensor(vae.config["latents_std"]), codec.scale)


@pytest.mark.slow
@pytest.mark.parametrize("class_name", FOREIGN)
@pytest.mark.parametrize("frames", [5, 8])
def test_other_classes_in_their_own_format(class_name: str, frames: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = getattr(diffusers, class_name).from_config(FOREIGN[class_name])
    vae.save_pretrained(tmp_path)
    codec = VideoCodec.from_pretrained(tmp_path)
    count = frames if class_name == "AutoencoderKL" else -(-frames // 4)
    with torch.inference_mode():
        latents = codec.encode(clip(frames))
        decoded = codec.decode(latents, frames)
    assert latents.shape == (1, 4, count, 2, 2)
    assert decoded.shape == (1, frames, 16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo"])
def test_classes_that_code_the_first_frame_alone_see_every_frame(class_name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    getattr(diffusers, class_name).from_config(FOREIGN[class_name]).save_pretrained(tmp_path)
    codec = VideoCodec.from_pretrained(tmp_path)
    frames = clip(8)
    changed = frames.clone()
    changed[:, -1] = 255 - changed[:, -1]
    with torch.inference_mode():
        a, b = codec.encode(frames), codec.encode(changed)
    assert not torch.allclose(a[:, :, 1], b[:, :, 1])


def test_classes_without_plain_decoding_are_refused() -> None:
    with pytest.raises(ValueError, match="AutoencoderKLAllegro cannot be used"):
        VideoCodec.build("AutoencoderKLAllegro", {"block_out_channels": [4] * 4, "norm_num_groups": 2})


def test_image_autoencoder_goes_frame_by_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL.from_config(FOREIGN["AutoencoderKL"]).eval()
    vae.save_pretrained(tmp_path)
    codec = VideoCodec.from_pretrained(tmp_path)
    frames = clip(5)
    with torch.inference_mode():
        image = frames[:, 3].movedim(-1, 1) / 127.5 - 1
        expected = vae.encode(image).latent_dist.mean * 0.18215
        torch.testing.assert_close(codec.encode(frames)[:, :, 3], expected)
        shown = vae.decode(expected / 0.18215).sample.add(1).mul(127.5).round().clamp(0, 255)
        assert (codec.decode(codec.encode(frames), 5)[:, 3].movedim(-1, 1) - shown).abs().max() <= 1


@pytest.mark.slow
def test_statistics_of_other_classes(tmp_path: Path) -> None:
    diffusers.AutoencoderKLWan.from_config(FOREIGN["AutoencoderKLWan"]).save_pretrained(tmp_path / "wan")
    wan = VideoCodec.from_pretrained(tmp_path / "wan")
    assert wan.shift.tolist() == [0.5, -0.5, 0.25, 0.0]
    assert wan.scale.tolist() == [2.0, 1.0, 0.5, 4.0]
    diffusers.AutoencoderKLHunyuanVideo.from_config(FOREIGN["AutoencoderKLHunyuanVideo"]).save_pretrained(
        tmp_path / "hunyuan"
    )
    torch.testing.assert_close(VideoCodec.from_pretrained(tmp_path / "hunyuan").scale, torch.full((4,), 1 / 0.476986))


def test_shards_and_old_attention_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vae = diffusers.AutoencoderKL.from_config(FOREIGN["AutoencoderKL"]).eval()
    vae.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    with torch.inference_mode():
        expected = VideoCodec.from_pretrained(tmp_path).encode(clip(1))
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        for new, old in names.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        save_file(tensors, path)
    with torch.inference_mode():
        assert torch.equal(VideoCodec.from_pretrained(tmp_path).encode(clip(1)), expected)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (torch.zeros(4, 16, 16, 3, dtype=torch.uint8), r"\(4, 16, 16, 3\)"),
        (torch.zeros(1, 4, 16, 16, 1, dtype=torch.uint8), "must be"),
        (torch.zeros(1, 4, 20, 16, 3, dtype=torch.uint8), "16x20.*multiples of 8"),
    ],
)
def test_refused_frames(codec: VideoCodec, frames: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        codec.encode(frames)


@pytest.mark.parametrize("frames", [4, 9])
def test_refused_frame_count(codec: VideoCodec, frames: int) -> None:
    with pytest.raises(ValueError, match="2 latent frames decode to 5 to 8"):
        codec.decode(torch.zeros(1, 4, 2, 2, 2), frames)


def test_refused_folders(codec: VideoCodec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        VideoCodec.from_pretrained(tmp_path / "nowhere")
    codec.save_pretrained(tmp_path)
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        VideoCodec.from_pretrained(tmp_path)
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="never pickles"):
        VideoCodec.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    for change, message in (
        ({"_class_name": "UNet2DModel"}, "no video autoencoder"),
        ({"latent_channels": 5}, "do not fit"),
        ({"layers_per_block": [2, 0, 0]}, "missing"),
        ({"latents_mean": [0.0]}, "4 latent channels"),
    ):
        config.write_text(json.dumps(json.loads(said) | change))
        with pytest.raises(ValueError, match=message):
            VideoCodec.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        VideoCodec.from_pretrained(tmp_path)
