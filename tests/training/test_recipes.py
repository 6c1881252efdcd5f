"""What a stage of a recipe begins with: the codecs and towers of the run, of a package, or of another model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from syncflow import preset
from syncflow.engine.codecs import VideoCodec
from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.training.data import render_impacts
from syncflow.training.data.latents import open_latents
from syncflow.training.recipes import with_towers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "moved"), [("syncphony-tiny", "bridge.layers.0"), ("harmony-tiny", "bridge.layers.0.to_video")]
)
def test_models_of_the_other_papers_begin_with_the_towers_of_another(name, moved, tmp_path, run):
    render_impacts(tmp_path / "data", 2, seed=3, workers=1, progress=False)
    arguments = ("--preset", name, "--towers", bundled_model(), "--steps", 1, "--batch", 2)
    code, out, err = run("train", tmp_path / "data", "--run", tmp_path / "run", *arguments)
    assert code == 0, err
    trained = Components.load(tmp_path / "run" / "model")
    assert trained.config.name == name and "after stage" in out
    assert trained.ddit.state_dict()[f"{moved}.proj.weight"].abs().max() > 0  # 0 in a fresh bridge
    other, own = Components.load(bundled_model()).ddit.video.state_dict(), trained.ddit.video.state_dict()
    assert other.keys() == own.keys()
    assert torch.equal(other["x_embedder.proj.weight"], own["x_embedder.proj.weight"]) is (name == "syncphony-tiny")
    code, _, err = run("train", tmp_path / "data", "--run", tmp_path / "run", "--preset", name, "--stage", "audio")
    assert code == 2 and f"the recipe of {name} has no stage audio" in err


def test_codecs_trained_further_serve_the_towers_of_the_model_they_come_from(tmp_path, run):
    render_impacts(tmp_path / "data", 2, seed=3, workers=1, progress=False)
    common = ("train", tmp_path / "data", "--run", tmp_path / "run", "--steps", 1, "--batch", 2)
    code, _, err = run(*common, "--stage", "codecs", "--model", bundled_model())
    assert code == 0, err
    code, _, err = run(*common, "--stage", "video", "--towers", bundled_model())
    assert code == 0, err
    trained, other = Components.load(tmp_path / "run" / "model"), Components.load(bundled_model())
    codec = VideoCodec.from_pretrained(tmp_path / "run" / "codecs" / "video_vae")
    assert torch.equal(trained.video.shift, codec.shift) and not torch.equal(codec.shift, other.video.shift)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.ddit.audio.parameters(), other.ddit.audio.parameters(), strict=True)
    )


def test_all_stages_from_a_package_keep_its_codecs(tmp_path, run):
    render_impacts(tmp_path / "data", 2, seed=3, workers=1, progress=False)
    arguments = ("--model", bundled_model(), "--steps", 1, "--batch", 2)
    code, _, err = run("train", tmp_path / "data", "--run", tmp_path / "run", *arguments)
    assert code == 0, err
    assert not (tmp_path / "run" / "codecs").exists()
    trained, other = Components.load(tmp_path / "run" / "model"), Components.load(bundled_model())
    assert torch.equal(trained.video.shift, other.video.shift)
    # A longer video stage is not lost to the audio stage, whose checkpoint has the shorter one's video tower.
    longer = ("--model", bundled_model(), "--steps", 2, "--batch", 2)
    code, _, err = run("train", tmp_path / "data", "--run", tmp_path / "run", *longer)
    assert code == 0, err
    saved = torch.load(tmp_path / "run" / "video" / "checkpoint.pt", weights_only=True)
    tower = Components.load(tmp_path / "run" / "model").ddit.video
    assert saved["step"] == 2
    for parameter, mean in zip(tower.parameters(), saved["average"], strict=False):  # those of the text encoder follow
        assert torch.equal(parameter, mean.half().float())


def test_clips_are_those_of_the_model_that_a_stage_begins_with(tmp_path, run):
    """Of its size and length, not of those of the preset."""
    render_impacts(tmp_path / "data", 2, seed=3, workers=1, progress=False)
    parts = Components.load(bundled_model())
    sequence = parts.config.sequence.replace(width=32, height=32, seconds=1.0)
    dataclasses.replace(parts, config=parts.config.replace(sequence=sequence)).save(tmp_path / "small")
    arguments = ("--stage", "video", "--steps", 1, "--batch", 2)
    code, _, err = run("train", tmp_path / "data", "--run", tmp_path / "run", "--model", tmp_path / "small", *arguments)
    assert code == 0, err
    (latents,) = (tmp_path / "run" / "latents").iterdir()
    assert latents.name == "16-frames"
    assert open_latents(latents).video.shape[2:] == (4, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "syncflow-tiny", "--towers", "syncflow-tiny"), "--model has towers already; leave out --towers"),
        (("--stage", "codecs", "--set", "seed=1"), "--set and --plan are for the stages; the codecs have --steps"),
        (("--student-steps", "2"), "--student-steps belongs to --stage distill"),
        (("--stage", "audio", "--model", "syncphony-tiny"), "the bridge audio_rope has no stage audio"),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments, message, tmp_path, run):
    render_impacts(tmp_path / "data", 1, seed=3, workers=1, progress=False)
    code, _, err = run("train", tmp_path / "data", "--run", tmp_path / "run", *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_towers_of_another_shape_are_refused():
    narrow = preset("harmony-tiny").ddit.replace(width=64)
    with pytest.raises(ValueError, match=r"has another video tower than harmony-xl: video\..* differs or is missing"):
        with_towers(dataclasses.replace(preset("harmony-xl"), ddit=narrow), bundled_model())
