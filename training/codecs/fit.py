"""The loop that both codecs are trained by: warm-up, cosine decay, averaged weights, checkpoints, statistics.

Random numbers of step i depend on (seed, i) alone, so a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.codecs.audio import AudioCodec
from ...engine.codecs.files import stored
from ...engine.codecs.video import VideoCodec
from ...engine.progress import progress_bar
from ...engine.replacement import replacement
from ..schedule import share_done
from .kernel_muon import KernelMuon

Codec = TypeVar("Codec", VideoCodec, AudioCodec)
Losses = Callable[[Codec, np.random.Generator, float], dict[str, Tensor]]
PRECISION = torch.float16  # of codecs in a package, so that latents are those of every later stage


@dataclass(frozen=True)
class CodecRecipe:
    """How a codec is trained: ``steps``, or fewer when ``minutes`` of training time (0: no limit) are over.

    ``rate`` is the spectral norm of a kernel's first full update. ``noise`` is the largest deviation of the noise that
    decoders see, in units of the latents' own deviation, drawn per example; it rises from 0 over the first quarter.
    ``ema`` is the decay of the averaged weights, ``save_seconds`` the most that a kill can lose.
    """

    steps: int = 2000
    minutes: float = 0.0
    batch: int = 4
    rate: float = 3e-2
    warmup: int = 20
    kl: float = 1e-4
    noise: float = 0.25
    ema: float = 0.998
    seed: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.minutes < 0 or self.batch < 1:
            raise ValueError(
                f"steps is {self.steps}, minutes {self.minutes} and batch {self.batch}; steps and batch must be at "
                "least 1, and minutes 0 (no limit) or more"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be from 0 to below 1")


def fit(
    codec: Codec,
    out: Path,
    recipe: CodecRecipe,
    losses: Losses[Codec],
    latents: Callable[[Codec], Tensor],
) -> Codec:
    """Train ``codec`` and write it to ``out``; checkpoint and TensorBoard events stand in ``<out>-training`` beside it.

    ``losses(codec, rng, noise)`` draws a batch and gives its loss terms; ``latents(codec)`` gives raw latents (N, C)
    for the statistics. Goes on from a checkpoint that is there; ``ValueError`` when it belongs to other settings, and
    for a gradient that is not finite.
    """
    from torch.utils.tensorboard import SummaryWriter

    run = out.with_name(f"{out.name}-training")
    run.mkdir(parents=True, exist_ok=True)
    codec.to("cuda" if torch.cuda.is_available() else "cpu").train()
    parameters: list[Tensor] = list(codec.parameters())
    optimizer = KernelMuon(parameters, lr=recipe.rate)
    average = [p.detach().clone() for p in parameters]
    step, seconds = _resume(run / "checkpoint.pt", codec, optimizer, average)

    def progress() -> float:
        return share_done(step, seconds, recipe.steps, recipe.minutes)

    saved_at = seconds
    with SummaryWriter(str(run)) as log, progress_bar(total=100, unit="%", desc=out.name) as bar:
        while progress() < 1:
            began = time.monotonic()
            torch.manual_seed((recipe.seed << 32) + step)
            rate = (
                recipe.rate * min(1, (step + 1) / recipe.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress())))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            noise = recipe.noise * min(1, 4 * progress())
            parts = losses(codec, np.random.default_rng((recipe.seed, step)), noise)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()
            if not nn.utils.clip_grad_norm_(parameters, 1.0).isfinite():
                raise ValueError(
                    f"the gradient of step {step + 1} of {out.name} is not finite; the last checkpoint is kept"
                )
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - min(recipe.ema, (1 + step) / (10 + step)))
            step += 1
            seconds += time.monotonic() - began
            if step % 20 == 0:
                values = {name: float(part.detach()) for name, part in parts.items()}
                for name, value in values.items():
                    log.add_scalar(name, value, step)
                bar.set_postfix(
                    {"step": step} | {name: f"{value:.4f}" for name, value in values.items()}, refresh=False
                )
            bar.update(min(100, round(100 * progress(), 1)) - bar.n)
            if seconds - saved_at > recipe.save_seconds:
                saved_at = seconds
                _save(run / "checkpoint.pt", codec, optimizer, average, step, seconds)
    _save(run / "checkpoint.pt", codec, optimizer, average, step, seconds)
    with torch.no_grad():
        for live, mean in zip(parameters, average, strict=True):
            live.copy_(mean)
        for tensor in codec.state_dict().values():
            tensor.copy_(stored(tensor, PRECISION))
        codec.eval()
        found = latents(codec)
        codec.set_statistics(found.mean(0), found.std(0))
    codec.save_pretrained(out, PRECISION)
    return codec


def noised(mean: Tensor, logvar: Tensor, largest: float) -> Tensor:
    """A sample of the posterior (B, C, ...), with 0 to ``largest`` deviations of the latents as further noise."""
    others = [d for d in range(mean.ndim) if d != 1]
    deviation = mean.detach().std(dim=others, keepdim=True)
    sigma = largest * torch.rand(len(mean), *[1] * (mean.ndim - 1), device=mean.device) * deviation
    return mean + (logvar.exp() + sigma.square()).sqrt() * torch.randn_like(mean)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the posterior from N(0, 1), the mean over latent values."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _resume(path: Path, codec: nn.Module, optimizer: KernelMuon, average: list[Tensor]) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    try:
        codec.load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        for live, mean in zip(average, saved["average"], strict=True):
            live.copy_(mean)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} belongs to a codec of other settings ({reason}); remove it or train into another folder"
        ) from None
    return saved["step"], saved["seconds"]


def _save(
    path: Path, codec: nn.Module, optimizer: KernelMuon, average: list[Tensor], step: int, seconds: float
) -> None:
    state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with replacement(path) as part:
        torch.save(state | {"step": step, "seconds": seconds}, part)
