"""The engine in C++ beside the one in Python: noise and times to the bit, text, velocities and clips within rounding.

``make native-test`` builds the program that is compared, ``core_parity`` (``csrc/tests/core/parity.cpp``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syncflow.engine.codecs import TextEncoder
from syncflow.engine.components import Components
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import Engine
from syncflow.engine.model import DDiT
from syncflow.engine.presets import preset
from syncflow.engine.sampling.noise import normal
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.types import Request

from .parity import (
    FRAMES_DECIBEL,
    NOT_BUILT,
    PROGRAM,
    PROMPT,
    ROOT,
    SOUND_DECIBEL,
    compare,
    decibel,
    parity,
    run_parity,
)

BUNDLED = ROOT / "engine" / "pretrained" / "syncflow-tiny"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=NOT_BUILT),
]

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
    "video-to-audio, both": ("global_local", {"video": True, "steps": 2}),
    "image": ("global_local", {"image": True}),
    "continuation": ("adaptor", {"extend": True, "seconds": 1.0, "video_lead": 0.0}),
    "variation": ("adaptor", {"video": True, "strength": 0.6, "steps": 4}),
}


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
        sampling = config.sampling.replace(v2a_sync_guidance=1.5)
        config = config.replace(name=name, ddit=config.ddit.replace(**SMALL | changes), sampling=sampling)
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
