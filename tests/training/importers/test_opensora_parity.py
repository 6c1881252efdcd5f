"""This engine with imported weights beside the outputs of Open-Sora's own code (v1.2.0, commit 17cce90).

The weights and inputs are computed (``published.py``), the outputs are frozen in ``opensora.safetensors``. How they
were made: docs/weights.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from syncflow import Engine
from syncflow.engine.model.denoiser import VideoInputs
from syncflow.engine.sampling.job import video_noise
from syncflow.engine.sampling.loop import run_batch
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.types import Clip, Request
from syncflow.training.importers.opensora import import_opensora

from .frozen import Frozen, assert_close
from .published import write_all

pytestmark = pytest.mark.slow

FROZEN = Frozen(Path(__file__).with_name("opensora.safetensors"))
PROMPTS = (
    "A Red ball — bounces! on the <b>floor</b>, see http://x.com/a",
    "short",
    "a cat. aesthetic score: 4.0.",
)
SAMPLES = ((51, 32, 32, 0), (17, 24, 40, 1), (37, 48, 26, 2), (20, 40, 43, 1))  # frames, height, width, prompt
CODED = ((51, 16, 16), (17, 24, 40), (1, 32, 32), (20, 16, 48), (37, 24, 24), (18, 26, 43))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("opensora")
    return import_opensora(*write_all(root), root / "package").path


@pytest.fixture(scope="module", params=["torch", "torch-plain"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", runtime=request.param)


def asked(frames: int, height: int, width: int, prompt: int) -> Request:
    return Request(PROMPTS[prompt], seed=5, steps=4, seconds=frames / 24, width=width, height=height)


@pytest.mark.parametrize(("frames", "height", "width"), CODED)
@torch.inference_mode()
def test_latents_and_frames(engine: Engine, frames: int, height: int, width: int) -> None:
    codec, name = engine.components.video, f"vae.{frames}x{height}x{width}"
    pixels = torch.from_numpy(normal(frames, Stream.VIDEO, (1, 3, frames, height, width))).tanh()
    latents = codec.encode(pixels.movedim(1, -1))
    FROZEN.assert_close(latents[0], f"{name}.latents")
    decoded = codec.pixels(codec.denormalize(latents), frames)
    FROZEN.assert_close(decoded[0, :, ::7, ::3, ::3], f"{name}.frames")
    sequence = engine.config.sequence.replace(seconds=frames / 24, width=width, height=height)
    assert (sequence.latent_frames, sequence.latent_height, sequence.latent_width) == tuple(latents.shape[2:])
    assert sequence.frame_size == (decoded.shape[4], decoded.shape[3])


@pytest.mark.parametrize("index", range(len(PROMPTS)))
@pytest.mark.filterwarnings("ignore:the prompt has")
@torch.inference_mode()
def test_text(engine: Engine, index: int) -> None:
    states, mask = engine.components.text.encode([PROMPTS[index]])
    FROZEN.assert_close(states[0, : int(mask.sum())], f"text.{index}")


@pytest.mark.parametrize("case", SAMPLES, ids=str)
@pytest.mark.filterwarnings("ignore:the prompt has")
@torch.inference_mode()
def test_tower_and_sample(engine: Engine, case: tuple[int, int, int, int]) -> None:
    key = "x".join(map(str, case[:3]))
    prepared = engine.pipeline.prepare(asked(*case))
    job, model = engine.pipeline.encode(prepared), engine.components.ddit
    assert job.text is not None
    text = model.condition(job.text.states[None], torch.tensor([job.text.length]))
    pixels = None if job.sequence.whole_patches else torch.tensor([float(case[1] * case[2])])
    times = model.modulation(torch.tensor([[0.3]]), torch.tensor([24.0]))
    inputs = VideoInputs(video_noise(job, 4)[None], times, text, torch.tensor([0]), pixels=pixels)
    FROZEN.assert_close(engine.denoiser.video_pass(inputs)[0][0], f"tower.{key}")
    FROZEN.assert_close(run_batch(engine.backend.make_batch(), [job])[0].video[0], f"sample.{key}")
    FROZEN.assert_close(ReferenceLoop(model, [job]).run().video[0], f"sample.{key}")


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_a_clip_has_no_sound(engine: Engine, tmp_path: Path) -> None:
    clip = engine.generate(asked(*SAMPLES[3]))
    assert clip.frames.shape == (20, 40, 40, 3) and clip.waveform.shape == (0,)
    assert clip.provenance["task"] == "text-to-video"
    assert clip.provenance["shift"] == pytest.approx((40 * 43 / 512**2 * 5) ** 0.5)
    assert clip.save(tmp_path / "clip.mp4").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_a_known_picture_is_clean_from_the_first_step(engine: Engine) -> None:
    frames, height, width, prompt = SAMPLES[0]
    values = torch.from_numpy(normal(99, Stream.VIDEO, (1, 3, 1, height, width))).tanh()
    picture = values.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)[0].movedim(0, -1).numpy()
    image = Clip(picture, np.zeros(0, np.float32), 24, 48_000)
    request = Request(PROMPTS[prompt], seed=5, steps=4, seconds=frames / 24, width=width, height=height, image=image)
    job = engine.pipeline.encode(engine.pipeline.prepare(request))
    FROZEN.assert_close(run_batch(engine.backend.make_batch(), [job])[0].video[0], "image.latents")


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_requests_of_one_batch_equal_each_alone(folder: Path) -> None:
    engine = Engine.from_pretrained(folder, device="cpu", runtime="torch")
    requests = [Request(text, seed=i, steps=2 + i, seconds=1.0, width=43, height=40) for i, text in enumerate(PROMPTS)]
    jobs = [engine.pipeline.encode(engine.pipeline.prepare(one)) for one in requests]
    together = run_batch(engine.backend.make_batch(), jobs)
    for job, found in zip(jobs, together, strict=True):
        assert_close(found.video, run_batch(engine.backend.make_batch(), [job])[0].video, "video")


def test_the_package_says_what_was_published(folder: Path) -> None:
    config = json.loads((folder / "ddit" / "source.json").read_text())["config"]
    assert config["model_type"] == "STDiT3" and config["hidden_size"] == 96
