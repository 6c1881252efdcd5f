"""A denoising step of the d-DiT: both guidance branches batched in one forward, or one after the other."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from syncflow.engine.engine import Engine
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.job import audio_noise, video_noise
from syncflow.engine.types import Conditioning, Request, Velocities

BRANCHES = 2
PROMPT = "a large red rubber ball bounces on a wooden floor"


@dataclass(frozen=True)
class Step:
    """The inputs of one step at the middle of a clip's flow, with the times of both modalities shared."""

    model: DDiT
    video: Tensor
    audio: Tensor
    fps: float
    text: Conditioning

    @classmethod
    def of(cls, engine: Engine) -> Step:
        """The step of one request of the model's own size."""
        model, config = engine.components.ddit, engine.config.ddit
        prepared = engine.pipeline.prepare(Request(PROMPT, seed=7, guidance=6.0))
        job, cache = engine.pipeline.encode(prepared), ConditioningCache(model)
        video, audio = video_noise(job, config.video_channels)[None], audio_noise(job, config.audio_channels)[None]
        with torch.inference_mode():
            text = cache.texts([cache.text_of(job, prompted) for prompted in (True, False)])
        return cls(model, video, audio, float(job.sequence.fps), text)

    @torch.inference_mode()
    def velocities(self, branches: list[int]) -> Velocities:
        """One forward with a row for each branch."""
        rows = len(branches)
        half = torch.full((rows,), 0.5)
        z_v, z_a = self.video.expand(rows, -1, -1, -1, -1), self.audio.expand(rows, -1, -1)
        return self.model(z_v, z_a, half, half, torch.full((rows,), self.fps), self.text, torch.tensor(branches))


def test_step(measured: BenchmarkFixture, engine: Engine) -> None:
    """Both branches in one forward, in alternation with a forward for each.

    ``sequential_over_batched`` is the ratio of medians.
    """
    step = Step.of(engine)
    with torch.inference_mode():
        batched, sequential = step.velocities([0, 1]), [step.velocities([g]) for g in range(BRANCHES)]
        for one, several in (
            (batched.video, [v.video for v in sequential]),
            (batched.audio, [v.audio for v in sequential]),
        ):
            torch.testing.assert_close(one, torch.cat([v for v in several if v is not None]), rtol=1e-4, atol=1e-4)
    seconds: list[float] = []

    def one_by_one() -> None:
        began = time.perf_counter()
        for branch in range(BRANCHES):
            step.velocities([branch])
        seconds.append(time.perf_counter() - began)

    measured.pedantic(step.velocities, args=([0, 1],), setup=one_by_one, rounds=40, warmup_rounds=5)
    median = statistics.median(seconds)
    measured.extra_info["sequential_s"] = round(median, 5)
    if measured.stats is not None:
        measured.extra_info["sequential_over_batched"] = round(median / measured.stats.stats.median, 3)
