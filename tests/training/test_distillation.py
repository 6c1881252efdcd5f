"""Distillation: segments, their batches and loss by hand, and a student that the engine samples in its own steps."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from syncflow import Engine, preset
from syncflow.cli import app
from syncflow.engine.config import DDiTConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.model import DDiT
from syncflow.engine.types import Request
from syncflow.training import recipes
from syncflow.training.average import Average
from syncflow.training.config import TrainConfig
from syncflow.training.distillation import (
    DistillationObjective,
    SegmentBatches,
    segment,
    student_config,
)
from syncflow.training.loop import train
from syncflow.training.objectives import motion_aware
from syncflow.training.stages import freeze_rest
from syncflow.training.trajectories import TrajectorySet

from .small_model import CAPTIONS, parts, states

CPU = torch.device("cpu")
STORED, COUNT = 4, 6
TIMES = np.array([0.0, 0.1, 0.25, 0.5, 1.0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def trajectories() -> TrajectorySet:
    """Of a model whose video is finished before its audio begins; one of the six has a known video."""
    rng = np.random.default_rng(0)
    return TrajectorySet(
        rng.normal(size=(COUNT, STORED + 1, 2, 2, 4, 4)).astype(np.float32),
        rng.normal(size=(COUNT, STORED + 1, 6, 3)).astype(np.float32),
        TIMES,
        TIMES**2,
        STORED,
        np.arange(COUNT) == 2,
        "video",
        np.arange(COUNT) == 2,
        [CAPTIONS[i % 3] for i in range(COUNT)],
        16,
        (0.125, 0.375),
    )


def config(**changes) -> TrainConfig:
    plain = {"stage": "distill", "steps": 4, "batch": 4, "warmup": 1, "compile": False, "student_steps": 2}
    return TrainConfig(**plain | changes)


def test_a_segment_by_hand():
    latents = torch.tensor([[[1.0, 0.0], [2.0, 4.0], [6.0, 0.0]]]).expand(4, 3, 2)
    times = torch.tensor([0.0, 0.2, 1.0])
    point, t, velocity = segment(latents, times, torch.tensor([0.0, 0.5, 1.25, 2.0]))
    torch.testing.assert_close(t, torch.tensor([0.0, 0.1, 0.4, 1.0]))
    torch.testing.assert_close(point, torch.tensor([[1.0, 0.0], [1.5, 2.0], [3.0, 3.0], [6.0, 0.0]]))
    torch.testing.assert_close(velocity, torch.tensor([[5.0, 20.0], [5.0, 20.0], [5.0, -5.0], [0.0, 0.0]]))


def test_eulers_steps_with_the_targets_reach_the_end():
    latents, times = torch.randn(3, 5, 2, 2, generator=seeded(0)), torch.tensor(TIMES).float()
    z = latents[:, 0]
    for j in range(4):
        _, t, velocity = segment(latents, times, torch.full((3,), float(j)))
        z = z + (times[j + 1] - t)[:, None, None] * velocity
    torch.testing.assert_close(z, latents[:, -1])


@pytest.mark.parametrize("student_steps", [1, 2, 4])
@pytest.mark.parametrize("towers", ["video", "audio", "both"])
def test_rows_are_the_steps_of_the_student(trajectories, towers, student_steps):
    _, words = parts()
    settings = config(student_towers=towers, student_steps=student_steps, batch=64)
    batch = SegmentBatches([trajectories], words, settings, CPU).at(seeded(0))
    stride, grids = STORED // student_steps, (TIMES, TIMES**2)
    seen = set()
    for row in range(64):
        z_v, z_a = batch.video[row].numpy(), batch.audio[row].numpy()
        i = next(i for i in range(COUNT) if np.array_equal(trajectories.video[i, -1], batch.clean_video[row].numpy()))
        t_v, t_a = (
            int(np.abs(grid - t.item()).argmin())
            for grid, t in zip(grids, (batch.t_video[row], batch.t_audio[row]), strict=True)
        )
        assert np.array_equal(trajectories.video[i, t_v], z_v) and np.array_equal(trajectories.audio[i, t_a], z_a)
        assert t_v % stride == t_a % stride == 0
        moves_video, moves_audio = t_v < STORED, t_v == STORED  # the video leads
        assert moves_audio or t_a == 0
        assert bool(batch.learn_video[row]) == (moves_video and i != 2) and bool(batch.learn_audio[row]) == moves_audio
        assert bool(batch.no_text[row]) is (i == 2)
        ids, mask = words.tokenize([trajectories.captions[i]])
        assert torch.equal(batch.ids[row], ids[0]) and torch.equal(batch.mask[row], mask[0])
        if moves_video:
            change = trajectories.video[i, t_v + stride] - z_v
            expected = change / (TIMES[t_v + stride] - TIMES[t_v])
            np.testing.assert_allclose(batch.target_video[row], expected, rtol=1e-4, atol=1e-4)
        else:
            change, grid = trajectories.audio[i, t_a + stride] - z_a, grids[1]
            expected = change / (grid[t_a + stride] - grid[t_a])
            np.testing.assert_allclose(batch.target_audio[row], expected, rtol=1e-4, atol=1e-4)
        seen.add((i, t_v, t_a))
    learnt = {"video": {True}, "audio": {False}, "both": {True, False}}[towers]
    assert {t_v < STORED for _, t_v, _ in seen} == learnt
    assert (2 in {i for i, _, _ in seen}) is (towers != "video")
    assert batch.learn_video.any() == (towers != "audio")


@pytest.mark.parametrize(("student_steps", "first"), [(1, 1), (2, 1), (4, 1), (4, 3), (2, 2)])
def test_beginnings_teach_the_first_steps(trajectories, student_steps, first):
    _, words = parts()
    known = np.zeros(COUNT, dtype=bool)
    stride = STORED // student_steps
    points = stride * first + 1
    beginnings = dataclasses.replace(
        trajectories,
        video=trajectories.video[:, :points] + 9,
        audio=trajectories.audio[:, :points],
        known=known,
        whole=False,
    )
    settings = config(student_towers="video", student_steps=student_steps, batch=128)
    batches = SegmentBatches([trajectories, beginnings], words, settings, CPU)
    whole_steps = (COUNT - 1) * student_steps  # of those without a known video
    assert torch.allclose(batches.shares, torch.tensor([whole_steps, COUNT * first]) / 128)
    batch = SegmentBatches([beginnings], words, settings, CPU).at(seeded(0))
    assert (
        set(batch.t_video.tolist()) == set(np.float32(TIMES[: points - 1 : stride]))
        and batch.learn_video.all()
        and not batch.learn_audio.any()
    )
    assert not batch.clean_video.any()
    both = SegmentBatches([beginnings], words, settings.replace(student_towers="both"), CPU).at(seeded(0))
    assert not both.learn_audio.any()  # which was not sampled, with one step of the student neither
    for row in range(128):
        i, at = next(
            (i, at)
            for i, at in product(range(COUNT), range(0, points - 1, stride))
            if np.array_equal(beginnings.video[i, at], batch.video[row].numpy())
        )
        velocity = (beginnings.video[i, at + stride] - beginnings.video[i, at]) / (TIMES[at + stride] - TIMES[at])
        np.testing.assert_allclose(batch.target_video[row], velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("given", "learnt"), [("video", (False, True)), ("audio", (True, False))])
def test_what_is_given_is_not_learnt(trajectories, given, learnt):
    """In a model whose modalities share their time."""
    _, words = parts()
    shared = dataclasses.replace(trajectories, lead=0, given=given, known=np.ones(COUNT, bool))
    batch = SegmentBatches([shared], words, config(batch=16), CPU).at(seeded(0))
    assert (bool(batch.learn_video.all()), bool(batch.learn_audio.all())) == learnt
    assert (bool(batch.learn_video.any()), bool(batch.learn_audio.any())) == learnt
    assert set(batch.t_video.tolist()) == {0.0, 0.25} and set(batch.t_audio.tolist()) == {0.0, 0.0625}
    clean = SegmentBatches([dataclasses.replace(shared, clean=True)], words, config(batch=16), CPU).at(seeded(0))
    times = {"video": batch.t_video, "audio": batch.t_audio, given: torch.ones(16)}
    assert torch.equal(clean.t_video, times["video"]) and torch.equal(clean.t_audio, times["audio"])


def test_trajectories_that_teach_a_tower_nothing_are_refused(trajectories):
    given = dataclasses.replace(trajectories, known=np.ones(COUNT, bool))
    with pytest.raises(ValueError, match=r"of 6 trajectories none has a video to learn; .* a lower clean_video"):
        SegmentBatches([given], parts()[1], config(student_towers="video"), CPU)


def test_rows_between_the_steps_lie_on_the_chord(trajectories):
    _, words = parts()
    settings = config(student_steps=1, student_towers="video", between_steps=1.0, batch=200)
    batch = SegmentBatches([trajectories], words, settings, CPU).at(seeded(0))
    assert 0.4 < batch.t_video.mean() < 0.6 and len(batch.t_video.unique()) > 150
    ends = batch.video + (1 - batch.t_video)[:, None, None, None, None] * batch.target_video
    torch.testing.assert_close(ends, batch.clean_video, rtol=1e-4, atol=1e-4)


def test_a_batch_depends_on_its_generator_alone(trajectories):
    _, words = parts()
    batches = SegmentBatches([trajectories, trajectories], words, config(between_steps=0.5), CPU)
    first, again, other = (batches.at(seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    assert not torch.equal(first.video, other.video)


@pytest.mark.slow
@pytest.mark.parametrize("motion_weight", [0.0, 1.0])
@pytest.mark.parametrize("towers", ["video", "audio", "both"])
def test_the_loss_is_the_formula_row_by_row(trajectories, towers, motion_weight):
    model, words = parts()
    settings = config(student_towers=towers, batch=8, motion_weight=motion_weight)
    batch = SegmentBatches([trajectories], words, settings, CPU).at(seeded(1))
    actual = DistillationObjective(model, words, settings)(batch)

    video, audio = [], []
    for row in range(8):
        one = slice(row, row + 1)
        null = model.null_text[None]
        states_of_row = null if batch.no_text[row] else words(batch.ids[one], None)
        length = torch.tensor([null.shape[1]]) if batch.no_text[row] else batch.mask[one].sum(1)
        text = model.condition(states_of_row, length)
        latents = batch.video[one], batch.audio[one], batch.t_video[one], batch.t_audio[one]
        found = model(*latents, batch.fps[one], text, torch.tensor([0]), frame_times=batch.frame_times)
        if batch.learn_video[row]:
            error = found.video - batch.target_video[one]
            video.append(motion_aware(error, batch.clean_video[one], motion_weight).mean())
        if batch.learn_audio[row]:
            audio.append((found.audio - batch.target_audio[one]).square().mean())
    means = {name: torch.stack(each).mean() for name, each in (("video", video), ("audio", audio)) if each}
    means = {name: mean for name, mean in means.items() if towers in (name, "both")}
    torch.testing.assert_close(actual["loss"], sum(means.values()), rtol=1e-4, atol=1e-5)
    assert {name: value.item() for name, value in actual.items() if name != "loss"} == {
        name: pytest.approx(mean.item(), rel=1e-4) for name, mean in means.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("towers", "moving"), [("video", ("video.",)), ("audio", ("audio.",)), ("both", ("video.", "audio."))]
)
def test_the_towers_in_training_move_and_nothing_else(trajectories, towers, moving, tmp_path):
    model, words = parts()
    before = states(model, words)
    train(model, words, [trajectories], config(student_towers=towers, batch=16, steps=2, train_text=True), tmp_path)
    after = states(model, words)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if not name.startswith(moving)} == set()
    assert {f"{tower}." for tower in ("video", "audio") if any(n.startswith(f"{tower}.") for n in moved)} == set(moving)


def test_a_bridge_through_which_the_video_reads_learns_too():
    shape = DDiTConfig(width=8, depth=1, heads=2, audio_heads=2, bridge="global_local")
    model, words = DDiT(shape), parts()[1]
    freeze_rest(model, words, config(student_towers="both"))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(trajectories, tmp_path, monkeypatch):
    settings = config(steps=4, checkpoint_minutes=0.0, between_steps=0.5)
    straight, words = parts()
    train(straight, words, [trajectories], settings, tmp_path / "straight")

    class Killed(Exception):
        pass

    def kill(self, step, update=Average.update):
        if step == 2:
            raise Killed
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", kill)
        with pytest.raises(Killed):
            train(*parts(), [trajectories], settings, tmp_path / "killed")
    resumed, words = parts()
    train(resumed, words, [trajectories], settings, tmp_path / "killed")
    expected, actual = states(straight, words), states(resumed, words)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


@pytest.mark.slow
def test_a_student_learns(trajectories, tmp_path):
    """That latents grow by the same velocity everywhere."""
    model, words = parts()
    video = trajectories.video[:, :1] + 2 * trajectories.times_video[:, None, None, None, None]
    audio = trajectories.audio[:, :1] - 2 * trajectories.times_audio[:, None, None]
    growing = dataclasses.replace(trajectories, video=video.astype(np.float32), audio=audio.astype(np.float32))
    settings = config(steps=40, batch=16, lr=1e-2, matrix_lr=1e-2)
    objective = DistillationObjective(model, words, settings)
    batch = SegmentBatches([growing], words, settings.replace(batch=64), CPU).at(seeded(9))
    before = objective(batch)["loss"].item()
    train(model, words, [growing], settings, tmp_path)
    assert objective(batch)["loss"].item() < 0.5 * before


def test_a_student_has_the_teachers_grid_and_no_guidance():
    teacher = preset("syncflow-tiny")
    student = student_config(teacher, Request("a clip"), 4)
    assert student.name == "syncflow-tiny-4step"
    assert student.sampling == teacher.sampling.replace(steps=4, guidance=1.0, v2a_sync_guidance=0.0)
    assert student.replace(name=teacher.name, sampling=teacher.sampling) == teacher
    kept = student_config(teacher, Request("a clip"), 4, "video").sampling
    assert kept == student.sampling.replace(v2a_sync_guidance=teacher.sampling.v2a_sync_guidance) != student.sampling
    further = student_config(student, Request("a clip", shift=2.0, video_lead=0.5), 2)
    assert further.name == "syncflow-tiny-2step"
    assert (further.sampling.shift, further.sampling.video_lead) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_steps": 0}, "student_steps is 0; it must be from 1 to 64"),
        ({"trajectories": 0}, "trajectories is 0; it must be at least 1"),
        ({"beginnings": -1}, "beginnings is -1; it must be 0 \\(none\\) or more"),
        ({"beginning_steps": 3}, "beginning_steps is 3; it must be from 1 to the student's 2"),
        ({"student_towers": "left"}, "student_towers is 'left'; it must be one of video, audio, both"),
        ({"between_steps": 1.5}, "between_steps is 1.5; it must be from 0 to 1"),
        ({"lora": 4}, "an adapter is one of the video tower alone; the stage distill trains both"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_all_trajectories_may_have_a_known_video():
    assert config(clean_video=1.0).clean_video == 1  # the share of independent times belongs to the other stages


def test_a_student_needs_a_teacher(tmp_path):
    with pytest.raises(ValueError, match=r"a student needs a teacher; .* is not there, and no model is named"):
        recipes.train_stage([], tmp_path, preset("syncflow-tiny"), config())


@pytest.mark.parametrize(
    ("name", "towers", "turns"),
    [
        ("syncflow-tiny", "both", ("video", "audio")),
        ("syncflow-tiny", "video", ("video",)),
        ("syncflow-tiny", "audio", "it must be both or video"),
        ("harmony-tiny", "both", ("both",)),
        ("harmony-tiny", "video", "it must be both for a model whose video reads its sound"),
        ("syncphony-tiny", "video", "it must be both for a model whose video reads its sound"),
    ],
)
def test_towers_learn_in_turn_where_they_can(name, towers, turns):
    student = student_config(preset(name), Request("a clip"), 4, towers)
    with nullcontext() if isinstance(turns, tuple) else pytest.raises(ValueError, match=turns):
        assert recipes.towers_in_turn(student, towers) == turns


@pytest.mark.slow
@pytest.mark.parametrize("towers", ["both", "video"])
def test_the_engine_samples_a_student_in_its_own_steps(tmp_path, towers):
    """From clips to a package by the command, two optimiser steps for each tower that learns."""
    data, run = tmp_path / "data", tmp_path / "run"
    invoke = CliRunner().invoke
    made = invoke(app, ["data", "impacts", str(data), "--clips", "2"])
    assert made.exit_code == 0, made.output
    options = [f"--run={run}", f"--model={bundled_model()}", "--stage=distill", "--student-steps=2", "--steps=2"]
    changes = [
        "--set=trajectories=2",
        "--set=beginnings=2",
        "--set=beginning_steps=2",
        f"--set=student_towers={towers}",
        "--set=batch=2",
        "--set=clean_video=0",
        '--set=teacher={"steps": 8}',
    ]
    result = invoke(app, ["train", str(data), *options, *changes])
    assert result.exit_code == 0, result.output
    folder = Path(run / "student-2-steps")
    engine = Engine.from_pretrained(folder, device="cpu", runtime="torch")
    taken = []
    clip = engine.generate("a red ball falls", on_step=lambda step, steps, latents: taken.append((step, steps)))
    assert taken == [(1, 4), (2, 4), (3, 4), (4, 4)]  # two steps of the video, then two of the audio
    assert (clip.provenance["steps"], clip.provenance["guidance"]) == (2, 1.0)
    assert engine.pipeline.plan(Request("a red ball falls")).branches == (engine.pipeline.plan(Request("x")).full,)
    teacher = Engine.from_pretrained(device="cpu", runtime="torch")
    old, new = teacher.components.ddit, engine.components.ddit
    for name in ("video", "audio"):
        pairs = zip(getattr(old, name).parameters(), getattr(new, name).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) == (name == "video" or towers == "both")
    guided = engine.pipeline.plan(Request("a red ball falls", video=clip, steps=1)).branches
    assert (len(guided) > 1) == (towers == "video")  # by the teacher's sync guidance, which is in its sound else
