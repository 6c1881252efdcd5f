"""Predicted and measured memory of a preset of full size under a budget: random weights, one step, decoding.

Measured is what the process has in memory at most (``VmHWM`` of Linux), less what it had before anything was loaded;
pages of memory-mapped weights count as soon as they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syncflow.engine.codecs import AudioCodec, TextEncoder, VideoCodec
from syncflow.engine.codecs.files import skip_initialization
from syncflow.engine.codecs.text import BYTE_VOCABULARY
from syncflow.engine.codecs.video import TINY_CLASS
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import Engine
from syncflow.engine.model import DDiT
from syncflow.engine.package import Package, write_manifest
from syncflow.engine.presets import PRESETS
from syncflow.engine.sampling.loop import run_batch
from syncflow.engine.types import Request
from syncflow.training.importers.tensors import TensorInfo, write_tensors

from .step import PROMPTS

# What presets of full size leave open: EnCodec's sizes at 48 kHz, and T5 1.1's gated MLP over bytes.
AUDIO = {"num_filters": 32, "hidden_size": 128, "num_lstm_layers": 2}
TEXT = {"feed_forward_proj": "gated-gelu", "d_kv": 64, "vocab_size": BYTE_VOCABULARY}
DEVIATION = 0.02


@dataclass(frozen=True)
class StagePeak:
    """Bytes of a stage of a request, weights included."""

    stage: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """The share by which the prediction is too large."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class FullSizePeak:
    """Bytes of one request under a ``budget``: ``weights`` of all parts, ``process`` before any is loaded."""

    model: str
    precision: str
    budget: int
    weights: int
    process: int
    kept: tuple[str, ...]
    stages: tuple[StagePeak, ...]

    @property
    def whole(self) -> StagePeak:
        """The peak over all stages."""
        predicted, measured = (max(getattr(one, name) for one in self.stages) for name in ("predicted", "measured"))
        return StagePeak("peak", predicted, measured)

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"peak": asdict(self.whole), "error": self.whole.error}


def write_random_package(config: ModelConfig, folder: Path, dtype: torch.dtype) -> Package:
    """A package with random weights, d-DiT and text encoder in ``dtype``, written tensor by tensor."""
    d, codec = config.ddit, config.video_vae
    large = d.audio_channels > AudioCodec().channels
    audio = AudioCodec().config | {"latent_channels": d.audio_channels} | (AUDIO if large else {})
    with skip_initialization():
        ddit = DDiT(d)
        video = VideoCodec.build(codec.class_name, codec.settings or None)
        sound = AudioCodec(audio)
    with torch.device("meta"):
        text = TextEncoder.build((TEXT if large else {}) | config.text_encoder.settings, d.text_tokens)
    described: dict[str, tuple[nn.Module, str, Mapping[str, Any], torch.dtype]] = {
        "ddit": (ddit, "diffusion_pytorch_model", d.to_dict(), dtype),
        "video_vae": (video.vae, *_layout(video), torch.float32),
        "audio_vae": (sound, "model", sound.config | _statistics(sound), torch.float32),
        "text_encoder": (text.encoder, "model", text.encoder.config | {"max_tokens": text.max_tokens}, dtype),
    }
    for name, (module, stem, values, kind) in described.items():
        part = folder / name
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(dict(values), indent=2) + "\n")
        _write_random(module, part / f"{stem}.safetensors", kind)
    return write_manifest(folder, config)


def _layout(video: VideoCodec) -> tuple[str, dict[str, Any]]:
    """The name of the weights and the configuration of Open-Sora's autoencoder or of the tiny model's."""
    values = {name: value for name, value in dict(video.config).items() if not name.startswith("_")}
    if "model_type" in values:
        return "model", values
    return "diffusion_pytorch_model", values | _statistics(video) | {"_class_name": TINY_CLASS}


def _statistics(codec: Any) -> dict[str, Any]:
    return {
        "_class_name": type(codec).__name__,
        "latents_mean": codec.shift.tolist(),
        "latents_std": codec.scale.tolist(),
    }


def _write_random(module: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Parameters of a module as repetitions of one random block, buffers as they are."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(DEVIATION)
    tensors, parameters = module.state_dict(), {name for name, _ in module.named_parameters()}
    infos = {
        name: TensorInfo(dtype if name in parameters else tensor.dtype, tuple(tensor.shape))
        for name, tensor in tensors.items()
    }

    def read(name: str) -> torch.Tensor:
        if name not in parameters:
            return tensors[name]
        count = tensors[name].numel()
        return block.to(dtype).repeat(-(-count // len(block)))[:count].view(tensors[name].shape)

    write_tensors(file, infos, read)


def measure(preset: str, folder: Path, precision: str, memory: str, quantization: str | None = None) -> FullSizePeak:
    """Write the package of a preset to ``folder`` unless it is there, and run one request of it under a budget.

    ``quantization`` as of ``Engine``.
    Raises ``ValueError`` for an unknown preset and for a budget that is too small.
    """
    if preset not in PRESETS:
        raise ValueError(f"the preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    if not (folder / "manifest.json").is_file():
        write_random_package(PRESETS[preset], folder, getattr(torch, precision))
    engine = Engine.from_pretrained(
        folder, runtime="torch", precision=precision, memory=memory, quantization=quantization, device="cpu"
    )
    residency = engine.components.residency
    assert engine.memory_plan is not None and residency is not None
    process = resident("VmRSS")
    for part in engine.memory_plan.kept:  # from their first use on, as in the plan
        with residency.using(part):
            pass
    prepared = engine.pipeline.prepare(Request(PROMPTS[0], steps=1))
    found: dict[str, int] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        residency.release()  # what the stage before has left, which goes before anything is loaded
        reset_peak()
        result = work()
        found[name] = resident("VmHWM") - process
        return result

    job = stage("text", lambda: engine.backend.encode(prepared))
    latents = stage("steps", lambda: _steps(engine, job))
    stage("decoding", lambda: engine.backend.decode(prepared, latents))
    plan = engine.memory_plan
    predicted = {one.name: plan.at(one) for one in plan.stages}
    predicted["decoding"] = max(size for name, size in predicted.items() if name in ("frames", "sound"))
    rows = tuple(StagePeak(name, predicted[name], size) for name, size in found.items())
    computed = precision if quantization is None else f"{precision}, {quantization}"
    return FullSizePeak(preset, computed, plan.budget, sum(plan.weights.values()), process, plan.kept, rows)


def _steps(engine: Engine, job: Any) -> Any:
    with engine.backend.stepping():
        return run_batch(engine.backend.make_batch(), [job])[0]


def resident(name: str) -> int:
    """Bytes of this process by their name in ``/proc/self/status``: ``VmRSS`` now, ``VmHWM`` at most."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, "Linux alone says what a process has in memory"
    return int(found[1]) << 10


def reset_peak() -> None:
    """Let ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def table(found: FullSizePeak) -> str:
    """A Markdown line for each stage, and the peak."""
    kept = ", ".join(found.kept) or "nothing"
    lines = [
        f"{found.model} in {found.precision}, {found.budget / 1e9:.1f} GB allowed, {found.weights / 1e9:.2f} GB of "
        f"weights, kept: {kept}; the process had {found.process / 1e9:.2f} GB before",
        "",
        "| stage | predicted, GB | measured, GB | error |",
        "|---|--:|--:|--:|",
    ]
    for one in (*found.stages, found.whole):
        lines.append(f"| {one.stage} | {one.predicted / 1e9:.2f} | {one.measured / 1e9:.2f} | {one.error:+.1%} |")
    return "\n".join(lines)
