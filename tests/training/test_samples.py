"""Clips sampled while a model is trained: of the averaged weights, and without a trace in the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.training import samples
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.loop import train
from syncflow.training.samples import Sampler

pytestmark = pytest.mark.slow

CAPTIONS = ["a small red ball bounces", "a large blue ball falls", "a small red ball bounces"]
ALWAYS = 1e-9  # minutes


def latents_of(components: Components, seconds: float = 2.0) -> LatentSet:
    sequence, model = components.config.sequence.replace(seconds=seconds), components.config.ddit
    shape = (sequence.latent_frames, sequence.latent_height, sequence.latent_width)
    rng = np.random.default_rng(0)
    video = rng.normal(size=(3, model.video_channels, *shape))
    audio = rng.normal(size=(3, sequence.audio_tokens, model.audio_channels))
    return LatentSet(video.astype(np.float16), audio.astype(np.float16), CAPTIONS, sequence.fps, sequence.frame_times)


def trained(run: Path, sample_minutes: float, *steps: int) -> dict[str, torch.Tensor]:
    for count in steps:
        components = Components.load(bundled_model())
        latents = latents_of(components, 1.0)
        config = TrainConfig(
            stage="joint",
            steps=count,
            batch=2,
            compile=False,
            train_text=True,
            sample_minutes=sample_minutes,
            warmup=1,
            decay=0.0,
        )
        train(components.ddit, components.text, [latents], config, run, Sampler(components, latents, 1.0))
    return components.ddit.state_dict() | components.text.state_dict()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "STEPS", 2)


@pytest.mark.usefixtures("few_steps")
def test_training_is_the_same_to_the_bit_with_samples_and_through_an_interruption(tmp_path: Path) -> None:
    expected = trained(tmp_path / "without", 0.0, 3)
    found = trained(tmp_path / "with", ALWAYS, 2, 3)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    events = {}
    for name in ("without", "with"):
        events[name] = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events[name].Reload()
    assert events["without"].Tags()["images"] == []
    images = events["with"].Images("samples")
    assert [image.step for image in images] == [1, 2, 3]
    assert len({image.encoded_image_string for image in images}) == 3
    sounds = events["with"].Audio("samples/1")
    assert [sound.sample_rate for sound in sounds] == [48_000] * 3
    assert sounds[0].length_frames == 48_000
    assert events["with"].Tags()["audio"] == ["samples/0", "samples/1"]  # the captions are two


@pytest.mark.usefixtures("few_steps")
def test_samples_are_those_of_their_seeds_and_of_the_weights(tmp_path: Path) -> None:
    components = Components.load(bundled_model())
    sampler = Sampler(components, latents_of(components), 29 / 16)
    first, again = sampler(), sampler()
    assert list(first) == sorted(set(CAPTIONS))
    for caption, clip in first.items():
        assert clip.frames.shape == (29, 64, 64, 3) and len(clip.waveform) == 29 * 3000
        assert clip == again[caption]
    torch.nn.init.normal_(components.text.encoder.get_parameter("shared.weight"), std=1.0)
    assert all(first[caption] != clip for caption, clip in sampler().items())  # no text is kept


@pytest.mark.usefixtures("few_steps")
def test_a_syncphony_model_gets_the_sounds_of_clips() -> None:
    components = Components.load(bundled_model("syncphony-tiny"))
    latents = latents_of(components)
    found = Sampler(components, latents, 2.0)()
    for caption, clip in found.items():
        given = torch.from_numpy(latents.audio[CAPTIONS.index(caption)].astype(np.float32))
        expected = components.audio.decode(given[None], components.config.sequence.samples)[0].detach().numpy()
        np.testing.assert_allclose(clip.waveform, np.clip(expected, -1, 1), atol=1e-5)
