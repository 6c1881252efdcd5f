"""The Euler loop: all branches of all requests in one forward, guidance, step and known latents in one operation.

What does not depend on the step is computed before it: text keys and values once a prompt, modulation rows once a
schedule. A modality that stands still at a step (``Schedule``) costs nothing there; video that stands still keeps its
features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels import guided_euler_step
from ..model import DDiT
from ..types import Conditioning, Latents
from .job import Job, audio_noise, video_noise

StepCallback = Callable[[int, int, Latents], None]


@dataclass(frozen=True)
class Rows:
    """How the branches of B requests lie in R rows."""

    request: Tensor  # (R,) request of each row
    of_request: Tensor  # (B, G) rows of each request; row of the first branch again where it has fewer
    video_weights: Tensor  # (B, G)
    audio_weights: Tensor  # (B, G)


def lay_out(jobs: Sequence[Job], device: torch.device) -> Rows:
    """Rows in order of requests and their branches."""
    most = max(len(job.plan.branches) for job in jobs)
    request, of_request, weights = [], [], {"video": [], "audio": []}  # type: ignore[var-annotated]
    for b, job in enumerate(jobs):
        first, count = len(request), len(job.plan.branches)
        request += [b] * count
        of_request.append([first + min(g, count - 1) if g < count else first for g in range(most)])
        for name, row in weights.items():
            row.append([*getattr(job.plan, name), *[0.0] * (most - count)])
    return Rows(
        torch.tensor(request, device=device),
        torch.tensor(of_request, device=device),
        torch.tensor(weights["video"], device=device),
        torch.tensor(weights["audio"], device=device),
    )


def conditions(model: DDiT, jobs: Sequence[Job], like: Tensor) -> Conditioning:
    """Text keys and values, one prompt a row; the null text is cut to the length of the row's own prompt."""
    null = model.video.y_embedder.y_embedding
    states = [job.states.to(like) if branch.text else null for job in jobs for branch in job.plan.branches]
    lengths = torch.tensor([job.length for job in jobs for _ in job.plan.branches], device=like.device)
    return model.video.condition(torch.stack(states), lengths)


@torch.inference_mode()
def sample(model: DDiT, jobs: Sequence[Job], on_step: StepCallback | None = None) -> Latents:
    """Latents at t = 1 of B requests of one latent shape.

    Requests may differ in steps, guidance, shift, lead and task. ``on_step(step, steps, latents)`` is called after
    each.
    """
    config, parameter = model.config, next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    rows = lay_out(jobs, device)
    text = conditions(model, jobs, parameter)
    text_of_row = torch.arange(len(rows.request), device=device)
    fps = torch.tensor([float(job.sequence.fps) for job in jobs], device=device)[rows.request]

    noise_v = torch.stack([video_noise(job, config.video_channels) for job in jobs]).to(device)
    noise_a = torch.stack([audio_noise(job, config.audio_channels) for job in jobs]).to(device)
    known, mask = _known(jobs, noise_v)
    times_v, times_a = _times(jobs, "video"), _times(jobs, "audio")  # (K + 1, B)
    t_v, t_a = (torch.from_numpy(times).float().to(device) for times in (times_v, times_a))
    z = {"video": noise_v, "audio": noise_a}
    if mask is not None:
        z["video"] = torch.where(mask, torch.lerp(noise_v, known, t_v[0][:, None, None, None, None]), noise_v)
    reads = {name: latent.to(dtype) for name, latent in z.items()}  # the latents in the model's own type
    copies = dtype if dtype != noise_v.dtype else None

    steps, frames = len(times_v) - 1, noise_v.shape[2]
    modulation, embedded = model.video.modulation(t_v[:steps, rows.request].reshape(-1, 1), fps.repeat(steps))
    modulation, embedded = (x.unflatten(0, (steps, -1)) for x in (modulation, embedded))
    moves = {m: np.any(np.diff(times, axis=0) > 0, axis=1) for m, times in (("video", times_v), ("audio", times_a))}
    context: list[Tensor] | None = None
    for k in range(steps):
        entries: dict[str, tuple[Tensor | None, ...]] = {}  # what moves: its arguments of the Euler step
        if moves["video"][k] or context is None:
            x = reads["video"][rows.request]
            v, features = model.video(x, modulation[k], embedded[k], text, text_of_row)
            context = model.audio.adapt(features) if moves["audio"][k] else None
            if moves["video"][k]:
                held = (None, None, None, None) if mask is None else (known, noise_v, mask, t_v[k + 1])
                dt = t_v[k + 1] - t_v[k]
                entries["video"] = (z["video"], v, rows.of_request, rows.video_weights, dt, *held)
        if moves["audio"][k]:
            assert context is not None
            x = reads["audio"][rows.request]
            v = model.audio_velocity(x, t_a[k, rows.request], context, frames, text, text_of_row)
            dt = t_a[k + 1] - t_a[k]
            entries["audio"] = (z["audio"], v, rows.of_request, rows.audio_weights, dt, None, None, None, None)
        if entries:
            arguments = map(list, zip(*entries.values(), strict=True))
            latents = guided_euler_step(*arguments, copies)
            z |= zip(entries, latents[: len(entries)], strict=True)
            reads |= zip(entries, latents[-len(entries) :], strict=True)
        if "video" in entries:
            context = None
        if on_step is not None:
            on_step(k + 1, steps, Latents(**z))
    return Latents(**z)


def _times(jobs: Sequence[Job], modality: str) -> np.ndarray:
    """(K + 1, B); a request with fewer steps stands still at its end."""
    times = [getattr(job.schedule, modality) for job in jobs]
    longest = max(map(len, times))
    return np.stack([np.pad(t, (0, longest - len(t)), mode="edge") for t in times], axis=1)


def _known(jobs: Sequence[Job], noise: Tensor) -> tuple[Tensor, Tensor | None]:
    """Known video latents (B, C_v, T, H, W) and where they hold (B, 1, 1, 1, 1)."""
    given = [job.known_video is not None for job in jobs]
    if not any(given):
        return noise, None
    known = torch.stack(
        [n if job.known_video is None else job.known_video.to(n) for job, n in zip(jobs, noise, strict=True)]
    )
    return known, torch.tensor(given, device=noise.device)[:, None, None, None, None]
