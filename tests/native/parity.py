"""What tests of the engine in C++ share: its program ``core_parity``, and one request in both languages."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import syncflow
from syncflow.engine.components import Components
from syncflow.engine.model.denoiser import Denoiser
from syncflow.engine.pipeline import Pipeline
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Clip, Latents, Request

ROOT = Path(syncflow.__file__).parent
NOT_BUILT = "the C++ tests are not built; `make native-test` builds them"

PROMPT = "a large red rubber ball bounces on a wooden floor"
VELOCITY_TOLERANCE = 1e-5
FRAMES_DECIBEL, SOUND_DECIBEL = 60, 80


def built(name: str) -> Path | None:
    """A file that a build of the C++ tests has made: that of the newest build, in a folder under ``build``."""
    found = ROOT.glob(f"build/*/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


PROGRAM = built("core_parity")


def has_backend(name: str) -> bool:
    """Whether the build has the module of a runtime of exported graphs."""
    return PROGRAM is not None and any(PROGRAM.parent.glob(f"libsyncflow_{name}.*"))


def parity(*arguments: object, dtype: Any = np.float32) -> np.ndarray:
    """What ``core_parity`` writes."""
    return np.frombuffer(run_parity(*arguments).stdout, dtype)


def run_parity(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    found = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True)
    assert found.returncode == 0, found.stderr.decode()
    return found


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


def trajectory(parts: Components, denoiser: Denoiser, request: Request) -> tuple[list[Latents], list[Clip]]:
    """Latents before the first step and after each, and the clips, in Python."""
    pipeline = Pipeline(parts, torch.device("cpu"))
    prepared = pipeline.prepare(request)
    job = pipeline.encode(prepared)
    batch = batch_of(denoiser)
    batch.join([job])
    found = [batch.latents]
    for _ in range(len(job.schedule)):
        batch.step()
        found.append(batch.latents)
    return found, pipeline.decode(prepared, found[-1])


def compare(
    parts: Components,
    folder: Path,
    settings: Mapping[str, Any],
    tmp_path: Path,
    backend: str = "native",
    denoiser: Denoiser | None = None,
) -> None:
    """Velocities of every step, frames, sound and provenance of one request in both languages.

    ``backend`` computes it in C++, ``denoiser`` in Python, by default the plain modules in PyTorch.
    """
    ours, theirs = media({"prompt": PROMPT, "seed": 7, "steps": 2, **settings}, tmp_path)
    expected, clips = trajectory(parts, denoiser or parts.ddit, Request(**ours))
    run = run_parity("clip", folder, json.dumps(theirs), backend)
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
