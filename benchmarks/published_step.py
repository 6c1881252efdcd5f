"""A guided step of Open-Sora's own STDiT3 in eager PyTorch beside the same step of this engine, in alternation.

``python -m syncflow.benchmarks.published_step FOLDER``: FOLDER is a checkout of Open-Sora v1.2.0, whose modules need
einops, rotary-embedding-torch and transformers. Both have the same random weights, and their velocities are compared
before they are timed. Attention of xformers, which needs a GPU, is PyTorch's here, and timm's MLP two linear layers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from syncflow.engine.config import SequenceConfig
from syncflow.engine.exports import ExportLocations
from syncflow.engine.model import DDiT
from syncflow.engine.model.denoiser import Denoiser, VideoInputs
from syncflow.engine.presets import OPEN_SORA
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.timing import Workload
from syncflow.engine.sampling.trial import make_step

from .alternating import Timing, alternate, ratio

TEXT_WIDTH = 512
GUIDANCE, STEPS, FPS = 7.0, 30, 24.0
TOLERANCE = 1e-5
DEVIATION = 0.05


def ddit_of(width: int, heads: int, depth: int) -> DDiT:
    """An STDiT3 of this engine with random weights."""
    sizes = {"width": width, "depth": depth, "heads": heads, "audio_heads": heads, "text_width": TEXT_WIDTH}
    model = DDiT(OPEN_SORA.ddit.replace(**sizes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=DEVIATION, generator=generator)
    return model


def published_of(folder: Path, model: DDiT) -> Any:
    """Open-Sora's STDiT3 with the weights of ``model``. Raises ``ValueError`` for a folder without it."""
    if not (folder / "opensora/models/stdit/stdit3.py").is_file():
        raise ValueError(f"{folder} has no opensora/models/stdit/stdit3.py; it must be a checkout of Open-Sora v1.2.0")
    with _importing(folder):
        from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config

    d = model.config
    sizes = {"hidden_size": d.width, "depth": d.depth, "num_heads": d.heads, "caption_channels": d.text_width}
    made = STDiT3(STDiT3Config(**sizes, model_max_length=d.text_tokens)).eval().requires_grad_(False)
    rest = made.load_state_dict(model.video.state_dict(), strict=False)
    assert not rest.unexpected_keys
    assert all("rope" in name or "pos_embed" in name for name in rest.missing_keys), rest.missing_keys
    return made


class PublishedStep:
    """The steps of a clip as ``RFLOW.sample`` does them: both branches in one forward, then Euler."""

    def __init__(self, model: Any, sequence: SequenceConfig, text: Tensor) -> None:
        s, null = sequence, model.y_embedder.y_embedding[None, None]
        self.model, self.k = model, 0
        self.start = torch.randn(1, 4, s.latent_frames, s.latent_height, s.latent_width)
        self.z = self.start
        self.inputs = {
            "y": torch.cat([text[None, None], null]),
            "mask": torch.ones(1, len(text), dtype=torch.int64),
            "fps": torch.tensor([FPS]),
            "height": torch.tensor([float(s.height)]),
            "width": torch.tensor([float(s.width)]),
        }

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """One guided Euler step."""
        if self.k == STEPS:
            self.z, self.k = self.start, 0
        t = torch.tensor([1000 * (1 - self.k / STEPS)])
        predicted = self.model(torch.cat([self.z, self.z]), torch.cat([t, t]), **self.inputs).chunk(2, dim=1)[0]
        with_text, without = predicted.chunk(2)
        self.z, self.k = self.z + (without + GUIDANCE * (with_text - without)) / STEPS, self.k + 1
        return self.z


@torch.inference_mode()
def difference(model: DDiT, published: Any, sequence: SequenceConfig, text: Tensor) -> float:
    """The relative difference of the velocities of both with the text, at one flow time."""
    step = PublishedStep(published, sequence, text)
    one = step.inputs | {"y": step.inputs["y"][:1]}
    expected = published(step.z, torch.tensor([700.0]), **one).chunk(2, dim=1)[0]
    times = model.modulation(torch.tensor([[0.3]]), torch.tensor([FPS]))
    given = model.condition(text[None], torch.tensor([len(text)]))
    found, _ = model.video_pass(VideoInputs(step.z, times, given, torch.tensor([0])))
    return float((found - expected).norm() / expected.norm())


def measure(folder: Path, model: DDiT, side: int, timing: Timing, runtime: str = "auto") -> dict[str, Any]:
    """Milliseconds of a step of both, and the ratio. Raises ``ValueError`` where they compute something else."""
    torch.manual_seed(0)
    published, sequence = published_of(folder, model), OPEN_SORA.sequence.replace(width=side, height=side)
    text = torch.randn(model.config.text_tokens, TEXT_WIDTH)
    error = difference(model, published, sequence, text)
    if not error < TOLERANCE:
        raise ValueError(f"the velocities differ by {error:.1e}, more than {TOLERANCE:g}; is this Open-Sora v1.2.0?")
    start: Callable[[Denoiser], Callable[[], Tensor]] = partial(make_step, sequence)
    chosen = choose(runtime, model, ExportLocations(None, ""), "float32", Workload(sequence, start))
    steps: dict[str, Callable[[], object]] = {
        "published": PublishedStep(published, sequence, text),
        "own": start(chosen.denoiser),
    }
    seconds = alternate(steps, timing)
    return {
        "runtime": chosen.runtime,
        "difference": error,
        "ms": {name: round(1e3 * sorted(times)[len(times) // 2], 1) for name, times in seconds.items()},
        "ratio": ratio(seconds["published"], seconds["own"]).to_dict(),
    }


@contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """Modules of Open-Sora can be imported, without its registry, its training and xformers."""
    packages = {name: ModuleType(name) for name in ("opensora", "opensora.models", "opensora.models.stdit")}
    for name, package in packages.items():
        package.__path__ = [str(folder / name.replace(".", "/"))]
    registry, checkpoints = ModuleType("opensora.registry"), ModuleType("opensora.utils.ckpt_utils")
    registry.MODELS = _Registry()  # type: ignore[attr-defined]
    checkpoints.load_checkpoint = None  # type: ignore[attr-defined]
    xformers, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    timm = [
        ModuleType(name) for name in ("timm", "timm.models", "timm.models.layers", "timm.models.vision_transformer")
    ]
    ops.memory_efficient_attention, ops.fmha, xformers.ops = _attention, _Masks, ops  # type: ignore[attr-defined]
    timm[2].DropPath, timm[3].Mlp = torch.nn.Identity, _Mlp  # type: ignore[attr-defined]
    made = (*packages.values(), registry, checkpoints, xformers, ops, *timm)
    sys.modules |= {module.__name__: module for module in made}
    try:
        yield
    finally:
        for module in (xformers, ops, *timm):
            del sys.modules[module.__name__]


class _Registry:
    def register_module(self, *_: object) -> Callable[[Any], Any]:
        return lambda made: made


class _Masks:
    """In the place of ``xformers.ops.fmha``: a mask is the lengths of queries and of keys of every row."""

    class BlockDiagonalMask:
        @staticmethod
        def from_seqlens(queries: list[int], keys: list[int]) -> tuple[list[int], list[int]]:
            return queries, keys


class _Mlp(torch.nn.Module):
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        act_layer: Callable[[], torch.nn.Module] = torch.nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1, self.act = torch.nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = torch.nn.Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, attn_bias: Any = None) -> Tensor:
    """(1, rows x N, n, d) and (1, rows x M, n, d), row by row."""
    queries, keys = attn_bias
    parts = zip(*(x.split(lengths, 1) for x, lengths in ((q, queries), (k, keys), (v, keys))), strict=True)
    rows = [scaled_dot_product_attention(*(x.transpose(1, 2) for x in row)).transpose(1, 2) for row in parts]
    return torch.cat(rows, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a guided step of Open-Sora's own code beside this engine's.")
    parser.add_argument("folder", type=Path, help="checkout of Open-Sora v1.2.0")
    parser.add_argument("--width", type=int, default=128, help="width of the tower; default: 128")
    parser.add_argument("--heads", type=int, default=2, help="attention heads; default: 2")
    parser.add_argument("--depth", type=int, default=6, help="layers of the tower; default: 6")
    parser.add_argument("--side", type=int, default=128, help="pixels of a side; default: 128")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds; default: 9")
    parser.add_argument("--runtime", default="auto", help="runtime of this engine; default: auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="clock, or CPU time of all threads")
    parser.add_argument("--at-least", type=float, help="exit code 1 if the ratio is smaller; default: print")
    given = parser.parse_args()
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    model, timing = ddit_of(given.width, given.heads, given.depth), Timing(given.rounds, clock)
    found = measure(given.folder, model, given.side, timing, given.runtime)
    print(json.dumps(found, indent=2))
    if given.at_least is not None and found["ratio"]["median"] < given.at_least:
        sys.exit(1)


if __name__ == "__main__":
    main()
