"""The audio codec: lengths, statistics, folders, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.codecs import AudioCodec
from syncflow.engine.codecs.audio import TINY_SETTINGS

MICRO: dict[str, Any] = TINY_SETTINGS | {"num_filters": 2, "hidden_size": 8, "latent_channels": 4}


@pytest.fixture(scope="module")
def codec() -> AudioCodec:
    torch.manual_seed(0)
    codec = AudioCodec(MICRO).eval()
    codec.set_statistics(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.0, 2.0, 0.25]))
    return codec


@settings(max_examples=15)
@given(samples=st.integers(1, 6000), batch=st.integers(1, 2))
def test_lengths(codec: AudioCodec, samples: int, batch: int) -> None:
    with torch.inference_mode():
        latents = codec.encode(torch.randn(batch, samples))
        heard = codec.decode(latents, samples)
    assert latents.shape == (batch, -(-samples // 960), 4)
    assert heard.shape == (batch, samples)
    assert heard.abs().max() <= 1


def test_tiny_codec_gives_fifty_latents_a_second() -> None:
    codec = AudioCodec().eval()
    assert (codec.sample_rate, codec.hop, codec.channels) == (48_000, 960, 16)
    assert sum(p.numel() for p in codec.parameters()) < 1.5e6
    with torch.inference_mode():
        assert codec.encode(torch.zeros(1, 96_000)).shape == (1, 100, 16)


def test_padding_is_silence_at_the_end(codec: AudioCodec) -> None:
    wave = torch.randn(1, 1500)
    with torch.inference_mode():
        torch.testing.assert_close(codec.encode(wave), codec.encode(torch.nn.functional.pad(wave, (0, 420))))


def test_latents_are_normalised_by_the_statistics(codec: AudioCodec) -> None:
    wave = torch.randn(1, 1920)
    with torch.inference_mode():
        mean, logvar = codec.posterior(wave)
        assert mean.shape == logvar.shape == (1, 4, 2)
        torch.testing.assert_close(codec.encode(wave), (mean.mT - codec.shift) / codec.scale)
        torch.testing.assert_close(codec.decode(codec.encode(wave), 1920), codec.waveform(mean, 1920).clamp(-1, 1))


def test_quiet_input_reaches_the_latents() -> None:
    """Fresh weights neither drown a quiet signal in biases nor raise it without bound."""
    torch.manual_seed(0)
    codec = AudioCodec().eval()
    with torch.inference_mode():
        quiet, loud = (codec.posterior(level * torch.randn(1, 9600))[0].std() for level in (0.005, 0.05))
    assert 2 < loud / quiet < 15
    assert 0.01 < loud < 10


def test_weights_are_plain_and_all_are_trained(codec: AudioCodec) -> None:
    assert not [name for name in codec.state_dict() if "parametrizations" in name or "weight_g" in name]
    mean, _ = codec.posterior(torch.randn(1, 1920))
    codec.waveform(mean, 1920).square().mean().backward()
    unreached = [name for name, p in codec.named_parameters() if p.grad is None]
    codec.zero_grad()
    assert not unreached


def test_round_trip_on_disk(codec: AudioCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = AudioCodec.from_pretrained(tmp_path)
    wave = torch.randn(1, 2000)
    with torch.inference_mode():
        latents = codec.encode(wave)
        assert torch.equal(again.encode(wave), latents)
        assert torch.equal(again.decode(latents, 2000), codec.decode(latents, 2000))


def test_it_can_be_made_under_inference_mode() -> None:
    with torch.inference_mode():
        made = AudioCodec(MICRO)
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in AudioCodec(MICRO).named_parameters()]


@pytest.mark.parametrize("samples", [960, 1921])
def test_refused_sample_count(codec: AudioCodec, samples: int) -> None:
    with pytest.raises(ValueError, match="2 audio latents decode to 961 to 1920"):
        codec.decode(torch.zeros(1, 2, 4), samples)


@pytest.mark.parametrize("shape", [(960,), (1, 1, 960), (1, 0)])
def test_refused_waveforms(codec: AudioCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        codec.encode(torch.zeros(shape))


def test_refused_folders(codec: AudioCodec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        AudioCodec.from_pretrained(tmp_path)
    codec.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    said = config.read_text()
    for change, message in (
        ({"_class_name": "EncodecModel"}, "EncodecModel"),
        ({"latent_channels": 5}, "do not fit"),
        ({"num_residual_layers": 2}, "missing"),
    ):
        config.write_text(json.dumps(json.loads(said) | change))
        with pytest.raises(ValueError, match=message):
            AudioCodec.from_pretrained(tmp_path)
    config.write_text(said)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        AudioCodec.from_pretrained(tmp_path)
