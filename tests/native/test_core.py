"""The engine in C++ beside the one in Python: noise and times to the bit, text, velocities and clips within rounding.

``make native-test`` builds the program that is compared, ``core_parity`` (``csrc/tests/core/parity.cpp``).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import syncflow
from syncflow.engine.codecs import TextEncoder
from syncflow.engine.components import Components
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import Engine
from syncflow.engine.model import DDiT
from syncflow.engine.pipeline import Pipeline
from syncflow.engine.presets import preset
from syncflow.engine.sampling.noise import normal
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Clip, Latents, Request

ROOT = Path(syncflow.__file__).parent
BUNDLED = ROOT / "engine" / "pretrained" / "syncflow-tiny"
BUILT = sorted(ROOT.glob("build/*/core_parity"), key=lambda path: path.stat().st_mtime)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the C++ tests are not built; `make native-test` builds them"),
]

PROMPT = "a large red rubber ball bounces on a wooden floor"
VELOCITY_TOLERANCE = 1e-5
FRAMES_DECIBEL, SOUND_DECIBEL = 60, 80
SMALL = {"width": 32, "heads": 2, "audio_heads": 1, "depth": 3, "mlp_ratio": 2.0}
# By name a preset and what its small model changes.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "adaptor": ("syncflow-tiny", {}),
    "all tokens": ("syncflow-tiny", {"adaptor_tokens": "all", "sigma_head": True}),
    "plain tokens": ("syncflow-tiny", {"adaptor_tokens": "none", "audio_text": True}),
    "audio_rope": ("syncphony-tiny", {"first_block": 1}),
    "audio_rope, text": ("syncphony-tiny", {"first_block": 0, "audio_text": True}),
    "global_local": ("harmony-tiny", {}),
}
# By name a model of those and the settings of a request; two steps, in which rounding has not grown.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "guided": ("adaptor", {"guidance": 3.0, "takes": 2, "video_lead": 0.5, "steps": 2}),
    "no guidance": ("adaptor", {"guidance": 1.0, "video_lead": 0.0}),
    "negative prompt": ("all tokens", {"negative_prompt": "silence", "sync_guidance": 1.5, "video_lead": 0.0}),
    "still picture": ("plain tokens", {"sync_cfg_audio": 2.0, "video_lead": 0.0, "guidance_rescale": 0.7}),
    "video first": ("plain tokens", {"video_lead": 1.0, "seconds": 1.3, "width": 48, "height": 96}),
    "sound alone": ("plain tokens", {"sound_only": True}),
    "reused branches": ("adaptor", {"branch_interval": 2, "steps": 3, "video_lead": 0.0}),
    "interval": ("adaptor", {"guidance_interval": (0.1, 0.4), "steps": 3, "shift": 1.0, "video_lead": 0.0}),
    "audio leads": ("audio_rope", {"sync_guidance": 2.0, "guidance": 2.0}),
    "audio leads, silence": ("audio_rope, text", {"sync_cfg_video": 2.0, "video_lead": 0.5, "steps": 2}),
    "audio-to-video": ("audio_rope", {"audio": True}),
    "both": ("global_local", {"guidance": 2.0, "sync_guidance": 1.0}),
    "reference": ("global_local", {"reference": True, "seconds": 0.7}),
    "video-to-audio": ("adaptor", {"video": True}),
    "image": ("global_local", {"image": True}),
    "continuation": ("adaptor", {"extend": True, "seconds": 1.0, "video_lead": 0.0}),
    "variation": ("adaptor", {"video": True, "strength": 0.6, "steps": 4}),
}


def parity(*arguments: object, dtype: Any = np.float32) -> np.ndarray:
    """What ``core_parity`` writes."""
    return np.frombuffer(run_parity(*arguments).stdout, dtype)


def run_parity(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    found = subprocess.run([BUILT[-1], *map(str, arguments)], capture_output=True)
    assert found.returncode == 0, found.stderr.decode()
    return found


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_noise_has_the_same_bits(seed):
    for stream in (0, 1):
        assert (parity("noise", seed, stream, 1001) == normal(seed, stream, 1001)).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 50, 333])
@pytest.mark.parametrize(("shift", "lead"), [(1.0, 0.0), (3.0, 1.0), (0.37, 0.5), (5.0, 0.123)])
def test_times_have_the_same_bits(steps, shift, lead):
    times = schedule(steps, shift=shift, lead=lead)
    variants = {
        "all": times,
        "video": times.known_video(),
        "audio": times.known_audio(),
        "alone": times.without_video(),
        "after": times.after(0.4),
    }
    for task, expected in variants.items():
        found = parity("schedule", steps, repr(shift), repr(lead), task, 0.4, dtype=np.float64)
        assert (found == np.concatenate((expected.video, expected.audio))).all(), task


@pytest.mark.parametrize("prompt", [PROMPT, "x", "Größe und 音", "long " * 30])
@pytest.mark.filterwarnings("ignore:the prompt has")
def test_text_states(prompt):
    states, mask = TextEncoder.from_pretrained(BUNDLED / "text_encoder").encode([prompt])
    expected = states[0, : int(mask.sum())].detach().numpy()
    found = parity("text", BUNDLED, prompt).reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Components, Path]]:
    """Small models of all bridges with the bundled codecs, none of whose weights is zero, each with its package."""
    torch.manual_seed(0)
    bundled = Components.load(BUNDLED)
    found = {}
    for name, (base, changes) in MODELS.items():
        config = preset(base)
        config = config.replace(name=name, ddit=config.ddit.replace(**SMALL | changes))
        folder = tmp_path_factory.mktemp("models") / name.replace(" ", "_")
        Components(config, randomised(config), bundled.video, bundled.audio, bundled.text).save(
            folder, dtype=torch.float32
        )
        found[name] = Components.load(folder), folder
    return found


def randomised(config: ModelConfig) -> DDiT:
    model = DDiT(config.ddit).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape) / 8)
    return model


def media(request: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request's settings for Python, with a clip in place of True, and for C++."""
    generator = np.random.default_rng(1)
    frames = generator.integers(0, 256, (10, 64, 64, 3), np.uint8)
    clip = Clip(frames, generator.normal(0, 0.1, 30_000).astype(np.float32), 16, 48_000)
    clip.frames.tofile(folder / "frames")
    clip.waveform.tofile(folder / "waveform")
    described = {"frames": str(folder / "frames"), "sizes": [10, 64, 64], "fps": 16}
    described |= {"waveform": str(folder / "waveform"), "sample_rate": 48_000}
    names = ("video", "image", "extend", "audio", "reference")
    ours = {name: clip if name in names else value for name, value in request.items()}
    if "image" in request:
        ours["image"] = Clip(frames[:1], np.zeros(0, np.float32), 16, 48_000)
    return ours, {name: described if name in names else value for name, value in request.items()}


def trajectory(parts: Components, request: Request) -> tuple[list[Latents], list[Clip]]:
    """Latents before the first step and after each, and the clips; by the plain modules in PyTorch."""
    pipeline = Pipeline(parts, torch.device("cpu"))
    prepared = pipeline.prepare(request)
    job = pipeline.encode(prepared)
    batch = batch_of(parts.ddit)
    batch.join([job])
    found = [batch.latents]
    for _ in range(len(job.schedule)):
        batch.step()
        found.append(batch.latents)
    return found, pipeline.decode(prepared, found[-1])


def compare(parts: Components, folder: Path, settings: Mapping[str, Any], tmp_path: Path) -> None:
    """Velocities of every step, frames, sound and provenance of one request in both languages."""
    ours, theirs = media({"prompt": PROMPT, "seed": 7, "steps": 2, **settings}, tmp_path)
    expected, clips = trajectory(parts, Request(**ours))
    run = run_parity("clip", folder, json.dumps(theirs))
    states = [np.concatenate((state.video.ravel(), state.audio.ravel())) for state in expected]
    split = expected[0].video.numel()
    values = np.frombuffer(run.stdout, np.float32, len(states) * len(states[0])).reshape(len(states), -1)
    for k, (before, after) in enumerate(pairwise(states)):
        for part in (slice(split), slice(split, None)):
            moved, found = after[part] - before[part], values[k + 1, part] - values[k, part]
            assert np.linalg.norm(found - moved) <= VELOCITY_TOLERANCE * np.linalg.norm(moved), (k, part)
    rest = run.stdout[values.nbytes :]
    count = clips[0].frames.size
    assert decibel(np.frombuffer(rest[:count], np.uint8), clips[0].frames.ravel(), 255) >= FRAMES_DECIBEL
    waveforms = np.frombuffer(rest[count:], np.float32).reshape(len(clips), -1)
    for waveform, clip, line in zip(waveforms, clips, run.stderr.decode().splitlines(), strict=True):
        assert decibel(waveform, clip.waveform, 1) >= SOUND_DECIBEL
        assert json.loads(line) == json.loads(json.dumps(clip.provenance))


def decibel(found: np.ndarray, expected: np.ndarray, peak: float) -> float:
    """The peak signal-to-noise ratio."""
    error = np.mean((found.astype(np.float64) - expected) ** 2) if found.size else 0.0
    return float(10 * np.log10(peak**2 / max(error, 1e-20)))


@pytest.mark.parametrize("name", REQUESTS)
def test_small_models(name, models, tmp_path):
    model, settings = REQUESTS[name]
    compare(*models[model], settings, tmp_path)


@pytest.mark.parametrize("settings", [{"steps": 3}, {"takes": 2, "sync_guidance": 1.0, "video_lead": 0.0}])
def test_bundled_model(settings, tmp_path):
    compare(Components.load(BUNDLED), BUNDLED, settings, tmp_path)


def test_a_clip_of_all_steps(tmp_path):
    clip = Engine.from_pretrained(BUNDLED).generate(Request(PROMPT, seed=7))
    run = run_parity("clip", BUNDLED, json.dumps({"prompt": PROMPT, "seed": 7}))
    rest = run.stdout[-clip.frames.nbytes - clip.waveform.nbytes :]
    assert decibel(np.frombuffer(rest[: clip.frames.size], np.uint8), clip.frames.ravel(), 255) >= FRAMES_DECIBEL
    assert decibel(np.frombuffer(rest[clip.frames.size :], np.float32), clip.waveform, 1) >= SOUND_DECIBEL
