"""Training of the codecs: crops, losses and the two recipes ``train_video_codec`` and ``train_audio_codec``.

The latent must be easy for a small diffusion transformer: decoders are trained on latents with added noise, so that near-by latents
decode alike and imperfect ones decode well; a small KL term keeps their size bounded.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.codecs.audio import AudioCodec
from ..engine.codecs.video import VideoCodec
from .muon import orthogonalise

Codec = TypeVar("Codec", VideoCodec, AudioCodec)


@dataclass(frozen=True)
class CodecRecipe:
    """How a codec is trained. The end is ``steps`` or, without it, ``minutes`` of training time over all sittings.

    ``noise`` is the largest deviation of the noise that decoders see, in units of the latent's own deviation; it is drawn
    uniformly from 0 per example. ``save_seconds`` is the most that a kill can lose.
    """

    steps: int | None = None
    minutes: float = 13.0
    batch: int = 4
    rate: float = 3e-2
    warmup: int = 20
    kl: float = 1e-4
    noise: float = 0.25
    ema: float = 0.998
    seed: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.minutes <= 0 or self.batch < 1:
            raise ValueError(f"steps {self.steps}, minutes {self.minutes} and batch {self.batch} must be above 0")


VIDEO_RECIPE = CodecRecipe()
AUDIO_RECIPE = CodecRecipe(batch=8, rate=1e-2, noise=0.15, warmup=60, kl=1e-3)

VIDEO_WINDOWS = ((16, 32, 32), (16, 32, 32), (16, 64, 32), (16, 64, 64))
AUDIO_WINDOWS = (16, 16, 16, 75)
QUIET = 3e-4
SPECTRAL_SIZES = (2048, 1024, 512, 256, 128)


class KernelMuon(torch.optim.Optimizer):
    """Muon for convolutions: kernels are orthogonalised as (out, in * taps) matrices, vectors take Adam's step.

    ``lr`` is the spectral norm of a kernel's update; vectors move by a tenth of it.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            kernels: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p), "steps": 0}
                state["steps"] += 1
                state["mean"].lerp_(p.grad, 1 - momentum)
                if p.ndim > 1:
                    update = torch.lerp(p.grad, state["mean"], momentum).flatten(1)
                    kernels[update.shape[0], update.shape[1]].append((p, update))
                else:
                    state["square"].lerp_(p.grad.square(), 1 - momentum)
                    fresh = 1 - momentum ** state["steps"]
                    p.sub_(0.1 * lr * (state["mean"] / fresh) / (state["square"] / fresh).sqrt().add(1e-8))
            for members in kernels.values():
                for (p, _), update in zip(members, orthogonalise(torch.stack([u for _, u in members])), strict=True):
                    p.sub_(lr * update.view_as(p))


def train_video_codec(
    frames: np.ndarray, out: str | Path, *, recipe: CodecRecipe = VIDEO_RECIPE, settings: dict[str, Any] | None = None
) -> VideoCodec:
    """Train on ``frames`` uint8 (N, F, H, W, 3) and write the codec to ``out``; resumes from ``out/training`` after a kill."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 (clips, frames, height, width, 3)")

    def loss(codec: VideoCodec, rng: np.random.Generator, noise: float) -> dict[str, Tensor]:
        pixels, weight = video_batch(frames, recipe.batch, rng)
        mean, logvar = codec.posterior(pixels)
        made = codec.pixels(_noised(mean, logvar, noise), pixels.shape[2])
        return video_losses(made, pixels, weight) | {"kl": recipe.kl * _kl(mean, logvar)}

    def latents(codec: VideoCodec) -> Tensor:
        chosen = np.linspace(0, len(frames) - 1, min(len(frames), 128)).astype(int)
        parts = [codec.encode(torch.from_numpy(frames[i : i + 1].copy())) for i in chosen]
        return codec.denormalize(torch.cat(parts)).movedim(1, -1).flatten(0, -2)

    codec = VideoCodec.build(settings=settings)
    codec.centre(torch.from_numpy(frames[:: max(1, len(frames) // 16)].astype(np.float32)).mean((0, 1, 2, 3)) / 127.5 - 1)
    return _train(codec, Path(out), recipe, loss, latents)


def train_audio_codec(
    waves: np.ndarray, out: str | Path, *, recipe: CodecRecipe = AUDIO_RECIPE, settings: dict[str, Any] | None = None
) -> AudioCodec:
    """Train on ``waves`` float (N, M) in [-1, 1] and write the codec to ``out``; resumes from ``out/training`` after a kill."""
    codec = AudioCodec(settings)
    if waves.ndim != 2 or waves.shape[1] < max(AUDIO_WINDOWS) * codec.hop:
        raise ValueError(f"waves have shape {waves.shape}; they must be (clips, at least {max(AUDIO_WINDOWS) * codec.hop} samples)")

    def loss(codec: AudioCodec, rng: np.random.Generator, noise: float) -> dict[str, Tensor]:
        wave = audio_batch(waves, recipe.batch, codec.hop, rng)
        mean, logvar = codec.posterior(wave)
        made = codec.waveform(_noised(mean, logvar, noise), wave.shape[1])
        return audio_losses(made, wave) | {"kl": recipe.kl * _kl(mean, logvar)}

    def latents(codec: AudioCodec) -> Tensor:
        chosen = np.linspace(0, len(waves) - 1, min(len(waves), 128)).astype(int)
        parts = [codec.encode(torch.from_numpy(waves[i : i + 1].astype(np.float32))) for i in chosen]
        return (torch.cat(parts) * codec.scale + codec.shift).flatten(0, 1)

    return _train(codec, Path(out), recipe, loss, latents)


def video_batch(frames: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Windows around what moves: pixels (B, 3, F, H, W) in [-1, 1] and pixel weights (B, 1, F, H, W), more where there is motion."""
    sizes = frames.shape[1:4]
    window = tuple(min(a, b) for a, b in zip(VIDEO_WINDOWS[rng.integers(len(VIDEO_WINDOWS))], sizes, strict=True))
    count = max(1, batch * math.prod(VIDEO_WINDOWS[0]) // math.prod(window))
    pixels, weights = [], []
    for index in rng.integers(len(frames), size=count):
        clip = frames[index].astype(np.float32) / 127.5 - 1
        change = np.abs(clip - np.median(clip[::4], axis=0)).max(axis=-1)
        first = int(rng.integers(sizes[0] - window[0] + 1))
        moving = change[first : first + window[0]] > 0.2
        top = _place(moving.sum((0, 2)), window[1], rng)
        left = _place(moving.sum((0, 1)), window[2], rng)
        cut = (slice(first, first + window[0]), slice(top, top + window[1]), slice(left, left + window[2]))
        pixels.append(clip[cut])
        weights.append(change[cut])
    weight = torch.from_numpy(np.stack(weights))[:, None].clamp(max=0.5).mul(2)
    weight = 1 + 5 * F.max_pool3d(weight, (1, 3, 3), 1, (0, 1, 1))
    return torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3).contiguous(), weight


def _place(profile: np.ndarray, size: int, rng: np.random.Generator) -> int:
    """Where a window of ``size`` starts along one axis: mostly around the centre of ``profile``, now and then anywhere."""
    last = len(profile) - size
    if not profile.any() or rng.random() < 0.1:
        return int(rng.integers(last + 1))
    centre = (profile * np.arange(len(profile))).sum() / profile.sum()
    return int(np.clip(centre - size / 2 + rng.integers(-size // 4, size // 4 + 1), 0, last))


def video_losses(made: Tensor, true: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted L1 of pixels and of their differences along height, width and time."""
    error = made - true
    edges = [
        ((error.narrow(d, 1, error.shape[d] - 1) - error.narrow(d, 0, error.shape[d] - 1)).abs()
         * weight.narrow(d, 1, error.shape[d] - 1)).mean()
        for d in (2, 3, 4)
    ]
    return {"pixels": (error.abs() * weight).mean(), "edges": 0.5 * torch.stack(edges).mean()}


def audio_batch(waves: np.ndarray, batch: int, hop: int, rng: np.random.Generator) -> Tensor:
    """Windows (B, M) of one length, nine of ten with a loud sound in them, of random loudness."""
    length = int(rng.choice(AUDIO_WINDOWS))
    samples = length * hop
    count = max(1, batch * AUDIO_WINDOWS[0] // length)
    chosen: list[np.ndarray] = []
    while len(chosen) < count:
        index, first = rng.integers(len(waves)), rng.integers(waves.shape[1] - samples + 1)
        wave = waves[index, first : first + samples].astype(np.float32)
        if np.abs(wave[: samples // 2]).max() > 0.1 or rng.random() < 0.05:
            chosen.append(wave * np.float32(rng.uniform(0.7, 1.1)))
    return torch.from_numpy(np.stack(chosen))


def audio_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """L1 of samples; magnitudes and log magnitudes of spectra with windows of 2.7 to 43 ms."""
    linear, log = [], []
    for size in SPECTRAL_SIZES:
        a, b = (_spectrum(x, size) for x in (made, true))
        linear.append((a - b).norm() / b.norm().clamp_min(1e-4))
        heard = (torch.maximum(a, b) > QUIET).float().mean().clamp_min(0.01)
        log.append(((a + QUIET).log() - (b + QUIET).log()).abs().mean() / heard)
    return {
        "samples": 2 * F.l1_loss(made, true),
        "linear": torch.stack(linear).mean(),
        "log": torch.stack(log).mean(),
    }


def _spectrum(wave: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=wave.device)
    bins = torch.stft(wave, size, size // 4, window=window, return_complex=True)
    return (bins.real.square() + bins.imag.square() + 1e-12).sqrt() * (2 / size)


def _noised(mean: Tensor, logvar: Tensor, largest: float) -> Tensor:
    """A posterior sample with decoder noise of up to ``largest`` deviations of the batch's latents."""
    others = [d for d in range(mean.ndim) if d != 1]
    deviation = mean.detach().std(dim=others, keepdim=True)
    sigma = largest * torch.rand(len(mean), *[1] * (mean.ndim - 1)) * deviation
    return mean + (logvar.exp() + sigma.square()).sqrt() * torch.randn_like(mean)


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _train(
    codec: Codec,
    out: Path,
    recipe: CodecRecipe,
    losses: Callable[[Codec, np.random.Generator, float], dict[str, Tensor]],
    latents: Callable[[Codec], Tensor],
) -> Codec:
    """Adam with warm-up and cosine decay, averaged weights, checkpoints, then statistics of the latents."""
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    torch.manual_seed(recipe.seed)
    codec.train()
    optimizer = KernelMuon(codec.parameters(), lr=recipe.rate)
    average = [p.detach().clone() for p in codec.parameters()]
    step, seconds = 0, 0.0
    checkpoint = out / "training" / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        codec.load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, seconds = saved["average"], saved["step"], saved["seconds"]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        torch.save(state | {"step": step, "seconds": seconds}, checkpoint.with_suffix(".part"))
        os.replace(checkpoint.with_suffix(".part"), checkpoint)

    def progress() -> float:
        return step / recipe.steps if recipe.steps else seconds / (60 * recipe.minutes)

    saved_at = seconds
    with SummaryWriter(str(out / "training")) as log, tqdm(total=100, unit="%", desc=out.name) as bar:
        while progress() < 1:
            began = time.monotonic()
            torch.manual_seed((recipe.seed << 32) + step)
            rate = recipe.rate * min(1, (step + 1) / recipe.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress())))
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = losses(codec, np.random.default_rng((recipe.seed, step)), recipe.noise * min(1, 4 * progress()))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()
            nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(codec.parameters()), 1 - min(recipe.ema, (1 + step) / (10 + step)))
            step += 1
            seconds += time.monotonic() - began
            if step % 20 == 0:
                values = {name: float(part.detach()) for name, part in parts.items()}
                for name, value in values.items():
                    log.add_scalar(name, value, step)
                bar.set_postfix({"step": step} | {name: f"{value:.4f}" for name, value in values.items()}, refresh=False)
                bar.update(min(100, 100 * progress()) - bar.n)
            if seconds - saved_at > recipe.save_seconds:
                saved_at = seconds
                save()
        save()
    with torch.no_grad():
        for live, mean in zip(codec.parameters(), average, strict=True):
            live.copy_(mean)
        codec.eval()
        found = latents(codec)
        codec.set_statistics(found.mean(0), found.std(0))
    codec.save_pretrained(out)
    return codec
