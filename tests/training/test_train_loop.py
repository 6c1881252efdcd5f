"""The loop: a killed run goes on as if it had not been, checkpoints, averaged weights, the learning rate."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from syncflow.training.average import Average
from syncflow.training.batches import Batches
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.loop import train
from syncflow.training.objectives import FlowObjective, sample_flow
from syncflow.training.schedule import rate_factor, share_done

from .small_model import CAPTIONS, config, parts, states

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["video", "joint"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(stage, latents, tmp_path, monkeypatch):
    settings = config(stage=stage, steps=4, train_text=True, checkpoint_minutes=0.0)
    straight, straight_words = parts()
    train(straight, straight_words, [latents], settings, tmp_path / "straight")

    class Killed(Exception):
        pass

    def kill(self, step, update=Average.update):
        if step == 2:
            raise Killed
        update(self, step)

    model, words = parts()
    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", kill)
        with pytest.raises(Killed):
            train(model, words, [latents], settings, tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 2

    resumed, resumed_words = parts()
    train(resumed, resumed_words, [latents], settings, tmp_path / "killed")
    expected, actual = states(straight, straight_words), states(resumed, resumed_words)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_a_finished_run_is_left_as_it_is(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(steps=2), tmp_path)
    again, again_words = parts()
    train(again, again_words, [latents], config(steps=2), tmp_path)
    torch.testing.assert_close(states(again, again_words), states(model, words), rtol=0, atol=0)


def test_the_model_holds_the_averages_and_the_checkpoint_the_last_weights(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(stage="video", steps=3), tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter, mean in zip(trained, saved["average"], strict=True):
        assert torch.equal(parameter, mean)
    assert not torch.equal(saved["model"]["video.x_embedder.proj.weight"], model.video.x_embedder.proj.weight)


def test_a_checkpoint_of_another_stage_is_refused(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(stage="video", steps=1), tmp_path)
    with pytest.raises(ValueError, match="belongs to stage video, not to stage audio; choose another run folder"):
        train(model, words, [latents], config(stage="audio", steps=1), tmp_path)


def test_a_stage_that_goes_on_may_keep_frozen_weights_as_they_are(latents, tmp_path):
    train(*parts(), [latents], config(stage="audio", steps=1), tmp_path)
    for keep in (False, True):
        model, words = parts()
        torch.nn.init.normal_(model.video.final_layer.linear.weight)
        before = states(model, words)
        train(model, words, [latents], config(stage="audio", steps=2), tmp_path, keep_frozen=keep)
        after = states(model, words)
        assert torch.equal(before["video.final_layer.linear.weight"], after["video.final_layer.linear.weight"]) is keep
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_run_goes_on_with_another_weight_decay(latents, tmp_path):
    found = []
    for decay in (0.01, 10.0):
        model, words = parts()
        run = tmp_path / f"decay-{decay}"
        train(model, words, [latents], config(stage="video", steps=2), run)
        train(model, words, [latents], config(stage="video", steps=4, weight_decay=decay), run)
        saved = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
        found.append(saved["video.spatial_blocks.0.attn.qkv.weight"])
    assert found[1].norm() < 0.97 * found[0].norm()


def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_its_checkpoint(latents, tmp_path):
    settings = config(stage="joint", checkpoint_minutes=0.0, optimal_transport=False)
    train(*parts(), [latents], settings.replace(steps=2), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    broken = replace(latents, audio=np.full_like(latents.audio, np.nan))
    with pytest.raises(ValueError, match="the gradient of step 3 is not finite; the last checkpoint is kept"):
        train(*parts(), [broken], settings, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("other", ["bridge", "optimisers", "damage"])
def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(other, latents, tmp_path):
    train(*parts(), [latents], config(stage="joint", steps=1), tmp_path)
    settings = config(stage="joint", steps=2, train_text=other == "optimisers")
    if other == "damage":
        file = tmp_path / "checkpoint.pt"
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"checkpoint.pt is damaged or belongs to a run of other settings \(.+\); remove"
    ):
        train(*parts("global_local" if other == "bridge" else "adaptor"), [latents], settings, tmp_path)


def test_a_checkpoint_is_written_beside_and_renamed(latents, tmp_path, monkeypatch):
    model, words = parts()
    train(model, words, [latents], config(steps=1), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def cut(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(OSError, match="no space left"):
        train(model, words, [latents], config(steps=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_says_what_it_is(latents, tmp_path):
    train(*parts(), [latents], config(steps=1, seed=3), tmp_path)
    assert TrainConfig.from_dict(json.loads((tmp_path / "train.json").read_text())) == config(steps=1, seed=3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_another_seed_trains_otherwise(latents, tmp_path):
    runs = []
    for seed in (0, 1):
        model, words = parts()
        train(model, words, [latents], config(steps=1, seed=seed), tmp_path / str(seed))
        runs.append(states(model, words))
    assert not torch.equal(runs[0]["video.final_layer.linear.weight"], runs[1]["video.final_layer.linear.weight"])


def test_training_learns(latents, tmp_path):
    """Twenty steps on five clips: the loss on the training draws falls."""
    model, words = parts()
    settings = config(stage="joint", steps=30, batch=16, lr=1e-2, matrix_lr=1e-2)
    batches = Batches([latents], words, settings, torch.device("cpu"))

    def loss():
        total = 0.0
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            data = batches.at(generator)
            with torch.no_grad():
                total += FlowObjective(model, words, settings)(data, sample_flow(data, settings, generator))[
                    "loss"
                ].item()
        return total

    before = loss()
    train(model, words, [latents], settings, tmp_path)
    assert loss() < 0.8 * before


def test_training_on_several_lengths(latents, tmp_path):
    longer = LatentSet(
        np.repeat(latents.video, 2, 2), np.repeat(latents.audio, 2, 1), CAPTIONS, 16, (0.125, 0.375, 0.625, 0.875)
    )
    model, words = parts()
    before = states(model, words)
    train(model, words, [latents, longer], config(stage="joint", steps=4), tmp_path)
    after = states(model, words)
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_samples_are_of_the_averaged_weights_in_evaluation_mode(latents, tmp_path):
    model, words = parts()
    seen = []

    def sampler():
        assert not any(module.training for module in (*model.modules(), *words.modules()))
        seen.append(states(model, words))
        raise ValueError("the model computed NaN")  # is said, and training goes on

    settings = config(stage="video", steps=3, train_text=True, sample_minutes=1e-9, checkpoint_minutes=0.0)
    train(model, words, [latents], settings, tmp_path, sampler)
    assert len(seen) == 3
    assert all(torch.equal(seen[-1][name], value) for name, value in states(model, words).items())
    assert model.video.training and words.training and not model.audio.training


def test_a_run_ends_with_its_steps_or_its_minutes():
    assert share_done(3, 1000.0, steps=4, minutes=0.0) == 0.75
    assert share_done(3, 30.0, steps=4, minutes=1.0) == 0.75
    assert share_done(1, 30.0, steps=4, minutes=1.0) == 0.5


@given(step=st.integers(0, 500), warmup=st.integers(0, 300), decay=st.floats(0, 1), progress=st.floats(0, 1))
def test_learning_rate_factor(step, warmup, decay, progress):
    factor = rate_factor(progress, step, TrainConfig(warmup=warmup, decay=decay))
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    assert 0 <= factor <= warm
    if progress <= 1 - decay:
        assert factor == pytest.approx(warm)
    elif progress < 1:
        assert factor == pytest.approx(warm * (1 - progress) / max(decay, 1e-9))
    if progress == 1 and decay > 0:
        assert factor == 0


def test_average_formula():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average, expected = Average([module], decay=0.5), 0.0
    for step in range(12):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
        average.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * (step + 1)
        assert average.mean[0].item() == pytest.approx(expected, rel=1e-5)
    average.store()
    assert module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_not_averaged():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert len(Average([module], decay=0.9).mean) == 1
