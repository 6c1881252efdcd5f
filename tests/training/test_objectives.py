"""The objective: pairing, times, dropout, and the loss against its formula row by row."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from syncflow.engine.config import DDiTConfig
from syncflow.engine.cost.live_memory import LiveMemoryMode
from syncflow.engine.model import DDiT
from syncflow.training.config import TrainConfig
from syncflow.training.objectives import (
    Batch,
    FlowObjective,
    FlowSample,
    mean_weights,
    motion_aware,
    pair_by_transport,
    sample_flow,
    shift_time,
)
from syncflow.training.stages import check_stage, freeze_rest

SMALL = DDiTConfig(
    width=16,
    depth=2,
    heads=2,
    audio_heads=2,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
    adaptor_tokens="frame",
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(rows, *, video=(1, 1, 1, 1), audio=(1, 1), seed=0):
    generator = seeded(seed)
    ids = torch.randint(20, (rows, SMALL.text_tokens), generator=generator)
    lengths = torch.randint(1, SMALL.text_tokens + 1, (rows, 1), generator=generator)
    return Batch(
        torch.randn(rows, *video, generator=generator),
        torch.randn(rows, *audio, generator=generator),
        ids,
        (torch.arange(SMALL.text_tokens) < lengths).long(),
        torch.full((rows,), 16.0),
        (torch.arange(video[1]) + 0.5) / 4,
    )


@given(rows=st.integers(1, 6), width=st.integers(1, 5), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_transport_is_the_cheapest_of_all_pairings(rows, width, seed):
    noise, data = (torch.randn(rows, width, generator=seeded(seed + i), dtype=torch.float64) for i in range(2))
    order = pair_by_transport(noise, data)
    assert sorted(order.tolist()) == list(range(rows))
    costs = [(noise[list(p)] - data).square().sum().item() for p in itertools.permutations(range(rows))]
    assert (noise[order] - data).square().sum().item() == pytest.approx(min(costs))


def test_transport_finds_data_that_was_shuffled():
    data = torch.randn(16, 8, generator=seeded(0))
    shuffle = torch.randperm(16, generator=seeded(1))
    noise = data[shuffle] + 0.01 * torch.randn(16, 8, generator=seeded(2))
    assert torch.equal(shuffle[pair_by_transport(noise, data)], torch.arange(16))


ROWS = 4000


def share(mask):
    return mask.float().mean().item()


@pytest.mark.parametrize(("clean_video", "independent"), [(0.25, 0.25), (0.75, 0.15), (0.0, 0.5), (0.5, 0.0), (0, 0)])
@pytest.mark.parametrize("stage", ["audio", "joint"])
def test_shares_of_unequal_times(stage, clean_video, independent):
    config = TrainConfig(stage=stage, clean_video=clean_video, independent=independent, optimal_transport=False)
    sample = sample_flow(batch(ROWS), config, seeded(0))
    clean = sample.t_video == 1
    free = ~clean & (sample.t_audio != sample.t_video)
    assert share(clean) == pytest.approx(clean_video, abs=0.03)
    assert share(free) == pytest.approx(independent, abs=0.03)
    torch.testing.assert_close(sample.learn_video, (~clean).float() * ROWS / (~clean).sum().clamp(min=1))
    correlation = torch.corrcoef(torch.stack((sample.t_video[free], sample.t_audio[free])))[0, 1] if free.any() else 0
    assert abs(correlation) < 0.1
    if clean.any():
        assert sample.t_audio[clean].mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_video_stage_shares_one_time():
    config = TrainConfig(stage="video", clean_video=0.5, independent=0.5, optimal_transport=False)
    sample = sample_flow(batch(ROWS), config, seeded(0))
    assert torch.equal(sample.t_video, sample.t_audio)
    assert torch.equal(sample.learn_video, torch.ones(ROWS))
    assert (sample.t_video < 1).all()


@pytest.mark.parametrize("text_dropout", [0.0, 0.1, 1.0])
def test_text_dropout(text_dropout):
    config = TrainConfig(text_dropout=text_dropout, optimal_transport=False)
    dropped = sample_flow(batch(ROWS), config, seeded(0)).drop_text
    assert dropped.dtype == torch.bool
    assert share(dropped) == pytest.approx(text_dropout, abs=0.02)


def test_times_are_one_to_a_stratum():
    sample = sample_flow(batch(64), TrainConfig(stage="video", optimal_transport=False), seeded(0))
    assert sorted((sample.t_video * 64).floor().tolist()) == list(range(64))
    assert (sample.t_video.diff() < 0).any()


@given(shift=st.floats(1, 10), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_time_shift_bends_training_times_towards_noise(shift, seed):
    even, bent = (
        sample_flow(batch(50), TrainConfig(time_shift=s, optimal_transport=False), seeded(seed)).t_video
        for s in (1.0, shift)
    )
    torch.testing.assert_close(bent, even / (even + shift * (1 - even)))
    assert (bent <= even + 1e-6).all()


def test_logit_normal_times_are_the_sigmoid_of_standard_normals():
    config = TrainConfig(times="logit-normal", optimal_transport=False)
    times = sample_flow(batch(2048), config, seeded(0)).t_video
    values = times.double().logit()
    assert scipy.stats.kstest(values.numpy(), "norm").statistic < 0.002  # one to a stratum
    assert times.dtype == torch.float32 and times.min() >= 0 and times.max() <= 1
    shifted = sample_flow(batch(2048), config.replace(time_shift=3.0), seeded(0)).t_video
    torch.testing.assert_close(shifted.double().logit(), values - math.log(3), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="times is 'cosine'; it must be one of uniform, logit-normal"):
        TrainConfig(times="cosine")  # type: ignore[arg-type]


@given(t=st.floats(0, 1), shift=st.floats(0.1, 10))
def test_shift_time_keeps_the_ends_and_has_an_inverse(t, shift):
    time = torch.tensor([0.0, t, 1.0], dtype=torch.float64)
    bent = shift_time(time, shift)
    assert (bent[0], bent[2]) == (0, 1)
    torch.testing.assert_close(shift_time(bent, 1 / shift), time)


def test_a_draw_depends_on_its_generator_alone():
    config = TrainConfig(stage="joint")
    torch.manual_seed(1)
    first = sample_flow(batch(8), config, seeded(3))
    torch.manual_seed(2)
    again, other = sample_flow(batch(8), config, seeded(3)), sample_flow(batch(8), config, seeded(4))
    for name in vars(first).keys() - {"bridged"}:  # None without dropout of the bridge
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert name in ("drop_text", "learn_video") or not torch.equal(getattr(first, name), getattr(other, name))


def test_transport_reorders_the_same_noise_in_both_modalities():
    shape = {"video": (2, 2, 2, 2), "audio": (4, 3)}
    given = batch(8, **shape)
    paired, plain = (
        sample_flow(given, TrainConfig(stage="joint", optimal_transport=on), seeded(0)) for on in (True, False)
    )

    def joint(video, audio):
        return torch.cat((video.flatten(1), audio.flatten(1)), 1)

    noise, data = joint(plain.noise_video, plain.noise_audio), joint(given.video, given.audio)
    order = pair_by_transport(noise, data)
    assert torch.equal(joint(paired.noise_video, paired.noise_audio), noise[order])
    assert (noise[order] - data).square().sum() < (noise - data).square().sum()
    assert torch.equal(paired.t_video, plain.t_video)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_motion_aware_loss_is_syncphonys(weight):
    error, clean = (torch.randn(2, 3, 4, 2, 2, generator=seeded(i), dtype=torch.float64) for i in range(2))
    expected = torch.zeros(2, dtype=torch.float64)
    for row in range(2):
        for frame in range(4):
            squared = error[row, :, frame].square().sum()
            if frame:
                motion = clean[row, :, frame] - clean[row, :, frame - 1]
                squared = squared + weight * (error[row, :, frame] * motion).square().sum()
            expected[row] += squared
    torch.testing.assert_close(motion_aware(error, clean, weight), expected / clean[0].numel())


class Words(nn.Module):
    """Stands in for the text encoder: a table of states."""

    def __init__(self):
        super().__init__()
        self.states = nn.Embedding(20, SMALL.text_width)

    def forward(self, ids, mask):
        return self.states(ids)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model, words = DDiT(SMALL), Words()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    return model, words


def given_sample(rows, data):
    generator = seeded(5)
    return FlowSample(
        torch.randn(data.video.shape, generator=generator),
        torch.randn(data.audio.shape, generator=generator),
        torch.tensor([0.3, 1.0, 0.6, 0.9])[:rows],
        torch.tensor([0.3, 0.2, 0.6, 0.4])[:rows],
        torch.tensor([False, True, True, False])[:rows],
        mean_weights(torch.tensor([True, False, True, True])[:rows]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["video", "audio", "joint"])
@pytest.mark.parametrize("motion_weight", [0.0, 1.0])
def test_the_loss_is_the_formula_row_by_row(parts, stage, motion_weight):
    model, words = parts
    data = batch(4, video=(3, 3, 4, 4), audio=(7, 5))
    sample = given_sample(4, data)
    config = TrainConfig(stage=stage, motion_weight=motion_weight)
    actual = FlowObjective(model, words, config)(data, sample)

    video, audio = [], []
    for row in range(4):
        one = slice(row, row + 1)
        t_v, t_a = sample.t_video[one], sample.t_audio[one]
        noise_v, noise_a = sample.noise_video[one], sample.noise_audio[one]
        states = model.video.y_embedder.y_embedding[None] if sample.drop_text[row] else words(data.ids[one], None)
        text = model.video.condition(states, data.mask[one].sum(1))
        z_v, z_a = noise_v + t_v * (data.video[one] - noise_v), noise_a + t_a * (data.audio[one] - noise_a)
        velocities = model(z_v, z_a, t_v, t_a, data.fps[one], text, torch.tensor([0]))
        error = velocities.video - (data.video[one] - noise_v)
        if sample.learn_video[row]:
            video.append(motion_aware(error, data.video[one], motion_weight).mean())
        audio.append((velocities.audio - (data.audio[one] - noise_a)).square().mean())
    expected_video, expected_audio = torch.stack(video).mean(), torch.stack(audio).mean()

    expected = {"video": expected_video, "audio": expected_audio, "joint": expected_video + expected_audio}[stage]
    torch.testing.assert_close(actual["loss"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual["video"], expected_video.detach(), rtol=1e-4, atol=1e-5)
    assert ("audio" in actual) is (stage != "video")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "train_text", "learning"),
    [
        ("video", False, {"video"}),
        ("video", True, {"video", "words"}),
        ("audio", False, {"audio"}),
        ("audio", True, {"audio"}),
        ("joint", False, {"video", "audio"}),
        ("joint", True, {"video", "audio", "words"}),
    ],
)
def test_gradients_reach_what_a_stage_trains(parts, stage, train_text, learning):
    model, words = parts
    data = batch(4, video=(3, 3, 4, 4), audio=(7, 5))
    config = TrainConfig(stage=stage, train_text=train_text)
    freeze_rest(model, words, config)
    FlowObjective(model, words, config)(data, given_sample(4, data))["loss"].backward()
    for name, module in (("video", model.video), ("audio", model.audio), ("words", words)):
        reached = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in module.parameters()]
        assert all(reached) if name in learning else not any(reached), name


def test_a_batch_of_clean_video_alone_has_no_video_loss(parts):
    model, words = parts
    data = batch(2, video=(3, 3, 4, 4), audio=(7, 5))
    sample = given_sample(2, data)
    silent = FlowSample(
        sample.noise_video, sample.noise_audio, torch.ones(2), sample.t_audio, sample.drop_text, torch.zeros(2)
    )
    parts = FlowObjective(model, words, TrainConfig(stage="joint"))(data, silent)
    assert parts["video"] == 0
    assert torch.equal(parts["loss"].detach(), parts["audio"])


def bridged_parts(bridge):
    torch.manual_seed(0)
    model, words = DDiT(SMALL.replace(bridge=bridge, first_block=int(bridge == "audio_rope"))), Words()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    return model, words


def velocities_by_hand(model, words, data, sample, row, t_v, t_a, bridged):
    """Of one row: (v_v, v_a), and the noise and data that they belong to."""
    one = slice(row, row + 1)
    noise_v, noise_a = sample.noise_video[one], sample.noise_audio[one]
    states = model.video.y_embedder.y_embedding[None] if sample.drop_text[row] else words(data.ids[one], None)
    text = model.video.condition(states, data.mask[one].sum(1))
    z_v, z_a = noise_v + t_v * (data.video[one] - noise_v), noise_a + t_a * (data.audio[one] - noise_a)
    given = torch.tensor([t_v]), torch.tensor([t_a]), data.fps[one], text, torch.tensor([0])
    found = model(z_v, z_a, *given, bridged=torch.tensor([bridged]))
    return found.video - (data.video[one] - noise_v), found.audio - (data.audio[one] - noise_a)


def test_sync_is_the_motion_aware_loss_of_the_video_with_clean_audio():
    """Syncphony: audio at its flow time 1, and rows that skip the bridge as the off-sync model does."""
    model, words = bridged_parts("audio_rope")
    data = batch(4, video=(3, 3, 4, 4), audio=(7, 5))
    config = TrainConfig(stage="sync", motion_weight=1.0, bridge_dropout=0.5, optimal_transport=False)
    sample = sample_flow(data, config, seeded(3))
    assert (
        (sample.t_audio == 1).all() and sample.learn_video.all() and sample.bridged.any() and not sample.bridged.all()
    )
    actual = FlowObjective(model, words, config)(data, sample)
    losses = []
    for row in range(4):
        t_v, bridged = sample.t_video[row].item(), bool(sample.bridged[row])
        error, _ = velocities_by_hand(model, words, data, sample, row, t_v, 1.0, bridged)
        losses.append(motion_aware(error, data.video[row : row + 1], 1.0).mean())
    torch.testing.assert_close(actual["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert actual.keys() == {"loss", "video"}


@pytest.mark.parametrize(("of_video", "of_audio"), [(0.1, 0.3), (0.0, 0.3), (0.1, 0.0), (0.0, 0.0)])
def test_cross_task_synergy_is_harmonys(of_video, of_audio):
    """L = L_joint + 0.1 L(video | clean audio) + 0.3 L(audio | clean video), with the same clips and noise."""
    model, words = bridged_parts("global_local")
    data = batch(3, video=(3, 3, 4, 4), audio=(7, 5))
    config = TrainConfig(stage="joint", clean_video=0, independent=0, synergy_video=of_video, synergy_audio=of_audio)
    sample = sample_flow(data, config, seeded(3))
    assert torch.equal(sample.t_video, sample.t_audio)
    actual = FlowObjective(model, words, config)(data, sample)
    expected = torch.zeros(())
    for row in range(3):
        t = sample.t_video[row].item()
        by_hand = [
            velocities_by_hand(model, words, data, sample, row, *times, True) for times in ((t, t), (t, 1.0), (1.0, t))
        ]
        video, audio = ([errors[i].square().mean() for errors in by_hand] for i in range(2))
        expected = expected + (video[0] + audio[0] + of_video * video[1] + of_audio * audio[2]) / 3
    torch.testing.assert_close(actual["loss"], expected, rtol=1e-4, atol=1e-5)
    assert ("video_driven" in actual, "audio_driven" in actual) == (bool(of_video), bool(of_audio))


def test_rows_that_see_clean_video_have_no_part_in_its_driven_loss():
    """Nothing of its noise is left in a clean video, so that its velocity cannot be told."""
    model, words = bridged_parts("global_local")
    data = batch(6, video=(3, 3, 4, 4), audio=(7, 5))
    config = TrainConfig(stage="joint", clean_video=0.5, independent=0, synergy_video=1.0, optimal_transport=False)
    sample = sample_flow(data, config, seeded(3))
    rows = (sample.t_video < 1).nonzero()[:, 0].tolist()
    assert 0 < len(rows) < 6
    actual = FlowObjective(model, words, config)(data, sample)["video_driven"]
    losses = [
        velocities_by_hand(model, words, data, sample, row, sample.t_video[row].item(), 1.0, True)[0].square().mean()
        for row in rows
    ]
    torch.testing.assert_close(actual, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bridge", "settings", "message"),
    [
        ("adaptor", {"stage": "sync"}, "a model with the bridge adaptor has no stage sync; it has video, audio, joint"),
        ("audio_rope", {"stage": "audio"}, "a model with the bridge audio_rope has no stage audio"),
        ("none", {"stage": "joint"}, "a model with the bridge none has no stage joint; it has video"),
        ("adaptor", {"stage": "joint", "synergy_audio": 0.3}, "cross-task synergy needs the bridge global_local"),
    ],
)
def test_a_stage_belongs_to_a_bridge(bridge, settings, message):
    with pytest.raises(ValueError, match=message):
        check_stage(TrainConfig(**settings), SMALL.replace(bridge=bridge))


@pytest.mark.parametrize("bridge", ["adaptor", "audio_rope", "global_local"])
def test_layers_computed_again_give_the_same_gradients_in_less_memory(bridge):
    model, words = bridged_parts(bridge)
    data = batch(4, video=(3, 3, 8, 8), audio=(7, 5))
    found = {}
    for recompute in (False, True):
        config = TrainConfig(stage="joint", clean_video=0, independent=0, recompute=recompute)
        objective = FlowObjective(model, words, config)
        model.zero_grad()
        with LiveMemoryMode() as memory:
            objective(data, sample_flow(data, config, seeded(3)))["loss"].backward()
        assert "layer" not in vars(model.video)  # the method of the class again
        found[recompute] = (
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
            memory.peak,
        )
    (gradients, peak), (again, less) = found[False], found[True]
    assert gradients.keys() == again.keys() and less < 0.8 * peak
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
