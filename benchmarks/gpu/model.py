"""The whole model: a guided step of syncflow-xl in the sampling loop by how its passes run, and a clip of 50 steps.

The baselines are plain PyTorch operations in the same loop, the same layers as ``torch.compile`` makes them, and the
reference loop, in which every branch is a forward of its own from texts and times that are computed anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from ...engine.config import DDiTConfig, ModelConfig, SequenceConfig
from ...engine.cost.flops import flops
from ...engine.cost.jobs import synthetic_job
from ...engine.model import DDiT
from ...engine.model.denoiser import Denoiser
from ...engine.presets import preset
from ...engine.runtime.cuda_graphs.capture import eager_capture
from ...engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from ...engine.runtime.delegate import describe
from ...engine.runtime.fp8 import with_fp8
from ...engine.runtime.pytorch import torch_denoiser
from ...engine.runtime.selection.settings import TorchOptions
from ...engine.sampling.job import Job, Text
from ...engine.sampling.reference import ReferenceLoop
from ...engine.sampling.sequential import batch_of
from ...engine.types import Latents
from ...kernels.launch import implementation
from .compiled_layers import CompiledLayers
from .machine import roofline_of
from .stages import Item, Run

MICRO = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=0.5, width=32, height=32),
    ddit=DDiTConfig(
        width=32, depth=2, heads=2, audio_heads=2, video_channels=2, audio_channels=3, text_width=8, text_tokens=3
    ),
)
STEPS = 50
STEP_SECONDS = 1.5  # about what the steps of one item may take
COMPILE_SECONDS = 200.0  # until a compilation counts as hung
ALLOWED, ALLOWED_FP8 = 0.1, 0.5  # relative difference of a step from plain PyTorch

EAGER, PLAIN, REFERENCE = "eager", "plain PyTorch", "reference loop"
GRAPHS, OVERLAP, FP8 = "cuda graphs", "cuda graphs, overlap", "cuda graphs, overlap, fp8"
COMPILED, AUTOTUNED = "compiled, cuda graphs", "max-autotune, cuda graphs"
MODES = {COMPILED: None, AUTOTUNED: "max-autotune-no-cudagraphs"}  # the graphs are those of ``GRAPHS``


def step(run: Run) -> Iterator[Item]:
    """Batches of 1 and 16 in every runtime; compilation, which takes long, after the others."""
    batches = (1,) if run.smoke else (1, 16)
    for batch in batches:
        for runtime in (OVERLAP, GRAPHS, EAGER, PLAIN, REFERENCE):
            yield _step(run, batch, runtime)
    for batch in batches:
        yield _step(run, batch, COMPILED)
    yield _step(run, 1, FP8)
    if not run.quick and not run.smoke:
        yield _step(run, 1, AUTOTUNED)


def step_rest(run: Run) -> Iterator[Item]:
    """The other batches as the engine steps them, and fp8 at batch 16."""
    if run.smoke:
        yield _step(run, 2, OVERLAP)
        return
    yield _step(run, 16, FP8)
    for runtime in (OVERLAP, EAGER):
        for batch in (4, 8, 32, 2):
            yield _step(run, batch, runtime)


def clip(run: Run) -> Iterator[Item]:
    """From noise to latents, as ``Engine.generate`` samples."""
    for batch, runtime in ((1, OVERLAP), (16, OVERLAP), (1, EAGER)):
        if batch == 1 or not run.smoke:
            yield Item(f"batch {batch} {runtime}", partial(time_clip, run, batch, runtime))


def time_step(run: Run, batch: int, runtime: str) -> dict[str, Any]:
    """Time of a step within a run of steps, and what share of the measured bf16 rate it reaches.

    The FLOPs are those that the step needs, whatever a runtime computes beyond them. ``difference`` is that of the
    first step from plain PyTorch's, over the length of that step.
    """
    _fresh(run)
    found: dict[str, Any] = {}
    with _computing(run, runtime) as layers:
        began = time.perf_counter()
        work, latents = _first_step(run, batch, runtime)
        if runtime != PLAIN:
            found |= _compared(run, batch, latents(), ALLOWED_FP8 if runtime == FP8 else ALLOWED)
        rounds = 1
        if not run.smoke:
            _seconds(work, 2, run.device)  # every buffer is captured
            rounds = max(3, min(40, round(STEP_SECONDS / _seconds(work, 1, run.device))))
        if layers is not None:
            found |= {"compiled_graphs": layers.graphs, "compile_s": round(time.perf_counter() - began, 1)}
        each = _seconds(work, rounds, run.device) / rounds
        if layers is not None and layers.graphs > found["compiled_graphs"]:
            raise RuntimeError("layers were compiled while steps were timed")
    operations = batch * _step_flops(run.smoke)
    found |= {"ms": round(1e3 * each, 3), "steps": rounds, "clips_a_second": round(batch / each / STEPS, 3)}
    found |= {"tflop": round(operations / 1e12, 3), "tflop_s": round(operations / each / 1e12, 1)}
    if (roofline := roofline_of(run)) is not None and "bfloat16" in roofline.matrix:
        found["mfu_percent"] = round(100 * operations / each / roofline.matrix["bfloat16"], 1)
    return found | _peak(run)


def time_clip(run: Run, batch: int, runtime: str) -> dict[str, Any]:
    """Seconds from noise to the latents of ``batch`` clips, after as many that are not timed."""
    _fresh(run)
    steps = 1 if run.smoke else STEPS
    model = _denoiser(run, runtime)

    def work() -> None:
        one = batch_of(model, overlap="overlap" in runtime)
        one.join(_jobs(run.smoke, batch, steps))
        while not one.step():
            pass

    with implementation("auto"):
        if not run.smoke:
            _seconds(work, 1, run.device)
        seconds = _seconds(work, 1, run.device)
    return {"s": round(seconds, 3), "clips_a_second": round(batch / seconds, 3), "steps": steps} | _peak(run)


def _step(run: Run, batch: int, runtime: str) -> Item:
    work = partial(time_step, run, batch, runtime)
    return Item(f"batch {batch} {runtime}", work, **({"seconds": COMPILE_SECONDS} if runtime in MODES else {}))


def _first_step(run: Run, batch: int, runtime: str) -> tuple[Callable[[], object], Callable[[], Latents]]:
    """A loop that has done its first step: what does another, and what gives its latents."""
    jobs = _jobs(run.smoke, batch, 4 * STEPS)
    if runtime == REFERENCE:
        loop = ReferenceLoop(_model(run.device, run.smoke), jobs)
        loop.step()
        return loop.step, lambda: loop.latents
    one = batch_of(_denoiser(run, runtime), overlap="overlap" in runtime)
    one.join(jobs)
    one.step()
    return one.step, lambda: one.latents


@lru_cache(maxsize=2)
def _plain_step(device: str, smoke: bool, batch: int) -> tuple[Latents, Latents]:
    """The noise of a batch, and its latents after a step in plain PyTorch."""
    with implementation("reference"):
        one = batch_of(_model(device, smoke))
        one.join(_jobs(smoke, batch, 4 * STEPS))
        noise = _copied(one.latents)
        one.step()
        return noise, _copied(one.latents)


def _compared(run: Run, batch: int, found: Latents, allowed: float) -> dict[str, Any]:
    """The difference of a first step from that in plain PyTorch, and whether it is a fault."""
    noise, plain = _plain_step(run.device, run.smoke, batch)
    worst = 0.0
    for own, other, start in ((getattr(x, name) for x in (found, plain, noise)) for name in ("video", "audio")):
        worst = max(worst, float((own - other).norm() / (other - start).norm()))
    if not worst <= allowed:  # nor is NaN
        fault = f"the step is not that of plain PyTorch: relative difference {worst:.3g}, allowed {allowed}"
        return {"difference": worst, "faults": [f"batch {batch}: {fault}"]}
    return {"difference": round(worst, 6)}


def _copied(latents: Latents) -> Latents:
    return Latents(latents.video.clone(), latents.audio.clone())


def _denoiser(run: Run, runtime: str) -> Denoiser:
    """The passes of a runtime; those of ``MODES`` are compiled layer by layer in the graphs of ``GRAPHS``."""
    model = _model(run.device, run.smoke)
    if runtime in (EAGER, PLAIN):
        return model
    options = TorchOptions(cuda_graphs=True, overlap="overlap" in runtime, fp8=runtime == FP8)
    if run.smoke:
        small = with_fp8(model) if options.fp8 else model
        return CudaGraphDenoiser(small, overlap=bool(options.overlap), capture=eager_capture)
    made = torch_denoiser(model, "bfloat16", options)
    assert describe(made)["cuda_graphs"]
    return made


def _computing(run: Run, runtime: str) -> CompiledLayers | AbstractContextManager[None]:
    """How the operations run; kernels where nothing else is asked for."""
    if runtime in MODES:
        return CompiledLayers("trace" if run.smoke else MODES[runtime])
    if runtime in (PLAIN, REFERENCE):
        return implementation("reference")
    return implementation("triton" if run.smoke and runtime == EAGER else "auto")  # the interpreter takes its time


def _jobs(smoke: bool, batch: int, steps: int) -> list[Job]:
    """Clips of the model's own size with two branches, both modalities at a shared time; prompts are random."""
    one, d = synthetic_job(_config(smoke), steps, lead=0.0), _config(smoke).ddit
    random = torch.Generator().manual_seed(0)
    texts = [torch.randn(d.text_tokens, d.text_width, generator=random) for _ in range(batch)]
    return [replace(one, seed=i, text=Text(text, d.text_tokens)) for i, text in enumerate(texts)]


def _config(smoke: bool) -> ModelConfig:
    return MICRO if smoke else preset("syncflow-xl")


@lru_cache(maxsize=1)
def _model(device: str, smoke: bool) -> DDiT:
    """Random weights everywhere: a fresh model has zeros, and products with zeros run faster than real ones."""
    torch.manual_seed(0)
    with torch.device(device):
        model = DDiT(_config(smoke).ddit)
    model = model.to(torch.float32 if smoke else torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
    return model


@lru_cache(maxsize=1)
def _step_flops(smoke: bool) -> int:
    """Of one clip, counted on the meta device."""
    config = _config(smoke)
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
