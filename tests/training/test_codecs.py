"""Training of the codecs: batches, losses, the loop, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.codecs import AudioCodec, VideoCodec
from syncflow.engine.codecs.audio import TINY_SETTINGS as AUDIO
from syncflow.engine.codecs.video import TINY_SETTINGS as VIDEO
from syncflow.training.codecs import CodecRecipe, train_audio_codec, train_video_codec
from syncflow.training.codecs import video as video_room
from syncflow.training.codecs.audio import audio_batch, audio_losses
from syncflow.training.codecs.fit import divergence, noised
from syncflow.training.codecs.kernel_muon import KernelMuon
from syncflow.training.codecs.video import video_batch, video_losses

pytestmark = pytest.mark.slow

MICRO_VIDEO: dict[str, Any] = VIDEO | {
    "latent_channels": 4,
    "block_out_channels": [4, 8],
    "decoder_block_out_channels": [4, 8],
    "layers_per_block": [1, 0, 0],
    "decoder_layers_per_block": [1, 0, 0],
}
MICRO_AUDIO: dict[str, Any] = AUDIO | {"num_filters": 2, "hidden_size": 8, "latent_channels": 4}


def clips(count: int = 4, size: int = 32) -> np.ndarray:
    """A bright square that falls over a dark ground."""
    frames = np.full((count, 16, size, size, 3), 40, np.uint8)
    for clip in range(count):
        for frame in range(16):
            frames[clip, frame, frame : frame + 6, 4 * clip : 4 * clip + 6] = (220, 60, 30)
    return frames


def waves(count: int = 4) -> np.ndarray:
    """Decaying tones that start at different times."""
    time = np.arange(76 * 960) / 48_000
    starts = 0.1 + 0.2 * np.arange(count)[:, None]
    since = np.clip(time - starts, 0, None)
    return (0.5 * np.sin(2 * np.pi * 600 * since) * np.exp(-since / 0.05)).astype(np.float16)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 5))
def test_video_windows(seed: int, batch: int) -> None:
    pixels, weight = video_batch(clips(), batch, np.random.default_rng(seed))
    assert pixels.shape[0] == weight.shape[0] <= batch
    assert weight.shape[1] == 1 and pixels.shape[1] == 3
    assert pixels.shape[2:] == weight.shape[2:]
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert weight.min() >= 1 and weight.max() <= 6
    red = pixels[:, 0] > 0.5
    assert (weight[:, 0][red] > 4).all()


def test_most_windows_show_what_moves() -> None:
    frames = np.zeros((1, 16, 128, 128, 3), np.uint8)
    for frame in range(16):
        frames[0, frame, 60 + frame, 90:96] = 255
    rng = np.random.default_rng(0)
    seen = [bool((video_batch(frames, 1, rng)[0] > 0).any()) for _ in range(60)]
    assert np.mean(seen) > 0.8


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_audio_windows(seed: int) -> None:
    wave = audio_batch(waves(), 4, 960, np.random.default_rng(seed))
    assert wave.dtype == torch.float32
    assert wave.shape in {(4, 16 * 960), (1, 75 * 960)}
    assert torch.isfinite(wave).all()


def test_windows_fit_into_short_clips() -> None:
    rng = np.random.default_rng(0)
    assert {audio_batch(waves()[:, : 50 * 960], 4, 960, rng).shape for _ in range(20)} == {(4, 16 * 960)}


def test_losses_vanish_for_perfect_reconstruction_only() -> None:
    pixels, weight = video_batch(clips(), 2, np.random.default_rng(0))
    assert all(value == 0 for value in video_losses(pixels, pixels, weight).values())
    shifted = pixels.roll(1, dims=3)
    assert all(value > 0 for value in video_losses(shifted, pixels, weight).values())
    wave = torch.from_numpy(waves(2).astype(np.float32))
    assert all(value < 1e-6 for value in audio_losses(wave, wave).values())
    late = wave.roll(480, dims=1)
    silence = torch.zeros_like(wave)
    for other in (late, silence):
        assert all(value > 1e-3 for value in audio_losses(other, wave).values())


def test_errors_on_moving_pixels_weigh_more() -> None:
    true = torch.zeros(1, 3, 2, 4, 4)
    weight = torch.ones(1, 1, 2, 4, 4)
    weight[..., 0] = 6
    still, moving = true.clone(), true.clone()
    still[..., 3] = 1
    moving[..., 0] = 1
    assert video_losses(moving, true, weight)["pixels"] == pytest.approx(
        6 * float(video_losses(still, true, weight)["pixels"])
    )


def test_noise_is_measured_in_deviations_of_the_latents() -> None:
    torch.manual_seed(0)
    mean = torch.randn(64, 2, 400) * torch.tensor([1.0, 10.0]).view(1, 2, 1)
    added = noised(mean, torch.full_like(mean, -30.0), 0.5) - mean
    expected = 0.5 / 3**0.5
    for channel, deviation in enumerate((1.0, 10.0)):
        assert float(added[:, channel].std()) == pytest.approx(expected * deviation, rel=0.15)
    assert torch.allclose(noised(mean, torch.full_like(mean, -40.0), 0.0), mean, atol=1e-5)


def test_divergence_is_zero_for_the_normal_distribution() -> None:
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert float(divergence(torch.ones(2, 3), torch.zeros(2, 3))) == pytest.approx(0.5)


def test_kernel_updates_have_the_stated_size() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 16, 3)
    before = layer.weight.detach().clone()
    optimizer = KernelMuon(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 8, 5, 5)).square().mean().backward()
    optimizer.step()
    assert float(torch.linalg.matrix_norm((layer.weight.detach() - before).flatten(1), 2)) == pytest.approx(
        0.1, rel=0.4
    )


def test_video_codec_is_trained_and_written(tmp_path: Path) -> None:
    codec = train_video_codec(
        clips(), tmp_path / "vae", recipe=CodecRecipe(steps=30, batch=2, warmup=2, ema=0.5), settings=MICRO_VIDEO
    )
    frames = torch.from_numpy(clips())
    with torch.inference_mode():
        latents = codec.encode(frames)
        again = VideoCodec.from_pretrained(tmp_path / "vae")
        assert torch.equal(again.encode(frames), latents)
        error = (again.decode(latents, 16).float() - frames).abs().mean()
    flat = latents.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(flat.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(0), torch.ones(4), atol=1e-3, rtol=0)
    assert error < (frames.float() - 128).abs().mean()
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_audio_codec_is_trained_and_written(tmp_path: Path) -> None:
    codec = train_audio_codec(waves(), tmp_path / "vae", recipe=CodecRecipe(steps=3, batch=2), settings=MICRO_AUDIO)
    wave = torch.from_numpy(waves().astype(np.float32))
    with torch.inference_mode():
        latents = codec.encode(wave)
        assert torch.equal(AudioCodec.from_pretrained(tmp_path / "vae").encode(wave), latents)
    torch.testing.assert_close(latents.flatten(0, 1).std(0), torch.ones(4), atol=1e-3, rtol=0)


def test_codecs_can_be_trained_further(tmp_path: Path) -> None:
    recipe = CodecRecipe(steps=1, batch=1, rate=1e-4, ema=0.0)
    video = train_video_codec(clips(), tmp_path / "video", recipe=recipe, settings=MICRO_VIDEO)
    audio = train_audio_codec(waves(), tmp_path / "audio", recipe=recipe, settings=MICRO_AUDIO)
    known = [{name: tensor.clone() for name, tensor in codec.state_dict().items()} for codec in (video, audio)]
    further = (
        train_video_codec(clips(), tmp_path / "video-2", recipe=recipe, start=video),
        train_audio_codec(waves(), tmp_path / "audio-2", recipe=recipe, start=audio),
    )
    for before, codec in zip(known, further, strict=True):
        own = {name for name, _ in codec.named_parameters()}
        distances = [(codec.state_dict()[name] - before[name]).abs().max() for name in own]
        assert 0 < max(distances) < 1e-3


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = CodecRecipe(steps=5, batch=1, save_seconds=0.0)
    straight = train_video_codec(clips(), tmp_path / "straight", recipe=recipe, settings=MICRO_VIDEO)

    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return video_batch(*arguments)

    monkeypatch.setattr(video_room, "video_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_video_codec(clips(), tmp_path / "killed", recipe=recipe, settings=MICRO_VIDEO)
    assert not (tmp_path / "killed").exists()
    resumed = train_video_codec(clips(), tmp_path / "killed", recipe=recipe, settings=MICRO_VIDEO)
    assert calls == 6
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    broken = np.full((2, 80 * 960), np.nan, np.float32)
    broken[:, ::2] = 0.5
    recipe = CodecRecipe(steps=2, batch=1)
    with pytest.raises(ValueError, match="the gradient of step 1 of audio is not finite; the last checkpoint is kept"):
        train_audio_codec(broken, tmp_path / "audio", recipe=recipe, settings=MICRO_AUDIO)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    recipe = CodecRecipe(steps=1, batch=1)
    train_video_codec(clips(), tmp_path / "vae", recipe=recipe, settings=MICRO_VIDEO)
    with pytest.raises(ValueError, match="other settings"):
        train_video_codec(clips(), tmp_path / "vae", recipe=recipe, settings=MICRO_VIDEO | {"latent_channels": 8})


def test_training_ends_with_its_steps_or_its_minutes(tmp_path: Path) -> None:
    """Whichever comes first."""
    for name, recipe in {
        "steps": CodecRecipe(steps=2, minutes=60.0, batch=1),
        "minutes": CodecRecipe(steps=10**6, minutes=1e-6, batch=1),
    }.items():
        train_video_codec(clips(), tmp_path / name, recipe=recipe, settings=MICRO_VIDEO)
    steps = [torch.load(tmp_path / f"{name}-training/checkpoint.pt")["step"] for name in ("steps", "minutes")]
    assert steps == [2, 1]


@pytest.mark.parametrize("change", [{"steps": 0}, {"minutes": -1.0}, {"batch": 0}, {"ema": 1.0}])
def test_refused_recipes(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        CodecRecipe(**change)


def test_refused_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        train_video_codec(clips().astype(np.float32), tmp_path / "vae")
    with pytest.raises(ValueError, match="at least 15360 samples"):
        train_audio_codec(waves()[:, :9600], tmp_path / "vae")
    assert not any(tmp_path.iterdir())
