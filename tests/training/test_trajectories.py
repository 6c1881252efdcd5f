"""Trajectories of a teacher: they are what the reference loop passes through, stored once."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from syncflow import Engine, preset
from syncflow.engine.components import Components
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.job import Known
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.types import Clip
from syncflow.training import trajectories
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.trajectories import _Plan, cached_trajectories, stored_steps, teacher_request

pytestmark = pytest.mark.slow

CAPTIONS = ["a red ball falls", "a blue ball bounces on a wooden floor", "a cup"]
SECONDS = 0.5


def config(**changes) -> TrainConfig:
    plain = {"stage": "distill", "student_steps": 2, "batch": 3, "clean_video": 0.5, "text_dropout": 0.5}
    return TrainConfig(**plain | {"teacher": {"steps": 16, "guidance": 3.0}} | changes)


@pytest.fixture(scope="module")
def bundled() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch")


def teacher(bundled: Engine, name: str) -> Engine:
    """An untrained layer of a preset, with the codecs and the text encoder of the bundled model."""
    settings = preset(name)
    first = min(settings.ddit.first_block, 1)
    settings = settings.replace(ddit=settings.ddit.replace(depth=1 + first, first_block=first))
    torch.manual_seed(0)
    ddit = DDiT(settings.ddit)
    for parameter in ddit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    parts = bundled.components
    return Engine(Components(settings, ddit.requires_grad_(False), parts.video, parts.audio, parts.text))


@pytest.fixture(scope="module")
def latents() -> LatentSet:
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(3, 16, 2, 8, 8)), rng.normal(size=(3, 25, 16))
    return LatentSet(video.astype(np.float16), audio.astype(np.float16), CAPTIONS, 16, (0.125, 0.375))


@pytest.mark.parametrize(("student", "stored"), [(1, 8), (2, 8), (3, 6), (4, 8), (5, 5), (8, 8), (12, 12)])
def test_students_of_1_2_4_and_8_steps_share_a_cache(student, stored):
    assert stored_steps(student) == stored


@pytest.mark.parametrize(("asked", "steps"), [({}, 48), ({"steps": 16}, 16), ({"steps": 3}, 8), ({"steps": 30}, 32)])
def test_the_teacher_takes_a_multiple_of_the_stored_steps(bundled, asked, steps):
    found = teacher_request(bundled, config(teacher={"sync_guidance": 2.0, **asked}), 8)
    assert (found.steps, found.sync_guidance, found.guidance) == (steps, 2.0, None)


def test_a_setting_that_no_request_has_is_refused(bundled):
    with pytest.raises(ValueError, match="a request has no setting guide"):
        teacher_request(bundled, config(teacher={"guide": 2.0}), 8)


def reference_states(engine, request, known, no_text):
    """Times and latents before every step of the plain loop and after the last."""
    job = engine.pipeline.encode(engine.pipeline.prepare(request))
    if known is not None:
        by_video = engine.config.ddit.audio_reads_video
        grid = job.schedule.known_video() if by_video else job.schedule.known_audio()
        clean = not by_video or engine.config.ddit.is_joint
        given = Known(torch.from_numpy(known).float(), clean=clean)
        job = replace(job, schedule=grid, **{"video" if by_video else "audio": given})
    if no_text:
        job = replace(job, text=None)
    loop, found = ReferenceLoop(engine.components.ddit, [job]), []
    for k in range(len(job.schedule) + 1):
        if k:
            loop.step()
        times = float(job.schedule.video[k]), float(job.schedule.audio[k])
        video = loop._insert_known("video", times[0]) if known is not None else loop.latents.video
        audio = loop._insert_known("audio", times[1]) if known is not None else loop.latents.audio
        found.append((times, video[0].numpy(), audio[0].numpy()))
    return found


@pytest.mark.parametrize("name", ["syncflow-tiny", "syncphony-tiny", "harmony-tiny"])
def test_trajectories_are_those_of_the_reference_loop(bundled, latents, name, tmp_path, monkeypatch):
    engine, settings = teacher(bundled, name), config()
    asked = []
    encode = engine.pipeline.encode
    monkeypatch.setattr(engine.pipeline, "encode", lambda one: asked.append(one.request) or encode(one))
    found = cached_trajectories(engine, latents, SECONDS, 8, settings, tmp_path)
    monkeypatch.undo()
    assert found.steps == 8 and len(found) == 8
    assert found.known.any() and not found.known.all() and found.no_text.any()
    assert not (found.no_text & ~found.known).any()
    assert found.lead == 8 * engine.config.sampling.video_lead
    sampled = [request for request in asked if request.prompt in CAPTIONS]  # in the order of their batches
    order = [*np.flatnonzero(~found.known), *np.flatnonzero(found.known)]
    rows = json.loads((tmp_path / "index.json").read_text())["captions"]
    for request, i in zip(sampled, order, strict=True):
        assert request.prompt == found.captions[i] == rows[i]
        assert (request.steps, request.guidance) == (16, 3.0)
        given = None
        if found.known[i]:
            one = latents.video if engine.config.ddit.audio_reads_video else latents.audio
            given = one[CAPTIONS.index(found.captions[i])]
        compared = 0
        for times, *arrays in reference_states(engine, request, given, found.no_text[i]):
            grids = (found.times_video, found.times_audio)
            for time, grid, stored, latent in zip(times, grids, (found.video, found.audio), arrays, strict=True):
                if (places := np.flatnonzero(np.abs(grid - time) < 1e-6)).size:
                    np.testing.assert_allclose(stored[i, places[0]], latent, rtol=0, atol=2e-3)
                    compared += 1
        assert compared >= 17


@pytest.mark.parametrize("name", ["syncflow-tiny", "syncphony-tiny", "harmony-tiny"])
def test_a_known_modality_is_sampled_as_the_engine_samples_it(bundled, latents, name):
    """With the sync guidance of its task, and clean where the engine has it so."""
    engine = bundled if name == "syncflow-tiny" else teacher(bundled, name)
    settings = config(clean_video=1.0, text_dropout=0.0, teacher={"steps": 8})
    plan = _Plan.sampled(engine, latents, 1, settings, beginnings=False)
    request = replace(teacher_request(engine, settings, 8), seconds=SECONDS)
    found = plan.job(engine, request, latents, 0)
    sequence = found.sequence
    frames = np.zeros((sequence.frames, sequence.height, sequence.width, 3), np.uint8)
    clip = Clip(frames, np.zeros(sequence.samples, np.float32), sequence.fps, sequence.sample_rate)
    asked = replace(request, prompt=plan.captions[0], **{plan.given: clip})
    expected = engine.pipeline.encode(engine.pipeline.prepare(asked))
    assert found.plan == expected.plan
    assert np.array_equal(found.schedule.video, expected.schedule.video)
    given, as_given = getattr(found, plan.given), getattr(expected, plan.given)
    assert given.clean is as_given.clean is plan.clean is (name != "syncflow-tiny")


def test_a_cache_is_read_until_what_it_was_made_from_changes(bundled, latents, tmp_path, monkeypatch):
    engine = teacher(bundled, "syncflow-tiny")
    few = {"clean_video": 0.0, "student_steps": 1}
    first = cached_trajectories(engine, latents, SECONDS, 2, config(**few, teacher={"steps": 8}), tmp_path)
    written = (tmp_path / "video.npy").stat().st_mtime_ns
    again = cached_trajectories(engine, latents, SECONDS, 2, config(**few, teacher={"steps": 8}), tmp_path)
    assert (tmp_path / "video.npy").stat().st_mtime_ns == written
    assert np.array_equal(first.video, again.video) and first.captions == again.captions
    shared = cached_trajectories(
        engine, latents, SECONDS, 2, config(clean_video=0.0, student_steps=8, teacher={"steps": 8}), tmp_path
    )
    assert (tmp_path / "video.npy").stat().st_mtime_ns == written and shared.steps == 8
    other = cached_trajectories(
        engine, latents, SECONDS, 2, config(**few, teacher={"steps": 8, "guidance": 1.0}), tmp_path
    )
    assert not np.array_equal(first.video, other.video)


def test_sampling_that_was_interrupted_goes_on(bundled, latents, tmp_path, monkeypatch):
    engine, settings = teacher(bundled, "syncflow-tiny"), config(clean_video=0.0, batch=1, teacher={"steps": 8})
    whole = cached_trajectories(engine, latents, SECONDS, 3, settings, tmp_path / "whole")
    sampled, made = trajectories._sampled, []

    def interrupted(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return sampled(*arguments)

    monkeypatch.setattr(trajectories, "_sampled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_trajectories(engine, latents, SECONDS, 3, settings, tmp_path / "resumed")
    made.pop()
    resumed = cached_trajectories(engine, latents, SECONDS, 3, settings, tmp_path / "resumed")
    assert len(made) == 2  # one more
    assert np.array_equal(whole.video, resumed.video) and np.array_equal(whole.audio, resumed.audio)
    assert sorted(file.name for file in (tmp_path / "resumed").iterdir()) == ["audio.npy", "index.json", "video.npy"]


def test_sampling_goes_on_with_another_batch(bundled, latents, tmp_path, monkeypatch):
    """What is done is counted in trajectories, so that none is left out."""
    engine = teacher(bundled, "syncflow-tiny")
    settings = config(batch=1, teacher={"steps": 8})
    whole = cached_trajectories(engine, latents, SECONDS, 6, settings, tmp_path / "whole")
    sampled, made = trajectories._sampled, []

    def interrupted(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(arguments[1]))
        return sampled(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trajectories, "_sampled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_trajectories(engine, latents, SECONDS, 6, settings, tmp_path / "resumed")
    resumed = cached_trajectories(engine, latents, SECONDS, 6, settings.replace(batch=3), tmp_path / "resumed")
    np.testing.assert_allclose(resumed.video, whole.video, rtol=0, atol=1e-4)
    np.testing.assert_allclose(resumed.audio, whole.audio, rtol=0, atol=1e-4)


def test_sampling_interrupted_between_two_files_is_done_again(bundled, latents, tmp_path, monkeypatch):
    engine, settings = teacher(bundled, "syncflow-tiny"), config(clean_video=0.0, teacher={"steps": 8})
    move = os.replace

    def interrupted(source, target):
        if str(target).endswith("audio.npy"):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(trajectories.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_trajectories(engine, latents, SECONDS, 2, settings, tmp_path)
    assert not (tmp_path / "index.json").exists()
    assert np.isfinite(cached_trajectories(engine, latents, SECONDS, 2, settings, tmp_path).audio).all()


@pytest.mark.parametrize(("lead", "student"), [(0.7, 4), (0.5, 1)])
def test_a_lead_between_steps_is_refused(bundled, latents, lead, student, tmp_path):
    engine = teacher(bundled, "syncflow-tiny")
    settings = config(student_steps=student, teacher={"steps": 16, "video_lead": lead})
    with pytest.raises(ValueError, match=f"no whole number of a student's {student} steps; choose another video_lead"):
        cached_trajectories(engine, latents, SECONDS, 2, settings, tmp_path)


@pytest.mark.parametrize(("name", "steps"), [("syncflow-tiny", 1), ("syncflow-tiny", 3), ("harmony-tiny", 1)])
def test_beginnings_are_those_of_trajectories_from_other_noise(bundled, latents, name, steps, tmp_path, monkeypatch):
    engine = teacher(bundled, name)
    settings = config(clean_video=0.0, student_steps=4, beginning_steps=steps)
    last = 2 * steps
    first = cached_trajectories(engine, latents, SECONDS, 4, settings, tmp_path / "first", beginnings=True)
    whole = cached_trajectories(engine, latents, SECONDS, 4, settings, tmp_path / "whole")
    assert (first.steps, first.video.shape[1], whole.video.shape[1]) == (8, last + 1, 9)
    assert whole.whole and not first.whole
    noises = np.concatenate((first.video[:, 0], whole.video[:, 0]))
    assert len(np.unique(noises, axis=0)) == 8
    plan = _Plan.sampled(engine, latents, 4, settings, beginnings=True)
    monkeypatch.setattr(trajectories._Plan, "sampled", lambda *_, beginnings: plan)
    same = cached_trajectories(engine, latents, SECONDS, 4, settings, tmp_path / "same")
    np.testing.assert_allclose(first.video, same.video[:, : last + 1], rtol=0, atol=1e-5)
    if first.lead == 0:
        np.testing.assert_allclose(first.audio, same.audio[:, : last + 1], rtol=0, atol=1e-5)
    assert not np.array_equal(same.video[:, last], same.video[:, last + 1])


def test_beginnings_have_no_given_video(bundled, latents, tmp_path):
    engine, settings = teacher(bundled, "syncflow-tiny"), config(clean_video=1.0)
    found = cached_trajectories(engine, latents, SECONDS, 3, settings, tmp_path, beginnings=True)
    assert not found.known.any() and not found.no_text.any()
