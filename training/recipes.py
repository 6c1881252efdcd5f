"""Training recipes of the presets, and the path from clips to a model package.

A run folder holds ``codecs/`` (video and audio autoencoder), ``latents/`` (a cache per length), a folder per stage
with its checkpoint and TensorBoard events, and ``model/``, the engine package after the last finished stage. The
stage ``distill`` adds ``trajectories/`` of its teacher (a cache per length) and a package ``student-<n>-steps/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.codecs import AudioCodec, TextEncoder, VideoCodec
from ..engine.components import Components
from ..engine.config import ModelConfig
from ..engine.engine import Engine, model_folder
from ..engine.model import DDiT
from ..engine.progress import progress_bar
from .codecs import AUDIO_RECIPE, VIDEO_RECIPE, train_audio_codec, train_video_codec
from .config import Stage, StudentTowers, TrainConfig
from .data.clips import ClipFolder, UnreadableClip, by_length, find_clips
from .data.latents import cached_latents
from .distillation import student_config
from .loop import train
from .lora import add_branches, take_branches
from .processes import processes
from .samples import Sampler
from .stages import check_stage
from .trajectories import cached_trajectories, stored_steps, teacher_request

# Two CPU cores without bfloat16 units: fp32, and no compiler, whose step was no faster there.
TINY = {
    "video": TrainConfig(
        stage="video", steps=8000, batch=16, train_text=True, time_shift=3.0, motion_weight=1.0, compile=False
    ),
    "audio": TrainConfig(stage="audio", steps=3000, batch=16, clean_video=0.75, independent=0.15, compile=False),
    "joint": TrainConfig(
        stage="joint",
        steps=250,
        batch=16,
        lr=2e-4,
        matrix_lr=5e-4,
        decay=1.0,
        clean_video=0.4,
        time_shift=2.0,
        motion_weight=1.0,
        compile=False,
    ),
}
FULL = {
    "video": TrainConfig(
        stage="video", batch=16, lr=1e-4, matrix_lr=1e-4, precision="bf16", recompute=True, time_shift=1.0
    ),
    "audio": TrainConfig(
        stage="audio", steps=150_000, batch=16, lr=1e-4, matrix_lr=1e-4, precision="bf16", recompute=True
    ),
    "joint": TrainConfig(
        stage="joint", steps=20_000, batch=2, lr=1e-5, matrix_lr=1e-5, precision="bf16", recompute=True
    ),
}
# Syncphony trains the late layers of a finished video model, with clean audio; Harmony both towers, with driven terms.
SYNC = TrainConfig(stage="sync", motion_weight=1.0, bridge_dropout=0.1)
SYNERGY = TrainConfig(stage="joint", clean_video=0.0, independent=0.0, synergy_video=0.1, synergy_audio=0.3)
TINY_SYNC = {"sync": SYNC.replace(steps=800, batch=16, time_shift=3.0, compile=False)}
TINY_SYNERGY = {
    "joint": SYNERGY.replace(steps=2500, batch=16, lr=5e-4, matrix_lr=1.5e-3, time_shift=3.0, compile=False)
}
FULL_SYNC = {"sync": SYNC.replace(batch=2, lr=1e-5, matrix_lr=1e-5, precision="bf16", recompute=True)}
FULL_SYNERGY = {
    "joint": SYNERGY.replace(steps=10_000, batch=128, lr=1e-5, matrix_lr=1e-5, precision="bf16", recompute=True)
}
TINY_DISTILL = {
    "distill": TrainConfig(
        stage="distill",
        steps=800,
        batch=16,
        lr=2e-4,
        matrix_lr=5e-4,
        warmup=20,
        decay=0.8,
        ema=0.99,
        text_dropout=0.5,
        clean_video=0.4,
        motion_weight=1.0,
        compile=False,
    )
}
FULL_DISTILL = {
    "distill": TrainConfig(
        stage="distill",
        steps=10_000,
        batch=4,
        lr=1e-5,
        matrix_lr=1e-5,
        precision="bf16",
        recompute=True,
        text_dropout=0.5,
        trajectories=20_000,
    )
}
WINDOWS = 4  # of a video that is longer than a clip, all of them in the cache of latents
RECIPES: dict[str, dict[str, TrainConfig]] = {
    "syncflow-tiny": TINY | TINY_DISTILL,
    "syncflow-xl": FULL | FULL_DISTILL,
    "syncphony-tiny": TINY_SYNC | TINY_DISTILL,
    "syncphony-xl": FULL_SYNC | FULL_DISTILL,
    "harmony-tiny": TINY_SYNERGY | TINY_DISTILL,
    "harmony-xl": FULL_SYNERGY | FULL_DISTILL,
}
# The stages of "all". The tiny model finishes the video before the sound (video lead 1) and is done after stage 2.
WHOLE: dict[str, tuple[Stage, ...]] = {
    "syncflow-tiny": ("video", "audio"),
    "syncflow-xl": ("video", "audio", "joint"),
    "syncphony-tiny": ("sync",),
    "syncphony-xl": ("sync",),
    "harmony-tiny": ("joint",),
    "harmony-xl": ("joint",),
}


def train_codecs(
    clips: ClipFolder, run: Path, start: Path | None = None, changes: dict[str, Any] | None = None, limit: int = 2000
) -> None:
    """Both codecs, on the first ``limit`` clips of one length, one after the other; finished ones are kept.

    They begin with those of the package ``start``, if there is one. ``changes`` are settings of their recipes.
    """
    with processes().main_process_first():  # the others find them trained
        _train_codecs(clips, run / "codecs", start, changes or {}, limit)


def _train_codecs(clips: ClipFolder, folder: Path, start: Path | None, changes: dict[str, Any], limit: int) -> None:
    wanted = [name for name in ("video_vae", "audio_vae") if not (folder / name / "config.json").is_file()]
    if not wanted:
        return
    known = Components.load(model_folder(start)) if start else None
    first = range(0, len(clips), clips.windows)[:limit]
    found = [clips.read(i) for i in progress_bar(first, desc="reading clips", unit="clip")]
    samples = [sample for sample in found if not isinstance(sample, UnreadableClip)]
    if not samples:
        raise ValueError(f"none of the first {len(found)} videos of {clips.path} can be read")
    if "video_vae" in wanted:
        train_video_codec(
            np.stack([sample["frames"] for sample in samples]),
            folder / "video_vae",
            recipe=dataclasses.replace(VIDEO_RECIPE, **changes),
            start=known.video if known else None,
        )
    if "audio_vae" in wanted:
        train_audio_codec(
            np.stack([sample["waveform"] for sample in samples]),
            folder / "audio_vae",
            recipe=dataclasses.replace(AUDIO_RECIPE, **changes),
            start=known.audio if known else None,
        )


def train_stage(
    clips: Sequence[ClipFolder],
    run: Path,
    preset: ModelConfig,
    config: TrainConfig,
    start: Path | None = None,
    towers: Path | None = None,
) -> Path:
    """One stage, from ``start`` or ``run/model`` to ``run/model``. Returns the package's folder.

    Where there is neither, it begins with a model of ``preset`` around the codecs of the run: one with the ``towers``
    of another model, whose codecs it has if the run has trained none, or a fresh one. ``clips`` are a folder for each
    length. With ``config.lora`` the model stays as it is, and an adapter is trained, to ``run/adapter``, which is
    returned; the stage ``distill`` leaves it too (:func:`distill`). Raises ``ValueError`` where there is no model to
    train an adapter or a student of, and for a stage that the model does not have.
    """
    target, package = run / "model", starting_package(run, start)
    if config.stage == "distill":
        return distill(clips, run, config, package)
    if config.lora and package is None:
        raise ValueError(f"an adapter needs a model; {target} is not there, and none is named to start from")
    if package:
        components = Components.load(package)
    else:
        codecs = run / "codecs"
        components = with_towers(preset, towers, codecs, config.seed) if towers else fresh(preset, codecs, config.seed)
    check_stage(config, components.config.ddit)
    state = processes()
    with state.main_process_first():  # the others find what it has written
        latents = [
            cached_latents(one, run / "latents" / f"{one.sequence.frames}-frames", components.video, components.audio)
            for one in clips
        ]
    sampler = Sampler(components, latents[0], clips[0].seconds)
    if config.lora:
        add_branches(components.ddit, config.lora, config.seed)
        train(
            components.ddit, components.text, latents, config, run / f"{config.stage}-lora", sampler, keep_frozen=True
        )
        if state.is_main_process:
            take_branches(components.ddit).save_pretrained(run / "adapter")
        return run / "adapter"
    # A stage that goes on takes what it trains from its checkpoint; the rest may have been trained further since then.
    kept = package is not None
    train(components.ddit, components.text, latents, config, run / config.stage, sampler, keep_frozen=kept)
    if state.is_main_process:
        components.save(target)
    state.wait_for_everyone()
    return target


def distill(clips: Sequence[ClipFolder], run: Path, config: TrainConfig, teacher: Path | None) -> Path:
    """A student of ``config.student_steps`` steps of the package ``teacher``. Returns the folder of its package.

    Trajectories of the teacher are sampled first, and beginnings of others for the video tower. Where the video reads
    no audio and is finished before the audio begins, the video tower learns before the audio tower, each for the steps
    or minutes of ``config``, or alone with ``config.student_towers``; else both learn at once. Raises ``ValueError``
    without a teacher, for settings that are none of a request, for towers that do not learn alone and for a model
    without this stage.
    """
    if teacher is None:
        raise ValueError(f"a student needs a teacher; {run / 'model'} is not there, and no model is named")
    steps, target = config.student_steps, run / f"student-{config.student_steps}-steps"
    engine = Engine.from_pretrained(teacher)
    check_stage(config, engine.config.ddit)
    request = teacher_request(engine, config, stored_steps(steps))
    student = student_config(engine.config, request, steps, config.student_towers)
    turns = towers_in_turn(student, config.student_towers)
    if turns == ("video",):  # which learns nothing where the video is given
        config = config.replace(clean_video=0.0)
    count = sum(map(len, clips))
    latents, whole, beginnings = [], [], []
    state = processes()
    with state.main_process_first():
        for one in clips:
            name = f"{one.sequence.frames}-frames"
            codecs = engine.components.video, engine.components.audio
            latents.append(cached_latents(one, run / "latents" / name, *codecs))
            share, cache = len(one) / count, run / "trajectories"
            of_clips = engine, latents[-1], one.seconds
            number = max(1, round(config.trajectories * share))
            whole.append(cached_trajectories(*of_clips, number, config, cache / name))
            if number := round(config.beginnings * share):
                first = cache / f"beginnings-{config.beginning_steps}-of-{steps}" / name
                beginnings.append(cached_trajectories(*of_clips, number, config, first, beginnings=True))
    engine.close()
    components = dataclasses.replace(Components.load(teacher), config=student)
    sampler = Sampler(components, latents[0], clips[0].seconds)
    for towers in turns:
        part, folder = config.replace(student_towers=towers), run / f"distill-{steps}-{towers}"
        sets = whole if towers == "audio" else [*whole, *beginnings]
        train(components.ddit, components.text, sets, part, folder, sampler, keep_frozen=True)
    if state.is_main_process:
        components.save(target)
    state.wait_for_everyone()
    return target


def starting_package(run: Path, start: Path | None) -> Path | None:
    """The package that a stage starts from, or whose student it trains: ``start``, or the model of the run; ``None``
    where there is neither.
    """
    own = run / "model"
    return model_folder(start) if start else (own if own.exists() else None)


def towers_in_turn(student: ModelConfig, towers: StudentTowers) -> tuple[StudentTowers, ...]:
    """The towers that the stage ``distill`` trains one after the other, or both at once.

    Raises ``ValueError`` for a tower that does not learn alone.
    """
    apart = student.ddit.bridge == "adaptor" and student.sampling.video_lead == 1
    if towers == "both":
        return ("video", "audio") if apart else ("both",)
    if not apart:
        raise ValueError(
            f"student_towers is {towers!r}; it must be both for a model whose video reads its sound, or whose sound "
            "begins before its video is finished"
        )
    if towers == "audio":
        raise ValueError(
            "student_towers is 'audio'; it must be both or video, since the student's video tower is first"
        )
    return ("video",)


def fresh(preset: ModelConfig, codecs: Path, seed: int = 0) -> Components:
    """An untrained d-DiT of a preset around the codecs in ``codecs``, which may hold a pretrained ``text_encoder`` too.

    Raises ``ValueError`` when the codecs' latents are not those that the preset is made for.
    """
    torch.manual_seed(seed)
    video, audio = _codecs(preset, codecs)
    shape, settings = preset.ddit, preset.text_encoder.settings
    pretrained = codecs / "text_encoder"
    text = (
        TextEncoder.from_pretrained(pretrained, max_tokens=shape.text_tokens)
        if pretrained.is_dir()
        else TextEncoder.build(settings, shape.text_tokens)
    )
    return Components(preset, DDiT(shape), video, audio, text)


def with_towers(preset: ModelConfig, package: Path, codecs: Path | None = None, seed: int = 0) -> Components:
    """A d-DiT of a preset that has the text encoder and every weight of its name and shape from another model.

    So begins a model whose bridge is another: its video tower is that of the other model. So are its codecs, unless the
    folder ``codecs`` holds others. Raises ``ValueError`` where the video towers differ.
    """
    torch.manual_seed(seed)
    other = Components.load(model_folder(package))
    model, known = DDiT(preset.ddit), other.ddit.state_dict()
    own = model.state_dict()
    taken = {name: known[name] for name, value in own.items() if name in known and known[name].shape == value.shape}
    if missing := [name for name in own if name.startswith("video.") and name not in taken]:
        raise ValueError(f"{package} has another video tower than {preset.name}: {missing[0]} differs or is missing")
    model.load_state_dict(taken, strict=False)
    video, audio = _codecs(preset, codecs) if codecs and codecs.is_dir() else (other.video, other.audio)
    return Components(preset, model, video, audio, other.text)


def _codecs(preset: ModelConfig, folder: Path) -> tuple[VideoCodec, AudioCodec]:
    """The codecs in ``folder``. Raises ``ValueError`` when their latents are not those that the preset is made for."""
    video, audio = VideoCodec.from_pretrained(folder / "video_vae"), AudioCodec.from_pretrained(folder / "audio_vae")
    shape = preset.ddit
    if (video.channels, audio.channels) != (shape.video_channels, shape.audio_channels):
        raise ValueError(
            f"the codecs in {folder} have {video.channels} video and {audio.channels} audio channels; "
            f"{preset.name} needs {shape.video_channels} and {shape.audio_channels}"
        )
    return video, audio


def clip_folders(
    data: Path | Sequence[Path],
    preset: ModelConfig,
    frames: Sequence[int] = (),
    seed: int = 0,
    windows: int = WINDOWS,
) -> list[ClipFolder]:
    """The clips of a folder, a list or shards at the preset's sequence, one ``ClipFolder`` for each length in
    ``frames``.

    A video belongs to the longest length that it fills; without ``frames`` all have the preset's own. ``windows``
    random ones are taken of each video where some are longer. The preset's length comes first, if a video has it.
    Raises ``ValueError`` for a length that the preset's codecs cannot carry.
    """
    sequence = preset.sequence
    entries = find_clips(data)
    groups = by_length(entries, sequence.fps, frames) if frames else {sequence.frames: entries}
    folders = []
    for length in sorted(groups, key=lambda length: (length != sequence.frames, length)):
        own = sequence.replace(seconds=length / sequence.fps) if length != sequence.frames else sequence
        clips = ClipFolder(data, own, window="random", seed=seed, windows=windows, entries=groups[length])
        folders.append(clips if clips.is_longer() else ClipFolder(data, own, entries=groups[length]))
    return folders


def stage_config(preset: str, stage: Stage, changes: dict[str, Any]) -> TrainConfig:
    """A preset's recipe for a stage with some settings changed.

    Raises ``ValueError`` for a preset without a recipe, for a stage that it does not have and for an unknown setting.
    """
    if preset not in RECIPES:
        raise ValueError(f"there is no recipe for {preset!r}; there are {', '.join(RECIPES)}")
    if stage not in RECIPES[preset]:
        raise ValueError(f"the recipe of {preset} has no stage {stage}; it has {', '.join(RECIPES[preset])}")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"training has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return RECIPES[preset][stage].replace(**changes)
