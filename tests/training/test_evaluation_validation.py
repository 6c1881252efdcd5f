"""Validation losses: against a hand computation, and what they may not depend on."""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.codecs.text import TextEncoder
from syncflow.engine.model import DDiT
from syncflow.training.data.latents import LatentSet
from syncflow.training.evaluation.validation import validation_losses

from .small_model import SMALL, TEXT, small_latents

NAMES = ["audio", "audio_driven", "video", "video_driven"]


@pytest.fixture
def text():
    torch.manual_seed(0)
    return TextEncoder.build(TEXT, SMALL.text_tokens)


def latents(count):
    return small_latents([f"c {i}" for i in range(count)])


def random_model():
    torch.manual_seed(0)
    model = DDiT(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_model_that_gives_zero_has_the_loss_of_zero(text):
    """Its loss is the mean square of data minus noise, over batches of 16 and 3 clips as over all of them."""
    model, data = DDiT(SMALL), latents(19)
    (
        torch.nn.init.zeros_(model.video.final_layer.linear.weight),
        torch.nn.init.zeros_(model.video.final_layer.linear.bias),
    )
    squares = {"video": 0.0, "audio": 0.0}
    for first in (0, 16):
        generator = torch.Generator().manual_seed(hash((5, first)) & (2**63 - 1))
        for name in squares:
            part = torch.from_numpy(getattr(data, name)[first : first + 16]).float()
            noise = torch.randn(part.shape, generator=generator)
            squares[name] += float((part - noise).square().flatten(1).mean(1).sum())
    found = validation_losses(model, text, data, seed=5)
    assert sorted(found) == NAMES
    for name, total in squares.items():
        assert found[name] == pytest.approx(total / 19, rel=1e-5)
        assert found[f"{name}_driven"] == pytest.approx(total / 19, rel=1e-5)


def test_the_same_seed_gives_the_same_losses_and_leaves_the_model_as_it_was(text):
    model, data = random_model(), latents(4)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert validation_losses(model, text, data, seed=1) == validation_losses(model, text, data, seed=1)
    assert validation_losses(model, text, data, seed=1) != validation_losses(model, text, data, seed=2)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_without_the_bridge_the_audio_does_not_depend_on_the_video(text):
    model, data = random_model(), latents(4)
    moved = LatentSet(data.video[::-1].copy(), data.audio, data.captions, data.fps, data.frame_times)
    losses = [
        [validation_losses(model, text, one, bridged=bridged) for one in (data, moved)] for bridged in (True, False)
    ]
    (read, read_moved), (alone, alone_moved) = losses
    assert read["audio_driven"] != read_moved["audio_driven"]
    assert alone["audio_driven"] == alone_moved["audio_driven"]
