"""The whole model: a guided step of syncflow-xl in the sampling loop, by who runs its passes, and a clip of 50 of them.

The baselines are the loop without this package's savings, every branch a forward of its own from texts and times that
are computed anew, and the layers as ``torch.compile`` makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from inspect import isfunction
from typing import Any

import torch

from ...engine.config import DDiTConfig, ModelConfig, SequenceConfig
from ...engine.cost.flops import flops
from ...engine.cost.jobs import synthetic_job
from ...engine.model import DDiT
from ...engine.model.audio import AudioLayer, ModalityAdaptor
from ...engine.model.denoiser import Denoiser
from ...engine.model.video import STDiTBlock
from ...engine.presets import preset
from ...engine.runtime.cuda_graphs.capture import eager_capture
from ...engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from ...engine.runtime.delegate import describe
from ...engine.sampling.job import Job, Text
from ...engine.sampling.reference import ReferenceLoop
from ...engine.sampling.sequential import batch_of
from ...kernels.launch import implementation
from .machine import roofline_of
from .stages import Item, Run

MICRO = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=0.5, width=32, height=32),
    ddit=DDiTConfig(
        width=32, depth=1, heads=2, audio_heads=2, video_channels=2, audio_channels=3, text_width=8, text_tokens=3
    ),
)
LAYERS = (STDiTBlock, AudioLayer, ModalityAdaptor)
BATCHES = (1, 2, 4, 8, 16, 32)
WAYS = ("eager", "cuda graphs", "cuda graphs, overlap", "naive", "reference")
COMPILED = ("compiled", "compiled, cuda graphs")
STEPS = 50
STEP_SECONDS = 1.5  # about what the steps of one item may take
GRAPH_ROWS, GRAPH_BYTES = 64, 80 << 30  # graphs at every batch, to see where they stop paying


def step(run: Run) -> Iterator[Item]:
    """Batches by size; compilation, which takes long, comes last and for small batches alone."""
    for batch in BATCHES[:1] if run.smoke else BATCHES:
        for way in WAYS:
            yield Item(f"batch {batch} {way}", partial(time_step, run, batch, way))
    for batch in BATCHES[:1] if run.smoke else (1, 4):
        for way in COMPILED:
            yield Item(f"batch {batch} {way}", partial(time_step, run, batch, way))


def clip(run: Run) -> Iterator[Item]:
    """From noise to latents, as ``Engine.generate`` samples."""
    for batch in BATCHES[:1] if run.smoke else (1, 4, 16):
        for way in ("eager", "cuda graphs", "cuda graphs, overlap"):
            yield Item(f"batch {batch} {way}", partial(time_clip, run, batch, way))


def time_step(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Time of a step within a run of steps, and what share of the measured bf16 rate it reaches.

    The operations are those that the step needs, whatever a way computes beyond them.
    """
    _fresh(run)
    with _computing(run, way):
        work = _stepper(run, batch, way)
        rounds = 1
        if not run.smoke:
            _seconds(work, 3, run.device)  # every buffer is captured
            each = _seconds(work, 3, run.device) / 3
            rounds = max(4, min(40, round(STEP_SECONDS / each)))
        p50 = _seconds(work, rounds, run.device) / rounds
    operations = batch * _step_flops(run.smoke)
    found = {"ms": round(1e3 * p50, 3), "steps": rounds, "clips_a_second": round(batch / p50 / STEPS, 3)}
    found |= {"tflop": round(operations / 1e12, 3), "tflop_s": round(operations / p50 / 1e12, 1)}
    if (roofline := roofline_of(run)) is not None and "bfloat16" in roofline.matrix:
        found["mfu_percent"] = round(100 * operations / p50 / roofline.matrix["bfloat16"], 1)
    return found | _peak(run)


def time_clip(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Seconds from noise to the latents of ``batch`` clips, after as many that are not timed."""
    _fresh(run)
    steps = 1 if run.smoke else STEPS
    model = _denoiser(run, way)

    def work() -> None:
        one = batch_of(model, overlap="overlap" in way)
        one.join(_jobs(run, batch, steps))
        while not one.step():
            pass

    with implementation("auto"):
        if not run.smoke:
            _seconds(work, 1, run.device)
        seconds = _seconds(work, 1, run.device)
    return {"s": round(seconds, 3), "clips_a_second": round(batch / seconds, 3), "steps": steps} | _peak(run)


def _stepper(run: Run, batch: int, way: str) -> Callable[[], object]:
    jobs = _jobs(run, batch, 4 * STEPS)
    if way == "naive":
        return ReferenceLoop(_model(run.device, run.smoke), jobs).step
    one = batch_of(_denoiser(run, way), overlap="overlap" in way)
    one.join(jobs)
    one.step()
    latents = one.latents
    if not all(bool(x.isfinite().all()) for x in (latents.video, latents.audio)):
        raise ValueError("the step gives numbers that are not finite")
    return one.step


def _denoiser(run: Run, way: str) -> Denoiser:
    model = _model(run.device, run.smoke)
    if "cuda graphs" not in way:
        return model
    made = CudaGraphDenoiser(
        model,
        overlap="overlap" in way,
        max_rows=GRAPH_ROWS,
        max_bytes=GRAPH_BYTES,
        capture=eager_capture if run.smoke else None,
    )
    assert describe(made)["cuda_graphs"]
    return made


def _jobs(run: Run, batch: int, steps: int) -> list[Job]:
    """Clips of the model's own size with two branches, both modalities at a shared time; prompts are random."""
    one = synthetic_job(_config(run), steps, lead=0.0)
    d = _config(run).ddit
    texts = [Text(torch.randn(d.text_tokens, d.text_width), d.text_tokens) for _ in range(batch)]
    return [replace(one, seed=i, text=text) for i, text in enumerate(texts)]


@contextmanager
def _computing(run: Run, way: str) -> Iterator[None]:
    if way.startswith("compiled"):
        with implementation("reference"), _compiled(run):
            yield
    elif way in ("naive", "reference"):
        with implementation("reference"):
            yield
    else:  # in a smoke run the interpreter takes its time
        with implementation("triton" if run.smoke and way == "eager" else "auto"):
            yield


@contextmanager
def _compiled(run: Run) -> Iterator[None]:
    """The methods of the layers through ``torch.compile``: one compilation serves the layers of a kind."""
    torch._dynamo.reset()
    how: dict[str, Any] = {"backend": "eager"} if run.smoke else {"mode": "max-autotune-no-cudagraphs"}
    plain = [(cls, name, f) for cls in LAYERS for name, f in vars(cls).items() if isfunction(f) and name[0] != "_"]
    try:
        for cls, name, function in plain:
            setattr(cls, name, torch.compile(function, dynamic=False, **how))
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
    one = batch_of(model)
    one.join([synthetic_job(config, 2, lead=0.0)])
    return flops(one.step)


def _fresh(run: Run) -> None:
    if run.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(run: Run) -> dict[str, Any]:
    return {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)} if run.device == "cuda" else {}


def _seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Wall time of some rounds, the device's work included; the host is free to be ahead of it within them."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
