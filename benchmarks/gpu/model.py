"""The whole model: one guided step of syncflow-xl, and a clip of 50 of them, with the kernels and without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor

from ...engine.config import DDiTConfig, ModelConfig, SequenceConfig, preset
from ...engine.model import DDiT
from ...engine.model.audio import AudioLayer, ModalityAdaptor
from ...engine.model.denoiser import Modulation, Sight
from ...engine.model.video import STDiTBlock
from ...engine.sampling.loop import sample
from ...engine.types import Conditioning
from ...kernels import guided_euler_step
from ...kernels.launch import implementation
from ..flops import flops
from ..jobs import job as sampling_job
from ..kernels.cases import BATCHES, BRANCHES
from .machine import roof_of
from .stages import Item, Run

MICRO = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=0.5, width=32, height=32),
    ddit=DDiTConfig(
        width=32, depth=1, heads=2, audio_heads=2, video_channels=2, audio_channels=3, text_width=8, text_tokens=3
    ),
)
LAYERS = (STDiTBlock, AudioLayer, ModalityAdaptor)
STEPS, ROUNDS = 50, 20


@dataclass(frozen=True)
class Step:
    """One Euler step of ``batch`` clips with classifier-free guidance, at the middle of their flow.

    Text and times are computed before it, as in the loop.
    """

    model: DDiT
    video: Tensor
    audio: Tensor
    times: tuple[Modulation, Tensor]
    text: Conditioning
    sight: Sight
    rows: Tensor
    request: Tensor

    @classmethod
    def of(cls, model: DDiT, config: ModelConfig, batch: int, device: str) -> Step:
        """Random latents and a random text for every branch."""
        s, d, rows = config.sequence, config.ddit, BRANCHES * batch
        video = torch.randn(batch, d.video_channels, s.latent_frames, s.latent_height, s.latent_width, device=device)
        audio = torch.randn(batch, s.audio_tokens, d.audio_channels, device=device)
        states = torch.randn(rows, d.text_tokens, d.text_width, device=device, dtype=model.dtype)
        half, fps = (torch.full((rows,), value, device=device) for value in (0.5, float(s.fps)))
        every = torch.arange(rows, device=device)
        return cls(
            model,
            video,
            audio,
            (model.modulation(half[:, None], fps), model.audio_time(half)),
            model.condition(states, torch.full((rows,), d.text_tokens, device=device)),
            Sight(model.sight_positions(s.latent_frames, s.spatial_tokens), every),
            every.view(batch, BRANCHES),
            every // BRANCHES,
        )

    def __call__(self) -> list[Tensor]:
        """Both branches of every clip in one pass of each tower, then the guided step of both modalities."""
        batch, rows, dtype = len(self.rows), self.rows.flatten(), self.model.dtype
        z_v, z_a = (z.to(dtype)[self.request] for z in (self.video, self.audio))
        v_video, context = self.model.video_pass(z_v, self.times[0], self.text, rows, seen=rows)
        v_audio, _ = self.model.audio_pass(z_a, self.times[1], self.text, rows, context=context, sight=self.sight)
        # made on the device: a copy from the host could not be captured
        weights = torch.stack((self.audio.new_full((batch,), 6.0), self.audio.new_full((batch,), -5.0)), 1)
        dt, none = self.audio.new_full((batch,), 1 / STEPS), [None, None]
        copies = None if dtype == torch.float32 else dtype
        given = [v_video, v_audio], [self.rows] * 2, [weights] * 2, [dt] * 2
        return guided_euler_step([self.video, self.audio], *given, none, none, none, none, copies)


def step(run: Run) -> Iterator[Item]:
    """Batches by size; the kernels and the references, launched one by one and as a CUDA graph."""
    ways = ["kernels", "kernels, graph", "reference", "compiled reference", "compiled reference, graph"]
    if run.smoke:
        ways = ["kernels", "reference"]
    for batch in BATCHES[:1] if run.smoke else BATCHES:
        for way in ways:
            yield Item(f"batch {batch} {way}", partial(time_step, run, batch, way))


def clip(run: Run) -> Iterator[Item]:
    """The loop itself, as ``Engine.generate`` calls it, from noise to latents."""
    for way in ("kernels", "reference"):
        for batch in BATCHES[:1] if run.smoke else BATCHES:
            yield Item(f"batch {batch} {way}", partial(time_clip, run, batch, way))


def time_step(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Median time of a step, and what share of the measured bf16 rate it reaches by counted operations."""
    config = _config(run)
    how, _, graph = way.partition(", ")
    if run.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode(), _computing(run, how):
        work = Step.of(_model(run.device, run.smoke), config, batch, run.device)
        outputs = work()
        if not all(bool(x.isfinite().all()) for x in outputs):
            raise ValueError("the step gives numbers that are not finite")
        work()
        seconds = _times(_graph(work) if graph else work, 1 if run.smoke else ROUNDS, run.device)
    operations = batch * _step_flops(run.smoke)
    p50 = statistics.median(seconds)
    found = {"p50_ms": round(1e3 * p50, 3), "p20_ms": _ms(seconds, 0.2), "p80_ms": _ms(seconds, 0.8)}
    found |= {"tflop": round(operations / 1e12, 3), "tflop_s": round(operations / p50 / 1e12, 1)}
    if (roof := roof_of(run)) is not None and "bfloat16" in roof.matrix:
        found["mfu_percent"] = round(100 * operations / p50 / roof.matrix["bfloat16"], 1)
    if run.device == "cuda":
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return found


def time_clip(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Seconds from noise to the latents of ``batch`` clips."""
    config, model = _config(run), _model(run.device, run.smoke)
    one = sampling_job(config, 1 if run.smoke else STEPS, lead=0.0)
    text = replace(one.text, states=torch.randn(one.text.states.shape))
    jobs = [replace(one, text=text, seed=seed) for seed in range(batch)]
    with _computing(run, way):
        sample(model, [replace(j, schedule=sampling_job(config, 1, lead=0.0).schedule) for j in jobs])
        seconds = _times(lambda: sample(model, jobs), 1 if run.smoke or batch > 4 else 3, run.device)
    p50 = statistics.median(seconds)
    return {"p50_s": round(p50, 3), "clips_a_second": round(batch / p50, 3), "steps": len(one.schedule)}


@contextmanager
def _computing(run: Run, how: str) -> Iterator[None]:
    if how == "kernels":
        with implementation("triton" if run.smoke else "auto"):
            yield
    else:
        with implementation("reference"), _compiled() if how.startswith("compiled") else implementation("reference"):
            yield


@contextmanager
def _compiled() -> Iterator[None]:
    """The methods of the layers through ``torch.compile``: one compilation serves the layers of a kind."""
    torch._dynamo.reset()
    plain = [(cls, name, f) for cls in LAYERS for name, f in vars(cls).items() if isfunction(f) and name[0] != "_"]
    try:
        for cls, name, function in plain:
            setattr(cls, name, torch.compile(function, dynamic=False))
        yield
    finally:
        for cls, name, function in plain:
            setattr(cls, name, function)


def _config(run: Run) -> ModelConfig:
    return MICRO if run.smoke else preset("syncflow-xl")


@lru_cache(maxsize=1)
def _model(device: str, smoke: bool) -> DDiT:
    """Random weights everywhere: a fresh model has zeros, and products with zeros run faster than real ones."""
    with torch.device(device):
        model = DDiT((MICRO if smoke else preset("syncflow-xl")).ddit)
    model = model.to(torch.float32 if smoke else torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
    return model


@lru_cache(maxsize=1)
def _step_flops(smoke: bool) -> int:
    """Of one clip, counted on the meta device."""
    config = MICRO if smoke else preset("syncflow-xl")
    with torch.device("meta"):
        model = DDiT(config.ddit).eval().requires_grad_(False)
    return flops(Step.of(model, config, 1, "meta"))


def _graph(work: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _times(work: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Wall time of every round, the device's work included."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _ms(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
