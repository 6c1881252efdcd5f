"""This engine with imported weights beside the outputs of JavisDiT's own code (commit b505b37).

The weights and inputs are computed (``published_javisdit.py``), the outputs are frozen in ``javisdit.safetensors``. How
they were made: docs/weights.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from syncflow import Engine
from syncflow.engine.codecs.mel import MelCodec
from syncflow.engine.model.denoiser import JointInputs
from syncflow.engine.sampling.job import Job, audio_noise, video_noise
from syncflow.engine.sampling.loop import run_batch
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.types import Request
from syncflow.training.importers.javisdit import import_javisdit

from .frozen import Frozen, assert_close
from .published_javisdit import write_all

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the prompt has")]

FROZEN = Frozen(Path(__file__).with_name("javisdit.safetensors"))
PROMPTS = (
    "A Red ball — bounces! on the <b>floor</b>, see http://x.com/a",
    "short",
    "a cat. aesthetic score: 4.0.",
)
SAMPLES = ((51, 32, 32, 0), (17, 24, 40, 1), (37, 48, 26, 2), (20, 40, 43, 1))  # frames, height, width, prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("javisdit")
    *parts, imagebind = write_all(root)
    return import_javisdit(*parts, root / "package", imagebind=imagebind).path


@pytest.fixture(scope="module", params=["torch", "torch-plain"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", runtime=request.param)


def job_of(engine: Engine, frames: int, height: int, width: int, prompt: int) -> Job:
    request = Request(PROMPTS[prompt], seed=5, steps=4, seconds=frames / 24, width=width, height=height)
    return engine.pipeline.encode(engine.pipeline.prepare(request))


@pytest.mark.parametrize("index", range(len(PROMPTS)))
@torch.inference_mode()
def test_prior(engine: Engine, index: int) -> None:
    found = engine.components.text.encode_prior(PROMPTS[index])
    assert found is not None
    FROZEN.assert_close(found[0], f"prior.{index}.mean")
    FROZEN.assert_close(found[1], f"prior.{index}.deviation")


@pytest.mark.parametrize("case", SAMPLES, ids=str)
@torch.inference_mode()
def test_towers_and_sample(engine: Engine, case: tuple[int, int, int, int]) -> None:
    key, model, job = "x".join(map(str, case[:3])), engine.components.ddit, job_of(engine, *case)
    assert job.text is not None and job.prior is not None
    states, lengths = torch.stack((job.text.states, model.null_text)), torch.tensor([job.text.length] * 2)
    times = model.modulation(torch.full((2, 1), 0.3, dtype=torch.float64), torch.full((2,), 24.0))
    inputs = JointInputs(
        video_noise(job, 4).expand(2, -1, -1, -1, -1),
        audio_noise(job, 128).expand(2, -1, -1),
        times,
        None,
        model.condition(states, lengths),
        torch.arange(2),
        audio_modulation=times,
        prior=model.condition_prior(job.prior.states[None]),
        prior_of_row=torch.zeros(2, dtype=torch.long),
        pixels=None if job.sequence.whole_patches else torch.tensor([float(case[1] * case[2])]),
    )
    found = engine.denoiser.joint_pass(inputs)
    assert found.video is not None and found.audio is not None
    FROZEN.assert_close(found.video, f"tower.{key}.video")
    FROZEN.assert_close(found.audio, f"tower.{key}.audio")
    for sampled in (run_batch(engine.backend.make_batch(), [job])[0], ReferenceLoop(model, [job]).run()):
        FROZEN.assert_close(sampled.video[0], f"sample.{key}.video")
        FROZEN.assert_close(sampled.audio[0], f"sample.{key}.audio")


@pytest.mark.parametrize("samples", [34_000, 11_333, 20_480])
@torch.inference_mode()
def test_mel_codec(engine: Engine, samples: int) -> None:
    codec, name = engine.components.audio, f"mel.{samples}"
    assert isinstance(codec, MelCodec)
    waveform = torch.from_numpy(normal(samples, Stream.AUDIO, (1, samples))).tanh() * 0.3 + 0.05
    found, theirs = codec.spectrogram(waveform)[0, ::5, ::3], len(FROZEN.tensors[f"{name}.spectrogram"])
    rows = min(len(found), theirs)  # JavisDiT has padded or cut its own
    FROZEN.assert_close(found, f"{name}.spectrogram", rows)
    latents = codec.encode(waveform)
    FROZEN.assert_close(latents[0, ::2, ::3], f"{name}.latents")
    FROZEN.assert_close(codec.decode(latents, samples)[0, ::17], f"{name}.waveform")


def test_a_clip_has_sound(engine: Engine, tmp_path: Path) -> None:
    request = Request("short", seed=5, steps=2, seconds=20 / 24, width=43, height=40)
    clip = engine.generate(request)
    assert clip.frames.shape == (20, 40, 40, 3) and clip.waveform.shape == (13_333,)
    assert clip.sample_rate == 16_000 and np.abs(clip.waveform).max() > 0
    assert clip.save(tmp_path / "clip.mp4").stat().st_size > 0
    video = engine.generate(replace(request, prompt="", video=clip, width=None, height=None))
    assert video.waveform.shape == clip.waveform.shape


def test_requests_of_one_batch_equal_each_alone(folder: Path) -> None:
    """Neither texts nor priors of neighbours are read."""
    engine = Engine.from_pretrained(folder, device="cpu", runtime="torch")
    jobs = [job_of(engine, 20, 40, 43, prompt) for prompt in range(3)]
    jobs[2] = replace(jobs[2], seed=9)
    together = run_batch(engine.backend.make_batch(), jobs)
    for job, found in zip(jobs, together, strict=True):
        alone = run_batch(engine.backend.make_batch(), [job])[0]
        assert_close(found.video, alone.video, "video")
        assert_close(found.audio, alone.audio, "audio")
