"""A step and a clip in every runtime, kinds of guidance, and several sounds of one video: each in alternation.

The same on a CPU and on a GPU (``--device``). Results are compared with the reference loop's before they are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from syncflow.benchmarks import clip
from syncflow.benchmarks.diffusers_loop import maker
from syncflow.benchmarks.replay import Alternating
from syncflow.benchmarks.roofline import Rates
from syncflow.benchmarks.step import PROMPTS, variants
from syncflow.engine.cost.request import request_cost
from syncflow.engine.engine import Engine
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Request

BATCHES = (1, 8)
ROUNDS = {1: 20, 8: 10}
CLIP_ROUNDS = {1: 10, 8: 6}
ALLOWED = 1e-3  # relative error of velocities
STEPS = 8
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {"guidance": 1.0},
    "classifier-free": {"guidance": 6.0},
    "negative prompt": {"guidance": 6.0, "negative_prompt": PROMPTS[1]},
    "sync guidance": {"guidance": 6.0, "sync_guidance": 2.0},
    "SyncCFG of the audio": {"guidance": 6.0, "sync_cfg_audio": 2.0},
    "interval": {"guidance": 6.0, "guidance_interval": (0.2, 0.8)},
    "rescale": {"guidance": 6.0, "guidance_rescale": 0.7},
}

Chosen = dict[str, RuntimeChoice]


def automatic(chosen: Chosen) -> str:
    """The name of the runtime that was chosen automatically."""
    return next(name for name in chosen if name.startswith("auto"))


def reset_peak(device: str) -> None:
    """Begin to record the peak of a GPU's memory."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: str) -> dict[str, float]:
    """The peak of a GPU's memory since then; of a CPU, see ``bench_memory.py``."""
    if torch.device(device).type != "cuda":
        return {}
    return {"peak_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1)}


@pytest.mark.parametrize("batch", BATCHES)
def test_step(
    alternating: Alternating,
    measured: BenchmarkFixture,
    step_engine: Engine,
    chosen: Chosen,
    rates: Rates,
    device: str,
    batch: int,
) -> None:
    """A step of clips with two branches: the reference loop, every runtime, and diffusers' loop at equal FLOPs."""
    every = variants(step_engine, chosen, batch)
    assert max(one.rel_err for one in every if one.rel_err is not None) < ALLOWED
    left_out: list[str] = []
    if (other_work := maker(step_engine.config, batch, device, left_out.append)) is not None:
        every.append(other_work(every[-1].flops))
    reset_peak(device)
    seconds = alternating({one.name: one.step for one in every}, automatic(chosen), ROUNDS[batch])
    rows = {}
    for one in every:
        rate = one.flops / statistics.median(seconds[one.name])
        rows[one.name] = {"gflops": round(rate / 1e9, 1), "roofline_percent": round(100 * rate / rates.matrix, 1)}
        if one.launches is not None and one.bytes is not None:
            rows[one.name] |= {"launches": one.launches, "mb": round(one.bytes / 1e6, 1)}
    measured.extra_info |= {"rows": rows, "matrix_gflops": round(rates.matrix / 1e9, 1), **peak_mb(device)}
    measured.extra_info |= {"left_out": left_out[0]} if left_out else {}


@pytest.mark.parametrize("batch", BATCHES)
def test_clip(
    alternating: Alternating, measured: BenchmarkFixture, step_engine: Engine, chosen: Chosen, device: str, batch: int
) -> None:
    """From sentences to frames and sound, eight steps."""
    functions = clip.makers(step_engine, chosen, batch, STEPS)
    reset_peak(device)
    alternating(functions, automatic(chosen), CLIP_ROUNDS[batch])
    measured.extra_info |= {"steps": STEPS, **peak_mb(device)}


def sampling(engine: Engine, runtime: RuntimeChoice, request: Request) -> Callable[[], object]:
    """From noise to latents."""
    job = engine.pipeline.encode(engine.pipeline.prepare(request))
    return partial(sample, runtime.denoiser, [job], overlap=runtime.overlap)


def test_guidance(alternating: Alternating, measured: BenchmarkFixture, step_engine: Engine, chosen: Chosen) -> None:
    """Kinds of guidance beside none, from noise to latents; ``flops`` are those of each over those of none."""
    runtime, config = chosen[automatic(chosen)], step_engine.config
    asked = {name: Request(PROMPTS[0], steps=STEPS, **settings) for name, settings in GUIDANCE.items()}
    works = {name: sampling(step_engine, runtime, request) for name, request in asked.items()}
    seconds = alternating(works, "none", 5)
    counts = {name: request_cost(config, request).total for name, request in asked.items()}
    assert statistics.median(seconds["classifier-free"]) > statistics.median(seconds["none"])
    measured.extra_info["flops"] = {name: round(count / counts["none"], 3) for name, count in counts.items()}


def test_takes(alternating: Alternating, measured: BenchmarkFixture, step_engine: Engine, chosen: Chosen) -> None:
    """Eight sounds of one video in one request, beside eight requests with a sound each, from noise to latents."""
    runtime, config = chosen[automatic(chosen)], step_engine.config
    if config.ddit.video_reads_audio:
        pytest.skip("in this model every sound needs a video of its own")
    together = Request(PROMPTS[0], steps=STEPS, takes=8)
    single = [Request(PROMPTS[0], steps=STEPS, seed=0, audio_seed=k) for k in range(8)]
    each = [sampling(step_engine, runtime, request) for request in single]
    works = {"together": sampling(step_engine, runtime, together), "one by one": lambda: [work() for work in each]}
    alternating(works, "together", 5)
    counts = [request_cost(config, request).total for request in (together, single[0])]
    measured.extra_info["flops"] = {"one by one": round(8 * counts[1] / counts[0], 3)}
